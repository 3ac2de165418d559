package nat

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name string
		spec spec
		want Packet
	}{
		{"tcp4", spec{}, Packet{Src: client4, Dst: frontend4, SrcPort: clientPort, DstPort: frontendPort, L3: 14, L4: 34, End: 54, Proto: 6, TTL: 64, TCPFlags: 0x02}},
		{"tcp4 payload", spec{tcp: layers.TCP{ACK: true, PSH: true}, payload: make([]byte, 100), ttl: 1}, Packet{Src: client4, Dst: frontend4, SrcPort: clientPort, DstPort: frontendPort, L3: 14, L4: 34, End: 154, Proto: 6, TTL: 1, TCPFlags: 0x18}},
		{"udp4", spec{udp: true, payload: []byte("odd")}, Packet{Src: client4, Dst: frontend4, SrcPort: clientPort, DstPort: frontendPort, L3: 14, L4: 34, End: 45, Proto: 17, TTL: 64}},
		{"udp4 empty, padded", spec{udp: true, padding: 18}, Packet{Src: client4, Dst: frontend4, SrcPort: clientPort, DstPort: frontendPort, L3: 14, L4: 34, End: 42, Proto: 17, TTL: 64}},
		{"udp4 options", spec{udp: true, options: []byte{1, 1, 1, 0}}, Packet{Src: client4, Dst: frontend4, SrcPort: clientPort, DstPort: frontendPort, L3: 14, L4: 38, End: 46, Proto: 17, TTL: 64}},
		{"tcp4 longest options", spec{options: bytes.Repeat([]byte{1}, 40)}, Packet{Src: client4, Dst: frontend4, SrcPort: clientPort, DstPort: frontendPort, L3: 14, L4: 74, End: 94, Proto: 6, TTL: 64, TCPFlags: 0x02}},
		{"tcp4 tagged", spec{tags: []uint16{0}}, Packet{Src: client4, Dst: frontend4, SrcPort: clientPort, DstPort: frontendPort, L3: 18, L4: 38, End: 58, Proto: 6, TTL: 64, TCPFlags: 0x02}},
		{"tcp4 two tags", spec{tags: []uint16{7, 9}}, Packet{Src: client4, Dst: frontend4, SrcPort: clientPort, DstPort: frontendPort, L3: 22, L4: 42, End: 62, Proto: 6, TTL: 64, TCPFlags: 0x02}},
		{"tcp6", spec{ipv6: true}, Packet{Src: client6, Dst: frontend6, SrcPort: clientPort, DstPort: frontendPort, L3: 14, L4: 54, End: 74, Proto: 6, TTL: 64, TCPFlags: 0x02, IPv6: true}},
		{"udp6 tagged", spec{ipv6: true, udp: true, tags: []uint16{4}}, Packet{Src: client6, Dst: frontend6, SrcPort: clientPort, DstPort: frontendPort, L3: 18, L4: 58, End: 66, Proto: 17, TTL: 64, IPv6: true}},
		{"udp6 hop-by-hop, destination", spec{ipv6: true, udp: true, ext: []ext{padExt(headerHopByHop), padExt(headerDestination)}}, Packet{Src: client6, Dst: frontend6, SrcPort: clientPort, DstPort: frontendPort, L3: 14, L4: 70, End: 78, Proto: 17, TTL: 64, IPv6: true}},
		{"tcp6 long destination header", spec{ipv6: true, ext: []ext{{headerDestination, make([]byte, 38)}}}, Packet{Src: client6, Dst: frontend6, SrcPort: clientPort, DstPort: frontendPort, L3: 14, L4: 94, End: 114, Proto: 6, TTL: 64, TCPFlags: 0x02, IPv6: true}},
		{"tcp6 routing header at its end", spec{ipv6: true, ext: []ext{{headerRouting, []byte{4, 0, 0, 0, 0, 0}}}}, Packet{Src: client6, Dst: frontend6, SrcPort: clientPort, DstPort: frontendPort, L3: 14, L4: 62, End: 82, Proto: 6, TTL: 64, TCPFlags: 0x02, IPv6: true}},
		{"tcp6 eight extensions", spec{ipv6: true, ext: repeat(padExt(headerDestination), 8)}, Packet{Src: client6, Dst: frontend6, SrcPort: clientPort, DstPort: frontendPort, L3: 14, L4: 118, End: 138, Proto: 6, TTL: 64, TCPFlags: 0x02, IPv6: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := build(t, c.spec)
			before := bytes.Clone(frame)
			var got Packet
			if r := got.Parse(frame); r != OK || got != c.want {
				t.Errorf("Parse(%x)\n got %v %+v\nwant ok %+v", frame, r, got, c.want)
			}
			if !bytes.Equal(frame, before) {
				t.Errorf("Parse changed the frame\n got %x\nwant %x", frame, before)
			}
		})
	}
}

