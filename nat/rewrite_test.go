package nat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"
)

var (
	forward4 = Endpoints{Src: client4, Dst: backend4, SrcPort: clientPort, DstPort: backendPort}
	hairpin4 = Endpoints{Src: node4, Dst: backend4, SrcPort: 1025, DstPort: backendPort}
	forward6 = Endpoints{Src: client6, Dst: backend6, SrcPort: clientPort, DstPort: backendPort}
	hairpin6 = Endpoints{Src: node6, Dst: backend6, SrcPort: 1025, DstPort: backendPort}
)

func TestRewrite(t *testing.T) {
	data := []byte("seventeen octets!")
	for _, c := range []struct {
		name string
		spec spec
		to   Endpoints
		want checker // of the transport checksum
	}{
		{"tcp4", spec{payload: data}, forward4, ChecksumOK},
		{"tcp4 hairpin", spec{payload: data}, hairpin4, ChecksumOK},
		{"tcp4 options, tags, padding", spec{options: []byte{1, 1, 1, 0}, tags: []uint16{5, 6}, padding: 9}, forward4, ChecksumOK},
		{"tcp4 nothing changes", spec{}, Endpoints{client4, frontend4, clientPort, frontendPort}, ChecksumOK},
		{"tcp4 partial", spec{partial: true, payload: data}, forward4, ChecksumPartial},
		{"tcp4 partial hairpin", spec{partial: true}, hairpin4, ChecksumPartial},
		{"udp4", spec{udp: true, payload: data}, forward4, ChecksumOK},
		{"udp4 without checksum", spec{udp: true, noChecksum: true, payload: data}, hairpin4, Checksum(0)},
		{"udp4 partial", spec{udp: true, partial: true, payload: data}, hairpin4, ChecksumPartial},
		{"tcp6", spec{ipv6: true, payload: data}, forward6, ChecksumOK},
		{"tcp6 hairpin", spec{ipv6: true, payload: data}, hairpin6, ChecksumOK},
		{"tcp6 partial", spec{ipv6: true, partial: true, payload: data}, hairpin6, ChecksumPartial},
		{"udp6", spec{ipv6: true, udp: true, payload: data}, forward6, ChecksumOK},
		{"udp6 partial", spec{ipv6: true, udp: true, partial: true}, forward6, ChecksumPartial},
		{"udp6 invalid zero stays", spec{ipv6: true, udp: true, noChecksum: true, payload: data}, hairpin6, Checksum(0)},
		{"udp6 extensions, tag, padding", spec{ipv6: true, udp: true, tags: []uint16{5}, ext: []ext{padExt(headerHopByHop), padExt(headerDestination)}, padding: 3}, hairpin6, ChecksumOK},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := build(t, c.spec)
			p := mustParse(t, frame)
			p.DetectPartial(frame)
			if p.Partial != c.spec.partial {
				t.Fatalf("Partial = %v, want %v", p.Partial, c.spec.partial)
			}
			p.Rewrite(frame, &c.to)
			network, transport := IPv4, TCP
			if c.spec.ipv6 {
				network = IPv6
			}
			if c.spec.udp {
				transport = UDP
			}
			check(t, frame, Ether(clientMAC, nodeMAC, c.spec.tags...),
				network(SrcAddr(c.to.Src), DstAddr(c.to.Dst), TTL(64),
					transport(SrcPort(c.to.SrcPort), DstPort(c.to.DstPort), c.want)))

			again := mustParse(t, frame)
			again.Partial = p.Partial
			if *again != *p {
				t.Errorf("after Rewrite p = %+v, the frame says %+v", p, again)
			}
		})
	}
}

