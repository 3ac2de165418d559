package service

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Protocol numbers that a Service can have.
const (
	TCP  uint8 = 6
	UDP  uint8 = 17
	SCTP uint8 = 132
)

// Frontend is what a client speaks to: the ClusterIP (IPv4 mapped), port and protocol of a ServicePort. It is flat and
// without pointers, so it is a map key as it stands.
type Frontend struct {
	Addr  [16]byte
	Port  uint16
	Proto uint8
}

func (f Frontend) String() string {
	return netip.AddrPortFrom(netip.AddrFrom16(f.Addr).Unmap(), f.Port).String() + "/" + protoName(f.Proto)
}

// Backend is what serves: the address (IPv4 mapped) and port of an endpoint.
type Backend struct {
	Addr [16]byte
	Port uint16
}

func (b Backend) String() string {
	return netip.AddrPortFrom(netip.AddrFrom16(b.Addr).Unmap(), b.Port).String()
}

// Action is what happens to a new flow to a ServicePort.
type Action uint8

const (
	Forward Action = iota // to one of Backends
	Reject                // no usable endpoint anywhere: port unreachable
	Drop                  // internalTrafficPolicy Local, none on this node, but some elsewhere
)

func (a Action) String() string {
	switch a {
	case Forward:
		return "forward"
	case Reject:
		return "reject"
	case Drop:
		return "drop"
	}
	return "unknown"
}

// ServicePort is one port of a Service in one address family. It is immutable.
type ServicePort struct {
	Namespace string
	Name      string // of the Service
	PortName  string
	Proto     uint8
	IPv6      bool

	Frontends []Frontend // at least one
	Backends  []Backend  // usable for new flows, sorted; empty unless Action is Forward
	Action    Action
	Selection Selection     // how Select chooses
	Affinity  time.Duration // sessionAffinity ClientIP with this timeout; 0: none

	hashes  []uint64  // hash of each of Backends, for consistent selection
	serving []Backend // sorted: every endpoint that existing flows may stay with
	// turn counts roundRobin choices. Workers add to it; all Snapshots of the same ServicePort share it.
	turn *atomic.Uint64
}

// Serving says whether an existing flow may keep the backend b: the endpoint still serves, be it terminating, or outside
// of what policy and topology offer to new flows.
func (p *ServicePort) Serving(b *Backend) bool {
	low, high := 0, len(p.serving)
	for low < high {
		mid := int(uint(low+high) >> 1)
		at := &p.serving[mid]
		c := bytes.Compare(at.Addr[:], b.Addr[:])
		if c == 0 {
			c = int(at.Port) - int(b.Port)
		}
		switch {
		case c == 0:
			return true
		case c < 0:
			low = mid + 1
		default:
			high = mid
		}
	}
	return false
}

// ServingBackends lists what Serving says yes to, sorted. The caller must not change it.
func (p *ServicePort) ServingBackends() []Backend { return p.serving }

func (p *ServicePort) String() string {
	s := p.Namespace + "/" + p.Name
	if p.PortName != "" {
		s += ":" + p.PortName
	}
	return s
}

// Snapshot is everything the dataplane knows of Services at one moment. It is immutable: build the next one with Build.
type Snapshot struct {
	// Generation is 1 for the first Snapshot of a process and one more for each following one. It is never 0.
	Generation uint32

	ports     []*ServicePort
	frontends map[Frontend]*ServicePort
	addresses [][16]byte
	served    map[[16]byte]struct{}
}

// Lookup finds the ServicePort that has the frontend, or nil.
func (s *Snapshot) Lookup(f *Frontend) *ServicePort { return s.frontends[*f] }

// Serves says whether the address belongs to any frontend. If so and Lookup finds nothing, the client uses a port or
// protocol that the Service does not define.
func (s *Snapshot) Serves(addr [16]byte) bool {
	_, ok := s.served[addr]
	return ok
}

// Addresses lists every address that Serves says yes to, sorted. The caller must not change it.
func (s *Snapshot) Addresses() [][16]byte { return s.addresses }

// ServicePorts lists all, sorted by namespace, name, port name, protocol and family. The caller must not change it.
func (s *Snapshot) ServicePorts() []*ServicePort { return s.ports }

// newSnapshot indexes ports, which are sorted, and takes over from prev whatever is the same. If everything is, it
// returns prev.
func newSnapshot(prev *Snapshot, ports []*ServicePort) *Snapshot {
	if prev != nil && slices.Equal(prev.ports, ports) {
		return prev
	}
	s := &Snapshot{Generation: 1, ports: ports, frontends: make(map[Frontend]*ServicePort, len(ports))}
	if prev != nil {
		s.Generation = prev.Generation + 1
		if s.Generation == 0 {
			s.Generation = 1
		}
	}
	for _, p := range ports {
		for _, f := range p.Frontends {
			s.frontends[f] = p
			s.addresses = append(s.addresses, f.Addr)
		}
	}
	slices.SortFunc(s.addresses, compareAddr)
	s.addresses = slices.Compact(s.addresses)
	if prev != nil && slices.Equal(prev.addresses, s.addresses) {
		s.addresses, s.served = prev.addresses, prev.served
		return s
	}
	s.served = make(map[[16]byte]struct{}, len(s.addresses))
	for _, a := range s.addresses {
		s.served[a] = struct{}{}
	}
	return s
}

func comparePort(a, b *ServicePort) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	if c := strings.Compare(a.Name, b.Name); c != 0 {
		return c
	}
	if c := strings.Compare(a.PortName, b.PortName); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Proto, b.Proto); c != 0 {
		return c
	}
	return cmp.Compare(familyOf(a.IPv6), familyOf(b.IPv6))
}

func compareAddr(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) }

func compareBackend(a, b Backend) int {
	if c := compareAddr(a.Addr, b.Addr); c != 0 {
		return c
	}
	return cmp.Compare(a.Port, b.Port)
}

func familyOf(v6 bool) int {
	if v6 {
		return 6
	}
	return 4
}

func protoName(p uint8) string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return "unknown"
}
