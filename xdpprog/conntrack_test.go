//go:build linux

package xdpprog

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

// UDP that the kernel has translated already stays the kernel's in mode front.
func TestKernelUDP(t *testing.T) {
	netlab.RequireRoot(t)
	lab := netlab.New(t)
	c := lab.Cluster(netlab.ClusterOptions{Backends: 1})
	client := c.Clients[0]
	c.Backends[0].EchoOn(8080)
	r := &rig{ns: c.Node}
	lab.Veth(r.ns, "inner", r.ns, "outer", netlab.VethOptions{})
	r.direct, r.inner, r.outer = r.ns.Index(client.HostDevice), r.ns.Index("inner"), r.ns.Index("outer")

	known := make(map[netlab.Family]netip.AddrPort)
	frontends := map[netlab.Family]netip.AddrPort{netlab.IPv4: frontend4, netlab.IPv6: frontend6}
	for _, f := range netlab.Families {
		frontend := frontends[f]
		r.ns.DNAT(frontend, unix.IPPROTO_UDP, []netip.AddrPort{c.Backends[0].AddrPort(f, 8080)}, netlab.PickFirst)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		got, err := client.ExchangeFrom(ctx, "udp", client.AddrPort(f, 42000), frontend, 10)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		known[f] = netip.AddrPortFrom(client.IP(f), got.Local.Port())
	}

	for _, tt := range []struct {
		mode      Mode
		conntrack Conntrack
		want      Reason // of what the kernel knows
	}{
		{ModeFront, ConntrackRequired, ReasonKernelUDP},
		{ModeFront, ConntrackAuto, ReasonKernelUDP},
		{ModeFront, ConntrackOff, ReasonNew},
		{ModeAlone, ConntrackAuto, ReasonNew},
		{ModeAlone, ConntrackRequired, ReasonNew},
	} {
		t.Run(fmt.Sprintf("%v conntrack %d", tt.mode, tt.conntrack), func(t *testing.T) {
			r.load(t, func(s *Spec) { s.Mode, s.Conntrack, s.Fragments = tt.mode, tt.conntrack, true })
			if asked, want := r.Conntrack() == nil, tt.want == ReasonKernelUDP; asked != want {
				t.Errorf("asks the kernel: %t, want %t (%v)", asked, want, r.Conntrack())
			}
			r.alive(t, directSlot)
			r.alive(t, returnSlot)
			check := func(name string, p packet, want Reason) {
				t.Helper()
				frame := p.frame(t)
				verdict := map[bool]string{true: "redirect", false: "pass"}[want < ReasonHeld]
				if got, want := r.ingress(t, frame, r.direct, 0), (outcome{verdict, directSlot, want}); got != want {
					t.Errorf("%s: got %v, want %v", name, got, want)
				}
				r.steered(t, frame, outcome{verdict, directSlot, want})
				if verdict == "pass" {
					verdict = "drop"
				}
				if got, want := r.ingress(t, frame, r.inner, 0), (outcome{verdict, returnSlot, want}); got != want {
					t.Errorf("%s, return port: got %v, want %v", name, got, want)
				}
			}
			for _, f := range netlab.Families {
				other := netip.AddrPortFrom(known[f].Addr(), known[f].Port()+1)
				check(f.String()+" known", packet{src: known[f], dst: frontends[f], proto: udp}, tt.want)
				check("another port", packet{src: other, dst: frontends[f], proto: udp}, ReasonNew)
				check("another frontend", packet{src: known[f], dst: netip.AddrPortFrom(frontends[f].Addr(), 53), proto: udp}, ReasonNew)
				// A fragment with ports is asked the same, one without cannot be.
				first, later := packet{src: known[f], dst: frontends[f], proto: udp, payload: 56}, packet{src: known[f], dst: frontends[f], proto: udp, l4: block}
				if f == netlab.IPv4 {
					first.edit, later.edit = frag4(moreFragments), frag4(8)
				} else {
					first.extensions, later.extensions = []extension{frag6(0, true)}, []extension{frag6(64, true)}
				}
				want := ReasonFragmentForward
				if tt.want == ReasonKernelUDP {
					want = ReasonKernelUDP
				}
				check("first fragment", first, want)
				check("later fragment", later, ReasonFragmentForward)
				first.src = other
				check("first fragment of another port", first, ReasonFragmentForward)
				// The question is about UDP only: a SYN begins something.
				check("TCP of the same ports", packet{src: known[f], dst: frontends[f], proto: layers.IPProtocolTCP}, ReasonNew)
				// And what we have begun is ours, whatever the kernel knows.
				r.insert(t, flowOf(known[f], frontends[f], c.Backends[0].AddrPort(f, 8080), udp))
				got := r.ingress(t, packet{src: known[f], dst: frontends[f], proto: udp}.frame(t), r.direct, 0)
				if got.Reason != ReasonForward {
					t.Errorf("in the flow table: %v", got)
				}
			}
		})
	}
}

// A kernel whose connection tracking cannot be asked still gets a classifier, and
// one that has to ask says so.
func TestKernelWithoutConntrackCalls(t *testing.T) {
	netlab.RequireRoot(t)
	defer func(xdp, steer []byte) { _XdpBytes, _SteerBytes = xdp, steer }(_XdpBytes, _SteerBytes)
	// No kernel has calls of these names.
	for _, object := range []*[]byte{&_XdpBytes, &_SteerBytes} {
		for _, call := range []string{"bpf_xdp_ct_lookup", "bpf_skb_ct_lookup", "bpf_ct_release"} {
			*object = bytes.ReplaceAll(*object, []byte(call), []byte(strings.Replace(call, "ct", "xx", 1)))
		}
	}

	r := newRig(t, func(s *Spec) { s.Conntrack = ConntrackAuto })
	if r.Conntrack() == nil {
		t.Error("asks a kernel that cannot be asked")
	}
	t.Logf("refusal: %v", r.Conntrack())
	r.alive(t, directSlot)
	if got, want := r.ingress(t, packet{proto: udp}.frame(t), r.direct, 0), (outcome{"redirect", directSlot, ReasonNew}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if o, err := Load(Spec{FlowBuckets: 2, FlowRecords: 2, Conntrack: ConntrackRequired}); err == nil {
		o.Close()
		t.Error("loaded although it cannot ask")
	}
}
