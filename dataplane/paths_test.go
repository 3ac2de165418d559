package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

// The ways that frames can take, each with ordinary sockets on both sides.

// exchanges makes n exchanges of each protocol in both families with the frontend
// of a Service.
func (b *testbed) exchanges(service, port, n int) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, f := range netlab.Families {
		vip := netip.AddrPortFrom(netlab.ClusterIP(f, service), uint16(port))
		for _, network := range []string{"tcp", "udp"} {
			for i := range n {
				size := 1 + i*65%1400
				if network == "tcp" {
					size = 1 + i*7000
				}
				if _, err := b.Clients[0].Exchange(ctx, network, vip, size); err != nil {
					b.t.Errorf("%s %s exchange %d: %v", f, network, i, err)
					return
				}
			}
		}
	}
}

// TestBackendOnTheNode: the backend is a socket of the node itself. Its replies
// never meet an ingress hook; the egress program takes them to the return port.
func TestBackendOnTheNode(t *testing.T) { eachKind(t, testBackendOnTheNode) }

func testBackendOnTheNode(t *testing.T, kind PortKind) {
	for _, mode := range []Mode{ModeFront, ModeAlone} {
		t.Run(mode.String(), func(t *testing.T) {
			b := newTestbed(t, netlab.ClusterOptions{}, of(kind, func(c *Config) { c.Mode = mode }))
			var backends []netip.AddrPort
			for _, f := range netlab.Families {
				at := netip.AddrPortFrom(netlab.NodeAddr(f, 1), 6443)
				b.Node.EchoTCP(at)
				b.Node.EchoUDP(at)
				backends = append(backends, at)
			}
			b.publish(testService{name: "kubernetes", number: 2, port: 443, backends: backends})
			b.exchanges(2, 443, 10)
			s := b.settle()
			if f, r := s.Reason(ForwardReturn), s.Reason(ReplyDirect)+s.Reason(ReplyReturn); f == 0 || r == 0 || s.Reason(ForwardDirect) != 0 {
				t.Errorf("forward by the return port %d, replies %d, forward direct %d: want some, some, 0", f, r, s.Reason(ForwardDirect))
			}
		})
	}
}

// TestCollisions: one client port to two ClusterIPs that share a backend, and to the
// backend itself, before them or after, a thousand times each. The backend sees three
// ports, the client gets each answer from where it asked.
func TestCollisions(t *testing.T) { eachKind(t, testCollisions) }

func testCollisions(t *testing.T, kind PortKind) {
	b := newTestbed(t, netlab.ClusterOptions{}, of(kind))
	tcp, udp := b.Backends[0].EchoOn(8080)
	var one []netip.AddrPort
	for _, f := range netlab.Families {
		one = append(one, b.Backends[0].AddrPort(f, 8080))
	}
	b.publish(testService{name: "a", number: 13, port: 80, backends: one}, testService{name: "b", number: 14, port: 80, backends: one})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := b.Clients[0]
	const times = 250 // in each family and protocol
	for i := range 2 * times {
		for _, f := range netlab.Families {
			first, second, direct := netip.AddrPortFrom(netlab.ClusterIP(f, 13), 80), netip.AddrPortFrom(netlab.ClusterIP(f, 14), 80), b.Backends[0].AddrPort(f, 8080)
			order := []netip.AddrPort{first, second, direct}
			if i%2 == 1 {
				order = []netip.AddrPort{direct, second, first}
			}
			for _, network := range []string{"tcp", "udp"} {
				from := client.AddrPort(f, uint16(20000+i))
				var conns []*stream
				for _, to := range order {
					c, err := client.DialFrom(ctx, network, from, to)
					if err != nil {
						t.Fatalf("%s %s from port %d to %s: %v", f, network, from.Port(), to, err)
					}
					conns = append(conns, &stream{Conn: c})
				}
				for range 2 {
					for n, c := range conns {
						if err := c.ping(); err != nil {
							t.Fatalf("%s %s from port %d, connection %d: %v", f, network, from.Port(), n, err)
						}
					}
				}
				for _, c := range conns {
					c.Close()
				}
			}
		}
	}
	var ports [2]int // their own, another
	for _, s := range []*netlab.EchoServer{tcp, udp} {
		own, other := 0, 0
		for _, p := range s.Peers() {
			if p.Port() >= 20000 && p.Port() < 20000+2*times {
				own++
			} else {
				other++
				if p.Port() < 1024 {
					t.Errorf("%s saw port %d: another class than the client's", s.Addr(), p.Port())
				}
			}
		}
		if own == 0 || other == 0 {
			t.Errorf("%s saw %d peers on their own port and %d on another, want both", s.Addr(), own, other)
		}
		ports[0], ports[1] = ports[0]+own, ports[1]+other
	}
	t.Logf("nat-labs: collisions=%d ports=%s peers_on_own_port=%d peers_on_another=%d", 8*times, kind, ports[0], ports[1])
	// Both ClusterIPs, whenever the backend itself was first; but for a few ports that an
	// earlier flow had been given, where the later connection gave way as beside any flow.
	if got, want := b.d.Stats().Claimed, uint64(2*len(netlab.Families)*2*times); got < want*9/10 {
		t.Errorf("%d ports were found claimed, want %d, or a little less", got, want)
	}
}

