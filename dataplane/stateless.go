package dataplane

import (
	"time"

	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/nat"
	"github.com/sluice-net/sluice/service"
)

// Forwarding without state, for when the flow table has no room left and nobody else
// serves what is passed (modes alone and named). Consistent selection makes it possible: the same
// flow meets the same backend with every packet, and a reply tells by its two ends which
// frontend's flow it can be of, since only for that one the hash leads its client to
// this backend. While it lasts the classifier sends here what comes from backends, for
// the flow table cannot tell it which of that are replies.

// overflowFor is how long after a flow that found no room replies are looked for
// without state.
const overflowFor = 5 * time.Second

// behind finds the frontends of a backend: made by the control loop from a snapshot
// when the table is nearly full, immutable then.
type behind struct {
	generation uint32
	frontends  map[backendOf][]service.Frontend
}

type backendOf struct {
	service.Backend
	proto uint8
}

// prepareOverflow makes d.behind current if it is, or may soon be, wanted. Control
// loop only.
func (d *Dataplane) prepareOverflow() {
	s, old := d.snapshot.Load(), d.behind.Load()
	stats := d.table.Stats()
	if d.cfg.Mode == ModeFront || s == nil || old != nil && old.generation == s.Generation ||
		stats.Flows < stats.Capacity*8/10 {
		return
	}
	b := &behind{generation: s.Generation, frontends: map[backendOf][]service.Frontend{}}
	for _, p := range s.ServicePorts() {
		if p.Selection != service.Consistent || p.Affinity != 0 {
			continue
		}
		for _, be := range p.Backends {
			k := backendOf{be, p.Proto}
			b.frontends[k] = append(b.frontends[k], p.Frontends...)
		}
	}
	d.behind.Store(b)
}

// frontend is the one frontend whose flow from this client leads to the backend. Where
// Services share a backend there may be two, and then nobody can tell.
func (b *behind) frontend(s *service.Snapshot, proto uint8, backend service.Backend, client [16]byte, port uint16) (fe service.Frontend, ok bool) {
	for _, f := range b.frontends[backendOf{backend, proto}] {
		sp := s.Lookup(&f)
		if sp == nil {
			continue
		}
		if be := sp.Select(client, port, &f, 0); be != nil && *be == backend {
			if ok {
				return service.Frontend{}, false
			}
			fe, ok = f, true
		}
	}
	return fe, ok
}

// withoutRoom ends frame i, of a flow for which the table has no room.
func (w *worker) withoutRoom(i int, f *flowtable.Flow, consistent bool) {
	w.d.press()
	if w.d.cfg.Mode == ModeFront || !consistent || f.Source != f.Client || f.SourcePort != f.ClientPort {
		w.giveBack(i, TableFull)
		return
	}
	// Replies must be known before the first frame that asks for one: a reset by
	// a client that does not know the backend would end the connection.
	all := w.d.behind.Load()
	if all == nil || all.generation != w.snapshot.Generation {
		w.drop(i, NoRoomYet)
		return
	}
	if _, ok := all.frontend(w.snapshot, f.Proto, service.Backend{Addr: f.Backend, Port: f.BackendPort}, f.Client, f.ClientPort); !ok {
		w.giveBack(i, TableFull)
		return
	}
	w.d.table.SetOverflow(w.now + uint64(overflowFor))
	w.stateless(i, &nat.Endpoints{Src: f.Client, SrcPort: f.ClientPort, Dst: f.Backend, DstPort: f.BackendPort}, f.ForwardAdj, flowtable.Forward)
}

// statelessReply ends frame i if it can be the reply of a flow without state, and
// reports whether it was.
func (w *worker) statelessReply(i int) bool {
	all := w.d.behind.Load()
	if all == nil || w.d.cfg.Mode == ModeFront {
		return false
	}
	p := &w.b.packets[i]
	fe, ok := all.frontend(w.snapshot, p.Proto, service.Backend{Addr: p.Src, Port: p.SrcPort}, p.Dst, p.DstPort)
	if ok {
		n := w.d.egress.adj.number(p.Dst, w.resolve)
		w.stateless(i, &nat.Endpoints{Src: fe.Addr, SrcPort: fe.Port, Dst: p.Dst, DstPort: p.DstPort}, n, flowtable.Reply)
	}
	return ok
}

// stateless rewrites frame i and sends it on.
func (w *worker) stateless(i int, to *nat.Endpoints, number uint32, direction flowtable.Direction) {
	b := &w.b
	p := &b.packets[i]
	a := w.d.egress.adj.at(number)
	if a == nil {
		a = &noAdjacency
	}
	if w.endsHere(i, a, direction) {
		return
	}
	if b.in[i].partial {
		p.DetectPartial(b.frames[i])
	}
	p.Rewrite(b.frames[i], to)
	w.forward(&b.descs[i], b.frames[i], p, w.b.in[i], a, StatelessDirect)
}
