package nat

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"
)

// answer has an answer built, and sees to it that only that is written.
func answer(tb testing.TB, frame []byte, build func(dst []byte) int) []byte {
	tb.Helper()
	before := bytes.Clone(frame)
	dst := bytes.Repeat([]byte{0xee}, UnreachableSize+8)
	n := build(dst)
	if !bytes.Equal(frame, before) {
		tb.Fatalf("the offending frame was changed\n got %x\nwant %x", frame, before)
	}
	for i, b := range dst[n:] {
		if b != 0xee {
			tb.Fatalf("answer of %d bytes, but byte %d was written", n, n+i)
		}
	}
	return dst[:n]
}

func unreachable(tb testing.TB, frame []byte, p *Packet, from [16]byte) []byte {
	tb.Helper()
	return answer(tb, frame, func(dst []byte) int { return BuildUnreachable(dst, frame, p, from) })
}

func timeExceeded(tb testing.TB, frame []byte, p *Packet, from [16]byte) []byte {
	tb.Helper()
	return answer(tb, frame, func(dst []byte) int { return BuildTimeExceeded(dst, frame, p, from) })
}

func tooBig(tb testing.TB, frame []byte, p *Packet, from [16]byte, mtu uint16) []byte {
	tb.Helper()
	return answer(tb, frame, func(dst []byte) int { return BuildTooBig(dst, frame, p, from, mtu) })
}

func TestBuildUnreachable(t *testing.T) {
	long := make([]byte, 1400)
	for i := range long {
		long[i] = byte(i)
	}
	for _, c := range []struct {
		name  string
		spec  spec
		from  [16]byte
		tos   uint8
		quote int // bytes of the packet quoted
	}{
		{"tcp4", spec{}, frontend4, 0xc0, 40},
		{"tcp4 tos", spec{tos: 0xff}, frontend4, 0xde, 40},
		{"udp4", spec{udp: true, payload: long[:3]}, frontend4, 0xc0, 31},
		{"udp4 padded", spec{udp: true, payload: long[:3], padding: 30}, frontend4, 0xc0, 31},
		{"udp4 without checksum", spec{udp: true, noChecksum: true}, frontend4, 0xc0, 28},
		{"udp4 longest whole", spec{udp: true, payload: long[:520]}, node4, 0xc0, 548},
		{"udp4 cut", spec{udp: true, payload: long[:521]}, node4, 0xc0, 548},
		{"tcp4 cut, options, tags", spec{payload: long, options: []byte{1, 1, 1, 1}, tags: []uint16{3, 4}}, node4, 0xc0, 548},
		{"tcp6", spec{ipv6: true, tos: 0xff}, frontend6, 0, 60},
		{"tcp6 tags", spec{ipv6: true, tags: []uint16{3, 4}}, frontend6, 0, 60},
		{"udp6 longest whole", spec{ipv6: true, udp: true, payload: long[:1184]}, node6, 0, 1232},
		{"udp6 cut", spec{ipv6: true, udp: true, payload: long[:1185]}, node6, 0, 1232},
		{"udp6 zero", spec{ipv6: true, udp: true, noChecksum: true}, node6, 0, 48},
		{"udp6 extension", spec{ipv6: true, udp: true, ext: []ext{padExt(headerDestination)}}, node6, 0, 56},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := build(t, c.spec)
			p := mustParse(t, frame)
			answer := unreachable(t, frame, p, c.from)
			quote := frame[p.L3 : int(p.L3)+c.quote]
			head := checker(Ether(nodeMAC, clientMAC, c.spec.tags...))
			if c.spec.ipv6 {
				check(t, answer, head, IPv6(SrcAddr(c.from), DstAddr(client6), TTL(64), TOS(c.tos), Length(48+c.quote), ICMPError(1, 4, quote)))
			} else {
				check(t, answer, head, IPv4(SrcAddr(c.from), DstAddr(client4), TTL(64), TOS(c.tos), Length(28+c.quote), ICMPError(3, 3, quote)))
			}
		})
	}
}

