package dataplane

import (
	"math/bits"

	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/nat"
	"github.com/sluice-net/sluice/service"
)

// Stages 4 and 5 of the way of a frame: what the flow table and the snapshot
// say of it. A frame of a known flow costs no more than its record; the first
// frame of a flow selects a backend and inserts the flow.

const (
	protoTCP = 6
	protoUDP = 17

	flagFIN = 1 << 0
	flagSYN = 1 << 1
	flagRST = 1 << 2
	flagACK = 1 << 4
)

// portTries is how many source ports are tried when the client's own collides
// at the backend.
const portTries = 16

// known ends frame i, whose tuple is in the flow table.
func (w *worker) known(i int, ref flowtable.Ref) {
	p := &w.b.packets[i]
	t := w.d.table
	if ref.Direction == flowtable.Forward {
		if s := w.snapshot; s != nil && t.Generation(ref.Record) != s.Generation && !w.recheck(i, ref, s) {
			w.first(i)
			return
		}
		// A new connection on the tuple of one that is over starts anew:
		// its backend may be gone, and is at the least another choice.
		if p.Proto == protoTCP && p.TCPFlags&(flagSYN|flagACK) == flagSYN && t.Closing(ref.Record) {
			t.Remove(ref.Record)
			w.first(i)
			return
		}
	}
	w.translate(i, ref)
}

// recheck binds a flow to a newer snapshot. It reports false when the flow has
// ended: a UDP flow whose backend no longer serves, or whose Service is gone,
// and a TCP connection that is only now opening to such a backend. Established
// TCP is kept to its end.
func (w *worker) recheck(i int, ref flowtable.Ref, s *service.Snapshot) bool {
	t := w.d.table
	var f flowtable.Flow
	t.Flow(ref.Record, &f)
	sp := s.Lookup(&service.Frontend{Addr: f.Frontend, Port: f.FrontendPort, Proto: f.Proto})
	if sp == nil || !sp.Serving(&service.Backend{Addr: f.Backend, Port: f.BackendPort}) {
		p := &w.b.packets[i]
		opening := p.Proto == protoTCP && p.TCPFlags&(flagSYN|flagACK) == flagSYN
		if f.Proto == protoUDP || opening {
			t.Remove(ref.Record)
			return false
		}
	}
	t.SetGeneration(ref.Record, s.Generation)
	return true
}

// first ends frame i, which is of no known flow.
func (w *worker) first(i int) {
	p := &w.b.packets[i]
	s := w.snapshot
	if s == nil {
		w.giveBack(i, NoSnapshot)
		return
	}
	fe := service.Frontend{Addr: p.Dst, Port: p.DstPort, Proto: p.Proto}
	sp := s.Lookup(&fe)
	if sp == nil && !s.Serves(p.Dst) {
		w.giveBack(i, NotServed)
		return
	}
	if !w.believes(i) {
		w.drop(i, SpoofedSource)
		return
	}
	switch {
	case sp == nil:
		w.reject(i, UnknownPort)
		return
	case sp.Action == service.Reject:
		w.reject(i, NoEndpoints)
		return
	case sp.Action == service.Drop:
		w.drop(i, NoLocal)
		return
	}
	// In front of the kernel's own rules a connection in mid-stream that is
	// not in the table is the kernel's, or nobody's.
	if w.d.cfg.Mode == ModeFront && p.Proto == protoTCP && p.TCPFlags&(flagSYN|flagACK|flagRST|flagFIN) != flagSYN {
		w.giveBack(i, NotServed)
		return
	}
	be := sp.Select(p.Src, p.SrcPort, &fe, w.random())
	if be == nil {
		w.reject(i, NoEndpoints)
		return
	}
	e := w.d.egress
	source := p.Src
	if be.Addr == p.Src {
		// A pod that reaches itself must see a source that is not its own,
		// or it would answer itself past us (RFC 4787 REQ-9a). The node's
		// address is what the kernel's masquerade would show it.
		if source = e.fib.Load().nodeAddress(&p.Src); source == ([16]byte{}) {
			w.giveBack(i, HairpinToSelf)
			return
		}
	}
	forward := e.adj.number(be.Addr, w.resolve)
	if a := e.adj.at(forward); a == nil || a.path != pathServed && a.path != pathLocal {
		w.giveBack(i, UnservedPath)
		return
	}
	f := flowtable.Flow{
		Client: p.Src, ClientPort: p.SrcPort,
		Frontend: p.Dst, FrontendPort: p.DstPort,
		Backend: be.Addr, BackendPort: be.Port,
		Source: source, SourcePort: p.SrcPort,
		Proto: p.Proto, Generation: s.Generation,
		ForwardAdj: forward, ReplyAdj: e.adj.number(p.Src, w.resolve),
	}
	for range portTries {
		ref, result := w.d.table.Insert(&f, w.tick)
		switch result {
		case flowtable.Inserted, flowtable.Exists:
			// Exists: another frame of the flow was first, and its
			// choice of backend holds.
			w.translate(i, ref)
			return
		case flowtable.Full:
			w.giveBack(i, TableFull)
			return
		}
		f.SourcePort = w.randomPort(p.SrcPort)
	}
	w.giveBack(i, NoFreePort)
}

