package flowtable

import (
	"math/rand/v2"
	"testing"
)

// A client chooses its addresses and ports, and knows everything but the seed. Keys that crowd a table whose seed
// it knows are, in a table with a seed of its own, like any other keys: all fit, and a lookup looks at no more
// than 1.2 times as many lines.
func TestChosenKeys(tt *testing.T) {
	n := 1_000_000
	if raceEnabled {
		n = 20_000
	}
	known := newTable(tt, n, Timeouts{})
	crowd := uint32(n / 10) // 8 cells each: too few
	flow := func(i uint32) Flow {
		return Flow{
			Client: v4(198, 18, byte(i>>24), byte(i>>16)), Frontend: clusterIP(1), Backend: pod(i % 60000),
			ClientPort: uint16(i), FrontendPort: 443, BackendPort: uint16(8000 + i/60000%50000), SourcePort: uint16(i), Proto: protoTCP,
		}
	}
	// Those with both of their buckets among a few.
	var chosen, random []uint32
	for i := uint32(0); len(chosen) < n; i++ {
		f := flow(i)
		k := f.forward()
		if b1, b2 := known.pair(known.Hash(&k)); b1 < crowd && b2 < crowd {
			chosen = append(chosen, i)
		}
		if i == 1<<32-1 {
			tt.Fatal("not enough keys")
		}
	}
	// As many of the same range, but any.
	rng := newRand(5)
	last := chosen[n-1]
	for seen := make([]uint64, last/64+1); len(random) < n; {
		if i := rng.Uint32N(last); seen[i/64]>>(i%64)&1 == 0 {
			seen[i/64] |= 1 << (i % 64)
			random = append(random, i)
		}
	}

	fill := func(t *Table, keys []uint32) (unfit int) {
		for _, i := range keys {
			f := flow(i)
			t.Insert(&f, 0)
		}
		return len(keys) - t.Stats().Flows // unfit, or shed for another
	}
	unfit := fill(known, chosen)
	if unfit < n/10 {
		tt.Fatalf("the keys are not chosen well: only %d of %d do not fit", unfit, n)
	}
	known = nil

	// cost fills a table with a fresh seed and returns the lines of index and records that lookups look at, on average,
	// of flows that are there and of ones that are not.
	cost := func(keys []uint32) (hit, miss float64, lost int) {
		index, records := newImage(tt, n)
		if err := Format(index, records, [2]uint64{rand.Uint64(), rand.Uint64()}); err != nil {
			tt.Fatal(err)
		}
		t := open(tt, index, records, Timeouts{})
		there := keys[:len(keys)*8/10]
		lost = fill(t, there)
		lines := func(keys []uint32) float64 {
			sum := 0
			for _, i := range keys {
				f := flow(i)
				k := f.forward()
				sum += t.linesOf(&k)
			}
			return float64(sum) / float64(len(keys))
		}
		return lines(there), lines(keys[len(there):]), lost
	}
	hit, miss, lost := cost(chosen)
	hitRandom, missRandom, lostRandom := cost(random)
	tt.Logf("%d keys: %d would not fit under the known seed; under a fresh one a hit looks at %.3f lines (random keys %.3f), a miss at %.3f (%.3f)",
		n, unfit, hit, hitRandom, miss, missRandom)
	if lost > 0 || lostRandom > 0 {
		tt.Errorf("of %d keys %d chosen and %d random ones did not fit", n*8/10, lost, lostRandom)
	}
	if hit > 1.2*hitRandom || miss > 1.2*missRandom {
		tt.Error("more than 1.2 times as many as for random keys")
	}
}

// linesOf counts the lines that a lookup looks at: one or two of the index, and the records of cells with its tag.
func (t *Table) linesOf(k *Tuple) (n int) {
	h := t.Hash(k)
	b1, b2 := t.pair(h)
	for _, b := range [2]uint32{b1, b2} {
		n++
		for i := range t.buckets[b] {
			if c := load(&t.buckets[b][i]); c != 0 && c^tagOf(h) < cellTag {
				n++
				r := &t.records[uint32(c)]
				if key := r.key(Direction(c >> 32 & 1)); t.hash(key) == h {
					return n
				}
			}
		}
	}
	return n
}
