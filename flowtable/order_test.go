package flowtable

import (
	"runtime"
	"sync/atomic"
	"testing"
)

// TestRemoveTakesForwardFirst: the twin of TestForwardImpliesReply. While a flow goes, its forward cell is gone before its
// reply cell is. The reader watches the very cells, since the moment between the two stores is short.
func TestRemoveTakesForwardFirst(tt *testing.T) {
	n := rounds(20_000)
	t := newTable(tt, 64, Timeouts{})
	var going, gone atomic.Uint32 // the round that the writer may remove, and has removed
	var rec atomic.Uint32
	cell := func(k Tuple, rec uint32, d Direction) *uint64 {
		h := t.Hash(&k)
		b1, b2 := t.pair(h)
		for _, b := range [2]uint32{b1, b2} {
			for i := range t.buckets[b] {
				if load(&t.buckets[b][i]) == cellOf(h, rec, d) {
					return &t.buckets[b][i]
				}
			}
		}
		tt.Fatalf("record %d has no %v cell", rec, d)
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range uint32(n) {
			for going.Load() != i+1 {
				if tt.Failed() {
					return
				}
				runtime.Gosched()
			}
			t.Remove(rec.Load())
			gone.Store(i + 1)
		}
	}()
	for i := range uint32(n) {
		f := flowN(i)
		ref, res := t.Insert(&f, 0)
		if res != Inserted {
			tt.Fatal(res)
		}
		fc, rc := cell(f.forward(), ref.Record, Forward), cell(f.reply(), ref.Record, Reply)
		rec.Store(ref.Record)
		going.Store(i + 1)
		for spin := 1; load(rc) != 0; spin++ {
			if spin%1000 == 0 {
				runtime.Gosched()
			}
		}
		if load(fc) != 0 {
			tt.Errorf("flow %d: its reply cell was gone before its forward cell", i)
			break
		}
		for gone.Load() != i+1 {
			runtime.Gosched()
		}
		settle(t)
	}
	<-done
	check(tt, t)
}
