package nat

import "encoding/binary"

// UnreachableSize is the length that suffices for any frame BuildUnreachable writes:
// Ethernet with two tags, and the largest answer, which is ICMPv6's.
const UnreachableSize = etherLen + maxTags*tagLen + maxQuotedIPv6

const (
	icmpLen = 8

	// Up to where an error quotes: the whole error packet is to be no longer than
	// every host must accept (RFC 1812 section 4.3.2.3, RFC 4443 section 3.1).
	maxQuotedIPv4 = 576
	maxQuotedIPv6 = 1280

	answerTTL = 64 // the kernel's default for what it sends itself
)

// BuildUnreachable writes into dst the frame that answers a packet nobody serves:
// ICMP destination unreachable, port unreachable, of the packet's family, from the
// address from. It returns the answer's length, or 0 if none may be sent or dst is
// too short (UnreachableSize never is). frame is not changed and does not overlap dst.
//
// The answer is the one of icmp_send (net/ipv4/icmp.c) and icmpv6_send
// (net/ipv6/icmp.c), down to the quote's length, the precedence, and the silence
// towards a packet whose own checksum is wrong (nf_send_unreach in
// net/ipv4/netfilter/nf_reject_ipv4.c). Different on purpose:
//
//   - IPv4 identification 0 with "don't fragment", as nf_reject_iphdr_put writes it: a
//     value that repeats is legal only in a packet that is never cut (RFC 6864).
//   - IPv6 flow label 0: the kernel's is a hash that nobody can predict.
//   - A partial checksum is finished in the quote, because that is how the sender
//     believes it was sent.
//
// Ethernet goes back where the frame came from, with its tags. Limiting the rate is
// the caller's.
func BuildUnreachable(dst, frame []byte, p *Packet, from [16]byte) int {
	if p.L4 == 0 || !p.answerable(frame, &from) {
		return 0
	}
	header, limit := ipv4Len, maxQuotedIPv4
	if p.IPv6 {
		header, limit = ipv6Len, maxQuotedIPv6
	}
	l3 := int(p.L3)
	quoted := frame[l3:p.End]
	if room := limit - header - icmpLen; len(quoted) > room {
		quoted = quoted[:room]
	}
	n := l3 + header + icmpLen + len(quoted)
	if len(dst) < n {
		return 0
	}
	dst = dst[:n]
	copy(dst[0:6], frame[6:12])
	copy(dst[6:12], frame[0:6])
	copy(dst[12:l3], frame[12:l3])

	ip, icmp := dst[l3:l3+header], dst[l3+header:]
	quote := icmp[icmpLen:]
	copy(quote, quoted)
	if p.Partial {
		start, offset := p.ChecksumOffsets()
		check := p.transportChecksum(frame)
		// A long chain of extension headers can leave the field outside the quote.
		if at := int(start+offset) - l3; at+2 <= len(quote) {
			binary.LittleEndian.PutUint16(quote[at:], check)
		}
	}
	if p.IPv6 {
		p.unreachableIPv6(ip, icmp, &from)
	} else {
		p.unreachableIPv4(ip, icmp, frame[l3+1], &from)
	}
	return n
}

// unreachableIPv4 fills in the two headers; behind icmp's stands the quote.
func (p *Packet) unreachableIPv4(ip, icmp []byte, tos byte, from *[16]byte) {
	const (
		destinationUnreachable = 3
		portUnreachable        = 3
		dontFragment           = 0x40
		tosMask                = 0x1e // IPTOS_TOS_MASK
		internetControl        = 0xc0 // IPTOS_PREC_INTERNETCONTROL, RFC 1812 section 4.3.2.5
	)
	clear(icmp[:icmpLen])
	icmp[0], icmp[1] = destinationUnreachable, portUnreachable
	binary.LittleEndian.PutUint16(icmp[2:], ^fold(sum(icmp, 0)))

	clear(ip)
	ip[0] = 4<<4 | ipv4Len/4
	ip[1] = tos&tosMask | internetControl
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(icmp)))
	ip[6] = dontFragment
	ip[8] = answerTTL
	ip[9] = protoICMP
	copy(ip[12:16], from[12:])
	copy(ip[16:20], p.Src[12:])
	binary.LittleEndian.PutUint16(ip[10:], ^fold(sum(ip, 0)))
}

func (p *Packet) unreachableIPv6(ip, icmp []byte, from *[16]byte) {
	const (
		destinationUnreachable = 1
		portUnreachable        = 4
	)
	clear(ip[:8])
	ip[0] = 6 << 4
	binary.BigEndian.PutUint16(ip[4:], uint16(len(icmp)))
	ip[6] = protoICMPv6
	ip[7] = answerTTL
	copy(ip[8:24], from[:])
	copy(ip[24:40], p.Src[:])

	clear(icmp[:icmpLen])
	icmp[0], icmp[1] = destinationUnreachable, portUnreachable
	pseudo := pseudoSum(sum16(ip[8:ipv6Len]), protoICMPv6, uint16(len(icmp)))
	binary.LittleEndian.PutUint16(icmp[2:], ^fold(sum(icmp, pseudo)))
}

// answerable holds the rules of RFC 1122 section 3.2.2 and RFC 4443 section 2.4 that
// Parse has not settled. By it a packet is no fragment, no ICMP, not sent to a group
// MAC, and its source names one host.
func (p *Packet) answerable(frame []byte, from *[16]byte) bool {
	if mapped(from) == p.IPv6 || frame[6]&1 != 0 {
		return false
	}
	if p.IPv6 {
		if p.Dst[0] == 0xff {
			return false
		}
	} else if p.Dst[12]&0xf0 == 0xe0 || [4]byte(p.Dst[12:]) == [4]byte{255, 255, 255, 255} {
		return false
	}
	if p.Partial {
		return true
	}
	if p.Proto == protoUDP && binary.LittleEndian.Uint16(frame[p.L4+udpChecksumAt:]) == 0 {
		return true // nothing to verify: nf_reject_verify_csum
	}
	return fold(sum(frame[p.L4:p.End], p.pseudo(frame))) == 0xffff
}

// transportChecksum computes what a device would write into a partial checksum
// field: the complement of the sum from the transport header on, the field included,
// for it already holds the pseudo header.
func (p *Packet) transportChecksum(frame []byte) uint16 {
	check := ^fold(sum(frame[p.L4:p.End], 0))
	if p.Proto == protoUDP {
		check = udpChecksum(check)
	}
	return check
}

// mapped reports whether an address is an IPv4 one.
func mapped(a *[16]byte) bool {
	return [12]byte(a[:12]) == [12]byte{10: 0xff, 11: 0xff}
}
