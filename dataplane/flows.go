package dataplane

import (
	"iter"
	"net/netip"
	"strconv"

	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/service"
)

// FlowInfo describes one flow to a person. Its field names and words in JSON are the
// schema of `sluice flows -o json`.
type FlowInfo struct {
	// Service is namespace/name:port of the frontend as it is programmed now, empty
	// if it no longer is.
	Service  string         `json:"service,omitempty"`
	Protocol string         `json:"protocol"` // TCP, UDP, SCTP
	Client   netip.AddrPort `json:"client"`
	Frontend netip.AddrPort `json:"frontend"`
	Backend  netip.AddrPort `json:"backend"`
	// Source is what the backend sees, which is the client unless a hairpin, a
	// collision of ports or masquerade forced another.
	Source netip.AddrPort `json:"source"`
	// State is the timeout that the flow is under: opening, established, close_wait,
	// closing, unreplied, stream.
	State          string  `json:"state"`
	AgeSeconds     float64 `json:"ageSeconds"`
	IdleSeconds    float64 `json:"idleSeconds"`
	ForwardPackets uint64  `json:"forwardPackets"`
	ReplyPackets   uint64  `json:"replyPackets"`
}

// FlowFilter says which flows to show. The zero value is all of them.
type FlowFilter struct {
	Namespace, Name string       // of the Service; Name only with Namespace
	Client, Backend netip.Prefix // invalid: any
	State           string
}

// Flows yields the flows of now that the filter lets through, in no order, as
// flowtable.Table.All does: workers do not wait for it. Any thread, until Close.
func (d *Dataplane) Flows(f *FlowFilter) iter.Seq[*FlowInfo] {
	return func(yield func(*FlowInfo) bool) {
		s := d.snapshot.Load()
		now := flowtable.TickOf(d.clock.now())
		for e := range d.table.All() {
			if !f.addresses(e) || f.State != "" && f.State != e.Class() {
				continue
			}
			sp := servicePortOf(s, &e.Flow)
			if f.Namespace != "" && (sp == nil || sp.Namespace != f.Namespace || f.Name != "" && sp.Name != f.Name) {
				continue
			}
			if !yield(describeFlow(e, sp, now)) {
				return
			}
		}
	}
}

// addresses is the filter's part that asks only the record.
func (f *FlowFilter) addresses(e *flowtable.Entry) bool {
	return within(f.Client, e.Flow.Client) && within(f.Backend, e.Flow.Backend)
}

func within(p netip.Prefix, addr [16]byte) bool {
	return !p.IsValid() || p.Contains(netip.AddrFrom16(addr).Unmap())
}

// servicePortOf is what is programmed for a flow's frontend, nil if nothing is.
func servicePortOf(s *service.Snapshot, f *flowtable.Flow) *service.ServicePort {
	if s == nil {
		return nil
	}
	return s.Lookup(&service.Frontend{Addr: f.Frontend, Port: f.FrontendPort, Proto: f.Proto})
}

func describeFlow(e *flowtable.Entry, sp *service.ServicePort, now flowtable.Tick) *FlowInfo {
	f := &e.Flow
	i := &FlowInfo{
		Protocol: protocolWord(f.Proto),
		Client:   endpoint(f.Client, f.ClientPort), Frontend: endpoint(f.Frontend, f.FrontendPort),
		Backend: endpoint(f.Backend, f.BackendPort), Source: endpoint(f.Source, f.SourcePort),
		State:      e.Class(),
		AgeSeconds: e.Age(now).Seconds(), IdleSeconds: e.Idle(now).Seconds(),
		ForwardPackets: e.ForwardPackets, ReplyPackets: e.ReplyPackets,
	}
	if sp != nil {
		i.Service = sp.Namespace + "/" + sp.Name
		if sp.PortName != "" {
			i.Service += ":" + sp.PortName
		}
	}
	return i
}

func protocolWord(proto uint8) string {
	switch proto {
	case protoTCP:
		return "TCP"
	case protoUDP:
		return "UDP"
	case protoSCTP:
		return "SCTP"
	}
	return strconv.Itoa(int(proto))
}

func endpoint(addr [16]byte, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(addr).Unmap(), port)
}
