package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/sluice-net/sluice/service"
)

// Config is what Open needs.
type Config struct {
	Connection
	// Service says which Services are served, and how. Its NodeName names the Node that is watched.
	Service service.Config
	// MinSyncPeriod is the least time between two Snapshots. A change that comes after a longer rest is programmed at once.
	MinSyncPeriod time.Duration
	// StateFile holds the last known state, for a start without the server; empty: none.
	StateFile string
	// Observe, if not nil, is told of each Snapshot that was put in force.
	Observe func(service.Sync)
}

const (
	// restoreAfter is how long a start waits for the server before it goes by the state file.
	restoreAfter = 3 * time.Second
	// saveAfter is how long after a change the state is written, and so how often at most.
	saveAfter = 30 * time.Second
)

// publishRetry is when a Snapshot that could not be put in force is tried again.
const publishRetry = time.Second

// Source watches an API server. Its methods may be called from any goroutine.
type Source struct {
	cfg     Config
	log     *slog.Logger
	clients *clients
	publish func(*service.Snapshot) error
	started time.Time

	ctx   context.Context // until Close
	stop  context.CancelFunc
	loops sync.WaitGroup
	wake  chan struct{} // something was told to the Catalog
	// unpublished: the last Snapshot could not be put in force, or there is none. Of sync's goroutine.
	unpublished bool
	reports     service.ReportLog // likewise
	unsaved     bool              // the state file is older than the last Snapshot. Likewise, and Close's

	mu        sync.Mutex // guards what follows
	catalog   *service.Catalog
	resources []*resource
	status    service.Status
	queued    time.Time // when there first was something to commit
	without   bool      // the next commit need not wait for the server
	restored  time.Time // when the state was saved that the Catalog was told of; zero: none, or it is the server's by now
}

// Open begins to watch and returns at once, with an error only for what will never work. publish is called from one goroutine,
// never after Close, with each new Snapshot; what it refuses is tried again.
func Open(cfg Config, log *slog.Logger, publish func(*service.Snapshot) error) (*Source, error) {
	cfg.Service.Partial = true
	c, err := connect(&cfg.Connection)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Source{
		cfg: cfg, log: log.With("server", c.server), clients: c, publish: publish, stop: stop, started: time.Now(),
		wake: make(chan struct{}, 1), unpublished: true, catalog: service.NewCatalog(cfg.Service),
	}
	s.ctx = ctx
	s.reports.Log = s.log
	s.status.Dir = c.server
	if cfg.StateFile != "" {
		s.restore()
	}
	s.watchAll()
	// What client-go says is for finding faults; what an operator must know is said here.
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(&quiet{log.Handler()}))
	for _, r := range s.resources {
		s.loops.Go(func() { r.run(ctx) })
	}
	s.loops.Go(func() { s.sync(ctx) })
	return s, nil
}

// Close ends the watches and waits for a publish under way. The last Snapshot stays valid.
func (s *Source) Close() error {
	s.stop()
	s.loops.Wait()
	s.clients.close()
	if s.unsaved {
		s.save()
	}
	return nil
}

// stateOf is the header of the state files that are ours.
func (s *Source) stateOf() stateHeader {
	return stateHeader{Node: s.cfg.Service.NodeName, Proxy: s.cfg.Service.ProxyName}
}

// restore tells the Catalog of the last known state. What the server says later is a diff against it.
func (s *Source) restore() {
	saved, err := loadState(s.cfg.StateFile, s.stateOf(), s.catalog)
	switch {
	case err == nil:
		s.restored = saved
	case !errors.Is(err, os.ErrNotExist):
		s.log.Warn("the last known state is not used", "err", err)
		s.catalog = service.NewCatalog(s.cfg.Service) // it may have been told of half
	}
}

// save writes the state, if it is the server's.
func (s *Source) save() {
	s.mu.Lock()
	if s.unsynced() != "" {
		s.mu.Unlock()
		return
	}
	state := s.catalog.State()
	s.mu.Unlock()
	h := s.stateOf()
	h.Saved = time.Now().UTC()
	if err := saveState(s.cfg.StateFile, h, state); err != nil {
		s.log.Warn("the last known state could not be saved", "err", err)
		return
	}
	s.unsaved = false
}

