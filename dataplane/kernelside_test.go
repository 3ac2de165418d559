package dataplane

import (
	"fmt"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"github.com/sluice-net/sluice/internal/netlab"
)

// What stands on a node beside us: rules of kube-proxy, an overlay.

// dropInvalid adds the rule that kube-proxy has: what connection tracking calls invalid is
// not forwarded, and here not accepted either.
func (b *testbed) dropInvalid() (counters func() uint64) {
	b.t.Helper()
	var table *nftables.Table
	if err := b.Node.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table = c.AddTable(&nftables.Table{Name: "theirs", Family: nftables.TableFamilyINet})
		for _, hook := range []struct {
			name string
			at   *nftables.ChainHook
		}{{"forward", nftables.ChainHookForward}, {"input", nftables.ChainHookInput}} {
			chain := c.AddChain(&nftables.Chain{Name: hook.name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook.at, Priority: nftables.ChainPriorityFilter})
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitINVALID), Xor: binaryutil.NativeEndian.PutUint32(0)},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0, 0, 0}},
				&expr.Counter{},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
		return c.Flush()
	}); err != nil {
		b.t.Fatal(err)
	}
	return func() (dropped uint64) {
		b.t.Helper()
		if err := b.Node.Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			for _, name := range []string{"forward", "input"} {
				rules, err := c.GetRules(table, &nftables.Chain{Name: name, Table: table})
				if err != nil {
					return err
				}
				for _, r := range rules {
					for _, e := range r.Exprs {
						if n, ok := e.(*expr.Counter); ok {
							dropped += n.Packets
						}
					}
				}
			}
			return nil
		}); err != nil {
			b.t.Fatal(err)
		}
		return dropped
	}
}

// TestBesideTheRuleAgainstInvalid: nothing of ours is invalid to connection tracking, by
// whatever port it goes, in front of the kernel's rules and alone, with liberal tracking
// or strict.
func TestBesideTheRuleAgainstInvalid(t *testing.T) {
	eachKind(t, func(t *testing.T, kind PortKind) {
		for _, mode := range []Mode{ModeFront, ModeAlone} {
			t.Run(mode.String(), func(t *testing.T) {
				netlab.RequireRoot(t)
				b := &testbed{t: t, Cluster: netlab.New(t).Cluster(netlab.ClusterOptions{})}
				dropped := b.dropInvalid()
				b.open(of(kind, func(c *Config) { c.Mode = mode }))
				defer b.close()
				_, backends := b.echo(8080)
				b.publish(testService{name: "echo", number: 60, port: 80, backends: backends})
				b.forgetNeighbours() // so that direct ports' frames go by the kernel too
				b.exchanges(60, 80, 20)
				if n := dropped(); n != 0 {
					t.Errorf("%d packets were dropped as invalid", n)
				}
				if s := b.settle(); s.Verdict(Translated) == 0 {
					t.Error("nothing was translated")
				}
			})
		}
	})
}

// TestOverlay: the other node's pods are behind a VXLAN device, which is steered: the
// kernel wraps and unwraps.
func TestOverlay(t *testing.T) { eachKind(t, testOverlay) }

func testOverlay(t *testing.T, kind PortKind) {
	netlab.RequireRoot(t)
	b := &testbed{t: t, Cluster: netlab.New(t).Cluster(netlab.ClusterOptions{Backends: 1})}
	const dev = "vxlan0"
	for i, node := range []*netlab.Namespace{b.Node, b.Remote} {
		if err := node.Do(func() error {
			uplink, err := netlink.LinkByName(netlab.UplinkDevice)
			if err != nil {
				return err
			}
			at := netlink.NewLinkAttrs()
			at.Name = dev
			l := &netlink.Vxlan{LinkAttrs: at, VxlanId: 1, Port: 8472, VtepDevIndex: uplink.Attrs().Index,
				Group: netlab.NodeAddr(netlab.IPv4, 2-i).AsSlice(), Learning: true}
			if err := netlink.LinkAdd(l); err != nil {
				return err
			}
			return netlink.LinkSetUp(l)
		}); err != nil {
			t.Fatal(err)
		}
		for _, f := range netlab.Families {
			own, other, bits := netlab.NodeAddr(f, 101+i).String(), netlab.NodeAddr(f, 102-i).String(), "/32"
			if f == netlab.IPv6 { // the kernel wants gateways of IPv6 where their subnet is
				own, other, bits = fmt.Sprintf("2001:db8:3:1::%d", 1+i), fmt.Sprintf("2001:db8:3:1::%d", 2-i), "/64"
			}
			node.Addr(dev, own+bits)
			node.Route(netlab.PodSubnet(f, 2-i).String(), other, dev)
		}
	}
	b.open(func(c *Config) {
		c.Ports = []PortConfig{{Name: netlab.UplinkDevice, Kind: KindNone}, {Role: RoleTunnels}, {Role: RolePods, Kind: kind}}
	})
	defer b.close()
	b.served(dev, "client0", "backend0")
	_, backends := b.echo(8080)
	b.publish(testService{name: "echo", number: 61, port: 80, backends: backends})
	b.exchanges(61, 80, 20)
	for _, p := range b.settle().Ports {
		if p.Name == dev && p.Classifier["reply"] == 0 {
			t.Errorf("no reply came by the overlay: %v", p.Classifier)
		}
	}
}
