package dataplane

import (
	"math/bits"
	"net/netip"

	"github.com/sluice-net/sluice/dataplane/xsk"
	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/nat"
	"github.com/sluice-net/sluice/service"
)

// Stages 4 and 5 of the way of a frame: what the flow table and the snapshot
// say of it. A frame of a known flow costs no more than its record; the first
// frame of a flow selects a backend and inserts the flow.

const (
	protoTCP  = 6
	protoUDP  = 17
	protoSCTP = 132

	flagSYN = 1 << 1
	flagACK = 1 << 4

	chunkInit = 1
)

// portTries is how many source ports are tried when the client's own collides
// at the backend.
const portTries = 16

// flow finds what frame i belongs to: ref as the table found it, if that flow goes
// on, or the flow that begins with this frame. The zero Ref means that the frame has
// ended, and w.ended says why.
func (w *worker) flow(i int, ref flowtable.Ref) flowtable.Ref {
	if ref.Record == 0 {
		return w.first(i)
	}
	if !w.fromWhere(i, ref) {
		w.drop(i, SpoofedSource)
		return flowtable.Ref{}
	}
	if ref.Direction == flowtable.Reply {
		return ref
	}
	p := &w.b.packets[i]
	t := w.d.table
	if s := w.snapshot; s != nil && t.Generation(ref.Record) != s.Generation {
		switch w.recheck(p, ref, s) {
		case beginsAnew:
			return w.first(i)
		case isReset:
			w.reject(i, BackendGone)
			return flowtable.Ref{}
		}
	}
	// A new connection on the tuple of one that is over starts anew: its
	// backend may be gone, and is at the least another choice.
	if p.Proto == protoTCP && opens(p) && t.Closing(ref.Record) {
		t.Remove(ref.Record)
		return w.first(i)
	}
	return ref
}

// fromWhere reports whether frame i of a known flow came from where the other
// direction of the flow goes. That is one comparison; only if it fails, as it does
// behind bridges and for what has VLAN tags, are the routes asked.
func (w *worker) fromWhere(i int, ref flowtable.Ref) bool {
	a := w.d.egress.adj.at(w.d.table.Adjacency(ref.Record, ref.Direction^1))
	in := w.b.in[i]
	if in.routed {
		return true // it was asked before it was routed
	}
	if p := &w.b.packets[i]; a != nil && p.L3 == etherLen && (a.ifindex == in.ifindex || a.path == pathLocal && in.returns) && a.addr == p.Src {
		return true
	}
	return w.believes(i)
}

// opens reports whether a packet opens a connection, as far as its protocol has
// any.
func opens(p *nat.Packet) bool {
	switch p.Proto {
	case protoTCP:
		return p.TCPFlags&(flagSYN|flagACK) == flagSYN
	case protoSCTP:
		return p.Chunk == chunkInit
	}
	return true
}

// checked is what a newer snapshot means for a flow.
type checked uint8

const (
	goesOn     checked = iota
	beginsAnew         // the flow is gone, the frame begins another
	isReset            // the flow is gone, and its client is to be told
)

// recheck binds a flow to a newer snapshot. A flow whose Service is gone, or whose
// backend no longer serves, ends: UDP, and connections that are only now opening, begin
// anew; established ones are kept to their end, or reset if the configuration says so.
func (w *worker) recheck(p *nat.Packet, ref flowtable.Ref, s *service.Snapshot) checked {
	t := w.d.table
	var f flowtable.Flow
	t.Flow(ref.Record, &f)
	if !serves(s, &f) {
		switch {
		case opens(p):
			t.Remove(ref.Record)
			return beginsAnew
		case w.d.cfg.ResetGoneBackends && p.Proto == protoTCP:
			t.Remove(ref.Record)
			return isReset
		}
	}
	t.SetGeneration(ref.Record, s.Generation)
	return goesOn
}

// serves reports whether a flow may stay with its backend. One that is of no Service
// (direct) may.
func serves(s *service.Snapshot, f *flowtable.Flow) bool {
	if f.Frontend == f.Backend && f.FrontendPort == f.BackendPort {
		return true
	}
	sp := servicePortOf(s, f)
	return sp != nil && sp.Serving(&service.Backend{Addr: f.Backend, Port: f.BackendPort})
}

