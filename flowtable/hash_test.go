package flowtable

import (
	"encoding/binary"
	"testing"
)

// sipSlow is SipHash-c-d over bytes, as the paper has it: the twin of sip.
func sipSlow(c, d int, seed [2]uint64, msg []byte) uint64 {
	v0, v1, v2, v3 := seed[0]^sip0, seed[1]^sip1, seed[0]^sip2, seed[1]^sip3
	last := uint64(len(msg)) << 56
	for ; len(msg) >= 8; msg = msg[8:] {
		m := binary.LittleEndian.Uint64(msg)
		v3 ^= m
		for range c {
			v0, v1, v2, v3 = round(v0, v1, v2, v3)
		}
		v0 ^= m
	}
	for i, b := range msg {
		last |= uint64(b) << (8 * i)
	}
	v3 ^= last
	for range c {
		v0, v1, v2, v3 = round(v0, v1, v2, v3)
	}
	v0 ^= last
	v2 ^= 0xff
	for range d {
		v0, v1, v2, v3 = round(v0, v1, v2, v3)
	}
	return v0 ^ v1 ^ v2 ^ v3
}

// message packs a tuple as the hash sees it.
func message(k *Tuple) []byte {
	const prefix = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff"
	src, dst := k.Src[:], k.Dst[:]
	if string(src[:12]) == prefix && string(dst[:12]) == prefix {
		src, dst = src[12:], dst[12:]
	}
	msg := append(append([]byte{}, src...), dst...)
	msg = binary.BigEndian.AppendUint16(msg, k.SrcPort)
	msg = binary.BigEndian.AppendUint16(msg, k.DstPort)
	return append(msg, k.Proto)
}

func hashSlow(seed [2]uint64, k *Tuple) uint64 { return sipSlow(1, 3, seed, message(k)) }

func count(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// The round function and the twin's framing are right if they give the published SipHash-2-4 vectors (the paper's
// appendix and its reference code: key 00..0f, message 00, 01, ...).
func TestSipHash24Vectors(t *testing.T) {
	for n, want := range map[int]uint64{
		0: 0x726fdb47dd0e0e31, 1: 0x74f839c593dc67fd, 2: 0x0d6c8009d9a94f5a, 3: 0x85676696d7fb7e2d,
		4: 0xcf2794e0277187b7, 5: 0x18765564cd99a68d, 6: 0xcbc9466e58fee3ce, 7: 0xab0200f58b01d137,
		8: 0x93f5f5799a932462, 15: 0xa129ca6149be45e5,
	} {
		if got := sipSlow(2, 4, testSeed, count(n)); got != want {
			t.Errorf("SipHash-2-4 of %d bytes: %#x, want %#x", n, got, want)
		}
	}
}

// SipHash-1-3 with an all-zero key, as CPython's bytes hash computes it (PYTHONHASHSEED=0).
func TestSipHash13Vectors(t *testing.T) {
	for n, want := range map[int]uint64{
		1: 0x68a914128e01e473, 7: 0x2f098ab0c751325a, 8: 0xead411e67ebe2eea, 13: 0xa0cf3211850f8e0d, 37: 0x422a9751192ff266,
	} {
		if got := sipSlow(1, 3, [2]uint64{}, count(n)); got != want {
			t.Errorf("SipHash-1-3 of %d bytes: %#x, want %#x", n, got, want)
		}
	}
}

// Fixed values, so that neither side of the shared memory drifts: whoever changes them raises Version.
func TestHashGolden(tt *testing.T) {
	t := newTable(tt, 1, Timeouts{})
	for _, c := range []struct {
		name string
		k    Tuple
		want uint64
	}{
		{"IPv4 TCP", Tuple{pod(1), clusterIP(1), 40000, 80, 6}, 0x49c53f79a059ee2e},
		{"IPv4 UDP reply", Tuple{pod(2), pod(1), 5353, 40000, 17}, 0x72b19d842dc2e6b2},
		{"IPv4 SCTP, ports 0", Tuple{pod(1), clusterIP(1), 0, 0, 132}, 0xef51634bf4c22dee},
		{"IPv6 TCP", Tuple{pod6(1), clusterIP6(1), 40000, 80, 6}, 0x465f3674a6fbf590},
		{"IPv6 to mapped", Tuple{pod6(1), clusterIP(1), 40000, 80, 6}, 0xd862cf286d6ac0f7},
		{"zero", Tuple{}, 0xc0a67181f905a146},
	} {
		if got := t.Hash(&c.k); got != c.want {
			tt.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
}

func TestPairsDiffer(tt *testing.T) {
	for _, capacity := range []int{1, 5, 100} {
		t := newTable(tt, capacity, Timeouts{})
		rng := newRand(1)
		for range 10_000 {
			h := rng.Uint64()
			if b1, b2 := t.pair(h); b1 == b2 || int(b1) >= len(t.buckets) || int(b2) >= len(t.buckets) {
				tt.Fatalf("%d buckets, hash %#x: %d and %d", len(t.buckets), h, b1, b2)
			}
		}
	}
}

func FuzzHash(f *testing.F) {
	f.Add(uint64(1), uint64(2), make([]byte, 37), false)
	f.Add(^uint64(0), uint64(0), count(37), true)
	f.Fuzz(func(tt *testing.T, seed0, seed1 uint64, b []byte, is4 bool) {
		b = append(b, make([]byte, 37)...)
		k := Tuple{SrcPort: binary.BigEndian.Uint16(b[32:]), DstPort: binary.BigEndian.Uint16(b[34:]), Proto: b[36]}
		copy(k.Src[:], b)
		copy(k.Dst[:], b[16:])
		if is4 {
			k.Src, k.Dst = v4(b[0], b[1], b[2], b[3]), v4(b[4], b[5], b[6], b[7])
		}
		var t Table
		t.setSeed([2]uint64{seed0, seed1})
		if got, want := t.Hash(&k), hashSlow([2]uint64{seed0, seed1}, &k); got != want {
			tt.Fatalf("%+v: %#x, the slow twin says %#x", k, got, want)
		}
	})
}
