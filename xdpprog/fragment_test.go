//go:build linux

package xdpprog

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/sluice-net/sluice/internal/netlab"
)

const (
	moreFragments = 0x2000 // of IPv4, as is the offset in 8 bytes
	sctpProto     = layers.IPProtocolSCTP
)

// frag4 is an edit that makes an IPv4 packet a fragment.
func frag4(bits uint16) func([]byte) { return put16(6, bits) }

// frag6 is a fragment header, its offset in bytes.
func frag6(offset uint16, more bool) extension {
	b := make([]byte, 8)
	put16(2, offset)(b)
	if more {
		b[3] |= 1
	}
	return extension{layers.IPProtocolIPv6Fragment, b}
}

func both(edits ...func([]byte)) func([]byte) {
	return func(b []byte) {
		for _, edit := range edits {
			edit(b)
		}
	}
}

var (
	block   = make([]byte, 64)
	other4  = netip.AddrPortFrom(netlab.PodAddr(netlab.IPv4, 1, 9), 40000)
	other6  = netip.AddrPortFrom(netlab.PodAddr(netlab.IPv6, 1, 9), 40000)
	told4   = netip.AddrPortFrom(netlab.PodAddr(netlab.IPv4, 1, 8), 8080) // of a flow, but not told as a backend
	option7 = []layers.IPv4Option{{OptionType: 7, OptionLength: 7, OptionData: make([]byte, 5)}}
)

