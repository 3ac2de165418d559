//go:build linux

package xdpprog

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
)

const (
	tcp  = layers.IPProtocolTCP
	udp  = layers.IPProtocolUDP
	tagC = layers.EthernetTypeDot1Q
	tagS = layers.EthernetTypeQinQ
)

// What the parser makes of a frame to a served address: in mode alone, with the
// daemon alive, whatever it understands is ReasonNew.
var parserCases = []struct {
	name string
	packet
	want Reason
}{
	{"TCP over IPv4", packet{}, ReasonNew},
	{"TCP over IPv6", packet{dst: frontend6}, ReasonNew},
	{"UDP over IPv4", packet{proto: udp}, ReasonNew},
	{"UDP over IPv6", packet{proto: udp, dst: frontend6}, ReasonNew},
	{"with payload", packet{payload: 1400}, ReasonNew},
	{"padded", packet{padding: 6}, ReasonNew},
	{"padded IPv6", packet{dst: frontend6, padding: 6}, ReasonNew},
	{"UDP without payload", packet{proto: udp}, ReasonNew},
	{"UDP shorter than its packet", packet{proto: udp, payload: 8, edit: put16(20+4, 8)}, ReasonNew},

	{"broadcast", packet{dmac: net.HardwareAddr{255, 255, 255, 255, 255, 255}}, ReasonNotUnicast},
	{"multicast", packet{dmac: net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}}, ReasonNotUnicast},
	{"multicast of IPv6", packet{dmac: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, dst: frontend6}, ReasonNotUnicast},

	{"one tag", packet{vlans: []layers.EthernetType{tagC}}, ReasonNew},
	{"two tags", packet{vlans: []layers.EthernetType{tagS, tagC}}, ReasonNew},
	{"two tags, IPv6", packet{vlans: []layers.EthernetType{tagC, tagC}, dst: frontend6}, ReasonNew},
	{"three tags", packet{vlans: []layers.EthernetType{tagS, tagC, tagC}}, ReasonVLANTags},
	{"three tags of one kind", packet{vlans: []layers.EthernetType{tagS, tagS, tagS}}, ReasonVLANTags},

	{"ARP", packet{etherType: layers.EthernetTypeARP}, ReasonNotIP},
	{"MPLS", packet{etherType: layers.EthernetTypeMPLSUnicast}, ReasonNotIP},
	{"802.3 length", packet{etherType: 46}, ReasonNotIP},
	{"tagged ARP", packet{vlans: []layers.EthernetType{tagC}, etherType: layers.EthernetTypeARP}, ReasonNotIP},

	{"options", packet{options: []layers.IPv4Option{{OptionType: 7, OptionLength: 7, OptionData: make([]byte, 5)}}}, ReasonNew},
	{"40 bytes of options", packet{options: []layers.IPv4Option{{OptionType: 7, OptionLength: 40, OptionData: make([]byte, 38)}}}, ReasonNew},
	{"IPv4 says version 6", packet{edit: put8(0, 0x65)}, ReasonBadHeader},
	{"IPv6 says version 4", packet{dst: frontend6, edit: put8(0, 0x45)}, ReasonBadHeader},
	{"header length 0", packet{edit: put8(0, 0x40)}, ReasonBadHeader},
	{"header length 16", packet{edit: put8(0, 0x44)}, ReasonBadHeader},
	{"header longer than packet", packet{edit: put8(0, 0x4f)}, ReasonBadLength},
	{"header longer than total length", packet{edit: func(ip []byte) { ip[0] = 0x46; put16(2, 20)(ip) }, payload: 100}, ReasonBadLength},
	{"total length 0", packet{edit: put16(2, 0)}, ReasonBadLength},
	{"total length 19", packet{edit: put16(2, 19)}, ReasonBadLength},
	{"total length one more than the frame", packet{edit: put16(2, 41)}, ReasonBadLength},
	{"total length cuts TCP", packet{edit: put16(2, 39), payload: 20}, ReasonBadLength},
	{"total length cuts UDP", packet{proto: udp, edit: put16(2, 27), payload: 20}, ReasonBadLength},
	{"no L4 at all", packet{edit: put16(2, 20), payload: 20}, ReasonBadLength},
	{"tagged, total length one more than the frame", packet{vlans: []layers.EthernetType{tagC}, edit: put16(2, 41)}, ReasonBadLength},
	{"payload length one more than the frame", packet{dst: frontend6, edit: put16(4, 21)}, ReasonBadLength},
	{"payload length cuts TCP", packet{dst: frontend6, edit: put16(4, 19)}, ReasonBadLength},
	{"jumbo payload", packet{dst: frontend6, edit: put16(4, 0)}, ReasonBadLength},

	{"TCP header of 16 bytes", packet{edit: put8(20+12, 4<<4)}, ReasonBadHeader},
	{"TCP header longer than packet", packet{edit: put8(20+12, 6<<4)}, ReasonBadLength},
	{"TCP header as long as packet", packet{edit: put8(20+12, 6<<4), payload: 4}, ReasonNew},
	{"UDP length 0", packet{proto: udp, edit: put16(20+4, 0)}, ReasonBadLength},
	{"UDP length 7", packet{proto: udp, edit: put16(20+4, 7)}, ReasonBadLength},
	{"UDP longer than its packet", packet{proto: udp, padding: 20, edit: put16(20+4, 9)}, ReasonBadLength},

	{"hop-by-hop", packet{dst: frontend6, extensions: []extension{ext(0, 1)}}, ReasonNew},
	{"destination options", packet{dst: frontend6, extensions: []extension{ext(60, 3)}}, ReasonNew},
	{"source route that has ended", packet{dst: frontend6, extensions: []extension{ext(43, 3)}}, ReasonNew},
	{"source route that has not", packet{dst: frontend6, extensions: []extension{{43, []byte{0, 0, 0, 1, 0, 0, 0, 0}}}}, ReasonNew},
	{"four extension headers", packet{dst: frontend6, proto: udp, extensions: []extension{ext(0, 1), ext(60, 2), ext(43, 1), ext(60, 1)}}, ReasonNew},
	{"eight extension headers", packet{dst: frontend6, extensions: slices.Repeat([]extension{ext(60, 1)}, 8)}, ReasonNew},
	{"nine extension headers", packet{dst: frontend6, extensions: slices.Repeat([]extension{ext(60, 1)}, 9)}, ReasonExtHeaders},
	{"long extension header", packet{dst: frontend6, extensions: []extension{ext(60, 256)}, payload: 100}, ReasonNew},
	{"extension header beyond the packet", packet{dst: frontend6, extensions: []extension{{60, []byte{0, 10, 0, 0, 0, 0, 0, 0}}}}, ReasonBadLength},
	{"half an extension header", packet{dst: frontend6, extensions: []extension{ext(60, 1)}, edit: put16(4, 7)}, ReasonBadLength},
	{"fragment header", packet{dst: frontend6, extensions: []extension{{44, []byte{0, 0, 0, 1, 0, 0, 0, 1}}}}, ReasonFragment},
	{"atomic fragment", packet{dst: frontend6, extensions: []extension{{44, make([]byte, 8)}}}, ReasonFragment},
	{"fragment header after another", packet{dst: frontend6, extensions: []extension{ext(0, 1), {44, make([]byte, 8)}}}, ReasonFragment},
	{"mapped source", packet{src: netip.MustParseAddrPort("[::ffff:198.18.1.1]:40000"), dst: frontend6}, ReasonMappedAddress},
	{"mapped destination", packet{src: client6, dst: netip.MustParseAddrPort("[::ffff:198.19.0.1]:80")}, ReasonMappedAddress},

	{"first fragment", packet{edit: put16(6, 0x2000)}, ReasonFragment},
	{"later fragment", packet{edit: put16(6, 0x0010)}, ReasonFragment},
	{"don't fragment", packet{edit: put16(6, 0x4000)}, ReasonNew},
	{"reserved flag", packet{edit: put16(6, 0x8000)}, ReasonNew},

	{"port unreachable", packet{proto: 1, l4: []byte{3, 3, 0, 0, 0, 0, 0, 0}}, ReasonICMPError},
	{"source quench", packet{proto: 1, l4: []byte{4, 0, 0, 0, 0, 0, 0, 0}}, ReasonICMPError},
	{"redirect", packet{proto: 1, l4: []byte{5, 0, 0, 0, 0, 0, 0, 0}}, ReasonICMPError},
	{"time exceeded", packet{proto: 1, l4: []byte{11, 0, 0, 0, 0, 0, 0, 0}}, ReasonICMPError},
	{"parameter problem", packet{proto: 1, l4: []byte{12, 0, 0, 0, 0, 0, 0, 0}}, ReasonICMPError},
	{"echo", packet{proto: 1, l4: []byte{8, 0, 0, 0, 0, 0, 0, 0}}, ReasonOtherProto},
	{"half an ICMP header", packet{proto: 1, l4: []byte{3}}, ReasonBadLength},
	{"packet too big", packet{proto: 58, dst: frontend6, l4: []byte{2, 0, 0, 0, 0, 0, 5, 0}}, ReasonICMPError},
	{"echo of IPv6", packet{proto: 58, dst: frontend6, l4: []byte{128, 0, 0, 0, 0, 0, 0, 0}}, ReasonOtherProto},
	{"ICMPv6 over IPv4", packet{proto: 58, l4: []byte{1, 0, 0, 0, 0, 0, 0, 0}}, ReasonOtherProto},
	{"ICMP over IPv6", packet{proto: 1, dst: frontend6, l4: []byte{3, 3, 0, 0, 0, 0, 0, 0}}, ReasonOtherProto},
	{"SCTP", packet{proto: 132, l4: make([]byte, 12)}, ReasonOtherProto},
	{"GRE", packet{proto: 47, l4: make([]byte, 8)}, ReasonOtherProto},
	{"ESP", packet{proto: 50, dst: frontend6, l4: make([]byte, 8)}, ReasonOtherProto},
	{"no next header", packet{proto: 59, dst: frontend6, l4: []byte{}}, ReasonOtherProto},
	{"protocol 255", packet{proto: 255, l4: make([]byte, 8)}, ReasonOtherProto},
	{"protocol 0 over IPv4", packet{proto: 0, l4: make([]byte, 8)}, ReasonOtherProto},
}

