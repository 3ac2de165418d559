package flowtable

import "math/bits"

// The hash is SipHash-1-3 (Aumasson and Bernstein; one round a word, three at the end) under the table's seed: a
// client that can choose its addresses and ports cannot choose its bucket. The message is
//
//	IPv4, both addresses mapped:  source 4, destination 4, source port 2, destination port 2, protocol 1   = 13 bytes
//	else:                         source 16, destination 16, source port 2, destination port 2, protocol 1 = 37 bytes
//
// with ports in network byte order. The words are the bytes in memory, little-endian; the last one carries ports,
// protocol and the length, as SipHash pads. The C classifier computes the same.

const (
	sip0 = 0x736f6d6570736575
	sip1 = 0x646f72616e646f6d
	sip2 = 0x6c7967656e657261
	sip3 = 0x7465646279746573

	mapped = 0xffff0000 // the word half before the address in ::ffff:a.b.c.d

	// tagMul mixes the bits that chose the buckets once more, so that the tag is not a copy of them.
	tagMul = 0x9E3779B97F4A7C15
)

// setSeed keys the hash: the initial state of SipHash, which is the same for every message.
func (t *Table) setSeed(seed [2]uint64) {
	t.v = [4]uint64{seed[0] ^ sip0, seed[1] ^ sip1, seed[0] ^ sip2, seed[1] ^ sip3}
}

// Hash returns the tuple's hash under the table's seed.
func (t *Table) Hash(k *Tuple) uint64 {
	s0, s1 := k.src()
	d0, d1 := k.dst()
	return t.sip(s0, s1, d0, d1, k.tail())
}

func (t *Table) hash(k key) uint64 { return t.sip(k.s0, k.s1, k.d0, k.d1, k.tail) }

// sip is straight-line: one function call a hash, all state in registers.
func (t *Table) sip(s0, s1, d0, d1, tail uint64) uint64 {
	v0, v1, v2, v3 := t.v[0], t.v[1], t.v[2], t.v[3]
	if mapped4(s0, s1, d0, d1) {
		w := s1>>32 | d1&^(1<<32-1)
		v3 ^= w
		v0, v1, v2, v3 = round(v0, v1, v2, v3)
		v0 ^= w
		tail |= 13 << 56
	} else {
		v3 ^= s0
		v0, v1, v2, v3 = round(v0, v1, v2, v3)
		v0 ^= s0
		v3 ^= s1
		v0, v1, v2, v3 = round(v0, v1, v2, v3)
		v0 ^= s1
		v3 ^= d0
		v0, v1, v2, v3 = round(v0, v1, v2, v3)
		v0 ^= d0
		v3 ^= d1
		v0, v1, v2, v3 = round(v0, v1, v2, v3)
		v0 ^= d1
		tail |= 37 << 56
	}
	v3 ^= tail
	v0, v1, v2, v3 = round(v0, v1, v2, v3)
	v0 ^= tail
	v2 ^= 0xff
	v0, v1, v2, v3 = round(v0, v1, v2, v3)
	v0, v1, v2, v3 = round(v0, v1, v2, v3)
	v0, v1, v2, v3 = round(v0, v1, v2, v3)
	return v0 ^ v1 ^ v2 ^ v3
}

// mapped4 says that both addresses are IPv4.
func mapped4(s0, s1, d0, d1 uint64) bool {
	return s0|d0|uint64((uint32(s1)^mapped)|(uint32(d1)^mapped)) == 0
}

func round(v0, v1, v2, v3 uint64) (uint64, uint64, uint64, uint64) {
	v0 += v1
	v2 += v3
	v1 = bits.RotateLeft64(v1, 13) ^ v0
	v3 = bits.RotateLeft64(v3, 16) ^ v2
	v0 = bits.RotateLeft64(v0, 32) + v3
	v2 += v1
	v1 = bits.RotateLeft64(v1, 17) ^ v2
	v3 = bits.RotateLeft64(v3, 21) ^ v0
	return v0, v1, bits.RotateLeft64(v2, 32), v3
}

// pair returns a hash's two candidate buckets, which are never the same.
func (t *Table) pair(h uint64) (uint32, uint32) {
	b1 := t.first(h)
	b2 := uint64(b1) + 1 + h>>32*(t.n-1)>>32
	if b2 >= t.n {
		b2 -= t.n
	}
	return b1, uint32(b2)
}

// first returns the first of them: the low half of the hash as a fraction of the number of buckets, which so need not be a
// power of two. The high half says in the same way how far behind it, around the end, the second is.
func (t *Table) first(h uint64) uint32 { return uint32(uint64(uint32(h)) * t.n >> 32) }

// tagOf returns a hash's tag in its place within a cell.
func tagOf(h uint64) uint64 { return h * tagMul &^ (cellTag - 1) }

// cellOf returns the cell that stands for one direction of a record.
func cellOf(h uint64, rec uint32, d Direction) uint64 {
	return tagOf(h) | uint64(d&1)<<32 | uint64(rec)
}
