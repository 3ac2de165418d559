package nat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// The twin of translating fragments: translate the datagram and fragment it then.

func mustPiece(tb testing.TB, frame []byte) (*Packet, *Piece) {
	tb.Helper()
	p, f := new(Packet), new(Piece)
	if r := p.Parse(frame); r != Fragment {
		tb.Fatalf("Parse(%x) = %v, want fragment", frame, r)
	}
	if r := f.Parse(frame, p); r != OK {
		tb.Fatalf("Piece.Parse(%x) = %v, want ok", frame, r)
	}
	return p, f
}

func number(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(7 * i)
	}
	return b
}

func TestRewriteFragments(t *testing.T) {
	hop, destination := padExt(headerHopByHop), padExt(headerDestination)
	samePort := Endpoints{client4, backend4, clientPort, frontendPort}
	for _, c := range []struct {
		name   string
		spec   spec
		size   int
		behind int
		to     Endpoints
		pieces int
	}{
		{"udp, two", spec{udp: true, payload: number(1500)}, 1480, 0, forward4, 2},
		{"udp, three", spec{udp: true, payload: number(2000)}, 800, 0, forward4, 3},
		{"udp, 44, to 64 KiB", spec{udp: true, payload: number(65000)}, 1480, 0, forward4, 44},
		{"udp, smallest", spec{udp: true, payload: number(9)}, 8, 0, hairpin4, 3},
		{"udp, no checksum", spec{udp: true, noChecksum: true, payload: number(99)}, 40, 0, forward4, 3},
		{"udp, options, tags", spec{udp: true, options: []byte{1, 1, 1, 1}, tags: []uint16{1, 2}, payload: number(99)}, 40, 0, forward4, 3},
		{"tcp", spec{payload: number(1000)}, 400, 0, forward4, 3},
		{"tcp, header only first", spec{payload: number(30)}, 24, 0, forward4, 3},
		{"sctp, addresses", spec{sctp: true, payload: chunk(0, 1000)}, 400, 0, samePort, 3},
		{"ipv6 udp", spec{ipv6: true, udp: true, payload: number(3000)}, 1232, 0, forward6, 3},
		{"ipv6 tcp", spec{ipv6: true, payload: number(100)}, 48, 0, forward6, 3},
		{"ipv6 behind hop-by-hop, before destination", spec{ipv6: true, udp: true, payload: number(99), ext: []ext{hop, destination}}, 40, 1, forward6, 3},
		{"ipv6 atomic", spec{ipv6: true, udp: true, payload: number(99)}, 400, 0, forward6, 1},
		{"ipv6 atomic, tcp behind extensions", spec{ipv6: true, payload: number(99), ext: []ext{hop, destination}}, 400, 1, hairpin6, 1},
		{"ipv6 atomic, sctp", spec{ipv6: true, sctp: true}, 400, 0, forward6, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			const id = 0xabcd1234
			whole := build(t, c.spec)
			sent := fragments(t, whole, c.size, id, c.behind)
			var p Packet
			if p.Parse(whole) == SCTP {
				p.ParseSCTP(whole)
			}
			from := Endpoints{p.Src, p.Dst, p.SrcPort, p.DstPort}
			proto := p.Proto
			p.Rewrite(whole, &c.to)
			want := fragments(t, whole, c.size, id, c.behind)
			if len(sent) != c.pieces {
				t.Fatalf("%d pieces, want %d", len(sent), c.pieces)
			}
			key := FragmentKey{Src: from.Src, Dst: from.Dst, ID: id & 0xffff, Proto: proto}
			if c.spec.ipv6 {
				key.ID, key.Proto = id, 0
			}
			for i, frame := range sent {
				original := bytes.Clone(frame)
				p, f := mustPiece(t, frame)
				parsed := *p
				length := len(fragmentData(sent[i], c.spec.ipv6, c.behind))
				if f.Key != key || int(f.Offset) != i*c.size || f.More != (i+1 < c.pieces) || int(f.Length) != length || f.Atomic() != (c.pieces == 1) {
					t.Fatalf("piece %d: %+v, want key %+v, offset %d, length %d", i, f, key, i*c.size, length)
				}
				if i == 0 && (p.SrcPort != from.SrcPort || p.DstPort != from.DstPort || p.Proto != proto) || i > 0 && p.DstPort != 0 {
					t.Fatalf("piece %d: %+v", i, p)
				}
				if !p.RewriteFragment(frame, f, &c.to) {
					t.Fatalf("piece %d: refused", i)
				}
				if !bytes.Equal(frame, want[i]) {
					t.Fatalf("piece %d\n got %x\nwant %x", i, frame, want[i])
				}
				again, f2 := mustPiece(t, frame)
				key2 := f.Key
				key2.Src, key2.Dst = c.to.Src, c.to.Dst
				if *again != *p || f2.Key != key2 {
					t.Errorf("piece %d: p is %+v, the frame says %+v", i, p, again)
				}
				p.RewriteFragment(frame, f, &from)
				if !bytes.Equal(frame, original) || *p != parsed {
					t.Errorf("piece %d, there and back\n got %x\nwant %x", i, frame, original)
				}
			}
		})
	}
}

