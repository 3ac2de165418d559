package nat

import (
	"encoding/binary"
	"math/bits"
)

// The order of Parse: Ethernet and its tags, the IP header with its length,
// checksum and options, then TCP or UDP. Every length is compared once with what
// holds it; what follows indexes slices cut to that length. What Parse names and
// leaves goes on in files of its own: SCTP (sctp.go), ICMP errors (quote.go) and
// fragments (fragment.go).

const (
	etherLen  = 14
	tagLen    = 4
	ipv4Len   = 20
	ipv6Len   = 40
	tcpLen    = 20
	udpLen    = 8
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherVLAN = 0x8100 // IEEE 802.1Q
	etherQinQ = 0x88a8 // IEEE 802.1ad
	maxTags   = 2

	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132

	headerHopByHop    = 0
	headerRouting     = 43
	headerFragment    = 44
	headerDestination = 60

	// RFC 8200 section 4.1 names four extension headers that may stand before TCP
	// and need no fragment or security header; twice that is a chain nobody sends.
	maxExtensions = 8

	tcpFlagsAt    = 13
	tcpChecksumAt = 16
	udpChecksumAt = 6
)

// Packet is what Parse found in one frame, and what Rewrite keeps true of it. It
// holds offsets only, and is good for that frame alone. The worker that received
// the frame owns it.
type Packet struct {
	Src, Dst         [16]byte // IPv4 as ::ffff:a.b.c.d
	SrcPort, DstPort uint16   // host order

	L3  uint16 // offset of the IP header; what stands before is Ethernet and its tags
	L4  uint16 // offset of the transport header
	End uint16 // offset just past the IP packet; the rest of the frame is padding

	Proto    uint8
	TTL      uint8 // or hop limit
	TCPFlags uint8 // byte 13 of the TCP header, otherwise 0
	Chunk    uint8 // type of the first SCTP chunk, otherwise 0
	IPv6     bool

	// Partial says that nobody has computed the transport checksum yet: its field
	// holds only the pseudo header's sum, or for SCTP nothing. DetectPartial sets it,
	// and a device further on, or Complete, has to finish it.
	Partial bool

	// Router says that the IP header carries what a router must act on, mend or drop:
	// IPv4 options or a hop-by-hop option. The packet can be rewritten like any other,
	// but whoever sends it on has to be a router, that is the node's kernel.
	Router bool
}

// leaves has a bit for each reason with which Parse leaves something in p.
const leaves uint64 = 1<<OK | 1<<BadTCPFlags | 1<<Fragment | 1<<ICMP | 1<<ICMPv6 | 1<<SCTP

// Parse looks at a frame and writes nothing to it. If it answers OK, p describes a
// TCP or UDP packet that lies in the frame whole, every length of which has been
// checked. If it answers BadTCPFlags, p is complete too: the caller may look the
// packet up, and drop what it must not let pass untranslated.
//
// Four answers name what only those understand who ask further, and leave in p what
// the IP header says, that is all but ports, flags and chunk: SCTP (ParseSCTP), ICMP
// and ICMPv6 (Quote.Parse), and Fragment (Piece.Parse). L4 is then where the IP header
// and its extensions end; for an IPv6 fragment it is the fragment header, and Proto
// is 44. On every other answer p is zero.
func (p *Packet) Parse(frame []byte) Reason {
	*p = Packet{}
	if len(frame) < etherLen {
		return ShortFrame
	}
	// net/ipv4/ip_forward.c drops what was not sent to this host alone.
	if frame[0]&1 != 0 {
		return GroupMAC
	}
	l3 := etherLen
	etherType := binary.BigEndian.Uint16(frame[12:])
	for tags := 0; etherType == etherVLAN || etherType == etherQinQ; tags++ {
		if tags == maxTags {
			return ThirdTag
		}
		if len(frame) < l3+tagLen {
			return ShortFrame
		}
		etherType = binary.BigEndian.Uint16(frame[l3+2:])
		l3 += tagLen
	}
	var reason Reason
	switch etherType {
	case etherIPv4:
		reason = p.parseIPv4(frame, l3)
	case etherIPv6:
		reason = p.parseIPv6(frame, l3)
	default:
		return NotIP
	}
	if reason != OK && leaves>>reason&1 == 0 {
		*p = Packet{}
	}
	return reason
}

