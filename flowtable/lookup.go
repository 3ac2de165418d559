package flowtable

import "sync/atomic"

// The way of a lookup, which takes no lock and writes nothing:
//
//  1. hash the tuple: two candidate buckets and a tag
//  2. read the cells of the first bucket with atomic loads, and of the second if no tag was equal
//  3. compare the whole tuple with the side of that cell's record which the cell's direction bit names
//  4. if it differs (one tag in 2^31 lies), search: compare at every cell of both whose tag is equal
//
// A cell is published after its record is complete, so whoever loads it may read the record plainly; and the record is
// not reused before the reader's batch is over. A flow never moves to another cell, so a flow that is in the table for
// the whole of a lookup is found by it.

// Lookup finds a tuple in either direction. The zero Ref means that the table does not hold it.
func (t *Table) Lookup(k *Tuple) Ref {
	s0, s1 := k.src()
	d0, d1 := k.dst()
	tail := k.tail()
	// What follows is sip for IPv4 and is, by hand: two calls would cost as much as the work in them.
	var h uint64
	if mapped4(s0, s1, d0, d1) {
		w, last := s1>>32|d1&^(1<<32-1), tail|13<<56
		v0, v1, v2, v3 := t.v[0], t.v[1], t.v[2], t.v[3]
		v0, v1, v2, v3 = round(v0, v1, v2, v3^w)
		v0, v1, v2, v3 = round(v0^w, v1, v2, v3^last)
		v0, v1, v2, v3 = round(v0^last, v1, v2^0xff, v3)
		v0, v1, v2, v3 = round(v0, v1, v2, v3)
		v0, v1, v2, v3 = round(v0, v1, v2, v3)
		h = v0 ^ v1 ^ v2 ^ v3
	} else {
		h = t.sip(s0, s1, d0, d1, tail)
	}
	tag := tagOf(h)
	x := t.buckets[t.first(h)].nearest(tag)
	if x >= cellTag {
		_, b2 := t.pair(h)
		if x = t.buckets[b2].nearest(tag); x >= cellTag {
			return Ref{}
		}
	}
	if rec := uint32(x); rec != 0 && int(rec) < len(t.records) {
		r := &t.records[rec]
		d := x >> 32 & 1
		src, dst := &r.addr[2*d], &r.addr[1-d]
		if d&uint64(r.flags) != 0 {
			dst = &r.source
		}
		if (src[0]^s0)|(src[1]^s1)|(dst[0]^d0)|(dst[1]^d1)|((uint64(r.ports[d])|uint64(r.proto)<<32)^tail) == 0 {
			return Ref{rec, Direction(d)}
		}
	}
	return t.search(key{s0, s1, d0, d1, tail}, h)
}

// batchSize is how many lookups overlap. More would push each other's lines out of the first-level cache.
const batchSize = 64

// ahead is after how many hashes, or cells, their lines are asked for: a core asks for ten to twenty lines at a time, and has the
// work on the next ones to do meanwhile.
const ahead = 8

// LookupBatch looks up all tuples, as Lookup would each, and leaves their hashes. The other two slices must be at least
// as long as the first.
func (t *Table) LookupBatch(tuples []Tuple, hashes []uint64, refs []Ref) {
	for len(tuples) > batchSize {
		t.lookupBatch(tuples[:batchSize], hashes, refs)
		tuples, hashes, refs = tuples[batchSize:], hashes[batchSize:], refs[batchSize:]
	}
	t.lookupBatch(tuples, hashes, refs)
}

// lookupBatch goes over the batch several times, so that the cache misses of many lookups overlap instead of queueing
// (prefetch_amd64.s, or plain loads in prefetch_other.go): hash all, and ask for their buckets; find their cells, and ask
// for their records; compare. Most tuples stand in their first bucket (see vacant), so the second one is left alone until
// the first has failed.
func (t *Table) lookupBatch(tuples []Tuple, hashes []uint64, refs []Ref) {
	hashes = hashes[:len(tuples)]
	refs = refs[:len(tuples)]
	asked := 0
	for i := range tuples {
		k := &tuples[i]
		s0, s1 := k.src()
		d0, d1 := k.dst()
		tail := k.tail()
		if mapped4(s0, s1, d0, d1) {
			// sip for IPv4, by hand: without the calls the hashes of neighbours overlap.
			w, last := s1>>32|d1&^(1<<32-1), tail|13<<56
			v0, v1, v2, v3 := t.v[0], t.v[1], t.v[2], t.v[3]
			v0, v1, v2, v3 = round(v0, v1, v2, v3^w)
			v0, v1, v2, v3 = round(v0^w, v1, v2, v3^last)
			v0, v1, v2, v3 = round(v0^last, v1, v2^0xff, v3)
			v0, v1, v2, v3 = round(v0, v1, v2, v3)
			v0, v1, v2, v3 = round(v0, v1, v2, v3)
			hashes[i] = v0 ^ v1 ^ v2 ^ v3
		} else {
			hashes[i] = t.sip(s0, s1, d0, d1, tail)
		}
		if i%ahead == ahead-1 {
			t.fetchBuckets(t.n, hashes[asked:i+1])
			asked = i + 1
		}
	}
	t.fetchBuckets(t.n, hashes[asked:])
	asked = 0
	var rest [batchSize]uint8 // those that the first bucket does not have
	n := 0
	for i, h := range hashes {
		x := t.buckets[t.first(h)].nearest(tagOf(h))
		hit := (x/cellTag - 1) >> 63 // 1 if a tag is equal; without one record 0 is asked for, which is here
		refs[i] = Ref{uint32(x) & -uint32(hit), Direction(x >> 32)}
		rest[n%batchSize] = uint8(i)
		if x >= cellTag {
			n++
		}
		if i%ahead == ahead-1 {
			t.fetchRecords(refs[asked : i+1])
			asked = i + 1
		}
	}
	t.fetchRecords(refs[asked:])
	if n > 0 {
		t.secondBuckets(rest[:n], hashes, refs)
	}
	for i := range tuples {
		rec, d := refs[i].Record, refs[i].Direction
		if d == absent {
			refs[i] = Ref{}
			continue
		}
		k := &tuples[i]
		s0, s1 := k.src()
		d0, d1 := k.dst()
		tail := k.tail()
		if rec != 0 && int(rec) < len(t.records) {
			// is, by hand.
			r, d := &t.records[rec], uint64(d&1)
			src, dst := &r.addr[2*d], &r.addr[1-d]
			if d&uint64(r.flags) != 0 {
				dst = &r.source
			}
			if (src[0]^s0)|(src[1]^s1)|(dst[0]^d0)|(dst[1]^d1)|((uint64(r.ports[d])|uint64(r.proto)<<32)^tail) == 0 {
				continue
			}
		}
		refs[i] = t.search(key{s0, s1, d0, d1, tail}, hashes[i])
	}
}

