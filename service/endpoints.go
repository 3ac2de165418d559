package service

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// endpoint is what Build needs of one endpoint.
type endpoint struct {
	Backend
	ready, serving, terminating bool
	local                       bool // on this node
	// Hints say which nodes and zones should use the endpoint. hinted: there are some; for: this node or zone is among them.
	nodeHinted, forNode bool
	zoneHinted, forZone bool
}

// sliceView is what Build needs of one EndpointSlice.
type sliceView struct {
	slice     *discoveryv1.EndpointSlice
	ipv6      bool
	asked     bool        // a ServicePort of this family has looked for endpoints here
	ports     []slicePort // sorted by name and protocol
	endpoints []endpoint  // without port
}

type slicePort struct {
	name  string
	proto uint8
	port  uint16
	index int // in the slice
	used  bool
}

func compareSlicePort(a, b slicePort) int {
	return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.proto, b.proto), cmp.Compare(a.port, b.port))
}

// indexSlices groups the slices by Service. A slice belongs to the Service that its label names, in the slice's own namespace
// (CVE-2021-25740: a slice must not lend a Service endpoints from elsewhere).
func (b *builder) indexSlices(all []*discoveryv1.EndpointSlice) {
	b.slices = make(map[types.NamespacedName][]*discoveryv1.EndpointSlice, len(all))
	for _, s := range all {
		if s == nil {
			continue
		}
		if _, headless := s.Labels[corev1.IsHeadlessService]; headless {
			continue // kube-proxy's own selector leaves these out
		}
		owner := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		if owner.Name == "" {
			b.report.add(sliceName(s), "metadata.labels["+discoveryv1.LabelServiceName+"]", "missing: the slice belongs to no Service")
			continue
		}
		if _, ok := b.known[owner]; !ok {
			b.report.add(sliceName(s), "metadata.labels["+discoveryv1.LabelServiceName+"]", "there is no Service %s", owner)
			continue
		}
		b.slices[owner] = append(b.slices[owner], s)
	}
	for _, group := range b.slices {
		slices.SortStableFunc(group, func(x, y *discoveryv1.EndpointSlice) int { return strings.Compare(x.Name, y.Name) })
	}
}

// readSlices fills views from the slices of one Service.
func (b *builder) readSlices(group []*discoveryv1.EndpointSlice) {
	b.views = b.views[:0]
	for i, s := range group {
		if i > 0 && group[i-1].Name == s.Name {
			b.report.add(sliceName(s), "metadata.name", "another EndpointSlice has the same name: this one is ignored")
			continue
		}
		if s.AddressType != discoveryv1.AddressTypeIPv4 && s.AddressType != discoveryv1.AddressTypeIPv6 {
			b.report.add(sliceName(s), "addressType", "%q is ignored: only IPv4 and IPv6 can be translated to", s.AddressType)
			continue
		}
		if len(b.views) < cap(b.views) {
			b.views = b.views[:len(b.views)+1] // keeps the capacity of what lies there
		} else {
			b.views = append(b.views, sliceView{})
		}
		v := &b.views[len(b.views)-1]
		*v = sliceView{
			slice: s, ipv6: s.AddressType == discoveryv1.AddressTypeIPv6,
			ports: v.ports[:0], endpoints: v.endpoints[:0],
		}
		b.readPorts(v)
		b.readEndpoints(v)
	}
}

func (b *builder) readPorts(v *sliceView) {
	for i := range v.slice.Ports {
		port := &v.slice.Ports[i]
		if port.Name == nil {
			b.report.add(sliceName(v.slice), fmt.Sprintf("ports[%d].name", i), "missing: the port is ignored")
			continue
		}
		if port.Port == nil || *port.Port == 0 {
			b.report.add(sliceName(v.slice), fmt.Sprintf("ports[%d].port", i), "missing: the port is ignored")
			continue
		}
		if *port.Port < 0 || *port.Port > 65535 {
			b.report.add(sliceName(v.slice), fmt.Sprintf("ports[%d].port", i), "%d is not in 1..65535", *port.Port)
			continue
		}
		proto := TCP
		if port.Protocol != nil {
			var ok bool
			if proto, ok = protoOf(*port.Protocol); !ok {
				b.report.add(sliceName(v.slice), fmt.Sprintf("ports[%d].protocol", i), "%q is none of TCP, UDP, SCTP", *port.Protocol)
				continue
			}
		}
		v.ports = append(v.ports, slicePort{name: *port.Name, proto: proto, port: uint16(*port.Port), index: i})
	}
	slices.SortFunc(v.ports, compareSlicePort)
}