func repeat(e ext, n int) []ext {
	var all []ext
	for range n {
		all = append(all, e)
	}
	return all
}

// breakIP applies a change to the IP packet and makes the header checksum right
// again, so that only the change itself can be the reason.
func breakIP(change func(packet []byte)) func([]byte) []byte {
	return func(frame []byte) []byte {
		change(frame[etherLen:])
		if frame[12] == 0x08 {
			fixHeader(frame[etherLen:])
		}
		return frame
	}
}

func set(at int, values ...byte) func([]byte) []byte {
	return breakIP(func(packet []byte) { copy(packet[at:], values) })
}

func raw(at int, values ...byte) func([]byte) []byte {
	return func(frame []byte) []byte { copy(frame[at:], values); return frame }
}

func TestParseRefuses(t *testing.T) {
	hop := func(body ...byte) []ext { return []ext{{headerHopByHop, body}} }
	for _, c := range []struct {
		name   string
		spec   spec
		change func([]byte) []byte
		want   Reason
	}{
		{"nothing", spec{}, func(f []byte) []byte { return nil }, ShortFrame},
		{"broadcast mac", spec{}, raw(0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), GroupMAC},
		{"multicast mac", spec{}, raw(0, 0x01, 0, 0x5e, 0, 0, 1), GroupMAC},
		{"arp", spec{}, raw(12, 0x08, 0x06), NotIP},
		{"mpls", spec{}, raw(12, 0x88, 0x47), NotIP},
		{"ethertype 0", spec{}, raw(12, 0, 0), NotIP},
		{"802.3 length", spec{}, raw(12, 0, 40), NotIP},
		{"old QinQ ethertype", spec{}, raw(12, 0x91, 0x00), NotIP},
		{"snap behind vlan 0", spec{tags: []uint16{0}}, raw(16, 0, 40), NotIP},
		{"three tags", spec{tags: []uint16{1, 2, 3}}, nil, ThirdTag},
		{"ipv6 as ipv4", spec{}, raw(14, 0x65), BadVersion},
		{"ipv4 as ipv6", spec{ipv6: true}, raw(14, 0x45), BadVersion},
		{"version 0", spec{}, set(0, 0x05), BadVersion},
		{"ihl 0", spec{}, set(0, 0x40), BadHeaderLength},
		{"ihl 4", spec{}, set(0, 0x44), BadHeaderLength},
		{"ihl 11 of 40 bytes", spec{}, set(0, 0x4b), BadHeaderLength},
		{"ihl 15 of 40 bytes", spec{}, set(0, 0x4f), BadHeaderLength},
		{"ihl 15 of 40 bytes, padded", spec{padding: 40}, set(0, 0x4f), BadHeaderLength},
		{"total length 0", spec{}, set(2, 0, 0), BadHeaderLength},
		{"total length 19", spec{}, set(2, 0, 19), BadHeaderLength},
		{"total length 20", spec{}, set(2, 0, 20), ShortHeader},
		{"total length one too few", spec{}, set(2, 0, 39), ShortHeader},
		{"total length one too many", spec{}, set(2, 0, 41), Truncated},
		{"total length 65535", spec{}, set(2, 0xff, 0xff), Truncated},
		{"ends past 65535", spec{udp: true, payload: make([]byte, 65535-28)}, nil, Oversize},
		{"header checksum", spec{}, raw(24, 0x12, 0x34), BadHeaderChecksum},
		{"header checksum, its other zero", spec{}, otherZero, OK},
		{"first fragment", spec{}, set(6, 0x20, 0), Fragment},
		{"middle fragment", spec{}, set(6, 0x20, 1), Fragment},
		{"last fragment", spec{}, set(6, 0x1f, 0xff), Fragment},
		{"source 0/8", spec{}, set(12, 0, 0, 0, 0), MartianSource},
		{"source loopback", spec{}, set(12, 127, 0, 0, 1), MartianSource},
		{"source multicast", spec{}, set(12, 224, 0, 0, 1), MartianSource},
		{"source 239/8", spec{}, set(12, 239, 1, 2, 3), MartianSource},
		{"source broadcast", spec{}, set(12, 255, 255, 255, 255), MartianSource},
		{"icmp", spec{}, set(9, 1), ICMP},
		{"sctp", spec{}, set(9, 132), SCTP},
		{"gre", spec{}, set(9, 47), OtherProtocol},
		{"ipip", spec{}, set(9, 4), OtherProtocol},
		{"esp", spec{}, set(9, 50), OtherProtocol},
		{"udp-lite", spec{}, set(9, 136), OtherProtocol},
		{"icmpv6 over ipv4", spec{}, set(9, 58), OtherProtocol},
		{"protocol 255", spec{}, set(9, 255), OtherProtocol},
		{"tcp data offset 0", spec{}, set(32, 0x00), BadDataOffset},
		{"tcp data offset 4", spec{}, set(32, 0x40), BadDataOffset},
		{"tcp data offset past the end", spec{}, set(32, 0x60), BadDataOffset},
		{"tcp data offset into padding", spec{padding: 8}, set(32, 0x60), BadDataOffset},
		{"tcp null", spec{}, set(33, 0x00), BadTCPFlags},
		{"tcp xmas", spec{}, set(33, 0x29), BadTCPFlags},
		{"tcp syn fin", spec{}, set(33, 0x03), BadTCPFlags},
		{"tcp syn rst", spec{}, set(33, 0x06), BadTCPFlags},
		{"tcp fin without ack", spec{}, set(33, 0x01), BadTCPFlags},
		{"tcp all", spec{}, set(33, 0xff), BadTCPFlags},
		{"udp length 0", spec{udp: true}, set(24, 0, 0), BadUDPLength},
		{"udp length 7", spec{udp: true}, set(24, 0, 7), BadUDPLength},
		{"udp length too long", spec{udp: true}, set(24, 0, 9), BadUDPLength},
		{"udp length too long, padded", spec{udp: true, padding: 10}, set(24, 0, 9), BadUDPLength},
		{"udp length too short", spec{udp: true, payload: []byte{1, 2}}, set(24, 0, 9), OK},
		{"ipv6 payload length too long", spec{ipv6: true}, set(4, 0, 21), Truncated},
		{"ipv6 payload length 0", spec{ipv6: true}, set(4, 0, 0), ShortHeader},
		{"ipv6 payload length too short", spec{ipv6: true}, set(4, 0, 19), ShortHeader},
		{"ipv6 ends past 65535", spec{ipv6: true, udp: true, payload: make([]byte, 65535-8)}, nil, Oversize},
		{"ipv6 jumbogram", spec{ipv6: true, ext: hop(0xc2, 4, 0, 1, 0, 0)}, set(4, 0, 0), BadExtension},
		{"ipv6 fragment", spec{ipv6: true, ext: []ext{{headerFragment, []byte{0, 1, 0, 0, 0, 9}}}}, nil, Fragment},
		{"ipv6 atomic fragment", spec{ipv6: true, ext: []ext{{headerFragment, make([]byte, 6)}}}, nil, Fragment},
		{"ipv6 fragment behind options", spec{ipv6: true, ext: []ext{padExt(headerDestination), {headerFragment, make([]byte, 6)}}}, nil, Fragment},
		{"ipv6 icmpv6", spec{ipv6: true}, set(6, 58), ICMPv6},
		{"ipv6 icmp", spec{ipv6: true}, set(6, 1), OtherProtocol},
		{"ipv6 sctp", spec{ipv6: true}, set(6, 132), SCTP},
		{"ipv6 ah", spec{ipv6: true}, set(6, 51), OtherProtocol},
		{"ipv6 esp", spec{ipv6: true}, set(6, 50), OtherProtocol},
		{"ipv6 no next header", spec{ipv6: true}, set(6, 59), OtherProtocol},
		{"ipv6 nine extensions", spec{ipv6: true, ext: repeat(padExt(headerDestination), 9)}, nil, LongChain},
		{"ipv6 extension past the packet", spec{ipv6: true, ext: []ext{padExt(headerDestination)}}, set(41, 3), BadExtension},
		{"ipv6 extension cut", spec{ipv6: true, ext: []ext{padExt(headerDestination)}}, set(4, 0, 7), BadExtension},
		{"ipv6 second hop-by-hop", spec{ipv6: true, ext: repeat(padExt(headerHopByHop), 2)}, nil, OK},
		{"ipv6 hop-by-hop behind another header", spec{ipv6: true, ext: []ext{padExt(headerDestination), {headerHopByHop, []byte{0x5e, 4, 0, 0, 0, 0}}}}, nil, OK},
		{"ipv6 routing header, segments left", spec{ipv6: true, ext: []ext{{headerRouting, []byte{4, 1, 0, 0, 0, 0}}}}, nil, OK},
		{"ipv6 hop-by-hop: unknown, to be dropped", spec{ipv6: true, ext: hop(0x5e, 4, 0, 0, 0, 0)}, nil, BadOption},
		{"ipv6 hop-by-hop: unknown, to be dropped and told", spec{ipv6: true, ext: hop(0x9e, 4, 0, 0, 0, 0)}, nil, BadOption},
		{"ipv6 hop-by-hop: jumbo payload", spec{ipv6: true, ext: hop(0xc2, 4, 0, 1, 0, 0)}, nil, BadOption},
		{"ipv6 hop-by-hop: unknown, to be skipped", spec{ipv6: true, ext: hop(0x1e, 4, 9, 9, 9, 9)}, nil, OK},
		{"ipv6 hop-by-hop: option too long", spec{ipv6: true, ext: hop(0x1e, 5, 0, 0, 0, 0)}, nil, BadOption},
		{"ipv6 hop-by-hop: no length", spec{ipv6: true, ext: hop(1, 3, 0, 0, 0, 0x1e)}, nil, BadOption},
		{"ipv6 hop-by-hop: padding not zero", spec{ipv6: true, ext: hop(1, 4, 0, 0, 0, 1)}, nil, BadOption},
		{"ipv6 hop-by-hop: too much padding", spec{ipv6: true, ext: hop(1, 4, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0)}, nil, BadOption},
		{"ipv6 hop-by-hop: padding here and there", spec{ipv6: true, ext: hop(1, 2, 0, 0, 0x1e, 1, 9, 1, 5, 0, 0, 0, 0, 0)}, nil, OK},
		{"ipv6 hop-by-hop: eight single pads", spec{ipv6: true, ext: hop(0x1e, 0, 0x1e, 0, 0x1e, 0, 0, 0, 0, 0, 0, 0, 0, 0)}, nil, BadOption},
		{"ipv6 hop-by-hop: nine options", spec{ipv6: true, ext: hop(0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0)}, nil, BadOption},
		{"ipv6 source unspecified", spec{ipv6: true, src: addr("::")}, func(f []byte) []byte { clear(f[22:38]); return f }, MartianSource},
		{"ipv6 source loopback", spec{ipv6: true, src: addr("::1")}, nil, MartianSource},
		{"ipv6 source link-local", spec{ipv6: true, src: addr("fe80::1")}, nil, MartianSource},
		{"ipv6 source link-local, last", spec{ipv6: true, src: addr("febf::1")}, nil, MartianSource},
		{"ipv6 source site-local", spec{ipv6: true, src: addr("fec0::1")}, nil, OK},
		{"ipv6 source multicast", spec{ipv6: true, src: addr("ff02::1")}, nil, MartianSource},
		{"ipv6 source compatible", spec{ipv6: true, src: addr("::2")}, nil, OK},
		{"ipv6 source mapped", spec{ipv6: true}, raw(22, client4[:]...), MappedAddress},
		{"ipv6 destination mapped", spec{ipv6: true}, raw(38, frontend4[:]...), MappedAddress},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := build(t, c.spec)
			if c.change != nil {
				frame = c.change(frame)
			}
			before := bytes.Clone(frame)
			var p Packet
			if got := p.Parse(frame); got != c.want {
				t.Errorf("Parse(%.100x) = %v, want %v", frame, got, c.want)
			}
			if leaves>>c.want&1 == 0 && p != (Packet{}) {
				t.Errorf("refused as %v, but left %+v", c.want, p)
			}
			if c.want == BadTCPFlags && (p.L4 != 34 || p.SrcPort != clientPort) {
				t.Errorf("refused as %v without the packet: %+v", c.want, p)
			}
			if !bytes.Equal(frame, before) {
				t.Errorf("Parse changed the frame\n got %x\nwant %x", frame, before)
			}
		})
	}
}

