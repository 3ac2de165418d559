package flowtable

import (
	"math/bits"
	"sync/atomic"
)

// The way of an insert:
//
//  1. build the record aside; hash both of its tuples: four buckets, read ahead
//  2. lock their stripes
//  3. the forward tuple is there: Exists. The reply tuple is there: Collision
//  4. choose a cell for each in one of its tuple's two buckets; count the flow for its client; take a free record
//  5. fill the record, plainly: nobody else reads it
//  6. life = live; publish the reply cell; publish the forward cell; unlock
//  7. shed a flow if too many live (pressure.go). Had 4 found no cell, shed one of those in the way, and go to 2
//
// The reply goes first, and Remove takes the forward cell away first, so that at any moment
//
//	a forward tuple that can be found has a reply tuple that can be found.
//
// A worker that finds the forward tuple sends the frame on, and the answer may be at the classifier before a writer that
// lost its CPU between two stores has it back. Had the forward cell been first, that answer would leave untranslated and
// the client would reset the connection. The forward store is the moment of the insert: before it no frame of the flow
// has been sent, and a daemon killed there has lost nothing that anybody saw.

// InsertResult says what became of an insert.
type InsertResult uint8

const (
	Inserted  InsertResult = iota // the flow is in the table
	Exists                        // the forward tuple was there already: the Ref is what Lookup would return
	Collision                     // another flow has the reply tuple: choose another source port or address
	Full                          // no free record, or no free cell, and nothing to shed for it
	OverCap                       // the client has as many flows as one may have
)

func (r InsertResult) String() string {
	switch r {
	case Inserted:
		return "inserted"
	case Exists:
		return "exists"
	case Collision:
		return "collision"
	case OverCap:
		return "over_cap"
	}
	return "full"
}

// Insert puts a flow into the table unless one of its tuples is there. It decides every race: of several callers with
// one forward tuple one gets Inserted, and the others the winner's Ref, whose backend they take. It does not count the
// packet that caused it: that is Touch's, as for any other packet.
func (t *Table) Insert(f *Flow, now Tick) (Ref, InsertResult) {
	var n record
	n.pack(f)
	fk, rk := n.key(Forward), n.key(Reply)
	fh, rh := t.hash(fk), t.hash(rk)

	var ch uint64
	if t.clients.most != 0 {
		ch = t.hashClient(n.addr[client])
	}
	// The four buckets are read together, before locks and branches put one after the other. The values are not used.
	f1, f2 := t.pair(fh)
	r1, r2 := t.pair(rh)
	load(&t.buckets[f1][0])
	load(&t.buckets[r1][0])
	load(&t.buckets[f2][0])
	load(&t.buckets[r2][0])
	ref, res, also := t.insert(&n, f, &fk, &rk, fh, rh, ch, now)
	for try := 0; also > shedding && try < 2*bucketCells; try++ {
		h := fh
		if also == replyRoom {
			h = rh
		}
		if !t.makeRoom(h, now) {
			break
		}
		ref, res, also = t.insert(&n, f, &fk, &rk, fh, rh, ch, now)
	}
	switch {
	case also == shedding:
		t.shed(ref.Record)
	case res == Exists:
		t.exists.Add(1)
	case res == Collision:
		t.collisions.Add(1)
	case res == OverCap:
		t.overCaps.Add(1)
	case res == Full && also > shedding:
		t.fullCells.Add(1)
	case res == Full:
		t.fullRecords.Add(1)
	}
	return ref, res
}

// chore is what is left to do when an insert's locks are free again.
type chore uint8

const (
	noChore     chore = iota
	shedding          // too many flows live
	forwardRoom       // both buckets of the forward tuple are full
	replyRoom         // of the reply tuple
)

// insert is one try.
func (t *Table) insert(n *record, f *Flow, fk, rk *key, fh, rh, ch uint64, now Tick) (Ref, InsertResult, chore) {
	set := t.lock(fh, rh)
	// Mostly no cell has either tag, and then there is nothing to compare.
	if t.tagged(fh) {
		if ref := t.search(*fk, fh); ref.Record != 0 {
			t.unlock(set)
			return ref, Exists, noChore
		}
	}
	if *fk == *rk || t.tagged(rh) && t.search(*rk, rh).Record != 0 {
		t.unlock(set)
		return Ref{}, Collision, noChore
	}
	fc := t.vacant(fh, nil)
	if fc == nil {
		t.unlock(set)
		return Ref{}, Full, forwardRoom
	}
	rc := t.vacant(rh, fc)
	if rc == nil {
		t.unlock(set)
		return Ref{}, Full, replyRoom
	}
	rec, res, also := t.alloc(ch)
	if res != Inserted {
		t.unlock(set)
		return Ref{}, res, noChore
	}
	r := &t.records[rec]
	r.fill(n, f, now)
	atomic.StoreUint32(&r.life, LifeLive)
	atomic.StoreUint64(rc, cellOf(rh, rec, Reply))
	atomic.StoreUint64(fc, cellOf(fh, rec, Forward))
	t.unlock(set)
	return Ref{rec, Forward}, Inserted, also
}

