//go:build linux

package xsk

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// Owner says which kind of place a frame is in.
type Owner uint8

// A frame's life is Free, Worker, Fill, Worker, Tx, Worker, Free.
const (
	OwnerFree   Owner = iota // in the pool or a cache
	OwnerWorker              // in a worker's batch
	OwnerFill                // in a fill ring, or in the rx ring and not yet peeked
	OwnerTx                  // in a tx ring, in flight, or in the completion ring and not yet peeked
)

// owner is a place: an Owner and, for rings, the number of the socket that they belong to.
type owner uint32

const ownerShift = 28

func place(o Owner, socket owner) owner { return owner(o)<<ownerShift | socket }
func (o owner) kind() Owner             { return Owner(o >> ownerShift) }
func (o owner) socket() owner           { return o & (1<<ownerShift - 1) }

// maxViolations bounds what is kept; all are counted.
const maxViolations = 16

// Checker follows the owner of each frame of a Umem and notes every transition that does not
// start where the frame was: a frame received into twice, sent twice, freed while it is in
// a ring. It is made for tests, by UmemConfig.CheckFrames. Transitions may come from several
// goroutines; Check wants them at rest.
type Checker struct {
	umem   *Umem
	owners []atomic.Uint32 // by frame number: an owner

	mu         sync.Mutex
	names      map[owner]string // of sockets, also closed ones
	violations []error
	count      int
}

// Census is the number of frames by owner.
type Census struct {
	Free       int
	Worker     int
	Fill       int // with those in rx rings
	Tx         int // without those in completion rings
	Completion int
	Lost       int // see Pool.Lost
}

func newChecker(u *Umem) *Checker {
	return &Checker{umem: u, owners: make([]atomic.Uint32, u.Frames()), names: make(map[owner]string)}
}

// ownerLost marks frames that a closed socket could not give back.
const ownerLost = Owner(15)

// name names an owner for people.
func (c *Checker) name(o owner) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch o.kind() {
	case OwnerFree:
		return "the free pool"
	case OwnerWorker:
		return "a worker"
	case OwnerFill:
		return "the fill ring of " + c.names[o.socket()]
	case OwnerTx:
		return "the tx ring of " + c.names[o.socket()]
	default:
		return "nobody, lost"
	}
}

func (c *Checker) violate(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	if len(c.violations) < maxViolations {
		c.violations = append(c.violations, err)
	}
}

// move records that the frame at addr goes from one owner to another.
func (c *Checker) move(addr uint64, from, to owner) {
	i := addr >> c.umem.shift
	if i >= uint64(len(c.owners)) {
		c.violate(fmt.Errorf("frame %#x: goes from %s to %s, but lies outside the umem", addr, c.name(from), c.name(to)))
		return
	}
	if was := owner(c.owners[i].Swap(uint32(to))); was != from {
		c.violate(fmt.Errorf("frame %#x: goes from %s to %s, but belongs to %s", addr, c.name(from), c.name(to), c.name(was)))
	}
}

func (c *Checker) get(addr uint64) {
	c.move(addr, place(OwnerFree, 0), place(OwnerWorker, 0))
}

func (c *Checker) put(addr uint64) {
	c.move(addr, place(OwnerWorker, 0), place(OwnerFree, 0))
}

func (c *Checker) submitFill(r *FillRing, n uint32) {
	for i := range n {
		c.move(*r.Addr(r.submitted + i), place(OwnerWorker, 0), place(OwnerFill, r.owner))
	}
}

func (c *Checker) peekRx(r *RxRing, idx, n uint32) {
	for i := range n {
		c.move(r.Desc(idx+i).Addr, place(OwnerFill, r.owner), place(OwnerWorker, 0))
	}
}

func (c *Checker) cancelRx(r *RxRing, idx, n uint32) {
	for i := range n {
		c.move(r.Desc(idx+i).Addr, place(OwnerWorker, 0), place(OwnerFill, r.owner))
	}
}

