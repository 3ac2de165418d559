package main

import (
	"encoding/binary"
	"slices"
)

// The kernel joins fragments before it translates and cuts the datagram again where it has to; Sluice translates each as it
// comes. What counts is what the receiver joins of them: fragments that make a datagram are compared as that, others as they are.

// piece is one fragment, taken apart.
type piece struct {
	key    pieceKey
	offset int
	more   bool
	header []byte // of Ethernet and IP, without what says that it is a fragment
	data   []byte
}

// pieceKey is what the fragments of a datagram have in common, and where they came out.
type pieceKey struct {
	at       place
	src, dst [16]byte
	id       uint32
	proto    byte // of IPv4
}

// pieceOf takes a fragment apart; false if f is none.
func pieceOf(at place, f []byte) (x piece, ok bool) {
	p, ok := parse(f)
	if !ok || !p.part {
		return x, false
	}
	x.key = pieceKey{at: at, src: p.src.As16(), dst: p.dst.As16()}
	if !p.v6 {
		bits := binary.BigEndian.Uint16(f[p.l3+6:])
		x.key.id, x.key.proto = uint32(binary.BigEndian.Uint16(f[p.l3+4:])), f[p.l3+9]
		x.offset, x.more = int(bits&0x1fff)*8, bits&0x2000 != 0
		x.header, x.data = slices.Clone(f[:p.l4]), f[p.l4:p.end]
		binary.BigEndian.PutUint16(x.header[p.l3+6:], bits&0xc000)
		return x, true
	}
	// The header that says so stands behind those that every router reads.
	next, l := p.l3+6, p.l3+ipv6Len
	for f[next] != 44 {
		next, l = l, l+8+8*int(f[l+1])
	}
	bits := binary.BigEndian.Uint16(f[l+2:])
	x.key.id = binary.BigEndian.Uint32(f[l+4:])
	x.offset, x.more = int(bits&^7), bits&1 != 0
	x.header, x.data = slices.Clone(f[:l]), f[l+8:p.end]
	x.header[next] = f[l]
	return x, true
}

// join puts each datagram in the place of its fragments, if all of them are there once and none overlaps. v6 fragments that
// the kernel has cut have a number of its own, which thereby is not compared.
func join(outs []output) []output {
	groups := map[pieceKey][]piece{}
	for _, o := range outs {
		if x, ok := pieceOf(o.at, o.data); ok {
			groups[x.key] = append(groups[x.key], x)
		}
	}
	if len(groups) == 0 {
		return outs
	}
	var joined []output
	done := map[pieceKey]bool{}
	for _, o := range outs {
		x, ok := pieceOf(o.at, o.data)
		if !ok {
			joined = append(joined, o)
			continue
		}
		whole, ok := datagram(groups[x.key])
		switch {
		case !ok:
			joined = append(joined, o)
		case !done[x.key]:
			done[x.key] = true
			joined = append(joined, output{at: o.at, data: whole, raw: o.raw})
		}
	}
	return joined
}

// datagram is the frame that a receiver would have if nobody had cut it.
func datagram(pieces []piece) ([]byte, bool) {
	pieces = slices.Clone(pieces)
	slices.SortStableFunc(pieces, func(a, b piece) int { return a.offset - b.offset })
	last := len(pieces) - 1
	f := slices.Clone(pieces[0].header)
	end := 0
	for i, x := range pieces {
		if x.offset != end || x.more != (i < last) {
			return nil, false
		}
		end += len(x.data)
		f = append(f, x.data...)
	}
	l3 := etherLen
	for f[l3-2] == 0x81 && f[l3-1] == 0 || f[l3-2] == 0x88 && f[l3-1] == 0xa8 {
		l3 += 4
	}
	if f[l3]>>4 == 6 {
		if n := len(f) - l3 - ipv6Len; n <= 0xffff {
			binary.BigEndian.PutUint16(f[l3+4:], uint16(n))
		}
		return f, true
	}
	binary.BigEndian.PutUint16(f[l3+2:], uint16(len(f)-l3))
	header := f[l3 : l3+int(f[l3]&15)*4]
	binary.BigEndian.PutUint16(header[10:], 0)
	binary.BigEndian.PutUint16(header[10:], ^fold(add(0, header)))
	return f, true
}

// waiting are the fragments that Sluice may give to the kernel long after they were sent, as they look then from the IP header
// on.
type waiting map[string]bool

// sent notes what is sent in a step.
func (w waiting) sent(s *step) {
	for _, f := range s.frames {
		if p, ok := parse(f.data); ok && p.part {
			if g := forwarded(f.data, s.straysFar); g != nil {
				w[string(g[12:])] = true
			}
		}
	}
}

// gaveUp reports whether an output is one of them.
func (w waiting) gaveUp(o output) bool {
	p, ok := parse(o.data)
	return ok && p.part && w[string(o.data[12:])]
}
