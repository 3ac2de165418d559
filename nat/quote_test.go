package nat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The twin of translating an error: translate the packet first and then quote it, in
// an error that is built and summed anew.

// errorCase is one error about one packet of a flow.
type errorCase struct {
	packet     spec      // as the sender of the packet sent it
	to         Endpoints // what the packet became on its way
	cut        int       // bytes of the transport header and data that are quoted, 0: all
	kind, code uint8
	info       uint32
	extension  []byte // behind the quote (RFC 4884)
	pad        int    // the quote is padded to so many bytes
	outer      spec   // of the error: tags, options, extension headers, padding
}

// frames builds the error as it comes, about the translated packet, and as it is to
// become, about the one that was sent, from outerSrc if that is not nil.
func (c errorCase) frames(tb testing.TB, outerSrc *[16]byte) (in, want []byte) {
	tb.Helper()
	sent := build(tb, c.packet)
	changed := bytes.Clone(sent)
	var p Packet
	if p.Parse(changed) == SCTP {
		p.ParseSCTP(changed)
	}
	p.Rewrite(changed, &c.to)
	l4 := int(p.L4 - p.L3)
	n := int(p.End - p.L3)
	if c.cut > 0 {
		n = min(n, l4+c.cut)
	}
	was, is := bytes.Clone(sent[p.L3:][:n]), changed[p.L3:][:n]
	// What the error cannot know stays as it is quoted.
	if p.Proto == protoSCTP || p.Proto == protoTCP && n-l4 < tcpLen {
		copy(was[l4+4:], is[l4+4:])
	}
	e := errorSpec{base: c.outer, kind: c.kind, code: c.code, info: c.info}
	e.base.ipv6 = c.packet.ipv6
	e.base.dst = c.to.Src
	tail := append(make([]byte, max(0, c.pad-n)), c.extension...)
	e.quoted = join(is, tail)
	in = buildError(tb, e)
	e.quoted = join(was, tail)
	e.base.dst = c.packet.withDefaults().src
	if outerSrc != nil {
		e.base.src = *outerSrc
	}
	return in, buildError(tb, e)
}

func mustQuote(tb testing.TB, frame []byte) (*Packet, *Quote) {
	tb.Helper()
	p, q := new(Packet), new(Quote)
	if r := p.Parse(frame); r != ICMP && r != ICMPv6 {
		tb.Fatalf("Parse(%x) = %v, want icmp", frame, r)
	}
	if r := q.Parse(frame, p); r != OK {
		tb.Fatalf("Quote.Parse(%x) = %v, want ok", frame, r)
	}
	return p, q
}

