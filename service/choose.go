package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"unique"
)

// assembler is what is needed to make the ServicePorts of one Service after the other, and its scratch memory.
type assembler struct {
	node, zone string
	// refuses says why an endpoint's address is refused beyond what its slice could say, or "".
	refuses func(addr [16]byte) string
	// policed gives a backend of an entry that a NetworkPolicy selects, whenPoliced is what becomes of its ports then.
	policed     func(*entry) (netip.Addr, bool)
	whenPoliced Action

	known map[unique.Handle[hints]]hintsHere

	rule       string      // which candidates choose took: ready, node, zone, local or draining ones
	candidates []candidate // of the ServicePort in hand, like the next two
	backends   []Backend
	serving    []Backend
}

// hintsHere is what hints mean on this node.
type hintsHere struct{ nodeHinted, forNode, zoneHinted, forZone bool }

// candidate is an endpoint with the port of the ServicePort in hand, as this node sees it.
type candidate struct {
	Backend
	ready, serving, terminating bool
	local                       bool // on this node
	node                        string
	hintsHere
}

func (a *assembler) here(h unique.Handle[hints]) hintsHere {
	if h == noHints {
		return hintsHere{}
	}
	here, ok := a.known[h]
	if !ok {
		v := h.Value()
		here = hintsHere{
			nodeHinted: v.nodes != "", forNode: v.names(v.nodes, a.node),
			zoneHinted: v.zones != "", forZone: v.names(v.zones, a.zone),
		}
		if a.known == nil {
			a.known = make(map[unique.Handle[hints]]hintsHere)
		}
		a.known[h] = here
	}
	return here
}

// assemble makes the ServicePorts of e, or none if it has no Service that is ours. What equals its former self is that.
// It fills e.ports, sorted, and e.report.
func (a *assembler) assemble(e *entry, wins func(*Frontend) *entry) {
	e.report = Report{}
	before := e.ports
	e.ports = nil
	s := e.service
	if s == nil {
		return
	}
	e.report.append(&s.problems)
	for _, addr := range s.addrs {
		if !slices.Contains(e.addrs, addr) {
			e.report.RefusedClusterIPs++
			e.report.add("Service "+s.name.String(), "spec.clusterIPs", "%v is refused: outside of every Service range", addr)
		}
	}
	if len(e.addrs) == 0 || len(s.ports) == 0 {
		return
	}
	for _, v := range e.slices {
		e.report.append(&v.problems)
		for k := range v.ports {
			v.ports[k].used = false
		}
	}
	a.reportRefused(e)
	e.policed = false
	if addr, yes := a.policed(e); yes && a.whenPoliced != Forward {
		e.policed = true
		what := "kube-proxy serves it, for the policy would not meet our packets"
		if a.whenPoliced == Refuse {
			what = "it is refused here, for the policy would not meet our packets (networkPolicy: enforcedElsewhere, if it is enforced on the pod's own side)"
		}
		e.report.add("Service "+s.name.String(), "", "a NetworkPolicy selects its backend %v on this node: %s", addr, what)
	}
	var asked [2]bool // by family
	ports := make([]*ServicePort, 0, len(s.ports)*len(e.addrs))
	for i := range s.ports {
		for _, addr := range e.addrs {
			f := s.ports[i].frontend(addr)
			if winner := wins(&f); winner != e {
				e.report.add("Service "+s.name.String(), fmt.Sprintf("spec.ports[%d]", s.ports[i].index), "%v belongs to Service %s already", f, winner.portAt(&f))
				continue
			}
			asked[familyIndex(addr.Is6())] = true
			p := &ServicePort{
				Namespace: s.name.Namespace, Name: s.name.Name, PortName: s.ports[i].name, Proto: f.Proto, IPv6: addr.Is6(),
				Frontends: []Frontend{f}, Selection: s.selection, Affinity: s.affinity,
			}
			ports = append(ports, a.finish(p, e, before))
		}
	}
	slices.SortFunc(ports, comparePort)
	e.ports = ports
	e.reportUnused(asked)
}

