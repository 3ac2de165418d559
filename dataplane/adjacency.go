package dataplane

import (
	"sync"
	"sync/atomic"

	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/nat"
)

// An adjacency is how a packet for one destination address leaves the node.
// It is immutable; what changes is which one stands in the table. In this order it
// fills one cache line, which is all that a frame costs of it.
type adjacency struct {
	addr [16]byte
	// port is the direct port that leads there, nil for the return port.
	port     *port
	mtu      int     // bytes of IP packet that fit, 0 is not known
	ifindex  int     // the kernel's device towards addr, 0 none
	dst, src [6]byte // next hop's and our own link-layer address
	path     path
	stale    bool
}

// noAdjacency is for destinations that found no number: the return port.
var noAdjacency adjacency

// exceeds reports whether the TTL of a packet that came in by port in ends on the way
// that a is. What the node's kernel sends is past its counting, and ours.
func (a *adjacency) exceeds(p *nat.Packet, in *port) bool {
	return p.TTL <= 1 && a.path != pathLocal && !in.returns
}

// tooSmall reports whether the packet is too long for the way that a is, and may not be
// cut: its sender is to be told.
func (a *adjacency) tooSmall(frame []byte, p *nat.Packet) bool {
	return a.mtu != 0 && int(p.End-p.L3) > a.mtu && p.MayNotBeCut(frame)
}

// path says where the kernel's route to an address leads, and so where
// packets from that address would come from.
type path uint8

const (
	pathNone     path = iota // nowhere
	pathServed               // to a device that is a port of ours
	pathLocal                // to the node itself
	pathUnserved             // to a device that is no port
)

// adjacencies numbers the destinations in use, so that a flow record can name
// one in 32 bits and a change of route or neighbour is one pointer store.
//
// Numbers are given out on a flow's first frame, by any worker; entries are
// replaced by the control loop alone. Number 0 is none.
type adjacencies struct {
	entries []atomic.Pointer[adjacency]

	mu     sync.Mutex
	byAddr map[[16]byte]uint32
	next   uint32
	free   []uint32
	idle   map[uint32]bool // unused at the last collection: free at the next
}

func newAdjacencies(capacity int) *adjacencies {
	return &adjacencies{
		entries: make([]atomic.Pointer[adjacency], capacity),
		byAddr:  map[[16]byte]uint32{},
		idle:    map[uint32]bool{},
		next:    1,
	}
}

// at is the adjacency of a number, nil for none. Any thread.
func (t *adjacencies) at(n uint32) *adjacency {
	if n == 0 || int(n) >= len(t.entries) {
		return nil
	}
	return t.entries[n].Load()
}

// warm brings the clients' adjacencies of the flows that a batch found, which replies
// go by and sources are compared with: clients are many, so theirs are in no
// cache. It waits for one miss, not for one of each; next is room for it. What
// it returns means nothing, and must be kept, or the loads would be left out.
func (t *adjacencies) warm(table *flowtable.Table, refs []flowtable.Ref, next []*adjacency) (seen int) {
	for k, ref := range refs {
		next[k] = t.at(table.Adjacency(ref.Record, flowtable.Reply))
	}
	for k := range refs {
		if a := next[k]; a != nil {
			seen += a.ifindex
		}
	}
	return seen
}

// number finds or gives the number of addr, resolving it with resolve when it
// is new; 0 when there is no room left. Any thread, on a flow's first frames.
func (t *adjacencies) number(addr [16]byte, resolve func([16]byte) *adjacency) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n, ok := t.byAddr[addr]; ok {
		delete(t.idle, n)
		return n
	}
	var n uint32
	switch {
	case len(t.free) > 0:
		n = t.free[len(t.free)-1]
		t.free = t.free[:len(t.free)-1]
	case int(t.next) < len(t.entries):
		n = t.next
		t.next++
	default:
		return 0
	}
	t.entries[n].Store(resolve(addr))
	t.byAddr[addr] = n
	return n
}

// refresh resolves every adjacency in use anew. Control loop only.
func (t *adjacencies) refresh(resolve func([16]byte) *adjacency) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for addr, n := range t.byAddr {
		t.entries[n].Store(resolve(addr))
	}
}

// each calls f for every adjacency in use. Control loop only.
func (t *adjacencies) each(f func(*adjacency)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.byAddr {
		f(t.entries[n].Load())
	}
}

// collect frees the numbers that were not used at this collection nor at the
// one before: a number that a worker has just been given, for a flow that it is
// about to insert, is so never taken from it. Control loop only.
func (t *adjacencies) collect(used func(uint32) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for addr, n := range t.byAddr {
		switch {
		case used(n):
			delete(t.idle, n)
		case !t.idle[n]:
			t.idle[n] = true
		default:
			delete(t.idle, n)
			delete(t.byAddr, addr)
			t.entries[n].Store(nil)
			t.free = append(t.free, n)
		}
	}
}

// len is the number of adjacencies in use.
func (t *adjacencies) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byAddr)
}
