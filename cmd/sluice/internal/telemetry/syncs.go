package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-net/sluice/service"
)

// Syncs counts what it takes to program changes of Services, under kube-proxy's
// names (pkg/proxy/metrics), so that its dashboards go on working. A sync here
// serves both families, so its duration has no label ip_family. It is a
// prometheus.Collector, and Observe may be called from any goroutine.
type Syncs struct {
	all, full, partial prometheus.Histogram
	latency            *prometheus.HistogramVec
	last, queued       prometheus.Gauge
}

// NewSyncs gives one that has seen nothing.
func NewSyncs() *Syncs {
	duration := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kubeproxy_" + name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		})
	}
	moment := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "kubeproxy_" + name, Help: help})
	}
	// kube-proxy's own buckets, which begin at a quarter of a second, and finer ones below.
	buckets := []float64{0.005, 0.01, 0.025, 0.05, 0.1}
	for _, some := range [][]float64{
		prometheus.LinearBuckets(0.25, 0.25, 2), prometheus.LinearBuckets(1, 1, 59),
		prometheus.LinearBuckets(60, 5, 12), prometheus.LinearBuckets(120, 30, 7),
	} {
		buckets = append(buckets, some...)
	}
	return &Syncs{
		all:     duration("sync_proxy_rules_duration_seconds", "Time to program a change of Services."),
		full:    duration("sync_full_proxy_rules_duration_seconds", "Time to program all Services, at the start."),
		partial: duration("sync_partial_proxy_rules_duration_seconds", "Time to program a change of Services, but for the first."),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "kubeproxy_network_programming_duration_seconds",
			Help:    "Time from what made endpoints change (endpoints.kubernetes.io/last-change-trigger-time) to the change being in force. Changes older than the process and deletions do not count.",
			Buckets: buckets,
		}, []string{"ip_family"}),
		last:   moment("sync_proxy_rules_last_timestamp_seconds", "When a change was last programmed."),
		queued: moment("sync_proxy_rules_last_queued_timestamp_seconds", "When a change was last waiting to be programmed."),
	}
}

// Observe takes in one sync.
func (s *Syncs) Observe(o service.Sync) {
	took := o.Took.Seconds()
	s.all.Observe(took)
	if o.Full {
		s.full.Observe(took)
	} else {
		s.partial.Observe(took)
	}
	done := o.Began.Add(o.Took)
	s.last.Set(float64(done.UnixNano()) / 1e9)
	s.queued.Set(float64(o.Queued.UnixNano()) / 1e9)
	for _, t := range o.Triggers {
		family := "IPv4"
		if t.IPv6 {
			family = "IPv6"
		}
		s.latency.WithLabelValues(family).Observe(done.Sub(t.At).Seconds())
	}
}

func (s *Syncs) parts() []prometheus.Collector {
	return []prometheus.Collector{s.all, s.full, s.partial, s.latency, s.last, s.queued}
}

// Describe implements prometheus.Collector.
func (s *Syncs) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range s.parts() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (s *Syncs) Collect(ch chan<- prometheus.Metric) {
	for _, c := range s.parts() {
		c.Collect(ch)
	}
}