func TestRewriteError(t *testing.T) {
	router4, router6 := addr("198.18.7.7"), addr("2001:db8:1:7::7")
	data := make([]byte, 400)
	for i := range data {
		data[i] = byte(3 * i)
	}
	extension := []byte{0x20, 0, 0xdf, 0xff, 0, 8, 1, 1, 0, 1, 1, 1}
	// Replies are quoted by errors that the client sends.
	reply4 := Endpoints{frontend4, client4, frontendPort, clientPort}
	reply6 := Endpoints{frontend6, client6, frontendPort, clientPort}
	backend := func(s spec) spec {
		s.src, s.dst, s.sport, s.dport = backend4, client4, backendPort, clientPort
		if s.ipv6 {
			s.src, s.dst = backend6, client6
		}
		return s
	}
	for _, c := range []struct {
		name string
		errorCase
	}{
		{"port unreachable", errorCase{packet: spec{udp: true, payload: data}, to: forward4, kind: 3, code: 3}},
		{"port unreachable, eight bytes", errorCase{packet: spec{udp: true, payload: data}, to: forward4, kind: 3, code: 3, cut: 8}},
		{"host unreachable, tcp, eight bytes", errorCase{packet: spec{payload: data}, to: forward4, kind: 3, code: 1, cut: 8}},
		{"tcp, nineteen bytes", errorCase{packet: spec{payload: data}, to: forward4, kind: 3, code: 1, cut: 19}},
		{"tcp, header only", errorCase{packet: spec{payload: data}, to: forward4, kind: 3, code: 1, cut: 20}},
		{"tcp, an odd number of bytes", errorCase{packet: spec{payload: data}, to: forward4, kind: 3, code: 1, cut: 33}},
		{"fragmentation needed", errorCase{packet: spec{payload: data}, to: forward4, kind: 3, code: 4, info: 1280}},
		{"time exceeded", errorCase{packet: spec{udp: true}, to: hairpin4, kind: 11}},
		{"parameter problem", errorCase{packet: spec{}, to: forward4, kind: 12, info: 20 << 24}},
		{"source quench", errorCase{packet: spec{}, to: forward4, kind: 4}},
		{"no checksum", errorCase{packet: spec{udp: true, noChecksum: true, payload: data}, to: forward4, kind: 3, code: 3}},
		{"quoted options", errorCase{packet: spec{options: bytes.Repeat([]byte{1}, 40)}, to: forward4, kind: 3, code: 3}},
		{"outer options, tags, padding", errorCase{packet: spec{}, to: forward4, kind: 3, code: 3, outer: spec{options: []byte{1, 1, 1, 1}, tags: []uint16{5, 6}, padding: 5}}},
		{"extension", errorCase{packet: spec{payload: data}, to: forward4, kind: 11, cut: 108, info: 32 << 16, extension: extension}},
		{"extension behind a padded quote", errorCase{packet: spec{udp: true}, to: forward4, kind: 3, code: 3, info: 32 << 16, pad: 128, extension: extension}},
		{"extension, fragmentation needed", errorCase{packet: spec{payload: data}, to: forward4, kind: 3, code: 4, cut: 108, info: 32<<16 | 1400, extension: extension}},
		{"sctp", errorCase{packet: spec{sctp: true}, to: forward4, kind: 3, code: 2}},
		{"sctp, eight bytes", errorCase{packet: spec{sctp: true}, to: forward4, kind: 3, code: 2, cut: 8}},
		{"about a reply", errorCase{packet: backend(spec{udp: true, payload: data}), to: reply4, kind: 3, code: 3}},
		{"about a reply too big", errorCase{packet: backend(spec{payload: data}), to: reply4, kind: 3, code: 4, info: 1280}},
		{"ipv6 port unreachable", errorCase{packet: spec{ipv6: true, udp: true, payload: data}, to: forward6, kind: 1, code: 4}},
		{"ipv6 eight bytes", errorCase{packet: spec{ipv6: true, payload: data}, to: forward6, kind: 1, cut: 8}},
		{"ipv6 packet too big", errorCase{packet: spec{ipv6: true, payload: data}, to: forward6, kind: 2, info: 1280}},
		{"ipv6 packet too big, mtu no length", errorCase{packet: spec{ipv6: true, payload: data}, to: forward6, kind: 2, info: 1 << 24}},
		{"ipv6 time exceeded, extension", errorCase{packet: spec{ipv6: true, payload: data}, to: hairpin6, kind: 3, cut: 88, info: 16 << 24, extension: extension}},
		{"ipv6 parameter problem", errorCase{packet: spec{ipv6: true}, to: forward6, kind: 4, code: 1, info: 6}},
		{"ipv6 quoted extension headers", errorCase{packet: spec{ipv6: true, udp: true, ext: []ext{padExt(headerHopByHop), padExt(headerDestination)}}, to: forward6, kind: 1, code: 4}},
		{"ipv6 outer extension header, tags", errorCase{packet: spec{ipv6: true, udp: true}, to: forward6, kind: 1, code: 4, outer: spec{ext: []ext{padExt(headerDestination)}, tags: []uint16{1, 2}, padding: 3}}},
		{"ipv6 sctp", errorCase{packet: spec{ipv6: true, sctp: true}, to: forward6, kind: 1, code: 4}},
		{"ipv6 about a reply too big", errorCase{packet: backend(spec{ipv6: true, payload: data}), to: reply6, kind: 2, info: 1280}},
	} {
		t.Run(c.name, func(t *testing.T) {
			router, from := &router4, frontend4
			if c.packet.ipv6 {
				router, from = &router6, frontend6
			}
			c.outer.src = *router
			for _, outerSrc := range []*[16]byte{nil, &from} {
				in, want := c.frames(t, outerSrc)
				original := bytes.Clone(in)
				p, q := mustQuote(t, in)
				parsed, quoted := *p, *q
				if got := (Endpoints{q.Src, q.Dst, q.SrcPort, q.DstPort}); got != c.to || q.Proto != c.packet.proto() {
					t.Fatalf("quoted %+v of %d, want %+v of %d", got, q.Proto, c.to, c.packet.proto())
				}
				s := c.packet.withDefaults()
				inner := Endpoints{s.src, s.dst, s.sport, s.dport}
				p.RewriteError(in, q, outerSrc, &s.src, &inner)
				if !bytes.Equal(in, want) {
					t.Fatalf("\n got %x\nwant %x", in, want)
				}
				if got := (Endpoints{q.Src, q.Dst, q.SrcPort, q.DstPort}); got != inner || p.Dst != s.src || outerSrc != nil && p.Src != *outerSrc {
					t.Errorf("p %+v, q %+v", p, q)
				}
				if p2, q2 := mustQuote(t, in); *p2 != *p || *q2 != *q {
					t.Errorf("the frame says %+v, %+v; p and q are %+v, %+v", p2, q2, p, q)
				}
				p.RewriteError(in, q, router, &c.to.Src, &c.to)
				if !bytes.Equal(in, original) || *p != parsed || *q != quoted {
					t.Errorf("there and back\n got %x\nwant %x", in, original)
				}
			}
		})
	}
}

