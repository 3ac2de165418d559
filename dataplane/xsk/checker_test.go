//go:build linux

package xsk

import (
	"strings"
	"testing"
)

// TestCheckerFollows walks frames around the whole circle and proves each step's census.
func TestCheckerFollows(t *testing.T) {
	u := heapUmem(UmemConfig{Frames: 32, Slab: 4, FrameSize: 2048, CheckFrames: true})
	s := newHeapSocket(u, 8, ^uint32(0)-3)
	u.check.open(0, s.name)
	c := u.pool.NewCache()
	step := func(name string, want Census) {
		t.Helper()
		got, err := u.Checker().Check()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got != want {
			t.Fatalf("%s: %+v, want %+v", name, got, want)
		}
	}
	var descs [8]Desc
	for range 5 {
		step("at rest", Census{Free: 32})
		s.Refill(c)
		step("refilled", Census{Free: 24, Fill: 8})
		for range 5 {
			s.receive(60)
		}
		step("received by the kernel", Census{Free: 24, Fill: 8})
		n := s.Receive(descs[:])
		step("received", Census{Free: 24, Fill: 3, Worker: 5})
		s.Transmit(descs[:n-1])
		step("submitted", Census{Free: 24, Fill: 3, Worker: 1, Tx: 4})
		s.send()
		s.send()
		step("half sent", Census{Free: 24, Fill: 3, Worker: 1, Tx: 2, Completion: 2})
		s.Complete(c)
		step("half completed", Census{Free: 26, Fill: 3, Worker: 1, Tx: 2})
		s.send()
		s.send()
		s.Complete(c)
		c.Put(descs[n-1].Addr)
		step("completed", Census{Free: 29, Fill: 3})
		for range 3 {
			s.receive(60)
		}
		for _, d := range descs[:s.Receive(descs[:])] {
			c.Put(d.Addr)
		}
	}
}

// TestCheckerCatches commits the crimes of AF_XDP programs.
func TestCheckerCatches(t *testing.T) {
	for _, tt := range []struct {
		name  string
		crime func(s *heapSocket, c *Cache)
		want  []string // in the error
	}{
		{"a frame freed twice", func(s *heapSocket, c *Cache) {
			a, _ := c.Get()
			c.Put(a)
			c.Put(a)
		}, []string{"goes from a worker to the free pool", "belongs to the free pool"}},
		{"a frame sent twice", func(s *heapSocket, c *Cache) {
			a, _ := c.Get()
			d := Desc{Addr: s.umem.Payload(a), Len: 60}
			s.Transmit([]Desc{d, d})
		}, []string{"goes from a worker to the tx ring of heap queue 0", "belongs to the tx ring of heap queue 0"}},
		{"a frame freed while it is sent", func(s *heapSocket, c *Cache) {
			a, _ := c.Get()
			s.Transmit([]Desc{{Addr: s.umem.Payload(a), Len: 60}})
			c.Put(a)
		}, []string{"belongs to the tx ring of heap queue 0"}},
		{"a free frame sent", func(s *heapSocket, c *Cache) {
			a, _ := c.Get()
			c.Put(a)
			s.Transmit([]Desc{{Addr: s.umem.Payload(a), Len: 60}})
		}, []string{"goes from a worker to the tx ring", "belongs to the free pool"}},
		{"a frame outside the umem", func(s *heapSocket, c *Cache) {
			s.Transmit([]Desc{{Addr: s.umem.size, Len: 60}})
		}, []string{"lies outside the umem"}},
		{"a frame without room for metadata", func(s *heapSocket, c *Cache) {
			a, _ := c.Get()
			s.Transmit([]Desc{{Addr: a, Len: 60}})
		}, []string{"is no descriptor that the tx ring of heap queue 0 takes"}},
		{"a frame received that was never filled", func(s *heapSocket, c *Cache) {
			s.rx.produce(Desc{Addr: 256, Len: 60})
			s.Receive(make([]Desc, 1))
		}, []string{"goes from the fill ring of heap queue 0 to a worker", "belongs to the free pool"}},
		{"a completion of what was not sent", func(s *heapSocket, c *Cache) {
			s.completion.produce(256)
			s.Complete(c)
		}, []string{"goes from the tx ring of heap queue 0 to a worker"}},
		{"a frame slipped into a cache", func(s *heapSocket, c *Cache) {
			c.loaded = append(c.loaded[:0], 0)
		}, []string{"frames are free, but pool and caches hold"}},
		{"an entry slipped into the fill ring", func(s *heapSocket, c *Cache) {
			s.Fill.Reserve(1)
			s.Fill.submit(1)
		}, []string{"0 frames are there to receive into, but its rings count 1"}},
		{"an entry slipped into the tx ring", func(s *heapSocket, c *Cache) {
			s.Tx.Reserve(1)
			s.Tx.submit(1)
		}, []string{"0 frames are being sent, but its rings count 1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := heapUmem(UmemConfig{Frames: 8, Slab: 4, FrameSize: 2048, CheckFrames: true})
			s := newHeapSocket(u, 8, 0)
			u.check.open(0, s.name)
			tt.crime(s, u.pool.NewCache())
			_, err := u.Checker().Check()
			if err == nil {
				t.Fatal("not noticed")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q, want %q in it", err, want)
				}
			}
		})
	}
}

func TestCheckerBoundsViolations(t *testing.T) {
	u := heapUmem(UmemConfig{Frames: 8, FrameSize: 2048, CheckFrames: true})
	for range 3 * maxViolations {
		u.check.get(1 << 40)
	}
	_, err := u.Checker().Check()
	if err == nil || !strings.Contains(err.Error(), "and 32 more violations") {
		t.Errorf("error %v, want the number of the others", err)
	}
	if _, err := u.Checker().Check(); err != nil {
		t.Errorf("told twice: %v", err)
	}
}