// fragmentData is what a fragment carries of its datagram.
func fragmentData(frame []byte, ipv6 bool, behind int) []byte {
	var p Packet
	p.Parse(frame)
	if ipv6 {
		return frame[int(p.L3)+ipv6Len+8*behind+fragmentLen : p.End]
	}
	return frame[p.L4:p.End]
}

// A port of SCTP in the first of several fragments: nothing is done, and it is said.
func TestRewriteFragmentCannot(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		whole := build(t, spec{ipv6: ipv6, sctp: true, payload: chunk(0, 100)})
		frame := fragments(t, whole, 40, 1, 0)[0]
		before := bytes.Clone(frame)
		p, f := mustPiece(t, frame)
		parsed := *p
		to := forward4
		if ipv6 {
			to = forward6
		}
		if p.RewriteFragment(frame, f, &to) || !bytes.Equal(frame, before) || *p != parsed {
			t.Errorf("ipv6 %v: did something", ipv6)
		}
	}
}

func TestPieceRefuses(t *testing.T) {
	udp4 := spec{udp: true, payload: number(100)}
	udp6 := spec{ipv6: true, udp: true, payload: number(100)}
	part := func(s spec, size, i int) []byte { return fragments(t, build(t, s), size, 7, 0)[i] }
	fragment6 := func(next byte, bits ...byte) []byte {
		b := build(t, spec{ipv6: true, udp: true, payload: number(8), ext: []ext{{headerFragment, append(bits, 0, 0, 0, 9)}}})
		b[54] = next
		return b
	}
	data := func(frame []byte, n int) []byte { // cut to so many bytes behind the last header
		at := 34
		if frame[12] == 0x86 {
			at = 62
		}
		frame = frame[:at+n]
		fixLengths(frame)
		return frame
	}
	for _, c := range []struct {
		name  string
		frame []byte
		want  Reason
	}{
		{"first", part(udp4, 48, 0), OK},
		{"middle", part(udp4, 48, 1), OK},
		{"last", part(udp4, 48, 2), OK},
		{"don't fragment", set(6, 0x60)(part(udp4, 48, 0)), OK},
		{"reserved bit", set(6, 0xa0)(part(udp4, 48, 0)), OK},
		{"no data", data(part(udp4, 48, 1), 0), BadFragment},
		{"not a multiple of eight, more to come", data(part(udp4, 48, 1), 47), BadFragment},
		{"not a multiple of eight, last", data(part(udp4, 48, 2), 7), OK},
		{"ends at 65535", data(set(6, 0x1f, 0xfc)(part(udp4, 48, 2)), 11), OK},
		{"ends past 65535", data(set(6, 0x1f, 0xfc)(part(udp4, 48, 2)), 12), BadFragment},
		{"last offset", set(6, 0x1f, 0xff)(part(udp4, 48, 2)), BadFragment},
		{"tcp, tiny", part(spec{payload: number(100)}, 16, 0), TinyFragment},
		{"tcp, eight bytes", part(spec{payload: number(100)}, 8, 0), TinyFragment},
		{"tcp, options elsewhere", func() []byte { f := part(spec{payload: number(100)}, 24, 0); f[46] = 0x70; return f }(), TinyFragment},
		{"tcp, offset 8", part(spec{payload: number(100)}, 8, 1), TinyFragment},
		{"tcp, offset 16", part(spec{payload: number(100)}, 8, 2), OK},
		{"tcp, data offset 4", func() []byte { f := part(spec{payload: number(100)}, 24, 0); f[46] = 0x40; return f }(), BadDataOffset},
		{"tcp, bad flags", func() []byte { f := part(spec{payload: number(100)}, 24, 0); f[47] = 3; return f }(), BadTCPFlags},
		{"udp, offset 8", part(udp4, 8, 1), OK},
		{"udp, length of the first alone", func() []byte { f := part(udp4, 48, 0); f[39] = 48; return f }(), BadUDPLength},
		{"udp, length 0", func() []byte { f := part(udp4, 48, 0); f[39] = 0; return f }(), BadUDPLength},
		{"sctp", part(spec{sctp: true, payload: chunk(0, 99)}, 16, 0), OK},
		{"sctp, tiny", part(spec{sctp: true, payload: chunk(0, 99)}, 8, 0), TinyFragment},
		{"icmp", set(9, protoICMP)(part(udp4, 48, 0)), ICMP},
		{"icmp, later", set(9, protoICMP)(part(udp4, 48, 1)), OK},
		{"gre", set(9, 47)(part(udp4, 48, 0)), OtherProtocol},
		{"ipv6 first", part(udp6, 48, 0), OK},
		{"ipv6 middle", part(udp6, 48, 1), OK},
		{"ipv6 last", part(udp6, 48, 2), OK},
		{"ipv6 no data", data(part(udp6, 48, 1), 0), BadFragment},
		{"ipv6 not a multiple of eight", data(part(udp6, 48, 1), 9), BadFragment},
		{"ipv6 ends at 65535", data(raw(56, 0xff, 0xf8)(part(udp6, 48, 2)), 7), OK},
		{"ipv6 ends past 65535", data(raw(56, 0xff, 0xf8)(part(udp6, 48, 2)), 8), BadFragment},
		{"ipv6 header cut", func() []byte { f := part(udp6, 48, 0)[:58]; fixLengths(f); return f }(), BadFragment},
		{"ipv6 tcp, tiny", part(spec{ipv6: true, payload: number(100)}, 16, 0), TinyFragment},
		{"ipv6 tcp, offset 8", part(spec{ipv6: true, payload: number(100)}, 8, 1), TinyFragment},
		{"ipv6 chain goes on elsewhere", part(spec{ipv6: true, udp: true, payload: number(99), ext: []ext{{headerDestination, make([]byte, 14)}}}, 8, 0), TinyFragment},
		{"ipv6 chain ends at the end", part(spec{ipv6: true, udp: true, payload: number(99), ext: []ext{padExt(headerDestination)}}, 8, 0), TinyFragment},
		{"ipv6 fragment within", fragment6(headerFragment, 0, 1), BadFragment},
		{"ipv6 hop-by-hop within", fragment6(headerHopByHop, 0, 1), TinyFragment},
		{"ipv6 icmp", fragment6(protoICMPv6, 0, 1), ICMPv6},
		{"ipv6 esp", fragment6(50, 0, 1), OtherProtocol},
		{"ipv6 reserved bits", fragment6(protoUDP, 0, 6), OK},
		{"ipv6 atomic", fragment6(protoUDP, 0, 0), OK},
		{"ipv6 atomic, icmp", fragment6(protoICMPv6, 0, 0), ICMPv6},
		{"ipv6 atomic, udp length", raw(66, 0, 17)(fragment6(protoUDP, 0, 0)), BadUDPLength},
		{"ipv6 atomic, extension past the end", fragment6(headerDestination, 0, 0), BadExtension},
		{"ipv6 atomic, nothing", data(fragment6(protoUDP, 0, 0), 0), ShortHeader},
	} {
		before := bytes.Clone(c.frame)
		var p Packet
		if r := p.Parse(c.frame); r != Fragment {
			t.Errorf("%s: Parse = %v", c.name, r)
			continue
		}
		left := p
		var f Piece
		got := f.Parse(c.frame, &p)
		if got != c.want {
			t.Errorf("%s: Piece.Parse(%x) = %v, want %v", c.name, c.frame, got, c.want)
		}
		if got != OK && got != BadTCPFlags && p != left || (got == BadFragment) != (f == (Piece{})) {
			t.Errorf("%s: refused, but left %+v %+v", c.name, f, p)
		}
		if !bytes.Equal(c.frame, before) {
			t.Errorf("%s: the frame changed", c.name)
		}
	}
}

