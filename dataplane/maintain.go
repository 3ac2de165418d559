package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/sluice-net/sluice/flowtable"
	"golang.org/x/sys/unix"
)

const (
	// maintainEvery is the pause between two turns of the control loop.
	maintainEvery = 500 * time.Millisecond
	// sweepTurns is in how many turns the whole flow table is looked at once.
	sweepTurns = 10
	// collectEvery is the pause between two collections of adjacencies.
	collectEvery = time.Minute
)

// maintain is the control loop's part that serves the flow table: it ages
// flows, lets removed records be used again once nobody can be reading them,
// and collects adjacencies.
func (d *Dataplane) maintain(ctx context.Context) {
	turn := time.NewTicker(maintainEvery)
	defer turn.Stop()
	collect := time.NewTicker(collectEvery)
	defer collect.Stop()
	stats := d.table.Stats()
	budget := max(1024, (stats.Capacity+stats.Reserve)/sweepTurns)
	var full fullness
	for {
		select {
		case <-ctx.Done():
			return
		case <-collect.C:
			d.collectAdjacencies()
		case <-d.pressed:
			d.reclaim(ctx)
			d.prepareOverflow()
		case <-turn.C:
			d.table.Expire(flowtable.TickOf(d.clock.now()), budget)
			d.table.Reconcile(budget, d.keep)
			d.reclaim(ctx)
			d.prepareOverflow()
			full.report(d.table.Stats(), d.log)
		}
	}
}

// press asks for a grace period sooner than usual: removed records are wanted. Any
// thread; it never waits.
func (d *Dataplane) press() {
	select {
	case d.pressed <- struct{}{}:
	default:
	}
}

// keep says whether a flow that may see no packet is kept: not one that is bound to
// nothing any more, unless it is an established connection, which has its own end.
func (d *Dataplane) keep(e *flowtable.Entry) bool {
	s := d.snapshot.Load()
	if s == nil || e.Flow.Generation == s.Generation || serves(s, &e.Flow) {
		return true
	}
	return e.Flow.Proto != protoUDP
}

// fullness is what was last said of a table under pressure.
type fullness struct {
	said       bool
	shed, full uint64
}

// report says once that flows are shed or refused, and once that it is over.
func (f *fullness) report(s flowtable.Stats, log *slog.Logger) {
	pressed := s.Shed > f.shed || s.Full() > f.full
	f.shed, f.full = s.Shed, s.Full()
	switch {
	case pressed && !f.said:
		f.said = true
		log.Warn("the flow table is full: unanswered flows are shed, oldest first; then new ones are refused",
			"flows", s.Flows, "capacity", s.Capacity, "shed", s.Shed, "refused", s.Full())
	case f.said && !pressed && s.Flows < s.Capacity*8/10:
		f.said = false
		log.Info("the flow table has room again", "flows", s.Flows, "capacity", s.Capacity, "shed", s.Shed, "refused", s.Full())
	}
}

// reclaim frees the records that were removed before now. Two kinds of reader
// may still hold one: a worker inside a batch, and a BPF program of ours inside a
// run. So it waits until every worker has passed a batch boundary or sleeps, and
// then for the kernel's readers: MEMBARRIER_CMD_GLOBAL is synchronize_rcu
// (kernel/sched/membarrier.c), and programs run inside an RCU read section.
func (d *Dataplane) reclaim(ctx context.Context) {
	batch := d.table.Limbo()
	if batch.Len() == 0 {
		return
	}
	for _, w := range d.workers {
		seen := w.turn.Load()
		for !w.quiet(seen) {
			select {
			case <-ctx.Done():
				return // limbo is lost with the process; adoption sweeps it
			case <-time.After(100 * time.Microsecond):
			}
		}
	}
	if err := membarrier(); err != nil {
		d.log.Error("removed flows are not reused", "err", err)
		return
	}
	d.table.Reclaim(batch)
}

// membarrier returns when every reader in the kernel that runs now has ended.
func membarrier() error {
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		return fmt.Errorf("membarrier: %w", errno)
	}
	return nil
}

// collectAdjacencies frees the adjacencies that no flow names, once they are
// many: a table that is mostly room does not need it.
func (d *Dataplane) collectAdjacencies() {
	if d.egress.adj.len() < maxAdjacencies/2 {
		return
	}
	used := map[uint32]bool{}
	for e := range d.table.All() {
		used[e.Flow.ForwardAdj] = true
		used[e.Flow.ReplyAdj] = true
	}
	d.egress.adj.collect(func(n uint32) bool { return used[n] })
}
