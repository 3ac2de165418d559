package flowtable

import (
	"fmt"
	"runtime"
	"testing"
)

var benchSizes = []int{1, 1_000, 64_000, 1_000_000}

func sizeName(n int) string {
	switch {
	case n >= 1_000_000:
		return fmt.Sprintf("flows=%dM", n/1_000_000)
	case n >= 1_000:
		return fmt.Sprintf("flows=%dk", n/1_000)
	}
	return fmt.Sprintf("flows=%d", n)
}

// tuplesOf returns tuples of the table's flows in random order, replies and forwards mixed: a power of two, at least
// the table's size, so that a benchmark walks all of it.
func tuplesOf(n int) []Tuple {
	m := 1
	for m < n || m < 1024 {
		m *= 2
	}
	rng := newRand(1)
	tuples := make([]Tuple, m)
	for i := range tuples {
		f := flowN(uint32(rng.IntN(n)))
		if tuples[i] = f.forward(); rng.IntN(2) == 0 {
			tuples[i] = f.reply()
		}
	}
	return tuples
}

func BenchmarkHash(b *testing.B) {
	t := newTable(b, 1, Timeouts{})
	for _, c := range []struct {
		name string
		flow uint32
	}{{"IPv4", 0}, {"IPv6", 15}} {
		f := flowN(c.flow)
		k := f.forward()
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				t.Hash(&k)
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(sizeName(n), func(b *testing.B) {
			t := newTable(b, n, Timeouts{})
			fill(b, t, n)
			tuples := tuplesOf(n)
			b.ReportAllocs()
			i := 0
			cpu := startCPU()
			for b.Loop() {
				if t.Lookup(&tuples[i&(len(tuples)-1)]).Record == 0 {
					b.Fatal("not found")
				}
				i++
			}
			cpu.report(b, float64(b.N), "key")
		})
	}
}

func benchBatch(b *testing.B, n int, also func(t *Table, refs []Ref)) {
	const batch = 64
	t := newTable(b, n, Timeouts{})
	fill(b, t, n)
	tuples := tuplesOf(n)
	var hashes [batch]uint64
	var refs [batch]Ref
	b.ReportAllocs()
	i := 0
	cpu := startCPU()
	for b.Loop() {
		at := i * batch & (len(tuples) - 1)
		t.LookupBatch(tuples[at:at+batch], hashes[:], refs[:])
		if refs[i%batch].Record == 0 {
			b.Fatal("not found")
		}
		if also != nil {
			also(t, refs[:])
		}
		i++
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batch, "ns/key")
	cpu.report(b, float64(b.N)*batch, "key")
}

func BenchmarkLookupBatch(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(sizeName(n), func(b *testing.B) { benchBatch(b, n, nil) })
	}
}

// BenchmarkMap is the yardstick: the built-in map, one goroutine, the same tuples, one at a time.
func BenchmarkMap(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(sizeName(n), func(b *testing.B) {
			m := make(map[Tuple]Ref, 2*n)
			for i := range uint32(n) {
				f := flowN(i)
				m[f.forward()], m[f.reply()] = Ref{i + 1, Forward}, Ref{i + 1, Reply}
			}
			tuples := tuplesOf(n)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if m[tuples[i&(len(tuples)-1)]].Record == 0 {
					b.Fatal("not found")
				}
				i++
			}
		})
	}
}

// BenchmarkPacket is what the packet loop asks of the table for a packet of a known flow.
func BenchmarkPacket(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(sizeName(n), func(b *testing.B) {
			var to Target
			now := Tick(1)
			benchBatch(b, n, func(t *Table, refs []Ref) {
				now++ // a tick a batch: every last-seen is stored
				t.Warm(refs)
				for _, ref := range refs {
					t.Touch(ref.Record, ref.Direction, now, tcpACK)
					t.Target(ref, &to)
				}
			})
		})
	}
}

// BenchmarkInsert fills a table and empties it again, off the clock.
func BenchmarkInsert(b *testing.B) {
	for _, n := range benchSizes[1:] {
		b.Run(sizeName(n), func(b *testing.B) {
			t := newTable(b, n, Timeouts{})
			flows := make([]Flow, n)
			for i := range flows {
				flows[i] = flowN(uint32(i))
			}
			recs := make([]uint32, 0, n)
			b.ReportAllocs()
			cpu := startCPU()
			for b.Loop() {
				if len(recs) == n {
					b.StopTimer()
					cpu.pause()
					for _, rec := range recs {
						t.Remove(rec)
					}
					settle(t)
					recs = recs[:0]
					cpu.resume()
					b.StartTimer()
				}
				ref, _ := t.Insert(&flows[len(recs)], 0)
				recs = append(recs, ref.Record)
			}
			cpu.report(b, float64(b.N), "insert")
		})
	}
}

// BenchmarkInsertFlood inserts into a table full of unreplied flows: each insert sheds one. The grace periods are in the figure.
func BenchmarkInsertFlood(b *testing.B) {
	for _, most := range []int{0, 1 << 20} {
		b.Run(fmt.Sprintf("cap=%d", most), func(b *testing.B) {
			t := openCapped(b, 65536, most)
			n := uint32(0)
			b.ReportAllocs()
			cpu := startCPU()
			for b.Loop() {
				f := spoofed(n)
				if _, res := t.Insert(&f, 0); res != Inserted {
					b.Fatal(res)
				}
				if n++; n%2048 == 0 {
					settle(t)
				}
			}
			cpu.report(b, float64(b.N), "insert")
		})
	}
}

// BenchmarkExpire sweeps a full table in which nothing is due.
func BenchmarkExpire(b *testing.B) {
	for _, n := range benchSizes[1:] {
		b.Run(sizeName(n), func(b *testing.B) {
			t := newTable(b, n, Timeouts{})
			fill(b, t, n)
			for b.Loop() {
				t.Expire(0, 1000)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/record")
		})
	}
}

// BenchmarkMemory reports bytes a flow, all in: both arrays and the heap, in a table filled to 80 %, without and with a cap for
// clients.
func BenchmarkMemory(b *testing.B) {
	for i := range 2 * (len(benchSizes) - 1) {
		n, most := benchSizes[1+i/2], i%2*1000
		b.Run(fmt.Sprintf("%s/cap=%d", sizeName(n), most), func(b *testing.B) {
			for b.Loop() {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				t := openCapped(b, n, most*n)
				fill(b, t, n*8/10)
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(t.Stats().Flows), "B/flow")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