// watchAll lists what is watched, with the selectors that kube-proxy sets (cmd/kube-proxy/app/server.go: Run).
func (s *Source) watchAll() {
	c := s.catalog
	proxyName := must(labels.NewRequirement(service.ProxyNameLabel, selection.DoesNotExist, nil))
	if name := s.cfg.Service.ProxyName; name != "" {
		proxyName = must(labels.NewRequirement(service.ProxyNameLabel, selection.Equals, []string{name}))
	}
	notHeadless := must(labels.NewRequirement(corev1.IsHeadlessService, selection.DoesNotExist, nil))

	follow(s, s.clients.core, "services", selectors{labels.NewSelector().Add(*proxyName), fields.OneTermNotEqualSelector("spec.clusterIP", corev1.ClusterIPNone)},
		&store[*corev1.Service]{kind: new(corev1.Service), set: c.SetService, remove: c.DeleteService, replace: c.ReplaceServices})
	node := s.cfg.Service.NodeName
	named := selectors{labels.Everything(), fields.OneTermEqualSelector("metadata.name", node)}
	every := selectors{labels.Everything(), fields.Everything()}
	follow(s, s.clients.core, "nodes", named, &store[*corev1.Node]{kind: new(corev1.Node), set: c.SetNode, remove: c.DeleteNode, replace: c.ReplaceNodes})
	follow(s, s.clients.networking, "servicecidrs", every,
		&store[*networkingv1.ServiceCIDR]{kind: new(networkingv1.ServiceCIDR), set: c.SetRange, remove: c.DeleteRange, replace: c.ReplaceRanges})
	if s.cfg.Service.Policed != service.Forward {
		onNode := selectors{labels.Everything(), fields.OneTermEqualSelector("spec.nodeName", node)}
		follow(s, s.clients.core, "pods", onNode, &store[*corev1.Pod]{kind: new(corev1.Pod), set: c.SetPod, remove: c.DeletePod, replace: c.ReplacePods})
		follow(s, s.clients.networking, "networkpolicies", every,
			&store[*networkingv1.NetworkPolicy]{kind: new(networkingv1.NetworkPolicy), set: c.SetPolicy, remove: c.DeletePolicy, replace: c.ReplacePolicies})
	}
	follow(s, s.clients.discovery, "endpointslices", selectors{labels.NewSelector().Add(*notHeadless), fields.Everything()},
		&store[*discoveryv1.EndpointSlice]{kind: new(discoveryv1.EndpointSlice), set: c.SetSlice, remove: c.DeleteSlice, replace: c.ReplaceSlices})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // of constants
	}
	return v
}

// selectors say which objects of a kind are watched.
type selectors struct {
	labels labels.Selector
	fields fields.Selector
}

func follow[T object](s *Source, client rest.Interface, name string, which selectors, st *store[T]) {
	r := &resource{name: name, source: s, optional: name == "servicecidrs"}
	st.resource = r
	r.reflector = newReflector(client, s.clients.params, which, st)
	s.resources = append(s.resources, r)
}

// observe tells of a Snapshot that is in force. Triggers from before the process began say nothing about it.
func (s *Source) observe(began time.Time, full bool, triggers []service.Trigger) {
	if s.cfg.Observe == nil {
		return
	}
	s.mu.Lock()
	queued := s.queued
	s.mu.Unlock()
	if queued.IsZero() || queued.After(began) {
		queued = began
	}
	triggers = slices.DeleteFunc(triggers, func(t service.Trigger) bool { return t.At.Before(s.started) })
	s.cfg.Observe(service.Sync{Queued: queued, Began: began, Took: time.Since(began), Full: full, Triggers: triggers})
}

