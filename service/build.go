package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ProxyNameLabel on a Service hands it to another proxy than kube-proxy.
const ProxyNameLabel = "service.kubernetes.io/service-proxy-name"

// Config is what Build must know besides the objects. The zero value serves the Services that kube-proxy would, on a node
// without a name, with consistent selection.
type Config struct {
	// ProxyName chooses Services by their label ProxyNameLabel: those that carry this very value, or, if it is empty, those
	// that do not carry the label at all.
	ProxyName string
	// NodeName is this node's name: it decides which endpoints are local (internalTrafficPolicy) and which node hints are
	// ours. Empty: none.
	NodeName string
	// Zone is this node's label topology.kubernetes.io/zone, for zone hints.
	Zone string
	// Selection is for Services that do not choose by annotation.
	Selection Selection
}

// Build makes the Snapshot of these objects. It never fails: what cannot be used is left out and reported. prev is the
// Snapshot before, or nil; what did not change is shared with it, and if nothing changed it is returned itself. The order of
// the objects does not matter. Build keeps no reference to them but for their strings, and does not change them.
func Build(cfg *Config, prev *Snapshot, services []*corev1.Service, endpointSlices []*discoveryv1.EndpointSlice) (*Snapshot, *Report) {
	b := builder{cfg: cfg, prev: prev}
	b.claimFrontends(services)
	b.indexSlices(endpointSlices)
	slices.SortFunc(b.ports, func(x, y portDraft) int { return comparePort(x.ServicePort, y.ServicePort) })

	ports := make([]*ServicePort, 0, len(b.ports))
	var before []*ServicePort
	if prev != nil {
		before = prev.ports
	}
	for i := range b.ports {
		p := b.ports[i].ServicePort
		if i == 0 || b.ports[i-1].service != b.ports[i].service {
			b.reportUnusedPorts()
			b.readSlices(b.slices[nameOf(b.ports[i].service)])
		}
		// Both lists are sorted alike, so the port's former self is found by walking along.
		for len(before) > 0 && comparePort(before[0], p) < 0 {
			before = before[1:]
		}
		var old *ServicePort
		if len(before) > 0 && comparePort(before[0], p) == 0 {
			old = before[0]
		}
		ports = append(ports, b.finish(b.ports[i], old))
	}
	b.reportUnusedPorts()
	return newSnapshot(prev, ports), &b.report
}

// builder is the scratch memory of one Build.
type builder struct {
	cfg    *Config
	prev   *Snapshot
	report Report

	ports  []portDraft
	known  map[types.NamespacedName]struct{} // every Service, served or not
	served map[netip.Addr]struct{}           // every ClusterIP of ports
	slices map[types.NamespacedName][]*discoveryv1.EndpointSlice

	views      []sliceView // of the Service in hand
	candidates []endpoint  // of the ServicePort in hand, like the next two
	backends   []Backend
	serving    []Backend
}

// portDraft is a ServicePort in the making: endpoints, and so action, are still missing.
type portDraft struct {
	*ServicePort
	service *corev1.Service
	local   bool // internalTrafficPolicy Local
}

// claimFrontends fills ports and served. A frontend that two Services claim goes to the older one, and if their age is the
// same (manifests in a folder have none), to the first by namespace and name. Losing one port does not lose the others.
func (b *builder) claimFrontends(services []*corev1.Service) {
	order := make([]*corev1.Service, 0, len(services))
	for _, s := range services {
		if s != nil {
			order = append(order, s)
		}
	}
	slices.SortStableFunc(order, func(x, y *corev1.Service) int {
		if c := x.CreationTimestamp.Compare(y.CreationTimestamp.Time); c != 0 {
			return c
		}
		return cmp.Or(strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Name, y.Name))
	})

	b.ports = make([]portDraft, 0, len(order))
	b.served = make(map[netip.Addr]struct{}, len(order))
	claims := make(map[Frontend]*ServicePort, len(order))
	b.known = make(map[types.NamespacedName]struct{}, len(order))
	for _, s := range order {
		if _, twice := b.known[nameOf(s)]; twice {
			b.report.add(objectName(s), "metadata.name", "another Service has the same name: this one is ignored")
			continue
		}
		b.known[nameOf(s)] = struct{}{}
		if !b.ours(s) {
			continue
		}
		if addrs := b.clusterIPs(s); len(addrs) != 0 {
			b.claimPorts(s, addrs, claims)
		}
	}
}

// ours says whether the Service is one to serve at all. The ways not to be are all ordinary, so they are no Problems.
func (b *builder) ours(s *corev1.Service) bool {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return false
	}
	name, labelled := s.Labels[ProxyNameLabel]
	if b.cfg.ProxyName == "" {
		return !labelled
	}
	return name == b.cfg.ProxyName
}

// clusterIPs lists the addresses of a Service, at most one a family. A headless one has none.
func (b *builder) clusterIPs(s *corev1.Service) []netip.Addr {
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	list := s.Spec.ClusterIPs
	if len(list) == 0 {
		list = []string{s.Spec.ClusterIP}
	}
	var addrs []netip.Addr
	for i, text := range list {
		if text == corev1.ClusterIPNone || text == "" {
			continue
		}
		at := func() string {
			if len(s.Spec.ClusterIPs) == 0 {
				return "spec.clusterIP"
			}
			return fmt.Sprintf("spec.clusterIPs[%d]", i)
		}
		addr, err := parseAddr(text)
		if err != nil {
			b.report.add(objectName(s), at(), "%q is %v", text, err)
			continue
		}
		if why := unsafeAddr(addr); why != "" {
			b.report.add(objectName(s), at(), "%s is %s", text, why)
			continue
		}
		if len(addrs) == 2 || len(addrs) == 1 && addrs[0].Is6() == addr.Is6() {
			b.report.add(objectName(s), at(), "%s is ignored: a Service has one address in each family", text)
			continue
		}
		addrs = append(addrs, addr)
	}
	return addrs
}

