package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"

	"github.com/sluice-net/sluice/dataplane/xsk"
	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/service"
	"github.com/sluice-net/sluice/xdpprog"
)

// Bounds of what can be served. Socket map, heartbeats and counters are sized
// by them, and are small.
const (
	maxPorts   = 512
	maxQueues  = 16
	maxWorkers = 64
	// returnSlot is the return port's.
	returnSlot = 0
)

// Dataplane serves the ports of one node.
type Dataplane struct {
	cfg   Config
	log   *slog.Logger
	clock *clock

	nl         *netlink.Handle
	eth        *ethtool.Ethtool
	pair       *returnPort
	prog       *xdpprog.Objects
	table      *flowtable.Table
	affinities *service.Affinities
	localPorts [2]uint16 // the first and the last that the kernel gives to processes
	errorLimit *errorLimit
	umem       *xsk.Umem
	beats      []atomic.Uint64 // the classifier's, by slot x queues + queue
	claims     []atomic.Uint64 // the classifier's, by hash (worker.claimed); a power of two
	claimed    atomic.Uint64   // what Stats says
	ports      atomic.Pointer[portSet]
	returnPort *port
	slots      *slots
	adopted    map[int]xdpprog.Port // a predecessor's, until the first sweep
	looking    sync.RWMutex         // held to look at ports' names and sockets, and at refused
	refused    map[int]refusal      // by ifindex; written by the control loop
	egress     *egress
	workers    []*worker

	snapshot    atomic.Pointer[service.Snapshot]
	publishedAt atomic.Uint64 // monotonic ns
	running     atomic.Bool
	pressed     chan struct{} // by workers: a grace period is wanted
	behind      atomic.Pointer[behind]

	publishing sync.Mutex
	told       bool               // the classifier knows the addresses of snapshot; guarded by publishing
	hostRoutes map[hostRoute]bool // that there are; guarded by publishing
	routedFor  routeState         // what hostRoutes were made for

	undo      []func() error // what Close has to do, in reverse
	closeOnce sync.Once
	closeErr  error
}

// Publish makes s what the workers select from. What s no longer serves is the
// kernel's before s is published, what it serves anew is ours after it. If it
// fails, the next one puts everything right.
func (d *Dataplane) Publish(s *service.Snapshot) error {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	delta, ok := s.After(d.snapshot.Load())
	if !ok || !d.told {
		var err error
		if delta, err = d.difference(s); err != nil {
			return err
		}
	}
	if d.snapshot.Load() == nil {
		d.recallAffinities(s)
	}
	d.told = false
	if err := d.prog.UpdateAddresses(nil, delta.GoneAddresses); err != nil {
		return fmt.Errorf("taking addresses from the classifier: %w", err)
	}
	if err := d.prog.UpdateBackends(delta.NewBackends, delta.GoneBackends); err != nil {
		return fmt.Errorf("telling the classifier of backends: %w", err)
	}
	d.snapshot.Store(s)
	d.publishedAt.Store(d.clock.now())
	if err := d.prog.UpdateAddresses(delta.NewAddresses, nil); err != nil {
		return fmt.Errorf("giving addresses to the classifier: %w", err)
	}
	d.told = true
	return d.routeHosts(s)
}

// difference compares s with what the classifier knows, be it from an earlier
// process.
func (d *Dataplane) difference(s *service.Snapshot) (delta service.Delta, err error) {
	frontends, err := d.prog.Addresses()
	if err != nil {
		return delta, fmt.Errorf("asking the classifier for its addresses: %w", err)
	}
	backends, err := d.prog.Backends()
	if err != nil {
		return delta, fmt.Errorf("asking the classifier for its backends: %w", err)
	}
	serving := map[[16]byte]bool{}
	for _, p := range s.ServicePorts() {
		for _, b := range p.ServingBackends() {
			serving[b.Addr] = true
		}
	}
	served := make(map[[16]byte]bool, len(s.Addresses()))
	for _, a := range s.Addresses() {
		served[a] = true
	}
	delta.NewAddresses, delta.GoneAddresses = changes(frontends, served)
	delta.NewBackends, delta.GoneBackends = changes(backends, serving)
	return delta, nil
}

// changes says what makes a list of addresses a set.
func changes(from [][16]byte, to map[[16]byte]bool) (add, remove [][16]byte) {
	was := make(map[[16]byte]bool, len(from))
	for _, a := range from {
		was[a] = true
		if !to[a] {
			remove = append(remove, a)
		}
	}
	for a := range to {
		if !was[a] {
			add = append(add, a)
		}
	}
	return add, remove
}

// Run runs the workers and the control loop until ctx is done, then lets the
// workers drain, or until a worker fails.
func (d *Dataplane) Run(ctx context.Context) error {
	// A worker that spins holds a processor of Go's; the rest needs one.
	if need := len(d.workers) + 1; runtime.GOMAXPROCS(0) < need {
		runtime.GOMAXPROCS(need)
	}
	control, cancel := context.WithCancel(context.Background())
	var loops sync.WaitGroup
	d.running.Store(true)
	ended := make(chan error, len(d.workers))
	lost := make(chan error, 1)
	loops.Go(func() {
		if err := d.follow(control); err != nil {
			lost <- err
		}
	})
	loops.Go(func() { d.maintain(control) })
	for _, w := range d.workers {
		go func() { ended <- w.run() }()
	}
	var err error
	left := len(d.workers)
	select {
	case <-ctx.Done():
	case err = <-lost:
	case err = <-ended:
		left--
	}
	// No port comes or goes from here on, and the queues of a worker that failed must
	// not swallow what comes.
	cancel()
	loops.Wait()
	d.release()
	for _, w := range d.workers {
		w.stop.Store(true)
		w.wake()
	}
	for range left {
		err = errors.Join(err, <-ended)
	}
	d.running.Store(false)
	return err
}

// drainFor is how long workers go on after the sockets left the classifier's map:
// what was redirected before is in their rings by then.
const drainFor = 5 * time.Millisecond

// release takes the sockets out of the classifier's map, so that new flows are
// the kernel's from here on and known ones wait, or are its too if nothing is
// kept.
func (d *Dataplane) release() {
	if d.cfg.OnExit == OnExitRemove {
		// The programs go first: what is known must not be held back for a
		// restart that will not come.
		if err := d.detach(); err != nil {
			d.log.Warn("detaching", "err", err)
		}
	}
	for _, p := range d.ports.Load().all {
		for _, q := range p.queues {
			if err := d.prog.DeleteSocket(q.index); err != nil {
				d.log.Warn("taking a socket from the classifier", "interface", p.name, "queue", q.number, "err", err)
			}
		}
	}
	time.Sleep(drainFor)
}

// Close lets everything go, in the reverse order of Open, and leaves what OnExit
// says. It is idempotent; Run must have returned, or never have been called.
func (d *Dataplane) Close() error {
	d.closeOnce.Do(func() {
		var errs []error
		if d.prog != nil && d.cfg.OnExit == OnExitRemove {
			errs = append(errs, d.detach())
		}
		for i := len(d.undo) - 1; i >= 0; i-- {
			errs = append(errs, d.undo[i]())
		}
		d.closeErr = errors.Join(errs...)
	})
	return d.closeErr
}
