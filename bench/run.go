//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options say what a run measures, and how.
type Options struct {
	Programs
	// Peers and Workloads are names; empty: all.
	Peers     []string
	Workloads []string
	Baseline  string // of ratios
	Quick     bool
	Repeats   int
	Duration  time.Duration // of one measurement
	Services  []int         // sizes of the world; empty: those of the kind of run
	// Output is the result file; Resume goes on with what it holds.
	Output string
	Resume bool
	// PProf is a folder for profiles; empty: none.
	PProf string
	// CommandLine and Version go into the result.
	CommandLine, Version string
	Progress             io.Writer // nil: none
	Log                  *slog.Logger

	settleIn time.Duration // how long to wait for an idle machine; shorter in a test
}

// patience is how long a peer has to be in sync.
const patience = 15 * time.Minute

func (o Options) withDefaults() Options {
	if o.Repeats == 0 {
		o.Repeats = 3
	}
	if o.Duration == 0 {
		o.Duration = 2 * time.Second
		if o.Quick {
			o.Duration = 200 * time.Millisecond
		}
	}
	if o.settleIn == 0 {
		o.settleIn = time.Minute
		if o.Quick {
			o.settleIn = 10 * time.Second
		}
	}
	if o.Baseline == "" {
		o.Baseline = "nftables"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o Options) validate() error {
	if o.Repeats < 3 {
		return fmt.Errorf("%d rounds: a median with a spread needs at least 3", o.Repeats)
	}
	names := PeerNames()
	for _, p := range append(slices.Clone(o.Peers), o.Baseline) {
		if !slices.Contains(names, p) {
			return fmt.Errorf("no peer is named %q; there are %v", p, names)
		}
		if strings.HasSuffix(p, "-other") && o.Other == nil {
			return fmt.Errorf("peer %q is of another build: name that with --other", p)
		}
	}
	for _, w := range o.Workloads {
		if !slices.Contains(WorkloadNames(), w) {
			return fmt.Errorf("no workload is named %q; there are %v", w, WorkloadNames())
		}
	}
	return nil
}

// scenario is a world that all peers serve at once, and what is measured in it.
type scenario struct {
	topology  Topology
	services  int
	flows     int // that tables must have room for
	coldSync  bool
	workloads []workload
}

func (s scenario) name() string { return fmt.Sprintf("%s services=%d", s.topology, s.services) }

const coldSync = "cold-sync"

// scenarios are those of a run.
func (o Options) scenarios() []scenario {
	if o.Quick {
		return []scenario{
			{topology: Local, services: 1, workloads: []workload{
				packets(fromSockets, 64, 1000),
				packets(fromInjector, 64, 64_000),
				flowSetup(),
				connections(128),
				roundTrips(1000, false),
				firstPackets(300),
				streams(1, false),
				streams(1, true),
			}},
			{topology: Local, services: 1000, coldSync: true, workloads: []workload{
				connections(128),
				firstPackets(300),
			}},
		}
	}
	var all []scenario
	first := scenario{topology: Local, services: 1, flows: 64_000, workloads: []workload{flowSetup()}}
	for _, f := range []from{fromSockets, fromSocketsToTap, fromInjector} {
		for _, frame := range []int{64, 512, 1400} {
			for _, flows := range []int{1, 1000, 64_000} {
				first.workloads = append(first.workloads, packets(f, frame, flows))
			}
		}
	}
	for _, frame := range []int{64, 1400} {
		first.workloads = append(first.workloads, partialDrop(fromSockets, frame, 1000), partialDrop(fromInjector, frame, 1000))
	}
	first.workloads = append(first.workloads,
		connections(128), connections(2000), roundTrips(5000, false), roundTrips(5000, true), firstPackets(2000),
		streams(1, false), streams(8, false), streams(1, true), streams(8, true), passedPackets(64, 1000), memoryOfFlows())
	all = append(all, first,
		scenario{topology: Local, services: 2, flows: 1_000_000, workloads: []workload{
			packets(fromSockets, 64, 1_000_000), packets(fromInjector, 64, 1_000_000), churn(64, 1000),
		}})
	sizes := o.Services
	if len(sizes) == 0 {
		sizes = []int{1, 1000, 10_000}
	}
	for _, n := range sizes {
		all = append(all, scenario{topology: Local, services: n, coldSync: true, workloads: []workload{
			connections(128), flowSetup(), firstPackets(2000), oneChange(), churn(64, 1000),
		}})
	}
	for _, t := range []Topology{Remote, RemoteVXLAN} {
		all = append(all, scenario{topology: t, services: 1, workloads: []workload{
			packets(fromSockets, 64, 1000), packets(fromSockets, 1400, 1000), connections(128), roundTrips(2000, false), streams(1, false),
		}})
	}
	return all
}

// WorkloadNames are all there are.
func WorkloadNames() []string {
	names := []string{coldSync}
	for _, quick := range []bool{true, false} {
		for _, s := range (Options{Quick: quick}).scenarios() {
			for _, w := range s.workloads {
				if !slices.Contains(names, w.name) {
					names = append(names, w.name)
				}
			}
		}
	}
	return names
}

// runner is a run.
type runner struct {
	Options
	result   *Result
	duration time.Duration
	patience time.Duration
	beds     []*bed // of the scenario at hand
	flow     uint32 // the next that was in no flow set-up yet
	progress *progress
	looking  bool // a profile is made of what runs

	api struct {
		sync.Mutex
		api *API
		err error
	}
}

// Run measures, and returns what came of it, which is also in the output file. What it could not
// measure says why; the error is for what ended the run.
func Run(ctx context.Context, o Options) (*Result, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	// Threads that wait in raw system calls hold a processor of Go's.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(16, runtime.NumCPU())))
	r := &runner{Options: o, duration: o.Duration, patience: patience, progress: newProgress(o.Progress)}
	if o.Quick {
		r.patience = time.Minute
	}
	r.result = &Result{
		Schema: Schema, Command: o.CommandLine, Version: o.Version, Started: time.Now().UTC().Truncate(time.Second),
		Machine: thisMachine(), Baseline: o.Baseline, Repeats: o.Repeats, Duration: o.Duration.Seconds(), Quick: o.Quick,
	}
	if o.Resume {
		if err := r.resume(); err != nil {
			return nil, err
		}
	}
	defer r.progress.end()
	defer func() {
		if r.api.api != nil {
			r.api.api.Close()
		}
	}()
	scenarios := o.scenarios()
	for i := range scenarios {
		scenarios[i].workloads = slices.DeleteFunc(scenarios[i].workloads, func(w workload) bool {
			return len(o.Workloads) > 0 && !slices.Contains(o.Workloads, w.name)
		})
		scenarios[i].coldSync = scenarios[i].coldSync && (len(o.Workloads) == 0 || slices.Contains(o.Workloads, coldSync))
		r.progress.expect((len(scenarios[i].workloads)*o.Repeats + 1) * len(r.chosen()))
	}
	for _, s := range scenarios {
		if err := r.scenario(ctx, s); err != nil {
			return r.result, errors.Join(err, r.save())
		}
	}
	r.result.Finished = time.Now().UTC().Truncate(time.Second)
	return r.result, r.save()
}

// resume takes over what an earlier run of the same kind has measured.
func (r *runner) resume() error {
	old, err := ReadResult(r.Output)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if why := r.result.Machine.comparable(old.Machine); why != "" {
		return fmt.Errorf("cannot go on with %s: %s", r.Output, why)
	}
	if old.Quick != r.result.Quick || old.Repeats != r.result.Repeats || old.Duration != r.result.Duration || old.Version != r.result.Version {
		return fmt.Errorf("cannot go on with %s: it is of another kind of run or version", r.Output)
	}
	r.result.Started, r.result.Stands, r.result.Series, r.result.Profiles = old.Started, old.Stands, old.Series, old.Profiles
	r.result.Warnings = old.Warnings
	r.result.Machine = old.Machine
	return nil
}

func (r *runner) save() error {
	r.result.settle()
	if r.Output == "" {
		return nil
	}
	return r.result.Write(r.Output)
}

// chosen are the peers that take part.
func (r *runner) chosen() (peers []Peer) {
	for _, p := range Peers(r.Programs) {
		if len(r.Peers) == 0 || slices.Contains(r.Peers, p.Name()) || p.Name() == r.Baseline {
			peers = append(peers, p)
		}
	}
	return peers
}

// scenario builds all peers' sites, measures every workload in rounds, and takes all down again.
func (r *runner) scenario(ctx context.Context, s scenario) (err error) {
	if len(s.workloads) == 0 && !s.coldSync {
		return nil
	}
	if r.done(s) {
		r.progress.step((len(s.workloads)*r.Repeats+1)*len(r.chosen()), "%s: done before", s.name())
		return nil
	}
	defer func() {
		for _, b := range r.beds {
			err = errors.Join(err, b.close())
		}
		r.beds = nil
	}()
	for _, p := range r.chosen() {
		r.progress.step(1, "%s: starting %s", s.name(), p.Name())
		if err := r.start(ctx, s, p); err != nil {
			return err
		}
		if err := r.save(); err != nil {
			return err
		}
	}
	r.settle(ctx, s)
	for _, w := range s.workloads {
		for round := range r.Repeats {
			// Another one begins each time.
			for i := range r.beds {
				b := r.beds[(i+round)%len(r.beds)]
				r.progress.step(1, "%s: %s %s, round %d of %d: %s", s.name(), w.name, w.params, round+1, r.Repeats, b.peer.Name())
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				r.turn(ctx, s, w, b)
			}
		}
		if err := r.save(); err != nil {
			return err
		}
	}
	if r.PProf != "" {
		return errors.Join(r.profile(ctx, s), r.save())
	}
	return nil
}

// settle waits until what was started has done its first work, so that it is in nobody's measurement: until
// all cores together are busy for less than a tenth of one.
func (r *runner) settle(ctx context.Context, s scenario) {
	r.progress.step(0, "%s: waiting for the machine to be idle", s.name())
	const look = 300 * time.Millisecond
	for end := time.Now().Add(r.settleIn); time.Now().Before(end) && ctx.Err() == nil; {
		before, _ := cpuTime()
		time.Sleep(look)
		after, err := cpuTime()
		if err != nil || after.sub(before).Total() < look/10 {
			return
		}
	}
	if ctx.Err() == nil {
		r.result.Warnings = append(r.result.Warnings, s.name()+": the machine was busy with something else")
	}
}

// done reports whether a resumed run has all of a scenario.
func (r *runner) done(s scenario) bool {
	for _, p := range r.chosen() {
		absent := slices.ContainsFunc(r.result.Stands, func(st *Stand) bool {
			return st.Scenario == s.name() && st.Peer == p.Name() && st.Absent != ""
		})
		for _, w := range s.workloads {
			if !absent && !slices.ContainsFunc(r.result.Series, func(x *Series) bool {
				return x.Scenario == s.name() && x.Peer == p.Name() && x.Workload == w.name && x.Params == w.params &&
					(x.Skipped != "" || len(x.Samples) >= r.Repeats)
			}) {
				return false
			}
		}
		if s.coldSync && !absent && notGenerator(p) == "" && p.Translates() && r.result.find(s.name(), coldSync, "", "sync", p.Name()) == nil {
			return false
		}
	}
	return true
}

// start puts a peer on a site and waits until all Services answer. With coldSync that is measured, as often as there are rounds
// if it takes seconds, once if it takes minutes, each time on a new site.
func (r *runner) start(ctx context.Context, s scenario, p Peer) error {
	stand := &Stand{Scenario: s.name(), Peer: p.Name(), About: p.About(), Translates: p.Translates()}
	r.result.Stands = slices.DeleteFunc(r.result.Stands, func(o *Stand) bool { return o.Scenario == stand.Scenario && o.Peer == stand.Peer })
	r.result.Stands = append(r.result.Stands, stand)
	times := 1
	if s.coldSync && p.Translates() {
		times = r.Repeats
		if r.result.find(s.name(), coldSync, "", "sync", p.Name()) != nil {
			times = 1 // a resumed run
		}
	}
	for i := range times {
		b, took, memory, err := r.startOnce(ctx, s, p)
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			stand.Absent = err.Error()
			if s.coldSync && p.Translates() && errors.Is(err, ErrNotProgrammed) {
				r.skip(s, workload{name: coldSync}, p, []string{"sync"}, err)
			}
			return nil
		}
		measured := s.coldSync && p.Translates() && (times > 1 || r.Repeats == 1)
		if measured {
			r.record(s, workload{name: coldSync}, p, outcome{values: map[string]float64{"sync": took.Seconds(), "per_service": memory}})
		}
		if i == times-1 || took > time.Minute {
			stand.Granted, stand.MTU, stand.Offloads = b.instance.Granted(), b.backendMTU(), b.offloads()
			r.beds = append(r.beds, b)
			return nil
		}
		if err := b.close(); err != nil {
			return err
		}
	}
	return nil
}

