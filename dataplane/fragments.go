package dataplane

import (
	"encoding/binary"
	"math/bits"
	"time"

	"github.com/sluice-net/sluice/dataplane/xsk"
	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/nat"
)

// Fragments. Only the first of a datagram has ports, so all share its fate: a worker
// keeps, for each datagram that is on its way, what became of the first fragment, and
// does the same to the others. Those that come before the first wait for it, bounded
// in number and time, and then are the kernel's, as all are that we know nothing of.
// The fragments of a datagram come in by one queue, since no device looks at ports that
// are not there, so no worker needs another's datagrams.
//
//	names (hash of source, destination, id) --> datagram: fate, pieces seen
//	                                               |
//	                                               +--> waiting pieces
//
// Datagrams are in a list by age. A datagram leaves it when all of it has been seen,
// when its time is up, or, as the oldest, to make room: a flood of fragments costs
// other fragments, never other flows.

const (
	// maxDatagrams are on their way in one worker at most.
	maxDatagrams = 256
	// maxWaiting pieces wait in one worker at most, each in a frame of the umem.
	maxWaiting = 512
	// maxPieces of one datagram are told apart: 64 KiB in the smallest pieces
	// that IPv6 has are 53, at an MTU of 1500 they are 46.
	maxPieces = 64
	// waitForFirst is how long a piece waits for the first. In front of the
	// kernel's own rules it is short: the first may have been the kernel's.
	waitForFirst      = time.Second
	waitForFirstFront = 20 * time.Millisecond
	// datagramTime is how long a datagram's fate is kept after its first piece.
	datagramTime = 5 * time.Second
)

// fate is what becomes of a datagram's pieces.
type fate uint8

const (
	fateUnknown   fate = iota // the first piece has not come
	fateTranslate             // as the first: to the target
	fateReturn                // to the node's kernel
	fateDrop
)

// datagram is one that is on its way. Links are numbers, 0 is none.
type datagram struct {
	key        nat.FragmentKey
	fate       fate
	reason     Reason // of the fate
	born       uint64
	older      uint16 // in the list by age
	newer      uint16
	next       uint16 // of the same hash
	waiting    uint16 // first of the list of pieces that wait
	to         nat.Endpoints
	adjacency  uint32 // by number: its port may be closed before the last piece comes
	pieces     uint8
	seen       [maxPieces][2]uint32 // from, to
	sum, total uint32               // bytes seen; of the datagram, 0 not known yet
}

// waiting is a piece that waits for the first of its datagram.
type waiting struct {
	desc   xsk.Desc
	packet nat.Packet
	piece  nat.Piece
	in     *port
	next   uint16
}

// fragments is a worker's. Entries are used from 1.
type fragments struct {
	seed           uint64
	names          [2 * maxDatagrams]uint16
	datagrams      [maxDatagrams + 1]datagram
	pool           [maxWaiting + 1]waiting
	freeDatagram   uint16 // list by next
	freePiece      uint16 // list by next
	oldest, newest uint16
	wait           uint64 // ns
}

func newFragments(seed uint64, wait time.Duration) *fragments {
	f := &fragments{seed: seed, wait: uint64(wait)}
	for i := uint16(maxDatagrams); i > 0; i-- {
		f.datagrams[i].next, f.freeDatagram = f.freeDatagram, i
	}
	for i := uint16(maxWaiting); i > 0; i-- {
		f.pool[i].next, f.freePiece = f.freePiece, i
	}
	return f
}

// name is where the datagrams of a key's hash begin.
func (f *fragments) name(k *nat.FragmentKey) *uint16 {
	h := f.seed
	for _, a := range [2]*[16]byte{&k.Src, &k.Dst} {
		for i := 0; i < 16; i += 8 {
			hi, lo := bits.Mul64(h^binary.LittleEndian.Uint64(a[i:]), 0x9E3779B97F4A7C15)
			h = hi ^ lo
		}
	}
	hi, lo := bits.Mul64(h^uint64(k.ID)<<8^uint64(k.Proto), 0x9E3779B97F4A7C15)
	return &f.names[(hi^lo)%uint64(len(f.names))]
}

// find is the number of a key's datagram, 0 if it is not on its way.
func (f *fragments) find(k *nat.FragmentKey) uint16 {
	for n := *f.name(k); n != 0; n = f.datagrams[n].next {
		if f.datagrams[n].key == *k {
			return n
		}
	}
	return 0
}