// Against what a Linux router answered to the same frames: byte for byte outside
// the fields that BuildUnreachable lists.
func TestUnreachableIsLinuxs(t *testing.T) {
	file, err := os.Open("testdata/linux_reject.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cases := 0
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		cases++
		words := strings.Fields(line)
		name := words[0]
		frame := unhex(t, words[1])
		var p Packet
		if r := p.Parse(frame); r != OK && r != BadTCPFlags {
			t.Errorf("%s: Parse = %v", name, r)
			continue
		}
		p.DecrementTTL(frame) // the router did, before its forward hook
		if words[2] == "-" {
			if got := unreachable(t, frame, &p, frontend4); len(got) != 0 {
				t.Errorf("%s: got %x, Linux is silent", name, got)
			}
			continue
		}
		want := unhex(t, words[2])
		from := addr("198.18.0.1")
		if p.IPv6 {
			from = addr("2001:db8:1::1")
			clear(want[14+1 : 14+4]) // flow label, and no traffic class
			if want[14] != 0x60 {
				t.Errorf("%s: Linux set a traffic class", name)
			}
		} else {
			copy(want[14+4:], []byte{0, 0, 0x40, 0}) // identification, DF
			fixHeader(want[14:])
		}
		if got := unreachable(t, frame, &p, from); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x", name, got, want)
		}
	}
	if err := lines.Err(); err != nil || cases < 20 {
		t.Fatalf("%d cases, %v", cases, err)
	}
}

// The same for the other answers. Linux also answers later fragments of IPv6, which we
// do not: the first one is answered, and once is enough.
func TestAnswersAreLinuxs(t *testing.T) {
	file, err := os.ReadFile("testdata/linux_answers.txt")
	if err != nil {
		t.Fatal(err)
	}
	silent := map[string]bool{"fragment6_1": true, "fragment6_2": true}
	cases := map[string]int{}
	for line := range strings.Lines(string(file)) {
		words := strings.Fields(line)
		if words[0] == "#" {
			continue
		}
		kind, name := words[0], words[1]
		cases[kind]++
		frame := unhex(t, words[2])
		p := new(Packet)
		switch r := p.Parse(frame); r {
		case OK, BadTCPFlags, ICMP, ICMPv6:
		case SCTP:
			p = mustParseSCTP(t, frame)
		case Fragment:
			p, _ = mustPiece(t, frame)
		default:
			t.Fatalf("%s %s: Parse = %v", kind, name, r)
		}
		from := addr("198.18.0.1")
		if p.IPv6 {
			from = addr("2001:db8:1::1")
		}
		var got []byte
		switch kind {
		case "ttl":
			got = timeExceeded(t, frame, p, from)
		case "big":
			if p.End-p.L3 > 1280 {
				got = tooBig(t, frame, p, from, 1280)
			}
		case "reset":
			got = reset(t, frame, p)
		}
		var want []byte
		if words[3] != "-" && !silent[name] {
			want = unhex(t, words[3])
			switch {
			case kind == "reset":
			case p.IPv6:
				want[15] &= 0xf0 // flow label
				clear(want[16:18])
			default:
				copy(want[18:], []byte{0, 0, 0x40, 0}) // identification, DF
				fixHeader(want[14:])
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s %s:\n got %x\nwant %x", kind, name, got, want)
		}
	}
	if cases["ttl"] < 20 || cases["big"] < 9 || cases["reset"] < 20 {
		t.Errorf("cases: %v", cases)
	}
}

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestBuildTimeExceeded(t *testing.T) {
	for _, c := range []struct {
		name  string
		spec  spec
		quote int
	}{
		{"tcp4", spec{ttl: 1}, 40},
		{"udp4 cut", spec{ttl: 1, udp: true, payload: number(900)}, 548},
		{"udp4, tags, options", spec{ttl: 1, udp: true, tags: []uint16{3, 4}, options: []byte{1, 1, 1, 1}}, 32},
		{"sctp4", spec{ttl: 1, sctp: true}, 52},
		{"tcp6", spec{ttl: 1, ipv6: true, tags: []uint16{3}}, 60},
		{"udp6 cut, extension", spec{ttl: 1, ipv6: true, udp: true, payload: number(1400), ext: []ext{padExt(headerDestination)}}, 1232},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := build(t, c.spec)
			p := new(Packet)
			if p.Parse(frame) == SCTP {
				p = mustParseSCTP(t, frame)
			}
			quote := frame[p.L3:][:c.quote]
			head := Ether(nodeMAC, clientMAC, c.spec.tags...)
			if c.spec.ipv6 {
				check(t, timeExceeded(t, frame, p, node6), head, IPv6(SrcAddr(node6), DstAddr(client6), TTL(64), Length(48+c.quote), ICMPError(3, 0, quote)))
			} else {
				check(t, timeExceeded(t, frame, p, node4), head, IPv4(SrcAddr(node4), DstAddr(client4), TTL(64), TOS(0xc0), Length(28+c.quote), ICMPError(11, 0, quote)))
			}
		})
	}
}

