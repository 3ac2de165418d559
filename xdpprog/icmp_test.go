//go:build linux

package xdpprog

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/sluice-net/sluice/internal/netlab"
)

var (
	router4 = netip.AddrPortFrom(netlab.NodeAddr(netlab.IPv4, 77), 0)
	router6 = netip.AddrPortFrom(netlab.NodeAddr(netlab.IPv6, 77), 0)
)

// errorAbout is an ICMP error of a router about a packet, of which it quotes so many
// bytes, all if negative. Of frames without tags.
func errorAbout(t *testing.T, quoted packet, kind byte, cut int) packet {
	t.Helper()
	quote := quoted.frame(t)[14:]
	if cut >= 0 {
		quote = quote[:cut]
	}
	e := packet{src: router4, dst: quoted.src, proto: 1, l4: append([]byte{kind, 0, 0, 0, 0, 0, 5, 0}, quote...)}
	if quoted.src.Addr().Is6() {
		e.src, e.proto = router6, 58
	}
	return e
}

// with is the packet with something about it changed.
func (p packet) with(change func(*packet)) packet {
	change(&p)
	return p
}

func to(dst netip.AddrPort) func(*packet) { return func(p *packet) { p.dst = dst } }

func TestICMPErrors(t *testing.T) {
	forward4 := packet{src: known4, dst: backend4, flags: "A"} // as the backend gets it
	forward6 := packet{src: known6, dst: backend6, flags: "A"}
	reply4 := packet{src: frontend4, dst: known4, flags: "A"} // as the client gets it
	reply6 := packet{src: frontend6, dst: known6, flags: "A"}
	udp4 := packet{src: known4, dst: backend4, proto: udp, payload: 100}
	udp6 := packet{src: known6, dst: backend6, proto: udp, payload: 100}
	edited := func(p packet, edit func([]byte)) packet { p.edit = edit; return p }
	extended := func(p packet, e ...extension) packet { p.extensions = e; return p }

	cases := []struct {
		name string
		packet
		want Reason
	}{
		{"about forward", errorAbout(t, forward4, 3, -1), ReasonICMPErrorReply},
		{"about forward, IPv6", errorAbout(t, forward6, 1, -1), ReasonICMPErrorReply},
		{"about forward, UDP", errorAbout(t, udp4, 3, -1), ReasonICMPErrorReply},
		{"about forward, UDP over IPv6", errorAbout(t, udp6, 1, -1), ReasonICMPErrorReply},
		{"about reply", errorAbout(t, reply4, 3, -1), ReasonICMPErrorForward},
		{"about reply, IPv6", errorAbout(t, reply6, 2, -1), ReasonICMPErrorForward},
		{"about reply, UDP", errorAbout(t, packet{src: frontend4, dst: known4, proto: udp}, 11, -1), ReasonICMPErrorForward},
		{"from the backend itself", errorAbout(t, udp4, 3, -1).with(func(p *packet) { p.src = backend4 }), ReasonICMPErrorReply},
		{"8 bytes", errorAbout(t, forward4, 3, 28), ReasonICMPErrorReply},
		{"8 bytes of UDP", errorAbout(t, udp4, 3, 28), ReasonICMPErrorReply},
		{"8 bytes over IPv6", errorAbout(t, forward6, 2, 48), ReasonICMPErrorReply},
		{"the ports alone", errorAbout(t, forward4, 3, 24), ReasonICMPErrorReply},
		{"3 bytes", errorAbout(t, forward4, 3, 23), ReasonICMPError},
		{"the ports alone, over IPv6", errorAbout(t, forward6, 2, 44), ReasonICMPErrorReply},
		{"3 bytes over IPv6", errorAbout(t, forward6, 2, 43), ReasonICMPError},
		{"padded", errorAbout(t, forward4, 3, 28).with(func(p *packet) { p.padding = 20 }), ReasonICMPErrorReply},
		{"4 bytes, the last in the padding", errorAbout(t, forward4, 3, 23).with(func(p *packet) { p.padding = 20 }), ReasonICMPError},

		{"translated already, forward", errorAbout(t, packet{src: known4, dst: frontend4}, 3, -1), ReasonICMPError},
		{"translated already, reply", errorAbout(t, packet{src: backend4, dst: known4}, 3, -1), ReasonICMPError},
		{"translated already, forward, IPv6", errorAbout(t, packet{src: known6, dst: frontend6}, 1, -1), ReasonICMPError},
		{"translated already, reply, IPv6", errorAbout(t, packet{src: backend6, dst: known6}, 1, -1), ReasonICMPError},
		{"about no flow", errorAbout(t, packet{src: client4, dst: backend4}, 3, -1), ReasonICMPError},
		{"about another protocol's flow", errorAbout(t, packet{src: known4, dst: netip.AddrPortFrom(backend4.Addr(), 8081), proto: udp}, 3, -1), ReasonICMPError},
		{"about a new frame to a frontend", errorAbout(t, packet{}.with(func(p *packet) { p.src = client4 }), 3, -1), ReasonICMPError},
		{"to another than the quoted source", errorAbout(t, forward4, 3, -1).with(to(client4)), ReasonICMPErrorReply}, // one address
		{"to another address", errorAbout(t, forward4, 3, -1).with(to(other4)), ReasonICMPError},
		{"to another address, IPv6", errorAbout(t, forward6, 1, -1).with(to(other6)), ReasonICMPError},
		{"to the client, about another's frame", errorAbout(t, packet{src: netip.AddrPortFrom(other4.Addr(), known4.Port()), dst: backend4}, 3, -1).with(to(known4)), ReasonICMPError},
		{"to the client, about another's frame, IPv6", errorAbout(t, packet{src: netip.AddrPortFrom(other6.Addr(), known6.Port()), dst: backend6}, 1, -1).with(to(known6)), ReasonICMPError},
		{"to the frontend", errorAbout(t, forward4, 3, -1).with(to(frontend4)), ReasonICMPError},

		{"tagged", errorAbout(t, forward4, 3, 28).with(func(p *packet) { p.vlans = []layers.EthernetType{tagC} }), ReasonICMPErrorReply},
		{"tagged twice, IPv6", errorAbout(t, forward6, 3, 48).with(func(p *packet) { p.vlans = []layers.EthernetType{tagS, tagC} }), ReasonICMPErrorReply},
		{"options", errorAbout(t, forward4, 3, 28).with(func(p *packet) { p.options = option7 }), ReasonICMPErrorReply},
		{"extension headers", errorAbout(t, forward6, 1, 48).with(func(p *packet) { p.extensions = []extension{ext(0, 1), ext(60, 2)} }), ReasonICMPErrorReply},
		{"an error in fragments", errorAbout(t, forward4, 3, 28).with(func(p *packet) { p.payload, p.edit = 4, frag4(moreFragments) }), ReasonFragment},
		{"extensions behind (RFC 4884)", errorAbout(t, udp4, 11, 128).with(func(p *packet) { p.l4[5] = 32; p.payload = 12 }), ReasonICMPErrorReply},

		{"quotes options", errorAbout(t, packet{src: known4, dst: backend4, options: option7}, 3, 36), ReasonICMPErrorReply},
		{"quotes options, 3 bytes", errorAbout(t, packet{src: known4, dst: backend4, options: option7}, 3, 31), ReasonICMPError},
		{"quotes 40 bytes of options", errorAbout(t, packet{src: known4, dst: backend4, options: []layers.IPv4Option{{OptionType: 7, OptionLength: 40, OptionData: make([]byte, 38)}}}, 3, 68), ReasonICMPErrorReply},
		{"quotes eight extension headers", errorAbout(t, extended(forward6, slices.Repeat([]extension{ext(60, 1)}, 8)...), 1, 112), ReasonICMPErrorReply},
		{"quotes nine extension headers", errorAbout(t, extended(forward6, slices.Repeat([]extension{ext(60, 1)}, 9)...), 1, -1), ReasonICMPError},
		{"quotes an extension header in half", errorAbout(t, extended(forward6, ext(60, 3)), 1, 56), ReasonICMPError},
		{"quotes a source route that has ended", errorAbout(t, extended(forward6, ext(43, 1)), 1, -1), ReasonICMPErrorReply},
		{"quotes a source route that has not", errorAbout(t, extended(forward6, extension{43, []byte{0, 0, 0, 1, 0, 0, 0, 0}}), 1, -1), ReasonICMPErrorReply},
		{"quotes don't fragment", errorAbout(t, edited(forward4, frag4(0x4000)), 3, -1), ReasonICMPErrorReply},
		{"quotes a first fragment", errorAbout(t, edited(udp4, frag4(moreFragments)), 3, -1), ReasonICMPErrorReply},
		{"quotes a later fragment", errorAbout(t, edited(udp4, frag4(8)), 3, -1), ReasonICMPError},
		{"quotes a first fragment of IPv6", errorAbout(t, extended(udp6, ext(0, 1), frag6(0, true)), 2, 64), ReasonICMPErrorReply},
		{"quotes an atomic fragment of IPv6", errorAbout(t, extended(udp6, frag6(0, false)), 2, -1), ReasonICMPErrorReply},
		{"quotes a first fragment of IPv6 with options behind", errorAbout(t, extended(udp6, frag6(0, true), ext(60, 1)), 2, -1), ReasonICMPErrorReply},
		{"quotes a later fragment of IPv6", errorAbout(t, extended(udp6, frag6(8, true)), 2, -1), ReasonICMPError},
		{"quotes half a fragment header", errorAbout(t, extended(udp6, frag6(0, true)), 2, 47), ReasonICMPError},
		{"quotes a fragment of a fragment", errorAbout(t, extended(udp6, frag6(0, true), frag6(0, true)), 2, -1), ReasonICMPError},

		{"quoted length is more", errorAbout(t, edited(forward4, put16(2, 65535)), 3, -1), ReasonICMPErrorReply},
		{"quoted length is just enough", errorAbout(t, edited(forward4, put16(2, 28)), 3, -1), ReasonICMPErrorReply},
		{"quoted length is too little", errorAbout(t, edited(forward4, put16(2, 23)), 3, -1), ReasonICMPError},
		{"quoted length is less than the header", errorAbout(t, edited(forward4, put16(2, 19)), 3, -1), ReasonICMPError},
		{"quoted length 0", errorAbout(t, edited(forward4, put16(2, 0)), 3, -1), ReasonICMPError},
		{"quoted length is more, IPv6", errorAbout(t, edited(forward6, put16(4, 65535)), 1, -1), ReasonICMPErrorReply},
		{"quoted length is just enough, IPv6", errorAbout(t, edited(forward6, put16(4, 8)), 1, -1), ReasonICMPErrorReply},
		{"quoted length is too little, IPv6", errorAbout(t, edited(forward6, put16(4, 3)), 1, -1), ReasonICMPError},
		{"quoted UDP length lies", errorAbout(t, edited(udp4, put16(24, 3)), 3, -1), ReasonICMPErrorReply},
		{"quoted version", errorAbout(t, edited(forward4, put8(0, 0x65)), 3, -1), ReasonICMPErrorReply},
		{"quoted version, IPv6", errorAbout(t, edited(forward6, put8(0, 0x45)), 1, -1), ReasonICMPErrorReply},
		{"quoted header of 16 bytes", errorAbout(t, edited(forward4, put8(0, 0x44)), 3, -1), ReasonICMPError},
		{"quoted header longer than the quote", errorAbout(t, edited(forward4, put8(0, 0x4f)), 3, -1), ReasonICMPError},
		{"half a quoted header", errorAbout(t, forward4, 3, 19), ReasonICMPError},
		{"half a quoted header, IPv6", errorAbout(t, forward6, 1, 39), ReasonICMPError},
		{"no quote", errorAbout(t, forward4, 3, 0), ReasonICMPError},
		{"no quote, IPv6", errorAbout(t, forward6, 1, 0), ReasonICMPError},
		{"half an ICMP header", packet{src: router4, dst: known4, proto: 1, l4: []byte{3, 0, 0, 0, 0}}, ReasonICMPError},
		{"a byte of ICMP", packet{src: router4, dst: known4, proto: 1, l4: []byte{3}}, ReasonBadLength},
		{"quotes a mapped address", errorAbout(t, packet{src: known6, dst: netip.MustParseAddrPort("[::ffff:198.18.1.2]:8080")}, 1, -1), ReasonICMPError},
		{"quotes IPv6 in ICMP", errorAbout(t, forward6, 3, -1).with(func(p *packet) { p.src, p.dst, p.proto = router4, known4, 1 }), ReasonICMPError},
		{"quotes IPv4 in ICMPv6", errorAbout(t, forward4, 1, -1).with(func(p *packet) { p.src, p.dst, p.proto = router6, known6, 58 }), ReasonICMPError},

		{"quotes an error", errorAbout(t, errorAbout(t, forward4, 3, -1).with(func(p *packet) { p.src, p.dst = known4, backend4 }), 3, -1), ReasonICMPError},
		{"quotes an error, IPv6", errorAbout(t, errorAbout(t, forward6, 1, -1).with(func(p *packet) { p.src, p.dst = known6, backend6 }), 1, -1), ReasonICMPError},
		{"quotes an echo", errorAbout(t, packet{src: known4, dst: backend4, proto: 1, l4: make([]byte, 8)}, 3, -1), ReasonICMPError},
		{"quotes GRE", errorAbout(t, packet{src: known4, dst: backend4, proto: 47, l4: make([]byte, 8)}, 3, -1), ReasonICMPError},
		{"quotes SCTP, which is not asked for", errorAbout(t, packet{src: known4, dst: backend4, proto: sctpProto, l4: sctpOf(known4, backend4, 0)}, 3, -1), ReasonICMPError},
	}
	for kind := range 256 {
		want4, want6 := ReasonOtherProto, ReasonOtherProto
		switch kind {
		case 3, 4, 5, 11, 12:
			want4 = ReasonICMPErrorReply
		}
		if kind < 128 {
			want6 = ReasonICMPErrorReply
		}
		cases = append(cases, struct {
			name string
			packet
			want Reason
		}{fmt.Sprintf("type %d", kind), errorAbout(t, forward4, byte(kind), 28), want4}, struct {
			name string
			packet
			want Reason
		}{fmt.Sprintf("type %d, IPv6", kind), errorAbout(t, forward6, byte(kind), 48), want6})
	}

	rigs := map[Mode]*rig{}
	for _, mode := range []Mode{ModeFront, ModeAlone} {
		rigs[mode] = fullRig(t, mode, nil)
		rigs[mode].alive(t, directSlot)
		rigs[mode].alive(t, returnSlot)
	}
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			frame := tt.frame(t)
			for _, r := range rigs {
				r.everywhere(t, frame, tt.want)
				if got, want := r.egressOf(t, frame, r.direct), ours(tt.want, directSlot, "next"); got != want {
					t.Errorf("egress: got %v, want %v: % x", got, want, frame)
				}
			}
			// Once out of the return port it is not taken again.
			r, want := rigs[ModeFront], tt.want
			if want < ReasonHeld {
				want = ReasonICMPError
			}
			if got, want := r.egressFrom(t, frame, r.direct, r.outer), (outcome{"next", directSlot, want}); got != want {
				t.Errorf("egress out of the return port: got %v, want %v", got, want)
			}
			if got, want := r.egressFrom(t, frame, r.direct, r.stranger), ours(tt.want, directSlot, "next"); got != want {
				t.Errorf("egress out of a device that is no port: got %v, want %v", got, want)
			}
		})
	}
}