// fragment ends frame i, which nat named a fragment, or lets it wait.
func (w *worker) fragment(i int) {
	b, f := &w.b, w.fragments
	p := &b.packets[i]
	var piece nat.Piece
	r := piece.Parse(b.frames[i], p)
	invalid := r == nat.BadTCPFlags && w.isReply(i)
	if invalid && piece.Atomic() {
		w.drop(i, InvalidReply)
		return
	}
	if r == nat.BadFragment || r != nat.OK && piece.Atomic() {
		w.giveBack(i, unparsed(r))
		return
	}
	if !w.b.in[i].returns && !w.believes(i) {
		w.drop(i, SpoofedSource)
		return
	}
	if piece.Atomic() {
		w.whole(i)
		return
	}
	n := f.find(&piece.Key)
	if n == 0 {
		n = w.newDatagram(&piece.Key)
	}
	d := &f.datagrams[n]
	if r, bad := d.note(&piece); bad {
		w.drop(i, r)
		return
	}
	switch {
	case d.fate == fateUnknown && invalid:
		d.fate, d.reason = fateDrop, InvalidReply
		w.drop(i, InvalidReply)
		w.release(d)
	case d.fate == fateUnknown && r != nat.OK:
		// Without its transport header in the first piece nobody can translate it: all of
		// it is the kernel's.
		d.fate, d.reason = fateReturn, unparsed(r)
		w.giveBack(i, d.reason)
		w.release(d)
	case d.fate == fateUnknown && piece.Offset == 0:
		w.firstPiece(i, d, &piece)
		w.release(d)
	case d.fate == fateUnknown:
		if !w.letWait(i, d, &piece) {
			w.giveBack(i, FragmentExpired)
		}
		return
	default:
		w.sharePiece(d, &b.descs[i], b.frames[i], p, &piece, w.b.in[i])
	}
	if d.total != 0 && d.sum == d.total {
		w.forget(n)
	}
}

// lookupOne asks the flow table for one packet.
func (w *worker) lookupOne(p *nat.Packet) flowtable.Ref {
	return w.d.table.Lookup(&flowtable.Tuple{Src: p.Src, Dst: p.Dst, SrcPort: p.SrcPort, DstPort: p.DstPort, Proto: p.Proto})
}

// note enters a piece in the datagram. One that was seen before is not sent again, and
// one that overlaps another ends the datagram: an honest sender makes none, and what a
// receiver makes of them is not for us to guess (RFC 5722).
func (d *datagram) note(p *nat.Piece) (reason Reason, bad bool) {
	from, to := uint32(p.Offset), uint32(p.Offset)+uint32(p.Length)
	for _, s := range d.seen[:d.pieces] {
		if from == s[0] && to == s[1] {
			return FragmentAgain, true
		}
		if from < s[1] && s[0] < to {
			d.fate, d.reason = fateDrop, FragmentOverlap
			return FragmentOverlap, true
		}
	}
	if d.fate == fateDrop {
		return d.reason, true
	}
	if int(d.pieces) == len(d.seen) {
		d.fate, d.reason = fateDrop, FragmentOverlap
		return FragmentOverlap, true
	}
	d.seen[d.pieces] = [2]uint32{from, to}
	d.pieces++
	d.sum += to - from
	if !p.More {
		d.total = to
	}
	return 0, false
}

// firstPiece decides the datagram's fate with its first piece, frame i, and ends that.
func (w *worker) firstPiece(i int, d *datagram, piece *nat.Piece) {
	b, t := &w.b, w.d.table
	p, frame := &b.packets[i], b.frames[i]
	ref := w.flow(i, w.lookupOne(p))
	if ref.Record == 0 {
		d.fate, d.reason = fateDrop, w.ended
		if w.ended.Verdict() == Returned {
			d.fate = fateReturn
		}
		return
	}
	t.Target(ref, &w.target)
	w.adjacent(ref)
	d.fate, d.to, d.adjacency, d.reason = fateTranslate, nat.Endpoints(w.target), t.Adjacency(ref.Record, ref.Direction), ForwardDirect
	if ref.Direction == flowtable.Reply {
		d.reason = ReplyDirect
	}
	t.Touch(ref.Record, ref.Direction, w.tick, p.TCPFlags)
	w.sharePiece(d, &b.descs[i], frame, p, piece, w.b.in[i])
}

