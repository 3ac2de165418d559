package nat

import "encoding/binary"

const fragmentLen = 8 // of the IPv6 fragment header

// FragmentKey is what the fragments of one datagram have in common (RFC 791 section
// 3.2, RFC 8200 section 4.5). It can be a map's key.
type FragmentKey struct {
	Src, Dst [16]byte
	ID       uint32
	Proto    uint8 // of IPv4; 0 for IPv6, where it is not part of the name
}

// Piece says which part of its datagram a fragment is.
type Piece struct {
	Key    FragmentKey
	Offset uint16 // of the data in the datagram, in bytes
	Length uint16 // of the data, in bytes
	More   bool   // more follow
}

// Atomic reports whether the piece is the whole: an IPv6 packet with a fragment header
// that need not be there (RFC 6946). It is then no matter for a tracker of fragments,
// and Rewrite treats it like any other packet.
func (f *Piece) Atomic() bool { return f.Offset == 0 && !f.More }

//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|  Next Header  |   Reserved    |      Fragment Offset    |Res|M|
//	|                         Identification                        |
//
// RFC 8200 section 4.5; IPv4 has the same in its header, the flags in front.

// Parse goes on where Parse of Packet answered Fragment for this frame and left p. If
// it answers OK, f says which part the fragment is, and
//
//   - of a first fragment (Offset 0) and of an atomic one p is now complete: ports, and
//     L4 and Proto those of the transport header;
//   - of a later fragment p is as it was, for there are no ports in it.
//
// BadTCPFlags leaves f and p complete too. On every other answer p is as it was, and f
// says at least which datagram and which part of it it is, unless that is BadFragment:
// then it is zero. The whole transport header is to be in the first fragment, and no later
// one may overwrite it (RFC 1858, RFC 3128, RFC 7112). Whether fragments overlap, and
// whether they make a datagram, is not for one fragment to say.
func (f *Piece) Parse(frame []byte, p *Packet) Reason {
	*f = Piece{}
	found := *p
	reason := f.parse(frame, &found)
	switch reason {
	case OK, BadTCPFlags:
		*p = found
	case BadFragment:
		*f = Piece{}
	}
	return reason
}

func (f *Piece) parse(frame []byte, p *Packet) Reason {
	packet := frame[p.L3:p.End]
	offset := int(p.L4 - p.L3)
	next := p.Proto
	f.Key.Src, f.Key.Dst = p.Src, p.Dst
	// What stands before the data in every fragment counts towards 64 KiB, but for the
	// IPv6 header itself.
	before := offset
	if p.IPv6 {
		if p.Proto != headerFragment || len(packet)-offset < fragmentLen {
			return BadFragment
		}
		header := packet[offset : offset+fragmentLen]
		before -= ipv6Len
		next = header[0]
		bits := binary.BigEndian.Uint16(header[2:])
		f.Offset, f.More = bits&^7, bits&1 != 0
		f.Key.ID = binary.BigEndian.Uint32(header[4:])
		offset += fragmentLen
	} else {
		bits := binary.BigEndian.Uint16(packet[6:])
		f.Offset, f.More = bits<<3, bits&0x2000 != 0
		f.Key.ID = uint32(binary.BigEndian.Uint16(packet[4:]))
		f.Key.Proto = next
	}
	f.Length = uint16(len(packet) - offset)
	if f.Atomic() {
		return p.parseFirst(frame, next, offset, false)
	}
	// ip_frag_queue (net/ipv4/ip_fragment.c) drops or cuts these, and ip6_frag_queue
	// (net/ipv6/reassembly.c) answers some.
	if f.Length == 0 || f.More && f.Length%8 != 0 || before+int(f.Offset)+int(f.Length) > 0xffff {
		return BadFragment
	}
	if f.Offset > 0 {
		// One that begins inside the first 16 bytes of TCP is made to change its flags.
		if f.Offset < 16 && next == protoTCP {
			return TinyFragment
		}
		return OK
	}
	return p.parseFirst(frame, next, offset, true)
}

// parseFirst completes p from the first fragment of a datagram, the header behind
// the fragment's own being at offset and of the kind next. more says that the rest of
// the datagram is elsewhere.
func (p *Packet) parseFirst(frame []byte, next uint8, offset int, more bool) Reason {
	packet := frame[p.L3:p.End]
	if p.IPv6 {
		var reason Reason
		next, offset, reason = walkExtensions(packet, next, offset)
		switch reason {
		case OK, SCTP:
		case Fragment: // inside a fragment
			return BadFragment
		case BadExtension:
			if more {
				return TinyFragment
			}
			return reason
		default:
			return reason
		}
	}
	p.Proto = next
	p.L4 = p.L3 + uint16(offset)
	l4 := packet[offset:]
	switch next {
	case protoTCP:
		if more && (len(l4) < tcpLen || int(l4[12]>>4)*4 > len(l4)) {
			return TinyFragment
		}
		return p.parseTCP(l4)
	case protoUDP:
		if !more {
			return p.parseUDP(l4)
		}
		if len(l4) < udpLen {
			return TinyFragment
		}
		// It is the length of all fragments together.
		if int(binary.BigEndian.Uint16(l4[4:])) <= len(l4) {
			return BadUDPLength
		}
	case protoSCTP:
		if !more {
			return p.ParseSCTP(frame)
		}
		if len(l4) < sctpLen+chunkLen {
			return TinyFragment
		}
		p.Chunk = l4[sctpLen]
	case protoICMP:
		return ICMP
	default:
		return OtherProtocol
	}
	p.SrcPort = binary.BigEndian.Uint16(l4[0:])
	p.DstPort = binary.BigEndian.Uint16(l4[2:])
	return OK
}

// RewriteFragment gives a fragment new endpoints: of a later one the addresses, of a
// first one also the ports and the transport checksum, by increment, which is right
// for the datagram as a whole. It reports false, and changes nothing, for the first of
// several fragments of SCTP when a port is to change: its checksum has no increment
// that a part of the packet could tell.
//
// p and f are what the two Parse left; p stays true of the frame, f.Key does not
// follow.
func (p *Packet) RewriteFragment(frame []byte, f *Piece, to *Endpoints) bool {
	switch {
	case f.Offset > 0:
		p.rewrite(frame, to, addressesOnly)
	case f.More && p.Proto == protoSCTP:
		if p.SrcPort != to.SrcPort || p.DstPort != to.DstPort {
			return false
		}
		p.rewrite(frame, to, addressesOnly)
	default:
		p.Rewrite(frame, to)
	}
	return true
}
