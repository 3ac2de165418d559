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
// was wrong stays wrong by as much, and the receiver finds it.

// Endpoints is what a packet's addresses and ports are to become. Addresses are of
// the packet's own family, ports in host order.
type Endpoints struct {
	Src, Dst         [16]byte
	SrcPort, DstPort uint16
}

// Rewrite gives the packet new endpoints, in the frame and in p, and updates both
// checksums. It changes nothing else. p is what Parse, and where partial checksums
// occur DetectPartial, found in this very frame.
func (p *Packet) Rewrite(frame []byte, to *Endpoints) {
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
	ports := uint32(bits.ReverseBytes16(to.SrcPort)) | uint32(bits.ReverseBytes16(to.DstPort))<<16
	change4 := add(change, updatePorts(le.Uint32(l4), ports))
	le.PutUint32(l4, ports)
	p.SrcPort, p.DstPort = to.SrcPort, to.DstPort

	if p.Proto == protoTCP {
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

// DetectPartial sets Partial if the transport checksum field holds just the pseudo
// header's sum. That is what a local socket leaves there for the device to finish,
// and what crosses veth unfinished. By chance it is also one complete checksum in
// 65535, and can be forged: so the caller asks only on ports whose peer can send
// partial checksums, where the damage of a mistake is a checksum made anew.
func (p *Packet) DetectPartial(frame []byte) {
	l4 := frame[p.L4:p.End]
	at := udpChecksumAt
	if p.Proto == protoTCP {
		at = tcpChecksumAt
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
// behind that the result goes (csum_offset).
func (p *Packet) ChecksumOffsets() (start, offset uint16) {
	if p.Proto == protoTCP {
		return p.L4, tcpChecksumAt
	}
	return p.L4, udpChecksumAt
}

// DecrementTTL takes one from the TTL or hop limit, as a router does, and keeps the
// IPv4 header checksum right. It reports false, and changes nothing, for a packet
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
