package flowtable

import "sync/atomic"

// What the packet loop asks of a record that it found. All of it is for readers: the record is good until the worker's
// next batch boundary. Record 0 is never a flow; every field that these write lies, in the header, in its unused
// second line, so that a caller's mistake damages nothing.

// Target is what a frame's addresses and ports become.
type Target struct {
	Src, Dst         [16]byte
	SrcPort, DstPort uint16
}

// Target tells how a frame of the flow is rewritten: a forward one goes from the source that the backend sees to
// the backend, a reply from the frontend to the client.
func (t *Table) Target(ref Ref, to *Target) {
	r := &t.records[ref.Record]
	if ref.Direction == Forward {
		wordsTo(&to.Src, r.seenAs())
		wordsTo(&to.Dst, &r.addr[backend])
		to.DstPort, to.SrcPort = portsTo(r.ports[Reply])
		return
	}
	wordsTo(&to.Src, &r.addr[frontend])
	wordsTo(&to.Dst, &r.addr[client])
	to.DstPort, to.SrcPort = portsTo(r.ports[Forward])
}

// SetOverflow tells the kernel's programs until when, in nanoseconds of CLOCK_MONOTONIC, there are flows that found no room
// and are forwarded without a record. Any worker.
func (t *Table) SetOverflow(until uint64) {
	atomic.StoreUint64(&t.records[0].source[0], until)
}

// Flow copies a record out. Source and SourcePort are what the backend sees, the client's own included.
func (t *Table) Flow(rec uint32, f *Flow) { t.records[rec].unpack(f) }

func (r *record) unpack(f *Flow) {
	wordsTo(&f.Client, &r.addr[client])
	wordsTo(&f.Frontend, &r.addr[frontend])
	wordsTo(&f.Backend, &r.addr[backend])
	wordsTo(&f.Source, r.seenAs())
	f.ClientPort, f.FrontendPort = portsTo(r.ports[Forward])
	f.BackendPort, f.SourcePort = portsTo(r.ports[Reply])
	f.Proto = r.proto
	f.Generation = atomic.LoadUint32(&r.generation)
	f.ForwardAdj = atomic.LoadUint32(&r.adj[Forward])
	f.ReplyAdj = atomic.LoadUint32(&r.adj[Reply])
}

// Adjacency returns the number of the adjacency that frames of one direction leave by, 0 for none yet.
func (t *Table) Adjacency(rec uint32, d Direction) uint32 {
	return atomic.LoadUint32(&t.records[rec].adj[d&1])
}

// SetAdjacency notes it. Workers may race; any of their answers is one that somebody computed.
func (t *Table) SetAdjacency(rec uint32, d Direction, adj uint32) {
	atomic.StoreUint32(&t.records[rec].adj[d&1], adj)
}

// Generation returns the generation of the snapshot that the flow was last checked against, 0 for none.
func (t *Table) Generation(rec uint32) uint32 { return atomic.LoadUint32(&t.records[rec].generation) }

// SetGeneration notes it.
func (t *Table) SetGeneration(rec, generation uint32) {
	atomic.StoreUint32(&t.records[rec].generation, generation)
}
