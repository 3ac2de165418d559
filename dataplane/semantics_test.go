package dataplane

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-net/sluice/internal/netlab"
	"github.com/sluice-net/sluice/service"
)

// What the rules of Services mean for frames, where that is more than the choice of a
// backend.

// commit publishes what c knows.
func (b *testbed) commit(c *service.Catalog) {
	b.t.Helper()
	if err := b.d.Publish(c.Commit().Snapshot); err != nil {
		b.t.Fatalf("publishing: %v", err)
	}
}

// tell gives c a Service.
func tell(c *service.Catalog, s testService, edit func(*corev1.Service)) {
	svc, slices := s.objects()
	if edit != nil {
		edit(svc)
	}
	c.SetService(svc)
	for _, eps := range slices {
		c.SetSlice(eps)
	}
}

// reaches says how a new connection to a ClusterIP ends.
func (b *testbed) reaches(network string, f netlab.Family, number, port int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err := b.Clients[0].Exchange(ctx, network, netip.AddrPortFrom(netlab.ClusterIP(f, number), uint16(port)), 100)
	return err
}

// TestAffinity: a client's connections go to one backend while they follow each other,
// and may go to another after a rest. The two ports, and the two families, choose apart.
func TestAffinity(t *testing.T) { eachKind(t, testAffinity) }

func testAffinity(t *testing.T, kind PortKind) {
	b := newTestbed(t, netlab.ClusterOptions{Backends: 3}, of(kind))
	servers, backends := b.echo(8080)
	c := service.NewCatalog(service.Config{Selection: service.Random})
	timeout := int32(1)
	sticky := func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
	}
	echo := testService{name: "echo", number: 31, port: 80, backends: backends}
	// used says how many servers, each one backend and protocol, get the exchanges of each protocol and family.
	used := func(n int) (count int) {
		before := make([]uint64, len(servers))
		for i, s := range servers {
			before[i] = s.Requests()
		}
		b.exchanges(31, 80, n)
		for i, s := range servers {
			if s.Requests() != before[i] {
				count++
			}
		}
		return count
	}
	tell(c, echo, nil)
	b.commit(c)
	if got := used(20); got < 5 {
		t.Errorf("without affinity %d of 6 servers are used", got)
	}
	tell(c, echo, sticky)
	b.commit(c)
	first := used(20)
	if first > 4 { // at most one for each protocol and family
		t.Errorf("with affinity %d servers are used", first)
	}
	tell(c, echo, nil)
	b.commit(c)
	if got := used(20); got < 5 {
		t.Errorf("switched off again: %d of 6 servers are used", got)
	}
	tell(c, echo, sticky)
	b.commit(c)
	others := map[int]bool{}
	for range 12 {
		before := make([]uint64, len(servers))
		for i, s := range servers {
			before[i] = s.Requests()
		}
		for range 3 {
			if err := b.reaches("tcp", netlab.IPv4, 31, 80); err != nil {
				t.Fatal(err)
			}
		}
		for i, s := range servers {
			if n := s.Requests() - before[i]; n == 3 {
				others[i] = true
			} else if n != 0 {
				t.Errorf("%d of three connections went to server %d", n, i)
			}
		}
		if len(others) > 1 {
			break
		}
		time.Sleep(1100 * time.Millisecond)
	}
	if len(others) < 2 {
		t.Error("after a rest longer than the timeout it is still the same backend, twelve times")
	}
}

// TestNetworkPolicyEnds: who a policy selects is left to the kernel in front, and refused
// where nobody else serves it, at both ends. What was there before goes on.
func TestNetworkPolicyEnds(t *testing.T) {
	for mode, when := range map[Mode]service.Action{ModeFront: service.Pass, ModeAlone: service.Refuse} {
		t.Run(mode.String(), func(t *testing.T) {
			b := newTestbed(t, netlab.ClusterOptions{}, func(c *Config) { c.Mode = mode })
			_, backends := b.echo(8080)
			c := service.NewCatalog(service.Config{NodeName: "n1", Policed: when})
			tell(c, testService{name: "echo", number: 32, port: 80, backends: backends}, nil)
			b.commit(c)
			b.exchanges(32, 80, 2)

			aPod := func(p *netlab.Pod) *corev1.Pod {
				pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}}
				pod.Spec.NodeName = "n1"
				for _, f := range netlab.Families {
					pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: p.IP(f).String()})
				}
				return pod
			}
			c.SetPolicy(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "all"}})
			for _, end := range []*netlab.Pod{b.Clients[0], b.Backends[0]} {
				c.SetPod(aPod(end))
				b.commit(c)
				before := b.settle()
				err := b.reaches("tcp", netlab.IPv4, 32, 80)
				s := b.settle()
				returned, refused := s.Reason(PolicyReturned)-before.Reason(PolicyReturned), s.Reason(PolicyRefused)-before.Reason(PolicyRefused)
				switch {
				case mode == ModeAlone && (!errors.Is(err, syscall.ECONNREFUSED) || refused == 0):
					t.Errorf("%s selected: %v, %d refused", end.Name(), err, refused)
				case mode == ModeFront && err == nil: // nobody serves what is passed in this lab
					t.Errorf("%s selected: served", end.Name())
				case mode == ModeFront && end == b.Clients[0] && returned == 0:
					t.Errorf("%s selected: %d returned", end.Name(), returned)
				}
			}
			c.DeletePolicy("default", "all")
			b.commit(c)
			b.exchanges(32, 80, 2)
		})
	}
}

