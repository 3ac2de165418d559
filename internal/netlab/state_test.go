//go:build linux

package netlab

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestStateSees makes one thing of each kind, finds it in the difference, removes it and finds no difference.
func TestStateSees(t *testing.T) {
	a, _ := addressed(t, VethOptions{Queues: 2})
	h, eth0 := a.Handle(), a.link("eth0")
	index := eth0.Attrs().Index
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	program := func(kind ebpf.ProgramType, verdict int32) *ebpf.Program {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: kind, License: "MIT",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
		})
		check(err)
		t.Cleanup(func() { p.Close() })
		return p
	}
	attach := func(f func() (link.Link, error)) func() {
		var l link.Link
		check(a.Do(func() (err error) { l, err = f(); return err }))
		return func() { check(l.Close()) }
	}
	xdp, tcx := program(ebpf.XDP, 2), program(ebpf.SchedCLS, -1)
	route := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("198.19.0.0/16")), LinkIndex: index, Table: 77, Protocol: 99}
	rule := netlink.NewRule()
	rule.Family, rule.Table, rule.Priority, rule.Mark = netlink.FAMILY_V4, 77, 100, 5
	neighbour := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: net.IPv4(192, 0, 2, 9).To4(), HardwareAddr: a.MAC("eth0")}
	clsact := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "extra"
	extra := &netlink.Dummy{LinkAttrs: attrs}
	addr, err := netlink.ParseAddr("192.0.2.77/24")
	check(err)
	frontend := netip.AddrPortFrom(ClusterIP(IPv4, 1), 80)

	for _, tt := range []struct {
		name string
		make func() (undo func())
		want []string
	}{
		{"link", func() func() {
			veth := netlink.NewVeth(extra.LinkAttrs)
			veth.PeerName = "extra-peer"
			check(h.LinkAdd(veth))
			return func() { check(h.LinkDel(veth)) }
		}, []string{"+ link extra ", "+ sysctl net.ipv4.conf.extra.rp_filter"}},
		{"address", func() func() {
			check(h.AddrAdd(eth0, addr))
			return func() { check(h.AddrDel(eth0, addr)) }
		}, []string{"+ address 192.0.2.77/24 dev eth0"}},
		{"route", func() func() {
			check(h.RouteAdd(route))
			return func() { check(h.RouteDel(route)) }
		}, []string{"+ route table 77 type 1 to 198.19.0.0/16"}},
		{"rule", func() func() {
			check(h.RuleAdd(rule))
			return func() { check(h.RuleDel(rule)) }
		}, []string{"+ rule ipv4 100", "mark 0x5"}},
		{"neighbour", func() func() {
			check(h.NeighAdd(neighbour))
			return func() { check(h.NeighDel(neighbour)) }
		}, []string{"+ neighbour 192.0.2.9 dev eth0"}},
		{"nft", func() func() {
			return a.DNAT(frontend, unix.IPPROTO_TCP, []netip.AddrPort{netip.AddrPortFrom(PodAddr(IPv4, 1, 1), 80)}, PickRandom).Remove
		}, []string{
			fmt.Sprintf("+ nft family %d table netlab\n", tableFamily(IPv4)), "set frontends elements 1",
			"chain prerouting type nat", "chain frontend-1 rule 0", "immediate immediate nat",
		}},
		{"qdisc", func() func() {
			check(h.QdiscAdd(clsact))
			return func() { check(h.QdiscDel(clsact)) }
		}, []string{"+ qdisc eth0 clsact"}},
		{"filter", func() func() {
			check(h.QdiscAdd(clsact))
			check(h.FilterAdd(&netlink.BpfFilter{
				FilterAttrs:  netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 7},
				Fd:           tcx.FD(),
				Name:         "mine",
				DirectAction: true,
			}))
			return func() { check(h.QdiscDel(clsact)) }
		}, []string{"+ filter eth0 bpf", "priority 7"}},
		{"sysctl", func() func() {
			a.Sysctl("net.ipv4.conf.eth0.accept_local", "1")
			return func() { a.Sysctl("net.ipv4.conf.eth0.accept_local", "0") }
		}, []string{"+ sysctl net.ipv4.conf.eth0.accept_local = 1", "- sysctl net.ipv4.conf.eth0.accept_local = 0"}},
		{"offload", func() func() {
			a.Offload("eth0", "tso", false)
			return func() { a.Offload("eth0", "tso", true) }
		}, []string{"- features eth0", "+ features eth0"}},
		{"xdp", func() func() {
			return attach(func() (link.Link, error) {
				return link.AttachXDP(link.XDPOptions{Program: xdp, Interface: index, Flags: link.XDPDriverMode})
			})
		}, []string{"+ xdp eth0 mode 1 program"}},
		{"tcx ingress", func() func() {
			return attach(func() (link.Link, error) {
				return link.AttachTCX(link.TCXOptions{Program: tcx, Interface: index, Attach: ebpf.AttachTCXIngress})
			})
		}, []string{"+ tcx eth0 ingress position 0 program"}},
		{"tcx egress", func() func() {
			return attach(func() (link.Link, error) {
				return link.AttachTCX(link.TCXOptions{Program: tcx, Interface: index, Attach: ebpf.AttachTCXEgress})
			})
		}, []string{"+ tcx eth0 egress position 0 program"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := a.State()
			undo := tt.make()
			diff := Diff(before, a.State())
			for _, want := range tt.want {
				if !strings.Contains(diff, want) {
					t.Errorf("difference lacks %q:\n%s", want, diff)
				}
			}
			undo()
			if diff := Diff(before, a.State()); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
		})
	}
}

// Traffic alone must not show, or no test could compare.
func TestStateIgnoresTraffic(t *testing.T) {
	RequireRoot(t)
	c := New(t).Cluster(ClusterOptions{})
	before := c.Node.State()
	c.Backends[0].EchoOn(echoPort)
	for _, f := range Families {
		for name := range protocols {
			if _, err := c.Clients[0].Exchange(testContext(t), name, c.Backends[0].AddrPort(f, echoPort), 10000); err != nil {
				t.Fatal(err)
			}
		}
	}
	if diff := Diff(before, c.Node.State()); diff != "" {
		t.Errorf("traffic changed the state:\n%s", diff)
	}
}

func TestDiff(t *testing.T) {
	for _, tt := range []struct{ before, after, want string }{
		{"", "", ""},
		{"a b c", "a b c", ""},
		{"a b", "a b c", "+ c\n"},
		{"a b c", "b c", "- a\n"},
		{"a c", "b c d", "- a\n+ b\n+ d\n"},
		{"a a", "a", "- a\n"},
		{"a", "a a a", "+ a\n+ a\n"},
		{"x", "", "- x\n"},
	} {
		if got := Diff(strings.Fields(tt.before), strings.Fields(tt.after)); got != tt.want {
			t.Errorf("from %q to %q: %q, want %q", tt.before, tt.after, got, tt.want)
		}
	}
}
