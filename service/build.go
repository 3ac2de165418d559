package service

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// ProxyNameLabel on a Service hands it to another proxy than kube-proxy.
const ProxyNameLabel = "service.kubernetes.io/service-proxy-name"

// Config is what a Catalog must know besides the objects. The zero value serves the Services that kube-proxy would, on a
// node without a name, with consistent selection.
type Config struct {
	// ProxyName chooses Services by their label ProxyNameLabel: those that carry this very value, or, if it is empty, those
	// that do not carry the label at all.
	ProxyName string
	// NodeName is this node's name: it decides which endpoints are local (internalTrafficPolicy) and which node hints are
	// ours. Empty: none.
	NodeName string
	// Zone is this node's label topology.kubernetes.io/zone, for zone hints. Empty: what the Node object says, if there is one.
	Zone string
	// Selection is for Services that do not choose by annotation.
	Selection Selection
	// ServiceCIDRs are the ranges that ClusterIPs come from, besides those of ServiceCIDR objects. If any range of a family is
	// known, a ClusterIP of that family outside of them all is refused, and so is an endpoint inside.
	ServiceCIDRs []netip.Prefix
	// Policed is what becomes of a Service with a backend on this node that a NetworkPolicy selects: Pass or Refuse. Forward
	// serves it all the same, and such a pod's own flows too, because policy is enforced elsewhere.
	Policed Action
	// Pods are the ranges that pods have their addresses from, for masquerading everybody else. NodePods: those of the Node
	// object instead.
	Pods     []netip.Prefix
	NodePods bool
	// Partial says that the source does not show every Service, so that an EndpointSlice without one is nothing to report.
	Partial bool
}

// Build makes the Snapshot of these objects, all at once: it is a Catalog that lives for one Commit. prev is the Snapshot
// before, or nil; what did not change is shared with it, and if nothing changed it is returned itself. The order of the
// objects does not matter.
func Build(cfg *Config, prev *Snapshot, services []*corev1.Service, endpointSlices []*discoveryv1.EndpointSlice) (*Snapshot, *Report) {
	c := newCatalog(*cfg, prev)
	c.ReplaceServices(services)
	c.ReplaceSlices(endpointSlices)
	change := c.Commit()
	return change.Snapshot, change.Report
}
