package flowtable

import (
	"slices"
	"testing"
)

func TestLookup(tt *testing.T) {
	t := newTable(tt, 4000, Timeouts{})
	var flows []Flow
	for i := range uint32(4000) {
		f := flowN(i)
		if i%7 == 0 {
			f.Source, f.SourcePort = pod(60000+i%100), uint16(20000+i)
		}
		if i%5 == 0 {
			f.SourcePort = uint16(30000 + i)
		}
		ref, res := t.Insert(&f, 0)
		if res != Inserted {
			tt.Fatalf("flow %d: %v", i, res)
		}
		var got Flow
		if t.Flow(ref.Record, &got); got != normal(f) {
			tt.Fatalf("flow %d: %+v, want %+v", i, got, normal(f))
		}
		flows = append(flows, f)
	}
	check(tt, t)

	var tuples []Tuple
	var want []Ref
	byTuple := map[Tuple]Ref{}
	for e := range t.All() {
		byTuple[e.Flow.forward()] = Ref{e.Record, Forward}
		byTuple[e.Flow.reply()] = Ref{e.Record, Reply}
	}
	for _, f := range flows {
		other, wrongProto := f.forward(), f.reply()
		other.SrcPort ^= 0x8000
		wrongProto.Proto ^= 1
		for _, k := range []Tuple{f.forward(), f.reply(), other, wrongProto} {
			tuples = append(tuples, k)
			want = append(want, byTuple[k])
		}
	}
	for i := range tuples {
		if got := t.Lookup(&tuples[i]); got != want[i] {
			tt.Fatalf("Lookup(%+v) = %+v, want %+v", tuples[i], got, want[i])
		}
	}
	for _, n := range []int{0, 1, 2, 63, 64, 65, 128, 1000, len(tuples)} {
		hashes, refs := make([]uint64, n), make([]Ref, n)
		t.LookupBatch(tuples[:n], hashes, refs)
		if !slices.Equal(refs, want[:n]) {
			tt.Fatalf("batch of %d differs", n)
		}
		for i, h := range hashes {
			if h != hashSlow(testSeed, &tuples[i]) {
				tt.Fatalf("batch of %d: hash %d is %#x", n, i, h)
			}
		}
	}
}

// A hint reads nothing: not for a record that does not exist, not for an empty batch.
func TestHintsAreHarmless(tt *testing.T) {
	t := newTable(tt, 64, Timeouts{})
	t.fetchBuckets(t.n, nil)
	t.fetchRecords(nil)
	t.fetchBuckets(t.n, []uint64{0, 1<<64 - 1, 1 << 31})
	refs := []Ref{{}, {1, Reply}, {64, Forward}, {1 << 31, Reply}, {1<<32 - 1, absent}}
	t.fetchRecords(refs)
	t.Warm(nil)
	t.Warm(refs)
	check(tt, t)
}

func TestLookupBatchLeavesTheRest(tt *testing.T) {
	t := newTable(tt, 64, Timeouts{})
	refs := []Ref{{7, Reply}, {7, Reply}, {7, Reply}}
	t.LookupBatch(make([]Tuple, 2), make([]uint64, 3), refs)
	if !slices.Equal(refs, []Ref{{}, {}, {7, Reply}}) {
		tt.Errorf("%+v", refs)
	}
}

// both looks a tuple up in both ways.
func both(tt *testing.T, t *Table, k Tuple) Ref {
	tt.Helper()
	var refs [1]Ref
	t.LookupBatch([]Tuple{k}, make([]uint64, 1), refs[:])
	if one := t.Lookup(&k); one != refs[0] {
		tt.Fatalf("Lookup %+v, LookupBatch %+v", one, refs[0])
	}
	return refs[0]
}

// A tag that lies: cells with the tuple's tag that lead elsewhere, before and after its own.
func TestLookupEqualTags(tt *testing.T) {
	t := newTable(tt, 64, Timeouts{})
	fill(tt, t, 20)
	f := flowN(100)
	k := f.forward()
	h := t.Hash(&k)
	b1, b2 := t.pair(h)
	for _, b := range []uint32{b1, b2} {
		for i := range t.buckets[b] {
			if t.buckets[b][i] == 0 {
				t.buckets[b][i] = tagOf(h) | uint64(i%2)<<32 | uint64(1+i)
				break
			}
		}
	}
	if got := both(tt, t, k); got != (Ref{}) {
		tt.Fatalf("absent flow: %+v", got)
	}
	want, res := t.Insert(&f, 0)
	if res != Inserted {
		tt.Fatal(res)
	}
	for _, b := range []uint32{b1, b2} {
		for i := range t.buckets[b] {
			if t.buckets[b][i] == 0 {
				t.buckets[b][i] = tagOf(h) | cellRecord // a record that does not exist
			}
		}
	}
	if got := both(tt, t, k); got != want {
		tt.Fatalf("%+v, want %+v", got, want)
	}
}

