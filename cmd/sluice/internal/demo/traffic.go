package demo

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-net/sluice/internal/netlab"
)

const (
	// exchangeTimeout is how long an exchange may take. Nothing here takes a
	// hundredth of it.
	exchangeTimeout = 5 * time.Second
	// clients is how many exchanges there are at a time.
	clients = 6
	// patience is how many exchanges of a kind may fail before the rest is not
	// tried: the demo fails, and need not take long for it.
	patience = 10

	largest = 64 << 10
	mtu     = 1500
)

// sizes are n payload sizes from one byte to the largest that is allowed.
func (k kind) sizes(n int) []int {
	most := largest
	if k.network == "udp" {
		most = mtu - 20 - 8
		if k.family == netlab.IPv6 {
			most = mtu - 40 - 8
		}
	}
	sizes := make([]int, n)
	for i := range sizes {
		sizes[i] = 1 + (most-1)*i/max(1, n-1)
	}
	return sizes
}

// exchange makes one exchange of the client with a kind's Service.
func (r *run) exchange(ctx context.Context, k kind, size int) (netlab.Exchanged, error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	return r.lab.client.Exchange(ctx, k.network, k.frontend(k.family), size)
}

// exchanges makes one exchange of each size, some at a time, and gives the number
// of those that were right and the bytes that they carried there and back.
func (r *run) exchanges(ctx context.Context, k kind, sizes []int) (good, bytes int) {
	var (
		wg               sync.WaitGroup
		next             atomic.Int64
		right, sum, sour atomic.Int64
	)
	for range clients {
		wg.Go(func() {
			for ctx.Err() == nil && sour.Load() < patience {
				i := int(next.Add(1)) - 1
				if i >= len(sizes) {
					return
				}
				if _, err := r.exchange(ctx, k, sizes[i]); err != nil {
					if ctx.Err() == nil {
						sour.Add(1)
						r.fail(err)
					}
					continue
				}
				right.Add(1)
				sum.Add(int64(2 * sizes[i]))
			}
		})
	}
	wg.Wait()
	return int(right.Load()), int(sum.Load())
}

// traffic makes what is left of n exchanges of each kind, the first of which
// have been made for the pictures, and prints how they went.
func (r *run) traffic(ctx context.Context, n int) error {
	p := r.out
	p.title("%d exchanges of each kind, by ordinary sockets with default offloads", n)
	for _, k := range kinds() {
		start := time.Now()
		sizes := k.sizes(n - r.good[k])
		good, bytes := r.exchanges(ctx, k, sizes)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.good[k] += good
		p.line("  %s  %4d of %d right, each 1 to %d bytes there and back; %5.1f MB in %.2f s",
			k, r.good[k], n, sizes[len(sizes)-1], float64(bytes)/1e6, time.Since(start).Seconds())
	}
	return nil
}

// backendsUsed prints which backend got how much, and gives the number of those
// that got anything.
func (r *run) backendsUsed() (used int) {
	p := r.out
	p.title("How the backends were chosen (selection: consistent, a hash of the flow)")
	head := []any{"backend", "where"}
	for _, k := range kinds() {
		head = append(head, k.String())
	}
	const row = "  %-10s %-14s %9v %9v %9v %9v"
	p.line(row, head...)
	for _, b := range r.lab.backends {
		where := "this node"
		if b.remote {
			where = "another node"
		}
		cells, total := []any{b.label, where}, uint64(0)
		for _, k := range kinds() {
			n := b.servers[k].Requests()
			cells = append(cells, n)
			total += n
		}
		p.line(row, cells...)
		if total > 0 {
			used++
		}
	}
	return used
}

// wrongPeers is the number of peers that servers saw and that are not the client.
func (r *run) wrongPeers() (seen, wrong int) {
	for _, b := range r.lab.backends {
		for _, k := range kinds() {
			for _, peer := range b.servers[k].Peers() {
				seen++
				if peer.Addr() != r.lab.client.IP(k.family) {
					wrong++
					r.log.Error("a server saw somebody else than the client", "backend", b.label, "peer", peer.String())
				}
			}
		}
	}
	return seen, wrong
}
