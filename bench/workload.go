//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// workload is something that is measured, on every peer that it suits.
type workload struct {
	name   string
	params string
	// unsuited says why a peer does not take part; empty: it does.
	unsuited func(p Peer) string
	run      func(ctx context.Context, r *runner, b *bed) (outcome, error)
}

// outcome is one turn of one peer.
type outcome struct {
	values map[string]float64 // by metric
	tally  *Tally
	note   string
}

// metrics are what workloads measure: the unit, and which way is better.
var metrics = map[string]struct{ unit, better string }{
	"pps":         {"packets/s", "higher"},
	"offered":     {"packets/s", "higher"},
	"loss":        {"%", "lower"},
	"pdr":         {"packets/s", "higher"},
	"cpu":         {"CPU s/M packets", "lower"},
	"cpu_user":    {"CPU s/M packets", "lower"},
	"cpu_system":  {"CPU s/M packets", "lower"},
	"cpu_softirq": {"CPU s/M packets", "lower"},
	"send_cost":   {"ns/packet", "lower"},
	"sink_cost":   {"ns/packet", "lower"},
	"conn_rate":   {"connections/s", "higher"},
	"conn_cpu":    {"µs CPU/connection", "lower"},
	"conn_failed": {"%", "lower"},
	"flow_rate":   {"flows/s", "higher"},
	"p01":         {"µs", "lower"},
	"p50":         {"µs", "lower"},
	"p99":         {"µs", "lower"},
	"p99.9":       {"µs", "lower"},
	"load":        {"packets/s", "higher"},
	"bits":        {"Gbit/s", "higher"},
	"bit_cpu":     {"CPU s/GB", "lower"},
	"sync":        {"s", "lower"},
	"change":      {"ms", "lower"},
	"changes":     {"changes/s", "higher"},
	"per_service": {"bytes/Service", "lower"},
	"per_flow":    {"bytes/flow", "lower"},
}

// generatorOnly leaves a workload to real peers.
func notGenerator(p Peer) string {
	if _, ok := p.(generatorPeer); ok {
		return "nothing is behind the generator"
	}
	return ""
}

// needsServices is for what a floor without Services has none of.
func needsServices(p Peer) string {
	if why := notGenerator(p); why != "" {
		return why
	}
	if !p.Translates() {
		return "serves no Services"
	}
	return ""
}

// ofTrial are the metrics of a trial of datagrams.
func ofTrial(t trial) outcome {
	o := outcome{values: map[string]float64{
		"pps": t.Rate, "offered": t.Offered, "loss": 100 * t.LossRate(),
		"send_cost": float64(t.SendCost.Nanoseconds()),
	}, tally: &t.Tally}
	if t.SinkCost > 0 {
		o.values["sink_cost"] = float64(t.SinkCost.Nanoseconds())
	}
	per := t.InWindow
	if per == 0 { // the generator alone: nothing arrives
		per = uint64(t.Offered * t.Window.Seconds())
		o.tally = nil
	}
	if per > 0 {
		million := float64(per) / 1e6
		o.values["cpu"] = t.CPU.Total().Seconds() / million
		o.values["cpu_user"] = t.CPU.User.Seconds() / million
		o.values["cpu_system"] = t.CPU.System.Seconds() / million
		o.values["cpu_softirq"] = t.CPU.Softirq.Seconds() / million
	}
	if t.CPU.Stolen > t.Window/20 {
		o.note = fmt.Sprintf("the host took %.0f %% of a core", 100*t.CPU.Stolen.Seconds()/t.Window.Seconds())
	}
	return o
}

// from names a way to send and count.
type from string

const (
	fromSockets      from = "sockets" // sendmmsg to recvmmsg
	fromSocketsToTap from = "sockets-to-tap"
	fromInjector     from = "injected" // XDP frames to the sink in the kernel
)

func (b *bed) trial(f from, t traffic, d time.Duration) (trial, error) {
	switch f {
	case fromSocketsToTap:
		return b.socketsToTap(t, d, 0)
	case fromInjector:
		return b.injected(t, 0, d, 0)
	}
	return b.sockets(t, d, 0)
}

// packets offers as much as the generator can and counts what arrives.
func packets(f from, frame, flows int) workload {
	return workload{
		name: "pps-" + string(f), params: fmt.Sprintf("frame=%d flows=%d", frame, flows),
		run: func(_ context.Context, r *runner, b *bed) (outcome, error) {
			t := b.udpTarget(1)
			t.frame, t.flows = frame, flows
			if flows > 1 && !r.looking {
				// Flows are known before they are measured.
				warm := t
				warm.rate = 0
				if _, err := b.trial(f, warm, max(r.duration/4, time.Duration(flows)*4*time.Microsecond)); err != nil {
					return outcome{}, err
				}
			}
			// A look into it is at a rate that the peer can bear, so that all frames go all
			// the way.
			if r.looking {
				if s := r.find(b, "pps-"+string(f), fmt.Sprintf("frame=%d flows=%d", frame, flows), "pps"); s != nil {
					t.rate = 0.85 * median(s.Samples)
				}
			}
			got, err := b.trial(f, t, r.duration)
			return ofTrial(got), err
		},
	}
}