// What a router must see is parsed like any other packet, and marked.
func TestParseForRouter(t *testing.T) {
	hop := func(body ...byte) spec { return spec{ipv6: true, ext: []ext{{headerHopByHop, body}}} }
	for _, c := range []struct {
		name string
		spec spec
		want bool
	}{
		{"no options", spec{}, false},
		{"nothing, forty times", spec{options: bytes.Repeat([]byte{1}, 40)}, false},
		{"an end, four times", spec{options: make([]byte, 4)}, false},
		{"security", spec{options: []byte{130, 4, 1, 2}}, false},
		{"stream", spec{options: []byte{136, 4, 1, 2}}, false},
		{"unknown", spec{options: []byte{158, 4, 1, 2}}, false},
		{"length 0", spec{options: []byte{0x82, 0, 0, 0}}, true},
		{"length 1", spec{options: []byte{0x82, 1, 0, 0}}, true},
		{"length past the header", spec{options: []byte{0x82, 5, 0, 0}}, true},
		{"no length", spec{options: []byte{1, 1, 1, 0x82}}, true},
		{"rubbish after the end", spec{options: []byte{1, 0, 0, 1}}, true},
		{"record route", spec{options: []byte{7, 3, 4, 0}}, true},
		{"timestamp", spec{options: []byte{68, 4, 5, 0}}, true},
		{"loose route", spec{options: []byte{131, 3, 4, 0}}, true},
		{"strict route", spec{options: []byte{1, 137, 3, 4}}, true},
		{"router alert", spec{options: []byte{148, 4, 0, 0}}, true},
		{"cipso", spec{options: []byte{134, 4, 0, 0}}, true},
		{"hop-by-hop: padding", hop(1, 4, 0, 0, 0, 0), false},
		{"hop-by-hop: unknown, to be skipped", hop(0x1e, 4, 0, 0, 0, 0), false},
		{"hop-by-hop: router alert", hop(5, 2, 0, 0, 1, 0), true},
		{"hop-by-hop: ioam", hop(0x31, 4, 0, 0, 0, 0), true},
		{"hop-by-hop: calipso", hop(7, 4, 0, 0, 0, 0), true},
		{"router alert behind another header", spec{ipv6: true, ext: []ext{padExt(headerDestination), {headerHopByHop, []byte{5, 2, 0, 0, 1, 0}}}}, false},
	} {
		frame := build(t, c.spec)
		var p Packet
		if r := p.Parse(frame); r != OK || p.Router != c.want || p.SrcPort != clientPort {
			t.Errorf("%s: %v, for a router %v, want %v: %+v", c.name, r, p.Router, c.want, p)
		}
		frame = build(t, c.spec)
		if c.spec.ipv6 {
			continue
		}
		frame[etherLen+9] = protoICMP
		fixHeader(frame[etherLen:])
		if r := p.Parse(frame); r != ICMP || p.Router != c.want {
			t.Errorf("%s, of ICMP: %v, for a router %v, want %v", c.name, r, p.Router, c.want)
		}
	}
}