// TestUnknownNeighbour: what has no link-layer address yet goes by the return
// port, and the kernel asks; then the way is direct.
func TestUnknownNeighbour(t *testing.T) {
	b := newTestbed(t, netlab.ClusterOptions{}, nil)
	b.RemoteBackend.EchoOn(8080)
	var backends []netip.AddrPort
	for _, f := range netlab.Families {
		backends = append(backends, b.RemoteBackend.AddrPort(f, 8080))
	}
	b.publish(testService{name: "remote", number: 3, port: 80, backends: backends})
	b.exchanges(3, 80, 1)
	s := b.settle()
	if s.Reason(ForwardReturn) == 0 {
		t.Error("the first frames did not go by the return port")
	}
	known := func(ip netip.Addr) bool {
		a := b.d.egress.resolve(ip.As16())
		return a.port != nil
	}
	for deadline := time.Now().Add(10 * time.Second); !known(b.RemoteBackend.IP4) || !known(b.RemoteBackend.IP6); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the neighbours that the kernel has asked for are not known")
		}
	}
	b.exchanges(3, 80, 10)
	if now := b.settle(); now.Reason(ForwardDirect) == 0 || now.Reason(ForwardReturn) != s.Reason(ForwardReturn) {
		t.Errorf("then forward by the return port %d, direct %d: want none, all", now.Reason(ForwardReturn)-s.Reason(ForwardReturn), now.Reason(ForwardDirect))
	}
}

// TestReturnPortUnderReversePathFilters: both ways through the node's kernel, with
// each setting that a node may have.
func TestReturnPortUnderReversePathFilters(t *testing.T) {
	eachKind(t, testReturnPortUnderReversePathFilters)
}

func testReturnPortUnderReversePathFilters(t *testing.T, kind PortKind) {
	for _, c := range []struct {
		filter  string
		outside bool // the node has a default route
	}{{"0", false}, {"0", true}, {"1", true}, {"2", true}} {
		t.Run(fmt.Sprintf("rp_filter=%s/default_route=%v", c.filter, c.outside), func(t *testing.T) {
			netlab.RequireRoot(t)
			b := &testbed{t: t, Cluster: netlab.New(t).Cluster(netlab.ClusterOptions{Outside: c.outside})}
			b.Node.Sysctl("net.ipv4.conf.all.rp_filter", c.filter)
			b.open(of(kind))
			defer b.close()
			_, backends := b.echo(8080)
			b.publish(testService{name: "echo", number: 3, port: 80, backends: backends})
			for range 5 {
				b.forgetNeighbours()
				b.exchanges(3, 80, 1)
			}
			s := b.settle()
			if s.Reason(ForwardReturn) == 0 || s.Reason(ReplyReturn) == 0 {
				t.Errorf("by the return port: %d forward, %d replies; want some of each", s.Reason(ForwardReturn), s.Reason(ReplyReturn))
			}
		})
	}
}

