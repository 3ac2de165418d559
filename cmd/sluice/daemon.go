package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
	"github.com/sluice-net/sluice/cmd/sluice/internal/control"
	"github.com/sluice-net/sluice/cmd/sluice/internal/instance"
	"github.com/sluice-net/sluice/cmd/sluice/internal/preflight"
	"github.com/sluice-net/sluice/cmd/sluice/internal/telemetry"
	"github.com/sluice-net/sluice/dataplane"
	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/service"
	"github.com/sluice-net/sluice/service/apiserver"
	"github.com/sluice-net/sluice/xdpprog"
)

// serve is the daemon's life: it acquires everything in this order, so that
// what is likely to be refused is refused before anything is attached, runs
// until ctx is done, and lets go in the reverse order.
//
//	questions to the machine
//	the lock against a second instance
//	the listeners of health and metrics
//	the source of Services: manifests and with them the first snapshot, or the API server
//	the dataplane
//	run
//
// opened is called with the dataplane before it runs, drained when its workers have
// ended and nothing has been let go yet.
//
// It must be called in the network namespace to be served, on a thread that
// stays there until serve returns.
func serve(ctx context.Context, cfg *config.Configuration, log *slog.Logger, opened, drained func(*dataplane.Dataplane)) (err error) {
	var held []func() error
	defer func() {
		for i := len(held) - 1; i >= 0; i-- {
			err = errors.Join(err, held[i]())
		}
	}()
	hold := func(release func() error) { held = append(held, release) }
	var w waiting
	log = w.hold(log)

	if err := preflight.Check(needs(cfg)); err != nil {
		return err
	}
	lock, err := instance.Acquire(cfg.RunDir, cfg.Pins())
	if err != nil {
		return err
	}
	hold(lock.Release)

	d := daemon{build: thisBuild(), mode: cfg.Mode, syncs: telemetry.NewSyncs()}
	socket, err := control.Path(cfg.RunDir)
	if err != nil {
		return err
	}
	ctl, err := control.Serve(socket, map[string]control.Answer{"/services": d.describe, "/flows": d.flows}, log)
	if err != nil {
		return err
	}
	hold(ctl.Close)
	servers, err := d.listen(cfg, log)
	if err != nil {
		return err
	}
	hold(servers.close)

	var p publisher
	source, err := openSource(cfg, log, p.publish, d.syncs.Observe)
	if err != nil {
		return err
	}
	d.show(source, nil)
	closeSource := sync.OnceValue(source.Close)
	hold(closeSource)

	dp, err := openDataplane(cfg, log)
	if err != nil {
		return err
	}
	hold(func() error {
		d.show(nil, nil) // a scrape must not look into what is being unmapped
		return dp.Close()
	})
	if err := p.attach(dp.Publish); err != nil {
		return err
	}
	d.show(source, dp)
	w.end()
	d.announce(cfg, log)
	if e, ok := source.(interface {
		Event(kind, reason, message string)
	}); ok {
		e.Event("Normal", "Starting", "sluice "+d.build.Version+" serves ClusterIPs on this node, mode "+cfg.Mode)
	}

	opened(dp)
	err = dp.Run(ctx)
	if cfg.Debug.FrameOwnership {
		_, audit := dp.Audit()
		err = errors.Join(err, audit)
	}
	drained(dp)
	// No snapshot may come to a dataplane that is being closed.
	return errors.Join(err, closeSource())
}

// needs says what the configuration wants of the machine.
func needs(cfg *config.Configuration) preflight.Needs {
	n := preflight.Needs{Pins: cfg.Pins()}
	if cfg.Source == "manifests" {
		n.Manifests = cfg.Manifests
	}
	for _, i := range cfg.Interfaces {
		n.AnyInterface = true
		if i.Name != "" && !config.IsPattern(i.Name) && i.Kind != dataplane.KindNone.String() {
			n.Interfaces = append(n.Interfaces, i.Name)
		}
	}
	frames := cfg.Frames
	if frames == 0 {
		// The dataplane reckons with the queues of each direct port: at least
		// that of the return port, and something to send with.
		frames = 2 * cfg.RingSize
		for _, i := range cfg.Interfaces {
			if i.Kind == dataplane.KindNative.String() || i.Kind == dataplane.KindGeneric.String() {
				frames += cfg.RingSize
			}
		}
	}
	n.LockedBytes = uint64(frames) * uint64(cfg.FrameSize)
	return n
}

