package nat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"
)

func reset(tb testing.TB, frame []byte, p *Packet) []byte {
	tb.Helper()
	return answer(tb, frame, func(dst []byte) int { return BuildReset(dst, frame, p) })
}

// Segment wants these numbers and flags in a TCP header without options, window or
// data.
func Segment(seq, ack uint32, flags byte) checker {
	return func(f *found) error {
		want := fmt.Sprintf("seq %d ack %d flags %#02x: 50 0000 0000 and 0 bytes", seq, ack, flags)
		got := fmt.Sprintf("seq %d ack %d flags %#02x: %02x %x %x and %d bytes", binary.BigEndian.Uint32(f.l4[4:]), binary.BigEndian.Uint32(f.l4[8:]),
			f.l4[13], f.l4[12], f.l4[14:16], f.l4[18:20], len(f.l4)-20)
		return same("segment", got, want)
	}
}

func TestBuildReset(t *testing.T) {
	const seq = 0x01020304 // of build
	options := []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}}
	for _, c := range []struct {
		name  string
		spec  spec
		seq   uint32
		ack   uint32
		flags byte
	}{
		{"syn", spec{}, 0, seq + 1, 0x14},
		{"syn with options and data", spec{tcp: layers.TCP{SYN: true, Options: options}, payload: number(9)}, 0, seq + 10, 0x14},
		{"syn ack", spec{tcp: layers.TCP{SYN: true, ACK: true, Ack: 77}}, 77, 0, 0x04},
		{"data", spec{tcp: layers.TCP{ACK: true, PSH: true, Ack: 0xfffffffe}, payload: number(100)}, 0xfffffffe, 0, 0x04},
		{"fin", spec{tcp: layers.TCP{FIN: true, ACK: true, Ack: 5}}, 5, 0, 0x04},
		{"fin without ack, tags, padding", spec{tcp: layers.TCP{FIN: true}, payload: number(3), tags: []uint16{1, 2}, padding: 3}, 0, seq + 4, 0x14},
		{"ipv4 options", spec{options: []byte{1, 1, 1, 1}, tos: 0xff}, 0, seq + 1, 0x14},
		{"partial", spec{partial: true}, 0, seq + 1, 0x14},
		{"ipv6 syn", spec{ipv6: true, tos: 0xff}, 0, seq + 1, 0x14},
		{"ipv6 data, extension", spec{ipv6: true, tcp: layers.TCP{ACK: true, Ack: 9}, payload: number(9), ext: []ext{padExt(headerDestination)}}, 9, 0, 0x04},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := build(t, c.spec)
			p := new(Packet)
			p.Parse(frame) // or bad_tcp_flags
			p.DetectPartial(frame)
			got := reset(t, frame, p)
			segment := TCP(SrcPort(frontendPort), DstPort(clientPort), Segment(c.seq, c.ack, c.flags), ChecksumOK)
			if c.spec.ipv6 {
				check(t, got, Ether(nodeMAC, clientMAC, c.spec.tags...), IPv6(SrcAddr(frontend6), DstAddr(client6), TTL(64), TOS(0), Length(60), segment))
			} else {
				check(t, got, Ether(nodeMAC, clientMAC, c.spec.tags...), IPv4(SrcAddr(frontend4), DstAddr(client4), TTL(64), TOS(0), Length(40), segment))
			}
			if n := BuildReset(make([]byte, len(got)-1), frame, p); n != 0 {
				t.Errorf("into a byte too few: %d", n)
			}
		})
	}
}

func TestResetIsNotSent(t *testing.T) {
	for _, c := range []struct {
		name   string
		spec   spec
		change func([]byte) []byte
	}{
		{"to a reset", spec{tcp: layers.TCP{RST: true}}, nil},
		{"to a reset with ack", spec{tcp: layers.TCP{RST: true, ACK: true}}, nil},
		{"to udp", spec{udp: true}, nil},
		{"to sctp", spec{sctp: true}, nil},
		{"to multicast", spec{dst: addr("224.0.0.251")}, nil},
		{"to broadcast", spec{dst: addr("255.255.255.255")}, nil},
		{"to ipv6 multicast", spec{ipv6: true, dst: addr("ff02::fb")}, nil},
		{"to a group mac", spec{}, raw(0, 1)},
		{"from a group mac", spec{}, raw(6, 1)},
		{"from loopback", spec{}, set(12, 127)},
		{"checksum wrong", spec{}, raw(50, 1, 2)},
		{"partial, but not looked for", spec{partial: true}, nil},
		{"first fragment", spec{payload: number(99)}, func(f []byte) []byte { return fragments(t, f, 48, 1, 0)[0] }},
		{"tiny fragment", spec{payload: number(99)}, func(f []byte) []byte { return fragments(t, f, 8, 1, 0)[0] }},
		{"later fragment", spec{payload: number(99)}, func(f []byte) []byte { return fragments(t, f, 48, 1, 0)[1] }},
		{"ipv6 fragment", spec{ipv6: true, payload: number(99)}, func(f []byte) []byte { return fragments(t, f, 48, 1, 0)[0] }},
		{"data offset", spec{}, raw(46, 0x60)},
	} {
		frame := build(t, c.spec)
		if c.change != nil {
			frame = c.change(frame)
		}
		var p Packet
		r := p.Parse(frame)
		if got := reset(t, frame, &p); len(got) != 0 {
			t.Errorf("%s: answered with %x", c.name, got)
		}
		var f Piece
		if r == Fragment && f.Parse(frame, &p) == OK {
			if got := reset(t, frame, &p); len(got) != 0 {
				t.Errorf("%s, parsed: answered with %x", c.name, got)
			}
		}
	}
}

func TestResetProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := drawSpec(rt)
		s.udp, s.noChecksum = false, false
		frame := build(t, s)
		var p Packet
		p.Parse(frame)
		p.DetectPartial(frame)
		if err := checkReset(frame, &p, reset(t, frame, &p)); err != nil {
			rt.Fatal(err)
		}
	})
}

// checkReset holds a reset against RFC 9293 section 3.10.7.1.
func checkReset(frame []byte, p *Packet, got []byte) error {
	if p.TCPFlags&0x04 != 0 {
		if len(got) != 0 {
			return fmt.Errorf("a reset was reset")
		}
		return nil
	}
	if len(got) == 0 {
		return nil // others say when
	}
	var q Packet
	if r := q.Parse(got); r != OK || q.Src != p.Dst || q.Dst != p.Src || q.SrcPort != p.DstPort || q.DstPort != p.SrcPort || q.Proto != protoTCP || int(q.End) != len(got) {
		return fmt.Errorf("answer %v %+v to %+v", r, q, p)
	}
	if s := slowTransport(q.Src, q.Dst, protoTCP, got[q.L4:]); s != 0xffff {
		return fmt.Errorf("answer sums to %#04x", s)
	}
	in, out := frame[p.L4:p.End], got[q.L4:]
	if p.TCPFlags&0x10 != 0 {
		if q.TCPFlags != 0x04 || !bytes.Equal(out[4:8], in[8:12]) {
			return fmt.Errorf("answer %x to %x", out, in)
		}
		return nil
	}
	want := binary.BigEndian.Uint32(in[4:]) + uint32(len(in)) - uint32(in[12]>>4)*4 + uint32(p.TCPFlags&1) + uint32(p.TCPFlags>>1&1)
	if q.TCPFlags != 0x14 || binary.BigEndian.Uint32(out[4:]) != 0 || binary.BigEndian.Uint32(out[8:]) != want {
		return fmt.Errorf("answer %x to %x, want ack %d", out, in, want)
	}
	return nil
}
