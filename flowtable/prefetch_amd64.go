package flowtable

// The batch's two waves of cache misses. They are the only assembly, and change nothing: without them (prefetch_other.go)
// a batch at a million flows takes a third more.

func (t *Table) fetchBuckets(hashes []uint64) { prefetchBuckets(&t.buckets[0], t.mask, hashes) }

func (t *Table) fetchRecords(refs []Ref) { prefetchRecords(&t.records[0], refs) }

// prefetchBuckets asks for the lines of the buckets that the low halves of the hashes name.
//
//go:noescape
func prefetchBuckets(buckets *bucket, mask uint32, hashes []uint64)

// prefetchRecords asks for the first lines of the records.
//
//go:noescape
func prefetchRecords(records *record, refs []Ref)