// With Spec.Fragments, and the known flows in the table. The last is what the egress
// classifier says of it when the node itself sends it.
var fragmentCases = []struct {
	name string
	packet
	front, alone, egress Reason
}{
	{"first, known, forward", packet{src: known4, proto: udp, payload: 56, edit: frag4(moreFragments)}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"first, known, forward TCP", packet{src: known4, flags: "A", payload: 4, edit: frag4(moreFragments)}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"first, known, forward to a Service that is gone", packet{src: known4, dst: gone4, flags: "A", payload: 4, edit: frag4(moreFragments)}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"first, UDP", packet{proto: udp, payload: 56, edit: frag4(moreFragments)}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"first, SYN", packet{payload: 4, edit: frag4(moreFragments)}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"first, ACK", packet{flags: "A", payload: 4, edit: frag4(moreFragments)}, ReasonKernelTCP, ReasonFragmentForward, ReasonNotOurs},
	{"later", packet{proto: udp, l4: block, edit: frag4(moreFragments | 8)}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"last", packet{proto: udp, l4: block[:5], edit: frag4(16)}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"last, of the highest offset", packet{proto: udp, l4: block[:5], edit: frag4(0x1fff)}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"later, TCP", packet{proto: tcp, l4: block, edit: frag4(moreFragments | 8)}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"later, what looks like a header is none", packet{src: known4, flags: "A", edit: frag4(4)}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},

	{"first, known, reply", packet{src: backend4, dst: known4, proto: udp, payload: 56, edit: frag4(moreFragments)}, ReasonFragmentReply, ReasonFragmentReply, ReasonFragmentReply},
	{"first, known, reply of an address that nobody told", packet{src: told4, dst: netip.AddrPortFrom(known4.Addr(), 41001), proto: udp, payload: 56, edit: frag4(moreFragments)}, ReasonFragmentReply, ReasonFragmentReply, ReasonFragmentReply},
	{"later, of an address that nobody told", packet{src: told4, dst: known4, proto: udp, l4: block, edit: frag4(16)}, ReasonNotOurs, ReasonNotOurs, ReasonNotOurs},
	{"first, a backend's own", packet{src: backend4, dst: other4, proto: udp, payload: 56, edit: frag4(moreFragments)}, ReasonFragmentReply, ReasonFragmentReply, ReasonFragmentReply},
	{"later, from a backend", packet{src: backend4, dst: known4, proto: udp, l4: block, edit: frag4(16)}, ReasonFragmentReply, ReasonFragmentReply, ReasonFragmentReply},
	{"later, from a backend to a served address", packet{src: backend4, proto: udp, l4: block, edit: frag4(16)}, ReasonFragmentForward, ReasonFragmentForward, ReasonFragmentReply},
	{"first, elsewhere", packet{dst: other4, proto: udp, payload: 56, edit: frag4(moreFragments)}, ReasonNotOurs, ReasonNotOurs, ReasonNotOurs},
	{"later, elsewhere", packet{dst: other4, proto: udp, l4: block, edit: frag4(16)}, ReasonNotOurs, ReasonNotOurs, ReasonNotOurs},
	{"later, to a backend", packet{dst: backend4, proto: udp, l4: block, edit: frag4(16)}, ReasonNotOurs, ReasonNotOurs, ReasonNotOurs},

	{"first, tagged", packet{vlans: []layers.EthernetType{tagC}, src: backend4, dst: known4, proto: udp, payload: 56, edit: frag4(moreFragments)}, ReasonFragmentReply, ReasonFragmentReply, ReasonFragmentReply},
	{"later, tagged twice", packet{vlans: []layers.EthernetType{tagS, tagC}, src: backend4, dst: known4, proto: udp, l4: block, edit: frag4(16)}, ReasonFragmentReply, ReasonFragmentReply, ReasonFragmentReply},
	{"first, with options", packet{options: option7, src: known4, proto: udp, payload: 56, edit: frag4(moreFragments)}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"last, padded", packet{proto: udp, l4: block[:1], padding: 20, edit: frag4(16)}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},

	{"first, a UDP length of all of them", packet{src: known4, proto: udp, payload: 56, edit: both(frag4(moreFragments), put16(24, 4000))}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"first, UDP length 7", packet{src: known4, proto: udp, payload: 56, edit: both(frag4(moreFragments), put16(24, 7))}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"first, half a TCP header", packet{proto: tcp, l4: block[:16], edit: frag4(moreFragments)}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"first, TCP header ends in the second", packet{payload: 4, edit: both(frag4(moreFragments), put8(20+12, 7<<4))}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"first, not whole 8 bytes", packet{src: known4, proto: udp, payload: 57, edit: frag4(moreFragments)}, ReasonBadLength, ReasonBadLength, ReasonBadLength},
	{"later, not whole 8 bytes", packet{proto: udp, l4: block[:63], edit: frag4(moreFragments | 16)}, ReasonBadLength, ReasonBadLength, ReasonBadLength},
	{"first, empty", packet{proto: udp, l4: []byte{}, edit: frag4(moreFragments)}, ReasonBadLength, ReasonBadLength, ReasonBadLength},
	{"last, empty", packet{proto: udp, l4: []byte{}, edit: frag4(16)}, ReasonBadLength, ReasonBadLength, ReasonBadLength},
	{"total length one more than the frame", packet{proto: udp, l4: block, edit: both(frag4(16), put16(2, 85))}, ReasonBadLength, ReasonBadLength, ReasonBadLength},

	{"first, ICMP", packet{proto: 1, l4: block, edit: frag4(moreFragments)}, ReasonFragment, ReasonFragment, ReasonFragment},
	{"later, ICMP from a backend", packet{src: backend4, dst: known4, proto: 1, l4: block, edit: frag4(16)}, ReasonFragment, ReasonFragment, ReasonFragment},
	{"later, SCTP, which is not asked for", packet{src: backend4, dst: known4, proto: sctpProto, l4: block, edit: frag4(16)}, ReasonFragment, ReasonFragment, ReasonFragment},

	{"IPv6 first, known, forward", packet{src: known6, dst: frontend6, proto: udp, payload: 56, extensions: []extension{frag6(0, true)}}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"IPv6 first, UDP", packet{dst: frontend6, proto: udp, payload: 56, extensions: []extension{frag6(0, true)}}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"IPv6 first, ACK", packet{dst: frontend6, flags: "A", payload: 4, extensions: []extension{frag6(0, true)}}, ReasonKernelTCP, ReasonFragmentForward, ReasonNotOurs},
	{"IPv6 first, known, reply", packet{src: backend6, dst: known6, proto: udp, payload: 56, extensions: []extension{frag6(0, true)}}, ReasonFragmentReply, ReasonFragmentReply, ReasonFragmentReply},
	{"IPv6 later", packet{dst: frontend6, proto: udp, l4: block, extensions: []extension{frag6(64, true)}}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"IPv6 last", packet{dst: frontend6, proto: udp, l4: block[:3], extensions: []extension{frag6(0xfff8, false)}}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"IPv6 later, from a backend", packet{src: backend6, dst: known6, proto: tcp, l4: block, extensions: []extension{frag6(64, true)}}, ReasonFragmentReply, ReasonFragmentReply, ReasonFragmentReply},
	{"IPv6 later, elsewhere", packet{dst: other6, proto: udp, l4: block, extensions: []extension{frag6(64, true)}}, ReasonNotOurs, ReasonNotOurs, ReasonNotOurs},
	{"IPv6 tagged", packet{vlans: []layers.EthernetType{tagS, tagC}, src: backend6, dst: known6, proto: udp, l4: block, extensions: []extension{frag6(64, true)}}, ReasonFragmentReply, ReasonFragmentReply, ReasonFragmentReply},
	{"IPv6 atomic", packet{src: known6, dst: frontend6, flags: "A", extensions: []extension{frag6(0, false)}}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"IPv6 atomic, new", packet{dst: frontend6, extensions: []extension{frag6(0, false)}}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"IPv6 atomic, ACK", packet{dst: frontend6, flags: "A", extensions: []extension{frag6(0, false)}}, ReasonKernelTCP, ReasonFragmentForward, ReasonNotOurs},
	{"IPv6 atomic, UDP longer than its packet", packet{dst: frontend6, proto: udp, extensions: []extension{frag6(0, false)}, edit: put16(52, 9)}, ReasonBadLength, ReasonBadLength, ReasonBadLength},
	{"IPv6 behind others", packet{src: backend6, dst: known6, proto: udp, payload: 56, extensions: []extension{ext(0, 1), ext(60, 2), ext(43, 1), ext(60, 1), frag6(0, true)}}, ReasonFragmentReply, ReasonFragmentReply, ReasonFragmentReply},
	{"IPv6 behind nine others", packet{src: backend6, dst: known6, proto: udp, payload: 56, extensions: append(slices.Repeat([]extension{ext(60, 1)}, 9), frag6(0, true))}, ReasonExtHeaders, ReasonExtHeaders, ReasonExtHeaders},
	{"IPv6 first, options behind", packet{src: known6, dst: frontend6, proto: udp, payload: 56, extensions: []extension{frag6(0, true), ext(60, 1)}}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"IPv6 later, options were behind", packet{dst: frontend6, proto: 60, l4: block, extensions: []extension{frag6(64, true)}}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"IPv6 source route behind that has not ended", packet{src: known6, dst: frontend6, proto: udp, payload: 56, extensions: []extension{frag6(0, true), {43, []byte{0, 0, 0, 1, 0, 0, 0, 0}}}}, ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
	{"IPv6 fragment of a fragment", packet{src: known6, dst: frontend6, proto: udp, payload: 56, extensions: []extension{frag6(0, true), frag6(0, true)}}, ReasonFragment, ReasonFragment, ReasonFragment},
	{"IPv6 later, of nothing that has ports", packet{dst: frontend6, proto: 59, l4: block, extensions: []extension{frag6(64, true)}}, ReasonFragment, ReasonFragment, ReasonFragment},
	{"IPv6 later, ICMPv6", packet{dst: frontend6, proto: 58, l4: block, extensions: []extension{frag6(64, true)}}, ReasonFragment, ReasonFragment, ReasonFragment},
	{"IPv6 first, ICMPv6", packet{dst: frontend6, proto: 58, l4: block, extensions: []extension{frag6(0, true)}}, ReasonFragment, ReasonFragment, ReasonFragment},
	{"IPv6 half a fragment header", packet{dst: frontend6, proto: udp, l4: block, extensions: []extension{frag6(64, true)}, edit: put16(4, 7)}, ReasonBadLength, ReasonBadLength, ReasonBadLength},
	{"IPv6 nothing behind", packet{dst: frontend6, proto: udp, l4: []byte{}, extensions: []extension{frag6(64, false)}}, ReasonBadLength, ReasonBadLength, ReasonBadLength},
	{"IPv6 not whole 8 bytes", packet{dst: frontend6, proto: udp, l4: block[:63], extensions: []extension{frag6(64, true)}}, ReasonBadLength, ReasonBadLength, ReasonBadLength},
	{"IPv6 mapped", packet{src: netip.MustParseAddrPort("[::ffff:198.18.1.2]:1"), dst: known6, proto: udp, l4: block, extensions: []extension{frag6(64, true)}}, ReasonMappedAddress, ReasonMappedAddress, ReasonMappedAddress},
}

// fullRig takes everything, and knows of flows and backends.
func fullRig(t *testing.T, mode Mode, edit func(*Spec)) *rig {
	t.Helper()
	r := newRig(t, func(s *Spec) {
		s.Mode, s.Fragments, s.ICMPErrors = mode, true, true
		if edit != nil {
			edit(s)
		}
	})
	r.insertKnown(t)
	if err := r.UpdateBackends([][16]byte{backend4.Addr().As16(), backend6.Addr().As16()}, nil); err != nil {
		t.Fatal(err)
	}
	// Its replies are known by their tuple only.
	r.insert(t, flowOf(netip.AddrPortFrom(known4.Addr(), 41001), frontend4, told4, udp))
	return r
}

// ours says what becomes of a frame at a live daemon's ports.
func ours(reason Reason, slot int, else_ string) outcome {
	if reason < ReasonHeld {
		else_ = "redirect"
	}
	return outcome{else_, slot, reason}
}

// everywhere runs a frame on the ingress of a direct, a steered and the return port.
func (r *rig) everywhere(t *testing.T, frame []byte, want Reason) {
	t.Helper()
	if got, want := r.ingress(t, frame, r.direct, 0), ours(want, directSlot, "pass"); got != want {
		t.Errorf("got %v, want %v: % x", got, want, frame)
	}
	r.steered(t, frame, ours(want, directSlot, "pass"))
	if got, want := r.ingress(t, frame, r.inner, 0), ours(want, returnSlot, "drop"); got != want {
		t.Errorf("return port: got %v, want %v: % x", got, want, frame)
	}
}

func TestFragments(t *testing.T) {
	rigs := map[Mode]*rig{}
	for _, mode := range []Mode{ModeFront, ModeAlone} {
		rigs[mode] = fullRig(t, mode, nil)
		rigs[mode].alive(t, directSlot)
		rigs[mode].alive(t, returnSlot)
	}
	for _, tt := range fragmentCases {
		t.Run(tt.name, func(t *testing.T) {
			frame := tt.frame(t)
			rigs[ModeFront].everywhere(t, frame, tt.front)
			rigs[ModeAlone].everywhere(t, frame, tt.alone)
			for mode, r := range rigs {
				if got, want := r.egressOf(t, frame, r.direct), ours(tt.egress, directSlot, "next"); got != want {
					t.Errorf("%v, egress: got %v, want %v: % x", mode, got, want, frame)
				}
				// What the daemon gave back.
				want := tt.egress
				if want == ReasonFragmentReply || want == ReasonNotOurs {
					want = ReasonFragment
				}
				if got, want := r.egressFrom(t, frame, r.direct, r.outer), (outcome{"next", directSlot, want}); got != want {
					t.Errorf("%v, egress out of the return port: got %v, want %v", mode, got, want)
				}
				if got, want := r.egressFrom(t, frame, r.direct, r.stranger), ours(tt.egress, directSlot, "next"); got != want {
					t.Errorf("%v, egress out of a device that is no port: got %v, want %v", mode, got, want)
				}
			}
		})
	}
}

// Whatever length a fragment's frame is cut to, it is not ours.
func TestFragmentsCut(t *testing.T) {
	r := fullRig(t, ModeAlone, nil)
	r.alive(t, directSlot)
	for _, tt := range fragmentCases {
		if tt.alone >= ReasonHeld || tt.padding > 0 {
			continue
		}
		whole := tt.frame(t)
		for n := 14; n < len(whole); n++ {
			got := r.ingress(t, whole[:n], r.direct, 0)
			if got.Verdict != "pass" || got.Reason != ReasonTruncated && got.Reason != ReasonBadLength {
				t.Errorf("%s, %d bytes of %d: %v", tt.name, n, len(whole), got)
			}
		}
	}
}

// Each Spec field is about its own frames only; without any all is as ever.
func TestWantsAreApart(t *testing.T) {
	frames := []struct {
		name string
		packet
		off, fragments, errors, sctp, all Reason
	}{
		{"fragment", packet{src: backend4, dst: known4, proto: udp, l4: block, edit: frag4(16)},
			ReasonFragment, ReasonFragmentReply, ReasonFragment, ReasonFragment, ReasonFragmentReply},
		{"fragment of IPv6", packet{dst: frontend6, proto: udp, l4: block, extensions: []extension{frag6(64, true)}},
			ReasonFragment, ReasonFragmentForward, ReasonFragment, ReasonFragment, ReasonFragmentForward},
		{"fragment of SCTP", packet{src: backend4, dst: known4, proto: sctpProto, l4: block, edit: frag4(16)},
			ReasonFragment, ReasonFragment, ReasonFragment, ReasonFragment, ReasonFragmentReply},
		{"error", errorAbout(t, packet{src: known4, dst: backend4}, 3, 28),
			ReasonICMPError, ReasonICMPError, ReasonICMPErrorReply, ReasonICMPError, ReasonICMPErrorReply},
		{"error about SCTP", errorAbout(t, packet{src: known4, dst: backend4, proto: sctpProto, l4: sctpOf(known4, backend4, 0)}, 3, 28),
			ReasonICMPError, ReasonICMPError, ReasonICMPError, ReasonICMPError, ReasonICMPErrorReply},
		{"SCTP", packet{proto: sctpProto, l4: sctpOf(client4, frontend4, 1)},
			ReasonOtherProto, ReasonOtherProto, ReasonOtherProto, ReasonNew, ReasonNew},
		{"TCP", packet{}, ReasonNew, ReasonNew, ReasonNew, ReasonNew, ReasonNew},
	}
	for _, tt := range []struct {
		name                    string
		fragments, errors, sctp bool
	}{
		{name: "none"}, {name: "fragments", fragments: true}, {name: "errors", errors: true}, {name: "sctp", sctp: true},
		{name: "all", fragments: true, errors: true, sctp: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := fullRig(t, ModeAlone, func(s *Spec) { s.Fragments, s.ICMPErrors, s.SCTP = tt.fragments, tt.errors, tt.sctp })
			r.insert(t, flowOf(known4, frontend4, backend4, sctpProto))
			r.alive(t, directSlot)
			r.alive(t, returnSlot)
			for _, f := range frames {
				want := map[string]Reason{"none": f.off, "fragments": f.fragments, "errors": f.errors, "sctp": f.sctp, "all": f.all}[tt.name]
				t.Run(f.name, func(t *testing.T) { r.everywhere(t, f.frame(t), want) })
			}
		})
	}
}

