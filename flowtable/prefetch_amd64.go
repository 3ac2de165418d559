package flowtable

// The batch's two waves of cache misses. They are the only assembly, and change nothing: without them (prefetch_other.go)
// a batch at a million flows takes a third more.

// fetchBuckets asks for the first buckets of hashes, if n is their number, or, if n is 1<<32, for the buckets of these numbers.
func (t *Table) fetchBuckets(n uint64, hashes []uint64) { prefetchBuckets(&t.buckets[0], n, hashes) }

func (t *Table) fetchRecords(refs []Ref) { prefetchRecords(&t.records[0], refs) }

// prefetchBuckets asks for the lines of the buckets that are the first of the hashes, of n.
//
//go:noescape
func prefetchBuckets(buckets *bucket, n uint64, hashes []uint64)

// prefetchRecords asks for the first lines of the records.
//
//go:noescape
func prefetchRecords(records *record, refs []Ref)