// startOnce returns a peer at work and in sync, how long it took from its start, and the memory that it took for a Service.
func (r *runner) startOnce(ctx context.Context, sc scenario, p Peer) (b *bed, took time.Duration, memory float64, err error) {
	s, err := newSite(p.Name(), sc.topology, sc.services, r.Log)
	if err != nil {
		return nil, 0, 0, err
	}
	b = &bed{peer: p, Site: s, scenario: sc.name()}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	s.Flows = sc.flows
	s.API = func(ctx context.Context) (*API, error) { return r.sharedAPI(ctx, s.World) }
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	if err := p.Prepare(ctx, s); err != nil {
		return b, 0, 0, err
	}
	var probe *prober
	if notGenerator(p) == "" {
		if probe, err = newProber(b); err != nil {
			return b, 0, 0, err
		}
		defer probe.close()
	}
	before := memoryUsed()
	start := time.Now()
	if b.instance, err = p.Start(ctx, s); err != nil {
		return b, 0, 0, err
	}
	if probe == nil {
		return b, 0, 0, nil
	}
	if took, err = probe.all(ctx, start); err != nil {
		if l, ok := b.instance.(Living); ok {
			err = errors.Join(err, l.Alive())
		}
		return b, 0, 0, err
	}
	return b, took, float64(memoryUsed()-before) / float64(sc.services), nil
}

