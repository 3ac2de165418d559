package flowtable

import "sync/atomic"

// A table under pressure gives up flows that nobody would miss, oldest first:
//
//   - unreplied ones: the other side has not said a word
//   - half-open ones (TCP: answered, but the client has not come back on it), once they are the greater part: that is
//     what a flood of forged SYNs is behind backends that answer each
//   - never a settled one: any other that was replied to. (The kernel's word is ASSURED.)
//
// A removed record needs a grace period before it can be used, so shedding begins ahead of need. A ninth of the records is
// a reserve, and Insert sheds as soon as more flows live than the rest. In a flood each insert then sheds one flow, and
// the reserve is what may wait for its grace period meanwhile: only a flood of more new flows in one grace period than
// the reserve has records sees Full. Settled flows may take the reserve, too; then half of it is left to those that wait
// for their answer.
//
// Insert puts every record at the end of a queue, the unreplied; nothing is done when a flow is answered. Whoever looks
// for a victim takes the oldest off: an unreplied one is the victim, a half-open one moves to the end of the second
// queue, a settled one leaves. So each flow is looked at twice in its life at most. Expire looks through the first queue
// too, a little at a time, so that the settled ones do not pile up in it before the first flood.

// standing says how dear a flow is.
type standing uint8

const (
	unanswered standing = iota
	halfOpen
	settled
)

const (
	reserveShare = 8  // the reserve is the capacity divided by it
	shedLook     = 16 // records that one insert looks at to find victims
	shedMost     = 2  // victims of one insert: more than it takes, so that a table that is too full gets out of it

	// finishedTimeout is for flows that both sides have closed while the table is crowded: the kernel's for CLOSE.
	finishedTimeout Tick = (10*1e9 + 1<<tickShift - 1) >> tickShift
)

// reserveOf returns how many of a number of records (the header not counted) are the reserve; Geometry adds them.
func reserveOf(records int) int { return records / (reserveShare + 1) }

// known is the state, with what the kernel's programs have seen and only counted.
func (r *record) known() State {
	s := State(atomic.LoadUint32(&r.state))
	if atomic.LoadUint64(&r.packets[Reply]) != 0 {
		s |= Replied
	}
	return s
}

// complete says that a record that Insert has queued is filled, and not yet retired.
func (r *record) complete() bool { return atomic.LoadUint32(&r.life) == LifeLive }

func (r *record) standing() standing {
	switch s := r.known(); {
	case s&Replied == 0:
		return unanswered
	case r.proto == protoTCP && s&Established == 0:
		return halfOpen
	}
	return settled
}

// A link joins a record to the list that it is on. A free or retired record is on a list that has only next, ending at 0.
// A live one is on one of the two queues, which are rings around a sentinel, or linked to itself. Under mu.
type link struct{ next, prev uint32 }

const inHalfOpen = 1 << 31 // in prev: the record is in the queue of half-open flows

// sentinel of a queue: the header's number, and the one after the last record.
func (t *Table) sentinel(q standing) uint32 { return uint32(q) * uint32(len(t.records)) }

func (t *Table) enqueue(q standing, rec uint32) {
	s := t.sentinel(q)
	tail := t.links[s].prev
	t.links[rec] = link{s, tail | uint32(q)*inHalfOpen}
	t.links[tail].next = rec
	t.links[s].prev = rec
	t.queued[q]++
}

// dequeue is for a live record, which may be on no queue.
func (t *Table) dequeue(rec uint32) {
	l := t.links[rec]
	if l.next == rec {
		return
	}
	if rec == t.walk {
		t.walk = l.next
	}
	t.queued[l.prev/inHalfOpen]--
	prev := l.prev &^ inHalfOpen
	t.links[prev].next = l.next
	t.links[l.next].prev = t.links[l.next].prev&inHalfOpen | prev
	t.links[rec] = link{rec, rec}
}

