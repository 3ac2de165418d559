package nat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func mustParseSCTP(tb testing.TB, frame []byte) *Packet {
	tb.Helper()
	p := new(Packet)
	if r := p.Parse(frame); r != SCTP {
		tb.Fatalf("Parse(%x) = %v, want sctp", frame, r)
	}
	if r := p.ParseSCTP(frame); r != OK {
		tb.Fatalf("ParseSCTP(%x) = %v, want ok", frame, r)
	}
	return p
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestParseSCTP(t *testing.T) {
	data := chunk(0, 13)
	for _, c := range []struct {
		name   string
		spec   spec
		change func([]byte) []byte
		want   Reason
		first  uint8
	}{
		{"init", spec{}, nil, OK, 1},
		{"init over ipv6", spec{ipv6: true}, nil, OK, 1},
		{"init over ipv6, extension, tags", spec{ipv6: true, ext: []ext{padExt(headerDestination)}, tags: []uint16{1, 2}}, nil, OK, 1},
		{"init, options", spec{options: []byte{1, 1, 1, 1}}, nil, OK, 1},
		{"padded frame", spec{padding: 9}, nil, OK, 1},
		{"data", spec{payload: data}, nil, OK, 0},
		{"data and sack", spec{payload: join(chunk(3, 12), data)}, nil, OK, 3},
		{"last chunk without its padding", spec{payload: data[:17]}, nil, OK, 0},
		{"cookie echo and data", spec{payload: join(chunk(10, 8), data)}, nil, OK, 10},
		{"cookie ack and data", spec{payload: join(chunk(11, 0), data)}, nil, OK, 11},
		{"shutdown complete", spec{payload: chunk(14, 0)}, nil, OK, 14},
		{"abort behind data", spec{payload: join(data, chunk(6, 0))}, nil, OK, 0},
		{"no chunk", spec{payload: []byte{}}, nil, BadChunk, 0},
		{"half a chunk header", spec{payload: []byte{1, 0}}, nil, BadChunk, 0},
		{"half a second chunk header", spec{payload: join(data, []byte{3, 0})}, nil, BadChunk, 0},
		{"chunk of length 0", spec{payload: []byte{0, 0, 0, 0}}, nil, BadChunk, 0},
		{"chunk of length 3", spec{payload: []byte{0, 0, 0, 3}}, nil, BadChunk, 0},
		{"chunk past the packet", spec{payload: []byte{0, 0, 0, 5}}, nil, BadChunk, 0},
		{"chunk into padding", spec{payload: []byte{0, 0, 0, 5}, padding: 4}, nil, BadChunk, 0},
		{"init and data", spec{payload: join(chunk(1, 16), data)}, nil, BadChunk, 0},
		{"data and init", spec{payload: join(data, chunk(1, 16))}, nil, BadChunk, 0},
		{"init ack and data", spec{payload: join(chunk(2, 16), data)}, nil, BadChunk, 0},
		{"data and shutdown complete", spec{payload: join(data, chunk(14, 0))}, nil, BadChunk, 0},
		{"data and cookie echo", spec{payload: join(data, chunk(10, 0))}, nil, BadChunk, 0},
		{"data and cookie ack", spec{payload: join(data, chunk(11, 0))}, nil, BadChunk, 0},
		{"init with a tag", spec{}, set(24, 0, 0, 0, 1), BadChunk, 0},
		{"header cut", spec{}, set(2, 0, 31), ShortHeader, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.sctp = true
			frame := build(t, c.spec)
			if c.change != nil {
				frame = c.change(frame)
			}
			before := bytes.Clone(frame)
			var p Packet
			if r := p.Parse(frame); r != SCTP {
				t.Fatalf("Parse = %v", r)
			}
			left := p
			got := p.ParseSCTP(frame)
			want := left
			if c.want == OK {
				want.SrcPort, want.DstPort, want.Chunk = clientPort, frontendPort, c.first
			}
			if got != c.want || p != want {
				t.Errorf("ParseSCTP(%x)\n got %v %+v\nwant %v %+v", frame, got, p, c.want, want)
			}
			if !bytes.Equal(frame, before) {
				t.Error("the frame changed")
			}
		})
	}
}

// The example of RFC 3720 appendix B.4 and the check value of CRC-32C.
func TestSCTPChecksumIsCRC32C(t *testing.T) {
	for _, c := range []struct {
		data []byte
		want uint32
	}{
		{[]byte("123456789"), 0xe3069283},
		{make([]byte, 32), 0x8a9136aa},
		{bytes.Repeat([]byte{0xff}, 32), 0x62a8ab43},
	} {
		if got := sctpChecksum(c.data); got != c.want {
			t.Errorf("sctpChecksum(%x) = %#08x, want %#08x", c.data, got, c.want)
		}
		if got := slowCRC(c.data); got != c.want {
			t.Errorf("slowCRC(%x) = %#08x, want %#08x", c.data, got, c.want)
		}
	}
}

