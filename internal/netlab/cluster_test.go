//go:build linux

package netlab

import (
	"net/netip"
	"testing"
)

const echoPort = 7

func TestClusterReachesPods(t *testing.T) {
	RequireRoot(t)
	c := New(t).Cluster(ClusterOptions{Clients: 2, Queues: 2, Outside: true})
	ctx := testContext(t)
	for _, pod := range append([]*Pod{c.RemoteBackend, c.Clients[1]}, c.Backends...) {
		tcp, udp := pod.EchoOn(echoPort)
		for _, f := range Families {
			for _, network := range []string{"tcp", "udp"} {
				for _, size := range []int{1, 1000, 60000} {
					if _, err := c.Clients[0].Exchange(ctx, network, pod.AddrPort(f, echoPort), size); err != nil {
						t.Error(err)
					}
				}
			}
		}
		for _, s := range []*EchoServer{tcp, udp} {
			if got := s.Requests(); got != 6 {
				t.Errorf("server %s on %s saw %d requests, want 6", s.Addr(), pod.Name(), got)
			}
			for _, peer := range s.Peers() {
				if a := peer.Addr(); a != c.Clients[0].IP4 && a != c.Clients[0].IP6 {
					t.Errorf("%s was reached from %s, want the client's own address", pod.Name(), peer)
				}
			}
		}
	}
}

func TestClusterOutside(t *testing.T) {
	RequireRoot(t)
	c := New(t).Cluster(ClusterOptions{Outside: true})
	ctx := testContext(t)
	server := c.Outside.EchoTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), echoPort))
	for _, f := range Families {
		if _, err := c.Clients[0].Exchange(ctx, "tcp", netip.AddrPortFrom(OutsideAddr(f, 2), server.Addr().Port()), 100); err != nil {
			t.Error(err)
		}
	}
}

func TestAddPod(t *testing.T) {
	RequireRoot(t)
	c := New(t).Cluster(ClusterOptions{})
	ctx := testContext(t)
	for _, pod := range []*Pod{c.AddPod("late", 1), c.AddPod("late", 2)} {
		pod.EchoOn(echoPort)
		for _, f := range Families {
			if _, err := c.Clients[0].Exchange(ctx, "tcp", pod.AddrPort(f, echoPort), 100); err != nil {
				t.Errorf("%s: %v", pod.IP(f), err)
			}
		}
	}
}