// first selects a backend for frame i, which is of no known flow, and inserts the
// flow; or it ends the frame, as flow says.
func (w *worker) first(i int) (none flowtable.Ref) {
	p := &w.b.packets[i]
	s := w.snapshot
	if s == nil {
		w.giveBack(i, NoSnapshot)
		return none
	}
	fe := service.Frontend{Addr: p.Dst, Port: p.DstPort, Proto: p.Proto}
	sp := s.Lookup(&fe)
	if (sp == nil || sp.Action == service.Pass) && !s.Serves(p.Dst) {
		switch {
		case w.beside(p):
			return w.direct(i)
		case w.statelessReply(i):
		default:
			w.giveBack(i, NotServed)
		}
		return none
	}
	if !w.believes(i) {
		w.drop(i, SpoofedSource)
		return none
	}
	switch {
	case s.Policed(&p.Src):
		w.policed(i)
		return none
	case sp == nil:
		w.reject(i, UnknownPort)
		return none
	case sp.Action == service.Pass || sp.Action == service.Refuse:
		w.policed(i)
		return none
	case sp.Action == service.Reject:
		w.reject(i, NoEndpoints)
		return none
	case sp.Action == service.Drop:
		w.drop(i, NoLocal)
		return none
	}
	// In front of the kernel's own rules a connection in mid-stream that is
	// not in the table is the kernel's, or nobody's. Alone, the hash leads it
	// to the backend that it had, unless it is the end of one.
	if !opens(p) && (w.d.cfg.Mode == ModeFront || p.Proto == protoTCP && flowtable.StartOf(p.TCPFlags) == flowtable.NoStart) {
		w.giveBack(i, MidStream)
		return none
	}
	be := sp.Select(p.Src, p.SrcPort, &fe, w.random())
	if be == nil {
		w.reject(i, NoEndpoints)
		return none
	}
	if sp.Affinity != 0 {
		be = w.d.affinities.Choose(sp, &p.Src, be, w.now)
	}
	e := w.d.egress
	forward := e.adj.number(be.Addr, w.resolve)
	a := e.adj.at(forward)
	if a == nil || a.path != pathServed && a.path != pathLocal {
		w.giveBack(i, UnservedPath)
		return none
	}
	source, sourcePort, masqueraded := p.Src, p.SrcPort, false
	switch {
	case w.b.in[i].returns && a.path == pathLocal:
		source = hairpin(&p.Src)
	case w.masquerades(i, s):
		if w.d.cfg.Mode == ModeFront {
			w.giveBack(i, Masqueraded)
			return none
		}
		if a.path == pathLocal {
			// A process of the node would answer the node's address past us.
			source = hairpin(&p.Src)
			break
		}
		if source = e.fib.Load().nodeAddress(&be.Addr); source == ([16]byte{}) {
			w.giveBack(i, Masqueraded)
			return none
		}
		sourcePort, masqueraded = w.nodePort(), true
	case be.Addr == p.Src:
		// A pod that reaches itself must see a source that is not its own,
		// or it would answer itself past us (RFC 4787 REQ-9a). The node's
		// address is what the kernel's masquerade would show it.
		if source = e.fib.Load().nodeAddress(&p.Src); source == ([16]byte{}) {
			w.giveBack(i, HairpinToSelf)
			return none
		}
	}
	f := flowtable.Flow{
		Client: p.Src, ClientPort: p.SrcPort,
		Frontend: p.Dst, FrontendPort: p.DstPort,
		Backend: be.Addr, BackendPort: be.Port,
		Source: source, SourcePort: sourcePort,
		Proto: p.Proto, Generation: s.Generation,
		ForwardAdj: forward, ReplyAdj: e.adj.number(p.Src, w.resolve),
	}
	return w.begin(i, &f, masqueraded, sp.Selection == service.Consistent && sp.Affinity == 0)
}

// begin inserts the flow that frame i begins, with another source port if its own
// collides at the backend; or it ends the frame, as flow says. masqueraded says that the
// source port is one of the node's, consistent that the flow can go on without a record.
func (w *worker) begin(i int, f *flowtable.Flow, masqueraded, consistent bool) (none flowtable.Ref) {
	for try := range portTries {
		// The last one does not ask who claims it: most of what is claimed may be
		// others', and a client that is not served is worse off.
		if try+1 < portTries && w.claimed(f) {
			w.d.claimed.Add(1)
			w.otherPort(f, masqueraded)
			continue
		}
		ref, result := w.d.table.Insert(f, w.tick)
		switch result {
		case flowtable.Inserted, flowtable.Exists:
			// Exists: another frame of the flow was first, and its
			// choice of backend holds.
			if w.d.table.Urgent() {
				w.d.press()
			}
			return ref
		case flowtable.Full:
			w.withoutRoom(i, f, consistent)
			return none
		case flowtable.OverCap:
			w.giveBack(i, ClientOverCap)
			return none
		}
		w.otherPort(f, masqueraded)
	}
	w.giveBack(i, NoFreePort)
	return none
}

