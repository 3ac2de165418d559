//go:build linux

package xsk

import (
	"slices"
	"sync"
)

// The free frames
//
// A shared Pool keeps free frames in slabs, small stacks of frame addresses. A worker has a
// private Cache of two slabs and gets and puts frames there without a lock; only when both
// are empty, or both full, does it swap one whole slab with the pool, under the pool's lock. So
// the lock is taken at most once in a slab's worth of frames, also by a worker that only gets
// (it receives more than it sends) or only puts. (Design: bpf-examples xsk_fwd.c, and Bonwick's
// magazines, from which the swap of the two slabs comes: what was put last is got first, while
// it is warm.)
//
// Invariants: a slab in Pool.full is not empty, and all of them but the one on top of the
// stack are full; a Cache's spare slab is either full or empty. Slabs are only exchanged, so there
// is always an empty one for a full one.

// defaultSlab is the number of frames that a worker takes or gives under one lock.
const defaultSlab = 64

// Pool is the shared stock of a umem's free frames. It is safe for concurrent use.
type Pool struct {
	umem *Umem
	slab int // frames in a full slab

	mu     sync.Mutex
	full   [][]uint64
	empty  [][]uint64
	slabs  int // in full, in empty and in caches
	free   int // frames in full
	lost   int // frames that no ring gave back
	caches []*Cache
}

// newPool makes a pool that owns every frame of u.
func newPool(u *Umem, slab int) *Pool {
	p := &Pool{umem: u, slab: slab}
	frames := u.Frames()
	p.addSlabs((frames + slab - 1) / slab)
	// The lowest address comes out first.
	for i := frames - 1; i >= 0; i-- {
		p.putLocked(uint64(i) << u.shift)
	}
	return p
}

// addSlabs adds n empty slabs, and room in both stacks for all there are: swapping them never
// allocates. The caller holds mu, or is alone.
func (p *Pool) addSlabs(n int) {
	p.slabs += n
	p.full = slices.Grow(p.full, p.slabs-len(p.full))
	p.empty = slices.Grow(p.empty, p.slabs-len(p.empty))
	for range n {
		p.empty = append(p.empty, make([]uint64, 0, p.slab))
	}
}

// takeEmptyLocked pops an empty slab.
func (p *Pool) takeEmptyLocked() []uint64 {
	last := len(p.empty) - 1
	if last < 0 {
		// Only if a frame was put twice: the checker's business, not a reason to crash.
		return make([]uint64, 0, p.slab)
	}
	s := p.empty[last]
	p.empty = p.empty[:last]
	return s
}

// Free is the number of frames in the pool. Those in caches are not counted.
func (p *Pool) Free() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.free
}

// Lost is the number of frames that closed sockets could not account for: still in flight
// when the wait for them ended, or refused as descriptors by a kernel that does not complete
// these. They stay unused.
func (p *Pool) Lost() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

// putLocked adds one frame. The caller holds mu, or is alone.
func (p *Pool) putLocked(addr uint64) {
	top := len(p.full) - 1
	if top < 0 || len(p.full[top]) == p.slab {
		p.full = append(p.full, p.takeEmptyLocked())
		top++
	}
	p.full[top] = append(p.full[top], addr)
	p.free++
}

// put takes frames back from a socket that closed, and counts those that it lost.
func (p *Pool) put(addrs []uint64, lost int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range addrs {
		p.putLocked(a)
	}
	p.lost += lost
}

// swapEmpty exchanges an empty slab for one with frames. Without any it returns the same.
func (p *Pool) swapEmpty(s []uint64) []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	top := len(p.full) - 1
	if top < 0 {
		return s
	}
	p.empty = append(p.empty, s)
	s, p.full = p.full[top], p.full[:top]
	p.free -= len(s)
	return s
}

// swapFull exchanges a full slab for an empty one.
func (p *Pool) swapFull(s []uint64) []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free += len(s)
	p.full = append(p.full, s)
	// The slab that is not full stays on top.
	if n := len(p.full); n > 1 && len(p.full[n-2]) < p.slab {
		p.full[n-1], p.full[n-2] = p.full[n-2], p.full[n-1]
	}
	return p.takeEmptyLocked()
}