func TestRewriteSCTP(t *testing.T) {
	samePorts4, samePorts6 := forward4, forward6
	samePorts4.DstPort, samePorts6.DstPort = frontendPort, frontendPort
	for _, c := range []struct {
		name string
		spec spec
		to   Endpoints
	}{
		{"addresses", spec{}, samePorts4},
		{"ports", spec{}, forward4},
		{"hairpin, tags, padding", spec{tags: []uint16{3, 4}, padding: 7, payload: chunk(0, 99)}, hairpin4},
		{"unfinished, addresses", spec{partial: true}, samePorts4},
		{"unfinished, ports", spec{partial: true, payload: chunk(0, 1000)}, forward4},
		{"ipv6 addresses", spec{ipv6: true}, samePorts6},
		{"ipv6 ports", spec{ipv6: true, ext: []ext{padExt(headerHopByHop)}}, forward6},
		{"ipv6 unfinished", spec{ipv6: true, partial: true}, hairpin6},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.sctp = true
			frame := build(t, c.spec)
			p := mustParseSCTP(t, frame)
			before := binary.LittleEndian.Uint32(frame[p.L4+8:])
			p.DetectPartial(frame)
			if p.Partial != c.spec.partial {
				t.Fatalf("Partial = %v", p.Partial)
			}
			p.Rewrite(frame, &c.to)
			network := IPv4
			if c.spec.ipv6 {
				network = IPv6
			}
			check(t, frame, Ether(clientMAC, nodeMAC, c.spec.tags...), network(SrcAddr(c.to.Src), DstAddr(c.to.Dst),
				WithSCTP(SrcPort(c.to.SrcPort), DstPort(c.to.DstPort), ChecksumOK)))
			if c.to.DstPort == frontendPort && !c.spec.partial && binary.LittleEndian.Uint32(frame[p.L4+8:]) != before {
				t.Error("a change of addresses touched the checksum")
			}
			if again := mustParseSCTP(t, frame); *again != *p {
				t.Errorf("after Rewrite p = %+v, the frame says %+v", p, again)
			}
		})
	}
}

// Not asked for partial ones, a zero is a wrong checksum like any other, and stays so.
func TestRewriteSCTPDoesNotRepair(t *testing.T) {
	for _, wrong := range []uint32{1, 0x80000000, 0xffffffff} {
		frame := build(t, spec{sctp: true})
		original := bytes.Clone(frame)
		p := mustParseSCTP(t, frame)
		field := frame[p.L4+8:]
		right := binary.LittleEndian.Uint32(field)
		for _, value := range []uint32{right ^ wrong, 0} {
			binary.LittleEndian.PutUint32(field, value)
			to := forward4
			p.Rewrite(frame, &to)
			fixed := bytes.Clone(frame[p.L4:p.End])
			clear(fixed[8:12])
			if got, want := binary.LittleEndian.Uint32(field), slowCRC(fixed)^right^value; got != want {
				t.Errorf("checksum %#08x wrong by %#08x became %#08x, want %#08x", value, right^value, got, want)
			}
			to = Endpoints{client4, frontend4, clientPort, frontendPort}
			p.Rewrite(frame, &to)
			if got := binary.LittleEndian.Uint32(field); got != value {
				t.Errorf("there and back: %#08x, want %#08x", got, value)
			}
		}
		binary.LittleEndian.PutUint32(field, right)
		if !bytes.Equal(frame, original) {
			t.Errorf("there and back\n got %x\nwant %x", frame, original)
		}
	}
}

// Each port through all its values: the checksum is the one of the packet as it is.
func TestRewriteSCTPExhaustive(t *testing.T) {
	frame := build(t, spec{sctp: true})
	p := mustParseSCTP(t, frame)
	whole := make([]byte, len(frame[p.L4:p.End]))
	for v := 0; v < 1<<16; v += exhaustiveStep {
		for _, to := range []Endpoints{{client4, backend4, uint16(v), 1}, {client4, frontend4, 0xffff, uint16(v)}} {
			p.Rewrite(frame, &to)
			copy(whole, frame[p.L4:p.End])
			clear(whole[8:12])
			if got, want := binary.LittleEndian.Uint32(frame[p.L4+8:]), slowCRC(whole); got != want {
				t.Fatalf("to %+v: %#08x, want %#08x", to, got, want)
			}
		}
	}
}