// sharedAPI gives the API server with a world, and starts it when the first peer wants it. One that holds
// a part of the world is given the rest.
func (r *runner) sharedAPI(ctx context.Context, w *World) (*API, error) {
	r.api.Lock()
	defer r.api.Unlock()
	if a := r.api.api; a != nil {
		if a.world.Services == w.Services && slices.Equal(a.world.Backends, w.Backends) {
			return a, nil
		}
		if a.world.Services < w.Services && slices.Equal(a.world.Backends, w.Backends) {
			return a, a.grow(ctx, w)
		}
		r.api.api = nil
		if err := a.Close(); err != nil {
			return nil, err
		}
	}
	if r.api.err == nil {
		r.api.api, r.api.err = newAPI(ctx, r.Kubernetes, w, r.Log)
	}
	return r.api.api, r.api.err
}

// close takes the peer and its site away.
func (b *bed) close() error {
	var err error
	if b.instance != nil {
		err = b.instance.Stop()
	}
	return errors.Join(err, b.Site.Close())
}

// turn is one peer's turn in a round.
func (r *runner) turn(ctx context.Context, s scenario, w workload, b *bed) {
	if w.unsuited != nil {
		if why := w.unsuited(b.peer); why != "" {
			return // it is no competitor here
		}
	}
	if r.full(s, w, b.peer) {
		return
	}
	o, err := w.run(ctx, r, b)
	if l, ok := b.instance.(Living); ok && err != nil {
		err = errors.Join(err, l.Alive())
	}
	if err != nil {
		r.skip(s, w, b.peer, nil, err)
		return
	}
	r.record(s, w, b.peer, o)
}