// daemon is what the listeners show. They are there before the rest is, and
// after it.
type daemon struct {
	build buildInfo
	mode  string
	syncs *telemetry.Syncs

	mu        sync.RWMutex // held for as long as one looks at the two
	source    source
	dataplane *dataplane.Dataplane
}

// source is where Services come from.
type source interface {
	Status() service.Status
	Describe() []service.Description
	Close() error
}

// services is what `sluice services` shows.
type services struct {
	Mode       string                `json:"mode"`
	Source     string                `json:"source"`
	Generation uint32                `json:"generation"`
	Age        string                `json:"age,omitempty"` // for how long it has not been known whether this is still so
	Err        string                `json:"error,omitempty"`
	Services   []service.Description `json:"services"`
}

// describe gives what `sluice services` shows.
func (d *daemon) describe(url.Values) (any, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s := services{Mode: d.mode, Services: []service.Description{}}
	if d.source == nil {
		s.Err = "starting or stopping"
		return s, nil
	}
	status := d.source.Status()
	s.Source, s.Generation = status.Dir, status.Generation
	if status.Err != nil {
		s.Err, s.Age = status.Err.Error(), status.Age().Round(time.Second).String()
	}
	s.Services = append(s.Services, d.source.Describe()...)
	return s, nil
}

// flows gives what `sluice flows` shows.
func (d *daemon) flows(question url.Values) (any, error) {
	filter, err := flowFilter(question)
	if err != nil {
		return nil, err
	}
	return control.Lines(func(yield func(any) bool) {
		d.mu.RLock()
		defer d.mu.RUnlock()
		if d.dataplane == nil {
			return // starting or stopping
		}
		for f := range d.dataplane.Flows(filter) {
			if !yield(f) {
				return
			}
		}
	}), nil
}

// show says what to look at from now on. When it returns, nobody looks at what
// was there before.
func (d *daemon) show(s source, dp *dataplane.Dataplane) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.source, d.dataplane = s, dp
}

// picture is what /metrics shows.
func (d *daemon) picture() telemetry.Picture {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var p telemetry.Picture
	if d.dataplane != nil {
		p.Stats = d.dataplane.Stats()
	}
	if d.source != nil {
		status := d.source.Status()
		p.SourceAge, p.Source = status.Age(), status.Counts
	}
	return p
}

// health is what the health endpoints show.
func (d *daemon) health() dataplane.Health {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.dataplane == nil {
		return dataplane.Health{Live: true, Reason: "starting or stopping"}
	}
	h := d.dataplane.Health()
	if !h.Ready && h.Live && d.source != nil {
		if err := d.source.Status().Err; err != nil {
			h.Reason += ": " + err.Error()
		}
	}
	return h
}

// announce logs what was started.
func (d *daemon) announce(cfg *config.Configuration, log *slog.Logger) {
	for _, w := range cfg.Warnings() {
		log.Warn(w)
	}
	p := d.picture()
	log.Info("started", "version", d.build.Version, "mode", cfg.Mode, "on_exit", cfg.OnExit, "workers", len(p.Workers),
		"service_ports", p.Snapshot.Services, "backends", p.Snapshot.Backends,
		"health", cfg.HealthzBindAddress, "metrics", cfg.MetricsBindAddress)
}

// listeners are the servers that were asked for.
type listeners []*telemetry.Server