// NewCache makes a worker's private cache, empty.
func (p *Pool) NewCache() *Cache {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addSlabs(2)
	c := &Cache{
		loaded:    p.takeEmptyLocked(),
		spare:     p.takeEmptyLocked(),
		chunkMask: p.umem.chunkMask,
		pool:      p,
		check:     p.umem.check,
	}
	p.caches = append(p.caches, c)
	return c
}

// Cache is one worker's private stock of free frames. One goroutine owns it.
type Cache struct {
	loaded    []uint64 // the slab in use, a stack
	spare     []uint64 // the other one
	chunkMask uint64
	pool      *Pool
	check     *Checker // nil in production
}

// Len is the number of frames in the cache.
func (c *Cache) Len() int { return len(c.loaded) + len(c.spare) }

// Get takes a free frame and returns the address of its chunk. It fails if neither the cache
// nor the pool has one.
func (c *Cache) Get() (addr uint64, ok bool) {
	n := len(c.loaded) - 1
	if n < 0 || c.check != nil {
		return c.getSlow()
	}
	addr = c.loaded[n]
	c.loaded = c.loaded[:n]
	return addr, true
}

func (c *Cache) getSlow() (addr uint64, ok bool) {
	frames := c.take(1)
	if len(frames) == 0 {
		return 0, false
	}
	return frames[0], true
}

// take gets up to n frames, at least one unless there is none. They stay where they are, in the
// slab: valid until the cache is used again.
func (c *Cache) take(n int) []uint64 {
	if len(c.loaded) == 0 {
		if len(c.spare) != 0 {
			c.loaded, c.spare = c.spare, c.loaded
		} else {
			c.loaded = c.pool.swapEmpty(c.loaded)
		}
	}
	left := max(len(c.loaded)-n, 0)
	frames := c.loaded[left:]
	c.loaded = c.loaded[:left]
	if c.check != nil {
		for _, addr := range frames {
			c.check.get(addr)
		}
	}
	return frames
}

// Put gives a frame back. Any address inside it will do.
func (c *Cache) Put(addr uint64) {
	n := len(c.loaded)
	if n == cap(c.loaded) || c.check != nil {
		c.putSlow(addr)
		return
	}
	c.loaded = c.loaded[:n+1]
	c.loaded[n] = addr & c.chunkMask
}

func (c *Cache) putSlow(addr uint64) {
	slots := c.reserve(1)
	slots[0] = addr & c.chunkMask
	c.submit(slots, 1)
}

// reserve returns between 1 and n slots to write addresses of chunks to.
func (c *Cache) reserve(n int) []uint64 {
	if len(c.loaded) == cap(c.loaded) {
		if len(c.spare) == cap(c.spare) {
			c.spare = c.pool.swapFull(c.spare)
		}
		c.loaded, c.spare = c.spare, c.loaded
	}
	have := len(c.loaded)
	c.loaded = c.loaded[:min(have+n, cap(c.loaded))]
	return c.loaded[have:]
}

// submit puts the frames in the first n of the reserved slots, and gives up the others.
func (c *Cache) submit(slots []uint64, n int) {
	if c.check != nil {
		for _, addr := range slots[:n] {
			c.check.put(addr)
		}
	}
	c.loaded = c.loaded[:len(c.loaded)-len(slots)+n]
}

// Close gives the cache's frames back to the pool. The cache must not be used after, but for
// another Close.
func (c *Cache) Close() {
	p := c.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range [][]uint64{c.loaded, c.spare} {
		for _, a := range s {
			p.putLocked(a)
		}
		if s != nil {
			p.empty = append(p.empty, s[:0])
		}
	}
	c.loaded, c.spare = nil, nil
	if i := slices.Index(p.caches, c); i >= 0 {
		p.caches = slices.Delete(p.caches, i, i+1)
	}
}
