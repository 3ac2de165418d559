package main

import (
	"net/netip"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/sluice-net/sluice/e2e/stand"
)

// The contract on one page, for what the two sides' answers alone cannot decide: which backends a client with affinity may be
// bound to, and which ones a UDP flow may stay with.

const zone1 = "zone-a" // node1's

// modelEndpoint is an endpoint of a ServicePort.
type modelEndpoint struct {
	to                          netip.AddrPort
	name                        string // what the server there says
	ready, serving, terminating bool
	local                       bool
	zones, nodes                []string
}

// twins says how an endpoint is listed twice.
type twins int

const (
	noTwins    twins = iota // none is, or they say the same
	oneOfThem               // one is terminating and the other is not, which is to be believed
	contradict              // they say different things, and nobody knows which is right
)

// endpoints are those of a Service's port in one family; the same address and port counts once, and then one that is
// not terminating is believed.
func (w *world) endpoints(s *corev1.Service, p *corev1.ServicePort, six bool) (all []modelEndpoint, double twins) {
	want := discoveryv1.AddressTypeIPv4
	if six {
		want = discoveryv1.AddressTypeIPv6
	}
	for _, name := range sortedKeys(w.slices) {
		slice := w.slices[name]
		if _, headless := slice.Labels[corev1.IsHeadlessService]; headless || slice.AddressType != want || slice.Labels[discoveryv1.LabelServiceName] != s.Name {
			continue
		}
		for _, sp := range slice.Ports {
			if sp.Name == nil || *sp.Name != p.Name || sp.Port == nil || *sp.Port == 0 || value(sp.Protocol) != p.Protocol {
				continue
			}
			for _, e := range slice.Endpoints {
				to := netip.AddrPortFrom(netip.MustParseAddr(e.Addresses[0]), uint16(*sp.Port))
				m := modelEndpoint{
					to: to, name: serverAt(to), local: value(e.NodeName) == stand.Node1,
					ready:       e.Conditions.Ready == nil || *e.Conditions.Ready,
					serving:     e.Conditions.Serving == nil || *e.Conditions.Serving,
					terminating: e.Conditions.Terminating != nil && *e.Conditions.Terminating,
				}
				if e.Hints != nil {
					for _, z := range e.Hints.ForZones {
						m.zones = append(m.zones, z.Name)
					}
					for _, n := range e.Hints.ForNodes {
						m.nodes = append(m.nodes, n.Name)
					}
				}
				i := slices.IndexFunc(all, func(o modelEndpoint) bool { return o.to == to })
				switch {
				case i < 0:
					all = append(all, m)
					continue
				case all[i].terminating != m.terminating:
					double = max(double, oneOfThem)
				case !reflect.DeepEqual(all[i], m):
					double = contradict
				}
				if all[i].terminating && !m.terminating {
					all[i] = m
				}
			}
		}
	}
	return all, double
}

// expected is what a new connection from node1 is to see.
func expected(s *corev1.Service, all []modelEndpoint) outcome {
	use := usable(s, all)
	o := outcome{verdict: "answered"}
	for _, e := range use {
		o.backends = append(o.backends, e.name)
	}
	slices.Sort(o.backends)
	if len(use) == 0 {
		o.verdict = refused
		if slices.ContainsFunc(all, func(e modelEndpoint) bool { return e.ready || e.serving && e.terminating }) {
			o.verdict = silent // elsewhere there are some
		}
	}
	return o
}

// serverAt is the name of the server at an address.
func serverAt(to netip.AddrPort) string {
	for i := range backends {
		for _, f := range families {
			if backends[i].addr(f) == to.Addr() {
				return backends[i].name + ":" + portText(to.Port())
			}
		}
	}
	return to.String()
}

// usable are the endpoints that a new connection from node1 may be led to.
func usable(s *corev1.Service, all []modelEndpoint) []modelEndpoint {
	filter := func(from []modelEndpoint, keep func(modelEndpoint) bool) (out []modelEndpoint) {
		for _, e := range from {
			if keep(e) {
				out = append(out, e)
			}
		}
		return out
	}
	ready := filter(all, func(e modelEndpoint) bool { return e.ready })
	last := filter(all, func(e modelEndpoint) bool { return e.serving && e.terminating })
	if p := s.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		isLocal := func(e modelEndpoint) bool { return e.local }
		if local := filter(ready, isLocal); len(local) > 0 {
			return local
		}
		return filter(last, isLocal)
	}
	if len(ready) == 0 {
		return last
	}
	for _, hint := range []struct {
		of   func(modelEndpoint) []string
		mine string
	}{
		{func(e modelEndpoint) []string { return e.nodes }, stand.Node1},
		{func(e modelEndpoint) []string { return e.zones }, zone1},
	} {
		forMe := func(e modelEndpoint) bool { return slices.Contains(hint.of(e), hint.mine) }
		if slices.ContainsFunc(ready, func(e modelEndpoint) bool { return len(hint.of(e)) == 0 }) || !slices.ContainsFunc(ready, forMe) {
			continue
		}
		return filter(ready, forMe)
	}
	return ready
}
