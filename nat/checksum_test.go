package nat

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// slow twins: slowSum and slowPseudo in frames_test.go. Theirs is network order,
// ours little-endian, so results are compared byte-swapped.

func swapped(v uint16) uint16 { return bits.ReverseBytes16(v) }

func TestSumEveryLength(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 9001+8)
	for i := range random {
		random[i] = byte(rnd.Uint32())
	}
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"random", random},
		{"all ones", bytes.Repeat([]byte{0xff}, len(random))},
		{"zeros", make([]byte, len(random))},
	} {
		for n := 0; n <= 9001; n += 1 + n/256*(exhaustiveStep-1) {
			alignments := 1
			if n <= 256 {
				alignments = 8
			}
			for a := range alignments {
				a := (a + n) % 8 // long ones see every alignment too, one each
				b := c.data[a : a+n]
				if got, want := fold(sum(b, 0)), swapped(slowSum(b)); got != want {
					t.Fatalf("%s: sum of %d bytes at alignment %d = %#04x, want %#04x", c.name, n, a, got, want)
				}
			}
		}
	}
}

func TestSum16(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range 1000 {
		pair := make([]byte, 32)
		for j := range pair {
			pair[j] = byte(rnd.Uint32())
			if i%3 == 0 {
				pair[j] |= 0xf0
			}
		}
		if got, want := fold(sum16(pair)), swapped(slowSum(pair)); got != want {
			t.Fatalf("sum16(%x) = %#04x, want %#04x", pair, got, want)
		}
	}
	if got := fold(sum16(bytes.Repeat([]byte{0xff}, 32))); got != 0xffff {
		t.Errorf("sum16 of ones = %#04x", got)
	}
}

// A sum goes on from any other, the largest included.
func TestSumInitial(t *testing.T) {
	b := bytes.Repeat([]byte{0xff, 0xfe, 1}, 50)
	for _, initial := range []uint64{0, 1, 0xffff, 1 << 32, 1<<64 - 2, 1<<64 - 1} {
		for n := range b {
			want := slowSum(append(binary.LittleEndian.AppendUint64(nil, initial), b[:n]...))
			if got := fold(sum(b[:n], initial)); got != swapped(want) {
				t.Fatalf("sum of %d bytes from %#x = %#04x, want %#04x", n, initial, got, swapped(want))
			}
		}
	}
}

func TestFold(t *testing.T) {
	for _, c := range []struct {
		sum  uint64
		want uint16
	}{
		{0, 0},
		{1, 1},
		{0xffff, 0xffff},
		{0x10000, 1},
		{0x1ffff, 1},
		{0xffffffff, 0xffff},
		{1 << 32, 1},
		{1 << 48, 1},
		{1<<64 - 1, 0xffff},
		{1<<64 - 2, 0xfffe},
		{0xffff_fffe_ffff_ffff, 0xfffe},
	} {
		if got := fold(c.sum); got != c.want {
			t.Errorf("fold(%#x) = %#04x, want %#04x", c.sum, got, c.want)
		}
	}
}

func TestPseudoSum(t *testing.T) {
	for _, c := range []struct {
		name     string
		src, dst [16]byte
		proto    uint8
		length   uint16
	}{
		{"udp4", client4, frontend4, protoUDP, 8},
		{"tcp4 long", client4, backend4, protoTCP, 65515},
		{"udp6", client6, frontend6, protoUDP, 8},
		{"tcp6 long", client6, backend6, protoTCP, 65535},
		{"icmp6", node6, client6, protoICMPv6, 1240},
	} {
		addresses := sum(append(bytes.Clone(ip(c.src)), ip(c.dst)...), 0)
		want := slowPseudo(c.src, c.dst, c.proto, int(c.length))
		if got := fold(pseudoSum(addresses, c.proto, c.length)); got != swapped(want) {
			t.Errorf("%s: pseudoSum = %#04x, want %#04x", c.name, got, swapped(want))
		}
	}
}

func TestUDPChecksumHasNoZero(t *testing.T) {
	for c := range 1 << 16 {
		want := uint16(c)
		if c == 0 {
			want = 0xffff
		}
		if got := udpChecksum(uint16(c)); got != want {
			t.Fatalf("udpChecksum(%#04x) = %#04x, want %#04x", c, got, want)
		}
	}
}