// The quote is what the backend has seen: another source, or another port.
func TestICMPErrorToSource(t *testing.T) {
	r := fullRig(t, ModeFront, nil)
	r.alive(t, directSlot)
	for _, f := range []struct{ client, frontend, backend, source netip.AddrPort }{
		{client4, frontend4, backend4, source4},
		{client6, frontend6, backend6, source6},
		{netip.AddrPortFrom(client4.Addr(), 44000), frontend4, backend4, netip.AddrPortFrom(client4.Addr(), 44001)},
	} {
		flow := flowOf(f.client, f.frontend, f.backend, tcp)
		flow.Source, flow.SourcePort = f.source.Addr().As16(), f.source.Port()
		r.insert(t, flow)
		for _, tt := range []struct {
			name     string
			src, dst netip.AddrPort
			want     Reason
		}{
			{"source to backend", f.source, f.backend, ReasonICMPErrorReply},
			{"client to backend", f.client, f.backend, ReasonICMPError},
			{"frontend to client", f.frontend, f.client, ReasonICMPErrorForward},
			{"frontend to source", f.frontend, f.source, ReasonICMPError},
		} {
			if got := r.ingress(t, errorAbout(t, packet{src: tt.src, dst: tt.dst, flags: "A"}, 3, -1).frame(t), r.direct, 0); got.Reason != tt.want {
				t.Errorf("%s, %v: got %v, want %v", tt.name, f.client, got, tt.want)
			}
		}
	}
}