// sharePiece ends a piece as its datagram's fate has it.
func (w *worker) sharePiece(d *datagram, desc *xsk.Desc, frame []byte, p *nat.Packet, piece *nat.Piece, in *port) {
	switch d.fate {
	case fateTranslate:
		a := w.d.egress.adj.at(d.adjacency)
		if a == nil || a.addr != d.to.Dst {
			a = &noAdjacency // its number was collected
		}
		if a.exceeds(p, in) {
			w.discard(desc, RejectRefused) // only a whole datagram is answered
			return
		}
		if !p.RewriteFragment(frame, piece, &d.to) {
			w.handBack(desc, frame, p, nat.Fragment, in, unparsed(nat.Fragment))
			return
		}
		w.forward(desc, frame, p, in, a, d.reason)
	case fateReturn:
		w.handBack(desc, frame, p, nat.Fragment, in, d.reason)
	default:
		w.discard(desc, d.reason)
	}
}

// letWait keeps frame i until the first piece of its datagram comes. It reports false
// if there is no room.
func (w *worker) letWait(i int, d *datagram, piece *nat.Piece) bool {
	b, f := &w.b, w.fragments
	for f.freePiece == 0 {
		oldest := f.oldest
		if &f.datagrams[oldest] == d {
			return false
		}
		w.forget(oldest)
	}
	n := f.freePiece
	h := &f.pool[n]
	f.freePiece = h.next
	*h = waiting{desc: b.descs[i], packet: b.packets[i], piece: *piece, in: w.b.in[i], next: d.waiting}
	d.waiting = n
	return true
}

// release ends the pieces that waited.
func (w *worker) release(d *datagram) {
	f := w.fragments
	for d.waiting != 0 {
		n := d.waiting
		h := &f.pool[n]
		d.waiting = h.next
		w.sharePiece(d, &h.desc, w.d.umem.Frame(h.desc.Addr, h.desc.Len), &h.packet, &h.piece, h.in)
		h.next, f.freePiece = f.freePiece, n
	}
}

// newDatagram enters a key, in the place of the oldest if there is no room.
func (w *worker) newDatagram(k *nat.FragmentKey) uint16 {
	f := w.fragments
	if f.freeDatagram == 0 {
		w.forget(f.oldest)
	}
	n := f.freeDatagram
	d := &f.datagrams[n]
	f.freeDatagram = d.next
	name := f.name(k)
	d.key, d.fate, d.born = *k, fateUnknown, w.now
	d.pieces, d.sum, d.total, d.waiting, d.adjacency = 0, 0, 0, 0, 0
	d.next, *name = *name, n
	d.older, d.newer = f.newest, 0
	if f.newest != 0 {
		f.datagrams[f.newest].newer = n
	} else {
		f.oldest = n
	}
	f.newest = n
	return n
}

// forget takes a datagram out. Pieces that still wait go to the kernel.
func (w *worker) forget(n uint16) {
	f := w.fragments
	d := &f.datagrams[n]
	if d.fate == fateUnknown {
		d.fate, d.reason = fateReturn, FragmentExpired
	}
	w.release(d)
	for at := f.name(&d.key); *at != 0; at = &f.datagrams[*at].next {
		if *at == n {
			*at = d.next
			break
		}
	}
	if d.older != 0 {
		f.datagrams[d.older].newer = d.newer
	} else {
		f.oldest = d.newer
	}
	if d.newer != 0 {
		f.datagrams[d.newer].older = d.older
	} else {
		f.newest = d.older
	}
	d.next, f.freeDatagram = f.freeDatagram, n
}

// expireFragments ends what has waited, or was remembered, for long enough, a few
// datagrams a turn.
func (w *worker) expireFragments() {
	f := w.fragments
	ended := 0
	for n := f.oldest; n != 0 && ended < batchSize/2; {
		d := &f.datagrams[n]
		age := w.now - d.born
		if age < f.wait {
			return
		}
		newer := d.newer
		switch {
		case age >= uint64(datagramTime):
			w.forget(n)
			ended++
		case d.waiting != 0:
			d.fate, d.reason = fateReturn, FragmentExpired
			w.release(d)
			ended++
		}
		n = newer
	}
}