// Against what a Linux router with NAT made of the same errors: byte for byte. It gives
// even a router's error the frontend's address.
func TestErrorsAreLinuxs(t *testing.T) {
	file, err := os.ReadFile("testdata/linux_errors.txt")
	if err != nil {
		t.Fatal(err)
	}
	cases := 0
	for line := range strings.Lines(string(file)) {
		words := strings.Fields(line)
		if words[0] == "#" {
			continue
		}
		cases++
		name := words[0]
		frame, want := unhex(t, words[1]), unhex(t, words[2])
		p, q := mustQuote(t, frame)
		inner := Endpoints{client4, frontend4, q.SrcPort, frontendPort}
		outerSrc, outerDst := &frontend4, (*[16]byte)(nil)
		if p.IPv6 {
			inner.Src, inner.Dst, outerSrc = client6, frontend6, &frontend6
		}
		if strings.HasPrefix(name, "forth") {
			inner = Endpoints{backend4, client4, backendPort, q.DstPort}
			outerSrc, outerDst = nil, &backend4
			if p.IPv6 {
				inner.Src, inner.Dst, outerDst = backend6, client6, &backend6
			}
		}
		p.DecrementTTL(frame)
		p.RewriteError(frame, q, outerSrc, outerDst, &inner)
		// Ethernet is the caller's.
		if got := join(want[:12], frame[12:]); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x", name, got, want)
		}
	}
	if cases < 180 {
		t.Errorf("%d cases", cases)
	}
}

// TTL goes on being decremented by p as in any other packet.
func TestErrorChecks(t *testing.T) {
	c := errorCase{packet: spec{payload: make([]byte, 99)}, to: forward4, kind: 3, code: 4, info: 1280, outer: spec{src: backend4, ttl: 9, tos: 0xc0}}
	in, _ := c.frames(t, nil)
	p, q := mustQuote(t, in)
	if !p.DecrementTTL(in) {
		t.Fatal("no TTL")
	}
	inner, from := Endpoints{client4, frontend4, clientPort, frontendPort}, frontend4
	p.RewriteError(in, q, &from, nil, &inner)
	check(t, in, Ether(clientMAC, nodeMAC), IPv4(SrcAddr(frontend4), DstAddr(client4), TTL(8), TOS(0xc0), ICMPErrorMTU(3, 4, 1280, build(t, c.packet)[14:])))
	// The quote is a frame again, with a right checksum.
	check(t, join(in[:12], []byte{8, 0}, in[q.L3:q.End]), IPv4(SrcAddr(client4), DstAddr(frontend4), TCP(SrcPort(clientPort), DstPort(frontendPort), ChecksumOK)))
}