// The one datagram in 65535 whose checksum computes to zero, brought about by
// choosing the port: it goes out as 0xffff, and comes back as it was.
func TestRewriteUDPComputedZero(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		frame := build(t, spec{udp: true, ipv6: ipv6, payload: []byte{1, 2, 3, 4}})
		original := bytes.Clone(frame)
		p := mustParse(t, frame)
		field := int(p.L4) + udpChecksumAt
		// One's complement: raising a port by the checksum takes it to zero.
		to := Endpoints{p.Src, p.Dst, p.SrcPort, 0}
		s := uint32(p.DstPort) + uint32(binary.BigEndian.Uint16(frame[field:]))
		to.DstPort = uint16(s>>16 + s&0xffff)
		back := Endpoints{p.Src, p.Dst, p.SrcPort, p.DstPort}
		p.Rewrite(frame, &to)
		network := IPv4
		if ipv6 {
			network = IPv6
		}
		check(t, frame, network(UDP(DstPort(to.DstPort), Checksum(0xffff), ChecksumOK)))
		p.Rewrite(frame, &back)
		if !bytes.Equal(frame, original) {
			t.Errorf("there and back\n got %x\nwant %x", frame, original)
		}
	}
}

// The whole of Rewrite for each of the 2^16 values that a payload word takes the
// checksum through, and the corners of the endpoints: equal to summing all over.
func TestRewriteExhaustive(t *testing.T) {
	for _, s := range []spec{
		{payload: make([]byte, 2)},
		{udp: true, payload: make([]byte, 2)},
		{ipv6: true, payload: make([]byte, 2)},
		{ipv6: true, udp: true, payload: make([]byte, 2)},
	} {
		frame := build(t, s)
		p := mustParse(t, frame)
		from := Endpoints{p.Src, p.Dst, p.SrcPort, p.DstPort}
		low, high := from, from
		low.Dst, low.DstPort = addr("1.0.0.0"), 0
		high.Src, high.Dst, high.SrcPort, high.DstPort = addr("223.255.255.255"), addr("255.255.255.255"), 0xffff, 0xffff
		ends := []Endpoints{forward4, hairpin4, low, high}
		if s.ipv6 {
			low.Dst, low.DstPort = addr("::"), 0
			high.Src, high.Dst = addr("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), addr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
			ends = []Endpoints{forward6, hairpin6, low, high}
		}
		l3, l4 := frame[p.L3:], frame[p.L4:p.End]
		at := tcpChecksumAt
		if s.udp {
			at = udpChecksumAt
		}
		full := func() uint16 {
			clear(l4[at : at+2])
			c := ^slowTransport(p.Src, p.Dst, p.Proto, l4)
			if s.udp && c == 0 {
				c = 0xffff
			}
			return c
		}
		for v := 0; v < 1<<16; v += exhaustiveStep {
			binary.BigEndian.PutUint16(l4[len(l4)-2:], uint16(v))
			if !s.ipv6 {
				binary.BigEndian.PutUint16(l3[4:], uint16(v))
				fixHeader(l3)
			}
			binary.BigEndian.PutUint16(l4[at:], full())
			for i := range ends {
				p.Rewrite(frame, &ends[i])
				got := binary.BigEndian.Uint16(l4[at:])
				if want := full(); got != want {
					t.Fatalf("%+v, word %#04x, to %+v: checksum %#04x, want %#04x", s, v, ends[i], got, want)
				}
				binary.BigEndian.PutUint16(l4[at:], got)
				if !s.ipv6 {
					got := binary.BigEndian.Uint16(l3[10:])
					fixHeader(l3)
					if want := binary.BigEndian.Uint16(l3[10:]); got != want {
						t.Fatalf("%+v, word %#04x, to %+v: header checksum %#04x, want %#04x", s, v, ends[i], got, want)
					}
				}
			}
			p.Rewrite(frame, &from)
		}
	}
}

// What the pseudo header's sum is not: a complete checksum, a zero, its complement.
func TestDetectPartial(t *testing.T) {
	for _, s := range []spec{{}, {udp: true}, {ipv6: true}, {ipv6: true, udp: true}, {options: []byte{1, 1, 1, 1}, payload: []byte("odd")}, {ipv6: true, ext: []ext{padExt(headerDestination)}}} {
		frame := build(t, s)
		p := mustParse(t, frame)
		start, offset := p.ChecksumOffsets()
		field := frame[start+offset:][:2]
		pseudo := slowPseudo(p.Src, p.Dst, p.Proto, int(p.End-p.L4))
		if want := map[bool]uint16{false: 16, true: 6}[s.udp]; start != p.L4 || offset != want {
			t.Errorf("%+v: ChecksumOffsets() = %d, %d, want %d, %d", s, start, offset, p.L4, want)
		}
		for v := range 1 << 16 {
			binary.BigEndian.PutUint16(field, uint16(v))
			p.DetectPartial(frame)
			if want := uint16(v) == pseudo; p.Partial != want {
				t.Fatalf("%+v: field %#04x, pseudo header %#04x: Partial = %v", s, v, pseudo, p.Partial)
			}
		}
	}
}

func TestDecrementTTL(t *testing.T) {
	t.Run("ipv4", func(t *testing.T) {
		frame := build(t, spec{})
		header := frame[etherLen:]
		for v := 0; v < 1<<16; v += exhaustiveStep {
			for _, ttl := range []uint8{2, 64, 255, uint8(2 + v%254)} {
				header[8] = ttl
				binary.BigEndian.PutUint16(header[4:], uint16(v))
				fixHeader(header)
				p := mustParse(t, frame)
				if !p.DecrementTTL(frame) || p.TTL != ttl-1 || header[8] != ttl-1 {
					t.Fatalf("ttl %d: p.TTL %d, frame %d", ttl, p.TTL, header[8])
				}
				got := binary.BigEndian.Uint16(header[10:])
				fixHeader(header)
				if want := binary.BigEndian.Uint16(header[10:]); got != want {
					t.Fatalf("ttl %d, id %#04x: header checksum %#04x, want %#04x", ttl, v, got, want)
				}
				p.IncrementTTL(frame)
				got = binary.BigEndian.Uint16(header[10:])
				fixHeader(header)
				if want := binary.BigEndian.Uint16(header[10:]); got != want || p.TTL != ttl || header[8] != ttl {
					t.Fatalf("back to ttl %d, id %#04x: %d, header checksum %#04x, want %#04x", ttl, v, header[8], got, want)
				}
			}
		}
	})
	t.Run("ipv6", func(t *testing.T) {
		frame := build(t, spec{ipv6: true, ttl: 2})
		want := bytes.Clone(frame)
		want[14+7] = 1
		p := mustParse(t, frame)
		if !p.DecrementTTL(frame) || p.TTL != 1 || !bytes.Equal(frame, want) {
			t.Errorf("got %x\nwant %x", frame, want)
		}
		want[14+7] = 2
		if p.IncrementTTL(frame); p.TTL != 2 || !bytes.Equal(frame, want) {
			t.Errorf("back: got %x\nwant %x", frame, want)
		}
	})
	t.Run("at its end", func(t *testing.T) {
		for _, ipv6 := range []bool{false, true} {
			for ttl := range byte(2) {
				frame := build(t, spec{ipv6: ipv6})
				frame = breakIP(func(b []byte) {
					if ipv6 {
						b[7] = ttl
					} else {
						b[8] = ttl
					}
				})(frame)
				want := bytes.Clone(frame)
				p := mustParse(t, frame)
				if p.DecrementTTL(frame) || p.TTL != ttl || !bytes.Equal(frame, want) {
					t.Errorf("ttl %d went on: %+v %x", ttl, p, frame)
				}
			}
		}
	})
}

func drawEndpoints(t *rapid.T, ipv6 bool) Endpoints {
	return Endpoints{
		Src: drawAddr(t, ipv6, "new source"), Dst: drawAddr(t, ipv6, "new destination"),
		SrcPort: rapid.Uint16().Draw(t, "new source port"), DstPort: rapid.Uint16().Draw(t, "new destination port"),
	}
}

// Any packet, any endpoints: translated and back it is the same, byte for byte; a
// checksum keeps its state; nothing but the listed fields moves.
func TestRewriteProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := drawSpec(rt)
		frame := build(t, s)
		p := mustParse(t, frame)
		if s.partial {
			p.DetectPartial(frame)
		}
		if p.Partial != s.partial {
			rt.Fatalf("Partial = %v, want %v", p.Partial, s.partial)
		}
		start, offset := p.ChecksumOffsets()
		at := int(start + offset)
		broken := uint16(0)
		if !s.partial && !s.noChecksum && rapid.Bool().Draw(rt, "break") {
			broken = rapid.Uint16Range(1, 0xfffe).Draw(rt, "broken by")
			if v := binary.BigEndian.Uint16(frame[at:]) ^ broken; v != 0 && v != 0xffff {
				binary.BigEndian.PutUint16(frame[at:], v)
			} else {
				broken = 0
			}
		}
		if err := checkRewrite(frame, p, drawEndpoints(rt, s.ipv6)); err != nil {
			rt.Fatal(err)
		}
	})
}

