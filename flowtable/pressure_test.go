package flowtable

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// spoofed is the n-th flow of a flood of forged sources.
func spoofed(n uint32) Flow {
	f := Flow{
		Client: v4(203, 0, 113, byte(n)), Frontend: clusterIP(n % 50), Backend: pod(40000 + n%100),
		ClientPort: uint16(n >> 8), FrontendPort: 80, BackendPort: 8080, Proto: protoTCP,
	}
	f.Client[12], f.Client[13] = byte(100+n>>24), byte(n>>17)
	return f
}

// honest is the n-th connection of clients that mean it.
func honest(n uint32) Flow {
	f := flowN(2 * n)
	f.Frontend, f.Proto = clusterIP(60), protoTCP
	return f
}

func begin(tb testing.TB, t *Table, f Flow, now Tick) (uint32, InsertResult) {
	tb.Helper()
	ref, res := t.Insert(&f, now)
	if res == Inserted {
		t.Touch(ref.Record, Forward, now, syn)
	}
	return ref.Record, res
}

func has(t *Table, f Flow, rec uint32) bool {
	k := f.forward()
	return rec != 0 && t.Lookup(&k).Record == rec
}

// TestSYNFlood: a million forged SYNs into a table of 65536, with a grace period every few thousand, while 1000 connections
// live and others begin. Once nobody answers the forged ones, once the backends do, and the forged clients send no ACK.
func TestSYNFlood(tt *testing.T) {
	for _, c := range []struct {
		name     string
		answered bool
	}{{"unanswered", false}, {"answered by the backends", true}} {
		tt.Run(c.name, func(tt *testing.T) {
			capacity, grace, syns := 65536, uint32(2048), uint32(1_000_000)
			if raceEnabled {
				capacity, grace, syns = 16384, 512, 60_000
			}
			const live, every, roundTrip = 1000, 100, 500
			t := newTable(tt, capacity, Timeouts{})
			now := Tick(1)
			alive := map[uint32]Flow{}
			for i := range uint32(live) {
				f := honest(i)
				rec, _ := begin(tt, t, f, now)
				t.Touch(rec, Reply, now, synAck)
				t.Touch(rec, Forward, now, ack)
				alive[rec] = f
			}
			type connect struct {
				rec uint32
				f   Flow
				at  uint32
			}
			var opening []connect
			connects, refused, urgent := 0, 0, 0
			var batch Batch
			for n := range syns {
				if n%1000 == 0 {
					now++
					t.Expire(now, 1000)
				}
				if rec, res := begin(tt, t, spoofed(n), now); c.answered && res == Inserted {
					t.Touch(rec, Reply, now, synAck)
				}
				if n%every == 0 {
					connects++
					f := honest(live + uint32(connects))
					rec, res := begin(tt, t, f, now)
					if res != Inserted {
						refused++
					}
					opening = append(opening, connect{rec, f, n})
				}
				for len(opening) > 0 && n-opening[0].at >= roundTrip {
					o := opening[0]
					opening = opening[1:]
					if !has(t, o.f, o.rec) {
						refused++
						continue
					}
					t.Touch(o.rec, Reply, now, synAck)
					t.Touch(o.rec, Forward, now, ack)
					alive[o.rec] = o.f
				}
				if t.Urgent() {
					urgent++
				}
				if n%grace == grace-1 { // what was removed before the last one is free now
					t.Reclaim(batch)
					batch = t.Limbo()
				}
			}
			for rec, f := range alive {
				if !has(t, f, rec) {
					tt.Fatalf("established flow %d is gone", rec)
				}
			}
			s := t.Stats()
			tt.Logf("%d SYNs: %d of %d live flows lost, %d of %d honest connects failed; %d shed, %d full, urgent after %d inserts",
				syns, 0, len(alive), refused, connects, s.Shed, s.Full(), urgent)
			if refused*100 > connects || s.Flows > capacity+shedMost {
				tt.Errorf("%d of %d connects failed, %+v", refused, connects, s)
			}
			check(tt, t)
			t.Reclaim(batch)
			settle(t)
			check(tt, t)
		})
	}
}

// Victims go oldest first, whatever else the queue holds.
func TestShedOldestFirst(tt *testing.T) {
	t := newTable(tt, 64, Timeouts{})
	fill(tt, t, 64)
	for rec := uint32(1); rec <= 64; rec += 2 { // every second one is settled
		settleFlow(t, rec)
	}
	for i, want := range []uint32{2, 4, 6, 8} {
		f := flowN(100 + uint32(i))
		ref, res := t.Insert(&f, 0)
		if res != Inserted || t.records[want].life != LifeRetired || t.Stats().Shed != uint64(i+1) || t.Stats().Flows != 64 {
			tt.Fatalf("insert %d: %+v %v, life of record %d is %d, %+v", i, ref, res, want, t.records[want].life, t.Stats())
		}
		check(tt, t)
	}
	if s := t.Stats(); s.Removed != 4 || s.Full() != 0 {
		tt.Errorf("%+v", s)
	}
}