// otherZero writes a header checksum that is right only in the other zero of one's
// complement, 0xffff for 0x0000. ip_fast_csum takes both.
func otherZero(frame []byte) []byte {
	h := frame[etherLen:]
	clear(h[4:6])
	clear(h[10:12])
	binary.BigEndian.PutUint16(h[4:], ^slowSum(h[:ipv4Len]))
	copy(h[10:], []byte{0xff, 0xff})
	return frame
}

// Every header check of every kind of packet at every length of frame: nothing
// panics, nothing is accepted that is not there, and nothing is written.
func TestParseTruncations(t *testing.T) {
	icmp := func(ipv6 bool) []byte {
		f := build(t, spec{ipv6: ipv6, udp: true, payload: make([]byte, 4)})
		if ipv6 {
			return breakIP(func(b []byte) { b[6] = protoICMPv6 })(f)
		}
		return breakIP(func(b []byte) { b[9] = protoICMP })(f)
	}
	vectors := 0
	for _, c := range []struct {
		name    string
		frame   []byte
		headers int
		whole   Reason
	}{
		{"tcp4", build(t, spec{payload: make([]byte, 4)}), 54, OK},
		{"udp4", build(t, spec{udp: true, payload: make([]byte, 4)}), 42, OK},
		{"icmp4", icmp(false), 42, ICMP},
		{"tcp6", build(t, spec{ipv6: true, payload: make([]byte, 4)}), 74, OK},
		{"udp6", build(t, spec{ipv6: true, udp: true, payload: make([]byte, 4)}), 62, OK},
		{"icmp6", icmp(true), 62, ICMPv6},
		{"tcp4 tagged, options", build(t, spec{tags: []uint16{1, 2}, options: []byte{1, 1, 1, 1}, payload: make([]byte, 4)}), 66, OK},
		{"tcp6 extension", build(t, spec{ipv6: true, ext: []ext{padExt(headerDestination)}, payload: make([]byte, 4)}), 82, OK},
	} {
		for n := 0; n <= c.headers+4; n++ {
			vectors++
			// Once with the lengths as they were, once with lengths that agree with the cut.
			for _, honest := range []bool{false, true} {
				frame := bytes.Clone(c.frame[:n:n])
				if honest {
					fixLengths(frame)
				}
				before := bytes.Clone(frame)
				var p Packet
				got := p.Parse(frame)
				if !bytes.Equal(frame, before) {
					t.Fatalf("%s cut to %d: frame changed", c.name, n)
				}
				whole := n == c.headers+4
				if whole && got != c.whole {
					t.Errorf("%s whole: Parse = %v, want %v", c.name, got, c.whole)
				}
				// UDP says its own length, which a cut makes a lie; TCP's payload may shrink.
				mayPass := honest && n >= c.headers && p.Proto == protoTCP
				if !whole && got == OK && !mayPass {
					t.Errorf("%s cut to %d (lengths fixed: %v): accepted as %+v", c.name, n, honest, p)
				}
				if got == OK && (int(p.End) != n || int(p.L4) >= n) {
					t.Errorf("%s cut to %d: accepted with End %d", c.name, n, p.End)
				}
			}
		}
	}
	t.Logf("%d truncations", vectors)
}

