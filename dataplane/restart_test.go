package dataplane

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/internal/netlab"
)

// keep is a configuration whose Close leaves what a restart adopts.
func keep(pins string) func(*Config) {
	return func(c *Config) {
		c.OnExit = OnExitKeep
		c.PinDir = pins + "/sluice"
	}
}

// TestRestartAdopts: what a daemon leaves, the next takes over: connections go on
// without a new snapshot, new ones are the kernel's until it comes, and a Cleanup
// leaves nothing.
func TestRestartAdopts(t *testing.T) { eachKind(t, testRestartAdopts) }

func testRestartAdopts(t *testing.T, kind PortKind) {
	netlab.RequireRoot(t)
	pins := netlab.BPFFS(t)
	b := &testbed{t: t, Cluster: netlab.New(t).Cluster(netlab.ClusterOptions{Backends: 3})}
	clean := b.Node.State()
	b.open(of(kind, keep(pins)))
	_, backends := b.echo(8080)
	svc := testService{name: "echo", number: 1, port: 80, backends: backends}
	b.publish(svc)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var conns []*stream
	for i := range 40 {
		f := netlab.Families[i%2]
		c, err := b.Clients[0].Dial(ctx, []string{"tcp", "udp"}[i/2%2], netip.AddrPortFrom(netlab.ClusterIP(f, 1), 80))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s := &stream{Conn: c}
		if err := s.ping(); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns = append(conns, s)
	}
	flows := b.settle().Flows.Flows
	if flows < len(conns) {
		t.Fatalf("%d flows for %d connections", flows, len(conns))
	}
	b.close()

	b.open(of(kind, keep(pins)))
	if got := b.d.Stats().Flows.Flows; got != flows {
		t.Errorf("adopted %d flows, want %d", got, flows)
	}
	for i, c := range conns {
		if err := c.ping(); err != nil {
			t.Errorf("connection %d after the restart, before a snapshot: %v", i, err)
		}
	}
	s := b.settle()
	forward, reply := s.Reason(ForwardDirect)+s.Reason(ForwardReturn), s.Reason(ReplyDirect)+s.Reason(ReplyReturn)
	if forward == 0 || reply == 0 {
		t.Errorf("forward %d, reply %d frames of adopted flows", forward, reply)
	}
	// New flows are given to the kernel, which has a rule for them here.
	vip := netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 1), 80)
	rule := b.Node.DNAT(vip, protoTCP, []netip.AddrPort{b.Backends[0].AddrPort(netlab.IPv4, 8080)}, netlab.PickFirst)
	if _, err := b.Clients[0].Exchange(ctx, "tcp", vip, 5000); err != nil {
		t.Errorf("new connection before the first snapshot: %v", err)
	}
	if s = b.settle(); s.Reason(NoSnapshot) == 0 {
		t.Error("no frame was returned for want of a snapshot")
	}
	rule.Remove()
	b.snapshot = nil // a new process counts its generations anew
	b.publish(svc)
	for i, c := range conns {
		if err := c.ping(); err != nil {
			t.Errorf("connection %d after the new snapshot: %v", i, err)
		}
	}
	if _, err := b.Clients[0].Exchange(ctx, "tcp", vip, 5000); err != nil {
		t.Errorf("new connection after the snapshot: %v", err)
	}
	b.close()

	cfg := Config{Ports: b.devices()}
	of(kind, keep(pins))(&cfg)
	if err := b.Node.Do(func() error { return Cleanup(cfg) }); err != nil {
		t.Errorf("cleanup: %v", err)
	}
	if err := b.Node.Do(func() error { return Cleanup(cfg) }); err != nil {
		t.Errorf("cleanup when there is nothing: %v", err)
	}
	if diff := netlab.Diff(clean, b.Node.State()); diff != "" {
		t.Errorf("changed on the node after cleanup:\n%s", diff)
	}
	if _, err := os.Stat(pins + "/sluice"); !os.IsNotExist(err) {
		t.Errorf("pin folder after cleanup: %v, want it gone", err)
	}
}

