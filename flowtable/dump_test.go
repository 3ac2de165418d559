package flowtable

import (
	"testing"
	"time"
)

func TestAll(tt *testing.T) {
	t := newTable(tt, 3000, Timeouts{})
	for range t.All() {
		tt.Fatal("an empty table has a flow")
	}
	fill(tt, t, 2500)
	for rec := uint32(100); rec < 1500; rec++ {
		t.Remove(rec)
	}
	seen := map[uint32]bool{}
	for e := range t.All() {
		if seen[e.Record] {
			tt.Fatalf("record %d twice", e.Record)
		}
		seen[e.Record] = true
		if want := flowN(e.Record - 1); e.Flow != normal(want) {
			tt.Fatalf("%+v, want %+v", e.Flow, normal(want))
		}
	}
	if len(seen) != 1100 {
		tt.Errorf("%d flows", len(seen))
	}
	n := 0
	for range t.All() {
		if n++; n == 10 {
			break
		}
	}
	// The body may do to the table what it likes: nothing is locked.
	n = 0
	for e := range t.All() {
		t.Remove(e.Record)
		settle(t)
		t.Expire(0, 10)
		n++
	}
	if n != 1100 || t.Stats().Flows != 0 {
		tt.Errorf("%d flows, %+v", n, t.Stats())
	}
	check(tt, t)
}

func TestEntryTimes(t *testing.T) {
	e := Entry{Began: 60, ForwardSeen: 100, ReplySeen: 90}
	for now, want := range map[Tick]Tick{100: 0, 95: 0, 130: 30} {
		if got := e.Idle(now); got != want.Duration() {
			t.Errorf("Idle(%d) = %v, want %v", now, got, want.Duration())
		}
		if got := e.Age(now); got != (now - 60).Duration() {
			t.Errorf("Age(%d) = %v", now, got)
		}
	}
	if d := Tick(1000).Duration(); d != 1000<<20*time.Nanosecond || TickOf(uint64(d)) != 1000 {
		t.Errorf("1000 ticks are %v", d)
	}
}

func TestMarks(tt *testing.T) {
	t := newTable(tt, 2, Timeouts{})
	f := flowN(0)
	f.Generation, f.ForwardAdj, f.ReplyAdj = 1, 2, 3
	ref, _ := t.Insert(&f, 0)
	rec := ref.Record
	if g, a, b := t.Generation(rec), t.Adjacency(rec, Forward), t.Adjacency(rec, Reply); g != 1 || a != 2 || b != 3 {
		tt.Errorf("%d %d %d", g, a, b)
	}
	t.SetGeneration(rec, 4)
	t.SetAdjacency(rec, Forward, 5)
	t.SetAdjacency(rec, Reply, 6)
	if g, a, b := t.Generation(rec), t.Adjacency(rec, Forward), t.Adjacency(rec, Reply); g != 4 || a != 5 || b != 6 {
		tt.Errorf("%d %d %d", g, a, b)
	}
}