// What a fragment is not parsed for keeps its own reason.
func TestFragmentsAreCheckedLikeOthers(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func([]byte) []byte
		want   Reason
	}{
		{"fragment", nil, Fragment},
		{"martian", set(12, 127), MartianSource},
		{"header checksum", raw(24, 1), BadHeaderChecksum},
	} {
		frame := fragments(t, build(t, spec{udp: true, payload: number(99)}), 48, 1, 0)[1]
		if c.change != nil {
			frame = c.change(frame)
		}
		var p Packet
		if got := p.Parse(frame); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// The checksum of a datagram of which only the first fragment is seen, for each of
// its values: what all fragments together sum to stays right.
func TestRewriteFragmentExhaustive(t *testing.T) {
	for _, s := range []spec{
		{udp: true, payload: make([]byte, 60)}, {payload: make([]byte, 60)},
		{ipv6: true, udp: true, payload: make([]byte, 60)}, {ipv6: true, payload: make([]byte, 60)},
	} {
		whole := build(t, s)
		p := mustParse(t, whole)
		l4 := whole[p.L4:p.End]
		at := tcpChecksumAt
		to := forward4
		if s.ipv6 {
			to = forward6
		}
		if s.udp {
			at = udpChecksumAt
		}
		first := fragments(t, whole, 32, 1, 0)[0]
		pf, f := mustPiece(t, first)
		from := Endpoints{p.Src, p.Dst, p.SrcPort, p.DstPort}
		for v := 0; v < 1<<16; v += exhaustiveStep {
			// A word of the last fragment, which the first does not see.
			binary.BigEndian.PutUint16(l4[len(l4)-2:], uint16(v))
			clear(l4[at : at+2])
			check := ^slowTransport(p.Src, p.Dst, p.Proto, l4)
			if s.udp && check == 0 {
				check = 0xffff
			}
			field := first[int(pf.L4)+at:]
			binary.BigEndian.PutUint16(field, check)
			binary.BigEndian.PutUint16(l4[at:], check)
			pf.RewriteFragment(first, f, &to)
			p.Rewrite(whole, &to)
			if got, want := binary.BigEndian.Uint16(field), binary.BigEndian.Uint16(l4[at:]); got != want || slowTransport(p.Src, p.Dst, p.Proto, l4) != 0xffff {
				t.Fatalf("%+v, word %#04x: %#04x, want %#04x", s, v, got, want)
			}
			pf.RewriteFragment(first, f, &from)
			p.Rewrite(whole, &from)
		}
	}
}

func TestFragmentProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := drawSpec(rt)
		s.partial, s.padding = false, 0
		s.payload = number(rapid.IntRange(64, 3000).Draw(rt, "length"))
		behind := 0
		if len(s.ext) > 0 && s.ext[0].kind == headerHopByHop {
			behind = 1
		}
		size := 8 * rapid.IntRange(8, 200).Draw(rt, "size")
		id := rapid.Uint32().Draw(rt, "id")
		whole := build(t, s)
		sent := fragments(t, whole, size, id, behind)
		if len(sent) < 2 && !s.ipv6 {
			return
		}
		p := mustParse(t, whole)
		to := drawEndpoints(rt, s.ipv6)
		p.Rewrite(whole, &to)
		want := fragments(t, whole, size, id, behind)
		for i := range sent {
			p, f := mustPiece(t, sent[i])
			if !p.RewriteFragment(sent[i], f, &to) || !bytes.Equal(sent[i], want[i]) {
				rt.Fatalf("piece %d\n got %x\nwant %x", i, sent[i], want[i])
			}
		}
	})
}

