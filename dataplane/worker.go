package dataplane

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/dataplane/xsk"
	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/nat"
	"github.com/sluice-net/sluice/service"
)

// batchSize bounds a batch, and with it how long a worker's thread stays
// inside one system call.
const batchSize = 64

const (
	// beatEvery is how often a worker writes its heartbeats while it has
	// work, and publishes its counters.
	beatEvery = 10 * time.Millisecond
	// sleepAtMost bounds a worker's sleep, since a sleeping worker beats too.
	sleepAtMost = 100 * time.Millisecond
)

// port is a device that the dataplane serves. A direct one has a socket for each
// of its queues.
type port struct {
	slot     int
	name     string
	ifindex  int
	driver   string
	mtu      int
	outerMAC [6]byte // of the return port's other end, where its frames go
	// hw is the link-layer address that frames must be sent to, as the first
	// six bytes of a frame read as a little-endian word; 0 is any. The control
	// loop follows the device.
	hw      atomic.Uint64
	returns bool // it is the return port
	named   bool // by the configuration, and not by a pattern
	routed  bool // and stands for the replies that come back to it (portSet)
	steered bool // its frames come and go by the return port: it has no queues
	partial bool // its peer can send partial checksums: veth, tap
	asked   PortKind
	granted PortKind
	queues  []*queue
	out     []outbox // by worker
}

// takes reports whether a frame is sent to the port's own station, and not flooded to
// it.
func (p *port) takes(frame []byte) bool {
	hw := p.hw.Load()
	return hw == 0 || len(frame) < etherLen || stationOf(frame) == hw
}

// queue is one (port, queue) with its socket. Its receive side (rx and fill
// ring) belongs to one worker; its transmit side (tx and completion ring) to
// whoever holds tx.
type queue struct {
	port   *port
	number int
	index  int // in the socket map and the heartbeats: slot x queues + queue
	sock   *xsk.Socket
	tx     sync.Mutex
	// Frames and bytes received, and given to the kernel to send.
	received, receivedBytes, sent, sentBytes atomic.Uint64
}

// batch is what the stages work on: one receive ring's worth of frames, in
// arrays of fixed size.
type batch struct {
	n       int
	descs   [batchSize]xsk.Desc
	frames  [batchSize][]byte
	in      [batchSize]*port // that the frame came in by, nil if that is no more
	parsed  [batchSize]nat.Reason
	packets [batchSize]nat.Packet
	// The tuples of the frames that were parsed, in their order.
	found  int
	tuples [batchSize]flowtable.Tuple
	hashes [batchSize]uint64
	refs   [batchSize]flowtable.Ref
	// What is brought ahead of its use, and what keeps the loads that bring it.
	next [batchSize]*adjacency
	seen int
}

// outbox gathers the descriptors that leave by one port until the batch ends.
type outbox struct {
	n       int
	descs   [batchSize]xsk.Desc
	reasons [batchSize]Reason
}

// worker owns a set of queues and runs the packet loop on a thread of its own.
// Every field is its own but those that say otherwise.
type worker struct {
	id     int
	d      *Dataplane
	queues []*queue
	cache  *xsk.Cache
	poller *xsk.Poller

	in       *queue   // of this batch
	ports    *portSet // of this batch
	b        batch
	touched  []*port // with something in their outbox
	snapshot *service.Snapshot
	now      uint64 // monotonic ns, once a turn of the loop
	tick     flowtable.Tick
	target   flowtable.Target
	resets   tokenBucket
	// fragments of datagrams that are on their way.
	fragments *fragments
	rng       rand.PCG
	resolve   func([16]byte) *adjacency

	counts   [numReasons]uint64
	ended    Reason // of the last frame
	received uint64
	batches  uint64
	sleeps   uint64
	busy     uint64 // ns spent in turns that had work
	lastBeat uint64

	// Read by others: published at each beat and before each sleep.
	published struct {
		counts                                [numReasons]atomic.Uint64
		received, batches, sleeps, busy, beat atomic.Uint64
	}
	// turn counts turns of the loop; its lowest bit is set while the worker
	// sleeps and holds no reference into the flow table. The control loop
	// waits on it before it lets records be used again.
	turn atomic.Uint64
	stop atomic.Bool
	over atomic.Bool // run has returned
	// given are the queues that the control loop wants it to have, has those that
	// it has; the worker takes over between two turns.
	given, has atomic.Pointer[[]*queue]
}

func newWorker(d *Dataplane, id int) *worker {
	w := &worker{id: id, d: d, touched: make([]*port, 0, maxPorts), resolve: d.egress.resolve}
	w.rng.Seed(rand.Uint64(), rand.Uint64())
	w.fragments = newFragments(w.random(), d.cfg.FragmentWait)
	none := []*queue{}
	w.given.Store(&none)
	w.has.Store(&none)
	return w
}

// random is 64 bits nobody can guess from the last ones cheaply: PCG-DXSM with
// a seed of the system's.
func (w *worker) random() uint64 { return w.rng.Uint64() }