//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|Version|  IHL  |Type of Service|          Total Length         |
//	|         Identification        |Flags|      Fragment Offset    |
//	|  Time to Live |    Protocol   |         Header Checksum       |
//	|                       Source Address                          |
//	|                    Destination Address                        |
//	|                    Options                    |    Padding    |
//
// RFC 791 section 3.1. The checks are those of ip_rcv_core (net/ipv4/ip_input.c),
// in its order; total length against the frame makes the padding legal that brings
// a short packet to 60 bytes.
func (p *Packet) parseIPv4(frame []byte, l3 int) Reason {
	packet := frame[l3:]
	if len(packet) < ipv4Len {
		return Truncated
	}
	_ = packet[ipv4Len-1]
	if packet[0]>>4 != 4 {
		return BadVersion
	}
	header := int(packet[0]&15) * 4
	total := int(binary.BigEndian.Uint16(packet[2:]))
	if header < ipv4Len || header > total {
		return BadHeaderLength
	}
	if total > len(packet) {
		return Truncated
	}
	if l3+total > 0xffff {
		return Oversize
	}
	le := binary.LittleEndian
	pair := le.Uint64(packet[12:])
	check, c := bits.Add64(le.Uint64(packet[0:]), pair, 0)
	check, c = bits.Add64(check, uint64(le.Uint32(packet[8:])), c)
	check += c
	if header > ipv4Len {
		check = sum(packet[ipv4Len:header], check)
	}
	if fold(check) != 0xffff {
		return BadHeaderChecksum
	}
	// ip_route_input_slow (net/ipv4/route.c): "martian source".
	if first := packet[12]; first == 0 || first == 127 || first&0xf0 == 0xe0 || uint32(pair) == 0xffffffff {
		return MartianSource
	}

	le.PutUint64(p.Src[8:], 0xffff<<16|pair<<32)
	le.PutUint64(p.Dst[8:], 0xffff<<16|pair&^0xffffffff)
	p.L3 = uint16(l3)
	p.L4 = uint16(l3 + header)
	p.End = uint16(l3 + total)
	p.TTL = packet[8]
	p.Proto = packet[9]
	if header > ipv4Len {
		p.Router = !passOptions(packet[ipv4Len:header])
	}
	// The reserved bit is not looked at: ip_is_fragment does not either.
	if binary.BigEndian.Uint16(packet[6:])&0x3fff != 0 {
		return Fragment
	}
	switch p.Proto {
	case protoTCP:
		return p.parseTCP(packet[header:total])
	case protoUDP:
		return p.parseUDP(packet[header:total])
	case protoICMP:
		return ICMP
	case protoSCTP:
		return SCTP
	}
	return OtherProtocol
}

// passOptions walks IPv4 options as __ip_options_compile does
// (net/ipv4/ip_options.c), and reports whether a router hands them on as they are. What
// it would drop or repair, and what asks it to write its address, to turn elsewhere
// or to look closer, is left to it. The kernel looks at options only after it has
// translated (ip_rcv_finish_core in net/ipv4/ip_input.c), so even a packet that it will
// drop for them may be rewritten.
func passOptions(options []byte) bool {
	const (
		end         = 0
		nop         = 1
		recordRoute = 7
		timestamp   = 68
		looseRoute  = 131
		cipso       = 134
		strictRoute = 137
		routerAlert = 148
	)
	for len(options) > 0 {
		switch options[0] {
		case end:
			for _, b := range options {
				if b != end {
					return false // the kernel wipes it
				}
			}
			return true
		case nop:
			options = options[1:]
			continue
		}
		if len(options) < 2 {
			return false
		}
		n := int(options[1])
		if n < 2 || n > len(options) {
			return false
		}
		switch options[0] {
		case recordRoute, timestamp, looseRoute, cipso, strictRoute, routerAlert:
			return false
		}
		options = options[n:]
	}
	return true
}