// TestKnownFlowsWaitForTheRestart: with nobody there, frames of known flows are
// held back for a while and not given to the kernel, where they would meet rules
// that know nothing of them.
func TestKnownFlowsWaitForTheRestart(t *testing.T) { eachKind(t, testKnownFlowsWaitForTheRestart) }

func testKnownFlowsWaitForTheRestart(t *testing.T, kind PortKind) {
	netlab.RequireRoot(t)
	pins := netlab.BPFFS(t)
	b := &testbed{t: t, Cluster: netlab.New(t).Cluster(netlab.ClusterOptions{})}
	b.open(of(kind, keep(pins)))
	_, backends := b.echo(8080)
	svc := testService{name: "echo", number: 1, port: 80, backends: backends}
	b.publish(svc)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	vip := netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 1), 80)
	c, err := b.Clients[0].Dial(ctx, "tcp", vip)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := &stream{Conn: c}
	if err := s.ping(); err != nil {
		t.Fatal(err)
	}
	b.settle()
	b.close()
	// The kernel's rule would send the connection's frames elsewhere, where
	// they are answered with a reset.
	b.Node.DNAT(vip, protoTCP, []netip.AddrPort{b.Backends[0].AddrPort(netlab.IPv4, 8080)}, netlab.PickFirst)
	answered := make(chan error, 1)
	go func() { answered <- s.ping() }()
	time.Sleep(700 * time.Millisecond)
	select {
	case err := <-answered:
		t.Fatalf("a known connection was served by nobody: %v", err)
	default:
	}
	if _, err := b.Clients[0].Exchange(ctx, "tcp", vip, 3000); err != nil {
		t.Errorf("a new connection while the daemon is away: %v", err)
	}
	b.open(of(kind, keep(pins)))
	if err := <-answered; err != nil {
		t.Errorf("the connection after the restart: %v", err)
	}
	b.close()
	cfg := Config{Ports: b.devices()}
	of(kind, keep(pins))(&cfg)
	if err := b.Node.Do(func() error { return Cleanup(cfg) }); err != nil {
		t.Errorf("cleanup: %v", err)
	}
}

// TestRestartRefusesAForeignTable: a table that another version has written is not believed. The
// daemon starts with an empty one, in the same maps, and serves.
func TestRestartRefusesAForeignTable(t *testing.T) {
	netlab.RequireRoot(t)
	pins := netlab.BPFFS(t)
	b := &testbed{t: t, Cluster: netlab.New(t).Cluster(netlab.ClusterOptions{Backends: 1})}
	b.open(keep(pins))
	_, backends := b.echo(8080)
	svc := testService{name: "echo", number: 1, port: 80, backends: backends}
	b.publish(svc)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	vip := netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 1), 80)
	if _, err := b.Clients[0].Exchange(ctx, "udp", vip, 500); err != nil {
		t.Fatal(err)
	}
	if b.settle().Flows.Flows == 0 {
		t.Fatal("no flow")
	}
	b.d.prog.FlowRecords()[flowtable.HeaderVersion]++
	b.close()

	b.open(keep(pins))
	if !b.d.prog.Adopted() {
		t.Error("the maps are others")
	}
	if got := b.d.Stats().Flows.Flows; got != 0 {
		t.Errorf("%d flows of a table that is not ours", got)
	}
	b.snapshot = nil // a new process counts its generations anew
	b.publish(svc)
	for _, proto := range []string{"tcp", "udp"} {
		if _, err := b.Clients[0].Exchange(ctx, proto, vip, 500); err != nil {
			t.Errorf("%s after the start: %v", proto, err)
		}
	}
	if s := b.settle(); s.Reason(ForwardDirect)+s.Reason(ForwardReturn) == 0 {
		t.Error("nothing was forwarded")
	}
	b.close()
	cfg := Config{Ports: b.devices()}
	keep(pins)(&cfg)
	if err := b.Node.Do(func() error { return Cleanup(cfg) }); err != nil {
		t.Errorf("cleanup: %v", err)
	}
}