// checkRewrite is checkTranslate and checkUntranslate. The frame is as before at the
// end.
func checkRewrite(frame []byte, p *Packet, to Endpoints) error {
	translated, q := bytes.Clone(frame), *p
	if err := checkTranslate(translated, &q, to); err != nil {
		return err
	}
	return checkUntranslate(frame, p, to)
}

// checkTranslate rewrites a parsed frame to the endpoints and holds what comes out
// against the frame that went in, and against what a host with those endpoints would
// have sent.
func checkTranslate(frame []byte, p *Packet, to Endpoints) error {
	original, parsed := bytes.Clone(frame), *p
	l3, l4, end := int(p.L3), int(p.L4), int(p.End)
	start, offset := p.ChecksumOffsets()
	at := int(start + offset)
	transportSum := func() uint16 { return slowTransport(p.Src, p.Dst, p.Proto, frame[l4:end]) }
	before := transportSum()

	p.Rewrite(frame, &to)

	if got := (Endpoints{p.Src, p.Dst, p.SrcPort, p.DstPort}); got != to {
		return fmt.Errorf("rewritten to %+v, p says %+v", to, got)
	}
	var again Packet
	r := again.Parse(frame)
	again.Partial = p.Partial
	if r != OK && r != BadTCPFlags || again != *p {
		return fmt.Errorf("after Rewrite p = %+v, the frame %v %+v", p, r, again)
	}
	field, was := binary.BigEndian.Uint16(frame[at:]), binary.BigEndian.Uint16(original[at:])
	switch {
	case p.Partial:
		if want := slowPseudo(p.Src, p.Dst, p.Proto, end-l4); field != want {
			return fmt.Errorf("partial checksum %#04x, want %#04x", field, want)
		}
	case p.Proto == protoUDP && was == 0:
		if field != 0 {
			return fmt.Errorf("no checksum became %#04x", field)
		}
	default:
		// Right stays right, and wrong stays wrong by as much: the receiver's sum is the same.
		if got := transportSum(); got != before {
			return fmt.Errorf("receiver's sum %#04x, was %#04x", got, before)
		}
		if p.Proto == protoUDP && field == 0 {
			return fmt.Errorf("checksum %#04x became none", was)
		}
		if before == 0xffff {
			if twin := rebuilt(original, &parsed, to); !bytes.Equal(frame, twin) {
				return fmt.Errorf("\n got %x\ntwin %x", frame, twin)
			}
		}
	}
	// Blank the listed fields in both: the rest is equal.
	listed := [][2]int{{l3 + 8, l3 + 40}, {l4, l4 + 4}, {at, at + 2}}
	if !p.IPv6 {
		listed[0] = [2]int{l3 + 10, l3 + 20}
	}
	a, b := bytes.Clone(frame), bytes.Clone(original)
	for _, l := range listed {
		clear(a[l[0]:l[1]])
		clear(b[l[0]:l[1]])
	}
	if !bytes.Equal(a, b) {
		return fmt.Errorf("more than the listed fields changed\n got %x\nfrom %x", frame, original)
	}
	return nil
}

