package dataplane

import (
	"time"

	"github.com/sluice-net/sluice/dataplane/xsk"
	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/service"
	"github.com/sluice-net/sluice/xdpprog"
)

// Stats is a picture of the dataplane's counters. Workers publish theirs at
// every beat and before every sleep, so it is at most 10 ms old under load.
type Stats struct {
	Ports    []PortStats
	Refused  []RefusedPort
	Workers  []WorkerStats
	Received uint64
	Verdicts []VerdictStats
	Flows    flowtable.Stats
	// Claimed counts source ports that a flow could not have, since a connection with
	// the backend itself had them.
	Claimed  uint64
	Frames   FrameStats
	Snapshot SnapshotStats
	// Adjacencies is the number of destinations in use.
	Adjacencies int
	// AffinityEvicted counts clients that were forgotten for want of room.
	AffinityEvicted uint64
}

// PortStats is what one port did.
type PortStats struct {
	Name    string
	Kind    string // direct, steered or return
	Asked   string // kind asked for: auto, steered, native, generic
	Granted string // kind that it is: steered, native, generic
	Socket  string // what the kernel gave the sockets: copy, zero-copy; none if steered
	Driver  string
	Queues  int
	// Of the sockets, summed over queues.
	RxFrames uint64
	RxBytes  uint64
	TxFrames uint64
	TxBytes  uint64
	XSK      xsk.Statistics
	Kicks    xsk.KickCounters
	// Classifier counts frames at the ingress hook, by the classifier's words.
	Classifier map[string]uint64
	// Egress counts frames at the egress hook, by the classifier's words.
	Egress map[string]uint64
}

// RefusedPort is a device that is to be served and cannot be.
type RefusedPort struct {
	Name, Why string
}

// WorkerStats is what one worker did.
type WorkerStats struct {
	ID       int
	Received uint64
	Batches  uint64
	Sleeps   uint64
	Busy     time.Duration // time in turns that had work
	LastBeat time.Duration // age of the last heartbeat
}

// VerdictStats counts the frames that ended for one reason.
type VerdictStats struct {
	Verdict Verdict
	Reason  Reason
	Frames  uint64
}

// FrameStats counts umem frames. What is not free is in a ring, in a worker's
// hands, or lost.
type FrameStats struct {
	Total, Free, Lost int
}

// SnapshotStats describes the Services in use.
type SnapshotStats struct {
	Generation uint32
	Age        time.Duration
	Services   int // ServicePorts
	Backends   int
	NoLocal    int // ServicePorts whose policy is Local, without an endpoint here, with some elsewhere
	Policed    int // ServicePorts that a NetworkPolicy keeps from being served
}

// Stats takes the picture. Any thread.
func (d *Dataplane) Stats() Stats {
	s := Stats{
		Flows:       d.table.Stats(),
		Claimed:     d.claimed.Load(),
		Frames:      FrameStats{Total: d.umem.Frames(), Free: d.umem.Pool().Free(), Lost: d.umem.Pool().Lost()},
		Adjacencies: d.egress.adj.len(),

		AffinityEvicted: d.affinities.Evicted(),
	}
	now := d.clock.now()
	sums := make([]uint64, numReasons)
	for _, w := range d.workers {
		p := &w.published
		ws := WorkerStats{
			ID: w.id, Received: p.received.Load(), Batches: p.batches.Load(), Sleeps: p.sleeps.Load(),
			Busy: time.Duration(p.busy.Load()),
		}
		if beat := p.beat.Load(); beat != 0 && now > beat {
			ws.LastBeat = time.Duration(now - beat)
		}
		s.Workers = append(s.Workers, ws)
		s.Received += ws.Received
		for r := range sums {
			sums[r] += p.counts[r].Load()
		}
	}
	for r, n := range sums {
		s.Verdicts = append(s.Verdicts, VerdictStats{Reason(r).Verdict(), Reason(r), n})
	}
	d.portStats(&s)
	if snap := d.snapshot.Load(); snap != nil {
		s.Snapshot.Generation = snap.Generation
		s.Snapshot.Age = time.Duration(now - d.publishedAt.Load())
		for _, p := range snap.ServicePorts() {
			s.Snapshot.Services++
			s.Snapshot.Backends += len(p.Backends)
			switch p.Action {
			case service.Drop:
				s.Snapshot.NoLocal++
			case service.Pass, service.Refuse:
				s.Snapshot.Policed++
			}
		}
	}
	return s
}