// run is the worker's life. It returns when stop is set, after a last pass over
// its queues, or with the error that ended it.
func (w *worker) run() (err error) {
	runtime.LockOSThread() // never unlocked: the thread ends with the worker
	defer func() {
		w.turn.Store(w.turn.Load() | 1) // asleep for good
		w.over.Store(true)
		w.publish()
		if r := recover(); r != nil {
			err = fmt.Errorf("worker %d: panic: %v\n%s", w.id, r, stack())
		}
	}()
	if err := w.pin(); err != nil {
		return fmt.Errorf("worker %d: %w", w.id, err)
	}
	mode, spin := w.d.cfg.WorkerMode, uint64(max(0, w.d.cfg.BusySpin))
	if mode == WorkerInterrupt {
		spin = 0
	}
	w.now = w.d.clock.now()
	lastWork := w.now
	for !w.stop.Load() {
		if w.pass() {
			lastWork = w.now
			continue
		}
		if mode == WorkerBusy {
			if w.now == w.lastBeat {
				w.reap() // nobody sends, so nobody else takes these back
			}
			continue
		}
		if w.now-lastWork < spin {
			continue
		}
		woken, err := w.sleep()
		if err != nil {
			return fmt.Errorf("worker %d: %w", w.id, err)
		}
		if woken { // and not by the time for a beat
			lastWork = w.d.clock.now()
		}
	}
	// What is in the rings still gets its verdict.
	for w.pass() {
	}
	for w.fragments.oldest != 0 {
		w.forget(w.fragments.oldest)
	}
	w.flush()
	w.reap()
	return nil
}

// pin ties the thread to the processor that the worker is to have, if any.
func (w *worker) pin() error {
	cpus := w.d.cfg.CPUs
	if len(cpus) == 0 {
		return nil
	}
	var set unix.CPUSet
	cpu := cpus[w.id%len(cpus)]
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pinning to cpu %d: %w", cpu, err)
	}
	return nil
}

// pass is one turn of the loop: a batch of each queue that has one. It reports
// whether there was any.
func (w *worker) pass() bool {
	w.turn.Store(w.turn.Load() + 2)
	if w.given.Load() != w.has.Load() {
		w.adopt()
	}
	w.now = w.d.clock.now()
	if w.now-w.lastBeat >= uint64(beatEvery) {
		w.beat()
	}
	w.tick = flowtable.TickOf(w.now)
	if w.fragments.oldest != 0 {
		w.expireFragments()
		w.flush()
	}
	had := false
	for _, q := range w.queues {
		if w.serve(q) {
			had = true
		}
	}
	if had {
		w.busy += w.d.clock.now() - w.now
	}
	return had
}

// adopt makes the queues that the worker was given its own.
func (w *worker) adopt() {
	given := w.given.Load()
	for _, q := range w.queues {
		if !slices.Contains(*given, q) {
			w.poller.Remove(q.sock)
		}
	}
	for _, q := range *given {
		if !slices.Contains(w.queues, q) {
			w.poller.Add(q.sock)
			q.sock.Refill(w.cache)
		}
	}
	w.queues = *given
	w.has.Store(given)
}

// beat writes the heartbeat of every queue and publishes the counters.
func (w *worker) beat() {
	w.lastBeat = w.now
	for _, q := range w.queues {
		w.d.beat(q.index, w.now)
	}
	w.publish()
}

// publish copies the counters to where others may read them.
func (w *worker) publish() {
	p := &w.published
	for i, n := range w.counts {
		p.counts[i].Store(n)
	}
	p.received.Store(w.received)
	p.batches.Store(w.batches)
	p.sleeps.Store(w.sleeps)
	p.busy.Store(w.busy)
	p.beat.Store(w.lastBeat)
}

// sleep waits until a frame arrives, somebody wakes the worker, or the next
// beat is due. It reports whether a frame did.
func (w *worker) sleep() (woken bool, err error) {
	w.reap()
	w.now = w.d.clock.now()
	w.beat()
	w.sleeps++
	t := w.turn.Load()
	w.turn.Store(t | 1)
	// A beat must not be stale before the next one, though the sleep be too long.
	n, err := w.poller.Wait(min(sleepAtMost, w.d.cfg.HeartbeatStale*2/5))
	w.turn.Store((t | 1) + 1)
	return n > 0, err
}

// wake ends the worker's sleep. Any thread.
func (w *worker) wake() { w.poller.Wake() }

// quiet reports whether the worker has passed a batch boundary since its turn
// was seen, or sleeps.
func (w *worker) quiet(seen uint64) bool {
	t := w.turn.Load()
	return t&1 == 1 || t != seen
}

// end counts the end of one frame.
func (w *worker) end(r Reason) {
	w.counts[r]++
	w.ended = r
}

// stack is the stack of a worker that panicked.
func stack() []byte {
	buf := make([]byte, 16<<10)
	return buf[:runtime.Stack(buf, false)]
}
