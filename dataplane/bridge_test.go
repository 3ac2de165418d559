package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

// bridge puts pods behind a bridge of the node, as many CNIs have them.
func (b *testbed) bridge(pods ...*netlab.Pod) {
	b.t.Helper()
	if err := b.Node.Do(func() error {
		at := netlink.NewLinkAttrs()
		at.Name = "br0"
		br := &netlink.Bridge{LinkAttrs: at}
		if err := errors.Join(netlink.LinkAdd(br), netlink.LinkSetUp(br)); err != nil {
			return err
		}
		for _, p := range pods {
			l, err := netlink.LinkByName(p.HostDevice)
			if err != nil {
				return err
			}
			for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
				addrs, err := netlink.AddrList(l, family)
				if err != nil {
					return err
				}
				for _, a := range addrs {
					if err := netlink.AddrDel(l, &a); err != nil {
						return err
					}
				}
			}
			if err := netlink.LinkSetMaster(l, br); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.t.Fatal(err)
	}
	b.Node.Addr("br0", netlab.Gateway4+"/32")
	b.Node.Addr("br0", netlab.Gateway6+"/64")
	for _, p := range pods {
		for _, f := range netlab.Families {
			ip := p.IP(f)
			b.Node.Route(netip.PrefixFrom(ip, ip.BitLen()).String(), "", "br0", netlab.NodeAddr(f, 1).String())
		}
	}
}

// TestPodsBehindABridge: pods on one bridge are clients and backends of each other's
// Services, and none can be another.
func TestPodsBehindABridge(t *testing.T) { eachKind(t, testPodsBehindABridge) }

func testPodsBehindABridge(t *testing.T, kind PortKind) {
	netlab.RequireRoot(t)
	b := &testbed{t: t, Cluster: netlab.New(t).Cluster(netlab.ClusterOptions{Clients: 2})}
	b.bridge(b.Clients[0], b.Clients[1], b.Backends[0])
	b.open(of(kind))
	defer b.close()
	_, backends := b.echo(8080) // behind the bridge, on a port of its own, and elsewhere
	b.publish(testService{name: "echo", number: 45, port: 80, backends: backends})
	// The first frame of a pod that the kernel has not heard of is not believed.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, f := range netlab.Families {
		for _, p := range []*netlab.Pod{b.Clients[0], b.Clients[1], b.Backends[0]} {
			if _, err := b.Node.Exchange(ctx, "udp", netip.AddrPortFrom(p.IP(f), 9), 1); err == nil {
				t.Error("an answer of nobody")
			}
		}
	}
	b.exchanges(45, 80, 10)
	before := b.settle()
	if before.Verdict(Translated) == 0 {
		t.Error("nothing was translated")
	}
	in := b.Clients[1].Inject(netlab.PodDevice)
	const frames = 10000
	for i := range frames {
		src := netip.AddrPortFrom(b.Clients[0].IP4, uint16(1024+i))
		if i%2 == 1 {
			src = netip.AddrPortFrom(b.Backends[0].IP4, uint16(1024+i))
		}
		f := udpFromTo(t, src, netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 45), 80))
		copy(f, b.Node.MAC("br0"))
		copy(f[6:], b.Clients[1].MAC(netlab.PodDevice))
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
	if s.Verdict(Translated) != before.Verdict(Translated) || s.Flows.Inserted != before.Flows.Inserted {
		t.Errorf("translated %d, inserted %d of spoofed frames", s.Verdict(Translated)-before.Verdict(Translated), s.Flows.Inserted-before.Flows.Inserted)
	}
	b.exchanges(45, 80, 3)
}