// Warm brings what Touch, SetAdjacency and Generation need of the flows that a batch found: the other line of their
// records. Whoever touches many of them at once calls it before, and waits for one cache miss instead of one for each.
//
// Loads, not prefetches: Touch's atomic operations do not overlap, and a prefetch that the core had no room for would be
// a miss for each.
func (t *Table) Warm(refs []Ref) {
	for i := range refs {
		if rec := refs[i].Record; int(rec) < len(t.records) {
			atomic.LoadUint32(&t.records[rec].life)
		}
	}
}

// absent marks, within a batch, a tuple of which neither bucket has the tag.
const absent Direction = 2

func (t *Table) secondBuckets(rest []uint8, hashes []uint64, refs []Ref) {
	var seconds [batchSize]uint64
	for n, i := range rest {
		_, b2 := t.pair(hashes[i])
		seconds[n%batchSize] = uint64(b2)
	}
	t.fetchBuckets(1<<32, seconds[:len(rest)])
	var found [batchSize]Ref
	for n, i := range rest {
		_, b2 := t.pair(hashes[i])
		x := t.buckets[b2].nearest(tagOf(hashes[i]))
		ref := Ref{uint32(x), Direction(x >> 32 & 1)}
		if x >= cellTag {
			ref = Ref{0, absent}
		}
		refs[i], found[n%batchSize] = ref, ref
	}
	t.fetchRecords(found[:len(rest)])
}

// nearest returns the cell of the bucket that is nearest to the tag, less the tag: below cellTag it is direction and
// record number of a cell whose tag is equal, else there is none. It has no branch: which cell holds a flow is not
// predictable, and a wrong guess costs more than reading the rest of a line that is here. Of several cells with the
// tag it returns one, and for tag 0, which empty cells have too, it returns 0: callers that are told of an equal tag
// and do not find their tuple there search.
func (b *bucket) nearest(tag uint64) uint64 {
	return min(
		min(min(load(&b[0])^tag, load(&b[1])^tag), min(load(&b[2])^tag, load(&b[3])^tag)),
		min(min(load(&b[4])^tag, load(&b[5])^tag), min(load(&b[6])^tag, load(&b[7])^tag)))
}

func load(cell *uint64) uint64 { return atomic.LoadUint64(cell) }

// is compares a tuple with one side of the record; of the direction only the lowest bit counts.
func (r *record) is(direction, s0, s1, d0, d1, tail uint64) bool {
	d := direction & 1
	src, dst := &r.addr[2*d], &r.addr[1-d]
	if d&uint64(r.flags) != 0 { // Reply and FlagSource are both 1
		dst = &r.source
	}
	return (src[0]^s0)|(src[1]^s1)|(dst[0]^d0)|(dst[1]^d1)|((uint64(r.ports[d])|uint64(r.proto)<<32)^tail) == 0
}

// search is the plain lookup. It is right where candidate is only nearly so, and writers, which must be sure, use it.
func (t *Table) search(k key, h uint64) Ref {
	b1, b2 := t.pair(h)
	tag := tagOf(h)
	for _, b := range [2]uint32{b1, b2} {
		for i := range t.buckets[b] {
			x := atomic.LoadUint64(&t.buckets[b][i]) ^ tag
			rec := uint32(x)
			if x >= cellTag || rec == 0 || int(rec) >= len(t.records) {
				continue
			}
			if t.records[rec].is(x>>32, k.s0, k.s1, k.d0, k.d1, k.tail) {
				return Ref{rec, Direction(x >> 32)}
			}
		}
	}
	return Ref{}
}
