package nat

import "encoding/binary"

const (
	icmpLen        = 8
	icmpChecksumAt = 2

	// Every error quotes at least so much of the transport header (RFC 792), and with
	// it the ports.
	quotedLen = 8
	portsLen  = 4

	icmpUnreachable  = 3
	icmpQuench       = 4
	icmpRedirect     = 5
	icmpTimeExceeded = 11
	icmpBadParameter = 12

	icmpv6Unreachable  = 1
	icmpv6TooBig       = 2
	icmpv6TimeExceeded = 3
	icmpv6BadParameter = 4
)

// Errors about one packet, as bit sets by type: icmp_is_err in include/linux/icmp.h. Of
// ICMPv6 every type below 128 is one (RFC 4443 section 2.1), the unknown too.
const (
	errors4 uint64 = 1<<icmpUnreachable | 1<<icmpQuench | 1<<icmpRedirect | 1<<icmpTimeExceeded | 1<<icmpBadParameter

	// Those whose header says how long the quote is, because extensions may follow it
	// (RFC 4884 section 4).
	extended4 uint64 = 1<<icmpUnreachable | 1<<icmpTimeExceeded | 1<<icmpBadParameter
	extended6 uint64 = 1<<icmpv6Unreachable | 1<<icmpv6TimeExceeded
)

// isICMPError reports whether a message of this type is an error, or may be one for
// all that is known: it must never be answered by an error (RFC 1122 section 3.2.2,
// RFC 4443 section 2.4 e).
func isICMPError(kind uint8, ipv6 bool) bool {
	if ipv6 {
		const redirect = 137
		return kind < 128 || kind == redirect
	}
	const lastKnown = 18 // NR_ICMP_TYPES
	return kind > lastKnown || errors4>>kind&1 != 0
}

// Quote is the packet that an ICMP or ICMPv6 error speaks of, as far as the error
// quotes it. Like Packet it holds offsets into one frame, and belongs to its worker.
// The quoted packet went the other way: its source is the error's destination.
type Quote struct {
	Src, Dst         [16]byte // as quoted; IPv4 as ::ffff:a.b.c.d
	SrcPort, DstPort uint16   // host order

	L3    uint16 // offset of the quoted IP header
	L4    uint16 // offset of the quoted transport header
	End   uint16 // offset just past what is quoted of the packet
	Proto uint8  // 6, 17 or 132
}

//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|     Type      |     Code      |           Checksum            |
//	|    unused     |   Length v4   |     Next-hop MTU, if any      |
//	|   Length v6   |    unused (all 32 bits are the MTU of v6)     |
//	|      Internet header and the first bytes of the packet ...    |
//
// RFC 792, RFC 1191 section 4, RFC 4443 section 3, RFC 4884 section 4.

// Parse goes on where Parse of Packet answered ICMP or ICMPv6 for this frame and left
// p. If it answers OK, the frame is an error whose checksum is right and q is the
// quoted packet of TCP, UDP or SCTP: at least its IP header, whole, and eight bytes
// behind.
//
// Two other answers leave q complete too, but RewriteError must not have it. Connection
// tracking takes such an error for one about the flow, and drops it: Redirect, since it
// speaks of a route that exists on one side only, and CutQuote, the ports being all that
// there is (nf_nat_icmp_reply_translation, net/netfilter/nf_nat_proto.c). On every
// other answer q is zero.
//
// The quoted checksums are not looked at: not the transport's (RFC 5508 REQ-3 c), and
// not the IPv4 header's, since there are routers that count the TTL down and forget it.
func (q *Quote) Parse(frame []byte, p *Packet) Reason {
	*q = Quote{}
	reason := q.parse(frame, p)
	if reason != OK && reason != Redirect && reason != CutQuote {
		*q = Quote{}
	}
	return reason
}

func (q *Quote) parse(frame []byte, p *Packet) Reason {
	message := frame[p.L4:p.End]
	if len(message) < icmpLen {
		return ShortHeader
	}
	kind := message[0]
	var pseudo uint64
	length := 0
	if p.IPv6 {
		if kind >= 128 {
			return NotError
		}
		if extended6>>kind&1 != 0 {
			length = int(message[4]) * 8
		}
		pseudo = p.pseudo(frame)
	} else {
		if kind > 63 || errors4>>kind&1 == 0 {
			return NotError
		}
		if extended4>>kind&1 != 0 {
			length = int(message[5]) * 4
		}
	}
	if fold(sum(message, pseudo)) != 0xffff {
		return BadICMPChecksum
	}
	quoted := message[icmpLen:]
	if length > 0 && length < len(quoted) {
		quoted = quoted[:length]
	}
	q.L3 = p.L4 + icmpLen
	reason := OK
	if p.IPv6 {
		quoted, reason = q.parseIPv6(quoted)
	} else {
		quoted, reason = q.parseIPv4(quoted)
	}
	if reason != OK {
		return reason
	}
	l4 := quoted[q.L4-q.L3:]
	switch q.Proto {
	case protoTCP, protoUDP, protoSCTP:
	case protoICMP, protoICMPv6:
		if len(l4) > 0 && isICMPError(l4[0], p.IPv6) {
			return NestedError
		}
		return QuotedProtocol
	default:
		return QuotedProtocol
	}
	if len(l4) < portsLen {
		return ShortQuote
	}
	// Errors go to whom the packet came from. One that does not is forged, or crossed a
	// translator that did half its work (nf_conntrack_inet_error,
	// net/netfilter/nf_conntrack_proto_icmp.c).
	if q.Src != p.Dst {
		return StrayError
	}
	q.SrcPort = binary.BigEndian.Uint16(l4[0:])
	q.DstPort = binary.BigEndian.Uint16(l4[2:])
	q.End = q.L3 + uint16(len(quoted))
	switch {
	case len(l4) < quotedLen:
		return CutQuote
	case kind == icmpRedirect && !p.IPv6:
		return Redirect
	}
	return OK
}