// claimPorts drafts the ServicePorts of one Service: one a port and address.
func (b *builder) claimPorts(s *corev1.Service, addrs []netip.Addr, claims map[Frontend]*ServicePort) {
	selection := b.selectionOf(s)
	policy := s.Spec.InternalTrafficPolicy
	local := policy != nil && *policy == corev1.ServiceInternalTrafficPolicyLocal
	// Endpoints are joined by name and protocol, so a second port of the same would take the first one's.
	type portKey struct {
		name  string
		proto uint8
	}
	var names map[portKey]struct{}
	if len(s.Spec.Ports) > 1 {
		names = make(map[portKey]struct{}, len(s.Spec.Ports))
	}
	for i := range s.Spec.Ports {
		port := &s.Spec.Ports[i]
		proto, ok := protoOf(port.Protocol)
		if !ok {
			b.report.add(objectName(s), fmt.Sprintf("spec.ports[%d].protocol", i), "%q is none of TCP, UDP, SCTP", port.Protocol)
			continue
		}
		if port.Port < 1 || port.Port > 65535 {
			b.report.add(objectName(s), fmt.Sprintf("spec.ports[%d].port", i), "%d is not in 1..65535", port.Port)
			continue
		}
		if names != nil {
			key := portKey{port.Name, proto}
			if _, twice := names[key]; twice {
				b.report.add(objectName(s), fmt.Sprintf("spec.ports[%d].name", i), "another %s port has the name %q: this one is ignored", port.Protocol, port.Name)
				continue
			}
			names[key] = struct{}{}
		}
		for _, addr := range addrs {
			f := Frontend{Addr: addr.As16(), Port: uint16(port.Port), Proto: proto}
			if first, taken := claims[f]; taken {
				b.report.add(objectName(s), fmt.Sprintf("spec.ports[%d]", i), "%v belongs to Service %v already", f, first)
				continue
			}
			p := &ServicePort{
				Namespace: s.Namespace, Name: s.Name, PortName: port.Name, Proto: proto, IPv6: addr.Is6(),
				Frontends: []Frontend{f}, Selection: selection, Affinity: affinityOf(s),
			}
			claims[f] = p
			b.served[addr] = struct{}{}
			b.ports = append(b.ports, portDraft{p, s, local})
		}
	}
}

func (b *builder) selectionOf(s *corev1.Service) Selection {
	text, ok := s.Annotations[SelectionAnnotation]
	if !ok {
		return b.cfg.Selection
	}
	v, err := ParseSelection(text)
	if err != nil {
		b.report.add(objectName(s), "metadata.annotations["+SelectionAnnotation+"]", "%v: using %v", err, b.cfg.Selection)
		return b.cfg.Selection
	}
	return v
}

// defaultAffinity is the API server's default for a ClientIP affinity without a timeout.
const defaultAffinity = 10800 * time.Second

func affinityOf(s *corev1.Service) time.Duration {
	if s.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil && *c.ClientIP.TimeoutSeconds > 0 {
		return time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
	}
	return defaultAffinity
}

// finish adds the endpoints to a draft. If the result equals old, the port in the Snapshot before, it returns old.
func (b *builder) finish(d portDraft, old *ServicePort) *ServicePort {
	p := d.ServicePort
	b.gather(p)
	p.Action = b.choose(d.local)
	if old == nil {
		p.turn = new(atomic.Uint64)
		p.Backends, p.serving = slices.Clone(b.backends), slices.Clone(b.serving)
		p.hashBackends()
		return p
	}
	sameBackends, sameServing := slices.Equal(old.Backends, b.backends), slices.Equal(old.serving, b.serving)
	if sameBackends && sameServing && old.Action == p.Action && old.Selection == p.Selection &&
		old.Affinity == p.Affinity && slices.Equal(old.Frontends, p.Frontends) {
		return old
	}
	p.turn, p.Backends, p.hashes, p.serving = old.turn, old.Backends, old.hashes, old.serving
	if !sameBackends {
		p.Backends = slices.Clone(b.backends)
		p.hashBackends()
	}
	if !sameServing {
		p.serving = slices.Clone(b.serving)
	}
	return p
}

func (p *ServicePort) hashBackends() {
	p.hashes = make([]uint64, len(p.Backends))
	for i := range p.Backends {
		p.hashes[i] = hashBackend(&p.Backends[i])
	}
}

func protoOf(p corev1.Protocol) (uint8, bool) {
	switch p {
	case corev1.ProtocolTCP, "": // the API server's default
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	case corev1.ProtocolSCTP:
		return SCTP, true
	}
	return 0, false
}

func nameOf(s *corev1.Service) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
}

func objectName(s *corev1.Service) string { return "Service " + s.Namespace + "/" + s.Name }

func sliceName(s *discoveryv1.EndpointSlice) string {
	return "EndpointSlice " + s.Namespace + "/" + s.Name
}