// Tag 0 is what an empty cell has. This tuple has it under the test's seed.
func TestLookupTagZero(tt *testing.T) {
	t := newTable(tt, 64, Timeouts{})
	f := Flow{Client: pod(22993), Frontend: clusterIP(1), Backend: pod(2), FrontendPort: 80, BackendPort: 80, Proto: protoTCP}
	f.ClientPort = 39848
	k := f.forward()
	if tag := tagOf(t.Hash(&k)); tag != 0 {
		tt.Fatalf("tag %#x", tag)
	}
	if got := both(tt, t, k); got != (Ref{}) {
		tt.Fatalf("absent flow: %+v", got)
	}
	ref, _ := t.Insert(&f, 0)
	if got := both(tt, t, k); got != ref || ref.Record == 0 {
		tt.Fatalf("%+v, want %+v", got, ref)
	}
	check(tt, t)
	t.Remove(ref.Record)
	if got := both(tt, t, k); got != (Ref{}) {
		tt.Fatalf("removed flow: %+v", got)
	}
	settle(t)
	check(tt, t)
}

// A tuple that differs from a record's in any one bit, or in any two, is not its tuple.
func TestCompareEveryBit(tt *testing.T) {
	t := newTable(tt, 64, Timeouts{})
	for _, n := range []uint32{0, 1, 14, 15} {
		f := flowN(n)
		if n == 14 {
			f.Source, f.SourcePort = pod(60000), 555
		}
		ref, _ := t.Insert(&f, 0)
		r := &t.records[ref.Record]
		for d, k := range []Tuple{f.forward(), f.reply()} {
			is := func(k *Tuple) bool {
				s0, s1 := k.src()
				d0, d1 := k.dst()
				return r.is(uint64(d), s0, s1, d0, d1, k.tail())
			}
			if !is(&k) {
				tt.Fatalf("flow %d: %+v is not its own", n, k)
			}
			for i := range tupleBits {
				flip(&k, i)
				if is(&k) {
					tt.Fatalf("flow %d: bit %d of %+v does not count", n, i, k)
				}
				for j := range i {
					flip(&k, j)
					if is(&k) {
						tt.Fatalf("flow %d: bits %d and %d of %+v do not count", n, i, j, k)
					}
					flip(&k, j)
				}
				flip(&k, i)
			}
		}
	}
}

const tupleBits = 37 * 8

func flip(k *Tuple, i int) {
	switch b := i / 8; {
	case b < 16:
		k.Src[b] ^= 1 << (i % 8)
	case b < 32:
		k.Dst[b-16] ^= 1 << (i % 8)
	case b < 34:
		k.SrcPort ^= 1 << (i % 16)
	case b < 36:
		k.DstPort ^= 1 << (i % 16)
	default:
		k.Proto ^= 1 << (i % 8)
	}
}

// FuzzCompare holds the comparison to Go's own of two tuples.
func FuzzCompare(f *testing.F) {
	f.Add(count(37), count(37), false)
	f.Fuzz(func(tt *testing.T, a, b []byte, reply bool) {
		tuple := func(p []byte) (k Tuple) {
			p = append(p, make([]byte, 37)...)
			copy(k.Src[:], p)
			copy(k.Dst[:], p[16:])
			k.SrcPort, k.DstPort, k.Proto = uint16(p[32])<<8|uint16(p[33]), uint16(p[34])<<8|uint16(p[35]), p[36]
			return k
		}
		k, l := tuple(a), tuple(b)
		var r record
		flow, d := Flow{Client: k.Src, Frontend: k.Dst, ClientPort: k.SrcPort, FrontendPort: k.DstPort, Proto: k.Proto}, Forward
		if reply {
			flow, d = Flow{Backend: k.Src, Client: k.Dst, BackendPort: k.SrcPort, ClientPort: k.DstPort, Proto: k.Proto}, Reply
		}
		r.pack(&flow)
		s0, s1 := l.src()
		d0, d1 := l.dst()
		if got, want := r.is(uint64(d), s0, s1, d0, d1, l.tail()), k == l; got != want {
			tt.Fatalf("%+v is %+v: %v", k, l, got)
		}
	})
}

// One tuple cannot be two flows' forward and reply: the second flow does not get in.
func TestLookupDirection(tt *testing.T) {
	t := newTable(tt, 64, Timeouts{})
	f := flowN(0)
	ref, _ := t.Insert(&f, 0)
	if got := both(tt, t, f.forward()); got != (Ref{ref.Record, Forward}) {
		tt.Errorf("forward: %+v", got)
	}
	if got := both(tt, t, f.reply()); got != (Ref{ref.Record, Reply}) {
		tt.Errorf("reply: %+v", got)
	}
	// The right tuple under the wrong direction bit is not a match.
	r := &t.records[ref.Record]
	k := r.key(Forward)
	if r.is(uint64(Reply), k.s0, k.s1, k.d0, k.d1, k.tail) || !r.is(uint64(Forward), k.s0, k.s1, k.d0, k.d1, k.tail) {
		tt.Error("direction does not count")
	}
}