// fixLengths makes the IP lengths of a cut frame agree with the cut.
func fixLengths(frame []byte) {
	l3, etherType := etherLen, uint16(0)
	if len(frame) >= etherLen {
		etherType = binary.BigEndian.Uint16(frame[12:])
	}
	for (etherType == etherVLAN || etherType == etherQinQ) && len(frame) >= l3+tagLen {
		etherType = binary.BigEndian.Uint16(frame[l3+2:])
		l3 += tagLen
	}
	switch {
	case etherType == etherIPv4 && len(frame) >= l3+ipv4Len:
		binary.BigEndian.PutUint16(frame[l3+2:], uint16(len(frame)-l3))
		fixHeader(frame[l3:])
	case etherType == etherIPv6 && len(frame) >= l3+ipv6Len:
		binary.BigEndian.PutUint16(frame[l3+4:], uint16(len(frame)-l3-ipv6Len))
	}
}

// The bitmap against the kernel's table, written out.
func TestTCPFlagsAreTheKernels(t *testing.T) {
	const fin, syn, rst, psh, ack, urg, ece, cwr = 1, 2, 4, 8, 16, 32, 64, 128
	valid := map[uint8]bool{
		syn: true, syn | urg: true, syn | ack: true, rst: true, rst | ack: true, fin | ack: true,
		fin | ack | urg: true, ack: true, ack | urg: true,
	}
	frame := build(t, spec{})
	for flags := 0; flags < 256; flags++ {
		frame[14+20+tcpFlagsAt] = byte(flags)
		want := BadTCPFlags
		if valid[uint8(flags)&^uint8(psh|ece|cwr)] {
			want = OK
		}
		var p Packet
		if got := p.Parse(frame); got != want || p.TCPFlags != uint8(flags) {
			t.Errorf("flags %#02x: Parse = %v, flags %#02x; want %v", flags, got, p.TCPFlags, want)
		}
	}
}

