package flowtable

import "sync/atomic"

// The life of a record, and why no reader ever sees one change under it:
//
//	free --Insert--> live --Remove--> retired, in limbo --Limbo--> in a batch --grace--> Reclaim--> free
//
// A reader is a worker between two batch boundaries or one run of a kernel program. It gets to a record only through
// a cell. Remove clears both cells, then puts the record into limbo, then Limbo takes it into a batch: a reader that
// starts after Limbo has returned cannot meet the record. The readers that had started before are waited for: the
// caller of Reclaim has seen every worker pass a batch boundary after Limbo returned (a sleeping worker is at one), and
// after that a membarrier (MEMBARRIER_CMD_GLOBAL), which waits for all running kernel programs, has returned.
//
// Memory model. In Go: the reader's boundary is an atomic store that the caller of Reclaim loads, and Reclaim and Insert
// pass the record on under mu, so the reader's last read happens before the first write of the reuse; the first read of
// a new reader happens after Insert's atomic store of the cell that it loaded. On the hardware: Go's atomics are
// sequentially consistent (XCHG on amd64, STLR and LDAR on arm64), so record before life before reply cell before
// forward cell holds for all observers. A kernel program loads a cell with one 8-byte load and computes the record's
// address from it: on amd64 loads stay in order, on arm64 the address dependency orders them.

// Remove unpublishes a flow, forward cell first, and puts its record into limbo. It reports whether this call did it:
// of several callers one does. The caller holds the record as a reader does, so it cannot have been reused.
func (t *Table) Remove(rec uint32) bool {
	if rec == 0 || int(rec) >= len(t.records) {
		return false
	}
	r := &t.records[rec]
	if atomic.LoadUint32(&r.life) != LifeLive {
		return false
	}
	fh, rh := t.hash(r.key(Forward)), t.hash(r.key(Reply))
	set := t.lock(fh, rh)
	// Not live under the lock: somebody else removed it. Live: Insert has published it, since it held this lock.
	if atomic.LoadUint32(&r.life) != LifeLive {
		t.unlock(set)
		return false
	}
	atomic.StoreUint32(&r.life, LifeRetired)
	t.unpublish(fh, cellOf(fh, rec, Forward))
	t.unpublish(rh, cellOf(rh, rec, Reply))
	t.unlock(set)

	var ch uint64
	if t.clients.most != 0 {
		ch = t.hashClient(r.addr[client])
	}
	t.mu.Lock()
	if t.clients.most != 0 {
		t.clients.drop(ch)
	}
	t.dequeue(rec)
	t.links[rec].next = t.limbo
	t.limbo = rec
	t.limboCount++
	t.liveCount--
	t.removed++
	t.judge()
	t.mu.Unlock()
	return true
}

func (t *Table) unpublish(h, cell uint64) {
	b1, b2 := t.pair(h)
	for _, b := range [2]uint32{b1, b2} {
		for i := range t.buckets[b] {
			if c := &t.buckets[b][i]; atomic.LoadUint64(c) == cell {
				atomic.StoreUint64(c, 0)
				return
			}
		}
	}
	t.stray.Add(1) // nobody but us writes cells: the memory was damaged
}

// Batch is a set of retired records on their way through one grace period. The zero Batch is empty.
type Batch struct {
	head  uint32
	count int
}

// Len returns the number of records in the batch.
func (b Batch) Len() int { return b.count }

// Limbo takes all records removed so far into a batch. The grace period that Reclaim needs begins when it returns.
func (t *Table) Limbo() Batch {
	t.mu.Lock()
	b := Batch{t.limbo, t.limboCount}
	t.limbo, t.limboCount = 0, 0
	t.judge()
	t.mu.Unlock()
	return b
}

// Reclaim makes a batch's records free. The caller guarantees the grace period, see above, and passes each batch once.
// It waits for an Expire or a step of All that runs elsewhere, since those hold records by number.
func (t *Table) Reclaim(b Batch) {
	t.sweep.Lock()
	defer t.sweep.Unlock()
	var head, tail uint32
	n := 0
	for rec := b.head; b.count > 0 && rec != 0; b.count-- {
		following := t.links[rec].next // ours: a record in a batch is on no list of the table
		// A record that is not retired has been here before. Losing it is better than giving it to two flows.
		if r := &t.records[rec]; atomic.LoadUint32(&r.life) == LifeRetired {
			atomic.StoreUint32(&r.life, LifeFree)
			if t.links[rec].next = head; head == 0 {
				tail = rec
			}
			head = rec
			n++
		}
		rec = following
	}
	if n == 0 {
		return
	}
	t.mu.Lock()
	t.links[tail].next = t.free
	t.free = head
	t.freeCount += n
	t.reclaimed += uint64(n)
	t.judge()
	t.mu.Unlock()
}