func TestBuildTooBig(t *testing.T) {
	frame := build(t, spec{payload: number(1400), tos: 0x28})
	p := mustParse(t, frame)
	check(t, tooBig(t, frame, p, node4, 1280), Ether(nodeMAC, clientMAC),
		IPv4(SrcAddr(node4), DstAddr(client4), TTL(64), TOS(0xc8), Length(576), ICMPErrorMTU(3, 4, 1280, frame[14:][:548])))
	may := set(6, 0)(bytes.Clone(frame))
	if got := tooBig(t, may, mustParse(t, may), node4, 1280); len(got) != 0 {
		t.Errorf("may be fragmented, but answered with %x", got)
	}
	frame = build(t, spec{ipv6: true, payload: number(1400)})
	p = mustParse(t, frame)
	for mtu, want := range map[uint16]uint32{1400: 1400, 1280: 1280, 1000: 1280, 0: 1280, 65535: 65535} {
		check(t, tooBig(t, frame, p, node6, mtu), Ether(nodeMAC, clientMAC),
			IPv6(SrcAddr(node6), DstAddr(client6), TTL(64), Length(1280), ICMPErrorMTU(2, 0, want, frame[14:][:1232])))
	}
}

// What an error may be sent about, by the rules of RFC 1122 and RFC 4443, which the
// kernel keeps in icmp_send and icmp6_send.
func TestErrorsAnswerable(t *testing.T) {
	icmp := func(kind byte) func([]byte) []byte {
		return func(f []byte) []byte { f[34] = kind; return set(9, protoICMP)(f) }
	}
	icmp6 := func(kind byte) func([]byte) []byte {
		return func(f []byte) []byte { f[54] = kind; return set(6, protoICMPv6)(f) }
	}
	cut := func(i int) func([]byte) []byte {
		return func(f []byte) []byte { return fragments(t, f, 48, 1, 0)[i] }
	}
	long := number(99)
	for _, c := range []struct {
		name   string
		spec   spec
		change func([]byte) []byte
		from   [16]byte
		want   bool
	}{
		{"tcp with a wrong checksum", spec{}, raw(50, 1, 2), node4, true},
		{"echo", spec{udp: true}, icmp(8), node4, true},
		{"echo reply", spec{udp: true}, icmp(0), node4, true},
		{"unreachable", spec{udp: true}, icmp(3), node4, false},
		{"redirect", spec{udp: true}, icmp(5), node4, false},
		{"time exceeded", spec{udp: true}, icmp(11), node4, false},
		{"icmp of an unknown type", spec{udp: true}, icmp(19), node4, false},
		{"icmp without a type", spec{udp: true}, func(f []byte) []byte { f = icmp(8)(f)[:34]; fixLengths(f); return f }, node4, false},
		{"first fragment", spec{udp: true, payload: long}, cut(0), node4, true},
		{"later fragment", spec{udp: true, payload: long}, cut(1), node4, false},
		{"to multicast", spec{dst: addr("224.0.0.251")}, nil, node4, false},
		{"to broadcast", spec{dst: addr("255.255.255.255")}, nil, node4, false},
		{"to a group mac", spec{}, raw(0, 1), node4, false},
		{"from a group mac", spec{}, raw(6, 1), node4, false},
		{"from loopback", spec{}, set(12, 127), node4, false},
		{"gre", spec{}, set(9, 47), node4, false},
		{"not from an address of its family", spec{}, nil, node6, false},
		{"ipv6 echo", spec{ipv6: true, udp: true}, icmp6(128), node6, true},
		{"ipv6 error", spec{ipv6: true, udp: true}, icmp6(1), node6, false},
		{"ipv6 unknown error", spec{ipv6: true, udp: true}, icmp6(127), node6, false},
		{"ipv6 redirect", spec{ipv6: true, udp: true}, icmp6(137), node6, false},
		{"ipv6 multicast", spec{ipv6: true, dst: addr("ff02::fb")}, nil, node6, false},
		{"ipv6 first fragment", spec{ipv6: true, udp: true, payload: long}, cut(0), node6, true},
		{"ipv6 later fragment", spec{ipv6: true, udp: true, payload: long}, cut(1), node6, false},
		{"ipv6 first fragment of an echo", spec{ipv6: true, udp: true, payload: long}, func(f []byte) []byte { f = cut(0)(f); f[54], f[62] = protoICMPv6, 128; return f }, node6, true},
		{"ipv6 first fragment of an error", spec{ipv6: true, udp: true, payload: long}, func(f []byte) []byte { f = cut(0)(f); f[54], f[62] = protoICMPv6, 1; return f }, node6, false},
		{"ipv6 not from an address of its family", spec{ipv6: true}, nil, node4, false},
	} {
		frame := build(t, c.spec)
		if c.change != nil {
			frame = c.change(frame)
		}
		var p Packet
		r := p.Parse(frame)
		if got := timeExceeded(t, frame, &p, c.from); (len(got) > 0) != c.want {
			t.Errorf("%s: time exceeded %x, want one: %v", c.name, got, c.want)
		}
		df := c.spec.ipv6 || p.L3 > 0 && frame[p.L3+6]&0x40 != 0
		if got := tooBig(t, frame, &p, c.from, 1280); (len(got) > 0) != (c.want && df) {
			t.Errorf("%s: too big %x, want one: %v", c.name, got, c.want)
		}
		var f Piece
		if r == Fragment && f.Parse(frame, &p) == OK {
			if got := timeExceeded(t, frame, &p, c.from); (len(got) > 0) != c.want {
				t.Errorf("%s, parsed: time exceeded %x, want one: %v", c.name, got, c.want)
			}
		}
	}
}