// forgetNeighbours makes the node ask for every neighbour again.
func (b *testbed) forgetNeighbours() {
	b.t.Helper()
	nl := b.Node.Handle()
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		neighs, err := nl.NeighList(0, family)
		if err != nil {
			b.t.Fatal(err)
		}
		for _, n := range neighs {
			if n.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) == 0 {
				nl.NeighDel(&n)
			}
		}
	}
	time.Sleep(20 * time.Millisecond) // until the egress has read it
}

// TestRejects: a Service without endpoints, and a port that a Service does not
// have, refuse at once.
func TestRejects(t *testing.T) { eachKind(t, testRejects) }

func testRejects(t *testing.T, kind PortKind) {
	b := newTestbed(t, netlab.ClusterOptions{}, of(kind))
	b.publish(testService{name: "empty", number: 4, port: 80})
	for _, f := range netlab.Families {
		for _, port := range []uint16{80, 81} {
			for _, network := range []string{"tcp", "udp"} {
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
				_, err := b.Clients[0].Exchange(ctx, network, netip.AddrPortFrom(netlab.ClusterIP(f, 4), port), 10)
				cancel()
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s %s port %d: got %v, want connection refused", f, network, port, err)
				}
			}
		}
	}
	s := b.settle()
	if s.Verdict(Rejected) == 0 || s.Reason(NoEndpoints) == 0 || s.Reason(UnknownPort) == 0 {
		t.Errorf("rejected %d: no endpoints %d, unknown port %d", s.Verdict(Rejected), s.Reason(NoEndpoints), s.Reason(UnknownPort))
	}
}

// TestSpoofedFrames: another pod that sends as the client, or as the backend, and a
// frame that is given back: nothing of it is translated, and nothing gets past the
// node's own check of sources.
func TestSpoofedFrames(t *testing.T) { eachKind(t, testSpoofedFrames) }

func testSpoofedFrames(t *testing.T, kind PortKind) {
	b := newTestbed(t, netlab.ClusterOptions{Clients: 2}, of(kind))
	backend := b.Backends[0].AddrPort(netlab.IPv4, 8080)
	b.Backends[0].EchoUDP(backend)
	b.publish(testService{name: "s", number: 27, port: 80, backends: []netip.AddrPort{backend}})
	vip := netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 27), 80)
	client := netip.AddrPortFrom(b.Clients[0].IP4, 4444)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := b.Clients[0].ExchangeFrom(ctx, "udp", client, vip, 10); err != nil {
		t.Fatal(err)
	}
	before := b.settle()
	thief := b.Clients[1]
	in := thief.Inject(netlab.PodDevice)
	mac := b.Node.MAC(thief.HostDevice)
	const frames = 10000
	for i := range frames {
		src, dst := client, vip // of a known flow
		switch i % 6 {
		case 1:
			src = netip.AddrPortFrom(client.Addr(), uint16(5000+i)) // of a new one
		case 2:
			src, dst = backend, client // a reply of the known one
		case 4:
			src = netip.AddrPortFrom(backend.Addr(), uint16(5000+i))
		}
		f := udpFromTo(t, src, dst)
		copy(f, mac)
		switch i % 6 {
		case 3: // one that is given back: a fragment whose first never comes
			f = datagramOf(f)
		case 5: // with the mark of the client's own port
			copy(f[6:], []byte{0x02, 's', 'l', 'o', 0, byte(b.d.ports.Load().byIndex[b.Node.Index(b.Clients[0].HostDevice)].slot)})
		}
		if _, err := in.Send(f); err != nil {
			t.Fatal(err)
		}
		if i%200 == 199 {
			b.reach(SpoofedSource, before.Reason(SpoofedSource)+uint64(i+1))
		}
	}
	s := b.settle()
	if got := s.Reason(SpoofedSource) - before.Reason(SpoofedSource); got != frames {
		t.Errorf("%d of %d spoofed frames were dropped as such", got, frames)
	}
	if s.Verdict(Translated) != before.Verdict(Translated) || s.Verdict(Returned) != before.Verdict(Returned) || s.Flows.Inserted != before.Flows.Inserted {
		t.Errorf("translated %d, returned %d, inserted %d; before %d, %d, %d", s.Verdict(Translated), s.Verdict(Returned), s.Flows.Inserted,
			before.Verdict(Translated), before.Verdict(Returned), before.Flows.Inserted)
	}
}