//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|Version| Traffic Class |           Flow Label                  |
//	|         Payload Length        |  Next Header  |   Hop Limit   |
//	|                     Source Address (128)                      |
//	|                  Destination Address (128)                    |
//
// RFC 8200 section 3. The checks are those of ip6_rcv_core (net/ipv6/ip6_input.c)
// and, of the source, ip6_forward (net/ipv6/ip6_output.c).
func (p *Packet) parseIPv6(frame []byte, l3 int) Reason {
	packet := frame[l3:]
	if len(packet) < ipv6Len {
		return Truncated
	}
	_ = packet[ipv6Len-1]
	if packet[0]>>4 != 6 {
		return BadVersion
	}
	// A payload length of zero is no jumbogram to us, but a packet without payload.
	total := ipv6Len + int(binary.BigEndian.Uint16(packet[4:]))
	if total > len(packet) {
		return Truncated
	}
	if l3+total > 0xffff {
		return Oversize
	}
	srcHigh, srcLow := binary.BigEndian.Uint64(packet[8:]), binary.BigEndian.Uint64(packet[16:])
	dstHigh, dstLow := binary.BigEndian.Uint64(packet[24:]), binary.BigEndian.Uint64(packet[32:])
	// Everywhere behind us a mapped address means IPv4; the kernel refuses such a
	// source as well.
	if srcHigh == 0 && srcLow>>32 == 0xffff || dstHigh == 0 && dstLow>>32 == 0xffff {
		return MappedAddress
	}
	// Multicast, link-local, unspecified and loopback.
	if srcHigh>>56 == 0xff || srcHigh>>54 == 0xfe80>>6 || srcHigh == 0 && srcLow <= 1 {
		return MartianSource
	}

	next, offset, reason := packet[6], ipv6Len, OK
	if next != protoTCP && next != protoUDP {
		next, offset, reason = walkExtensions(packet[:total], next, offset)
		// Only directly after the IPv6 header are they for a router (ip6_rcv_core).
		if packet[6] == headerHopByHop && offset > ipv6Len {
			options := packet[ipv6Len : ipv6Len+(int(packet[ipv6Len+1])+1)*8]
			r, router := checkHopByHop(options[2:])
			if r != OK {
				return r
			}
			p.Router = router
		}
	}

	p.Src = [16]byte(packet[8:24])
	p.Dst = [16]byte(packet[24:40])
	p.IPv6 = true
	p.L3 = uint16(l3)
	p.L4 = uint16(l3 + offset)
	p.End = uint16(l3 + total)
	p.TTL = packet[7]
	p.Proto = next
	if reason != OK {
		return reason
	}
	if next == protoTCP {
		return p.parseTCP(packet[offset:total])
	}
	return p.parseUDP(packet[offset:total])
}

// walkExtensions goes from the header at offset, of the kind next, to the first one
// that is none of those which may stand before a transport header. It answers OK for
// TCP and UDP, and by name for what else may be gone into further. packet starts with
// the IPv6 header. What is in the headers is for their destination, a source route that
// goes on included, and connection tracking does not look either (ipv6_skip_exthdr in
// net/ipv6/exthdrs_core.c).
func walkExtensions(packet []byte, next uint8, offset int) (uint8, int, Reason) {
	for walked := 0; ; walked++ {
		switch next {
		case protoTCP, protoUDP:
			return next, offset, OK
		case headerHopByHop, headerRouting, headerDestination:
		case headerFragment:
			return next, offset, Fragment
		case protoICMPv6:
			return next, offset, ICMPv6
		case protoSCTP:
			return next, offset, SCTP
		default:
			// Authentication and encryption too: they cover the addresses, or hide the ports.
			return next, offset, OtherProtocol
		}
		if walked == maxExtensions {
			return next, offset, LongChain
		}
		if len(packet)-offset < 8 {
			return next, offset, BadExtension
		}
		n := (int(packet[offset+1]) + 1) * 8
		if n > len(packet)-offset {
			return next, offset, BadExtension
		}
		next = packet[offset]
		offset += n
	}
}