// checkFragment holds an accepted fragment against its own bytes, rewrites it and
// brings it back.
func checkFragment(frame []byte, p *Packet, f *Piece, to Endpoints) error {
	original, parsed := bytes.Clone(frame), *p
	if f.Offset%8 != 0 || int(f.Offset)+int(f.Length) > 0xffff || f.More && f.Length%8 != 0 {
		return fmt.Errorf("accepted %+v", f)
	}
	from := Endpoints{p.Src, p.Dst, p.SrcPort, p.DstPort}
	if f.Offset > 0 && (p.SrcPort != 0 || p.DstPort != 0) {
		return fmt.Errorf("ports in a later fragment: %+v", p)
	}
	if !p.RewriteFragment(frame, f, &to) {
		if p.Proto != protoSCTP || !f.More || f.Offset != 0 || !bytes.Equal(frame, original) || *p != parsed {
			return fmt.Errorf("refused %+v, and left %+v", f, p)
		}
		return nil
	}
	listed := [][2]uint16{{p.L3 + 8, p.L3 + 40}}
	if !p.IPv6 {
		listed[0] = [2]uint16{p.L3 + 10, p.L3 + 20}
	}
	if f.Offset == 0 {
		listed = append(listed, [2]uint16{p.L4, p.L4 + 4})
		switch p.Proto {
		case protoTCP:
			listed = append(listed, [2]uint16{p.L4 + 16, p.L4 + 18})
		case protoUDP:
			listed = append(listed, [2]uint16{p.L4 + 6, p.L4 + 8})
		case protoSCTP:
			listed = append(listed, [2]uint16{p.L4 + 8, p.L4 + 12})
		}
	}
	a, b := bytes.Clone(frame), bytes.Clone(original)
	for _, l := range listed {
		clear(a[l[0]:l[1]])
		clear(b[l[0]:l[1]])
	}
	if !bytes.Equal(a, b) {
		return fmt.Errorf("more than the listed fields changed\n got %x\nfrom %x", frame, original)
	}
	p.RewriteFragment(frame, f, &from)
	if !p.IPv6 && binary.BigEndian.Uint16(original[p.L3+10:]) == 0xffff {
		clear(original[p.L3+10 : p.L3+12])
	}
	if at := p.L4 + 16; f.Offset == 0 && p.Proto == protoTCP && binary.BigEndian.Uint16(original[at:]) == 0xffff {
		clear(original[at : at+2])
	}
	if !bytes.Equal(frame, original) || *p != parsed {
		return fmt.Errorf("there and back\n got %x\nwant %x", frame, original)
	}
	return nil
}