// rebuilt is the slow twin of Rewrite for a frame whose checksums are right: the fields
// written, and the sums made anew.
func rebuilt(frame []byte, p *Packet, to Endpoints) []byte {
	b := bytes.Clone(frame)
	l4 := b[p.L4:p.End]
	if p.IPv6 {
		copy(b[p.L3+8:], to.Src[:])
		copy(b[p.L3+24:], to.Dst[:])
	} else {
		copy(b[p.L3+12:], to.Src[12:])
		copy(b[p.L3+16:], to.Dst[12:])
		fixHeader(b[p.L3:])
	}
	binary.BigEndian.PutUint16(l4[0:], to.SrcPort)
	binary.BigEndian.PutUint16(l4[2:], to.DstPort)
	at := tcpChecksumAt
	if p.Proto == protoUDP {
		at = udpChecksumAt
	}
	clear(l4[at : at+2])
	check := ^slowTransport(to.Src, to.Dst, p.Proto, l4)
	if p.Proto == protoUDP && check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(l4[at:], check)
	return b
}

// checkUntranslate rewrites a parsed frame to the endpoints and back: it is the same.
func checkUntranslate(frame []byte, p *Packet, to Endpoints) error {
	original, parsed := bytes.Clone(frame), *p
	from := Endpoints{p.Src, p.Dst, p.SrcPort, p.DstPort}
	start, offset := p.ChecksumOffsets()
	at, l3 := int(start+offset), int(p.L3)
	was := binary.BigEndian.Uint16(original[at:])
	p.Rewrite(frame, &to)
	p.Rewrite(frame, &from)

	// 0xffff in a TCP or IPv4 header checksum, which no stack writes, comes back as the
	// other zero.
	want := bytes.Clone(original)
	if p.Proto == protoTCP && !p.Partial && was == 0xffff {
		clear(want[at : at+2])
	}
	if !p.IPv6 && binary.BigEndian.Uint16(original[l3+10:]) == 0xffff {
		clear(want[l3+10 : l3+12])
	}
	if !bytes.Equal(frame, want) || *p != parsed {
		return fmt.Errorf("there and back\n got %x\nwant %x", frame, want)
	}
	return nil
}

