//go:build linux

package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-net/sluice/internal/netlab"
)

// bulkResult is what a run of streams came to.
type bulkResult struct {
	BitRate   float64 // of payload received, a second
	Corrupted uint64  // pieces that differed from what was sent
	CPU       CPUTime
	Bytes     uint64
	Offloads  string
}

// bulkPiece is what is written at a time; a stream is this, again and again.
var bulkPiece = func() []byte {
	b := make([]byte, 256<<10)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}()

// bulk sends over n TCP streams to a target for d, after a quarter of it to get going.
func (b *bed) bulk(to netip.AddrPort, n int, d time.Duration) (r bulkResult, err error) {
	r.Offloads = b.offloads()
	var received, corrupted atomic.Uint64
	var work sync.WaitGroup
	var closers []interface{ Close() error }
	var mu sync.Mutex
	keep := func(c interface{ Close() error }) {
		mu.Lock()
		defer mu.Unlock()
		closers = append(closers, c)
	}
	defer func() {
		mu.Lock()
		for _, c := range closers {
			c.Close()
		}
		mu.Unlock()
		work.Wait()
	}()
	for _, p := range b.Sinks {
		l, err := p.Listen(netip.AddrPortFrom(p.IP4, tcpBackendPort))
		if err != nil {
			return r, err
		}
		keep(l)
		work.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				keep(c)
				work.Go(func() { sinkStream(c, &received, &corrupted) })
			}
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	failed := make(chan error, n)
	for range n {
		c, err := b.Client.Dial(ctx, "tcp", to)
		if err != nil {
			return r, fmt.Errorf("connecting to %s: %w", to, err)
		}
		keep(c)
		work.Go(func() {
			for {
				if _, err := c.Write(bulkPiece); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	time.Sleep(d / 4)
	before, err := cpuTime()
	start, bytes := time.Now(), received.Load()
	time.Sleep(d)
	took := time.Since(start)
	r.Bytes = received.Load() - bytes
	after, err2 := cpuTime()
	r.CPU, r.Corrupted = after.sub(before), corrupted.Load()
	r.BitRate = 8 * float64(r.Bytes) / took.Seconds()
	select {
	case werr := <-failed:
		err = errors.Join(err, werr)
	default:
	}
	return r, errors.Join(err, err2)
}

// sinkStream reads a stream to its end and compares all of it.
func sinkStream(c net.Conn, received, corrupted *atomic.Uint64) {
	buf := make([]byte, 256<<10)
	at := 0
	for {
		n, err := c.Read(buf)
		received.Add(uint64(n))
		for got := buf[:n]; len(got) > 0; {
			k := min(len(got), len(bulkPiece)-at)
			if !bytes.Equal(got[:k], bulkPiece[at:at+k]) {
				corrupted.Add(1)
			}
			got, at = got[k:], (at+k)%len(bulkPiece)
		}
		if err != nil {
			return
		}
	}
}

// offloads tells what decides over the speed of a stream on veth: the sender's
// segmentation offload, which a native XDP program on the other end takes away.
func (b *bed) offloads() (s string) {
	b.Run(func() error {
		state := func(on bool) string {
			if on {
				return "on"
			}
			return "off"
		}
		f := b.Client.Features(netlab.PodDevice)
		// What the device is allowed to send is what its peer can take.
		tso := f["tx-tcp-segmentation"]
		s = fmt.Sprintf("client tso=%s gso=%s tx=%s", state(tso), state(f["tx-generic-segmentation"]), state(f["tx-checksum-ip-generic"]))
		return nil
	})
	return s
}
