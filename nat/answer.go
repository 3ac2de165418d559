package nat

import "encoding/binary"

// UnreachableSize is the length that suffices for any frame that is built here:
// Ethernet with two tags, and the largest answer, which is ICMPv6's.
const UnreachableSize = etherLen + maxTags*tagLen + maxQuotedIPv6

const (
	// Up to where an error quotes: the whole error packet is to be no longer than
	// every host must accept (RFC 1812 section 4.3.2.3, RFC 4443 section 3.1).
	maxQuotedIPv4 = 576
	maxQuotedIPv6 = 1280

	minMTUIPv6 = 1280

	AnswerTTL = 64 // the kernel's default for what it sends itself
)

// What a router answers to a packet that goes no further. Each function writes into
// dst the frame that answers frame, from the address from, and returns its length,
// or 0 if none may be sent or dst is too short (UnreachableSize never is). frame is
// not changed and does not overlap dst. p is what Parse left, and the parsers behind it:
// the packet as it came, before Rewrite and DecrementTTL, for that is what its sender
// knows.
//
// The answers are those of icmp_send (net/ipv4/icmp.c) and icmp6_send
// (net/ipv6/icmp.c), down to the quote's length and the precedence. Different on purpose:
//
//   - IPv4 identification 0 with "don't fragment", as nf_reject_iphdr_put writes it: a
//     value that repeats is legal only in a packet that is never cut (RFC 6864).
//   - IPv6 flow label 0: the kernel's is a hash that nobody can predict.
//   - A partial checksum is finished in the quote, because that is how the sender
//     believes it was sent.
//   - Nothing that was sent to a group is answered, a packet too big included.
//
// Ethernet goes back where the frame came from, with its tags. Limiting the rate is
// the caller's.

// BuildUnreachable answers a packet nobody serves: destination unreachable, port
// unreachable. There is silence towards a packet whose own checksum is wrong, as in
// nf_send_unreach (net/ipv4/netfilter/nf_reject_ipv4.c).
func BuildUnreachable(dst, frame []byte, p *Packet, from [16]byte) int {
	const portUnreachable4, portUnreachable6 = 3, 4
	if !p.verified(frame) {
		return 0
	}
	if p.IPv6 {
		return p.buildError(dst, frame, &from, icmpv6Unreachable, portUnreachable6, 0)
	}
	return p.buildError(dst, frame, &from, icmpUnreachable, portUnreachable4, 0)
}

// BuildTimeExceeded answers a packet whose TTL or hop limit ends here (ip_forward in
// net/ipv4/ip_forward.c, ip6_forward in net/ipv6/ip6_output.c).
func BuildTimeExceeded(dst, frame []byte, p *Packet, from [16]byte) int {
	if p.IPv6 {
		return p.buildError(dst, frame, &from, icmpv6TimeExceeded, 0, 0)
	}
	return p.buildError(dst, frame, &from, icmpTimeExceeded, 0, 0)
}

// BuildTooBig answers a packet that is longer than mtu, the IP packet's largest length
// on its way on: fragmentation needed, or packet too big. It returns 0 for an IPv4
// packet that may be fragmented: a router does that.
func BuildTooBig(dst, frame []byte, p *Packet, from [16]byte, mtu uint16) int {
	const fragmentationNeeded = 4
	if p.IPv6 {
		return p.buildError(dst, frame, &from, icmpv6TooBig, 0, max(mtu, minMTUIPv6))
	}
	if p.L4 == 0 || !p.MayNotBeCut(frame) {
		return 0
	}
	return p.buildError(dst, frame, &from, icmpUnreachable, fragmentationNeeded, mtu)
}

// MayNotBeCut reports whether no router may make fragments of the packet: it is IPv6, or
// says "don't fragment". p is what Parse left.
func (p *Packet) MayNotBeCut(frame []byte) bool {
	return p.IPv6 || frame[p.L3+6]&dontFragment != 0
}

const dontFragment = 0x40 // in the byte of the flags

// buildError writes an error with the low half of its second word being info.
func (p *Packet) buildError(dst, frame []byte, from *[16]byte, kind, code uint8, info uint16) int {
	if mapped(from) == p.IPv6 || !p.answerable(frame) {
		return 0
	}
	header, limit := ipv4Len, maxQuotedIPv4
	if p.IPv6 {
		header, limit = ipv6Len, maxQuotedIPv6
	}
	quoted := frame[p.L3:p.End]
	if room := limit - header - icmpLen; len(quoted) > room {
		quoted = quoted[:room]
	}
	ip, icmp := p.reply(dst, frame, header, icmpLen+len(quoted))
	if ip == nil {
		return 0
	}
	quote := icmp[icmpLen:]
	copy(quote, quoted)
	p.completeQuote(quote, frame)

	clear(icmp[:icmpLen])
	icmp[0], icmp[1] = kind, code
	binary.BigEndian.PutUint16(icmp[6:], info)
	var pseudo uint64
	if p.IPv6 {
		p.replyIPv6(ip, protoICMPv6, len(icmp), from)
		pseudo = pseudoSum(sum16(ip[8:ipv6Len]), protoICMPv6, uint16(len(icmp)))
	} else {
		const (
			tosMask         = 0x1e // IPTOS_TOS_MASK
			internetControl = 0xc0 // IPTOS_PREC_INTERNETCONTROL, RFC 1812 section 4.3.2.5
		)
		p.replyIPv4(ip, frame[p.L3+1]&tosMask|internetControl, protoICMP, len(icmp), from)
	}
	binary.LittleEndian.PutUint16(icmp[icmpChecksumAt:], ^fold(sum(icmp, pseudo)))
	return int(p.L3) + len(ip) + len(icmp)
}