// otherPort chooses a flow's source port anew.
func (w *worker) otherPort(f *flowtable.Flow, masqueraded bool) {
	if masqueraded {
		f.SourcePort = w.nodePort()
	} else {
		f.SourcePort = w.randomPort(f.ClientPort)
	}
}

// claimed reports whether a connection with f's backend itself, which is no flow, comes
// from f's source port: the classifier has seen it pass. If it is another tuple that
// shares the cell (xdpprog/bpf/classifier.h has how often), f only gets another port.
func (w *worker) claimed(f *flowtable.Flow) bool {
	cells := w.d.claims
	h := w.d.table.Hash(&flowtable.Tuple{Src: f.Source, Dst: f.Backend, SrcPort: f.SourcePort, DstPort: f.BackendPort, Proto: f.Proto})
	return cells[h&uint64(len(cells)-1)].Load() > w.now
}

// policed ends frame i, which begins a flow that a NetworkPolicy may forbid. Where
// nobody else serves it, it is refused.
func (w *worker) policed(i int) {
	if w.d.cfg.Mode == ModeFront {
		w.giveBack(i, PolicyReturned)
		return
	}
	w.reject(i, PolicyRefused)
}

// beside reports whether a packet begins a connection with a backend itself from the
// port of which a flow of the same client comes: then the replies of both would be the
// same.
func (w *worker) beside(p *nat.Packet) bool {
	if !opens(p) {
		return false
	}
	ref := w.d.table.Lookup(&flowtable.Tuple{Src: p.Dst, Dst: p.Src, SrcPort: p.DstPort, DstPort: p.SrcPort, Proto: p.Proto})
	return ref.Record != 0 && ref.Direction == flowtable.Reply
}

// direct begins a flow for frame i, whose connection is of no Service but collides with
// a flow: its backend is where it goes, and only its source port becomes another. So
// does connection tracking with the later one of two (nf_nat_alloc_null_binding,
// net/netfilter/nf_nat_core.c).
func (w *worker) direct(i int) (none flowtable.Ref) {
	p, e := &w.b.packets[i], w.d.egress
	if !w.believes(i) {
		w.drop(i, SpoofedSource)
		return none
	}
	return w.begin(i, &flowtable.Flow{
		Client: p.Src, ClientPort: p.SrcPort,
		Frontend: p.Dst, FrontendPort: p.DstPort,
		Backend: p.Dst, BackendPort: p.DstPort,
		Source: p.Src, SourcePort: p.SrcPort,
		Proto: p.Proto, Generation: w.snapshot.Generation,
		ForwardAdj: e.adj.number(p.Dst, w.resolve), ReplyAdj: e.adj.number(p.Src, w.resolve),
	}, false, false)
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
	return w.d.egress.believes(w.b.packets[i].Src, w.b.in[i], vlanTags(w.b.frames[i], &w.b.packets[i]))
}

// translate rewrites frame i as its flow has it and sends it on.
func (w *worker) translate(i int, ref flowtable.Ref) {
	b, t := &w.b, w.d.table
	p, frame := &b.packets[i], b.frames[i]
	t.Target(ref, &w.target)
	a := w.adjacent(ref)
	if p.Router && ref.Direction == flowtable.Reply && a.port != nil && !b.in[i].returns {
		w.routeFirst(i)
		return
	}
	if w.endsHere(i, a, ref.Direction) {
		return
	}
	if b.in[i].partial {
		p.DetectPartial(frame)
	}
	p.Rewrite(frame, (*nat.Endpoints)(&w.target))
	t.Touch(ref.Record, ref.Direction, w.tick, p.TCPFlags)
	reason := ForwardDirect
	if ref.Direction == flowtable.Reply {
		reason = ReplyDirect
	}
	w.forward(&b.descs[i], frame, p, w.b.in[i], a, reason)
}

// endsHere reports whether frame i can go no further, its TTL over or the way a too small
// for it, and then has told its sender so.
func (w *worker) endsHere(i int, a *adjacency, direction flowtable.Direction) bool {
	p := &w.b.packets[i]
	switch {
	case a.exceeds(p, w.b.in[i]):
		w.reject(i, TTLExceeded)
	case a.tooSmall(w.b.frames[i], p):
		w.rejectTooBig(i, a, direction)
	default:
		return false
	}
	return true
}