func TestOtherZeroIsNormalised(t *testing.T) {
	frame := otherZero(build(t, spec{tcp: layers.TCP{ACK: true}}))
	p := mustParse(t, frame)
	copy(frame[int(p.L4)+tcpChecksumAt:], []byte{0xff, 0xff})
	if err := checkRewrite(frame, p, forward4); err != nil {
		t.Error(err)
	}
	if got := frame[24:26]; got[0] != 0 || got[1] != 0 {
		t.Errorf("header checksum %x there and back, want 0000", got)
	}
}

// fuzzRewrite is the common part of the two targets below.
func fuzzRewrite(f *testing.F, check func([]byte, *Packet, Endpoints) error) {
	for _, frame := range seeds(f) {
		f.Add(frame, true, client4[:], backend6[:], uint16(1), uint16(0xffff))
	}
	f.Fuzz(func(t *testing.T, frame []byte, detect bool, src, dst []byte, sport, dport uint16) {
		frame = repaired(frame)
		var p Packet
		if r := p.Parse(frame); r != OK && r != BadTCPFlags {
			return
		}
		if detect {
			p.DetectPartial(frame)
		}
		to := Endpoints{SrcPort: sport, DstPort: dport}
		copy(to.Src[:], src)
		copy(to.Dst[:], dst)
		if p.IPv6 {
			to.Src[0], to.Dst[0] = to.Src[0]&0x0f|0x20, to.Dst[0]|0x20
		} else {
			copy(to.Src[:12], client4[:12])
			copy(to.Dst[:12], client4[:12])
			to.Src[12] = 198
		}
		if err := check(frame, &p, to); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzTranslate(f *testing.F) { fuzzRewrite(f, checkTranslate) }

func FuzzUntranslate(f *testing.F) { fuzzRewrite(f, checkUntranslate) }

// IncrementTTL undoes DecrementTTL at every TTL, whatever the checksum, which 2^16
// identifications give.
func TestIncrementTTL(t *testing.T) {
	for _, s := range []spec{{}, {options: []byte{1, 1, 1, 1}}, {ipv6: true}} {
		for id := range 1 << 16 {
			s.ttl = uint8(2 + id%254)
			frame := build(t, s)
			if !s.ipv6 {
				binary.BigEndian.PutUint16(frame[18:], uint16(id))
				fixHeader(frame[etherLen:])
			} else if id > 255 {
				break
			}
			want := bytes.Clone(frame)
			var p Packet
			if p.Parse(frame) != OK || !p.DecrementTTL(frame) {
				t.Fatal("no frame")
			}
			if p.IncrementTTL(frame); p.TTL != s.ttl || !bytes.Equal(frame, want) {
				t.Fatalf("TTL %d\n got %x\nwant %x", p.TTL, frame, want)
			}
		}
	}
}