// portStats fills in what the ports and the classifier counted.
func (d *Dataplane) portStats(s *Stats) {
	counters, err := d.prog.Counters()
	if err != nil {
		d.log.Warn("reading the classifier's counters", "err", err)
	}
	d.looking.RLock()
	defer d.looking.RUnlock()
	for _, r := range d.refused {
		s.Refused = append(s.Refused, RefusedPort{Name: r.name, Why: r.why})
	}
	for _, p := range d.ports.Load().all {
		ps := PortStats{
			Name: p.name, Kind: "direct", Asked: p.asked.String(), Granted: p.granted.String(),
			Socket: "none", Driver: p.driver, Queues: len(p.queues),
			Classifier: map[string]uint64{}, Egress: map[string]uint64{},
		}
		switch {
		case p.returns:
			ps.Kind = "return"
		case p.steered:
			ps.Kind = "steered"
		}
		if !p.steered {
			ps.Socket = p.queues[0].sock.Granted().Mode.String()
		}
		for _, q := range p.queues {
			ps.RxFrames += q.received.Load()
			ps.RxBytes += q.receivedBytes.Load()
			ps.TxFrames += q.sent.Load()
			ps.TxBytes += q.sentBytes.Load()
			if x, err := q.sock.Statistics(); err == nil {
				addStatistics(&ps.XSK, x)
			}
			q.tx.Lock()
			addKicks(&ps.Kicks, q.sock.Kicks)
			q.tx.Unlock()
		}
		if err == nil {
			for r := range xdpprog.NumReasons {
				word := xdpprog.Reason(r).String()
				ps.Classifier[word] = counters[p.slot].Ingress[r]
				ps.Egress[word] = counters[p.slot].Egress[r]
			}
		}
		s.Ports = append(s.Ports, ps)
	}
}

func addStatistics(sum *xsk.Statistics, s xsk.Statistics) {
	sum.RxDropped += s.RxDropped
	sum.RxInvalidDescs += s.RxInvalidDescs
	sum.TxInvalidDescs += s.TxInvalidDescs
	sum.RxRingFull += s.RxRingFull
	sum.RxFillRingEmpty += s.RxFillRingEmpty
	sum.TxRingEmpty += s.TxRingEmpty
}

func addKicks(sum *xsk.KickCounters, k xsk.KickCounters) {
	sum.Calls += k.Calls
	sum.Suppressed += k.Suppressed
	sum.Again += k.Again
	sum.Dropped += k.Dropped
	if k.Errno != 0 {
		sum.Errno = k.Errno
	}
}

// Verdict sums the frames of a verdict.
func (s *Stats) Verdict(v Verdict) (n uint64) {
	for _, r := range s.Verdicts {
		if r.Verdict == v {
			n += r.Frames
		}
	}
	return n
}

// Reason is the number of frames that ended for r.
func (s *Stats) Reason(r Reason) uint64 { return s.Verdicts[r].Frames }

// Unaccounted is the number of frames received that have no verdict: zero once
// the workers are idle.
func (s *Stats) Unaccounted() int64 {
	n := int64(s.Received)
	for _, r := range s.Verdicts {
		n -= int64(r.Frames)
	}
	return n
}

// Health is what liveness and readiness endpoints say.
type Health struct {
	Live   bool
	Ready  bool
	Reason string // why not
}

// stalled is the age of a heartbeat at which a worker counts as stuck.
const stalled = time.Second

// Health reports whether every worker beats and something is programmed.
func (d *Dataplane) Health() Health {
	h := Health{Live: true, Ready: true}
	if !d.running.Load() {
		return Health{Live: true, Reason: "the workers do not run yet"}
	}
	now := d.clock.now()
	for _, w := range d.workers {
		if beat := w.published.beat.Load(); now > beat && time.Duration(now-beat) > stalled {
			h.Live, h.Ready, h.Reason = false, false, "a worker has not beaten for "+time.Duration(now-beat).Round(time.Millisecond).String()
			return h
		}
	}
	if d.snapshot.Load() == nil {
		h.Ready, h.Reason = false, "no Services have been programmed yet"
	}
	return h
}