// The words where one's complement arithmetic has its corners.
var edges = []uint16{0x0000, 0x0001, 0x00ff, 0x0100, 0x7fff, 0x8000, 0xff00, 0xfffe, 0xffff}

// Each class of field that an update covers, for every one of the 2^16 values of a word of
// it, before and after, and a filler that takes the checksum through all its own:
// the update gives what summing all over gives.
func TestUpdateExhaustive(t *testing.T) {
	for _, c := range []struct {
		name string
		size int // bytes of the field
		do   func(check uint16, old, new []byte) uint16
	}{
		{"ports", 4, func(check uint16, old, new []byte) uint16 {
			le := binary.LittleEndian
			return updateChecksum(check, updatePorts(le.Uint32(old), le.Uint32(new)))
		}},
		{"IPv4 addresses", 8, func(check uint16, old, new []byte) uint16 {
			le := binary.LittleEndian
			return updateChecksum(check, update4(le.Uint64(old), le.Uint64(new)))
		}},
		{"IPv6 addresses", 32, func(check uint16, old, new []byte) uint16 {
			return updateChecksum(check, update16(old, (*[16]byte)(new), (*[16]byte)(new[16:])))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			// The packet: the field, and a filler word of which only the sum matters.
			packet := make([]byte, c.size+2)
			full := func() uint16 { return swapped(^slowSum(packet)) }
			try := func(filler, old, new uint16, at int) {
				binary.BigEndian.PutUint16(packet[c.size:], filler)
				binary.BigEndian.PutUint16(packet[at:], old)
				check := full()
				before := bytes.Clone(packet[:c.size])
				binary.BigEndian.PutUint16(packet[at:], new)
				if got, want := c.do(check, before, packet[:c.size]), full(); got != want {
					t.Fatalf("word %d from %#04x to %#04x, checksum %#04x, filler %#04x: %#04x, want %#04x", at, old, new, check, filler, got, want)
				}
			}
			for v := 0; v < 1<<16; v += exhaustiveStep {
				at := v % (c.size / 2) * 2
				for _, e := range edges {
					if e == 0 {
						continue // nothing sums to zero: a packet of zeros is none
					}
					try(e, uint16(v), 0x1234, at)
					try(e, 0x1234, uint16(v), at)
					try(uint16(v)|1, e, ^e, at)
				}
			}
			// All words at once, from one extreme to the other and back.
			packet[c.size+1] = 1
			for v := 0; v < 1<<16; v += exhaustiveStep {
				binary.BigEndian.PutUint16(packet[c.size:], uint16(max(v, 1)))
				for _, fill := range []byte{0x00, 0xff, 0x5a} {
					for i := range c.size {
						packet[i] = fill
					}
					check, before := full(), bytes.Clone(packet[:c.size])
					for i := range c.size {
						packet[i] = ^fill
					}
					if got, want := c.do(check, before, packet[:c.size]), full(); got != want {
						t.Fatalf("%#02x to %#02x, checksum %#04x: %#04x, want %#04x", fill, ^fill, check, got, want)
					}
				}
			}
		})
	}
}

// A partial checksum is a sum: it follows the addresses, and only a sum of
// nothing but zeros could make it zero.
func TestUpdatePartialExhaustive(t *testing.T) {
	le := binary.LittleEndian
	for v := 0; v < 1<<16; v += exhaustiveStep {
		for _, e := range edges {
			rest := uint16(6 + 20) // protocol and length, never zero
			sum16 := func(word uint16) uint16 {
				var b [10]byte
				binary.BigEndian.PutUint16(b[0:], word)
				binary.BigEndian.PutUint16(b[4:], e)
				binary.BigEndian.PutUint16(b[8:], rest)
				return swapped(slowSum(b[:]))
			}
			var before, after [8]byte
			binary.BigEndian.PutUint16(before[0:], uint16(v))
			binary.BigEndian.PutUint16(after[0:], ^uint16(v)^e)
			got := updatePartial(sum16(uint16(v)), update4(le.Uint64(before[:]), le.Uint64(after[:])))
			if want := sum16(^uint16(v) ^ e); got != want {
				t.Fatalf("word from %#04x to %#04x beside %#04x: %#04x, want %#04x", v, ^uint16(v)^e, e, got, want)
			}
		}
	}
}