func TestUnreachableIsNotSent(t *testing.T) {
	corrupt := func(f []byte) []byte { f[len(f)-1] ^= 1; return f }
	for _, c := range []struct {
		name   string
		spec   spec
		change func([]byte) []byte
		from   [16]byte
	}{
		{"to multicast", spec{udp: true, dst: addr("224.0.0.251")}, nil, node4},
		{"to broadcast", spec{udp: true, dst: addr("255.255.255.255")}, nil, node4},
		{"to ipv6 multicast", spec{udp: true, ipv6: true, dst: addr("ff02::fb")}, nil, node6},
		{"from a group mac", spec{}, raw(6, 1), node4},
		{"from multicast", spec{}, set(12, 224, 0, 0, 1), node4},
		{"from nobody", spec{}, set(12, 0, 0, 0, 0), node4},
		{"from ipv6 multicast", spec{ipv6: true, src: addr("ff02::1")}, nil, node6},
		{"to a group mac", spec{}, raw(0, 1), node4},
		{"icmp", spec{udp: true}, set(9, protoICMP), node4},
		{"fragment", spec{udp: true}, set(6, 0, 1), node4},
		{"tcp checksum wrong", spec{payload: []byte("x")}, corrupt, node4},
		{"udp checksum wrong", spec{udp: true, payload: []byte("x")}, corrupt, node4},
		{"udp6 checksum wrong", spec{ipv6: true, udp: true, payload: []byte("x")}, corrupt, node6},
		{"partial, but not looked for", spec{partial: true}, nil, node4},
		{"ipv4 from an ipv6 address", spec{}, nil, node6},
		{"ipv6 from an ipv4 address", spec{ipv6: true}, nil, node4},
	} {
		frame := build(t, c.spec)
		if c.change != nil {
			frame = c.change(frame)
		}
		var p Packet
		p.Parse(frame)
		if got := unreachable(t, frame, &p, c.from); len(got) != 0 {
			t.Errorf("%s: answered with %x", c.name, got)
		}
	}
}