// kick says that there may be something to commit.
func (s *Source) kick() {
	s.mu.Lock()
	if s.queued.IsZero() {
		s.queued = time.Now()
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// sync commits and publishes until ctx is done.
func (s *Source) sync(ctx context.Context) {
	var last time.Time // the last change
	var due *time.Timer
	saving := time.NewTicker(saveAfter)
	defer saving.Stop()
	late := time.NewTimer(restoreAfter)
	defer late.Stop()
	for {
		var at <-chan time.Time
		if due != nil {
			at = due.C
		}
		select {
		case <-ctx.Done():
			if due != nil {
				due.Stop()
			}
			return
		case <-s.wake:
			if due != nil {
				continue // it is coming
			}
			if rest := s.cfg.MinSyncPeriod - time.Since(last); rest > 0 {
				due = time.NewTimer(rest)
				continue
			}
		case <-at:
			due = nil
		case <-saving.C:
			if s.unsaved {
				s.save()
			}
			continue
		case <-late.C:
			s.giveUpWaiting()
		}
		began := time.Now()
		changed, err := s.commit()
		if changed {
			last = began
		}
		if err != nil {
			s.log.Error("a change of Services could not be put in force; trying again", "err", err)
			due = time.NewTimer(publishRetry)
		}
	}
}

// commit makes and publishes a Snapshot, if all kinds have been listed and something has changed.
func (s *Source) commit() (changed bool, err error) {
	s.mu.Lock()
	if s.unsynced() != "" && !s.without {
		s.mu.Unlock()
		return false, nil
	}
	s.without = false
	first, began := s.status.Changed.IsZero(), time.Now()
	change := s.catalog.Commit()
	counts := s.catalog.Counts()
	s.status.Services, s.status.EndpointSlices, s.status.Report = counts.Services, counts.EndpointSlices, change.Report
	s.mu.Unlock()

	s.reports.Report(change.Report)
	if !change.Changed && !s.unpublished {
		return false, nil
	}
	s.unpublished = true
	if err := s.publish(change.Snapshot); err != nil {
		return true, err
	}
	s.unpublished = false
	s.unsaved = s.cfg.StateFile != ""
	s.observe(began, first, change.Triggers)
	s.mu.Lock()
	s.queued = time.Time{}
	s.status.Generation, s.status.Changed = change.Snapshot.Generation, time.Now()
	s.mu.Unlock()
	if first && s.restored.IsZero() {
		s.log.Info("synced with the API server", "services", counts.Services, "endpoint_slices", counts.EndpointSlices)
	}
	return true, nil
}

// Status says how the source is doing. Its Err names the kinds of objects that cannot be watched now, and its Read is when
// the last of them was.
func (s *Source) Status() service.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.status
	status.Counts = s.catalog.Counts()
	var errs []error
	status.Read = time.Now()
	for _, r := range s.resources {
		if r.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.name, r.err))
			if r.contact.Before(status.Read) {
				status.Read = r.contact
			}
		}
	}
	status.Checked, status.Err = time.Now(), errors.Join(errs...)
	return status
}

// Describe describes what is programmed.
func (s *Source) Describe() []service.Description {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.catalog.Describe()
}

// giveUpWaiting lets the next commit go by the last known state, if the server has not been heard yet.
func (s *Source) giveUpWaiting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	missing := s.unsynced()
	if missing == "" {
		return
	}
	if s.restored.IsZero() {
		s.log.Warn("still waiting for the API server: nothing is programmed yet", "missing", missing)
		return
	}
	s.without = true
	s.log.Warn("no answer from the API server: serving by the last known state", "saved", s.restored, "missing", missing)
	for _, r := range s.resources {
		if !r.synced {
			r.contact = s.restored
		}
	}
}

// unsynced names the kinds that have not been listed yet.
func (s *Source) unsynced() string {
	var names []string
	for _, r := range s.resources {
		if !r.synced {
			names = append(names, r.name)
		}
	}
	return strings.Join(names, ", ")
}

// quiet is a log handler that makes everything a matter of debugging.
type quiet struct{ slog.Handler }

// Enabled implements slog.Handler.
func (q *quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler.
func (q *quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return q.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (q *quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return &quiet{q.Handler.WithAttrs(attrs)} }

// WithGroup implements slog.Handler.
func (q *quiet) WithGroup(name string) slog.Handler { return &quiet{q.Handler.WithGroup(name)} }