func (l listeners) close() error {
	var errs []error
	for _, s := range l {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// listen opens the listeners that have an address.
func (d *daemon) listen(cfg *config.Configuration, log *slog.Logger) (listeners, error) {
	var open listeners
	registry := telemetry.NewRegistry(d.picture, d.syncs, telemetry.Build{Version: d.build.Version, Revision: d.build.Revision})
	metrics := telemetry.MetricsHandler(registry, cfg.EnableProfiling, log)
	if cfg.HealthzBindAddress != "" {
		s, err := telemetry.Serve("healthzBindAddress", cfg.HealthzBindAddress, cfg.BindAddressHardFail, telemetry.HealthHandler(d.health), log)
		if err != nil {
			return nil, err
		}
		open = append(open, s)
	}
	if cfg.MetricsBindAddress != "" {
		s, err := telemetry.Serve("metricsBindAddress", cfg.MetricsBindAddress, cfg.BindAddressHardFail, metrics, log)
		if err != nil {
			return nil, errors.Join(err, open.close())
		}
		open = append(open, s)
	}
	return open, nil
}

// publisher hands snapshots from the source to the dataplane, which comes
// later: what is published before that waits.
type publisher struct {
	mu     sync.Mutex
	latest *service.Snapshot
	to     func(*service.Snapshot) error
}

// publish is called by the source.
func (p *publisher) publish(s *service.Snapshot) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latest = s
	if p.to == nil {
		return nil
	}
	return p.to(s)
}

// attach hands on what has come, and from now on whatever comes.
func (p *publisher) attach(to func(*service.Snapshot) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = to
	if p.latest == nil {
		return nil
	}
	return to(p.latest)
}

// openSource opens what Services come from.
func openSource(cfg *config.Configuration, log *slog.Logger, publish func(*service.Snapshot) error, observe func(service.Sync)) (source, error) {
	selection, err := service.ParseSelection(cfg.Selection)
	if err != nil {
		return nil, err
	}
	name, err := nodeName(cfg.HostnameOverride)
	if err != nil {
		return nil, err
	}
	sc, err := serviceConfig(cfg, name, selection)
	if err != nil {
		return nil, err
	}
	if cfg.Source == "apiServer" {
		return apiserver.Open(apiserver.Config{
			Connection: apiserver.Connection{
				Kubeconfig: cfg.ClientConnection.Kubeconfig, Server: cfg.APIServer, ContentType: cfg.ClientConnection.ContentType,
				QPS: float32(cfg.ClientConnection.QPS), Burst: cfg.ClientConnection.Burst,
			},
			Service: sc, MinSyncPeriod: time.Duration(cfg.MinSyncPeriod), StateFile: stateFile(cfg), Observe: observe,
		}, log, publish)
	}
	return service.OpenFolder(cfg.Manifests, sc, log, func(s *service.Snapshot) {
		if err := publish(s); err != nil {
			log.Error("a change of Services could not be put in force", "generation", s.Generation, "err", err)
		}
	})
}

// stateFile is where the last known state of the API server is kept, "" for nowhere.
func stateFile(cfg *config.Configuration) string {
	if cfg.StateDir == "" {
		return ""
	}
	return filepath.Join(cfg.StateDir, "services.state")
}

// serviceConfig turns the configuration's words into service's types.
func serviceConfig(cfg *config.Configuration, node string, selection service.Selection) (sc service.Config, err error) {
	sc = service.Config{NodeName: node, Zone: cfg.Zone, Selection: selection}
	if cfg.Mode == "named" {
		sc.ProxyName = cfg.ServiceProxyName
	}
	switch {
	case cfg.NetworkPolicy == "enforcedElsewhere":
	case cfg.Mode == "front":
		sc.Policed = service.Pass
	default:
		sc.Policed = service.Refuse
	}
	if sc.ServiceCIDRs, err = config.Prefixes(cfg.ServiceCIDR); err != nil {
		return sc, err
	}
	switch cfg.DetectLocalMode {
	case "ClusterCIDR":
		sc.Pods, err = config.Prefixes(cfg.ClusterCIDR)
	case "NodeCIDR":
		sc.NodePods = true
	}
	return sc, err
}

// nodeName is the node's name as kubelet and kube-proxy make it
// (k8s.io/component-helpers/node/util, GetHostname).
func nodeName(override string) (string, error) {
	name := override
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("asking for the host's name (set hostnameOverride instead): %w", err)
		}
	}
	return strings.ToLower(strings.TrimSpace(name)), nil
}