// What we accept, gopacket decodes to the same packet.
func checkAgainstGopacket(t interface {
	Helper()
	Fatalf(string, ...any)
}, frame []byte, p *Packet) {
	t.Helper()
	if p.Router && !p.IPv6 {
		// gopacket takes no packet with options that are wrong.
		frame = bytes.Clone(frame)
		for i := int(p.L3) + ipv4Len; i < int(p.L4); i++ {
			frame[i] = 1
		}
	}
	g := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	var src, dst []byte
	var ttl, proto uint8
	end := int(p.End)
	switch n := g.NetworkLayer().(type) {
	case *layers.IPv4:
		src, dst, ttl, proto = n.SrcIP.To16(), n.DstIP.To16(), n.TTL, uint8(n.Protocol)
		if p.IPv6 || end != int(p.L3)+int(n.Length) || int(p.L4) != int(p.L3)+int(n.IHL)*4 {
			t.Fatalf("offsets %+v, gopacket has %+v", p, n)
		}
	case *layers.IPv6:
		src, dst, ttl = n.SrcIP, n.DstIP, n.HopLimit
		if !p.IPv6 || end != int(p.L3)+40+int(n.Length) {
			t.Fatalf("offsets %+v, gopacket has %+v", p, n)
		}
		proto = p.Proto // behind the extension headers, of which gopacket knows fewer
		if p.L4-p.L3 == ipv6Len {
			proto = uint8(n.NextHeader)
		}
	default:
		t.Fatalf("accepted as %+v, gopacket sees no network layer: %v", p, g)
	}
	if !bytes.Equal(src, p.Src[:]) || !bytes.Equal(dst, p.Dst[:]) || ttl != p.TTL || proto != p.Proto {
		t.Fatalf("accepted as %+v, gopacket has %v > %v ttl %d proto %d", p, src, dst, ttl, proto)
	}
	// gopacket stops at extension headers that it does not like (a second
	// destination header is decoded, a routing header of a new type is not), so the transport is
	// decoded on its own, from where we say that it is.
	kind := layers.LayerTypeTCP
	if p.Proto == protoUDP {
		kind = layers.LayerTypeUDP
	}
	l4 := frame[p.L4:p.End]
	switch n := gopacket.NewPacket(l4, kind, gopacket.NoCopy).TransportLayer().(type) {
	case *layers.TCP:
		if uint16(n.SrcPort) != p.SrcPort || uint16(n.DstPort) != p.DstPort || n.Contents[tcpFlagsAt] != p.TCPFlags ||
			len(n.Contents)+len(n.Payload) != len(l4) {
			t.Fatalf("accepted as %+v, gopacket has %+v", p, n)
		}
	case *layers.UDP:
		if uint16(n.SrcPort) != p.SrcPort || uint16(n.DstPort) != p.DstPort || int(n.Length) > len(l4) {
			t.Fatalf("accepted as %+v, gopacket has %+v", p, n)
		}
	default:
		// TCP options that lie are the end host's business, not ours.
		if p.Proto != protoTCP {
			t.Fatalf("accepted as %+v, gopacket sees no transport", p)
		}
	}
}

