//go:build !amd64

package flowtable

import "sync/atomic"

// A load whose value nobody waits for is the prefetch that Go does not have. Such loops have nothing else in them,
// because a core looks ahead by instructions: with a scan between two loads, one or two misses are under way and not ten.

// fetchBuckets asks for the first buckets of hashes, if n is their number, or, if n is 1<<32, for the buckets of these numbers.
func (t *Table) fetchBuckets(n uint64, hashes []uint64) {
	for _, h := range hashes {
		atomic.LoadUint64(&t.buckets[uint64(uint32(h))*n>>32][0])
	}
}

func (t *Table) fetchRecords(refs []Ref) {
	for i := range refs {
		if rec := refs[i].Record; int(rec) < len(t.records) {
			atomic.LoadUint64(&t.records[rec].addr[client][0])
		}
	}
}
