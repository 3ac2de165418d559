package nat

import (
	"encoding/binary"
	"math/bits"
)

// What Rewrite does to a transport checksum:
//
//	state     what the field holds                what is added to it
//	complete  ~(pseudo header + header + data)    the change of addresses and ports
//	partial   the pseudo header's sum, as it is   the change of addresses
//	none      0, and it is UDP                    nothing: over IPv4 it means that there is
//	                                              no checksum, over IPv6 that the datagram
//	                                              is invalid, which we do not mend
//
// as nf_nat_proto.c and inet_proto_csum_replace4 (net/core/utils.c) do. A checksum that
// was wrong stays wrong by as much, and the receiver finds it. SCTP's is no such sum:
// sctp.go.

// Endpoints is what a packet's addresses and ports are to become. Addresses are of
// the packet's own family, ports in host order.
type Endpoints struct {
	Src, Dst         [16]byte
	SrcPort, DstPort uint16
}

// Rewrite gives the packet new endpoints, in the frame and in p, and updates both
// checksums. It changes nothing else. p is what Parse, and where partial checksums
// occur DetectPartial, found in this very frame.
func (p *Packet) Rewrite(frame []byte, to *Endpoints) { p.rewrite(frame, to, p.Proto) }

// addressesOnly is the protocol of a packet that has, here, no ports.
const addressesOnly = 0

// rewrite is Rewrite for a packet whose transport header is that of proto. It is one
// function, since a call for the addresses costs a tenth of it.
func (p *Packet) rewrite(frame []byte, to *Endpoints, proto uint8) {
	le := binary.LittleEndian
	ip := frame[p.L3:p.End]
	var change uint64
	if p.IPv6 {
		pair := ip[8:ipv6Len]
		change = update16(pair, &to.Src, &to.Dst)
		*(*[16]byte)(pair[0:]) = to.Src
		*(*[16]byte)(pair[16:]) = to.Dst
	} else {
		_ = ip[ipv4Len-1]
		pair := uint64(le.Uint32(to.Src[12:])) | uint64(le.Uint32(to.Dst[12:]))<<32
		change = update4(le.Uint64(ip[12:]), pair)
		le.PutUint64(ip[12:], pair)
		le.PutUint16(ip[10:], updateChecksum(le.Uint16(ip[10:]), change))
	}
	p.Src, p.Dst = to.Src, to.Dst

	l4 := frame[p.L4:p.End]
	if proto != protoTCP && proto != protoUDP {
		if proto == protoSCTP {
			p.rewriteSCTP(l4, to)
		}
		return
	}
	ports := portPair(to)
	change4 := add(change, updatePorts(le.Uint32(l4), ports))
	le.PutUint32(l4, ports)
	p.SrcPort, p.DstPort = to.SrcPort, to.DstPort

	if proto == protoTCP {
		field := l4[tcpChecksumAt : tcpChecksumAt+2]
		if p.Partial {
			le.PutUint16(field, updatePartial(le.Uint16(field), change))
		} else {
			le.PutUint16(field, updateChecksum(le.Uint16(field), change4))
		}
		return
	}
	field := l4[udpChecksumAt : udpChecksumAt+2]
	switch check := le.Uint16(field); {
	case p.Partial:
		le.PutUint16(field, updatePartial(check, change))
	case check != 0:
		le.PutUint16(field, udpChecksum(updateChecksum(check, change4)))
	}
}

// portPair is the word that the two ports make in a frame.
func portPair(to *Endpoints) uint32 {
	return uint32(bits.ReverseBytes16(to.SrcPort)) | uint32(bits.ReverseBytes16(to.DstPort))<<16
}

// DetectPartial sets Partial if the transport checksum field holds just the pseudo
// header's sum. That is what a local socket leaves there for the device to finish,
// and what crosses veth unfinished. By chance it is also one complete checksum in
// 65535, and can be forged: so the caller asks only on ports whose peer can send
// partial checksums, where the damage of a mistake is a checksum made anew. Of SCTP
// the field is then zero.
//
// Not to be asked of ICMP or of fragments: the kernel computes those checksums before
// they leave (icmp_push_reply, icmpv6_push_pending_frames, ip_do_fragment).
func (p *Packet) DetectPartial(frame []byte) {
	l4 := frame[p.L4:p.End]
	if p.Proto == protoSCTP {
		p.Partial = binary.LittleEndian.Uint32(l4[sctpChecksumAt:]) == 0
		return
	}
	at := udpChecksumAt
	if p.Proto == protoTCP {
		at = tcpChecksumAt
	} else if binary.BigEndian.Uint16(l4[4:]) != p.End-p.L4 {
		return // no socket sends that
	}
	p.Partial = binary.LittleEndian.Uint16(l4[at:]) == fold(p.pseudo(frame))
}

// pseudo is the sum of the packet's pseudo header. It is never zero: there is
// always the protocol.
func (p *Packet) pseudo(frame []byte) uint64 {
	le := binary.LittleEndian
	ip := frame[p.L3:p.End]
	var addresses uint64
	if p.IPv6 {
		addresses = sum16(ip[8:ipv6Len])
	} else {
		addresses = le.Uint64(ip[12:])
	}
	return pseudoSum(addresses, p.Proto, p.End-p.L4)
}

// ChecksumOffsets gives what AF_XDP transmit metadata wants of a packet whose
// checksum is partial: where in the frame summing starts (csum_start), and how far
// behind that the result goes (csum_offset). Not for SCTP, whose checksum no device
// computes on such a request: Rewrite finishes it, and Complete.
func (p *Packet) ChecksumOffsets() (start, offset uint16) {
	if p.Proto == protoTCP {
		return p.L4, tcpChecksumAt
	}
	return p.L4, udpChecksumAt
}

// Complete computes a partial checksum, for a way on which no device will.
func (p *Packet) Complete(frame []byte) {
	if !p.Partial {
		return
	}
	p.Partial = false
	l4 := frame[p.L4:p.End]
	if p.Proto == protoSCTP {
		binary.LittleEndian.PutUint32(l4[sctpChecksumAt:], sctpChecksum(l4))
		return
	}
	_, offset := p.ChecksumOffsets()
	binary.LittleEndian.PutUint16(l4[offset:], p.transportChecksum(frame))
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

// DecrementTTL takes one from the TTL or hop limit, as a router does, and keeps the
// IPv4 header checksum right, whatever the packet carries. It reports false, and changes nothing, for a packet
// that may not be forwarded at all because its TTL ends here.
func (p *Packet) DecrementTTL(frame []byte) bool {
	if p.TTL <= 1 {
		return false
	}
	p.TTL--
	ip := frame[p.L3:p.End]
	if p.IPv6 {
		ip[7] = p.TTL
		return true
	}
	// The checksum is a complement, so taking one from the sum adds one to it
	// (ip_decrease_ttl in include/net/ip.h).
	check := uint32(binary.BigEndian.Uint16(ip[10:])) + 0x0100
	if check >= 0xffff {
		check++
	}
	binary.BigEndian.PutUint16(ip[10:], uint16(check))
	ip[8] = p.TTL
	return true
}

// IncrementTTL undoes in advance what a router on the way will do to a packet of the
// node's own: its TTL must be below 255.
func (p *Packet) IncrementTTL(frame []byte) {
	p.TTL++
	ip := frame[p.L3:p.End]
	if p.IPv6 {
		ip[7] = p.TTL
		return
	}
	sum := uint32(^binary.BigEndian.Uint16(ip[10:])) + 0x0100
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	ip[8] = p.TTL
}
