package flowtable

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"
)

// AdoptReport says what Open found.
type AdoptReport struct {
	Flows int // kept
	Torn  int // live records without both of their cells, or with another flow's tuple: dropped
	Cells int // index cells that led to no kept flow: cleared
}

func (r AdoptReport) String() string {
	return fmt.Sprintf("%d flows adopted, %d torn ones dropped, %d stray cells cleared", r.Flows, r.Torn, r.Cells)
}

// Open makes a table of two arrays that Format has prepared, in this life or a former one, and adopts the flows in
// them: those which are live and whose two tuples hash to where their two cells stand. Everything else is swept. It
// trusts nothing but the header, whose checksum it verifies. It must be the only writer; kernel programs may read.
//
// Generations and adjacencies of adopted flows become 0: their numbers were the former daemon's. Swept records go to
// limbo, not to the free list, since a kernel program may be on one.
func Open(index, records []byte, timeouts Timeouts) (*Table, AdoptReport, error) {
	return OpenWith(index, records, Options{Timeouts: timeouts})
}

// Options of a table. The zero value is what Open takes with default timeouts.
type Options struct {
	Timeouts     Timeouts
	MaxPerClient int // flows of one client address, adopted ones counted; 0 for no limit
}

// OpenWith is Open with options.
func OpenWith(index, records []byte, o Options) (*Table, AdoptReport, error) {
	var rep AdoptReport
	bs, rs, err := view(index, records)
	if err != nil {
		return nil, rep, err
	}
	seed, err := checkHeader(bs, rs, records[:RecordSize])
	if err != nil {
		return nil, rep, err
	}
	idle, err := o.Timeouts.ticks()
	if err != nil {
		return nil, rep, err
	}
	if o.MaxPerClient < 0 {
		return nil, rep, fmt.Errorf("flow table: at most %d flows a client, want 0 (no limit) or more", o.MaxPerClient)
	}
	t := &Table{
		buckets: bs, records: rs, n: uint64(len(bs)), idle: idle,
		links: make([]link, len(rs)+1), clients: newClients(o.MaxPerClient, len(rs)-1),
	}
	t.setSeed(seed)
	t.reserve = reserveOf(len(rs) - 1)
	t.limit = len(rs) - 1 - t.reserve

	kept := make([]uint8, len(bs)) // by bucket, a bit for each cell that leads to a kept flow
	for rec := uint32(1); int(rec) < len(rs); rec++ {
		if atomic.LoadUint32(&rs[rec].life) == LifeLive && !t.adopt(rec, kept) {
			rep.Torn++
			atomic.StoreUint32(&rs[rec].life, LifeRetired)
		}
	}
	for b := range bs {
		for i := range bs[b] {
			if kept[b]>>i&1 == 0 && atomic.LoadUint64(&bs[b][i]) != 0 {
				rep.Cells++
				atomic.StoreUint64(&bs[b][i], 0)
			}
		}
	}
	// From the top, so that the lowest record is the first that is used.
	for rec := uint32(len(rs) - 1); rec > 0; rec-- {
		switch life := &rs[rec].life; atomic.LoadUint32(life) {
		case LifeLive:
			t.liveCount++
		case LifeFree:
			t.links[rec].next = t.free
			t.free = rec
			t.freeCount++
		default:
			atomic.StoreUint32(life, LifeRetired)
			t.links[rec].next = t.limbo
			t.limbo = rec
			t.limboCount++
		}
	}
	t.line()
	rep.Flows = t.liveCount
	return t, rep, nil
}

// line rebuilds what Insert and Remove keep of live flows outside of the arrays: the queues, oldest first by the client's
// last packet, for want of the order of their inserts, and the counts of the clients.
func (t *Table) line() {
	for q := unanswered; q <= halfOpen; q++ {
		s := t.sentinel(q)
		t.links[s] = link{s, s}
	}
	var queued []uint32
	for rec := uint32(1); int(rec) < len(t.records); rec++ {
		r := &t.records[rec]
		if r.life != LifeLive {
			continue
		}
		if t.clients.most != 0 {
			t.clients.count(t.hashClient(r.addr[client]))
		}
		if t.links[rec] = (link{rec, rec}); r.standing() != settled {
			queued = append(queued, rec)
		}
	}
	if len(queued) == 0 {
		return
	}
	seen := func(rec uint32) uint32 { return atomic.LoadUint32(&t.records[rec].seen[Forward]) }
	newest := seen(queued[0])
	for _, rec := range queued {
		if tick := seen(rec); int32(tick-newest) > 0 {
			newest = tick
		}
	}
	slices.SortStableFunc(queued, func(a, b uint32) int { return cmp.Compare(newest-seen(b), newest-seen(a)) })
	for _, rec := range queued {
		t.enqueue(t.records[rec].standing(), rec)
	}
}

// adopt decides about one live record and marks its cells as kept.
func (t *Table) adopt(rec uint32, kept []uint8) bool {
	r := &t.records[rec]
	fk, rk := r.key(Forward), r.key(Reply)
	if r.flags&^FlagSource != 0 || fk == rk {
		return false
	}
	fb, fi, ok := t.standing(fk, rec, Forward, kept)
	if !ok {
		return false
	}
	rb, ri, ok := t.standing(rk, rec, Reply, kept)
	if !ok {
		return false
	}
	kept[fb] |= 1 << fi
	kept[rb] |= 1 << ri
	atomic.StoreUint32(&r.generation, 0)
	atomic.StoreUint32(&r.adj[Forward], 0)
	atomic.StoreUint32(&r.adj[Reply], 0)
	return true
}

// standing finds the cell of one direction of a record, unless a flow that is kept already has the tuple.
func (t *Table) standing(k key, rec uint32, d Direction, kept []uint8) (bucket uint32, place int, ok bool) {
	h := t.hash(k)
	cell := cellOf(h, rec, d)
	b1, b2 := t.pair(h)
	for _, b := range [2]uint32{b1, b2} {
		for i := range t.buckets[b] {
			x := atomic.LoadUint64(&t.buckets[b][i])
			if x == cell && !ok {
				bucket, place, ok = b, i, true
			}
			if kept[b]>>i&1 != 0 && x^tagOf(h) < cellTag && t.records[uint32(x)].is(x>>32, k.s0, k.s1, k.d0, k.d1, k.tail) {
				return 0, 0, false
			}
		}
	}
	return bucket, place, ok
}