func TestQuoteRefuses(t *testing.T) {
	quote4 := build(t, spec{udp: true, payload: make([]byte, 4)})[etherLen:]
	quote6 := build(t, spec{ipv6: true, udp: true, payload: make([]byte, 4)})[etherLen:]
	// of gives a quote with a byte changed and, in IPv4, its header right again.
	of := func(quote []byte, at int, values ...byte) []byte {
		b := bytes.Clone(quote)
		copy(b[at:], values)
		if b[0]>>4 == 4 {
			fixHeader(b)
		}
		return b
	}
	with := func(ext ...ext) []byte {
		return build(t, spec{ipv6: true, udp: true, ext: ext, payload: make([]byte, 4)})[etherLen:]
	}
	fragment6 := func(bits ...byte) ext { return ext{headerFragment, append(bits, 0, 0, 0, 9)} }
	icmp := func(kind byte) []byte { return of(of(quote4, 9, protoICMP), 20, kind) }
	icmp6 := func(kind byte) []byte { return of(of(quote6, 6, protoICMPv6), 40, kind) }
	back4, back6 := spec{src: backend4, dst: client4}, spec{ipv6: true, src: backend6, dst: client6}
	type row struct {
		name string
		errorSpec
		want Reason
	}
	rows := []row{
		{"whole", errorSpec{base: back4, kind: 3, code: 3, quoted: quote4}, OK},
		{"first fragment", errorSpec{base: back4, kind: 11, code: 1, quoted: of(quote4, 6, 0x20)}, OK},
		{"later fragment", errorSpec{base: back4, kind: 11, quoted: of(quote4, 7, 1)}, QuotedFragment},
		{"checksum", errorSpec{base: back4, kind: 3, code: 3, quoted: quote4, broken: 1}, BadICMPChecksum},
		{"quoted version", errorSpec{base: back4, kind: 3, quoted: of(quote4, 0, 0x65)}, OK},
		{"quoted ihl 4", errorSpec{base: back4, kind: 3, quoted: of(quote4, 0, 0x44)}, BadQuote},
		{"quoted ihl past the quote", errorSpec{base: back4, kind: 3, quoted: of(of(quote4, 3, 60), 0, 0x4f)}, ShortQuote},
		{"quoted total below the header", errorSpec{base: back4, kind: 3, quoted: of(quote4, 3, 19)}, BadQuote},
		{"quoted total below eight bytes", errorSpec{base: back4, kind: 3, quoted: of(quote4, 3, 27)}, CutQuote},
		{"quoted header checksum", errorSpec{base: back4, kind: 3, quoted: append(append([]byte{}, quote4[:11]...), append([]byte{quote4[11] ^ 1}, quote4[12:]...)...)}, OK},
		{"ipv6 in ipv4", errorSpec{base: back4, kind: 3, quoted: quote6}, BadQuote},
		{"quoted echo", errorSpec{base: back4, kind: 3, quoted: icmp(8)}, QuotedProtocol},
		{"quoted error", errorSpec{base: back4, kind: 3, quoted: icmp(3)}, NestedError},
		{"quoted redirect", errorSpec{base: back4, kind: 3, quoted: icmp(5)}, NestedError},
		{"quoted unknown", errorSpec{base: back4, kind: 3, quoted: icmp(200)}, NestedError},
		{"quoted gre", errorSpec{base: back4, kind: 3, quoted: of(quote4, 9, 47)}, QuotedProtocol},
		{"to another", errorSpec{base: spec{src: backend4, dst: node4}, kind: 3, quoted: quote4}, StrayError},
		{"rfc 4884 length cuts the ports", errorSpec{base: back4, kind: 3, info: 5 << 16, quoted: quote4}, ShortQuote},
		{"rfc 4884 length cuts what is behind the ports", errorSpec{base: back4, kind: 3, info: 6 << 16, quoted: quote4}, CutQuote},
		{"rfc 4884 length past the end", errorSpec{base: back4, kind: 3, info: 255 << 16, quoted: quote4}, OK},
		{"source quench has no length", errorSpec{base: back4, kind: 4, info: 6 << 16, quoted: quote4}, OK},
		{"ipv6 whole", errorSpec{base: back6, kind: 1, code: 4, quoted: quote6}, OK},
		{"ipv6 checksum", errorSpec{base: back6, kind: 1, code: 4, quoted: quote6, broken: 1}, BadICMPChecksum},
		{"ipv6 quoted version", errorSpec{base: back6, kind: 1, quoted: of(quote6, 0, 0x50)}, OK},
		{"ipv6 quoted length 7", errorSpec{base: back6, kind: 1, quoted: of(quote6, 5, 7)}, CutQuote},
		{"ipv6 quoted length 0", errorSpec{base: back6, kind: 1, quoted: of(quote6, 5, 0)}, ShortQuote},
		{"ipv6 ipv4 inside", errorSpec{base: back6, kind: 1, quoted: join(quote4, quote4)}, QuotedProtocol},
		{"ipv6 mapped", errorSpec{base: back6, kind: 1, quoted: of(quote6, 24, client4[:]...)}, BadQuote},
		{"ipv6 quoted extension past the quote", errorSpec{base: back6, kind: 1, quoted: of(with(padExt(headerDestination)), 41, 9)}, ShortQuote},
		{"ipv6 quoted router alert", errorSpec{base: back6, kind: 1, quoted: with(ext{headerHopByHop, []byte{5, 2, 0, 0, 1, 0}})}, OK},
		{"ipv6 quoted first fragment", errorSpec{base: back6, kind: 1, quoted: with(fragment6(0, 1))}, OK},
		{"ipv6 quoted atomic fragment", errorSpec{base: back6, kind: 1, quoted: with(padExt(headerHopByHop), fragment6(0, 0), padExt(headerDestination))}, OK},
		{"ipv6 quoted later fragment", errorSpec{base: back6, kind: 1, quoted: with(fragment6(0, 8))}, QuotedFragment},
		{"ipv6 quoted fragment header cut", errorSpec{base: back6, kind: 1, quoted: with(fragment6(0, 1))[:44]}, ShortQuote},
		{"ipv6 quoted twice a fragment", errorSpec{base: back6, kind: 1, quoted: with(fragment6(0, 1), fragment6(0, 1))}, BadQuote},
		{"ipv6 quoted echo", errorSpec{base: back6, kind: 1, quoted: icmp6(128)}, QuotedProtocol},
		{"ipv6 quoted error", errorSpec{base: back6, kind: 1, quoted: icmp6(2)}, NestedError},
		{"ipv6 quoted redirect", errorSpec{base: back6, kind: 1, quoted: icmp6(137)}, NestedError},
		{"ipv6 quoted esp", errorSpec{base: back6, kind: 1, quoted: of(quote6, 6, 50)}, QuotedProtocol},
		{"ipv6 to another", errorSpec{base: spec{ipv6: true, src: backend6, dst: node6}, kind: 1, quoted: quote6}, StrayError},
		{"ipv6 rfc 4884 length cuts the ports", errorSpec{base: back6, kind: 3, info: 5 << 24, quoted: quote6}, ShortQuote},
	}
	for kind := range 256 {
		want, want6 := NotError, NotError
		switch kind {
		case 3, 4, 11, 12:
			want = OK
		case 5:
			want = Redirect
		}
		if kind < 128 {
			want6 = OK
		}
		rows = append(rows,
			row{fmt.Sprintf("type %d", kind), errorSpec{base: back4, kind: byte(kind), quoted: quote4}, want},
			row{fmt.Sprintf("ipv6 type %d", kind), errorSpec{base: back6, kind: byte(kind), quoted: quote6}, want6})
	}
	// Cut at every byte.
	upTo := func(n, ports int) Reason {
		switch {
		case n < ports:
			return ShortQuote
		case n < ports+quotedLen-portsLen:
			return CutQuote
		}
		return OK
	}
	for n := range 29 {
		want := upTo(n, 24)
		rows = append(rows, row{fmt.Sprintf("cut to %d", n), errorSpec{base: back4, kind: 3, quoted: quote4[:n]}, want})
	}
	for n := range 49 {
		want := upTo(n, 44)
		rows = append(rows, row{fmt.Sprintf("ipv6 cut to %d", n), errorSpec{base: back6, kind: 1, quoted: quote6[:n]}, want})
	}
	for _, c := range rows {
		frame := buildError(t, c.errorSpec)
		before := bytes.Clone(frame)
		var p Packet
		if r := p.Parse(frame); r != ICMP && r != ICMPv6 {
			t.Fatalf("%s: Parse = %v", c.name, r)
		}
		left := p
		var q Quote
		if got := q.Parse(frame, &p); got != c.want {
			t.Errorf("%s: Quote.Parse(%x) = %v, want %v", c.name, frame, got, c.want)
		}
		if whole := c.want == OK || c.want == CutQuote || c.want == Redirect; whole != (q != (Quote{})) || whole && (q.SrcPort != clientPort || q.DstPort != frontendPort) {
			t.Errorf("%s: %v, and left %+v", c.name, c.want, q)
		}
		if p != left || !bytes.Equal(frame, before) {
			t.Errorf("%s: changed what it read", c.name)
		}
	}
	// No message at all.
	for n := range 8 {
		frame := buildError(t, errorSpec{base: back4, kind: 3, quoted: quote4})[:34+n]
		fixLengths(frame)
		var p Packet
		var q Quote
		if r := p.Parse(frame); r != ICMP {
			t.Fatal(r)
		}
		if r := q.Parse(frame, &p); r != ShortHeader {
			t.Errorf("message of %d bytes: %v", n, r)
		}
	}
}

