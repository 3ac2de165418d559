package flowtable

import (
	"iter"
	"sync/atomic"
	"time"
)

// Entry is a copy of one flow and of what is known of it.
type Entry struct {
	Record                       uint32
	Flow                         Flow
	State                        State
	Began                        Tick // the first packet
	ForwardSeen, ReplySeen       Tick
	ForwardPackets, ReplyPackets uint64
}

// Class is the word for the timeout that the flow is under: opening, established, close_wait, closing, unreplied, stream.
func (e *Entry) Class() string {
	return classWords[e.State.class(e.Flow.Proto, lasted(e.Began, e.ForwardSeen, e.ReplySeen))]
}

// Age returns the time since the flow's first packet. It begins again when ticks wrap, after 52 days.
func (e *Entry) Age(now Tick) time.Duration { return idleFor(now, e.Began).Duration() }

// Idle returns the time since the flow's last packet in either direction.
func (e *Entry) Idle(now Tick) time.Duration {
	return min(idleFor(now, e.ForwardSeen), idleFor(now, e.ReplySeen)).Duration()
}

// All yields the flows in order of their records. It is no snapshot of one instant: a flow that lives throughout is there
// once, one that comes or goes meanwhile may be. Copies are made a few at a time, between which Reclaim and Expire may
// run, and workers never wait: the loop's body may take as long as it likes.
func (t *Table) All() iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		var chunk [64]Entry
		for rec := uint32(1); int(rec) < len(t.records); {
			n := 0
			t.sweep.Lock()
			for end := min(int(rec)+1024, len(t.records)); int(rec) < end && n < len(chunk); rec++ {
				if r := &t.records[rec]; atomic.LoadUint32(&r.life) == LifeLive {
					chunk[n].copy(rec, r)
					n++
				}
			}
			t.sweep.Unlock()
			for i := range chunk[:n] {
				if !yield(&chunk[i]) {
					return
				}
			}
		}
	}
}

func (e *Entry) copy(rec uint32, r *record) {
	e.Record = rec
	r.unpack(&e.Flow)
	e.State = r.known()
	e.Began = Tick(r.began)
	e.ForwardSeen = Tick(atomic.LoadUint32(&r.seen[Forward]))
	e.ReplySeen = Tick(atomic.LoadUint32(&r.seen[Reply]))
	e.ForwardPackets = atomic.LoadUint64(&r.packets[Forward])
	e.ReplyPackets = atomic.LoadUint64(&r.packets[Reply])
}

// Stats are the table's figures. Capacity + Reserve is Flows + Limbo + Free, but for the moments between.
type Stats struct {
	Capacity int // flows that fit before unreplied ones are shed
	Reserve  int // records beyond, for removed ones that wait; settled flows may take them, down to the last
	Flows    int // live
	Limbo    int // removed, not yet free: waiting for Limbo, or for the grace period
	Free     int

	Inserted, Exists, Collisions uint64 // results of Insert
	FullRecords, FullCells       uint64 // and Full, by what was missing
	OverCap                      uint64 // and OverCap
	Removed, Reclaimed           uint64
	Expired, Shed, Reconciled    uint64 // of Removed: by Expire, by Insert under pressure, by Reconcile
	Stray                        uint64 // cells that Remove did not find: damaged memory
}

// Full returns the number of inserts that found no room.
func (s *Stats) Full() uint64 { return s.FullRecords + s.FullCells }

// Stats returns the figures of now.
func (t *Table) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Stats{
		Capacity: t.limit, Reserve: t.reserve,
		Flows: t.liveCount, Free: t.freeCount, Limbo: len(t.records) - 1 - t.liveCount - t.freeCount,
		Inserted: t.inserted, Removed: t.removed, Expired: t.expired, Reclaimed: t.reclaimed,
		Shed: t.sheds.Load(), Reconciled: t.reconciled, OverCap: t.overCaps.Load(),
		Exists: t.exists.Load(), Collisions: t.collisions.Load(),
		FullRecords: t.fullRecords.Load(), FullCells: t.fullCells.Load(), Stray: t.stray.Load(),
	}
}
