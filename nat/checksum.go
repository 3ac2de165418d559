package nat

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum (RFC 1071) is the one's complement of a one's complement
// sum of 16-bit words. Such a sum is the same in either byte order, but for a swap
// of its bytes, and the same in words of 16, 32 or 64 bits once the carries are
// folded back. So everything here loads little-endian words as wide as it can,
// keeps sums in that order, and stores them little-endian: no byte is swapped but
// those of numbers that we hold in host order (ports, lengths).
//
// One's complement has two zeros. A sum of words that are not all zero folds to
// 0xffff, never to 0, so a checksum computed from a packet is 0x0000 and never
// 0xffff. An update keeps to that: it starts from the 32-bit complement of the old
// checksum, which is never zero, as the kernel's csum_replace4 does
// (include/net/checksum.h). A sender's 0xffff in a TCP or IPv4 header is therefore
// brought to the form that every stack writes; UDP has a rule of its own
// (udpChecksum).

// add returns the one's complement sum of a and b. The last addition cannot carry
// again, here and wherever a chain ends in its carry: a word that left one behind
// is at most 2^64-2.
func add(a, b uint64) uint64 {
	s, carry := bits.Add64(a, b, 0)
	return s + carry
}

// fold brings a sum down to 16 bits. It is zero only if the sum is. Adding a word to
// itself with its halves exchanged leaves their sum, carry included, in the upper
// one (csum_fold in include/asm-generic/checksum.h). Parse and Rewrite together take
// a tenth less time than with shifts and masks.
func fold(sum uint64) uint16 {
	half := uint32((sum + bits.RotateLeft64(sum, 32)) >> 32)
	return uint16((half + bits.RotateLeft32(half, 16)) >> 16)
}

// sum adds the bytes of b to initial. An odd last byte counts as the first of a word.
func sum(b []byte, initial uint64) uint64 {
	le := binary.LittleEndian
	s := initial
	var c uint64
	for len(b) >= 64 {
		_ = b[63]
		s, c = bits.Add64(s, le.Uint64(b[0:]), 0)
		s, c = bits.Add64(s, le.Uint64(b[8:]), c)
		s, c = bits.Add64(s, le.Uint64(b[16:]), c)
		s, c = bits.Add64(s, le.Uint64(b[24:]), c)
		s, c = bits.Add64(s, le.Uint64(b[32:]), c)
		s, c = bits.Add64(s, le.Uint64(b[40:]), c)
		s, c = bits.Add64(s, le.Uint64(b[48:]), c)
		s, c = bits.Add64(s, le.Uint64(b[56:]), c)
		s += c
		b = b[64:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, le.Uint64(b), 0)
		s += c
		b = b[8:]
	}
	// The last seven bytes fit one word.
	var tail uint64
	var shift uint
	if len(b) >= 4 {
		tail = uint64(le.Uint32(b))
		shift = 32
		b = b[4:]
	}
	if len(b) >= 2 {
		tail |= uint64(le.Uint16(b)) << shift
		shift += 16
		b = b[2:]
	}
	if len(b) == 1 {
		tail |= uint64(b[0]) << shift
	}
	return add(s, tail)
}

// sum16 is sum for the two addresses of an IPv6 header, without the loop.
func sum16(pair []byte) uint64 {
	le := binary.LittleEndian
	_ = pair[31]
	s, c := bits.Add64(le.Uint64(pair[0:]), le.Uint64(pair[8:]), 0)
	s, c = bits.Add64(s, le.Uint64(pair[16:]), c)
	s, c = bits.Add64(s, le.Uint64(pair[24:]), c)
	return s + c
}

// pseudoSum is the sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section
// 8.1) that stands before a transport packet. addresses is the sum of both
// addresses; length is the transport packet's.
func pseudoSum(addresses uint64, proto uint8, length uint16) uint64 {
	return add(addresses, uint64(bits.ReverseBytes16(length))+uint64(proto)<<8)
}

// update4 and update16 give what an address pair's change adds to a sum: the old
// words complemented, plus the new ones (RFC 1624, the "~m + m'" of equation 3).
func update4(oldPair, newPair uint64) uint64 {
	return add(^oldPair, newPair)
}

func update16(oldPair []byte, src, dst *[16]byte) uint64 {
	le := binary.LittleEndian
	_ = oldPair[31]
	s, c := bits.Add64(^le.Uint64(oldPair[0:]), le.Uint64(src[0:]), 0)
	s, c = bits.Add64(s, ^le.Uint64(oldPair[8:]), c)
	s, c = bits.Add64(s, le.Uint64(src[8:]), c)
	s, c = bits.Add64(s, ^le.Uint64(oldPair[16:]), c)
	s, c = bits.Add64(s, le.Uint64(dst[0:]), c)
	s, c = bits.Add64(s, ^le.Uint64(oldPair[24:]), c)
	s, c = bits.Add64(s, le.Uint64(dst[8:]), c)
	return s + c
}

// updatePorts is the same for the two ports, taken as one 32-bit word.
func updatePorts(oldPair, newPair uint32) uint64 {
	return uint64(^oldPair) + uint64(newPair)
}

// updateChecksum applies a change to a complete checksum: HC' = ~(~HC + ~m + m'),
// equation 3 of RFC 1624 (not equation 4, which has the wrong zero).
func updateChecksum(check uint16, change uint64) uint16 {
	return ^fold(add(change, uint64(^uint32(check))))
}

// updatePartial applies a change of addresses to a partial checksum, which is the
// pseudo header's sum itself: nothing is complemented.
func updatePartial(check uint16, change uint64) uint16 {
	return fold(add(change, uint64(check)))
}

// udpChecksum sends a computed zero as 0xffff: zero in the field means that there
// is no checksum (RFC 768), and over IPv6 that the datagram is invalid (RFC 8200).
func udpChecksum(check uint16) uint16 {
	if check == 0 {
		return 0xffff
	}
	return check
}