// Half-open flows are spared while they are the smaller part, and give way oldest first when they are the greater one.
func TestShedHalfOpen(tt *testing.T) {
	open := func(tt *testing.T, answered int) *Table {
		t := newTable(tt, 80, Timeouts{})
		for i := range uint32(80) {
			f := honest(i)
			rec, _ := begin(tt, t, f, 0)
			if int(i) < answered {
				t.Touch(rec, Reply, 0, synAck)
			}
		}
		return t
	}
	for _, c := range []struct {
		name     string
		answered int
		first    uint32 // the record that goes first
	}{{"a few", 10, 11}, {"most", 60, 1}, {"all", 80, 1}} {
		tt.Run(c.name, func(tt *testing.T) {
			t := open(tt, c.answered)
			for i := range uint32(5) {
				for n := 0; t.Stats().Shed == uint64(i); n++ { // half-open ones move over first, some an insert
					if rec, res := begin(tt, t, honest(1000+100*i+uint32(n)), 0); res != Inserted || n > 9 {
						tt.Fatalf("record %d, %v, after %d inserts: %+v", rec, res, n, t.Stats())
					}
				}
				check(tt, t)
			}
			if t.records[c.first].life != LifeRetired || c.first > 1 && t.records[1].life != LifeLive {
				tt.Errorf("life of record 1 is %d, of %d it is %d", t.records[1].life, c.first, t.records[c.first].life)
			}
		})
	}
}

// A full table of settled flows keeps them all and says so; half of the reserve is left to flows that are being answered.
func TestShedNeverSettled(tt *testing.T) {
	t := newTable(tt, 80, Timeouts{})
	n := uint32(0)
	for ; ; n++ {
		rec, res := begin(tt, t, honest(n), 0)
		if res == Full {
			break
		}
		t.Touch(rec, Reply, 0, synAck)
		t.Touch(rec, Forward, 0, ack)
	}
	if s := t.Stats(); n != 90 || s.Flows != 90 || s.Shed != 0 || s.Free != 0 {
		tt.Fatalf("%d inserted, %+v", n, s)
	}
	for rec := uint32(1); rec <= 8; rec++ {
		t.Remove(rec)
	}
	if settle(t); t.Urgent() {
		tt.Error("urgent with nothing to reclaim")
	}
	for i := range uint32(5) { // five at a time are given time to be answered
		begin(tt, t, honest(200+i), 0)
	}
	if s := t.Stats(); s.Shed != 0 || s.Flows != 87 {
		tt.Errorf("%+v", s)
	}
	// One too many, and with its victim's record the free ones are down to a quarter of the reserve: another goes.
	begin(tt, t, honest(300), 0)
	if s := t.Stats(); s.Shed != 2 || !t.Urgent() {
		tt.Errorf("%+v, urgent %v", s, t.Urgent())
	}
	for rec := uint32(9); rec <= 90; rec++ {
		if t.records[rec].life != LifeLive {
			tt.Errorf("settled flow %d was shed", rec)
		}
	}
	check(tt, t)
}

// Two buckets full of unreplied flows make room for a new one; of settled ones they do not, see TestInsertFullOfCells.
func TestShedForACell(tt *testing.T) {
	index, records := make([]byte, 2*BucketSize), make([]byte, 64*RecordSize)
	if err := Format(index, records, testSeed); err != nil {
		tt.Fatal(err)
	}
	t := open(tt, index, records, Timeouts{})
	for i := range uint32(8) {
		f := honest(i)
		ref, _ := t.Insert(&f, Tick(i))
		if i != 3 {
			t.Touch(ref.Record, Reply, Tick(i), synAck)
		}
		if i > 5 {
			t.Touch(ref.Record, Forward, Tick(i), ack)
		}
	}
	for i, want := range []uint32{4, 9, 10} { // the unreplied one, then always the last
		f := honest(100 + uint32(i))
		ref, res := t.Insert(&f, 100)
		if res != Inserted || t.records[want].life != LifeRetired {
			tt.Fatalf("insert %d: %+v %v, record %d has life %d", i, ref, res, want, t.records[want].life)
		}
		check(tt, t)
	}
	t.Touch(11, Reply, 100, synAck)
	f := honest(200)
	if _, res := t.Insert(&f, 100); res != Inserted || t.records[1].life != LifeRetired {
		tt.Fatalf("%v, the oldest half-open flow has life %d", res, t.records[1].life)
	}
	check(tt, t)
	if s := t.Stats(); s.Shed != 4 || s.Full() != 0 {
		tt.Errorf("%+v", s)
	}
}