func TestUnreachableNeedsRoom(t *testing.T) {
	for _, s := range []spec{{}, {ipv6: true, udp: true, payload: make([]byte, 1300), tags: []uint16{1, 2}}} {
		frame := build(t, s)
		p := mustParse(t, frame)
		from := node4
		if s.ipv6 {
			from = node6
		}
		need := len(unreachable(t, frame, p, from))
		if need == 0 || need > UnreachableSize {
			t.Fatalf("answer of %d bytes", need)
		}
		if n := BuildUnreachable(make([]byte, need), frame, p, from); n != need {
			t.Errorf("into %d bytes: %d", need, n)
		}
		if n := BuildUnreachable(make([]byte, need-1), frame, p, from); n != 0 {
			t.Errorf("into %d bytes: %d, want 0", need-1, n)
		}
	}
}

// The quote of a partial packet carries the checksum it would have had on a wire:
// also where the quote is cut before the data that it covers.
func TestUnreachableFinishesPartialQuote(t *testing.T) {
	for _, s := range []spec{
		{payload: []byte("abc")}, {udp: true, payload: []byte("abc")}, {payload: make([]byte, 1000)},
		{ipv6: true, payload: []byte("abc")}, {ipv6: true, udp: true, payload: make([]byte, 1300)},
	} {
		finished := build(t, s)
		s.partial = true
		frame := build(t, s)
		p := mustParse(t, frame)
		p.DetectPartial(frame)
		from := node4
		if s.ipv6 {
			from = node6
		}
		got := unreachable(t, frame, p, from)
		want := unreachable(t, finished, mustParse(t, finished), from)
		if len(got) == 0 || !bytes.Equal(got, want) {
			t.Errorf("%+v\n got %x\nwant %x", s, got, want)
		}
	}
	// A datagram whose checksum computes to zero, brought about by its data: 0xffff, as
	// the device would have written.
	zero := spec{udp: true, payload: make([]byte, 2)}
	copy(zero.payload, build(t, zero)[40:42])
	finished := build(t, zero)
	zero.partial = true
	zeroFrame := build(t, zero)
	zp := mustParse(t, zeroFrame)
	zp.DetectPartial(zeroFrame)
	got := unreachable(t, zeroFrame, zp, node4)
	if want := unreachable(t, finished, mustParse(t, finished), node4); !bytes.Equal(got, want) || !bytes.Equal(got[14+28+26:][:2], []byte{0xff, 0xff}) {
		t.Errorf("got %x\nwant %x", got, want)
	}
	// A chain of extension headers so long that the field lies outside the quote.
	s := spec{ipv6: true, partial: true, ext: []ext{{headerDestination, make([]byte, 1222)}}}
	frame := build(t, s)
	p := mustParse(t, frame)
	p.DetectPartial(frame)
	if got := unreachable(t, frame, p, node6); len(got) != 14+1280 || !bytes.Equal(got[14+48:], frame[14:14+1232]) {
		t.Errorf("got %x", got)
	}
}

func TestAnswerProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := drawSpec(rt)
		frame := build(t, s)
		p := mustParse(t, frame)
		p.DetectPartial(frame)
		checkUnreachable(t, frame, p)
		from := node4
		if p.IPv6 {
			from = node6
		}
		checkError(t, frame, p, timeExceeded(t, frame, p, from))
		checkError(t, frame, p, tooBig(t, frame, p, from, rapid.Uint16().Draw(rt, "mtu")))
	})
}