func put8(at int, v byte) func([]byte) { return func(b []byte) { b[at] = v } }
func put16(at int, v uint16) func([]byte) {
	return func(b []byte) { binary.BigEndian.PutUint16(b[at:], v) }
}

func TestParser(t *testing.T) {
	r := newRig(t, func(s *Spec) { s.Mode = ModeAlone })
	r.alive(t, directSlot)
	r.alive(t, returnSlot)
	for _, tt := range parserCases {
		t.Run(tt.name, func(t *testing.T) {
			want := outcome{"pass", directSlot, tt.want}
			if tt.want == ReasonNew {
				want.Verdict = "redirect"
			}
			frame := tt.frame(t)
			if got := r.ingress(t, frame, r.direct, 0); got != want {
				t.Errorf("got %v, want %v: % x", got, want, frame)
			}
			r.steered(t, frame, want)
			// What passes elsewhere would loop through the return port.
			want.Slot = returnSlot
			if want.Verdict == "pass" {
				want.Verdict = "drop"
			}
			if got := r.ingress(t, frame, r.inner, 0); got != want {
				t.Errorf("return port: got %v, want %v", got, want)
			}
		})
	}
}

// Whatever length a frame is cut to, it is not ours: its lengths lie then.
func TestParserCut(t *testing.T) {
	r := newRig(t, func(s *Spec) { s.Mode = ModeAlone })
	r.alive(t, directSlot)
	frames := 0
	for _, tt := range parserCases {
		if tt.want != ReasonNew || tt.payload > 0 || tt.padding > 0 {
			continue
		}
		whole := tt.frame(t)
		for n := 14; n < len(whole); n++ { // the kernel runs nothing on less
			frames++
			got := r.ingress(t, whole[:n], r.direct, 0)
			if got.Verdict != "pass" || got.Reason != ReasonTruncated && got.Reason != ReasonBadLength {
				t.Errorf("%s, %d bytes of %d: %v", tt.name, n, len(whole), got)
			}
		}
	}
	t.Logf("%d frames", frames)
}