// completeQuote finishes a partial checksum in a quote. A long chain of extension
// headers can leave the field outside.
func (p *Packet) completeQuote(quote, frame []byte) {
	if !p.Partial {
		return
	}
	at := int(p.L4 - p.L3)
	if p.Proto == protoSCTP {
		if at += sctpChecksumAt; at+4 <= len(quote) {
			binary.LittleEndian.PutUint32(quote[at:], sctpChecksum(frame[p.L4:p.End]))
		}
		return
	}
	_, offset := p.ChecksumOffsets()
	if at += int(offset); at+2 <= len(quote) {
		binary.LittleEndian.PutUint16(quote[at:], p.transportChecksum(frame))
	}
}

// reply starts an answer in dst: Ethernet turned round, with its tags, and behind it
// room for an IP header and so many bytes, or nil if there is none.
func (p *Packet) reply(dst, frame []byte, header, length int) (ip, rest []byte) {
	l3 := int(p.L3)
	n := l3 + header + length
	if len(dst) < n {
		return nil, nil
	}
	dst = dst[:n]
	copy(dst[0:6], frame[6:12])
	copy(dst[6:12], frame[0:6])
	copy(dst[12:l3], frame[12:l3])
	return dst[l3 : l3+header], dst[l3+header:]
}

// replyIPv4 and replyIPv6 fill in the IP header of an answer to p.
func (p *Packet) replyIPv4(ip []byte, tos, proto uint8, length int, from *[16]byte) {
	clear(ip)
	ip[0] = 4<<4 | ipv4Len/4
	ip[1] = tos
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+length))
	ip[6] = dontFragment
	ip[8] = AnswerTTL
	ip[9] = proto
	copy(ip[12:16], from[12:])
	copy(ip[16:20], p.Src[12:])
	binary.LittleEndian.PutUint16(ip[10:], ^fold(sum(ip, 0)))
}

func (p *Packet) replyIPv6(ip []byte, proto uint8, length int, from *[16]byte) {
	clear(ip[:8])
	ip[0] = 6 << 4
	binary.BigEndian.PutUint16(ip[4:], uint16(length))
	ip[6] = proto
	ip[7] = AnswerTTL
	copy(ip[8:24], from[:])
	copy(ip[24:40], p.Src[:])
}

// answerable holds the rules of RFC 1122 section 3.2.2 and RFC 4443 section 2.4 that
// Parse has not settled. By it the packet was not sent to a group MAC, and its source
// names one host.
func (p *Packet) answerable(frame []byte) bool {
	if p.L4 == 0 || frame[6]&1 != 0 {
		return false
	}
	proto, l4 := p.Proto, frame[p.L4:p.End]
	if p.IPv6 {
		if p.Dst[0] == 0xff {
			return false
		}
		if proto == headerFragment {
			if len(l4) < fragmentLen || binary.BigEndian.Uint16(l4[2:])&^7 != 0 {
				return false
			}
			proto, l4 = l4[0], l4[fragmentLen:]
		}
	} else {
		if p.Dst[12]&0xf0 == 0xe0 || [4]byte(p.Dst[12:]) == [4]byte{255, 255, 255, 255} {
			return false
		}
		if binary.BigEndian.Uint16(frame[p.L3+6:])&0x1fff != 0 {
			return false
		}
	}
	switch proto {
	case protoTCP, protoUDP, protoSCTP:
		return true
	case protoICMP, protoICMPv6:
		return len(l4) > 0 && !isICMPError(l4[0], p.IPv6)
	}
	return false
}

// verified reports whether p is of a protocol with ports, and its transport checksum
// right as far as there is one that nf_reject_verify_csum would look at.
func (p *Packet) verified(frame []byte) bool {
	l4 := frame[p.L4:p.End]
	switch p.Proto {
	case protoSCTP:
		return true
	case protoTCP:
	case protoUDP:
		if len(l4) < udpLen {
			return false
		}
		if binary.LittleEndian.Uint16(l4[udpChecksumAt:]) == 0 {
			return true
		}
	default:
		return false
	}
	return p.Partial || fold(sum(l4, p.pseudo(frame))) == 0xffff
}

// mapped reports whether an address is an IPv4 one.
func mapped(a *[16]byte) bool {
	return [12]byte(a[:12]) == [12]byte{10: 0xff, 11: 0xff}
}