// checkUnreachable builds the answer to a packet and holds it against the packet.
func checkUnreachable(t *testing.T, frame []byte, p *Packet) {
	from, header, limit := node4, ipv4Len, 576
	if p.IPv6 {
		from, header, limit = node6, ipv6Len, 1280
	}
	answer := unreachable(t, frame, p, from)
	if len(answer) == 0 {
		return
	}
	if p.Partial {
		frame = bytes.Clone(frame)
		start, offset := p.ChecksumOffsets()
		binary.LittleEndian.PutUint16(frame[start+offset:], p.transportChecksum(frame))
	}
	whole := int(p.End - p.L3)
	quoted := min(whole, limit-header-8)
	if len(answer) != int(p.L3)+header+8+quoted {
		t.Fatalf("answer of %d bytes to a packet of %d", len(answer), whole)
	}
	quote := frame[p.L3 : int(p.L3)+quoted]
	if p.IPv6 {
		check(t, answer, IPv6(SrcAddr(from), DstAddr(p.Src), TTL(64), ICMPError(1, 4, quote)))
	} else {
		check(t, answer, IPv4(SrcAddr(from), DstAddr(p.Src), TTL(64), ICMPError(3, 3, quote)))
	}
	// Never an answer to an answer.
	var q Packet
	if r := q.Parse(answer); r != ICMP && r != ICMPv6 || BuildUnreachable(make([]byte, UnreachableSize), answer, &q, from) != 0 {
		t.Fatalf("the answer is %v to Parse", r)
	}
}

func FuzzAnswers(f *testing.F) {
	for _, frame := range seeds(f) {
		f.Add(frame, true)
	}
	f.Add(build(f, spec{udp: true, payload: make([]byte, 600)}), false)
	f.Add(build(f, spec{ipv6: true, tcp: layers.TCP{ACK: true}, payload: make([]byte, 1300)}), false)
	f.Fuzz(func(t *testing.T, frame []byte, detect bool) {
		frame = repaired(frame)
		var p Packet
		r := p.Parse(frame)
		switch r {
		case OK, BadTCPFlags:
		case SCTP:
			p.ParseSCTP(frame)
		case Fragment:
			var f Piece
			f.Parse(frame, &p)
			detect = false
		default:
			if got := unreachable(t, frame, &p, node4); len(got) != 0 {
				t.Fatalf("%v, but answered with %x", r, got)
			}
			detect = false
		}
		if detect && (r != SCTP || p.DstPort != 0) {
			p.DetectPartial(frame)
		}
		from := node4
		if p.IPv6 {
			from = node6
		}
		if r == OK || r == BadTCPFlags {
			checkUnreachable(t, frame, &p)
		}
		checkError(t, frame, &p, timeExceeded(t, frame, &p, from))
		checkError(t, frame, &p, tooBig(t, frame, &p, from, 1300))
		if err := checkReset(frame, &p, reset(t, frame, &p)); err != nil {
			t.Fatal(err)
		}
	})
}

// checkError holds any error against the packet that it answers.
func checkError(t *testing.T, frame []byte, p *Packet, got []byte) {
	t.Helper()
	if len(got) == 0 {
		return
	}
	if p.Src == p.Dst {
		return // land: the quote is not stray, but that is all the luck of it
	}
	var q Packet
	if r := q.Parse(got); r != ICMP && r != ICMPv6 {
		t.Fatalf("the answer is %v to Parse: %x", r, got)
	}
	if q.Dst != p.Src || q.IPv6 != p.IPv6 || int(q.End) != len(got) || int(q.End-q.L3) > map[bool]int{false: 576, true: 1280}[p.IPv6] {
		t.Fatalf("answer %+v to %+v", q, p)
	}
	s := slowSum(got[q.L4:])
	if p.IPv6 {
		s = slowTransport(q.Src, q.Dst, protoICMPv6, got[q.L4:])
	}
	if s != 0xffff {
		t.Fatalf("answer sums to %#04x: %x", s, got)
	}
	quote := got[q.L4+8:]
	if !p.Partial && !bytes.HasPrefix(frame[p.L3:p.End], quote) {
		t.Fatalf("quoted %x\n    of %x", quote, frame)
	}
	// Never an answer to an answer, and what we quote is what we can read.
	if n := BuildTimeExceeded(make([]byte, UnreachableSize), got, &q, q.Dst); n != 0 {
		t.Fatalf("an error was answered: %x", got)
	}
	if p.Proto == protoTCP || p.Proto == protoUDP {
		var quoted Quote
		r := quoted.Parse(got, &q)
		// A first fragment may be too tiny, and a chain too long, to hold the ports.
		if r == OK && (quoted.Src != p.Src || quoted.Dst != p.Dst) || r != OK && r != ShortQuote {
			t.Fatalf("our own answer is %v to us: %+v %x", r, quoted, got)
		}
	}
}