// full reports whether a resumed run has the samples.
func (r *runner) full(s scenario, w workload, p Peer) bool {
	return slices.ContainsFunc(r.result.Series, func(x *Series) bool {
		return x.Scenario == s.name() && x.Peer == p.Name() && x.Workload == w.name && x.Params == w.params && len(x.Samples) >= r.Repeats
	})
}

// record takes down one turn.
func (r *runner) record(s scenario, w workload, p Peer, o outcome) {
	var tally *Tally
	for name, value := range o.values {
		x := r.series(s, w, p, name)
		if tally == nil {
			if x.Tally == nil {
				x.Tally = &Tally{}
			}
			tally = x.Tally
			if o.tally != nil {
				tally.add(*o.tally)
			}
		}
		x.Tally = tally
		x.Samples = append(x.Samples, value)
		if o.note != "" {
			x.Note = o.note
		}
	}
}

// series finds or makes one.
func (r *runner) series(s scenario, w workload, p Peer, metric string) *Series {
	x := r.result.find(s.name(), w.name, w.params, metric, p.Name())
	if x == nil {
		m, ok := metrics[metric]
		if !ok {
			panic("no metric is named " + metric)
		}
		x = &Series{Scenario: s.name(), Workload: w.name, Params: w.params, Peer: p.Name(), Metric: metric, Unit: m.unit, Better: m.better}
		r.result.Series = append(r.result.Series, x)
	}
	return x
}