func (b *builder) readEndpoints(v *sliceView) {
	for i := range v.slice.Endpoints {
		in := &v.slice.Endpoints[i]
		field := func() string { return fmt.Sprintf("endpoints[%d].addresses[0]", i) }
		if len(in.Addresses) == 0 {
			b.report.add(sliceName(v.slice), field(), "missing: the endpoint is ignored")
			continue
		}
		text := in.Addresses[0]
		addr, err := parseAddr(text)
		if err != nil {
			b.report.Refused++
			b.report.add(sliceName(v.slice), field(), "%q is refused: %v", text, err)
			continue
		}
		if addr.Is6() != v.ipv6 {
			b.report.Refused++
			b.report.add(sliceName(v.slice), field(), "%s is refused: the slice's addressType is %s", text, v.slice.AddressType)
			continue
		}
		why := unsafeAddr(addr)
		if _, isService := b.served[addr]; isService {
			why = "the ClusterIP of a Service" // translating to it would come back here
		}
		if why != "" {
			b.report.Refused++
			b.report.add(sliceName(v.slice), field(), "%s is refused: %s", text, why)
			continue
		}
		if len(in.Addresses) > 1 {
			b.report.add(sliceName(v.slice), fmt.Sprintf("endpoints[%d].addresses", i), "only the first of %d is used", len(in.Addresses))
		}
		// Nil conditions mean what the API says of unknown ones: ready, serving, not terminating.
		e := endpoint{
			Backend:     Backend{Addr: addr.As16()},
			ready:       in.Conditions.Ready == nil || *in.Conditions.Ready,
			serving:     in.Conditions.Serving == nil || *in.Conditions.Serving,
			terminating: in.Conditions.Terminating != nil && *in.Conditions.Terminating,
			local:       b.cfg.NodeName != "" && in.NodeName != nil && *in.NodeName == b.cfg.NodeName,
		}
		if h := in.Hints; h != nil {
			e.nodeHinted, e.zoneHinted = len(h.ForNodes) != 0, len(h.ForZones) != 0
			for _, n := range h.ForNodes {
				e.forNode = e.forNode || b.cfg.NodeName != "" && n.Name == b.cfg.NodeName
			}
			for _, z := range h.ForZones {
				e.forZone = e.forZone || b.cfg.Zone != "" && z.Name == b.cfg.Zone
			}
		}
		v.endpoints = append(v.endpoints, e)
	}
}

// gather fills candidates with the endpoints of one ServicePort, sorted, each once. Several slices may have endpoints for it;
// the number of its port may differ from slice to slice (a named targetPort), and one slice may have more than one.
func (b *builder) gather(p *ServicePort) {
	b.candidates = b.candidates[:0]
	for i := range b.views {
		v := &b.views[i]
		if v.ipv6 != p.IPv6 {
			continue
		}
		v.asked = true
		first, _ := slices.BinarySearchFunc(v.ports, slicePort{name: p.PortName, proto: p.Proto}, compareSlicePort)
		for k := first; k < len(v.ports) && v.ports[k].name == p.PortName && v.ports[k].proto == p.Proto; k++ {
			v.ports[k].used = true
			for _, e := range v.endpoints {
				e.Port = v.ports[k].port
				b.candidates = append(b.candidates, e)
			}
		}
	}
	// An endpoint can be listed twice, while it moves between slices or after its address went to a new pod. Then the one
	// that is not terminating counts, as in kube-proxy; between two such kube-proxy leaves it open, we take the more able one.
	slices.SortStableFunc(b.candidates, func(x, y endpoint) int {
		return cmp.Or(compareBackend(x.Backend, y.Backend), truth(x.terminating, y.terminating),
			truth(y.ready, x.ready), truth(y.serving, x.serving), truth(y.local, x.local))
	})
	b.candidates = slices.CompactFunc(b.candidates, func(x, y endpoint) bool { return x.Backend == y.Backend })
}

// truth orders false before true.
func truth(x, y bool) int {
	switch {
	case x == y:
		return 0
	case y:
		return -1
	}
	return 1
}

// choose fills backends and serving from candidates: CategorizeEndpoints in kube-proxy's topology.go, for a ClusterIP.
func (b *builder) choose(local bool) Action {
	var ready, draining, localReady bool
	var forNode, forZone bool // hints name us, and below: all Ready endpoints have hints
	allNode, allZone := true, true
	for i := range b.candidates {
		e := &b.candidates[i]
		switch {
		case e.ready:
			ready = true
			localReady = localReady || e.local
			forNode, allNode = forNode || e.forNode, allNode && e.nodeHinted
			forZone, allZone = forZone || e.forZone, allZone && e.zoneHinted
		case e.serving && e.terminating:
			draining = true
		}
	}

	var usable func(e *endpoint) bool
	switch {
	case local && localReady:
		usable = func(e *endpoint) bool { return e.local && e.ready }
	case local:
		usable = func(e *endpoint) bool { return e.local && e.serving && e.terminating }
	case ready && allNode && forNode:
		usable = func(e *endpoint) bool { return e.ready && e.forNode }
	case ready && allZone && forZone:
		usable = func(e *endpoint) bool { return e.ready && e.forZone }
	case ready:
		usable = func(e *endpoint) bool { return e.ready }
	default:
		usable = func(e *endpoint) bool { return e.serving && e.terminating }
	}

	b.backends, b.serving = b.backends[:0], b.serving[:0]
	for i := range b.candidates {
		e := &b.candidates[i]
		use := usable(e)
		if use {
			b.backends = append(b.backends, e.Backend)
		}
		// What a new flow may be given, an existing one may keep, even if an odd slice says ready but not serving.
		if use || e.serving {
			b.serving = append(b.serving, e.Backend)
		}
	}
	switch {
	case len(b.backends) != 0:
		return Forward
	case ready || draining:
		return Drop
	}
	return Reject
}

// reportUnusedPorts explains the ports of slices that no port of their Service asked for.
func (b *builder) reportUnusedPorts() {
	for i := range b.views {
		v := &b.views[i]
		for _, p := range v.ports {
			if v.asked && !p.used {
				b.report.add(sliceName(v.slice), fmt.Sprintf("ports[%d].name", p.index), "the Service has no %s port named %q", protoName(p.proto), p.name)
			}
		}
	}
	b.views = b.views[:0]
}