func TestPortsAndQueues(t *testing.T) {
	r := newRig(t, nil)
	r.alive(t, directSlot)
	frame := packet{}.frame(t)
	for _, tt := range []struct {
		name           string
		ifindex, queue int
		want           outcome
	}{
		{"known", r.direct, 0, outcome{"redirect", directSlot, ReasonNew}},
		{"unknown port", r.stranger, 0, outcome{"pass", rigSlots, ReasonUnknownPort}},
		{"unknown queue", r.direct, 1, outcome{"pass", directSlot, ReasonBadQueue}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := r.ingress(t, frame, tt.ifindex, tt.queue); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	t.Run("deleted", func(t *testing.T) {
		if err := r.DeletePort(r.direct); err != nil {
			t.Fatal(err)
		}
		if got, want := r.ingress(t, frame, r.direct, 0), (outcome{"pass", rigSlots, ReasonUnknownPort}); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// A slot's second queue has a socket and a beat of its own.
func TestQueuesAreApart(t *testing.T) {
	r := newRig(t, func(s *Spec) { s.Queues = 2 })
	frame := packet{}.frame(t)
	second := r.Index(directSlot, 1)
	r.socket(t, second)
	r.beat(second, 0)
	if got, want := r.ingress(t, frame, r.direct, 1), (outcome{"redirect", directSlot, ReasonNew}); got != want {
		t.Errorf("queue 1: got %v, want %v", got, want)
	}
	if got, want := r.ingress(t, frame, r.direct, 0), (outcome{"pass", directSlot, ReasonDeadNew}); got != want {
		t.Errorf("queue 0: got %v, want %v", got, want)
	}
}

// Which of the frames to a served address are ours, by mode.
func TestModes(t *testing.T) {
	rigs := map[Mode]*rig{ModeFront: modeRig(t, ModeFront), ModeAlone: modeRig(t, ModeAlone)}
	for _, tt := range []struct {
		name string
		packet
		front, alone Reason
	}{
		{"SYN", packet{flags: "S"}, ReasonNew, ReasonNew},
		{"SYN with ECN", packet{flags: "SEC"}, ReasonNew, ReasonNew},
		{"SYN over IPv6", packet{dst: frontend6}, ReasonNew, ReasonNew},
		{"SYN to a port that is not served", packet{dst: netip.AddrPortFrom(frontend4.Addr(), 4321)}, ReasonNew, ReasonNew},
		{"SYN-ACK", packet{flags: "SA"}, ReasonKernelTCP, ReasonNew},
		{"ACK", packet{flags: "A"}, ReasonKernelTCP, ReasonNew},
		{"ACK over IPv6", packet{flags: "A", dst: frontend6}, ReasonKernelTCP, ReasonNew},
		{"FIN", packet{flags: "FA"}, ReasonKernelTCP, ReasonNew},
		{"RST", packet{flags: "R"}, ReasonKernelTCP, ReasonNew},
		{"all flags but SYN and ACK", packet{flags: "FRPUEC"}, ReasonKernelTCP, ReasonNew},
		{"UDP", packet{proto: udp}, ReasonNew, ReasonNew},
		{"SYN elsewhere", packet{dst: backend4}, ReasonNotOurs, ReasonNotOurs},
		{"SYN elsewhere over IPv6", packet{dst: backend6}, ReasonNotOurs, ReasonNotOurs},
		{"UDP elsewhere", packet{dst: backend4, proto: udp}, ReasonNotOurs, ReasonNotOurs},
		{"from a served address", packet{src: frontend4, dst: client4}, ReasonNotOurs, ReasonNotOurs},

		{"known, forward", packet{src: known4, flags: "A"}, ReasonForward, ReasonForward},
		{"known, forward, SYN again", packet{src: known4, flags: "S"}, ReasonForward, ReasonForward},
		{"known, forward over IPv6", packet{src: known6, dst: frontend6, flags: "A"}, ReasonForward, ReasonForward},
		{"known, forward UDP", packet{src: known4, proto: udp}, ReasonForward, ReasonForward},
		{"known, reply", packet{src: backend4, dst: known4, flags: "SA"}, ReasonReply, ReasonReply},
		{"known, reply over IPv6", packet{src: backend6, dst: known6, flags: "A"}, ReasonReply, ReasonReply},
		{"known, reply UDP", packet{src: backend4, dst: known4, proto: udp}, ReasonReply, ReasonReply},
		{"known to a Service that is gone", packet{src: known4, dst: gone4, flags: "A"}, ReasonForward, ReasonForward},
		{"tagged, known", packet{src: backend4, dst: known4, flags: "A", vlans: []layers.EthernetType{tagC}}, ReasonReply, ReasonReply},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for mode, reason := range map[Mode]Reason{ModeFront: tt.front, ModeAlone: tt.alone} {
				r := rigs[mode]
				want := outcome{"redirect", directSlot, reason}
				if reason >= ReasonNotOurs {
					want.Verdict = "pass"
				}
				if got := r.ingress(t, tt.frame(t), r.direct, 0); got != want {
					t.Errorf("%v: got %v, want %v", mode, got, want)
				}
				r.steered(t, tt.frame(t), want)
				want.Slot = returnSlot
				if want.Verdict == "pass" {
					want.Verdict = "drop"
				}
				if got := r.ingress(t, tt.frame(t), r.inner, 0); got != want {
					t.Errorf("%v, return port: got %v, want %v", mode, got, want)
				}
			}
		})
	}
}

// The client ports of known flows.
var (
	known4 = netip.AddrPortFrom(client4.Addr(), 41000)
	known6 = netip.AddrPortFrom(client6.Addr(), 41000)
	gone4  = netip.MustParseAddrPort("198.19.0.200:80")
)

func modeRig(t *testing.T, mode Mode) *rig {
	t.Helper()
	r := newRig(t, func(s *Spec) { s.Mode = mode })
	r.alive(t, directSlot)
	r.alive(t, returnSlot)
	r.insertKnown(t)
	return r
}

func (r *rig) insertKnown(t testing.TB) {
	t.Helper()
	for _, proto := range []layers.IPProtocol{tcp, udp} {
		r.insert(t, flowOf(known4, frontend4, backend4, proto))
		r.insert(t, flowOf(known6, frontend6, backend6, proto))
	}
	r.insert(t, flowOf(known4, gone4, netip.AddrPortFrom(backend4.Addr(), 8081), tcp))
}

// A flow whose backend sees another source is found by that, and not by its client.
func TestReplyToSource(t *testing.T) {
	r := newRig(t, nil)
	r.alive(t, directSlot)
	for _, f := range []struct{ client, frontend, backend, source netip.AddrPort }{
		{client4, frontend4, backend4, source4},
		{client6, frontend6, backend6, source6},
	} {
		flow := flowOf(f.client, f.frontend, f.backend, tcp)
		flow.Source, flow.SourcePort = f.source.Addr().As16(), f.source.Port()
		r.insert(t, flow)
		for _, tt := range []struct {
			name     string
			src, dst netip.AddrPort
			want     Reason
		}{
			{"forward", f.client, f.frontend, ReasonForward},
			{"reply to the source", f.backend, f.source, ReasonReply},
			{"reply to the client", f.backend, f.client, ReasonNotOurs},
			{"reply to the client at the source's port", f.backend, netip.AddrPortFrom(f.client.Addr(), f.source.Port()), ReasonNotOurs},
		} {
			if got := r.ingress(t, packet{src: tt.src, dst: tt.dst, flags: "A"}.frame(t), r.direct, 0); got.Reason != tt.want {
				t.Errorf("%s, %v: got %v, want %v", tt.name, f.client, got, tt.want)
			}
		}
	}
}

// The states that a daemon can be in, as the classifier sees them.
var livenessCases = []struct {
	name           string
	socket, beaten bool
	ago            time.Duration
	known, unknown Reason // what becomes of flows that are in the table, and of others
}{
	{name: "alive", socket: true, beaten: true, known: ReasonForward, unknown: ReasonNew},
	{name: "alive, beat ahead of the coarse clock", socket: true, beaten: true, ago: -rigStale / 2, known: ReasonForward, unknown: ReasonNew},
	{name: "killed just now", beaten: true, known: ReasonHeld, unknown: ReasonDeadNew},
	{name: "killed a while ago", beaten: true, ago: 2 * rigStale, known: ReasonHeld, unknown: ReasonDeadNew},
	{name: "killed long ago", beaten: true, ago: 2 * rigHold, known: ReasonDeadKnown, unknown: ReasonDeadNew},
	{name: "hung", socket: true, beaten: true, ago: 2 * rigStale, known: ReasonHeld, unknown: ReasonDeadNew},
	{name: "hung for long", socket: true, beaten: true, ago: 2 * rigHold, known: ReasonDeadKnown, unknown: ReasonDeadNew},
	{name: "never beaten", socket: true, known: ReasonDeadKnown, unknown: ReasonDeadNew},
	{name: "beat from the future", socket: true, beaten: true, ago: -2 * rigStale, known: ReasonDeadKnown, unknown: ReasonDeadNew},
	{name: "nothing at all", known: ReasonDeadKnown, unknown: ReasonDeadNew},
}

// state makes both ports those of a daemon in such a state.
func (r *rig) state(t *testing.T, socket, beaten bool, ago time.Duration) {
	t.Helper()
	for _, slot := range []int{directSlot, returnSlot} {
		index := r.Index(slot, 0)
		if err := r.DeleteSocket(index); err != nil {
			t.Fatal(err)
		}
		if socket {
			r.socket(t, index)
		}
		clear(r.BeatsMemory()[8*index:][:8])
		if beaten {
			r.beat(index, ago)
		}
	}
}

func TestLiveness(t *testing.T) {
	r := newRig(t, nil)
	r.insertKnown(t)
	for _, tt := range livenessCases {
		t.Run(tt.name, func(t *testing.T) {
			r.state(t, tt.socket, tt.beaten, tt.ago)
			verdict := func(reason Reason, away string) string {
				switch reason {
				case ReasonForward, ReasonReply, ReasonNew:
					return "redirect"
				case ReasonHeld:
					return "drop"
				}
				return away
			}
			reply := tt.known
			if reply == ReasonForward {
				reply = ReasonReply
			}
			for _, f := range []struct {
				name string
				packet
				reason Reason
			}{
				{"forward", packet{src: known4, flags: "A"}, tt.known},
				{"reply", packet{src: backend6, dst: known6, flags: "A"}, reply},
				{"new", packet{}, tt.unknown},
				{"not ours", packet{dst: backend4}, ReasonNotOurs},
			} {
				frame := f.frame(t)
				want := outcome{verdict(f.reason, "pass"), directSlot, f.reason}
				if got := r.ingress(t, frame, r.direct, 0); got != want {
					t.Errorf("%s: got %v, want %v", f.name, got, want)
				}
				r.steered(t, frame, want)
				want = outcome{verdict(f.reason, "drop"), returnSlot, f.reason}
				if got := r.ingress(t, frame, r.inner, 0); got != want {
					t.Errorf("%s, return port: got %v, want %v", f.name, got, want)
				}
			}
			// The reply of a node's own backend leaves by the port's device,
			// and is the return port's to take.
			want := outcome{verdict(reply, "next"), directSlot, reply}
			if got := r.egressOf(t, packet{src: backend4, dst: known4, flags: "A"}.frame(t), r.direct); got != want {
				t.Errorf("egress: got %v, want %v", got, want)
			}
		})
	}
}

// A known flow does not wait if it is not to be held.
func TestNoHold(t *testing.T) {
	r := newRig(t, func(s *Spec) { s.HoldFor = -1 })
	r.insertKnown(t)
	r.beat(r.Index(directSlot, 0), 0)
	frame := packet{src: known4, flags: "A"}.frame(t)
	if got, want := r.ingress(t, frame, r.direct, 0), (outcome{"pass", directSlot, ReasonDeadKnown}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