// drawSpec draws a packet that Parse accepts.
func drawSpec(t *rapid.T) spec {
	s := spec{
		ipv6:    rapid.Bool().Draw(t, "ipv6"),
		udp:     rapid.Bool().Draw(t, "udp"),
		tags:    rapid.SliceOfN(rapid.Uint16Max(4095), 0, 2).Draw(t, "tags"),
		payload: rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "payload"),
		sport:   rapid.Uint16Min(1).Draw(t, "sport"),
		dport:   rapid.Uint16Min(1).Draw(t, "dport"),
		ttl:     rapid.Uint8Min(1).Draw(t, "ttl"),
		tos:     rapid.Uint8().Draw(t, "tos"),
		padding: rapid.IntRange(0, 20).Draw(t, "padding"),
	}
	s.src, s.dst = drawAddr(t, s.ipv6, "src"), drawAddr(t, s.ipv6, "dst")
	switch rapid.IntRange(0, 3).Draw(t, "flags") {
	case 0:
		s.tcp.SYN = true
	case 1:
		s.tcp.ACK, s.tcp.PSH = true, true
	case 2:
		s.tcp.FIN, s.tcp.ACK = true, true
	case 3:
		s.tcp.RST = true
	}
	if rapid.Bool().Draw(t, "tcp options") {
		s.tcp.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}}
	}
	if s.ipv6 {
		if rapid.Bool().Draw(t, "hop-by-hop") {
			s.ext = append(s.ext, padExt(headerHopByHop))
		}
		for range rapid.IntRange(0, 2).Draw(t, "destination headers") {
			s.ext = append(s.ext, ext{headerDestination, rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "body")})
		}
	} else {
		s.options = bytes.Repeat([]byte{1}, 4*rapid.IntRange(0, 10).Draw(t, "options"))
	}
	switch rapid.IntRange(0, 2).Draw(t, "checksum") {
	case 1:
		s.noChecksum = s.udp
	case 2:
		s.partial = true
	}
	return s
}