// partialDrop searches for the highest rate at which no more than 0.5 % are lost: between 0
// and what the generator can offer, by halving.
func partialDrop(f from, frame, flows int) workload {
	const allowed = 0.005
	return workload{
		name: "pdr-" + string(f), params: fmt.Sprintf("frame=%d flows=%d", frame, flows), unsuited: notGenerator,
		run: func(ctx context.Context, r *runner, b *bed) (outcome, error) {
			t := b.udpTarget(1)
			t.frame, t.flows = frame, flows
			var sum Tally
			try := func(rate float64) (trial, error) {
				t.rate = rate
				got, err := b.trial(f, t, r.duration/2)
				sum.add(got.Tally)
				return got, err
			}
			most, err := try(0)
			if err != nil {
				return outcome{}, err
			}
			low, high := 0.0, most.Offered
			if most.LossRate() <= allowed {
				low = most.Rate
			} else {
				for range 7 {
					rate := (low + high) / 2
					got, err := try(rate)
					if err != nil {
						return outcome{}, err
					}
					if got.LossRate() <= allowed {
						low = got.Rate
						if got.Offered < 0.97*rate { // the generator can do no more
							break
						}
						low = rate
					} else {
						high = rate
					}
					if ctx.Err() != nil {
						return outcome{}, ctx.Err()
					}
				}
			}
			return outcome{values: map[string]float64{"pdr": low}, tally: &sum}, nil
		},
	}
}

// flowSetup injects frames each of which is the first of a flow.
func flowSetup() workload {
	return workload{
		name: "flow-setup", params: "frame=64", unsuited: notGenerator,
		run: func(_ context.Context, r *runner, b *bed) (outcome, error) {
			t := b.udpTarget(1)
			t.frame, t.flows = 64, maxTapFlows
			// Short, so that nobody's table is full before the last round.
			got, err := b.injected(t, r.freshFlows(), min(r.duration, 150*time.Millisecond), 0)
			o := ofTrial(got)
			o.values["flow_rate"] = o.values["pps"]
			delete(o.values, "pps")
			return o, err
		},
	}
}

// connections opens TCP connections to all Services in turn.
func connections(open int) workload {
	return workload{
		name: "crr", params: fmt.Sprintf("open=%d", open), unsuited: notGenerator,
		run: func(_ context.Context, r *runner, b *bed) (outcome, error) {
			var targets []netip.AddrPort
			for n := 1; n <= b.World.Services; n++ {
				targets = append(targets, target(b.peer, b.Site, n, b.World.TCP, tcpBackendPort))
			}
			got, err := b.crr(targets, open, r.duration)
			if err != nil {
				return outcome{}, err
			}
			o := outcome{values: map[string]float64{"conn_rate": got.Rate}, tally: &Tally{Corrupted: got.Wrong}}
			if got.Done > 0 {
				o.values["conn_cpu"] = float64(got.CPU.Total().Microseconds()) / float64(got.Done)
				o.values["conn_failed"] = 100 * float64(got.Failed) / float64(got.Done+got.Failed)
			}
			return o, nil
		},
	}
}

// roundTrips is ping-pong on one flow, idle or beside a load of half of what the peer can do.
func roundTrips(count int, half bool) workload {
	w := workload{name: "rtt-idle", unsuited: notGenerator}
	if half {
		w.name = "rtt-half-load"
	}
	w.run = func(_ context.Context, r *runner, b *bed) (outcome, error) {
		p := pings{count: count, targets: []netip.AddrPort{b.udpTarget(1).to}}
		if half {
			best := r.best(b)
			if best == 0 {
				return outcome{}, &Unsuited{"what the peer can do was not measured before"}
			}
			p.load = b.udpTarget(1)
			p.load.frame, p.load.flows, p.load.rate = 64, 16, best/2
		}
		got, err := b.ping(p)
		if err != nil {
			return outcome{}, err
		}
		o := ofPings(got, 50, 99, 99.9)
		if half {
			o.values["load"] = got.Load
		}
		return o, nil
	}
	return w
}

// firstPackets is the latency of first packets of new flows, to all Services in turn.
func firstPackets(count int) workload {
	return workload{
		name: "first-packet", unsuited: notGenerator,
		run: func(_ context.Context, r *runner, b *bed) (outcome, error) {
			p := pings{count: count, fresh: true}
			// Spread over all Services, first and last included.
			for i := range min(count, b.World.Services) {
				n := 1
				if b.World.Services > 1 {
					n += i * (b.World.Services - 1) / (min(count, b.World.Services) - 1)
				}
				p.targets = append(p.targets, target(b.peer, b.Site, n, b.World.UDP, udpBackendPort))
			}
			got, err := b.ping(p)
			if err != nil {
				return outcome{}, err
			}
			return ofPings(got, 1, 50, 99), nil
		},
	}
}

