package dataplane

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/internal/netlab"
	"github.com/sluice-net/sluice/nat"
)

// TestFullTableGoesOnWithoutState: alone, with nobody behind us, connections beyond
// the table's capacity are served by the hash, in both directions, and those in the
// table are not hurt.
func TestFullTableGoesOnWithoutState(t *testing.T) { eachKind(t, testFullTableGoesOnWithoutState) }

func testFullTableGoesOnWithoutState(t *testing.T, kind PortKind) {
	b := newTestbed(t, netlab.ClusterOptions{Backends: 3}, of(kind, func(c *Config) {
		c.Mode = ModeAlone
		c.FlowCapacity = 16
	}))
	_, backends := b.echo(8080)
	_, others := b.echo(8081)
	b.publish(testService{name: "echo", number: 25, port: 80, backends: backends},
		testService{name: "other", number: 26, port: 80, backends: others})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var conns []*stream
	for i := range 60 {
		network := []string{"tcp", "udp"}[i/2%2]
		vip := netip.AddrPortFrom(netlab.ClusterIP(netlab.Families[i%2], 25+i/4%2), 80)
		c, err := b.Clients[0].Dial(ctx, network, vip)
		if err != nil {
			t.Fatalf("connection %d, %s to %s: %v", i, network, vip, err)
		}
		defer c.Close()
		s := &stream{Conn: c}
		if err := s.ping(); err != nil {
			t.Fatalf("connection %d, %s to %s: %v", i, network, vip, err)
		}
		conns = append(conns, s)
		if i == 14 {
			time.Sleep(3 * maintainEvery) // until the control loop has seen that room runs out
		}
	}
	for range 5 {
		for i, c := range conns {
			if err := c.ping(); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
	}
	s := b.settle()
	if n := s.Reason(StatelessDirect) + s.Reason(StatelessReturn); n == 0 || s.Flows.Full() == 0 {
		t.Errorf("%d frames without state, %d flows found no room; want some of each", n, s.Flows.Full())
	}
	if s.Verdict(Dropped) != 0 {
		t.Errorf("%d frames dropped", s.Verdict(Dropped))
	}
	if s.Reason(ReturnLoop)+s.Reason(TableFull) != 0 {
		t.Errorf("%d frames found nobody", s.Reason(ReturnLoop)+s.Reason(TableFull))
	}
}

// TestStatelessTooBig: who sends more than the way on takes, and forbids to cut it, is told
// so by the address that it knows, with a record of the flow or without.
func TestStatelessTooBig(t *testing.T) {
	r := newRig(t, 64)
	client := flowClient(0)
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolUDP, SrcIP: client.Addr().AsSlice(), DstIP: rigVIP.Addr().AsSlice()}
	udp := &layers.UDP{SrcPort: layers.UDPPort(client.Port()), DstPort: layers.UDPPort(rigVIP.Port())}
	udp.SetNetworkLayerForChecksum(ip)
	r.load([][]byte{serialize(t, &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 1, 1, 1, 1, 1}, DstMAC: net.HardwareAddr{2, 2, 2, 2, 2, 2}, EthernetType: layers.EthernetTypeIPv4},
		ip, udp, gopacket.Payload(make([]byte, 1600)))})
	r.parse()
	to := &nat.Endpoints{Src: client.Addr().As16(), SrcPort: client.Port(), Dst: rigBackend.As16(), DstPort: 8080}
	r.stateless(0, to, r.d.egress.adj.number(to.Dst, r.resolve), flowtable.Forward)
	if r.counts[TooBig] != 1 {
		t.Errorf("told %d times", r.counts[TooBig])
	}
	out := r.sent(r.d.returnPort) // which knows the way to any client
	if len(out) != 1 || netip.AddrFrom4([4]byte(out[0][26:30])) != rigVIP.Addr() {
		t.Errorf("the client got %x", out)
	}
}