func TestComplete(t *testing.T) {
	for _, s := range []spec{
		{}, {udp: true, payload: []byte("odd")}, {sctp: true}, {ipv6: true}, {ipv6: true, udp: true}, {ipv6: true, sctp: true, payload: chunk(0, 1000)},
	} {
		want := build(t, s)
		s.partial = true
		frame := build(t, s)
		var p Packet
		if p.Parse(frame) == SCTP {
			p.ParseSCTP(frame)
		}
		p.DetectPartial(frame)
		if !p.Partial {
			t.Fatalf("%+v: not partial", s)
		}
		for range 2 { // the second time there is nothing to do
			if p.Complete(frame); p.Partial || !bytes.Equal(frame, want) {
				t.Errorf("%+v\n got %x\nwant %x", s, frame, want)
			}
		}
	}
}

// checkSCTP rewrites a parsed SCTP frame and holds it against the twin, which knows
// only the packet's bytes before and after; then back.
func checkSCTP(frame []byte, p *Packet, to Endpoints) error {
	original, parsed := bytes.Clone(frame), *p
	from := Endpoints{p.Src, p.Dst, p.SrcPort, p.DstPort}
	crcOf := func() uint32 {
		b := bytes.Clone(frame[p.L4:p.End])
		clear(b[8:12])
		return slowCRC(b)
	}
	field := func() uint32 { return binary.LittleEndian.Uint32(frame[p.L4+8:]) }
	wrong := field() ^ crcOf()
	if p.Partial {
		wrong = 0
	}
	p.Rewrite(frame, &to)
	if got, want := field(), crcOf()^wrong; got != want {
		return fmt.Errorf("checksum %#08x, want %#08x", got, want)
	}
	var again Packet
	if again.Parse(frame) != SCTP || again.ParseSCTP(frame) != OK || again != *p {
		return fmt.Errorf("after Rewrite p = %+v, the frame says %+v", p, again)
	}
	p.Rewrite(frame, &from)
	if parsed.Partial {
		copy(original[p.L4+8:], frame[p.L4+8:p.L4+12])
		parsed.Partial = false
	}
	if !p.IPv6 && binary.BigEndian.Uint16(original[p.L3+10:]) == 0xffff {
		clear(original[p.L3+10 : p.L3+12])
	}
	if !bytes.Equal(frame, original) || *p != parsed {
		return fmt.Errorf("there and back\n got %x\nwant %x", frame, original)
	}
	return nil
}

func TestSCTPProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := drawSpec(rt)
		s.sctp, s.noChecksum = true, false
		s.payload = nil
		for range rapid.IntRange(1, 4).Draw(rt, "chunks") {
			s.payload = append(s.payload, chunk(0, rapid.IntRange(0, 60).Draw(rt, "length"))...)
		}
		frame := build(t, s)
		p := mustParseSCTP(t, frame)
		if s.partial {
			p.DetectPartial(frame)
		} else if rapid.Bool().Draw(rt, "break") {
			frame[p.L4+9] ^= 0x10
		}
		if err := checkSCTP(frame, p, drawEndpoints(rt, s.ipv6)); err != nil {
			rt.Fatal(err)
		}
	})
}

func FuzzSCTP(f *testing.F) {
	f.Add(build(f, spec{sctp: true}), true, uint16(1), uint16(0xffff))
	f.Add(build(f, spec{sctp: true, partial: true, payload: join(chunk(3, 12), chunk(0, 5))}), true, uint16(80), uint16(8080))
	f.Add(build(f, spec{sctp: true, ipv6: true, tags: []uint16{1}, ext: []ext{padExt(headerDestination)}}), false, uint16(80), uint16(8080))
	f.Fuzz(func(t *testing.T, frame []byte, detect bool, sport, dport uint16) {
		frame = repaired(frame)
		before := bytes.Clone(frame)
		var p Packet
		if p.Parse(frame) != SCTP {
			return
		}
		left := p
		if r := p.ParseSCTP(frame); r != OK {
			if p != left || !bytes.Equal(frame, before) {
				t.Fatalf("refused as %v, but left %+v and %x", r, p, frame)
			}
			return
		}
		if detect {
			p.DetectPartial(frame)
		}
		to := Endpoints{client4, backend4, sport, dport}
		if p.IPv6 {
			to.Src, to.Dst = client6, backend6
		}
		if err := checkSCTP(frame, &p, to); err != nil {
			t.Fatal(err)
		}
	})
}
