package bench

import (
	"math/rand/v2"
	"testing"
)

// TestStamp finds every changed bit of a payload.
func TestStamp(t *testing.T) {
	for _, size := range []int{MinFrame - headerSize, 22, 470, 1358} {
		want := make([]byte, size)
		fill(want)
		b := make([]byte, size)
		fill(b)
		s := stamp{run: 7, flow: 1 << 20, seq: 123456}
		s.write(b)
		if got, ok := readStamp(b, want); !ok || got != s {
			t.Fatalf("%d bytes: %v %v", size, got, ok)
		}
		for bit := range 8 * size {
			b[bit/8] ^= 1 << (bit % 8)
			if _, ok := readStamp(b, want); ok {
				t.Fatalf("%d bytes: bit %d was changed unseen", size, bit)
			}
			b[bit/8] ^= 1 << (bit % 8)
		}
		if _, ok := readStamp(b[:size-1], want); ok {
			t.Fatal("a shorter one passes")
		}
	}
}

// TestLedger compares the count with one that remembers everything.
func TestLedger(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		const flows, sent = 5, 500
		l := newLedger(flows)
		var want Tally
		times := map[uint32]int{}
		highest := map[uint32]uint32{}
		for range r.IntN(800) {
			s := stamp{seq: uint32(r.IntN(sent))}
			s.flow = s.seq % flows
			right := r.IntN(10) > 0
			l.note(s, right)
			want.Received++
			if !right {
				want.WrongSource++
			}
			times[s.seq]++
			switch {
			case times[s.seq] > 1:
				want.Duplicated++
			case s.seq+1 < highest[s.flow]:
				want.Reordered++
			default:
				highest[s.flow] = s.seq + 1
			}
		}
		l.close(sent)
		want.Sent, want.Lost = sent, uint64(sent-len(times))
		if l.Tally != want {
			t.Fatalf("got %v, want %v", l.Tally, want)
		}
	}
}

// BenchmarkSink is what the socket's sink does for a datagram in Go.
func BenchmarkSink(b *testing.B) {
	for _, size := range []int{22, 1358} {
		b.Run(map[int]string{22: "frame=64", 1358: "frame=1400"}[size], func(b *testing.B) {
			want, got := make([]byte, size), make([]byte, size)
			fill(want)
			fill(got)
			l := newLedger(1000)
			seq := uint32(0)
			for b.Loop() {
				stamp{run: 1, flow: seq % 1000, seq: seq}.write(got)
				s, ok := readStamp(got, want)
				if !ok {
					b.Fatal("its own stamp does not hold")
				}
				l.note(s, true)
				seq = (seq + 1) & (1<<22 - 1)
			}
		})
	}
}