// skip takes down why there is nothing.
func (r *runner) skip(s scenario, w workload, p Peer, names []string, err error) {
	r.Log.Warn("not measured", "scenario", s.name(), "workload", w.name, "params", w.params, "peer", p.Name(), "err", err)
	if names == nil {
		names = []string{mainMetric(w.name)}
	}
	for _, name := range names {
		r.series(s, w, p, name).Skipped = err.Error()
	}
}

// best is what the peer at hand can do from sockets, as measured before.
func (r *runner) best(b *bed) float64 {
	best := 0.0
	for _, s := range r.result.Series {
		if s.Peer == b.peer.Name() && s.Workload == "pps-sockets" && s.Metric == "pps" && len(s.Samples) > 0 {
			best = max(best, median(s.Samples))
		}
	}
	return best
}

// find gives a series of this scenario of the peer at hand.
func (r *runner) find(b *bed, workload, params, metric string) *Series {
	for _, s := range r.result.Series {
		if s.Scenario == b.scenario && s.Peer == b.peer.Name() && s.Workload == workload && s.Params == params && s.Metric == metric && len(s.Samples) > 0 {
			return s
		}
	}
	return nil
}

// freshFlows gives flows that nobody had.
func (r *runner) freshFlows() uint32 {
	r.flow += maxTapFlows
	if r.flow>>flowBits > 40_000-firstPort {
		r.flow = maxTapFlows
	}
	return r.flow
}

// pauseOthers keeps peers that share an API server from following changes meant for b.
func (r *runner) pauseOthers(b *bed) (resume func()) {
	var paused []Pauser
	for _, o := range r.beds {
		if p, ok := o.instance.(Pauser); ok && o != b && p.Pause(true) == nil {
			paused = append(paused, p)
		}
	}
	return func() {
		for _, p := range paused {
			p.Pause(false)
		}
	}
}

// mainMetric is the one that a workload is about.
func mainMetric(workload string) string {
	switch workload {
	case "flow-setup":
		return "flow_rate"
	case "crr":
		return "conn_rate"
	case "rtt-idle", "rtt-half-load", "first-packet":
		return "p50"
	case "bulk", "passed-bulk":
		return "bits"
	case coldSync:
		return "sync"
	case "one-change":
		return "change"
	case "pdr-sockets", "pdr-injected":
		return "pdr"
	case "memory-flows":
		return "per_flow"
	}
	return "pps"
}