// However an error is cut, with its lengths true or not, it is ours only with its
// ports in it.
func TestICMPErrorsCut(t *testing.T) {
	r := fullRig(t, ModeFront, nil)
	r.alive(t, directSlot)
	r.alive(t, returnSlot)
	for _, tt := range []struct {
		quoted packet
		kind   byte
		need   int // bytes of the quote
	}{
		{packet{src: known4, dst: backend4, payload: 10}, 3, 24},
		{packet{src: known4, dst: backend4, options: option7}, 11, 32},
		{packet{src: frontend6, dst: known6, payload: 10}, 2, 44},
		{packet{src: frontend6, dst: known6, proto: udp, extensions: []extension{ext(0, 1), frag6(0, true), ext(60, 2)}, payload: 10}, 2, 76},
	} {
		whole := len(tt.quoted.frame(t)) - 14
		for cut := 0; cut <= whole; cut++ {
			frame := errorAbout(t, tt.quoted, tt.kind, cut).frame(t)
			want := ReasonICMPError
			if cut >= tt.need {
				want = directionOf(tt.quoted)
			}
			if got := r.ingress(t, frame, r.direct, 0); got.Reason != want {
				t.Errorf("quote of %d bytes: %v, want %v", cut, got, want)
			}
			if got := r.egressOf(t, frame, r.direct); got.Reason != want {
				t.Errorf("egress, quote of %d bytes: %v, want %v", cut, got, want)
			}
		}
		frame := errorAbout(t, tt.quoted, tt.kind, -1).frame(t)
		for n := 14; n < len(frame); n++ {
			got := r.ingress(t, frame[:n], r.direct, 0)
			if got.Verdict != "pass" || got.Reason != ReasonTruncated && got.Reason != ReasonBadLength {
				t.Errorf("%d bytes of %d: %v", n, len(frame), got)
			}
		}
	}
}

