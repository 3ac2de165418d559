package dataplane

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-net/sluice/internal/netlab"
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