// Each class of quoted field through all the values of a word of it, and every value of
// the ICMP checksum by the filler: equal to summing all over.
func TestRewriteErrorExhaustive(t *testing.T) {
	for _, c := range []errorCase{
		{packet: spec{udp: true, payload: make([]byte, 6)}, to: forward4, kind: 3, code: 3},
		{packet: spec{payload: make([]byte, 6)}, to: forward4, kind: 3, code: 4, info: 1280},
		{packet: spec{payload: make([]byte, 6)}, to: forward4, kind: 3, cut: 8},
		{packet: spec{ipv6: true, udp: true, payload: make([]byte, 6)}, to: forward6, kind: 1, code: 4},
		{packet: spec{ipv6: true, payload: make([]byte, 6)}, to: forward6, kind: 2, info: 1280},
	} {
		in, _ := c.frames(t, nil)
		p, q := mustQuote(t, in)
		message := in[p.L4:p.End]
		full := func() uint16 {
			was := binary.BigEndian.Uint16(message[2:])
			clear(message[2:4])
			want := ^slowSum(message)
			if p.IPv6 {
				want = ^slowTransport(p.Src, p.Dst, protoICMPv6, message)
			}
			binary.BigEndian.PutUint16(message[2:], was)
			return want
		}
		start := Endpoints{q.Src, q.Dst, q.SrcPort, q.DstPort}
		for v := 0; v < 1<<16; v += exhaustiveStep {
			word := [2]byte{byte(v >> 8), byte(v)}
			address, port, filler := start, start, start
			copy(address.Dst[14:], word[:])
			port.DstPort = uint16(v)
			outer := p.Src
			copy(outer[14:], word[:])
			for i, to := range []Endpoints{address, port, filler} {
				src := &p.Src
				if i == 2 {
					src = &outer
				}
				src2 := *src
				p.RewriteError(in, q, &src2, nil, &to)
				if got, want := binary.BigEndian.Uint16(message[2:]), full(); got != want {
					t.Fatalf("%+v to %+v from %v: ICMP checksum %#04x, want %#04x", c, to, src2, got, want)
				}
				if !p.IPv6 {
					for _, l3 := range []uint16{p.L3, q.L3} {
						if slowSum(in[l3:][:ipv4Len]) != 0xffff {
							t.Fatalf("%+v to %+v: header checksum wrong: %x", c, to, in)
						}
					}
				}
			}
			// A word of the message that no rewriting touches takes its checksum everywhere.
			binary.BigEndian.PutUint16(message[len(message)-2:], uint16(v))
			binary.BigEndian.PutUint16(message[2:], full())
		}
	}
}