// reach waits until so many frames have ended for a reason: a ring holds only some.
func (b *testbed) reach(r Reason, n uint64) {
	b.t.Helper()
	got := uint64(0)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		got = 0
		for _, w := range b.d.workers {
			got += w.published.counts[r].Load()
		}
		if got >= n {
			return
		}
	}
	b.t.Fatalf("%d frames have ended as %v, want %d", got, r, n)
}

// datagramOf makes a whole datagram a later fragment.
func datagramOf(f []byte) []byte {
	f[20], f[21] = 0, 100
	f[24], f[25] = 0, 0
	sum := ^slowSum(f[14:34], 0)
	f[24], f[25] = byte(sum>>8), byte(sum)
	return f
}

// TestTTLEnds: the node is the last hop that a packet to a Service can have.
func TestTTLEnds(t *testing.T) { eachKind(t, testTTLEnds) }

func testTTLEnds(t *testing.T, kind PortKind) {
	for _, mode := range []Mode{ModeFront, ModeAlone} {
		t.Run(mode.String(), func(t *testing.T) {
			b := newTestbed(t, netlab.ClusterOptions{}, of(kind, func(c *Config) { c.Mode = mode }))
			b.Backends[0].EchoOn(8080)
			var near []netip.AddrPort
			for _, f := range netlab.Families {
				near = append(near, b.Backends[0].AddrPort(f, 8080))
			}
			b.publish(testService{name: "near", number: 24, port: 80, backends: near})
			client := b.Clients[0]
			for _, f := range netlab.Families {
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
				c, err := client.Dial(ctx, "udp", netip.AddrPortFrom(netlab.ClusterIP(f, 24), 80))
				if err != nil {
					t.Fatal(err)
				}
				hops(t, c, f, 1)
				c.SetDeadline(time.Now().Add(time.Second))
				c.Write([]byte("not far"))
				if _, err := c.Read(make([]byte, 8)); !errors.Is(err, syscall.EHOSTUNREACH) {
					t.Errorf("%s: one hop: got %v, want no route to host (time exceeded)", f, err)
				}
				hops(t, c, f, 2)
				c.SetDeadline(time.Now().Add(time.Second))
				c.Write([]byte("far"))
				if _, err := c.Read(make([]byte, 8)); err != nil {
					t.Errorf("%s: two hops: %v", f, err)
				}
				c.Close()
				cancel()
			}
			if s := b.settle(); s.Reason(TTLExceeded) != 2 {
				t.Errorf("%d times exceeded, want 2", s.Reason(TTLExceeded))
			}
		})
	}
}

// hops sets how far a UDP socket's packets go, and has it hear of errors.
func hops(t *testing.T, c net.Conn, f netlab.Family, n int) {
	t.Helper()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		if f == netlab.IPv4 {
			serr = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, n), unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1))
		} else {
			serr = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, n), unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
		}
	})
	if err := errors.Join(err, serr); err != nil {
		t.Fatal(err)
	}
}

// TestBackendRemovedUnderTraffic: no new flow reaches it, and no other flow is
// hurt.
func TestBackendRemovedUnderTraffic(t *testing.T) { eachKind(t, testBackendRemovedUnderTraffic) }