// checkHopByHop walks the options of a hop-by-hop header as ip6_parse_tlv does
// (net/ipv6/exthdrs.c), accepting those a router hands on without a thought: padding,
// and options unknown to it that say "skip over" (RFC 8200 section 4.2). router says
// that there are others, which it may act on. What it drops or answers is refused, since
// it does so before it translates.
func checkHopByHop(options []byte) (_ Reason, router bool) {
	const (
		pad1        = 0
		padN        = 1
		routerAlert = 0x05
		calipso     = 0x07
		ioam        = 0x31
		maxPadding  = 7 // consecutive; more is dropped
		maxOptions  = 8 // IP6_DEFAULT_MAX_HBH_OPTS_CNT
	)
	padding, count := 0, 0
	for len(options) > 0 {
		if options[0] == pad1 {
			if padding++; padding > maxPadding {
				return BadOption, false
			}
			options = options[1:]
			continue
		}
		if len(options) < 2 {
			return BadOption, false
		}
		n := int(options[1]) + 2
		if n > len(options) {
			return BadOption, false
		}
		if options[0] == padN {
			if padding += n; padding > maxPadding {
				return BadOption, false
			}
			for _, b := range options[2:n] {
				if b != 0 {
					return BadOption, false
				}
			}
		} else {
			if count++; count > maxOptions {
				return BadOption, false
			}
			padding = 0
			switch kind := options[0]; {
			case kind == routerAlert || kind == calipso || kind == ioam:
				router = true
			case kind>>6 != 0:
				// What to do with an unknown one; 00 would be to skip it.
				return BadOption, false
			}
		}
		options = options[n:]
	}
	return OK, router
}

//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|          Source Port          |       Destination Port        |
//	|                        Sequence Number                        |
//	|                    Acknowledgment Number                      |
//	| Offset|Resrvd |C|E|U|A|P|R|S|F|            Window             |
//	|           Checksum            |         Urgent Pointer        |
//
// RFC 9293 section 3.1.
func (p *Packet) parseTCP(segment []byte) Reason {
	if len(segment) < tcpLen {
		return ShortHeader
	}
	_ = segment[tcpLen-1]
	if n := int(segment[12]>>4) * 4; n < tcpLen || n > len(segment) {
		return BadDataOffset
	}
	p.SrcPort = binary.BigEndian.Uint16(segment[0:])
	p.DstPort = binary.BigEndian.Uint16(segment[2:])
	p.TCPFlags = segment[tcpFlagsAt]
	if validTCPFlags>>(p.TCPFlags&0x3f)&1 == 0 {
		return BadTCPFlags
	}
	return OK
}

// validTCPFlags has a bit set for each value of the six old flags that connection
// tracking does not call invalid, and so translates: tcp_valid_flags in
// net/netfilter/nf_conntrack_proto_tcp.c. PSH is as good as absent.
const validTCPFlags uint64 = 0 |
	1<<0x02 | 1<<0x0a | // SYN
	1<<0x22 | 1<<0x2a | // SYN URG
	1<<0x12 | 1<<0x1a | // SYN ACK
	1<<0x04 | 1<<0x0c | // RST
	1<<0x14 | 1<<0x1c | // RST ACK
	1<<0x11 | 1<<0x19 | // FIN ACK
	1<<0x31 | 1<<0x39 | // FIN ACK URG
	1<<0x10 | 1<<0x18 | // ACK
	1<<0x30 | 1<<0x38 // ACK URG

//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|          Source Port          |       Destination Port        |
//	|            Length             |           Checksum            |
//
// RFC 768. A receiver takes a length below the IP payload's and trims
// (__udp4_lib_rcv in net/ipv4/udp.c). Which of the two a checksum covers does not matter
// to an increment. A length below the header's or past the payload connection tracking
// calls invalid (udp_error in net/netfilter/nf_conntrack_proto_udp.c), and the
// jumbogram's, zero, with them.
func (p *Packet) parseUDP(datagram []byte) Reason {
	if len(datagram) < udpLen {
		return ShortHeader
	}
	_ = datagram[udpLen-1]
	if n := int(binary.BigEndian.Uint16(datagram[4:])); n < udpLen || n > len(datagram) {
		return BadUDPLength
	}
	p.SrcPort = binary.BigEndian.Uint16(datagram[0:])
	p.DstPort = binary.BigEndian.Uint16(datagram[2:])
	return OK
}
