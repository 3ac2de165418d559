// Model explores every interleaving of a small abstract flow table and checks in each state what package flowtable
// promises. It is the protocol and not the code: the hash, the timeouts and the tuples' bytes are left out, and every step
// that another thread can see is a step of its own, in the order in which insert.go, lookup.go, remove.go, expire.go,
// dump.go and dataplane/maintain.go have it.
//
// # What is modelled
//
// Five processes: two workers that insert, adopt and remove; a worker that looks up; a kernel program that looks up (or
// a dump that walks the records by number); and the housekeeper: expire, cut the limbo, wait for the workers' turns,
// membarrier, reclaim. Two buckets of two cells, each with its stripe; one or two records of two words each, so that a
// record of two halves shows. Cells have no tags: every cell that is not empty is compared, as if all tags were equal.
//
// Memory is sequentially consistent, or has store buffers: FIFO ones (TSO, as amd64), or ones that drain in any order
// (PSO; what arm64 may do to plain stores). Atomic stores and locks wait until their thread's buffer is empty, as XCHG and
// STLR do; what fills a record is plain. That loads overtake loads is not modelled: docs/flowtable.md argues why the
// readers' loads are ordered.
//
// # What is checked
//
// In each state: nobody is on a record that is free or being filled; a cell leads to a complete record that is not
// free; no tuple stands in two cells; a forward cell is there only with its reply cell; a flow that was reported as
// inserted and not yet removed would be adopted if the daemon died now; a record is in one place. At each step:
// a reader reads one flow's words only; it finds a tuple that is in the table for the whole of its lookup; an insert
// succeeds only if neither tuple is there, and a loser gets a flow that is there. At the end: every process is
// done (nobody waits for ever), and no record is lost.
//
// The mutants in scenarios.go are the protocol with one thing wrong; the test wants a violation of each.
package main