func drawErrorCase(rt *rapid.T) errorCase {
	c := errorCase{packet: drawSpec(rt)}
	if !c.packet.udp && rapid.Bool().Draw(rt, "sctp") {
		c.packet.sctp, c.packet.payload = true, nil
	}
	c.packet.partial = false
	c.to = drawEndpoints(rt, c.packet.ipv6)
	if rapid.Bool().Draw(rt, "cut") {
		c.cut = rapid.IntRange(8, 60).Draw(rt, "at")
	}
	c.outer.src = drawAddr(rt, c.packet.ipv6, "router")
	c.outer.tags = rapid.SliceOfN(rapid.Uint16Max(4095), 0, 2).Draw(rt, "outer tags")
	c.outer.padding = rapid.IntRange(0, 9).Draw(rt, "outer padding")
	if c.packet.ipv6 {
		c.kind = rapid.Uint8Range(1, 4).Draw(rt, "type")
		if rapid.Bool().Draw(rt, "outer extension") {
			c.outer.ext = []ext{padExt(headerDestination)}
		}
	} else {
		c.kind = rapid.SampledFrom([]uint8{3, 4, 11, 12}).Draw(rt, "type")
		c.outer.options = bytes.Repeat([]byte{1}, 4*rapid.IntRange(0, 10).Draw(rt, "outer options"))
	}
	c.code = rapid.Uint8().Draw(rt, "code")
	c.info = uint32(rapid.Uint16().Draw(rt, "mtu"))
	return c
}

func TestRewriteErrorProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := drawErrorCase(rt)
		from := drawAddr(rt, c.packet.ipv6, "new source")
		in, want := c.frames(t, &from)
		original := bytes.Clone(in)
		p, q := mustQuote(t, in)
		router := p.Src
		s := c.packet.withDefaults()
		inner := Endpoints{s.src, s.dst, s.sport, s.dport}
		p.RewriteError(in, q, &from, &s.src, &inner)
		if !bytes.Equal(in, want) {
			rt.Fatalf("\n got %x\nwant %x", in, want)
		}
		p.RewriteError(in, q, &router, &c.to.Src, &c.to)
		if !bytes.Equal(in, original) {
			rt.Fatalf("there and back\n got %x\nwant %x", in, original)
		}
	})
}

// FuzzICMP holds what is accepted against what it says of itself: every sum right
// before and after, nothing but the listed fields changed, and back again.
func FuzzICMP(f *testing.F) {
	for _, c := range []errorCase{
		{packet: spec{udp: true, payload: []byte("x")}, to: forward4, kind: 3, code: 3},
		{packet: spec{options: []byte{1, 1, 1, 0}}, to: forward4, kind: 3, code: 4, info: 1280, cut: 8},
		{packet: spec{payload: make([]byte, 100)}, to: hairpin4, kind: 11, info: 32 << 16, cut: 108, extension: []byte{0x20, 0, 0, 0}},
		{packet: spec{sctp: true}, to: forward4, kind: 3, code: 2, outer: spec{tags: []uint16{7}, padding: 3}},
		{packet: spec{ipv6: true, payload: []byte("odd")}, to: forward6, kind: 2, info: 1280},
		{packet: spec{ipv6: true, udp: true, ext: []ext{padExt(headerDestination)}}, to: hairpin6, kind: 1, code: 4, outer: spec{ext: []ext{padExt(headerHopByHop)}}},
	} {
		in, _ := c.frames(f, nil)
		f.Add(in, client4[:], backend6[:], uint16(1), uint16(0xffff))
	}
	f.Fuzz(func(t *testing.T, frame []byte, src, dst []byte, sport, dport uint16) {
		frame = repaired(frame)
		original := bytes.Clone(frame)
		var p Packet
		var q Quote
		if r := p.Parse(frame); r != ICMP && r != ICMPv6 {
			return
		}
		switch r := q.Parse(frame, &p); r {
		case OK:
		case Redirect, CutQuote:
			if q.L3 != p.L4+8 || q.L4 < q.L3+20 || q.End > p.End || q.Src != p.Dst || !bytes.Equal(frame, original) {
				t.Fatalf("refused as %v, and left %+v in %+v and %x", r, q, p, frame)
			}
			return
		default:
			if q != (Quote{}) || !bytes.Equal(frame, original) {
				t.Fatalf("refused as %v, but left %+v and %x", r, q, frame)
			}
			return
		}
		if q.L3 != p.L4+8 || q.L4 < q.L3+20 || q.End < q.L4+8 || q.End > p.End || q.Src != p.Dst {
			t.Fatalf("%+v in %+v", q, p)
		}
		messageSum := func() uint16 {
			if p.IPv6 {
				return slowTransport(p.Src, p.Dst, protoICMPv6, frame[p.L4:p.End])
			}
			return slowSum(frame[p.L4:p.End])
		}
		if s := messageSum(); s != 0xffff {
			t.Fatalf("accepted with a message that sums to %#04x", s)
		}
		parsed, quoted := p, q
		from := Endpoints{q.Src, q.Dst, q.SrcPort, q.DstPort}
		to := Endpoints{SrcPort: sport, DstPort: dport}
		copy(to.Src[:], src)
		copy(to.Dst[:], dst)
		if p.IPv6 {
			to.Src[0], to.Dst[0] = 0x20, 0x20
		} else {
			copy(to.Src[:12], client4[:12])
			copy(to.Dst[:12], client4[:12])
			to.Dst[12] = 198
		}
		p.RewriteError(frame, &q, &to.Dst, &to.Src, &to)
		if s := messageSum(); s != 0xffff {
			t.Fatalf("message sums to %#04x\n got %x\nfrom %x", s, frame, original)
		}
		var p2 Packet
		var q2 Quote
		p2.Parse(frame)
		if r := q2.Parse(frame, &p2); r != OK || p2 != p || q2 != q {
			t.Fatalf("after RewriteError %v %+v %+v, want %+v %+v", r, p2, q2, p, q)
		}
		listed := [][2]uint16{{p.L4 + 2, p.L4 + 4}, {q.L4, q.L4 + 4}}
		for _, l3 := range []uint16{p.L3, q.L3} {
			if p.IPv6 {
				listed = append(listed, [2]uint16{l3 + 8, l3 + 40})
			} else {
				listed = append(listed, [2]uint16{l3 + 10, l3 + 20})
			}
		}
		if q.Proto == protoUDP {
			listed = append(listed, [2]uint16{q.L4 + 6, q.L4 + 8})
		} else if q.Proto == protoTCP && q.End-q.L4 >= 20 {
			listed = append(listed, [2]uint16{q.L4 + 16, q.L4 + 18})
		}
		a, b := bytes.Clone(frame), bytes.Clone(original)
		for _, l := range listed {
			clear(a[l[0]:l[1]])
			clear(b[l[0]:l[1]])
		}
		if !bytes.Equal(a, b) {
			t.Fatalf("more than the listed fields changed\n got %x\nfrom %x", frame, original)
		}
		p.RewriteError(frame, &q, &parsed.Src, &parsed.Dst, &from)
		// The other zero comes back as the one that stacks write.
		for i := range listed {
			if at := listed[i][0]; !bytes.Equal(frame[at:at+2], original[at:at+2]) && bytes.Equal(original[at:at+2], []byte{0xff, 0xff}) {
				clear(original[at : at+2])
			}
		}
		copy(original[p.L4+2:], frame[p.L4+2:p.L4+4])
		if !bytes.Equal(frame, original) || p != parsed || q != quoted || messageSum() != 0xffff {
			t.Fatalf("there and back\n got %x\nwant %x", frame, original)
		}
	})
}
