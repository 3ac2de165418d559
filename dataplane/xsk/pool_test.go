//go:build linux

package xsk

import (
	"math/rand/v2"
	"sync"
	"testing"
)

func TestPoolGivesEachFrameOnce(t *testing.T) {
	for _, tt := range []struct {
		name         string
		frames, slab int
	}{
		{"one frame", 1, 64},
		{"slabs of one", 5, 1},
		{"whole slabs", 128, 64},
		{"a part of a slab", 100, 64},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := heapUmem(UmemConfig{Frames: tt.frames, Slab: tt.slab, FrameSize: 2048})
			c := u.pool.NewCache()
			seen := make(map[uint64]bool)
			for i := range tt.frames {
				addr, ok := c.Get()
				if !ok {
					t.Fatalf("no frame after %d of %d", i, tt.frames)
				}
				if seen[addr] || addr%2048 != 0 || addr >= u.size {
					t.Fatalf("frame %#x, given before: %t", addr, seen[addr])
				}
				seen[addr] = true
			}
			if addr, ok := c.Get(); ok {
				t.Fatalf("frame %#x out of an empty pool", addr)
			}
			for addr := range seen {
				c.Put(addr + 300) // any address inside
			}
			c.Close()
			if got := u.pool.Free(); got != tt.frames {
				t.Errorf("%d frames free in the end, want %d", got, tt.frames)
			}
		})
	}
}

// TestPoolSwapsWholeSlabs: the lock is taken once a slab, whichever way frames flow.
func TestPoolSwapsWholeSlabs(t *testing.T) {
	const slab = 8
	u := heapUmem(UmemConfig{Frames: 16 * slab, Slab: slab, FrameSize: 2048})
	from, to := u.pool.NewCache(), u.pool.NewCache()
	swaps, free := 0, u.pool.Free()
	watch := func() {
		if now := u.pool.Free(); now != free {
			if d := max(now-free, free-now); d != slab {
				t.Fatalf("the pool's stock changed by %d, want %d", d, slab)
			}
			swaps++
			free = now
		}
	}
	// One cache only gets, the other only puts: as with frames received here and sent there.
	const rounds = 50 * slab
	for range rounds {
		addr, ok := from.Get()
		if !ok {
			t.Fatal("no frame")
		}
		watch()
		to.Put(addr)
		watch()
	}
	if want := 2 * rounds / slab; swaps > want {
		t.Errorf("%d swaps for %d frames, want at most %d", swaps, rounds, want)
	}
	// A worker that gets and puts the same number does not swap at all.
	swaps = 0
	for range 10 {
		for range slab {
			from.Put(takeOne(t, from))
			watch()
		}
	}
	if swaps > 1 {
		t.Errorf("%d swaps by a worker in balance", swaps)
	}
}

func takeOne(t *testing.T, c *Cache) uint64 {
	t.Helper()
	addr, ok := c.Get()
	if !ok {
		t.Fatal("no frame")
	}
	return addr
}

// TestPoolAgainstSet runs random operations of several caches and compares with a set.
func TestPoolAgainstSet(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	const frames = 333
	u := heapUmem(UmemConfig{Frames: frames, Slab: 16, FrameSize: 2048, CheckFrames: true})
	caches := []*Cache{u.pool.NewCache(), u.pool.NewCache(), u.pool.NewCache()}
	held := make(map[uint64]bool)
	for step := range 30000 {
		i := rnd.IntN(len(caches))
		c := caches[i]
		switch op := rnd.IntN(100); {
		case op < 50:
			addr, ok := c.Get()
			if ok && held[addr] {
				t.Fatalf("step %d: frame %#x is given twice", step, addr)
			}
			if !ok && u.pool.Free()+c.Len() != 0 {
				t.Fatalf("step %d: no frame, but %d in the pool and %d in the cache", step, u.pool.Free(), c.Len())
			}
			if ok {
				held[addr] = true
			}
		case op < 99:
			for addr := range held {
				delete(held, addr)
				c.Put(addr)
				break
			}
		default:
			c.Close()
			c.Close()
			caches[i] = u.pool.NewCache()
		}
		free := u.pool.Free()
		for _, c := range caches {
			free += c.Len()
		}
		if free+len(held) != frames {
			t.Fatalf("step %d: %d free and %d held, want %d together", step, free, len(held), frames)
		}
	}
	census, err := u.Checker().Check()
	if err != nil {
		t.Error(err)
	}
	if census.Worker != len(held) {
		t.Errorf("the checker finds %d frames held, want %d", census.Worker, len(held))
	}
}

func TestPoolConcurrent(t *testing.T) {
	u := heapUmem(UmemConfig{Frames: 500, Slab: 8, FrameSize: 2048})
	var workers sync.WaitGroup
	for w := range uint64(4) {
		workers.Go(func() {
			c := u.pool.NewCache()
			defer c.Close()
			rnd := rand.New(rand.NewPCG(w, 0))
			var held []uint64
			for range 20000 {
				if rnd.IntN(2) == 0 {
					if addr, ok := c.Get(); ok {
						u.mem[addr]++ // a frame has one owner: the race detector watches
						held = append(held, addr)
					}
				} else if n := len(held) - 1; n >= 0 {
					c.Put(held[n])
					held = held[:n]
				}
			}
			for _, addr := range held {
				c.Put(addr)
			}
		})
	}
	workers.Wait()
	if got := u.pool.Free(); got != 500 {
		t.Errorf("%d frames free in the end, want 500", got)
	}
}
