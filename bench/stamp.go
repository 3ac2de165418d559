package bench

import "encoding/binary"

// What each datagram carries, in network byte order: the number of the run, of the
// flow and of the datagram within the run, and a check over the three. Behind it each
// byte is the low byte of its offset. bpf/common.h has the same.
const stampSize = 16

// MinFrame is the length of the shortest frame that carries a stamp and a byte
// behind it, from the Ethernet header on, without its check sequence.
const MinFrame = headerSize + stampSize + 1

// headerSize is that of Ethernet, IPv4 and UDP.
const headerSize = 14 + 20 + 8

type stamp struct{ run, flow, seq uint32 }

func (s stamp) check() uint32 {
	x := s.run ^ s.flow*0x9e3779b1 ^ s.seq*0x85ebca6b
	x ^= x >> 15
	x *= 0x2c1b3c6d
	x ^= x >> 13
	return x
}

// write writes the stamp at the head of a payload.
func (s stamp) write(b []byte) {
	binary.BigEndian.PutUint32(b, s.run)
	binary.BigEndian.PutUint32(b[4:], s.flow)
	binary.BigEndian.PutUint32(b[8:], s.seq)
	binary.BigEndian.PutUint32(b[12:], s.check())
}

// fill writes what stands behind the stamp, which is the same in all payloads of
// a length.
func fill(b []byte) {
	for i := stampSize; i < len(b); i++ {
		b[i] = byte(i)
	}
}

// readStamp reads and checks a payload; want is one of the same length, filled.
func readStamp(b, want []byte) (stamp, bool) {
	if len(b) != len(want) {
		return stamp{}, false
	}
	s := stamp{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])}
	return s, binary.BigEndian.Uint32(b[12:]) == s.check() && string(b[stampSize:]) == string(want[stampSize:])
}
