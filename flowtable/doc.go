// Package flowtable is the node's table of flows: two byte arrays that the kernel's programs read while Go workers look
// up, insert and remove. It is pure: no system call, no clock, no goroutine. The arrays come in as []byte (mapped BPF
// arrays in life, heap in tests), time comes in as a Tick.
//
// # Words
//
// A flow has a client, a frontend, a backend, and the source that the backend sees (the client itself, unless a hairpin or
// a collision forced another). Its forward tuple is client to frontend, its reply tuple is backend to source. A record
// holds one flow. A cell holds a tag, a direction and a record number; a bucket is eight cells. A tuple has two
// candidate buckets. A class is what decides a flow's timeout. Limbo is where removed records wait for their grace period.
// A flow is settled when both sides have spoken (TCP: and the client again, after the backend's answer); before, it is
// unreplied or half-open. Shedding removes flows that are not settled to make room.
//
// # Layout
//
//	index: buckets, 64 bytes each
//	+--------+--------+--------+--------+--------+--------+--------+--------+
//	| cell 0 | cell 1 |  ...                                       | cell 7 |
//	+--------+--------+--------+--------+--------+--------+--------+--------+
//	cell: 63 ......... 33  32         31 ............ 0
//	      tag             direction  record number          0 = empty
//
//	records: 128 bytes each; record 0 is the header
//	  0  client 16           | 16  frontend 16
//	 32  backend 16          | 48  ports, network order: client, frontend, backend, source
//	                         | 56  protocol 1, flags 1, reserved 6
//	 64  source 16           | 80  generation 4, began 4, forward and reply adjacency 4 + 4
//	 96  forward, reply seen 4 + 4, state 4, life 4
//	112  forward packets 8, reply packets 8
//
//	header
//	  0  magic 8, version 4, buckets 4 | 16  records 4, record size 4, seed 8 + 8
//	 40  CRC32C of the 40 bytes before it; the rest is zero
//
// The first line of a record is what a lookup compares and never changes while the flow lives; the second is what
// packets change (and the source, which only hairpins and re-chosen addresses compare). Numbers are little-endian, ports
// are as in a frame. Both tuples are hashed with SipHash-1-3 under the table's seed (hash.go): the low half of the hash
// names the first bucket, the high half how far behind it the second is, a product of it the tag.
//
// # Invariants
//
//  1. A non-empty cell leads to a live record whose tuple in the cell's direction hashes to the cell's bucket and tag.
//  2. A live record has exactly one cell in each direction; for moments within Insert and Remove, none or only the reply.
//  3. No tuple is in the table twice, whichever its directions: what Lookup finds is unique.
//  4. If a forward tuple can be found, so can its reply tuple (insert.go says why the order matters).
//  5. A flow never moves: its cells and its record stay until it is removed.
//  6. A record that a reader can still be on is not written but for the fields that are atomics (remove.go proves it).
//  7. Every record is in one place: live, in limbo, in a batch, or free.
//  8. A live flow that is not settled is in a queue, in the order of the inserts (pressure.go).
//  9. The count of a client is the number of its live flows, if clients are counted (clients.go).
//
// # Cost
//
// A lookup reads one line of the index, in most cases, or two, and on an equal tag one line of a record. In a batch
// the misses of 64 lookups overlap; Warm does the same for the line that Touch writes. An insert hashes twice, takes up to
// four of 64 stripe locks and one lock for the lists; under pressure it removes one flow, and looks at 16 at most.
//
// A flow of the capacity takes 144 bytes for records (a reserve of an eighth with them), 32 for the index, 9 on the
// heap, and 17 more if clients are counted: at a capacity of a million, filled to 80 %, 231 bytes a flow, or 252. The
// benchmarks measure all of it: go test -run '^$' -bench . ./flowtable
//
// # Who may call what
//
//	Hash, Lookup, LookupBatch, Warm         anyone, any time, no lock
//	Touch, Closing, Target, Flow,           whoever got the record from a lookup or an insert in the same batch
//	Adjacency, Generation and their setters
//	Insert                                  any worker
//	Remove                                  any worker, with a record from the same batch
//	Expire, Reconcile, All, Stats, Urgent   any goroutine; no worker waits for them
//	Limbo, Reclaim                          one housekeeper, with the grace period between them (remove.go)
//	Format, Open, OpenWith                  nobody else is using the table from Go; kernel programs may read
//
// A worker is anyone whom the housekeeper's grace period waits for.
//
// # What it does not do
//
// It does not choose backends or source ports, and does not know snapshots beyond the number it keeps for them: Reconcile asks
// its caller. It sheds no settled flow. What becomes of a packet whose flow is Full or OverCap is the caller's to decide.
package flowtable