// randomPort is an unpredictable port of the same class as like: RFC 4787
// REQ-3a, RFC 7857 section 6.
func (w *worker) randomPort(like uint16) uint16 {
	low, n := uint64(1024), uint64(65536-1024)
	if like < 1024 {
		low, n = 1, 1023
	}
	hi, _ := bits.Mul64(w.random(), n)
	return uint16(low + hi)
}

// believes is the source check of frame i on the port that it came in by.
func (w *worker) believes(i int) bool {
	return w.d.egress.believes(w.b.packets[i].Src, w.in.port, vlanTags(w.b.frames[i], &w.b.packets[i]))
}

// translate rewrites frame i as its flow has it and sends it on.
func (w *worker) translate(i int, ref flowtable.Ref) {
	b, t := &w.b, w.d.table
	p := &b.packets[i]
	t.Target(ref, &w.target)
	n := t.Adjacency(ref.Record, ref.Direction)
	a := w.d.egress.adj.at(n)
	if a == nil || a.addr != w.target.Dst {
		// An adopted flow, or one whose number was collected.
		if n = w.d.egress.adj.number(w.target.Dst, w.resolve); n != 0 {
			t.SetAdjacency(ref.Record, ref.Direction, n)
		}
		a = w.d.egress.adj.at(n)
	}
	direct := a != nil && a.port != nil && int(p.End-p.L3) <= a.mtu
	if p.TTL <= 1 && (a == nil || a.path != pathLocal) {
		w.giveBack(i, TTLExceeded)
		return
	}
	frame := b.frames[i]
	if w.in.port.partial {
		p.DetectPartial(frame)
	}
	p.Rewrite(frame, (*nat.Endpoints)(&w.target))
	t.Touch(ref.Record, ref.Direction, w.tick, p.TCPFlags)
	reason := ForwardDirect
	if ref.Direction == flowtable.Reply {
		reason = ReplyDirect
	}
	if direct {
		p.DecrementTTL(frame)
		w.send(i, a.port, &a.dst, &a.src, reason)
		return
	}
	ret := w.d.returnPort
	w.send(i, ret, &ret.outerMAC, &macTranslated, reason+1)
}

// giveBack ends frame i with the node's kernel, unchanged, as if it came off a
// wire.
func (w *worker) giveBack(i int, reason Reason) {
	ret := w.d.returnPort
	p := &w.b.packets[i]
	if w.in.port == ret && (w.snapshot == nil || w.snapshot.Serves(p.Dst)) {
		w.drop(i, ReturnLoop)
		return
	}
	if w.in.port.partial && w.b.parsed[i] == nat.OK {
		p.DetectPartial(w.b.frames[i])
	}
	w.send(i, ret, &ret.outerMAC, &macReturned, reason)
}

// reject answers frame i with port unreachable, from the address that it asked
// for, and ends it.
func (w *worker) reject(i int, reason Reason) {
	b := &w.b
	p := &b.packets[i]
	if !w.rejects.take(w.now) {
		w.drop(i, RejectLimited)
		return
	}
	addr, ok := w.cache.Get()
	if !ok {
		w.drop(i, NoFrame)
		return
	}
	if w.in.port.partial {
		p.DetectPartial(b.frames[i])
	}
	addr = w.d.umem.Payload(addr)
	answer := w.d.umem.Frame(addr, uint32(w.d.umem.MaxReceive()))
	n := nat.BuildUnreachable(answer, b.frames[i], p, p.Dst)
	if n == 0 {
		w.cache.Put(addr)
		w.drop(i, RejectRefused)
		return
	}
	w.free(i)
	// The answer takes the frame's place in the batch.
	b.descs[i].Addr = addr
	b.frames[i] = answer[:n]
	client := p.Src
	*p = nat.Packet{L3: p.L3, End: uint16(n)}
	if a := w.d.egress.adj.at(w.d.egress.adj.number(client, w.resolve)); a != nil && a.port != nil {
		w.send(i, a.port, &a.dst, &a.src, reason)
		return
	}
	ret := w.d.returnPort
	w.send(i, ret, &ret.outerMAC, &macTranslated, reason)
}

// drop ends frame i.
func (w *worker) drop(i int, reason Reason) {
	w.count(reason)
	w.free(i)
}

// vlanTags is the part of frame that holds its VLAN tags, four bytes each.
func vlanTags(frame []byte, p *nat.Packet) []byte {
	return frame[12 : p.L3-2]
}
