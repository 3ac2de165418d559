package nat

import "encoding/binary"

// BuildReset writes into dst the frame that resets a TCP connection which the packet
// belongs to or would open, and returns its length, or 0 if none may be sent (to a
// reset, to a group, to a segment that is wrong) or dst is too short. What else was
// said of the other answers holds here.
//
// The segment is that of nf_reject_ip_tcphdr_put and nf_reject_ip6_tcphdr_put
// (net/ipv4/netfilter/nf_reject_ipv4.c and its IPv6 twin), from the address and port
// that the packet was sent to: where the packet acknowledges, the reset begins at what
// it acknowledges; where not, it acknowledges all of the packet (RFC 9293 section
// 3.10.7.1).
func BuildReset(dst, frame []byte, p *Packet) int {
	if p.Proto != protoTCP || !p.answerable(frame) {
		return 0
	}
	segment := frame[p.L4:p.End]
	if len(segment) < tcpLen {
		return 0
	}
	const (
		fin = 1 << 0
		syn = 1 << 1
		rst = 1 << 2
		ack = 1 << 4
	)
	flags := segment[tcpFlagsAt]
	data := len(segment) - int(segment[12]>>4)*4
	if flags&rst != 0 || data < 0 || !p.verified(frame) {
		return 0
	}
	header := ipv4Len
	if p.IPv6 {
		header = ipv6Len
	}
	ip, tcp := p.reply(dst, frame, header, tcpLen)
	if ip == nil {
		return 0
	}
	clear(tcp)
	copy(tcp[0:2], segment[2:4])
	copy(tcp[2:4], segment[0:2])
	tcp[12] = tcpLen / 4 << 4
	if flags&ack != 0 {
		copy(tcp[4:8], segment[8:12])
		tcp[tcpFlagsAt] = rst
	} else {
		next := binary.BigEndian.Uint32(segment[4:]) + uint32(data)
		if flags&syn != 0 {
			next++
		}
		if flags&fin != 0 {
			next++
		}
		binary.BigEndian.PutUint32(tcp[8:], next)
		tcp[tcpFlagsAt] = rst | ack
	}
	var addresses uint64
	if p.IPv6 {
		p.replyIPv6(ip, protoTCP, tcpLen, &p.Dst)
		addresses = sum16(ip[8:ipv6Len])
	} else {
		p.replyIPv4(ip, 0, protoTCP, tcpLen, &p.Dst)
		addresses = binary.LittleEndian.Uint64(ip[12:])
	}
	binary.LittleEndian.PutUint16(tcp[tcpChecksumAt:], ^fold(sum(tcp, pseudoSum(addresses, protoTCP, tcpLen))))
	return int(p.L3) + len(ip) + len(tcp)
}
