//go:build linux

package netlab

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}

func TestDNAT(t *testing.T) {
	RequireRoot(t)
	c := New(t).Cluster(ClusterOptions{})
	ctx := testContext(t)
	const frontendPort = 80
	before := c.Node.State()

	pods := append([]*Pod{c.RemoteBackend}, c.Backends...)
	servers := make(map[string]map[*Pod]*EchoServer)
	for name := range protocols {
		servers[name] = make(map[*Pod]*EchoServer)
	}
	for _, p := range pods {
		servers["tcp"][p], servers["udp"][p] = p.EchoOn(echoPort)
	}
	backends := func(f Family) (all []netip.AddrPort) {
		for _, p := range pods {
			all = append(all, p.AddrPort(f, echoPort))
		}
		return all
	}
	requests := func(name string) (sum uint64, used int) {
		for _, s := range servers[name] {
			sum += s.Requests()
			if s.Requests() > 0 {
				used++
			}
		}
		return sum, used
	}

	// Refusals are rate-limited (net/ipv4/route.c:ip_error), so most of what is not served is just silent.
	unserved := func(network string, to netip.AddrPort) {
		t.Helper()
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if _, err := c.Clients[0].Exchange(short, network, to, 10); err == nil {
			t.Errorf("%s %s answers without a rule", network, to)
		}
	}

	var rules []*DNAT
	sent := uint64(0)
	for _, f := range Families {
		frontend := netip.AddrPortFrom(ClusterIP(f, 1), frontendPort)
		for name, proto := range protocols {
			unserved(name, frontend)
			rules = append(rules, c.Node.DNAT(frontend, proto, backends(f), PickRandom))
			for range 40 { // (2/3)^40 is one failure in ten million for each backend
				if _, err := c.Clients[0].Exchange(ctx, name, frontend, 100); err != nil {
					t.Fatal(err)
				}
			}
			unserved(name, netip.AddrPortFrom(frontend.Addr(), frontendPort+1))
		}
		sent += 40
		for name := range protocols {
			if sum, used := requests(name); sum != sent || used != len(pods) {
				t.Errorf("%v %s: %d requests at %d backends, want %d at %d", f, name, sum, used, sent, len(pods))
			}
		}
	}
	for name, byPod := range servers {
		for p, s := range byPod {
			for _, peer := range s.Peers() {
				if a := peer.Addr(); a != c.Clients[0].IP4 && a != c.Clients[0].IP6 {
					t.Errorf("%s of %s was reached from %s, want the client's own address", name, p.Name(), peer)
				}
			}
		}
	}

	for i, d := range rules {
		d.Remove()
		d.Remove() // once is enough
		if i == 0 && !strings.Contains(Diff(before, c.Node.State()), "table "+natTable) {
			t.Error("the first rule took the others with it")
		}
	}
	if diff := Diff(before, c.Node.State()); diff != "" {
		t.Errorf("rules left behind:\n%s", diff)
	}
	for _, f := range Families {
		unserved("tcp", netip.AddrPortFrom(ClusterIP(f, 1), frontendPort))
	}
}

func TestDNATFirst(t *testing.T) {
	RequireRoot(t)
	c := New(t).Cluster(ClusterOptions{})
	ctx := testContext(t)
	frontend := netip.AddrPortFrom(ClusterIP(IPv4, 1), 80)
	first, _ := c.Backends[1].EchoOn(echoPort)
	c.Backends[0].EchoOn(echoPort)
	c.Node.DNAT(frontend, unix.IPPROTO_TCP, []netip.AddrPort{c.Backends[1].AddrPort(IPv4, echoPort), c.Backends[0].AddrPort(IPv4, echoPort)}, PickFirst)
	for range 10 {
		if _, err := c.Clients[0].Exchange(ctx, "tcp", frontend, 10); err != nil {
			t.Fatal(err)
		}
	}
	if got := first.Requests(); got != 10 {
		t.Errorf("the first backend got %d of 10", got)
	}
}

// A backend that reaches itself through its own frontend must see another source, or it would answer itself.
func TestDNATHairpin(t *testing.T) {
	RequireRoot(t)
	c := New(t).Cluster(ClusterOptions{})
	ctx := testContext(t)
	pod := c.Backends[0]
	pod.EchoOn(echoPort)
	for _, f := range Families {
		frontend := netip.AddrPortFrom(ClusterIP(f, 1), 80)
		for name, proto := range protocols {
			c.Node.DNAT(frontend, proto, []netip.AddrPort{pod.AddrPort(f, echoPort)}, PickRandom)
			if _, err := pod.Exchange(ctx, name, frontend, 1000); err != nil {
				t.Error(err)
			}
		}
	}
}

// The node's own connections are translated, too, if it has a route for the ClusterIP.
func TestDNATFromNode(t *testing.T) {
	RequireRoot(t)
	c := New(t).Cluster(ClusterOptions{Outside: true})
	ctx := testContext(t)
	c.Backends[0].EchoOn(echoPort)
	for _, f := range Families {
		frontend := netip.AddrPortFrom(ClusterIP(f, 1), 80)
		c.Node.DNAT(frontend, unix.IPPROTO_TCP, []netip.AddrPort{c.Backends[0].AddrPort(f, echoPort)}, PickRandom)
		if _, err := c.Node.Exchange(ctx, "tcp", frontend, 1000); err != nil {
			t.Error(err)
		}
	}
}

func TestDNATRefuses(t *testing.T) {
	RequireRoot(t)
	for name, backends := range map[string][]netip.AddrPort{
		"no backends":    nil,
		"another family": {netip.AddrPortFrom(PodAddr(IPv6, 1, 1), 80)},
	} {
		var tb fakeTB
		tb.run(func() {
			New(&tb).Namespace("a").DNAT(netip.AddrPortFrom(ClusterIP(IPv4, 1), 80), unix.IPPROTO_TCP, backends, PickRandom)
		})
		if !strings.Contains(tb.fatal, name) {
			t.Errorf("fatal %q, want %q", tb.fatal, name)
		}
	}
}
