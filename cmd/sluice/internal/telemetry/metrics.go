package telemetry

import (
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sluice-net/sluice/dataplane"
	"github.com/sluice-net/sluice/service"
)

// Picture is what a scrape shows: all of one moment.
type Picture struct {
	dataplane.Stats
	// SourceAge is how long it has not been known whether the Services in use
	// are what their source says; 0 while all is well.
	SourceAge time.Duration
	// Source counts what the source knows.
	Source service.Counts
}

// Build is what the metric build_info says of the binary.
type Build struct {
	Version, Revision string
}

// NewRegistry gives the registry of everything that /metrics shows: the
// dataplane's metrics, the Go runtime's, the process's.
func NewRegistry(picture func() Picture, syncs *Syncs, build Build) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(
		syncs,
		&collector{picture, metrics(build)},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return r
}

// sink takes one value of a metric, with the values of its labels in order.
type sink func(value float64, labels ...string)

// metric is one metric and how it is read out of a picture.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(s *Picture, emit sink)
}

// collector implements prometheus.Collector with constant metrics.
type collector struct {
	picture func() Picture
	metrics []metric
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for i := range c.metrics {
		ch <- c.metrics[i].desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.picture()
	for i := range c.metrics {
		m := &c.metrics[i]
		m.read(&s, func(value float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
		})
	}
}

// counter describes a metric that only grows, gauge one that does not.
func counter(name, help string, read func(*Picture, sink), labels ...string) metric {
	return metric{prometheus.NewDesc("sluice_"+name, help, labels, nil), prometheus.CounterValue, read}
}

func gauge(name, help string, read func(*Picture, sink), labels ...string) metric {
	return metric{prometheus.NewDesc("sluice_"+name, help, labels, nil), prometheus.GaugeValue, read}
}

// kubeproxy describes a metric that kube-proxy has too.
func kubeproxy(name, help string, kind prometheus.ValueType, read func(*Picture, sink), labels ...string) metric {
	return metric{prometheus.NewDesc("kubeproxy_"+name, help, labels, nil), kind, read}
}

// ofPorts reads one value for each port, labelled interface.
func ofPorts(read func(*dataplane.PortStats) uint64) func(*Picture, sink) {
	return func(s *Picture, emit sink) {
		for i := range s.Ports {
			emit(float64(read(&s.Ports[i])), s.Ports[i].Name)
		}
	}
}

// ofWorkers reads one value for each worker, labelled worker.
func ofWorkers(read func(*dataplane.WorkerStats) float64) func(*Picture, sink) {
	return func(s *Picture, emit sink) {
		for i := range s.Workers {
			emit(read(&s.Workers[i]), strconv.Itoa(s.Workers[i].ID))
		}
	}
}

// of reads a single value.
func of[N int | uint32 | uint64 | float64](read func(*Picture) N) func(*Picture, sink) {
	return func(s *Picture, emit sink) { emit(float64(read(s))) }
}

// metrics is the list of them all. Labels are interfaces, workers, and words of
// closed lists; never a pod, a flow or an address, whose number nobody bounds.
func metrics(build Build) []metric {
	type (
		port   = dataplane.PortStats
		worker = dataplane.WorkerStats
	)
	return []metric{
		gauge("build_info", "Constant 1, labelled with what was built.",
			func(_ *Picture, emit sink) { emit(1, build.Version, build.Revision, runtime.Version()) }, "version", "revision", "goversion"),

		gauge("interface_info", "Constant 1, labelled with how an interface is served: what was asked for and what the kernel granted.",
			func(s *Picture, emit sink) {
				for i := range s.Ports {
					p := &s.Ports[i]
					emit(1, p.Name, p.Kind, p.Driver, p.Asked, p.Granted, p.Socket)
				}
			}, "interface", "kind", "driver", "asked", "granted", "socket"),
		gauge("interfaces_refused", "Interfaces that are to be served and cannot be: the log says why.",
			func(s *Picture, emit sink) { emit(float64(len(s.Refused))) }),
		gauge("interface_queues", "Receive queues served.",
			ofPorts(func(p *port) uint64 { return uint64(p.Queues) }), "interface"),
		counter("rx_packets_total", "Packets received from an interface's sockets.",
			ofPorts(func(p *port) uint64 { return p.RxFrames }), "interface"),
		counter("rx_bytes_total", "Bytes of packets received from an interface's sockets, from the Ethernet header on.",
			ofPorts(func(p *port) uint64 { return p.RxBytes }), "interface"),
		counter("tx_packets_total", "Packets given to an interface's sockets to send.",
			ofPorts(func(p *port) uint64 { return p.TxFrames }), "interface"),
		counter("tx_bytes_total", "Bytes of packets given to an interface's sockets to send, from the Ethernet header on.",
			ofPorts(func(p *port) uint64 { return p.TxBytes }), "interface"),
		counter("classifier_packets_total", "Packets that the classifier in the kernel saw, by what it decided, at the ingress or the egress hook.",
			func(s *Picture, emit sink) {
				for i := range s.Ports {
					p := &s.Ports[i]
					for reason, n := range p.Classifier {
						emit(float64(n), p.Name, "ingress", reason)
					}
					for reason, n := range p.Egress {
						emit(float64(n), p.Name, "egress", reason)
					}
				}
			}, "interface", "hook", "reason"),

		counter("frames_total", "Frames that reached the fast path, by how they ended and why.",
			func(s *Picture, emit sink) {
				for _, v := range s.Verdicts {
					emit(float64(v.Frames), v.Verdict.String(), v.Reason.String())
				}
			}, "verdict", "reason"),

		counter("xsk_kicks_total", "System calls that told the kernel to send.",
			ofPorts(func(p *port) uint64 { return p.Kicks.Calls }), "interface"),
		counter("xsk_kicks_suppressed_total", "Times that no system call was needed to send.",
			ofPorts(func(p *port) uint64 { return p.Kicks.Suppressed }), "interface"),
		counter("xsk_kicks_unfinished_total", "System calls after which the kernel had still not sent everything.",
			ofPorts(func(p *port) uint64 { return p.Kicks.Again }), "interface"),
		counter("xsk_tx_dropped_total", "Packets that the device dropped when they were sent.",
			ofPorts(func(p *port) uint64 { return p.Kicks.Dropped }), "interface"),
		counter("xsk_rx_dropped_total", "Packets that the kernel dropped before a socket, for want of room or of a frame that fits.",
			ofPorts(func(p *port) uint64 { return p.XSK.RxDropped }), "interface"),
		counter("xsk_rx_ring_full_total", "Packets that the kernel dropped because a socket's receive ring was full.",
			ofPorts(func(p *port) uint64 { return p.XSK.RxRingFull }), "interface"),
		counter("xsk_fill_ring_empty_total", "Times that the kernel found a fill ring empty.",
			ofPorts(func(p *port) uint64 { return p.XSK.RxFillRingEmpty }), "interface"),
		counter("xsk_tx_ring_empty_total", "Times that the kernel found a transmit ring empty.",
			ofPorts(func(p *port) uint64 { return p.XSK.TxRingEmpty }), "interface"),
		counter("xsk_invalid_descriptors_total", "Descriptors that the kernel refused. Not zero is a fault in Sluice.",
			func(s *Picture, emit sink) {
				for i := range s.Ports {
					p := &s.Ports[i]
					emit(float64(p.XSK.RxInvalidDescs), p.Name, "fill")
					emit(float64(p.XSK.TxInvalidDescs), p.Name, "tx")
				}
			}, "interface", "ring"),

		gauge("flows", "Flows in the flow table.",
			of(func(s *Picture) int { return s.Flows.Flows })),
		gauge("flow_capacity", "Flows that fit in the flow table.",
			of(func(s *Picture) int { return s.Flows.Capacity })),
		gauge("flow_limbo", "Flows removed whose memory may not be used again yet.",
			of(func(s *Picture) int { return s.Flows.Limbo })),
		counter("flow_created_total", "Flows put into the flow table.",
			of(func(s *Picture) uint64 { return s.Flows.Inserted })),
		counter("flow_removed_total", "Flows taken out of the flow table, those that expired included.",
			of(func(s *Picture) uint64 { return s.Flows.Removed })),
		counter("flow_expired_total", "Flows taken out of the flow table because nothing was heard of them.",
			of(func(s *Picture) uint64 { return s.Flows.Expired })),
		counter("flow_shed_total", "Flows taken out of the flow table because it was full and nobody had answered them.",
			of(func(s *Picture) uint64 { return s.Flows.Shed })),
		counter("flow_insert_failures_total", "Flows that could not be put into the flow table, by what was in the way: no free record, no free cell, another flow with the same replies, a connection with the backend itself that has them, or a client that has its share.",
			func(s *Picture, emit sink) {
				emit(float64(s.Flows.FullRecords), "records")
				emit(float64(s.Flows.FullCells), "cells")
				emit(float64(s.Flows.Collisions), "collision")
				emit(float64(s.Claimed), "claimed")
				emit(float64(s.Flows.OverCap), "client_over_cap")
			}, "reason"),

		gauge("umem_frames", "Frames of packet memory.",
			of(func(s *Picture) int { return s.Frames.Total })),
		gauge("umem_free_frames", "Frames of packet memory in the free pool.",
			of(func(s *Picture) int { return s.Frames.Free })),
		gauge("umem_lost_frames", "Frames of packet memory that closed sockets could not account for, and that stay unused.",
			of(func(s *Picture) int { return s.Frames.Lost })),

		counter("worker_packets_total", "Packets that a worker received.",
			ofWorkers(func(w *worker) float64 { return float64(w.Received) }), "worker"),
		counter("worker_batches_total", "Batches of packets that a worker went through.",
			ofWorkers(func(w *worker) float64 { return float64(w.Batches) }), "worker"),
		counter("worker_sleeps_total", "Times that a worker slept for want of packets.",
			ofWorkers(func(w *worker) float64 { return float64(w.Sleeps) }), "worker"),
		counter("worker_busy_seconds_total", "Time that a worker spent with packets; its rate is the worker's load, 0 to 1.",
			ofWorkers(func(w *worker) float64 { return w.Busy.Seconds() }), "worker"),
		gauge("worker_heartbeat_age_seconds", "Time since a worker's last heartbeat.",
			ofWorkers(func(w *worker) float64 { return w.LastBeat.Seconds() }), "worker"),

		gauge("adjacencies", "Next hops whose way out is known.",
			of(func(s *Picture) int { return s.Adjacencies })),
		gauge("snapshot_generation", "Number of the set of Services in use, 0 before the first.",
			of(func(s *Picture) uint32 { return s.Snapshot.Generation })),
		gauge("snapshot_age_seconds", "Time since the set of Services in use was put in force.",
			of(func(s *Picture) float64 { return s.Snapshot.Age.Seconds() })),
		gauge("source_age_seconds", "Time for which it has not been known whether the Services in use are what their source says; 0 while all is well.",
			of(func(s *Picture) float64 { return s.SourceAge.Seconds() })),
		gauge("source_objects", "Services and EndpointSlices that the source shows.",
			func(s *Picture, emit sink) {
				emit(float64(s.Source.Services), "Service")
				emit(float64(s.Source.EndpointSlices), "EndpointSlice")
			}, "kind"),
		gauge("refused", "What Services ask for and do not get: endpoints with unsafe addresses, ClusterIPs outside of every Service range, ports of Services with a backend here that a NetworkPolicy selects.",
			func(s *Picture, emit sink) {
				emit(float64(s.Source.RefusedEndpoints), "endpoint")
				emit(float64(s.Source.RefusedClusterIPs), "cluster_ip")
				emit(float64(s.Snapshot.Policed), "policy")
			}, "kind"),
		counter("affinity_evicted_total", "Clients of Services with ClientIP affinity that were forgotten for want of room.",
			of(func(s *Picture) uint64 { return s.AffinityEvicted })),
		kubeproxy("sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices.", prometheus.CounterValue,
			of(func(s *Picture) uint64 { return s.Source.SliceChanges })),
		kubeproxy("sync_proxy_rules_endpoint_changes_pending", "Changes of EndpointSlices that are not programmed yet.", prometheus.GaugeValue,
			of(func(s *Picture) uint64 { return s.Source.SliceChangesPending })),
		kubeproxy("sync_proxy_rules_service_changes_total", "Changes of Services.", prometheus.CounterValue,
			of(func(s *Picture) uint64 { return s.Source.ServiceChanges })),
		kubeproxy("sync_proxy_rules_service_changes_pending", "Changes of Services that are not programmed yet.", prometheus.GaugeValue,
			of(func(s *Picture) uint64 { return s.Source.ServiceChangesPending })),
		kubeproxy("sync_proxy_rules_no_local_endpoints_total", "Ports of Services with internalTrafficPolicy Local that have endpoints, but none on this node.", prometheus.GaugeValue,
			func(s *Picture, emit sink) { emit(float64(s.Snapshot.NoLocal), "internal") }, "traffic_policy"),
		gauge("service_ports", "Ports of Services in use, counted for each address family.",
			of(func(s *Picture) int { return s.Snapshot.Services })),
		gauge("backends", "Backends in use, counted for each port of a Service.",
			of(func(s *Picture) int { return s.Snapshot.Backends })),
	}
}
