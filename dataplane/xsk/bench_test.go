//go:build linux

package xsk

import (
	"testing"
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/sluice-net/sluice/internal/netlab"
)

// TestHotPathAllocs: no verb of the packet path allocates.
func TestHotPathAllocs(t *testing.T) {
	u := heapUmem(UmemConfig{Frames: 512, FrameSize: 2048, Slab: 8})
	s := newHeapSocket(u, 64, 0)
	c, other := u.pool.NewCache(), u.pool.NewCache()
	var descs [32]Desc
	round := func() {
		s.Complete(other) // frames wander from one cache to the other, through the pool
		s.Refill(c)
		for s.receive(60) {
		}
		for {
			n := s.Receive(descs[:])
			if n == 0 {
				break
			}
			for i := range descs[:n] {
				u.RequestChecksum(&descs[i], 34, 16)
			}
			s.Transmit(descs[:n])
			for {
				if _, ok := s.send(); !ok {
					break
				}
			}
		}
	}
	if n := testing.AllocsPerRun(200, round); n != 0 {
		t.Errorf("%v allocations a round on the heap", n)
	}

	tx, rx := twoStations(t, link.XDPGenericMode, stationConfig{lax: true}, stationConfig{lax: true})
	if n := testing.AllocsPerRun(50, func() {
		tx.step()
		for i := range descs {
			descs[i] = tx.frame(0, minFrame)
		}
		tx.sock.Transmit(descs[:])
		tx.sock.Kick()
		if _, err := rx.poll.Wait(time.Second); err != nil {
			t.Fatal(err)
		}
		for {
			n := rx.sock.Receive(descs[:])
			if n == 0 {
				break
			}
			for _, d := range descs[:n] {
				rx.cache.Put(d.Addr)
			}
		}
		rx.step()
		rx.sock.KickRx()
		if _, err := rx.sock.Statistics(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a round on veth", n)
	}
}

// BenchmarkRings is what this package adds to a packet's way: all verbs, no kernel.
func BenchmarkRings(b *testing.B) {
	for _, check := range []bool{false, true} {
		name := "plain"
		if check {
			name = "checked"
		}
		b.Run(name, func(b *testing.B) {
			const size, batch = 2048, 64
			u := heapUmem(UmemConfig{Frames: 2 * size, FrameSize: 2048, CheckFrames: check})
			s := newHeapSocket(u, size, 0)
			c := u.pool.NewCache()
			var descs [batch]Desc
			b.ReportAllocs()
			packets := 0
			for b.Loop() {
				s.Complete(c)
				s.Refill(c)
				// The kernel's part, by whole batches: it is not what is measured.
				for i := range uint32(batch) {
					s.rx.entries[(*s.rx.producer+i)&s.rx.mask] = Desc{Addr: s.fill.entries[(*s.rx.producer+i)&s.fill.mask] + 256, Len: 60}
				}
				*s.rx.producer += batch
				*s.fill.consumer += batch
				n := s.Receive(descs[:])
				s.Transmit(descs[:n])
				for i := range uint32(batch) {
					s.completion.entries[(*s.completion.producer+i)&s.completion.mask] = s.tx.entries[(*s.completion.producer+i)&s.tx.mask].Addr
				}
				*s.completion.producer += batch
				*s.tx.consumer += batch
				packets += n
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(packets), "ns/packet")
		})
	}
}

func BenchmarkCache(b *testing.B) {
	u := heapUmem(UmemConfig{Frames: 4096, FrameSize: 2048})
	from, to := u.pool.NewCache(), u.pool.NewCache()
	b.Run("get and put", func(b *testing.B) {
		for b.Loop() {
			addr, _ := from.Get()
			from.Put(addr)
		}
	})
	b.Run("one gets, one puts", func(b *testing.B) {
		for b.Loop() {
			addr, _ := from.Get()
			to.Put(addr)
		}
	})
}

func BenchmarkRequestChecksum(b *testing.B) {
	u := heapUmem(UmemConfig{Frames: 64})
	for b.Loop() {
		d := Desc{Addr: 4096 + 256, Len: 60}
		u.RequestChecksum(&d, 34, 16)
	}
}

// BenchmarkForward moves frames from one device to another through a shared umem. Only the
// forwarder's part is timed: receive, transmit, and the kick, in which the receiving side drops them.
func BenchmarkForward(b *testing.B) {
	for _, mode := range []struct {
		name  string
		flags link.XDPAttachFlags
	}{{"native", link.XDPDriverMode}, {"generic", link.XDPGenericMode}} {
		for _, size := range []int{60, 1514} {
			b.Run(mode.name+"/"+map[int]string{60: "60B", 1514: "1514B"}[size], func(b *testing.B) {
				benchmarkForward(b, mode.flags, size)
			})
		}
	}
}

func benchmarkForward(b *testing.B, mode link.XDPAttachFlags, size int) {
	netlab.RequireRoot(b)
	l := netlab.New(b)
	client, host, server := l.Namespace("client"), l.Namespace("host"), l.Namespace("server")
	l.Veth(client, "c0", host, "h0", netlab.VethOptions{})
	l.Veth(host, "h1", server, "s0", netlab.VethOptions{})
	u, err := NewUmem(UmemConfig{Frames: 2048})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := u.Close(); err != nil {
			b.Error(err)
		}
	})
	c := newStation(b, client, "c0", mode, stationConfig{lax: true})
	h0 := newStation(b, host, "h0", mode, stationConfig{umem: u, lax: true})
	h1 := newStation(b, host, "h1", mode, stationConfig{umem: u, lax: true})
	const batch = 64
	var descs [batch]Desc
	var forward time.Duration
	packets := 0
	for b.Loop() {
		c.send(0, batch, size)
		start := time.Now()
		h1.sock.Complete(h0.cache)
		h0.sock.Refill(h0.cache)
		n := h0.sock.Receive(descs[:])
		h1.sock.Transmit(descs[:n])
		if k := h1.sock.Kick(); k != KickDone {
			b.Fatalf("kick: %v", k)
		}
		forward += time.Since(start)
		packets += n
	}
	b.ReportMetric(float64(forward.Nanoseconds())/float64(packets), "ns/packet")
	b.ReportMetric(float64(packets)/forward.Seconds(), "packets/s")
}