func (c *Checker) submitTx(r *TxRing, n uint32) {
	for i := range n {
		d := *r.Desc(r.submitted + i)
		if !c.umem.Sendable(d) {
			c.violate(fmt.Errorf("frame %#x: %d bytes, options %#x, is no descriptor that %s takes",
				d.Addr, d.Len, d.Options, c.name(place(OwnerTx, r.owner))))
		}
		c.move(d.Addr, place(OwnerWorker, 0), place(OwnerTx, r.owner))
	}
}

func (c *Checker) peekCompletion(r *CompletionRing, idx, n uint32) {
	for i := range n {
		c.move(r.Addr(idx+i), place(OwnerTx, r.owner), place(OwnerWorker, 0))
	}
}

func (c *Checker) cancelCompletion(r *CompletionRing, idx, n uint32) {
	for i := range n {
		c.move(r.Addr(idx+i), place(OwnerWorker, 0), place(OwnerTx, r.owner))
	}
}

// open gives a socket its number among the owners.
func (c *Checker) open(id owner, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names[id] = name
}

// reclaim records that a closing socket gives frames back, those of its rx side and those of
// its tx side, and loses every other frame that it still had.
func (c *Checker) reclaim(id owner, rx, tx []uint64) {
	for _, a := range rx {
		c.move(a, place(OwnerFill, id), place(OwnerFree, 0))
	}
	for _, a := range tx {
		c.move(a, place(OwnerTx, id), place(OwnerFree, 0))
	}
	for i := range c.owners {
		if o := owner(c.owners[i].Load()); o.kind() != OwnerFree && o.kind() != OwnerWorker && o.socket() == id {
			c.owners[i].Store(uint32(place(ownerLost, id)))
		}
	}
}

// Check counts the frames by owner, compares the count with what pool, caches and rings say of
// themselves, and returns what is wrong: each transition that was noted since the last Check and
// each sum that does not fit. Nothing may use the umem meanwhile, but for the kernel.
func (c *Checker) Check() (Census, error) {
	c.mu.Lock()
	errs := c.violations
	if more := c.count - len(errs); more > 0 {
		errs = append(errs, fmt.Errorf("and %d more violations", more))
	}
	c.violations, c.count = nil, 0
	c.mu.Unlock()

	type held struct{ fill, tx int }
	var census Census
	sockets := make(map[owner]*held)
	for i := range c.owners {
		o := owner(c.owners[i].Load())
		h := sockets[o.socket()]
		if h == nil {
			h = new(held)
			sockets[o.socket()] = h
		}
		switch o.kind() {
		case OwnerFree:
			census.Free++
		case OwnerWorker:
			census.Worker++
		case OwnerFill:
			census.Fill++
			h.fill++
		case OwnerTx:
			census.Tx++
			h.tx++
		default:
			census.Lost++
		}
	}

	p := c.umem.pool
	p.mu.Lock()
	free := p.free
	for _, cache := range p.caches {
		free += cache.Len()
	}
	p.mu.Unlock()
	if free != census.Free {
		errs = append(errs, fmt.Errorf("%d frames are free, but pool and caches hold %d", census.Free, free))
	}

	c.umem.mu.Lock()
	defer c.umem.mu.Unlock()
	for _, s := range c.umem.sockets {
		h := sockets[s.id]
		if h == nil {
			h = new(held)
		}
		if out := int(s.Fill.submitted - s.Rx.cachedCons); out != h.fill {
			errs = append(errs, fmt.Errorf("%s: %d frames are there to receive into, but its rings count %d", s, h.fill, out))
		}
		if out := int(s.Tx.submitted - s.Completion.cachedCons); out != h.tx {
			errs = append(errs, fmt.Errorf("%s: %d frames are being sent, but its rings count %d", s, h.tx, out))
		}
		done := int(atomic.LoadUint32(s.Completion.producer) - s.Completion.cachedCons)
		census.Completion += done
		census.Tx -= done
	}
	return census, errors.Join(errs...)
}