// routeFirst gives frame i, a reply with something for a router in it, to the node's
// kernel. That acts on it, for the backend's address and not the frontend's, and routes
// it past the egress program, which sends it here again. Connection tracking does not see
// it, as it sees no other frame of the flow.
func (w *worker) routeFirst(i int) {
	b, ret := &w.b, w.d.returnPort
	p := &b.packets[i]
	if w.b.in[i].partial {
		p.DetectPartial(b.frames[i])
		if p.Proto == protoSCTP {
			p.Complete(b.frames[i])
		}
	}
	w.send(&b.descs[i], b.frames[i], p, ret, &ret.outerMAC, &macTranslated, RouteFirst)
}

// adjacent is the way out for one direction of a flow, to w.target.Dst.
func (w *worker) adjacent(ref flowtable.Ref) *adjacency {
	t, adj := w.d.table, w.d.egress.adj
	a := adj.at(t.Adjacency(ref.Record, ref.Direction))
	if a == nil || a.addr != w.target.Dst {
		// An adopted flow, or one whose number was collected.
		n := adj.number(w.target.Dst, w.resolve)
		if n != 0 {
			t.SetAdjacency(ref.Record, ref.Direction, n)
		}
		if a = adj.at(n); a == nil {
			a = &noAdjacency
		}
	}
	return a
}

// forward sends a translated frame that came in by port in on: by the direct port of
// a, if it has one, the packet fits and nothing in it is for a router, else by the return
// port, for the reason that follows direct.
func (w *worker) forward(d *xsk.Desc, frame []byte, p *nat.Packet, in *port, a *adjacency, direct Reason) {
	if a.port != nil && int(p.End-p.L3) <= a.mtu && (!p.Router || in.returns) {
		if !in.returns { // the node's kernel counts by itself
			p.DecrementTTL(frame)
		}
		w.send(d, frame, p, a.port, &a.dst, &a.src, direct)
		return
	}
	if in.returns && a.path != pathLocal && p.TTL < 255 {
		p.IncrementTTL(frame) // the kernel will take off a second one
	}
	ret, mark := w.d.returnPort, &macTranslated
	if direct == ReplyDirect && a.path == pathLocal {
		// Connection tracking has seen the request leave the node's own process as
		// it was, and sees the answer as it should be.
		mark = &macReturned
	}
	w.send(d, frame, p, ret, &ret.outerMAC, mark, direct+1)
}

// giveBack ends frame i with the node's kernel, unchanged, as if it came off a
// wire.
func (w *worker) giveBack(i int, reason Reason) {
	b := &w.b
	// What comes out of the return port is past the check that the kernel makes
	// of sources where frames come in, so it is made here.
	if src, tags, ok := sourceOf(b.frames[i]); ok && b.in[i] != w.d.returnPort && !w.d.egress.believes(src, b.in[i], tags) {
		w.drop(i, SpoofedSource)
		return
	}
	w.handBack(&b.descs[i], b.frames[i], &b.packets[i], b.parsed[i], b.in[i], reason)
}

// handBack is giveBack for a frame that came in by port in. Of what came from the
// node's kernel only fragments and ICMP errors go back, which the egress program does
// not send here twice; anything else would come again, or is a reply that the client
// must not see as it is.
func (w *worker) handBack(d *xsk.Desc, frame []byte, p *nat.Packet, parsed nat.Reason, in *port, reason Reason) {
	ret := w.d.returnPort
	if in.returns && (parsed == nat.OK || p.End == 0 || w.snapshot == nil || w.snapshot.Serves(p.Dst)) {
		w.discard(d, ReturnLoop)
		return
	}
	if in.partial && (parsed == nat.OK || parsed == nat.BadTCPFlags) {
		if p.DetectPartial(frame); p.Partial && p.Proto == protoSCTP {
			p.Complete(frame) // no device does it for us
		}
	}
	w.send(d, frame, p, ret, &ret.outerMAC, &macReturned, reason)
}

// sctp ends frame i, which nat named SCTP.
func (w *worker) sctp(i int) {
	b := &w.b
	p := &b.packets[i]
	if r := p.ParseSCTP(b.frames[i]); r != nat.OK {
		w.giveBack(i, unparsed(r))
		return
	}
	w.whole(i)
}