// TestMasquerade: a client that is not a pod is shown to the backend as the node; in
// front it is the kernel's.
func TestMasquerade(t *testing.T) { eachKind(t, testMasquerade) }

func testMasquerade(t *testing.T, kind PortKind) {
	elsewhere := []netip.Prefix{netip.MustParsePrefix("198.18.200.0/24"), netip.MustParsePrefix("2001:db8:1:ffff::/64")}
	for name, how := range map[string]struct {
		service service.Config
		config  Masquerade
	}{
		"range":  {service.Config{Pods: elsewhere}, Masquerade{}},
		"all":    {service.Config{}, Masquerade{All: true}},
		"prefix": {service.Config{}, Masquerade{Prefix: "tap"}},
		"bridge": {service.Config{}, Masquerade{Bridge: "br0"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newTestbed(t, netlab.ClusterOptions{}, of(kind, func(c *Config) { c.Mode, c.Masquerade = ModeAlone, how.config }))
			servers, backends := b.echo(8080)
			c := service.NewCatalog(how.service)
			tell(c, testService{name: "echo", number: 33, port: 80, backends: backends}, nil)
			b.commit(c)
			b.exchanges(33, 80, 20)
			low, high := b.d.localPorts[0], b.d.localPorts[1]
			seen := 0
			for _, s := range servers {
				for _, p := range s.Peers() {
					seen++
					if a := p.Addr().Unmap(); a != netlab.NodeAddr(netlab.IPv4, 1) && a != netlab.NodeAddr(netlab.IPv6, 1) {
						t.Errorf("a backend saw %v", p)
					}
					if p.Port() >= low && p.Port() <= high {
						t.Errorf("a backend saw port %d, which the node's processes may have", p.Port())
					}
				}
			}
			if seen == 0 {
				t.Error("no backend saw anybody")
			}
			// A process of the node answers a client that it sees as the node itself
			// past us. It must see another.
			var itself []netip.AddrPort
			for _, f := range netlab.Families {
				at := netip.AddrPortFrom(netlab.NodeAddr(f, 1), 6443)
				b.Node.EchoTCP(at)
				b.Node.EchoUDP(at)
				itself = append(itself, at)
			}
			tell(c, testService{name: "itself", number: 34, port: 443, backends: itself}, nil)
			b.commit(c)
			b.exchanges(34, 443, 4)
		})
	}
	t.Run("front", func(t *testing.T) {
		b := newTestbed(t, netlab.ClusterOptions{}, of(kind))
		_, backends := b.echo(8080)
		c := service.NewCatalog(service.Config{Pods: elsewhere})
		tell(c, testService{name: "echo", number: 33, port: 80, backends: backends}, nil)
		b.commit(c)
		if err := b.reaches("tcp", netlab.IPv4, 33, 80); err == nil {
			t.Error("served")
		}
		if s := b.settle(); s.Reason(Masqueraded) == 0 {
			t.Error("not returned for masquerading")
		}
	})
}

// TestUnallocated: where nobody else knows the Service range, what goes to an address in it
// that no Service has ends on the node, in silence. It takes the range's route to the
// return port, where nothing passes.
func TestUnallocated(t *testing.T) { eachKind(t, testUnallocated) }

func testUnallocated(t *testing.T, kind PortKind) {
	b := newTestbed(t, netlab.ClusterOptions{Outside: true}, of(kind, func(c *Config) { c.Mode = ModeAlone }))
	_, backends := b.echo(8080)
	ranges := []netip.Prefix{netip.MustParsePrefix("198.19.0.0/16"), netip.MustParsePrefix("2001:db8:2::/112")}
	c := service.NewCatalog(service.Config{ServiceCIDRs: ranges})
	tell(c, testService{name: "echo", number: 34, port: 80, backends: backends}, nil)
	b.commit(c)
	b.exchanges(34, 80, 2)
	out := b.Outside.Capture(netlab.PodDevice, netlab.CaptureOptions{Match: func(f *netlab.Frame) bool { return f.Direction == netlab.In }})
	for _, f := range netlab.Families {
		err := b.reaches("tcp", f, 35, 80)
		var silence net.Error
		if !errors.Is(err, context.DeadlineExceeded) && (!errors.As(err, &silence) || !silence.Timeout()) {
			t.Errorf("%v: %v, want silence", f, err)
		}
	}
	b.settle()
	frames, err := out.Drain()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		for _, family := range netlab.Families {
			addr := netlab.ClusterIP(family, 35)
			if raw := addr.AsSlice(); bytes.Contains(f.Data, raw) {
				t.Errorf("a frame for %v has left the node", addr)
			}
		}
	}
}