// tooMany says that it is time to shed: more flows live than the capacity, and either enough of them are not settled, so that
// each still has its time to be answered, or records run out. Under mu.
func (t *Table) tooMany() bool {
	return t.liveCount > t.limit && (t.queued[unanswered]+t.queued[halfOpen] > t.reserve/2 || t.freeCount <= t.reserve/4)
}

// shed removes flows while too many live, but not own, which the caller has just inserted. Its work is bounded. The caller
// is a worker in its batch and holds no lock.
func (t *Table) shed(own uint32) {
	look := shedLook
	for range shedMost {
		rec := t.victim(&look, own)
		if rec == 0 {
			return
		}
		if t.Remove(rec) { // it is as live as it was under mu: its grace period cannot end before our batch
			t.sheds.Add(1)
		}
	}
}

// victim takes the flow to shed off its queue, or returns 0 if there is no need, or none within the bound.
func (t *Table) victim(look *int, own uint32) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ; *look > 0 && t.tooMany(); *look-- {
		q := unanswered
		if t.queued[halfOpen] > t.queued[unanswered] {
			q = halfOpen
		}
		s := t.sentinel(q)
		rec := t.links[s].next
		if rec == s || rec == own || !t.records[rec].complete() {
			return 0 // whoever is behind our own, or behind one that is being filled, is as new
		}
		t.dequeue(rec)
		switch now := t.records[rec].standing(); {
		case now == q:
			return rec
		case now == halfOpen:
			t.enqueue(halfOpen, rec)
		}
	}
	return 0
}

// settle looks at the next n flows of the first queue and takes the settled ones off it. The caller holds sweep, so that no
// record in its hands is reused.
func (t *Table) settle(n int) {
	for n > 0 {
		var recs [32]uint32
		k := 0
		t.mu.Lock()
		if t.walk == 0 {
			t.walk = t.links[0].next
		}
		for ; t.walk != 0 && k < min(n, len(recs)); k++ {
			recs[k] = t.walk
			t.walk = t.links[t.walk].next
		}
		again := t.walk != 0
		t.mu.Unlock()
		n -= k

		// The records' lines are slow to come: nobody should wait for them behind mu.
		gone := recs[:0]
		for _, rec := range recs[:k] {
			if r := &t.records[rec]; r.complete() && r.standing() == settled {
				gone = append(gone, rec)
			}
		}
		if len(gone) > 0 {
			t.mu.Lock()
			for _, rec := range gone {
				// Removed since, a record is on another list, or about to leave the queue.
				if t.records[rec].complete() {
					t.dequeue(rec)
				}
			}
			t.mu.Unlock()
		}
		if !again {
			return
		}
	}
}

// makeRoom sheds the flow in a hash's two full buckets that is least dear, and of those the one whose client was silent
// longest. It reports whether there was one. As shed, it is called in a batch and without locks.
func (t *Table) makeRoom(h uint64, now Tick) bool {
	b1, b2 := t.pair(h)
	least, victim, longest := settled, uint32(0), Tick(0)
	for _, b := range [2]uint32{b1, b2} {
		for i := range t.buckets[b] {
			rec := uint32(load(&t.buckets[b][i]))
			if rec == 0 || int(rec) >= len(t.records) {
				continue
			}
			r := &t.records[rec]
			silent := idleFor(now, Tick(atomic.LoadUint32(&r.seen[Forward])))
			if s := r.standing(); s < least || s == least && s != settled && silent > longest {
				least, victim, longest = s, rec, silent
			}
		}
	}
	if victim == 0 || !t.Remove(victim) {
		return false
	}
	t.sheds.Add(1)
	return true
}

// Urgent reports that few records are free while removed ones wait: it is time for a grace period, sooner than usual. It
// is one load.
func (t *Table) Urgent() bool { return t.urgent.Load() }

// judge keeps urgent true. Under mu.
func (t *Table) judge() {
	if now := t.freeCount <= t.reserve/2 && t.limboCount > 0; now != t.urgentNow {
		t.urgentNow = now
		t.urgent.Store(now)
	}
}