// whole ends frame i, which was parsed in two steps and so missed the batch's lookup.
func (w *worker) whole(i int) {
	b := &w.b
	b.parsed[i] = nat.OK
	if ref := w.flow(i, w.lookupOne(&b.packets[i])); ref.Record != 0 {
		w.translate(i, ref)
	}
}

// reject answers frame i and ends it. Who asks a Service is answered by the address
// that it asked: with port unreachable or, where its backend is gone, with a reset.
// Whose TTL ends here is answered by the node, as by any router.
func (w *worker) reject(i int, reason Reason) { w.answer(i, reason, [16]byte{}, 0) }

// rejectTooBig tells the sender of frame i how long a packet may be on the way a. A
// client is told by the frontend, as the kernel's NAT has it, for it knows no other
// address; a backend by the node.
func (w *worker) rejectTooBig(i int, a *adjacency, direction flowtable.Direction) {
	p := &w.b.packets[i]
	from := p.Dst
	if direction == flowtable.Reply {
		from = w.d.egress.fib.Load().nodeAddress(&p.Src)
	}
	w.answer(i, TooBig, from, uint16(a.mtu))
}

// answer is reject; from and mtu are of TooBig alone.
func (w *worker) answer(i int, reason Reason, from [16]byte, mtu uint16) {
	b := &w.b
	p := &b.packets[i]
	if !w.mayAnswer(i, reason) {
		w.drop(i, RejectLimited)
		return
	}
	addr, ok := w.cache.Get()
	if !ok {
		w.drop(i, NoFrame)
		return
	}
	if b.in[i].partial {
		p.DetectPartial(b.frames[i])
	}
	addr = w.d.umem.Payload(addr)
	answer := w.d.umem.Frame(addr, uint32(w.d.umem.MaxReceive()))
	n := 0
	switch reason {
	case BackendGone:
		n = nat.BuildReset(answer, b.frames[i], p)
	case TTLExceeded:
		n = nat.BuildTimeExceeded(answer, b.frames[i], p, w.d.egress.fib.Load().nodeAddress(&p.Src))
	case TooBig:
		n = nat.BuildTooBig(answer, b.frames[i], p, from, mtu)
	default:
		n = nat.BuildUnreachable(answer, b.frames[i], p, p.Dst)
	}
	if n == 0 {
		w.cache.Put(addr)
		w.drop(i, RejectRefused)
		return
	}
	w.cache.Put(b.descs[i].Addr)
	d := xsk.Desc{Addr: addr}
	sent := nat.Packet{L3: p.L3, End: uint16(n), IPv6: p.IPv6, TTL: nat.AnswerTTL}
	a := w.d.egress.adj.at(w.d.egress.adj.number(p.Src, w.resolve))
	if a != nil && a.port != nil {
		w.send(&d, answer, &sent, a.port, &a.dst, &a.src, reason)
		return
	}
	if a == nil || a.path != pathLocal {
		sent.IncrementTTL(answer) // the kernel will take one off
	}
	ret := w.d.returnPort
	w.send(&d, answer, &sent, ret, &ret.outerMAC, &macTranslated, reason)
}

// drop ends frame i.
func (w *worker) drop(i int, reason Reason) { w.discard(&w.b.descs[i], reason) }

// discard ends a frame that goes nowhere.
func (w *worker) discard(d *xsk.Desc, reason Reason) {
	w.end(reason)
	w.cache.Put(d.Addr)
}

// sourceOf reads the source address and the VLAN tags of a frame of IP, whatever else
// is wrong with it.
func sourceOf(frame []byte) (src [16]byte, tags []byte, ok bool) {
	at := 12
	for at+4 <= len(frame) && (frame[at] == 0x81 && frame[at+1] == 0 || frame[at] == 0x88 && frame[at+1] == 0xa8) {
		at += 4
	}
	if len(frame) < at+2 {
		return src, nil, false
	}
	tags, ip := frame[12:at], frame[at+2:]
	switch {
	case frame[at] == 0x08 && frame[at+1] == 0 && len(ip) >= 16:
		return netip.AddrFrom4([4]byte(ip[12:16])).As16(), tags, true
	case frame[at] == 0x86 && frame[at+1] == 0xdd && len(ip) >= 24:
		return [16]byte(ip[8:24]), tags, true
	}
	return src, nil, false
}

// vlanTags is the part of frame that holds its VLAN tags, four bytes each.
func vlanTags(frame []byte, p *nat.Packet) []byte {
	return frame[12 : p.L3-2]
}