// openDataplane turns the configuration's words into the dataplane's types.
func openDataplane(cfg *config.Configuration, log *slog.Logger) (*dataplane.Dataplane, error) {
	dc, err := dataplaneConfig(cfg)
	if err != nil {
		return nil, err
	}
	dp, err := dataplane.Open(dc, log)
	var foreign *xdpprog.ForeignProgram
	if errors.As(err, &foreign) {
		// The rooms below do not know what their options are called here.
		err = fmt.Errorf("%w (ip link set dev %s xdp off; replaceForeignXDP: true)", err, foreign.Device)
	}
	return dp, err
}

// dataplaneConfig turns the configuration's words into the dataplane's types.
func dataplaneConfig(cfg *config.Configuration) (dataplane.Config, error) {
	mode, err := dataplane.ParseMode(cfg.Mode)
	if err != nil {
		return dataplane.Config{}, err
	}
	onExit, err := dataplane.ParseOnExit(cfg.OnExit)
	if err != nil {
		return dataplane.Config{}, err
	}
	c := dataplane.Config{
		Mode:              mode,
		Workers:           cfg.Workers,
		Frames:            cfg.Frames,
		FrameSize:         cfg.FrameSize,
		RingSize:          cfg.RingSize,
		FlowCapacity:      cfg.FlowTable.Capacity,
		AffinityCapacity:  cfg.AffinityCapacity,
		Masquerade:        dataplane.Masquerade{All: cfg.MasqueradeAll},
		MaxFlowsPerClient: cfg.FlowTable.MaxPerClient,
		ResetGoneBackends: cfg.FlowTable.ResetGoneBackends,
		PinDir:            cfg.Pins(),
		OnExit:            onExit,
		ReturnPort:        cfg.ReturnPort,
		HeartbeatStale:    time.Duration(cfg.Heartbeat.StaleAfter),
		HoldKnown:         time.Duration(cfg.Heartbeat.HoldKnown),
		FragmentWait:      time.Duration(cfg.FragmentWait),
		Timeouts: flowtable.Timeouts{
			TCPOpening:     time.Duration(cfg.Conntrack.TCPOpeningTimeout),
			TCPEstablished: time.Duration(cfg.Conntrack.TCPEstablishedTimeout),
			TCPCloseWait:   time.Duration(cfg.Conntrack.TCPCloseWaitTimeout),
			TCPClosing:     time.Duration(cfg.Conntrack.TCPClosingTimeout),
			UDPUnreplied:   time.Duration(cfg.Conntrack.UDPTimeout),
			UDPStream:      time.Duration(cfg.Conntrack.UDPStreamTimeout),
		},
		ReplaceForeignXDP: cfg.ReplaceForeignXDP,
		BusySpin:          time.Duration(cfg.BusySpin),
		Debug:             cfg.Debug.FrameOwnership,
	}
	switch cfg.DetectLocalMode {
	case "BridgeInterface":
		c.Masquerade.Bridge = cfg.DetectLocal.BridgeInterface
	case "InterfaceNamePrefix":
		c.Masquerade.Prefix = cfg.DetectLocal.InterfaceNamePrefix
	}
	if c.BusySpin == 0 {
		c.BusySpin = -1 // the dataplane's zero is its default
	}
	if c.WorkerMode, err = dataplane.ParseWorkerMode(cfg.WorkerMode); err != nil {
		return dataplane.Config{}, err
	}
	if c.CPUs, err = config.CPUs(cfg.WorkerCPUs); err != nil {
		return dataplane.Config{}, err
	}
	for _, i := range cfg.Interfaces {
		kind, err := dataplane.ParsePortKind(i.Kind)
		if err != nil {
			return dataplane.Config{}, err
		}
		role, err := dataplane.ParseRole(i.Role)
		if err != nil {
			return dataplane.Config{}, err
		}
		c.Ports = append(c.Ports, dataplane.PortConfig{Name: i.Name, Driver: i.Driver, Role: role, Kind: kind})
	}
	return c, nil
}
