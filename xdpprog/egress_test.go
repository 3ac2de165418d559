//go:build linux

package xdpprog

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

func TestEgress(t *testing.T) {
	r := newRig(t, nil)
	r.insertKnown(t)
	r.alive(t, returnSlot) // the port's own slot does not matter
	for _, tt := range []struct {
		name string
		packet
		want Reason
	}{
		{"reply", packet{src: backend4, dst: known4, flags: "SA"}, ReasonReply},
		{"reply over IPv6", packet{src: backend6, dst: known6, flags: "A"}, ReasonReply},
		{"reply UDP", packet{src: backend4, dst: known4, proto: udp}, ReasonReply},
		{"reply with a tag in the frame", packet{src: backend4, dst: known4, vlans: []layers.EthernetType{tagC}}, ReasonReply},
		{"reply behind extension headers", packet{src: backend6, dst: known6, extensions: []extension{ext(0, 1), ext(60, 1)}}, ReasonReply},
		{"forward", packet{src: known4, flags: "A"}, ReasonNotOurs},
		{"forward, SYN to a served address", packet{}, ReasonNotOurs},
		{"neither", packet{dst: backend4}, ReasonNotOurs},
		{"neither over IPv6", packet{dst: backend6, proto: udp}, ReasonNotOurs},
		{"error", packet{proto: 1, l4: []byte{3, 3, 0, 0, 0, 0, 0, 0}}, ReasonICMPError},
		{"fragment", packet{src: backend4, dst: known4, edit: put16(6, 0x2000)}, ReasonFragment},
		{"broadcast", packet{src: backend4, dst: known4, dmac: net.HardwareAddr{255, 255, 255, 255, 255, 255}}, ReasonNotUnicast},
		{"ARP", packet{etherType: layers.EthernetTypeARP}, ReasonNotIP},
		{"lengths that lie", packet{src: backend4, dst: known4, edit: put16(2, 41)}, ReasonBadLength},
		{"cut", packet{src: backend4, dst: known4, edit: func(ip []byte) { ip[0] = 0x4f; put16(2, 100)(ip) }}, ReasonBadLength},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := outcome{"next", directSlot, tt.want}
			if tt.want == ReasonReply {
				want.Verdict = "redirect"
			}
			if got := r.egressOf(t, tt.frame(t), r.direct); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
	t.Run("unknown port", func(t *testing.T) {
		want := outcome{"next", rigSlots, ReasonUnknownPort}
		if got := r.egressOf(t, packet{src: backend4, dst: known4}.frame(t), r.stranger); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	})
	t.Run("half a tag", func(t *testing.T) {
		frame := packet{vlans: []layers.EthernetType{tagC}}.frame(t)
		want := outcome{"next", directSlot, ReasonTruncated}
		if got := r.egressOf(t, frame[:14+3], r.direct); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// A nodeLab is a node whose own process is the backend, a client pod behind the
// device "pod", and a return port whose inner end has no program, so that a capture
// there sees what the fast path would get.
type nodeLab struct {
	*rig
	client  *netlab.Namespace
	capture *netlab.Capture
}

var (
	nodeBackend4 = netip.AddrPortFrom(netlab.NodeAddr(netlab.IPv4, 1), 8080)
	nodeBackend6 = netip.AddrPortFrom(netlab.NodeAddr(netlab.IPv6, 1), 8080)
)

func newNodeLab(t *testing.T, mtu int, edit func(*Spec)) *nodeLab {
	t.Helper()
	netlab.RequireRoot(t)
	lab := netlab.New(t)
	n := &nodeLab{rig: &rig{ns: lab.Namespace("node")}, client: lab.Namespace("client")}
	lab.Veth(n.ns, "pod", n.client, "eth0", netlab.VethOptions{MTU: mtu})
	lab.Veth(n.ns, "inner", n.ns, "outer", netlab.VethOptions{})
	n.ns.Offload("outer", "tx", false)
	n.ns.Offload("outer", "tso", false)
	n.ns.Offload("outer", "gso", false)
	n.ns.Offload("outer", "sg", false)
	n.ns.Addr("pod", nodeBackend4.Addr().String()+"/24")
	n.ns.Addr("pod", nodeBackend6.Addr().String()+"/64")
	n.client.Addr("eth0", netlab.NodeAddr(netlab.IPv4, 2).String()+"/24")
	n.client.Addr("eth0", netlab.NodeAddr(netlab.IPv6, 2).String()+"/64")
	n.direct, n.inner, n.outer = n.ns.Index("pod"), n.ns.Index("inner"), n.ns.Index("outer")
	n.load(t, edit)
	if err := n.ns.Do(func() error {
		adopted, err := n.AttachEgress(n.direct)
		if adopted {
			t.Error("adopted what nobody pinned")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	n.alive(t, returnSlot)
	n.capture = n.ns.Capture("inner", netlab.CaptureOptions{Match: func(f *netlab.Frame) bool {
		return f.Direction == netlab.In && bytes.Contains(f.Data, []byte{8080 >> 8, 8080 & 0xff})
	}})
	return n
}

// routes lets the node route what comes out of the return port, the node's own frames
// too.
func (n *nodeLab) routes(t *testing.T) {
	t.Helper()
	for _, dev := range []string{"all", "outer"} {
		n.ns.Sysctl("net.ipv4.conf."+dev+".rp_filter", "0")
		n.ns.Sysctl("net.ipv4.conf."+dev+".forwarding", "1")
		n.ns.Sysctl("net.ipv6.conf."+dev+".forwarding", "1")
	}
	n.ns.Sysctl("net.ipv4.conf.outer.accept_local", "1")
	// Without an address it takes no frames to route.
	n.ns.Addr("outer", netlab.NodeAddr(netlab.IPv4, 200).String()+"/32")
	for _, f := range netlab.Families {
		n.ns.Neighbour("pod", netlab.NodeAddr(f, 2).String(), n.client.MAC("eth0"))
	}
}

// giveBack sends frames into the return port, as the daemon does with what the
// kernel is to route.
func (n *nodeLab) giveBack(t *testing.T, frames ...[]byte) {
	t.Helper()
	in := n.ns.Inject("inner")
	for _, f := range frames {
		copy(f, n.ns.MAC("outer"))
		copy(f[6:], n.ns.MAC("inner"))
		if _, err := in.Send(f); err != nil {
			t.Fatal(err)
		}
	}
}

// The replies of the node's own backend to a known flow come out of the return
// port's inner end, each as a wire would carry it, and not at the client.
func TestEgressRedirect(t *testing.T) {
	for _, backend := range []netip.AddrPort{nodeBackend4, nodeBackend6} {
		t.Run(backend.Addr().String(), func(t *testing.T) {
			n := newNodeLab(t, 1500, nil)
			l, err := n.ns.Listen(backend)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			c, err := n.client.Dial(ctx, "tcp", backend)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			client := netip.MustParseAddrPort(c.LocalAddr().String())

			// Nothing of it is ours yet.
			if _, err := s.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			frontend := frontend4
			if client.Addr().Is6() {
				frontend = frontend6
			}
			n.insert(t, flowOf(client, frontend, backend, tcp))
			before := n.counters(t)[directSlot].Egress

			const size = 40000 // in one GSO frame
			if _, err := s.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			for got := 0; got < size/4; { // less than the first congestion window
				f, err := n.capture.Next(ctx)
				if err != nil {
					t.Fatalf("after %d bytes: %v; counted %v", got, err, n.counters(t)[directSlot].Egress)
				}
				if f.Length > 1514 || f.GSO || f.Partial {
					t.Errorf("a frame of %d bytes, GSO %t, partial %t: not what a wire carries", f.Length, f.GSO, f.Partial)
				}
				if err := netlab.VerifyChecksums(&f); err != nil {
					t.Error(err)
				}
				p := gopacket.NewPacket(f.Data, layers.LayerTypeEthernet, gopacket.Default)
				if src := p.NetworkLayer().NetworkFlow().Src().String(); src != backend.Addr().String() {
					t.Errorf("from %s", src)
				}
				got += len(p.TransportLayer().LayerPayload())
			}
			after := n.counters(t)[directSlot].Egress
			if after[ReasonReply] == before[ReasonReply] {
				t.Error("no reply was counted")
			}
			if err := c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if got, _ := c.Read(make([]byte, size)); got != 0 {
				t.Errorf("the client got %d bytes untranslated", got)
			}

			// The daemon hangs: known replies wait first, then they pass.
			n.beat(n.Index(returnSlot, 0), 2*rigHold)
			if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, size)); err != nil {
				t.Errorf("after the hold: %v", err)
			}
		})
	}
}

// The headers of a frame may lie beyond the linear part of its skb.
func TestEgressPullsHeaders(t *testing.T) {
	n := newNodeLab(t, 9000, func(s *Spec) { s.Fragments, s.ICMPErrors = true, true })
	client := netip.AddrPortFrom(netlab.NodeAddr(netlab.IPv4, 2), 41000)
	n.insert(t, flowOf(client, frontend4, nodeBackend4, udp))
	if err := n.UpdateBackends([][16]byte{nodeBackend6.Addr().As16()}, nil); err != nil {
		t.Fatal(err)
	}
	quoted := packet{src: client, dst: nodeBackend4, proto: udp, payload: 6000}
	for _, tt := range []struct {
		packet
		linear uint16
		want   Reason
	}{
		{packet{src: nodeBackend4, dst: client, proto: udp, payload: 6000}, 14, ReasonReply},
		{errorAbout(t, quoted, 3, -1), 14, ReasonICMPErrorReply},
		{errorAbout(t, quoted, 3, -1), 14 + 20 + 8 + 20, ReasonICMPErrorReply}, // up to the quoted ports
		{packet{src: nodeBackend6, dst: known6, proto: udp, payload: 6000, extensions: []extension{frag6(0, true)}}, 14 + 40, ReasonFragmentReply},
		{packet{src: nodeBackend6, dst: known6, proto: udp, l4: make([]byte, 6000), extensions: []extension{frag6(8, true)}}, 14 + 40, ReasonFragmentReply},
	} {
		before := n.counters(t)[directSlot].Egress
		// A packet socket with a virtio header leaves all but hdr_len bytes of a frame
		// above a page in fragments (net/packet/af_packet.c:packet_snd).
		frame := tt.frame(t)
		header := make([]byte, 10)
		binary.NativeEndian.PutUint16(header[2:], tt.linear)
		if err := n.ns.Do(func() error {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
				return err
			}
			return unix.Sendto(fd, append(header, frame...), 0, &unix.SockaddrLinklayer{Ifindex: n.direct, Protocol: 0x0008})
		}); err != nil {
			t.Fatal(err)
		}
		after := n.counters(t)[directSlot].Egress
		if got := after[tt.want] - before[tt.want]; got != 1 {
			t.Errorf("%d bytes linear: counted %v, want one %v", tt.linear, after, tt.want)
		}
	}
}

func TestAttachTCXRefusals(t *testing.T) {
	r := newRig(t, nil)
	for name, attach := range map[string]func(*Objects, int) (bool, error){"egress": (*Objects).AttachEgress, "steer": (*Objects).AttachSteer} {
		if err := r.ns.Do(func() error {
			if _, err := attach(r.Objects, r.outer); err == nil || !strings.Contains(err.Error(), "outer end takes no "+name) {
				t.Errorf("outer end: %v", err)
			}
			if _, err := attach(r.Objects, 1<<20); err == nil {
				t.Error("attached to a device that does not exist")
			}
			if _, err := attach(r.Objects, r.direct); err != nil {
				t.Error(err)
			}
			if _, err := attach(r.Objects, r.direct); err == nil {
				t.Error("attached twice")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	r.load(t, func(s *Spec) { s.OuterIfindex = 0 })
	if _, err := r.AttachEgress(r.direct); err == nil || !strings.Contains(err.Error(), "without a return port") {
		t.Errorf("no return port: %v", err)
	}
}