func testBackendRemovedUnderTraffic(t *testing.T, kind PortKind) {
	b := newTestbed(t, netlab.ClusterOptions{Backends: 3}, of(kind))
	servers, backends := b.echo(8080)
	svc := testService{name: "echo", number: 5, port: 80, backends: backends}
	b.publish(svc)
	vip := netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 5), 80)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var stop atomic.Bool
	var done atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				for _, network := range []string{"tcp", "udp"} {
					if _, err := b.Clients[0].Exchange(ctx, network, vip, 1000); err != nil {
						t.Errorf("%s during the change: %v", network, err)
						return
					}
					done.Add(1)
				}
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	gone := b.Backends[0]
	svc.backends = nil
	for _, a := range backends {
		if a.Addr() != gone.IP4 && a.Addr() != gone.IP6 {
			svc.backends = append(svc.backends, a)
		}
	}
	b.publish(svc)
	time.Sleep(50 * time.Millisecond) // exchanges under way end
	before := servers[0].Requests() + servers[1].Requests()
	time.Sleep(300 * time.Millisecond)
	stop.Store(true)
	wg.Wait()
	if after := servers[0].Requests() + servers[1].Requests(); before == 0 || after != before {
		t.Errorf("requests at the removed backend: %d when it went, %d in the end: want some, and no more", before, after)
	}
	if done.Load() < 100 {
		t.Errorf("only %d exchanges", done.Load())
	}
}

// TestKernelConnectionsStayTheKernels: in mode front, what the kernel's own rule
// translated before the start goes on through it.
func TestKernelConnectionsStayTheKernels(t *testing.T) {
	eachKind(t, testKernelConnectionsStayTheKernels)
}

func testKernelConnectionsStayTheKernels(t *testing.T, kind PortKind) {
	const connections = 100
	netlab.RequireRoot(t)
	b := &testbed{t: t, Cluster: netlab.New(t).Cluster(netlab.ClusterOptions{})}
	_, backends := b.echo(8080)
	vip := netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 6), 80)
	var v4 []netip.AddrPort
	for _, a := range backends {
		if a.Addr().Is4() {
			v4 = append(v4, a)
		}
	}
	b.Node.DNAT(vip, protoTCP, v4, netlab.PickRandom)
	b.Node.DNAT(vip, protoUDP, v4, netlab.PickRandom)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conns := make([]*stream, 0, connections)
	for i := range connections {
		network := "tcp"
		if i%2 == 1 {
			network = "udp"
		}
		c, err := b.Clients[0].Dial(ctx, network, vip)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		s := &stream{Conn: c}
		defer c.Close()
		if err := s.ping(); err != nil {
			t.Fatalf("connection %d before the start: %v", i, err)
		}
		conns = append(conns, s)
	}
	b.open(of(kind))
	defer b.close()
	b.publish(testService{name: "echo", number: 6, port: 80, backends: backends})
	for i, c := range conns {
		for range 3 {
			if err := c.ping(); err != nil {
				t.Errorf("connection %d after the start: %v", i, err)
			}
		}
	}
	s := b.settle()
	if s.Received != 0 {
		t.Errorf("the fast path received %d frames of the kernel's connections", s.Received)
	}
	// A new one is ours.
	if _, err := b.Clients[0].Exchange(ctx, "tcp", vip, 1000); err != nil {
		t.Error(err)
	}
	if s := b.settle(); s.Verdict(Translated) == 0 {
		t.Error("a connection opened after the start was not translated by the fast path")
	}
}

// TestTwoWorkersShareQueues: two workers, two queues a device and of the return port;
// of a steered port's frames each worker gets some too.
func TestTwoWorkersShareQueues(t *testing.T) { eachKind(t, testTwoWorkersShareQueues) }