// The one change that could sum to zero, which an update must not take for the other
// zero: the result is the kernel's, and no sender's 0xffff survives.
func TestUpdateOtherZero(t *testing.T) {
	ones, zeros := bytes.Repeat([]byte{0xff}, 32), new([16]byte)
	for _, check := range []uint16{0x0000, 0xffff} {
		for name, got := range map[string]uint16{
			"ports": updateChecksum(check, updatePorts(1<<32-1, 0)),
			"IPv4":  updateChecksum(check, update4(1<<64-1, 0)),
			"IPv6":  updateChecksum(check, update16(ones, zeros, zeros)),
		} {
			if got != 0 {
				t.Errorf("%s from ones to zeros, checksum %#04x: %#04x, want 0", name, check, got)
			}
		}
	}
}

// Changes drawn at random, as many as NAT_RANDOM says: 1e9 of them take a minute or
// two, and are for a release.
func TestUpdateRandom(t *testing.T) {
	n, seed := 200_000, uint64(1)
	if s := os.Getenv("NAT_RANDOM"); s != "" {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatal(err)
		}
		n, seed = int(v), rand.Uint64()
	}
	t.Logf("%d changes, seed %d", n, seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	le := binary.LittleEndian
	// Address pair, ports, and a word for all the rest of the packet.
	var packet [46]byte
	for i := range n {
		for at := 0; at < 40; at += 8 {
			le.PutUint64(packet[at:], rnd.Uint64())
		}
		le.PutUint16(packet[44:], uint16(rnd.Uint32())|1)
		check := ^slowWords(&packet)
		oldPair, oldPorts := [32]byte(packet[:32]), le.Uint32(packet[32:])
		at := rnd.IntN(4) * 8
		le.PutUint64(packet[at:], rnd.Uint64())
		le.PutUint32(packet[32:], rnd.Uint32())
		wide := add(update16(oldPair[:], (*[16]byte)(packet[:]), (*[16]byte)(packet[16:])), updatePorts(oldPorts, le.Uint32(packet[32:])))
		narrow := add(update4(le.Uint64(oldPair[at:]), le.Uint64(packet[at:])), updatePorts(oldPorts, le.Uint32(packet[32:])))
		want := ^slowWords(&packet)
		if got, got4 := updateChecksum(check, wide), updateChecksum(check, narrow); got != want || got4 != want {
			t.Fatalf("change %d of seed %d: %#04x and %#04x, want %#04x: %x", i, seed, got, got4, want, packet)
		}
	}
}

// slowWords is slowSum for one length, byte-swapped, and fast enough for a billion.
func slowWords(b *[46]byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) | uint32(b[i+1])<<8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func FuzzChecksum(f *testing.F) {
	f.Add([]byte("an odd sum of bytes"), uint64(0), uint16(3), []byte{0xff, 0xff})
	f.Add(bytes.Repeat([]byte{0xff}, 130), uint64(1<<64-1), uint16(64), []byte{0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 1}, uint64(1), uint16(0), []byte{0xff, 0xfe, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte, initial uint64, at uint16, change []byte) {
		want := swapped(slowSum(append(binary.LittleEndian.AppendUint64(nil, initial), b...)))
		if got := fold(sum(b, initial)); got != want {
			t.Fatalf("sum(%x, %#x) = %#04x, want %#04x", b, initial, got, want)
		}
		// A change of eight bytes somewhere in it, as an address pair.
		if len(b) < 8 || len(change) < 8 {
			return
		}
		i := int(at) % (len(b) - 7) &^ 1
		old := binary.LittleEndian.Uint64(b[i:])
		before := ^fold(sum(b, 0))
		after := bytes.Clone(b)
		copy(after[i:i+8], change)
		if slowSum(after) == 0 {
			return // all zeros: no packet, and the one sum with the other zero
		}
		got, want := updateChecksum(before, update4(old, binary.LittleEndian.Uint64(change))), swapped(^slowSum(after))
		if got != want {
			t.Fatalf("%x, 8 bytes at %d to %x: %#04x, want %#04x", b, i, change[:8], got, want)
		}
	})
}