func directionOf(quoted packet) Reason {
	if quoted.src == known4 || quoted.src == known6 {
		return ReasonICMPErrorReply
	}
	return ReasonICMPErrorForward
}

// An error of the node's kernel meets no ingress hook: the egress hook hands it to the
// return port. There it is translated and sent on, or given back: neither comes again.
func TestEgressICMPErrors(t *testing.T) {
	for _, tt := range []struct {
		backend, client, frontend netip.AddrPort
		icmp                      int // where its header is in the frame
	}{
		{nodeBackend4, netip.AddrPortFrom(netlab.NodeAddr(netlab.IPv4, 2), 43000), frontend4, 34},
		{nodeBackend6, netip.AddrPortFrom(netlab.NodeAddr(netlab.IPv6, 2), 43000), frontend6, 54},
	} {
		t.Run(tt.backend.Addr().String(), func(t *testing.T) {
			n := newNodeLab(t, 1500, func(s *Spec) { s.ICMPErrors = true })
			n.routes(t)
			n.insert(t, flowOf(tt.client, tt.frontend, tt.backend, udp))
			received := n.client.Capture("eth0", netlab.CaptureOptions{Match: func(f *netlab.Frame) bool {
				return f.Direction == netlab.In && len(f.Data) > tt.icmp+8 && bytes.Contains(f.Data[tt.icmp+8:], []byte{43000 >> 8, 43000 & 0xff})
			}})
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			c, err := n.client.ListenPacket(tt.client)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			// Nobody listens there: port unreachable.
			if _, err := c.WriteToUDPAddrPort([]byte("anybody?"), tt.backend); err != nil {
				t.Fatal(err)
			}
			f, err := n.capture.Next(ctx)
			if err != nil {
				t.Fatalf("no error at the return port: %v; counted %v", err, n.counters(t)[directSlot].Egress)
			}
			if kind := f.Data[tt.icmp]; kind != 3 && kind != 1 {
				t.Fatalf("an ICMP message of type %d", kind)
			}

			n.giveBack(t, f.Data)
			untranslated, err := received.Next(ctx)
			if err != nil {
				t.Fatalf("what was given back did not arrive: %v; counted %v", err, n.counters(t)[directSlot].Egress)
			}
			if !bytes.Equal(untranslated.Data[tt.icmp:], f.Data[tt.icmp:]) {
				t.Error("what was given back has changed")
			}

			// As the daemon would translate it and leave it to the kernel to route.
			translated := bytes.Clone(f.Data)
			quote := translated[tt.icmp+8:]
			was, is := tt.backend.Addr().AsSlice(), tt.frontend.Addr().AsSlice()
			at := bytes.Index(quote, was)
			if at < 0 {
				t.Fatalf("the quote does not have the backend: % x", quote)
			}
			copy(quote[at:], is)
			ports := bytes.Index(quote, []byte{43000 >> 8, 43000 & 0xff})
			binary.BigEndian.PutUint16(quote[ports+2:], tt.frontend.Port())
			n.giveBack(t, translated)
			arrived, err := received.Next(ctx)
			if err != nil {
				t.Fatalf("the translated error did not arrive: %v; counted %v", err, n.counters(t)[directSlot].Egress)
			}
			if !bytes.Equal(arrived.Data[tt.icmp:], translated[tt.icmp:]) {
				t.Error("the translated error has changed")
			}
			// Nor if it had another ingress device, or none, since it is in no flow any more.
			for _, ingress := range []int{0, n.inner} {
				want := outcome{"next", directSlot, ReasonICMPError}
				if got := n.egressFrom(t, translated, n.direct, ingress); got != want {
					t.Errorf("translated, from device %d: got %v, want %v", ingress, got, want)
				}
			}
			e := n.counters(t)[directSlot].Egress
			if e[ReasonICMPErrorReply] != 1 {
				t.Errorf("%d errors were redirected, want 1", e[ReasonICMPErrorReply])
			}
		})
	}
}