// parseIPv4 reads a quoted IPv4 header and returns the quote, cut to the packet's own
// length. The options are stepped over.
func (q *Quote) parseIPv4(quoted []byte) ([]byte, Reason) {
	if len(quoted) < ipv4Len {
		return nil, ShortQuote
	}
	_ = quoted[ipv4Len-1]
	header := int(quoted[0]&15) * 4
	total := int(binary.BigEndian.Uint16(quoted[2:]))
	// The version is that of the protocol which quotes it.
	if header < ipv4Len || total < header {
		return nil, BadQuote
	}
	if header > len(quoted) {
		return nil, ShortQuote
	}
	if binary.BigEndian.Uint16(quoted[6:])&0x1fff != 0 {
		return nil, QuotedFragment
	}
	q.L4 = q.L3 + uint16(header)
	q.Proto = quoted[9]
	q.Src = mappedFrom(quoted[12:16])
	q.Dst = mappedFrom(quoted[16:20])
	return quoted[:min(total, len(quoted))], OK
}

// parseIPv6 is the same for IPv6, over the extension headers and the header of a
// first fragment.
func (q *Quote) parseIPv6(quoted []byte) ([]byte, Reason) {
	if len(quoted) < ipv6Len {
		return nil, ShortQuote
	}
	_ = quoted[ipv6Len-1]
	quoted = quoted[:min(ipv6Len+int(binary.BigEndian.Uint16(quoted[4:])), len(quoted))]
	q.Src = [16]byte(quoted[8:24])
	q.Dst = [16]byte(quoted[24:40])
	if mapped(&q.Src) || mapped(&q.Dst) {
		return nil, BadQuote
	}
	next, offset, reason := walkExtensions(quoted, quoted[6], ipv6Len)
	if reason == Fragment {
		if len(quoted)-offset < fragmentLen {
			return nil, ShortQuote
		}
		if binary.BigEndian.Uint16(quoted[offset+2:])&^7 != 0 {
			return nil, QuotedFragment
		}
		next, offset, reason = walkExtensions(quoted, quoted[offset], offset+fragmentLen)
	}
	switch reason {
	case OK, SCTP, ICMPv6, OtherProtocol:
	case BadExtension:
		return nil, ShortQuote
	default:
		return nil, BadQuote // no packet that we let pass
	}
	q.L4 = q.L3 + uint16(offset)
	q.Proto = next
	return quoted, OK
}

// RewriteError gives an error's quoted packet the endpoints inner, and the error
// itself a new source and destination where these are not nil. It updates every
// checksum by increment: the quoted IPv4 header's, the quoted transport's if it is
// there to be updated, the outer IPv4 header's, and that of ICMP or ICMPv6. Type, code
// and MTU stay. p and q are what the two Parse left, and stay true of the frame.
//
// "There" is UDP's always, and TCP's in a header that is quoted whole, as in
// tcp_manip_pkt (net/netfilter/nf_nat_proto.c); SCTP's covers what is not quoted.
func (p *Packet) RewriteError(frame []byte, q *Quote, outerSrc, outerDst *[16]byte, inner *Endpoints) {
	le := binary.LittleEndian
	// All that changes in the message lies from the quoted header to the end of the
	// longest transport header: take its old sum off and add the new one.
	changing := frame[q.L3:min(int(q.L4)+tcpLen, int(q.End))]
	change := ^sum(changing, 0)
	q.rewrite(frame, p.IPv6, inner)
	change = add(change, sum(changing, 0))

	outer := Endpoints{Src: p.Src, Dst: p.Dst}
	if outerSrc != nil {
		outer.Src = *outerSrc
	}
	if outerDst != nil {
		outer.Dst = *outerDst
	}
	if p.IPv6 { // for the pseudo header
		change = add(change, update16(frame[p.L3+8:p.L3+ipv6Len], &outer.Src, &outer.Dst))
	}
	p.rewrite(frame, &outer, addressesOnly)
	field := frame[p.L4+icmpChecksumAt : p.End]
	le.PutUint16(field, updateChecksum(le.Uint16(field), change))
}

// rewrite gives the quoted packet new endpoints.
func (q *Quote) rewrite(frame []byte, ipv6 bool, to *Endpoints) {
	packet := Packet{L3: q.L3, L4: q.L4, End: q.End, Proto: q.Proto, IPv6: ipv6}
	if q.Proto == protoUDP || q.Proto == protoTCP && q.End-q.L4 >= tcpLen {
		packet.Rewrite(frame, to)
	} else {
		packet.rewrite(frame, to, addressesOnly)
		binary.LittleEndian.PutUint32(frame[q.L4:q.End], portPair(to))
	}
	q.Src, q.Dst, q.SrcPort, q.DstPort = to.Src, to.Dst, to.SrcPort, to.DstPort
}

// mappedFrom is an IPv4 address of a frame as the rest of the world has it.
func mappedFrom(b []byte) [16]byte {
	return [16]byte{10: 0xff, 11: 0xff, 12: b[0], 13: b[1], 14: b[2], 15: b[3]}
}
