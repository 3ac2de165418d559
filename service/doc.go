// Package service turns Kubernetes Services and EndpointSlices into the Snapshot that the dataplane forwards by, and
// chooses a Backend for each new flow.
//
// The way of a change:
//
//	source (Folder, apiserver.Source)  ->  Services, EndpointSlices  ->  Catalog  ->  Snapshot  ->  publish
//
// A source reads objects and owns the goroutines. A Catalog keeps what matters of the objects, and makes from it the next
// Snapshot, by kube-proxy's rules (pkg/proxy: topology.go, endpointslicecache.go, servicechangetracker.go), at a cost in
// proportion to what changed. Whatever an object asks for and does not get is a Problem that names object, field and reason.
//
// Ownership: a Snapshot and all it leads to never change after Commit has returned it, so any number of workers read it
// without a lock. Two consecutive Snapshots share what did not change; the round-robin counter of a ServicePort is the one
// mutable thing, atomic, and handed on from Snapshot to Snapshot.
//
// A ServicePort here is one port of one Service in one address family: the families have endpoints of their own, and
// kube-proxy treats them as two as well.
//
// Where an object is refused: the folder's strict decoding refuses a manifest that the API server would refuse, and the
// whole folder's last good state serves on. A Catalog refuses single endpoints and frontends that are unsafe to translate to
// (loopback, link-local, multicast, an address that is itself a ClusterIP, ...) and goes on with the rest.
//
// Topology hints are honoured as kube-proxy honours them: node hints before zone hints, over Ready endpoints only.
// spec.trafficDistribution is not read, because the control plane has already turned it into hints.
//
// External IPs, NodePorts and LoadBalancer status are ignored on purpose (CVE-2020-8554).
package service