// Fragments and errors do not wait for a dead daemon.
func TestLivenessOfFragmentsAndErrors(t *testing.T) {
	r := fullRig(t, ModeFront, nil)
	for _, tt := range livenessCases {
		t.Run(tt.name, func(t *testing.T) {
			r.state(t, tt.socket, tt.beaten, tt.ago)
			for _, f := range []struct {
				name string
				packet
				alive  Reason
				egress bool
			}{
				{"first, known", packet{src: known4, proto: udp, payload: 56, edit: frag4(moreFragments)}, ReasonFragmentForward, false},
				{"first, new", packet{proto: udp, payload: 56, edit: frag4(moreFragments)}, ReasonFragmentForward, false},
				{"later, forward", packet{proto: udp, l4: block, edit: frag4(16)}, ReasonFragmentForward, false},
				{"first, reply", packet{src: backend6, dst: known6, proto: udp, payload: 56, extensions: []extension{frag6(0, true)}}, ReasonFragmentReply, true},
				{"later, reply", packet{src: backend4, dst: known4, proto: udp, l4: block, edit: frag4(16)}, ReasonFragmentReply, true},
				{"error, to the client", errorAbout(t, packet{src: known4, dst: backend4}, 3, 28), ReasonICMPErrorReply, true},
				{"error, to the backend", errorAbout(t, packet{src: frontend6, dst: known6}, 2, 48), ReasonICMPErrorForward, true},
			} {
				frame := f.frame(t)
				want := f.alive
				if tt.unknown != ReasonNew {
					want = ReasonDeadNew
				}
				t.Run(f.name, func(t *testing.T) {
					r.everywhere(t, frame, want)
					if !f.egress {
						return
					}
					if got, want := r.egressOf(t, frame, r.direct), ours(want, directSlot, "next"); got != want {
						t.Errorf("egress: got %v, want %v", got, want)
					}
				})
			}
		})
	}
}