// tagged reports whether a cell of a hash's two buckets may have its tag. The tag 0 is everywhere.
func (t *Table) tagged(h uint64) bool {
	b1, b2 := t.pair(h)
	tag := tagOf(h)
	return min(t.buckets[b1].nearest(tag), t.buckets[b2].nearest(tag)) < cellTag
}

// pack writes what a lookup compares.
func (r *record) pack(f *Flow) {
	r.addr = [3][2]uint64{wordsOf(&f.Client), wordsOf(&f.Frontend), wordsOf(&f.Backend)}
	if f.Source != f.Client && f.Source != ([16]byte{}) {
		r.source = wordsOf(&f.Source)
		r.flags = FlagSource
	}
	port := f.SourcePort
	if port == 0 {
		port = f.ClientPort
	}
	r.ports = [2]uint32{portsOf(f.ClientPort, f.FrontendPort), portsOf(f.BackendPort, port)}
	r.proto = f.Proto
}

// fill writes the whole record but its life, which the sweeper reads at any time and which must turn live last.
func (r *record) fill(n *record, f *Flow, now Tick) {
	r.addr, r.ports, r.proto, r.flags, r.source = n.addr, n.ports, n.proto, n.flags, n.source
	r.generation, r.began = f.Generation, uint32(now)
	r.adj = [2]uint32{f.ForwardAdj, f.ReplyAdj}
	r.seen = [2]uint32{uint32(now), uint32(now)}
	r.state = 0
	r.packets = [2]uint64{}
}

// vacant returns a free cell for a hash, or nil: in the first bucket while that has room to spare, because there a
// lookup comes first, else in the emptier of the two, which is what keeps any bucket from filling up. A flow's other
// cell, chosen but not yet written, is passed as taken. The caller holds the stripes, so that free cells stay free.
func (t *Table) vacant(h uint64, taken *uint64) *uint64 {
	b1, b2 := t.pair(h)
	n1, c1 := t.buckets[b1].vacancy(taken)
	if n1 >= roomToSpare {
		return c1
	}
	if n2, c2 := t.buckets[b2].vacancy(taken); n2 > n1 {
		return c2
	}
	return c1
}

// roomToSpare is how many of a bucket's eight cells are for tuples that have nowhere better to go.
const roomToSpare = 3

// vacancy counts the bucket's free cells and returns the first, which is the one that vacant has taken if it took one here.
func (b *bucket) vacancy(taken *uint64) (n int, first *uint64) {
	free := b.empty()
	if free == 0 {
		return 0, nil
	}
	if first = &b[bits.TrailingZeros32(free)%bucketCells]; first == taken {
		if free &= free - 1; free == 0 {
			return 0, nil
		}
		first = &b[bits.TrailingZeros32(free)%bucketCells]
	}
	return bits.OnesCount32(free), first
}

// empty returns the free cells as bits. It has no branch, as nearest has none.
func (b *bucket) empty() uint32 {
	return zero(load(&b[0])) | zero(load(&b[1]))<<1 | zero(load(&b[2]))<<2 | zero(load(&b[3]))<<3 |
		zero(load(&b[4]))<<4 | zero(load(&b[5]))<<5 | zero(load(&b[6]))<<6 | zero(load(&b[7]))<<7
}

// zero returns 1 for 0, else 0.
func zero(x uint64) uint32 { return uint32((x|-x)>>63) ^ 1 }

// alloc takes a record off the free list and counts it for its client. One list and one lock for the table: it is held
// for a few instructions, and only new flows come here.
func (t *Table) alloc(ch uint64) (uint32, InsertResult, chore) {
	t.mu.Lock()
	rec := t.free
	if rec == 0 {
		t.mu.Unlock()
		return 0, Full, noChore
	}
	if t.clients.most != 0 && !t.clients.take(ch) {
		t.mu.Unlock()
		return 0, OverCap, noChore
	}
	t.free = t.links[rec].next
	t.freeCount--
	t.liveCount++
	t.inserted++
	t.enqueue(unanswered, rec)
	t.judge()
	also := noChore
	if t.tooMany() {
		also = shedding
	}
	t.mu.Unlock()
	return rec, Inserted, also
}
