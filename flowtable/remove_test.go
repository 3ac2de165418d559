package flowtable

import "testing"

func TestRemove(tt *testing.T) {
	t := newTable(tt, 8, Timeouts{})
	f := flowN(0)
	ref, _ := t.Insert(&f, 0)
	if !t.Remove(ref.Record) {
		tt.Fatal("not removed")
	}
	for _, k := range []Tuple{f.forward(), f.reply()} {
		if got := both(tt, t, k); got != (Ref{}) {
			tt.Errorf("%+v is still found", k)
		}
	}
	var got Flow
	if t.Flow(ref.Record, &got); got != normal(f) {
		tt.Errorf("a removed record changed under its readers: %+v", got)
	}
	for _, rec := range []uint32{ref.Record, 0, 5, 8, 9, 1 << 31} {
		if t.Remove(rec) {
			tt.Errorf("record %d removed", rec)
		}
	}
	check(tt, t)
}

func TestRecordsWaitForTheirGrace(tt *testing.T) {
	t := newTable(tt, 3, Timeouts{})
	fill(tt, t, 3)
	t.Remove(1)
	first := t.Limbo()
	t.Remove(2)
	second := t.Limbo()
	if first.Len() != 1 || second.Len() != 1 || t.Limbo().Len() != 0 {
		tt.Fatalf("batches %+v, %+v", first, second)
	}
	f := flowN(10)
	if _, res := t.Insert(&f, 0); res != Full {
		tt.Fatalf("in limbo and yet used: %v", res)
	}
	if s := t.Stats(); s.Limbo != 2 || s.Free != 0 || s.Flows != 1 {
		tt.Errorf("%+v", s)
	}
	t.Reclaim(second)
	if ref, res := t.Insert(&f, 0); res != Inserted || ref.Record != 2 {
		tt.Fatalf("%+v %v", ref, res)
	}
	t.Reclaim(first)
	if s := t.Stats(); s.Limbo != 0 || s.Free != 1 || s.Reclaimed != 2 || s.Removed != 2 || s.Inserted != 4 {
		tt.Errorf("%+v", s)
	}
	check(tt, t)
}

// A caller's mistake must not give one record to two flows.
func TestReclaimTwice(tt *testing.T) {
	t := newTable(tt, 8, Timeouts{})
	fill(tt, t, 8)
	for rec := uint32(1); rec <= 8; rec++ {
		t.Remove(rec)
	}
	b := t.Limbo()
	t.Reclaim(b)
	t.Reclaim(b)
	t.Reclaim(Batch{})
	check(tt, t)
	fill(tt, t, 5)
	t.Reclaim(b)
	check(tt, t)
}