func FuzzFragments(f *testing.F) {
	for _, s := range []spec{
		{udp: true, payload: number(99)}, {payload: number(99), options: []byte{1, 1, 1, 1}, tags: []uint16{7}}, {sctp: true, payload: chunk(0, 99)},
		{ipv6: true, udp: true, payload: number(99)}, {ipv6: true, payload: number(99)},
	} {
		whole := build(f, s)
		for _, frame := range fragments(f, whole, 48, 9, 0) {
			f.Add(frame, uint16(1), uint16(0xffff))
		}
		if s.ipv6 {
			f.Add(fragments(f, whole, 480, 9, 0)[0], uint16(1), uint16(0xffff))
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte, sport, dport uint16) {
		frame = repaired(frame)
		before := bytes.Clone(frame)
		var p Packet
		if p.Parse(frame) != Fragment {
			return
		}
		left := p
		var f Piece
		if r := f.Parse(frame, &p); r != OK && r != BadTCPFlags {
			if p != left || (r == BadFragment) != (f == (Piece{})) || !bytes.Equal(frame, before) {
				t.Fatalf("refused as %v, but left %+v %+v", r, p, f)
			}
			return
		}
		to := Endpoints{client4, backend4, sport, dport}
		if p.IPv6 {
			to.Src, to.Dst = client6, backend6
		}
		if err := checkFragment(frame, &p, &f, to); err != nil {
			t.Fatal(err)
		}
	})
}