// Expire takes settled flows off the queue, so that a flood finds its victims at once.
func TestSettleBeforeTheFlood(tt *testing.T) {
	const n = 4000
	t := newTable(tt, n, Timeouts{})
	fill(tt, t, n)
	for rec := uint32(1); rec <= n; rec++ {
		if rec%100 != 0 {
			settleFlow(t, rec)
		}
	}
	for range 20 {
		t.Expire(0, n/4)
		check(tt, t)
	}
	if t.queued != [2]int{n / 100, 0} {
		tt.Fatalf("queues of %v, want %d unreplied", t.queued, n/100)
	}
	for i := range uint32(n / 8) {
		f := spoofed(i)
		t.Insert(&f, 0)
	}
	if s := t.Stats(); s.Shed == 0 || s.Flows < n || s.Full() != 0 {
		tt.Errorf("%+v", s)
	}
	check(tt, t)
}

func TestUrgent(tt *testing.T) {
	t := newTable(tt, 80, Timeouts{}) // a reserve of 10: urgent from 5 on
	fill(tt, t, 80)
	for i, want := range []bool{false, false, false, false, true, true} {
		f := spoofed(uint32(i))
		if t.Insert(&f, 0); t.Urgent() != want {
			tt.Errorf("%d free: urgent %v", t.Stats().Free, t.Urgent())
		}
	}
	b := t.Limbo()
	if t.Urgent() {
		tt.Error("urgent with an empty limbo")
	}
	f := spoofed(100)
	if t.Insert(&f, 0); !t.Urgent() {
		tt.Error("not urgent, with one in limbo")
	}
	if t.Reclaim(b); t.Urgent() {
		tt.Error("urgent after all")
	}
	check(tt, t)
}

// TestConcurrentFlood: workers flood, others connect and keep what they have; nothing settled is lost, nothing is torn.
func TestConcurrentFlood(tt *testing.T) {
	const capacity = 2000
	index, records := newImage(tt, capacity)
	t, _, err := OpenWith(index, records, Options{MaxPerClient: capacity})
	if err != nil {
		tt.Fatal(err)
	}
	ws := make([]worker, 4)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var floods, connected atomic.Uint64
	for i := range ws {
		wg.Add(1)
		go func() {
			defer wg.Done()
			w := &ws[i]
			defer w.sleep()
			mine := map[uint32]Flow{}
			for n := uint32(0); !stop.Load(); n++ {
				if i < 2 {
					for range 16 {
						f := spoofed(uint32(floods.Add(1)))
						if ref, res := t.Insert(&f, 0); res == Inserted && n%2 == 0 {
							t.Touch(ref.Record, Reply, 0, synAck)
						}
					}
				} else {
					f := honest(uint32(i)<<20 | n)
					if rec, res := begin(tt, t, f, 0); res == Inserted {
						t.Touch(rec, Reply, 0, synAck)
						t.Touch(rec, Forward, 0, ack)
						if has(t, f, rec) { // else it was shed before its answer
							mine[rec] = f
							connected.Add(1)
						}
					}
					for rec, f := range mine {
						if !has(t, f, rec) {
							tt.Errorf("settled flow %d was lost", rec)
							return
						}
						if len(mine) > 300 {
							t.Remove(rec)
							delete(mine, rec)
						}
					}
				}
				w.boundary()
				runtime.Gosched()
			}
		}()
	}
	for range rounds(2000) {
		t.Expire(0, 500)
		b := t.Limbo()
		grace(ws)
		t.Reclaim(b)
	}
	stop.Store(true)
	wg.Wait()
	check(tt, t)
	s := t.Stats()
	tt.Logf("%d forged, %d connected, %+v", floods.Load(), connected.Load(), s)
	if s.Shed == 0 || connected.Load() == 0 || s.Stray != 0 {
		tt.Error("nothing happened")
	}
}

// In a crowd, what both sides have closed goes after seconds, what was reset or lives does not.
func TestExpireInACrowd(tt *testing.T) {
	for _, crowd := range []bool{false, true} {
		t := newTable(tt, 64, Timeouts{})
		n := 40
		if crowd {
			n = 60
		}
		for i := range n {
			rec, _ := begin(tt, t, honest(uint32(i)), 0)
			t.Touch(rec, Reply, 0, synAck)
			t.Touch(rec, Forward, 0, ack)
			switch i % 4 {
			case 1:
				t.Touch(rec, Forward, 0, rst)
			case 2:
				t.Touch(rec, Forward, 0, fin)
			case 3:
				t.Touch(rec, Forward, 0, fin)
				t.Touch(rec, Reply, 0, fin)
			}
		}
		if got := t.Expire(ticksOf(10*time.Second), 100); got != 0 {
			tt.Errorf("crowd %v: %d gone after 10 s", crowd, got)
		}
		want := 0
		if crowd {
			want = n / 4
		}
		if got := t.Expire(ticksOf(10*time.Second)+1, 100); got != want {
			tt.Errorf("crowd %v: %d gone after more than 10 s, want %d", crowd, got, want)
		}
		check(tt, t)
	}
}