// drawAddr draws an address that may be a source.
func drawAddr(t *rapid.T, ipv6 bool, label string) [16]byte {
	b := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label)
	a := [16]byte(b)
	if ipv6 {
		a[0] = 0x20 | a[0]&0x0f
		return a
	}
	copy(a[:], client4[:12])
	a[12] = 198 - a[12]%8
	return a
}

func TestParseAgreesWithGopacket(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := drawSpec(rt)
		frame := build(t, s)
		var p Packet
		if r := p.Parse(frame); r != OK {
			rt.Fatalf("Parse(%x) = %v, want ok", frame, r)
		}
		if p.Src != s.src || p.Dst != s.dst || p.SrcPort != s.sport || p.DstPort != s.dport || p.IPv6 != s.ipv6 || int(p.End) != len(frame)-s.padding {
			rt.Fatalf("Parse(%x) = %+v, built from %+v", frame, p, s)
		}
		checkAgainstGopacket(rt, frame, &p)
	})
}

func FuzzParse(f *testing.F) {
	for _, frame := range seeds(f) {
		f.Add(frame, true)
	}
	f.Fuzz(func(t *testing.T, frame []byte, repair bool) {
		if repair {
			frame = repaired(frame)
		}
		before := bytes.Clone(frame)
		var p Packet
		r := p.Parse(frame)
		if !bytes.Equal(frame, before) {
			t.Fatal("Parse changed the frame")
		}
		if r >= NumReasons {
			t.Fatalf("Parse = %d", r)
		}
		if r != OK && r != BadTCPFlags {
			if leaves>>r&1 == 0 && p != (Packet{}) {
				t.Fatalf("refused as %v, but left %+v", r, p)
			}
			return
		}
		// The packet is whole: cut anywhere, it is refused; padded, it is the same.
		var q Packet
		if p.End > 0 {
			if r := q.Parse(frame[: p.End-1 : p.End-1]); r == OK {
				t.Fatalf("accepted with its last byte cut off: %+v", q)
			}
		}
		if got := q.Parse(append(before, 0xff)); got != r || q != p {
			t.Fatalf("padded by a byte: %v %+v, want %v %+v", got, q, r, p)
		}
		checkAgainstGopacket(t, frame, &p)
	})
}

// seeds are frames for the fuzz targets to start from: one of each kind.
func seeds(tb testing.TB) [][]byte {
	return [][]byte{
		build(tb, spec{}),
		build(tb, spec{udp: true, payload: []byte("x"), padding: 17}),
		build(tb, spec{udp: true, noChecksum: true, tags: []uint16{7}}),
		build(tb, spec{options: []byte{1, 1, 0, 0}, tcp: layers.TCP{ACK: true, PSH: true}, payload: []byte("GET /")}),
		build(tb, spec{partial: true, tags: []uint16{1, 2}}),
		build(tb, spec{ipv6: true}),
		build(tb, spec{ipv6: true, udp: true, partial: true}),
		build(tb, spec{ipv6: true, udp: true, payload: []byte("odd"), ext: []ext{padExt(headerHopByHop), {headerRouting, make([]byte, 6)}, padExt(headerDestination)}}),
		build(tb, spec{ipv6: true, ext: []ext{{headerFragment, make([]byte, 6)}}}),
		breakIP(func(b []byte) { b[9] = protoICMP })(build(tb, spec{udp: true})),
	}
}
