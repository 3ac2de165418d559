package dataplane

import (
	"github.com/sluice-net/sluice/dataplane/xsk"
	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/nat"
)

// etherLen is the length of an Ethernet header without tags.
const etherLen = 14

// The packet loop, stage by stage in the order of a frame's way:
//
//	receive    up to 64 descriptors of one receive ring, and refill its fill ring
//	parse      all of them once, into offsets
//	lookup     all of them in the flow table at once, so that their misses overlap
//	decide     each: known flow, first frame of one, or not ours (flow.go)
//	rewrite    addresses, ports, checksums, TTL (package nat)
//	send       into the outbox of the port that leads there
//	flush      each outbox: completions, transmit ring, one kick
//
// Nothing here allocates, blocks, logs or asks the time; the one lock is that of
// a transmit ring which several workers share, taken once a batch. The first frame of a
// flow takes two more, for a moment: of the adjacencies, if its client is new, and of
// affinity.

// serve runs a batch of q through all stages and reports whether there was one.
func (w *worker) serve(q *queue) bool {
	w.in, w.ports = q, w.d.ports.Load()
	if !w.receive(q) {
		return false
	}
	// After the receive: a frame is never older than the snapshot that had the
	// classifier send it here.
	w.snapshot = w.d.snapshot.Load()
	w.process()
	w.flush()
	w.batches++
	return true
}

// process is the user side of a batch: what lies between the rings.
func (w *worker) process() {
	w.parse()
	w.lookup()
	w.decide()
}

// receive takes a batch from the receive ring and gives the fill ring as many
// free frames.
func (w *worker) receive(q *queue) bool {
	b := &w.b
	b.n = q.sock.Receive(b.descs[:])
	if b.n == 0 {
		return false
	}
	w.received += uint64(b.n)
	q.received.Add(uint64(b.n))
	q.receivedBytes.Add(totalLen(b.descs[:b.n]))
	q.sock.Refill(w.cache)
	return true
}

// totalLen sums the lengths of descriptors.
func totalLen(descs []xsk.Desc) (n uint64) {
	for i := range descs {
		n += uint64(descs[i].Len)
	}
	return n
}

// parse finds the frames in the umem, parses each once, and notes the tuples of
// those that it understood.
func (w *worker) parse() {
	b := &w.b
	// Their headers were written by another core: fetched one after another,
	// each would be waited for.
	for i := range b.n {
		d := &b.descs[i]
		b.frames[i] = w.d.umem.Frame(d.Addr, d.Len)
		if len(b.frames[i]) > 0 {
			b.seen += int(b.frames[i][0])
		}
	}
	n := 0
	for i := range b.n {
		frame := b.frames[i]
		b.in[i] = w.ports.cameBy(w.in.port, frame)
		p := &b.packets[i]
		if b.parsed[i] = p.Parse(frame); b.parsed[i] != nat.OK {
			continue
		}
		t := &b.tuples[n]
		t.Src, t.Dst, t.SrcPort, t.DstPort, t.Proto = p.Src, p.Dst, p.SrcPort, p.DstPort, p.Proto
		n++
	}
	b.found = n
}

// lookup asks the flow table for all tuples at once.
func (w *worker) lookup() {
	b := &w.b
	w.d.table.LookupBatch(b.tuples[:b.found], b.hashes[:b.found], b.refs[:b.found])
	w.d.table.Warm(b.refs[:b.found])
	b.seen += w.d.egress.adj.warm(w.d.table, b.refs[:b.found], b.next[:])
}

// decide ends every frame of the batch: each goes into an outbox, or back to
// the free frames.
func (w *worker) decide() {
	b := &w.b
	k := 0
	for i := range b.n {
		var ref flowtable.Ref
		if b.parsed[i] == nat.OK {
			ref = b.refs[k]
			k++
		}
		switch {
		case b.frames[i] == nil:
			w.end(BadDescriptor)
		case b.in[i] == nil:
			w.drop(i, PortGone)
		case !b.in[i].takes(b.frames[i]):
			w.drop(i, OtherHost)
		case b.parsed[i] == nat.Fragment:
			w.fragment(i)
		case b.parsed[i] == nat.ICMP || b.parsed[i] == nat.ICMPv6:
			w.icmpError(i)
		case b.parsed[i] == nat.SCTP:
			w.sctp(i)
		case b.parsed[i] == nat.BadTCPFlags && w.isReply(i):
			w.drop(i, InvalidReply)
		case b.parsed[i] != nat.OK:
			w.giveBack(i, unparsed(b.parsed[i]))
		default:
			if ref = w.flow(i, ref); ref.Record != 0 {
				w.translate(i, ref)
			}
		}
	}
}

// isReply reports whether a frame that was refused for its TCP flags belongs to
// a known flow as a reply. The client must never see the backend's address.
func (w *worker) isReply(i int) bool {
	ref := w.lookupOne(&w.b.packets[i])
	return ref.Record != 0 && ref.Direction == flowtable.Reply
}

// send ends a frame in the outbox of port out, under new link-layer addresses. Of a
// frame that was parsed, padding stays behind, and so do VLAN tags: the way on is
// another device's, and the kernel's where that is a VLAN's.
func (w *worker) send(d *xsk.Desc, frame []byte, p *nat.Packet, out *port, dst, src *[6]byte, reason Reason) {
	d.Options = 0
	if p.End != 0 {
		start := p.L3 - etherLen
		if start > 0 {
			copy(frame[start+12:], frame[p.L3-2:p.L3])
		}
		frame = frame[start:p.End]
		d.Addr += uint64(start)
		d.Len = uint32(len(frame))
		if p.Partial {
			from, offset := p.ChecksumOffsets()
			w.d.umem.RequestChecksum(d, from-start, offset)
		}
	}
	copy(frame[0:6], dst[:])
	copy(frame[6:12], src[:])
	w.end(reason)
	o := &out.out[w.id]
	switch o.n {
	case 0:
		w.touched = append(w.touched, out)
	case len(o.descs):
		w.transmit(out, o) // more than a batch: fragments that had waited
	}
	o.descs[o.n], o.reasons[o.n] = *d, reason
	o.n++
}

// flush sends every outbox: one lock, one submit and one kick for each port.
func (w *worker) flush() {
	for _, p := range w.touched {
		w.transmit(p, &p.out[w.id])
	}
	w.touched = w.touched[:0]
}

// transmit sends what is in o by the queue of p that is this worker's, or that
// it shares. What finds no room, even after a kick has made some, is dropped, and
// counted so instead of under the reason that it had.
func (w *worker) transmit(p *port, o *outbox) {
	q := p.queues[w.id%len(p.queues)]
	q.tx.Lock()
	n := q.sock.Transmit(o.descs[:o.n])
	q.sock.Kick()
	q.sock.Complete(w.cache)
	if n < o.n {
		n += q.sock.Transmit(o.descs[n:o.n])
		q.sock.Kick()
		q.sock.Complete(w.cache)
	}
	q.tx.Unlock()
	q.sent.Add(uint64(n))
	q.sentBytes.Add(totalLen(o.descs[:n]))
	for i := n; i < o.n; i++ {
		w.counts[o.reasons[i]]--
		w.end(TxFull)
		w.cache.Put(o.descs[i].Addr)
	}
	o.n = 0
}

// reap takes sent frames back from every queue that this worker sends by.
func (w *worker) reap() {
	for _, p := range w.d.ports.Load().all {
		if p.steered {
			continue
		}
		q := p.queues[w.id%len(p.queues)]
		q.tx.Lock()
		q.sock.Complete(w.cache)
		q.tx.Unlock()
	}
}