// The fragments of what the node's own backend sends come out of the return port's
// inner end. What is given back there unchanged reaches the client in one piece.
func TestEgressFragments(t *testing.T) {
	for _, tt := range []struct{ backend, client netip.AddrPort }{
		{nodeBackend4, netip.AddrPortFrom(netlab.NodeAddr(netlab.IPv4, 2), 43000)},
		{nodeBackend6, netip.AddrPortFrom(netlab.NodeAddr(netlab.IPv6, 2), 43000)},
	} {
		t.Run(tt.backend.Addr().String(), func(t *testing.T) {
			n := newNodeLab(t, 1500, func(s *Spec) { s.Fragments = true })
			n.routes(t)
			if err := n.UpdateBackends([][16]byte{tt.backend.Addr().As16()}, nil); err != nil {
				t.Fatal(err)
			}
			// A later fragment has no port in it.
			n.capture = n.ns.Capture("inner", netlab.CaptureOptions{Match: func(f *netlab.Frame) bool {
				return f.Direction == netlab.In && f.Length > 100
			}})
			s, err := n.ns.ListenPacket(tt.backend)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			c, err := n.client.ListenPacket(tt.client)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			const size = 4000
			if _, err := s.WriteToUDPAddrPort(make([]byte, size), tt.client); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			var frames [][]byte
			for range 3 {
				f, err := n.capture.Next(ctx)
				if err != nil {
					t.Fatalf("after %d of 3 fragments: %v; counted %v", len(frames), err, n.counters(t)[directSlot].Egress)
				}
				frames = append(frames, f.Data)
			}
			if err := c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if got, _ := c.Read(make([]byte, size)); got != 0 {
				t.Errorf("the client got %d bytes untranslated", got)
			}
			n.giveBack(t, frames...)
			if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if got, err := c.Read(make([]byte, 2*size)); got != size || err != nil {
				t.Errorf("the client got %d bytes of %d, %v; counted %v", got, size, err, n.counters(t)[directSlot].Egress)
			}
			e := n.counters(t)[directSlot].Egress
			if e[ReasonFragmentReply] != 3 || e[ReasonFragment] != 3 {
				t.Errorf("%d fragments redirected and %d given back, want 3 and 3", e[ReasonFragmentReply], e[ReasonFragment])
			}
		})
	}
}