func ofPings(p pingResult, quantiles ...float64) outcome {
	o := outcome{values: map[string]float64{}, tally: &Tally{
		Sent: uint64(p.Histogram.TotalCount()) + uint64(p.Lost), Received: uint64(p.Histogram.TotalCount()), Lost: uint64(p.Lost),
		Corrupted: uint64(p.Corrupted), WrongSource: uint64(p.WrongSource),
	}}
	if p.Histogram.TotalCount() == 0 {
		return o
	}
	for _, q := range quantiles {
		name := strings.TrimSuffix(fmt.Sprintf("p%04.1f", q), ".0")
		o.values[name] = float64(p.Histogram.ValueAtPercentile(q)) / 1e3
	}
	return o
}

// streams is bulk TCP to a Service, or past all Services straight to a backend: traffic that
// a peer only lets pass.
func streams(n int, passed bool) workload {
	w := workload{name: "bulk", params: fmt.Sprintf("streams=%d", n), unsuited: notGenerator}
	if passed {
		w.name = "passed-bulk"
	}
	w.run = func(_ context.Context, r *runner, b *bed) (outcome, error) {
		to := target(b.peer, b.Site, 1, b.World.TCP, tcpBackendPort)
		if passed {
			to = netip.AddrPortFrom(b.World.Backends[0], tcpBackendPort)
		}
		got, err := b.bulk(to, n, r.duration)
		if err != nil {
			return outcome{}, err
		}
		o := outcome{values: map[string]float64{"bits": got.BitRate / 1e9}, tally: &Tally{Corrupted: got.Corrupted}, note: got.Offloads}
		if got.Bytes > 0 {
			o.values["bit_cpu"] = got.CPU.Total().Seconds() / (float64(got.Bytes) / 1e9)
		}
		return o, nil
	}
	return w
}

// passedPackets is datagrams past all Services straight to a backend.
func passedPackets(frame, flows int) workload {
	return workload{
		name: "passed-pps", params: fmt.Sprintf("frame=%d flows=%d", frame, flows), unsuited: notGenerator,
		run: func(_ context.Context, r *runner, b *bed) (outcome, error) {
			t := traffic{frame: frame, flows: flows, to: netip.AddrPortFrom(b.World.Backends[0], udpBackendPort)}
			got, err := b.sockets(t, r.duration, 0)
			return ofTrial(got), err
		},
	}
}

// oneChange is how long until a Service that had no endpoints answers after it got some.
func oneChange() workload {
	return workload{
		name: "one-change", unsuited: needsServices,
		run: func(ctx context.Context, r *runner, b *bed) (outcome, error) {
			u, ok := b.instance.(Updater)
			if !ok {
				return outcome{}, &Unsuited{"its Services cannot be changed"}
			}
			defer r.pauseOthers(b)()
			probe, err := newProber(b)
			if err != nil {
				return outcome{}, err
			}
			defer probe.close()
			ctx, cancel := context.WithTimeout(ctx, r.patience)
			defer cancel()
			n := b.World.Spare()
			set := func(backends []netip.Addr) func() error { return func() error { return u.SetBackends(n, backends) } }
			if _, err := probe.change(ctx, n, set(nil), false); err != nil {
				return outcome{}, errors.Join(err, set(b.World.Backends)())
			}
			took, err := probe.change(ctx, n, set(b.World.Backends), true)
			return outcome{values: map[string]float64{"change": float64(took.Microseconds()) / 1e3}}, err
		},
	}
}

// changesASecond is how often endpoints change in the workload churn.
const changesASecond = 100

// churn is packets a second while the endpoints of another Service change.
func churn(frame, flows int) workload {
	return workload{
		name: "churn", params: fmt.Sprintf("frame=%d flows=%d changes=%d/s", frame, flows, changesASecond), unsuited: needsServices,
		run: func(ctx context.Context, r *runner, b *bed) (outcome, error) {
			u, ok := b.instance.(Updater)
			if !ok {
				return outcome{}, &Unsuited{"its Services cannot be changed"}
			}
			if b.World.Services < 2 {
				return outcome{}, &Unsuited{"there is no other Service to change"}
			}
			defer r.pauseOthers(b)()
			var (
				stop    atomic.Bool
				changes atomic.Uint64
				failed  error
				work    sync.WaitGroup
			)
			started := time.Now()
			work.Go(func() {
				tick := time.NewTicker(time.Second / changesASecond)
				defer tick.Stop()
				for i := 0; !stop.Load(); i++ {
					<-tick.C
					if failed = u.SetBackends(b.World.Spare(), b.World.Backends[i%2:]); failed != nil {
						return
					}
					changes.Add(1)
				}
			})
			t := b.udpTarget(1)
			t.frame, t.flows = frame, flows
			got, err := b.sockets(t, max(r.duration, time.Second), 0)
			stop.Store(true)
			work.Wait()
			rate := float64(changes.Load()) / time.Since(started).Seconds()
			err = errors.Join(err, failed, u.SetBackends(b.World.Spare(), b.World.Backends))
			o := ofTrial(got)
			o.values["changes"] = rate
			return o, err
		},
	}
}