func familyIndex(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// reportRefused explains endpoints that are refused for what the rest of the cluster says.
func (a *assembler) reportRefused(e *entry) {
	for _, v := range e.slices {
		for i := range v.endpoints {
			if why := a.refuses(v.endpoints[i].addr); why != "" {
				e.report.Refused++
				e.report.add("EndpointSlice "+e.name.Namespace+"/"+v.name, endpointField(int(v.endpoints[i].index)),
					"%v is refused: %s", netip.AddrFrom16(v.endpoints[i].addr).Unmap(), why)
			}
		}
	}
}

// reportUnused explains the ports of slices that no port of their Service asked for.
func (e *entry) reportUnused(asked [2]bool) {
	for _, v := range e.slices {
		for _, p := range v.ports {
			if asked[familyIndex(v.ipv6)] && !p.used {
				e.report.add("EndpointSlice "+e.name.Namespace+"/"+v.name, fmt.Sprintf("ports[%d].name", p.index), "the Service has no %s port named %q", protoName(p.proto), p.name)
			}
		}
	}
}

// finish adds the endpoints to p. If the result equals its former self, it returns that.
func (a *assembler) finish(p *ServicePort, e *entry, before []*ServicePort) *ServicePort {
	a.gather(p, e.slices)
	p.Action = a.choose(e.service.local)
	if e.policed {
		p.Action, a.backends = a.whenPoliced, a.backends[:0]
	}
	at, ok := slices.BinarySearchFunc(before, p, comparePort)
	if !ok {
		p.turn = new(atomic.Uint64)
		p.identify(nil)
		p.Backends, p.serving = slices.Clone(a.backends), slices.Clone(a.serving)
		p.hashBackends()
		return p
	}
	old := before[at]
	p.identify(old)
	sameBackends, sameServing := slices.Equal(old.Backends, a.backends), slices.Equal(old.serving, a.serving)
	if sameBackends && sameServing && old.Action == p.Action && old.Selection == p.Selection &&
		old.Affinity == p.Affinity && slices.Equal(old.Frontends, p.Frontends) {
		return old
	}
	p.turn, p.Backends, p.hashes, p.serving = old.turn, old.Backends, old.hashes, old.serving
	if !sameBackends {
		p.Backends = slices.Clone(a.backends)
		p.hashBackends()
	}
	if !sameServing {
		p.serving = slices.Clone(a.serving)
	}
	return p
}

func (p *ServicePort) hashBackends() {
	p.hashes = make([]uint64, len(p.Backends))
	for i := range p.Backends {
		p.hashes[i] = hashBackend(&p.Backends[i])
	}
}

// gather fills candidates with the endpoints of one ServicePort, sorted, each once. Several slices may have endpoints for it;
// the number of its port may differ from slice to slice (a named targetPort), and one slice may have more than one.
func (a *assembler) gather(p *ServicePort, views []*sliceView) {
	a.candidates = a.candidates[:0]
	for _, v := range views {
		if v.ipv6 != p.IPv6 {
			continue
		}
		first, _ := slices.BinarySearchFunc(v.ports, slicePort{name: p.PortName, proto: p.Proto}, compareSlicePort)
		for k := first; k < len(v.ports) && v.ports[k].name == p.PortName && v.ports[k].proto == p.Proto; k++ {
			v.ports[k].used = true
			for i := range v.endpoints {
				e := &v.endpoints[i]
				if a.refuses(e.addr) != "" {
					continue
				}
				a.candidates = append(a.candidates, candidate{
					Backend: Backend{Addr: e.addr, Port: v.ports[k].port},
					ready:   e.flags&ready != 0, serving: e.flags&serving != 0, terminating: e.flags&terminating != 0,
					local:     a.node != "" && e.node.Value() == a.node,
					node:      e.node.Value(),
					hintsHere: a.here(e.hints),
				})
			}
		}
	}
	// An endpoint can be listed twice, while it moves between slices or after its address went to a new pod. Then the one
	// that is not terminating counts, as in kube-proxy; between two such kube-proxy leaves it open, we take the more able one.
	slices.SortStableFunc(a.candidates, func(x, y candidate) int {
		return cmp.Or(compareBackend(x.Backend, y.Backend), truth(x.terminating, y.terminating),
			truth(y.ready, x.ready), truth(y.serving, x.serving), truth(y.local, x.local))
	})
	a.candidates = slices.CompactFunc(a.candidates, func(x, y candidate) bool { return x.Backend == y.Backend })
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
func (a *assembler) choose(local bool) Action {
	var ready, draining, localReady bool
	var forNode, forZone bool // hints name us, and below: all Ready endpoints have hints
	allNode, allZone := true, true
	for i := range a.candidates {
		e := &a.candidates[i]
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

	var usable func(e *candidate) bool
	switch {
	case local && localReady:
		a.rule = "local"
		usable = func(e *candidate) bool { return e.local && e.ready }
	case local:
		a.rule = "local draining"
		usable = func(e *candidate) bool { return e.local && e.serving && e.terminating }
	case ready && allNode && forNode:
		a.rule = "node"
		usable = func(e *candidate) bool { return e.ready && e.forNode }
	case ready && allZone && forZone:
		a.rule = "zone"
		usable = func(e *candidate) bool { return e.ready && e.forZone }
	case ready:
		a.rule = "ready"
		usable = func(e *candidate) bool { return e.ready }
	default:
		a.rule = "draining"
		usable = func(e *candidate) bool { return e.serving && e.terminating }
	}

	a.backends, a.serving = a.backends[:0], a.serving[:0]
	for i := range a.candidates {
		e := &a.candidates[i]
		use := usable(e)
		if use {
			a.backends = append(a.backends, e.Backend)
		}
		// What a new flow may be given, an existing one may keep, even if an odd slice says ready but not serving.
		if use || e.serving {
			a.serving = append(a.serving, e.Backend)
		}
	}
	switch {
	case len(a.backends) != 0:
		return Forward
	case ready || draining:
		return Drop
	}
	return Reject
}