func testTwoWorkersShareQueues(t *testing.T, kind PortKind) {
	b := newTestbed(t, netlab.ClusterOptions{Queues: 2}, of(kind, func(c *Config) { c.Workers = 2 }))
	_, backends := b.echo(8080)
	b.publish(testService{name: "echo", number: 7, port: 80, backends: backends})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 20 {
				for _, network := range []string{"tcp", "udp"} {
					vip := netip.AddrPortFrom(netlab.ClusterIP(netlab.Families[i%2], 7), 80)
					if _, err := b.Clients[0].Exchange(ctx, network, vip, 1+i*60); err != nil {
						t.Errorf("%s: %v", network, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	s := b.settle()
	for _, w := range s.Workers {
		if w.Received == 0 {
			t.Errorf("worker %d received nothing", w.ID)
		}
	}
}

// TestDeviceDeleted: a port whose device goes is no longer used, and the others
// go on.
func TestDeviceDeleted(t *testing.T) { eachKind(t, testDeviceDeleted) }

func testDeviceDeleted(t *testing.T, kind PortKind) {
	netlab.RequireRoot(t)
	b := &testbed{t: t, Cluster: netlab.New(t).Cluster(netlab.ClusterOptions{Clients: 2})}
	b.open(of(kind))
	defer b.close()
	_, backends := b.echo(8080)
	b.publish(testService{name: "echo", number: 9, port: 80, backends: backends})
	b.exchanges(9, 80, 5)
	b.Node.Delete(b.Clients[1].HostDevice)
	b.exchanges(9, 80, 5)
	if h := b.d.Health(); !h.Live || !h.Ready {
		t.Errorf("health after a device went: %+v", h)
	}
}

// TestLargerThanTheWay: the sender of what is above the MTU of the way out is told,
// by the address that it knows, and then sends less; unless the packet may be cut, which
// the kernel does behind the return port.
func TestLargerThanTheWay(t *testing.T) { eachKind(t, testLargerThanTheWay) }

func testLargerThanTheWay(t *testing.T, kind PortKind) {
	for _, family := range netlab.Families {
		t.Run(family.String(), func(t *testing.T) { largerThanTheWay(t, family, kind) })
	}
}

func largerThanTheWay(t *testing.T, family netlab.Family, kind PortKind) {
	b := newTestbed(t, netlab.ClusterOptions{}, of(kind))
	b.RemoteBackend.EchoOn(8080)
	far := []netip.AddrPort{b.RemoteBackend.AddrPort(family, 8080)}
	b.publish(testService{name: "far", number: 10, port: 80, backends: far})
	vip := netip.AddrPortFrom(netlab.ClusterIP(family, 10), 80)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := b.Clients[0].Exchange(ctx, "udp", vip, 1200); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*netlab.Namespace{b.Node, b.Remote} {
		n.MTU(netlab.UplinkDevice, 1280)
		defer n.MTU(netlab.UplinkDevice, 1500)
	}
	for a := (*adjacency)(nil); a == nil || a.mtu != 1280; a = b.d.egress.resolve(far[0].Addr().As16()) {
		if time.Sleep(time.Millisecond); ctx.Err() != nil {
			t.Fatal("the dataplane does not learn the MTU")
		}
	}
	exchange := func(change func(fd int) error) {
		t.Helper()
		c, err := b.Clients[0].Dial(ctx, "udp", vip)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err == nil && change != nil {
			err = errors.Join(raw.Control(func(fd uintptr) { err = change(int(fd)) }), err)
		}
		if err != nil {
			t.Fatal(err)
		}
		for ctx.Err() == nil {
			// The first one that is too big is answered, so that a later one is cut.
			c.Write(make([]byte, 1400))
			c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if n, _ := c.Read(make([]byte, 2000)); n == 1400 {
				return
			}
		}
		t.Error("no datagram of 1400 bytes came back")
	}
	if family == netlab.IPv4 {
		exchange(func(fd int) error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		})
		if s := b.settle(); s.Reason(ForwardReturn) == 0 {
			t.Error("no frame left by the return port to be cut")
		}
	}
	exchange(nil)
	if s := b.settle(); s.Reason(TooBig) == 0 {
		t.Error("nobody was told that the packet is too big")
	}
}
