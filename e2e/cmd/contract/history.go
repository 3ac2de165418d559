package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-net/sluice/e2e/stand"
	"github.com/sluice-net/sluice/internal/netlab"
)

// op is one request to the API server: an object as it is to be from now on, or its deletion. Ops are whole and concrete, so
// that a history with some of them left out is still one.
type op struct {
	service *corev1.Service
	slice   *discoveryv1.EndpointSlice
	delete  bool
}

func (o op) String() string {
	verb := "put"
	if o.delete {
		verb = "delete"
	}
	if o.slice != nil {
		s := o.slice
		if o.delete {
			return "delete slice " + s.Name
		}
		var ends []string
		for _, e := range s.Endpoints {
			ends = append(ends, describeEndpoint(&e))
		}
		var ports []string
		for _, p := range s.Ports {
			ports = append(ports, fmt.Sprintf("%s=%d/%s", value(p.Name), value(p.Port), value(p.Protocol)))
		}
		headless := ""
		if _, ok := s.Labels[corev1.IsHeadlessService]; ok {
			headless = " headless"
		}
		return fmt.Sprintf("put slice %s of %s %s%s ports [%s] endpoints [%s]", s.Name, s.Labels[discoveryv1.LabelServiceName], s.AddressType, headless,
			strings.Join(ports, " "), strings.Join(ends, "; "))
	}
	s := o.service
	if o.delete {
		return "delete service " + s.Name
	}
	var ports []string
	for _, p := range s.Spec.Ports {
		ports = append(ports, fmt.Sprintf("%s:%d/%s", p.Name, p.Port, p.Protocol))
	}
	policy := ""
	if s.Spec.InternalTrafficPolicy != nil {
		policy = " internal " + string(*s.Spec.InternalTrafficPolicy)
	}
	return fmt.Sprintf("%s service %s %s %v ports [%s] affinity %s%s labels %v", verb, s.Name, s.Spec.Type, s.Spec.ClusterIPs, strings.Join(ports, " "), s.Spec.SessionAffinity, policy, s.Labels)
}

func describeEndpoint(e *discoveryv1.Endpoint) string {
	out := strings.Join(e.Addresses, ",")
	for _, c := range []struct {
		name string
		is   *bool
	}{{"ready", e.Conditions.Ready}, {"serving", e.Conditions.Serving}, {"terminating", e.Conditions.Terminating}} {
		if c.is != nil {
			out += fmt.Sprintf(" %s=%v", c.name, *c.is)
		}
	}
	if e.Hints != nil {
		for _, z := range e.Hints.ForZones {
			out += " zone:" + z.Name
		}
		for _, n := range e.Hints.ForNodes {
			out += " node:" + n.Name
		}
	}
	return out
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// step is what happens at once.
type step []op

// history is generated from a seed.
type history struct {
	seed  uint64
	steps []step
}

// What histories are made of: few names and addresses, so that they meet again.
const (
	servicesAtMost  = 4
	addressPool     = 6
	slicesOfService = 3
	namespace       = "default"
	proxyNameLabel  = "service.kubernetes.io/service-proxy-name"
)

var (
	portNumbers = []int32{80, 81, 443}
	protocols   = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	portNames   = []string{"a", "b", "c"}
)

// generator makes a history. It keeps the state that the ops so far have led to.
type generator struct {
	rand     *rand.Rand
	services map[string]*corev1.Service
	slices   map[string]*discoveryv1.EndpointSlice
}

func newHistory(seed uint64, steps int) history {
	g := generator{
		rand: rand.New(rand.NewPCG(seed, 5)), services: map[string]*corev1.Service{}, slices: map[string]*discoveryv1.EndpointSlice{},
	}
	h := history{seed: seed}
	for range steps {
		var s step
		for range 1 + g.rand.IntN(3) {
			s = append(s, g.next()...)
		}
		h.steps = append(h.steps, s)
	}
	return h
}

func (g *generator) chance(percent int) bool { return g.rand.IntN(100) < percent }

func pick[T any](g *generator, from []T) T { return from[g.rand.IntN(len(from))] }

// anyService returns a Service that exists.
func (g *generator) anyService() *corev1.Service {
	if len(g.services) == 0 {
		return nil
	}
	return g.services[pick(g, sortedKeys(g.services))]
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// next makes one op, or two that belong together.
func (g *generator) next() step {
	s := g.anyService()
	switch n := g.rand.IntN(100); {
	case s == nil || n < 12 && len(g.services) < servicesAtMost:
		return g.create()
	case n < 18:
		return step{g.deleteService(s)}
	case n < 23: // its address goes to another in the same breath
		gone := g.deleteService(s)
		next := g.create()
		if len(next) > 0 && next[0].service != nil {
			next[0].service.Spec.ClusterIPs = slices.Clone(s.Spec.ClusterIPs)
			next[0].service.Spec.IPFamilies = s.Spec.IPFamilies
			next[0].service.Spec.IPFamilyPolicy = s.Spec.IPFamilyPolicy
			if s.Spec.Type == corev1.ServiceTypeExternalName {
				return step{gone}
			}
			fixAddress(next[0].service)
		}
		return append(step{gone}, next...)
	case n < 45:
		return step{g.changeService(s)}
	case n < 53:
		if op, ok := g.deleteSlice(s); ok {
			return step{op}
		}
		return step{g.putSlice(s)}
	default:
		return step{g.putSlice(s)}
	}
}

func (g *generator) deleteService(s *corev1.Service) op {
	delete(g.services, s.Name)
	return op{service: s, delete: true}
}

// create makes a Service with an address that is free, and mostly slices for it.
func (g *generator) create() step {
	var name string
	for i := range servicesAtMost {
		if name = fmt.Sprintf("s%d", i); g.services[name] == nil {
			break
		}
	}
	if g.services[name] != nil {
		return nil
	}
	address := g.freeAddress()
	if address == 0 {
		return nil
	}
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{}},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, SessionAffinity: corev1.ServiceAffinityNone},
	}
	four, six := netlab.ClusterIP(netlab.IPv4, address).String(), netlab.ClusterIP(netlab.IPv6, address).String()
	single, dual := corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyRequireDualStack
	switch g.rand.IntN(4) {
	case 0:
		s.Spec.ClusterIPs, s.Spec.IPFamilies, s.Spec.IPFamilyPolicy = []string{four}, []corev1.IPFamily{corev1.IPv4Protocol}, &single
	case 1:
		s.Spec.ClusterIPs, s.Spec.IPFamilies, s.Spec.IPFamilyPolicy = []string{six}, []corev1.IPFamily{corev1.IPv6Protocol}, &single
	default:
		s.Spec.ClusterIPs, s.Spec.IPFamilies, s.Spec.IPFamilyPolicy = []string{four, six}, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}, &dual
	}
	fixAddress(s)
	g.rollPorts(s)
	g.rollPolicy(s)
	g.services[name] = s
	out := step{op{service: s.DeepCopy()}}
	for range g.rand.IntN(3) {
		out = append(out, g.putSlice(s))
	}
	return out
}

func fixAddress(s *corev1.Service) {
	s.Spec.ClusterIP = ""
	if len(s.Spec.ClusterIPs) > 0 {
		s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	}
}

// freeAddress is the number of a ClusterIP that no Service has, or 0.
func (g *generator) freeAddress() int {
	for range 20 {
		n := 1000 + g.rand.IntN(addressPool)
		taken := false
		for _, s := range g.services {
			taken = taken || slices.Contains(s.Spec.ClusterIPs, netlab.ClusterIP(netlab.IPv4, n).String()) ||
				slices.Contains(s.Spec.ClusterIPs, netlab.ClusterIP(netlab.IPv6, n).String())
		}
		if !taken {
			return n
		}
	}
	return 0
}

// rollPorts gives a Service one to three ports; often one number with several protocols.
func (g *generator) rollPorts(s *corev1.Service) {
	s.Spec.Ports = nil
	type key struct {
		n int32
		p corev1.Protocol
	}
	seen := map[key]bool{}
	names := slices.Clone(portNames)
	g.rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for i := range 1 + g.rand.IntN(3) {
		number, proto := pick(g, portNumbers), pick(g, protocols)
		if g.chance(50) {
			proto = corev1.ProtocolTCP
		}
		if seen[key{number, proto}] {
			continue
		}
		seen[key{number, proto}] = true
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: names[i], Port: number, Protocol: proto, TargetPort: intstr.FromInt32(8080)})
	}
}

func (g *generator) rollPolicy(s *corev1.Service) {
	policy := corev1.ServiceInternalTrafficPolicyCluster
	if g.chance(25) {
		policy = corev1.ServiceInternalTrafficPolicyLocal
	}
	s.Spec.InternalTrafficPolicy = &policy
	s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
	if g.chance(20) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	}
	s.Spec.Type = corev1.ServiceTypeClusterIP
	if g.chance(15) {
		s.Spec.Type = pick(g, []corev1.ServiceType{corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer})
	}
}

// changeService changes one thing of a Service.
func (g *generator) changeService(old *corev1.Service) op {
	s := old.DeepCopy()
	g.services[s.Name] = s
	if s.Spec.Type == corev1.ServiceTypeExternalName || g.chance(8) {
		if s.Spec.Type != corev1.ServiceTypeExternalName {
			// An address given up may be another's when this one comes back, so it comes back as a new Service.
			s.Spec.Type, s.Spec.ExternalName, s.Spec.ClusterIP, s.Spec.ClusterIPs = corev1.ServiceTypeExternalName, "outside.example", "", nil
			s.Spec.IPFamilies, s.Spec.IPFamilyPolicy, s.Spec.InternalTrafficPolicy = nil, nil, nil
			s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
			return op{service: s.DeepCopy()}
		}
		return g.deleteService(old)
	}
	switch g.rand.IntN(6) {
	case 0, 1:
		g.rollPorts(s)
	case 2: // names change places: a port is its name
		for i := range s.Spec.Ports {
			s.Spec.Ports[i].Name = portNames[(slices.Index(portNames, s.Spec.Ports[i].Name)+1)%len(portNames)]
		}
	case 3:
		if _, ok := s.Labels[proxyNameLabel]; ok {
			delete(s.Labels, proxyNameLabel)
		} else if g.chance(50) {
			s.Labels[proxyNameLabel] = "somebody-else"
		}
	default:
		g.rollPolicy(s)
	}
	return op{service: s.DeepCopy()}
}

// slicesOf are the names of a Service's slices.
func (g *generator) slicesOf(service string) (names []string) {
	for _, name := range sortedKeys(g.slices) {
		if g.slices[name].Labels[discoveryv1.LabelServiceName] == service {
			names = append(names, name)
		}
	}
	return names
}

func (g *generator) deleteSlice(s *corev1.Service) (op, bool) {
	names := g.slicesOf(s.Name)
	if len(names) == 0 {
		return op{}, false
	}
	slice := g.slices[pick(g, names)]
	delete(g.slices, slice.Name)
	return op{slice: slice, delete: true}, true
}

// putSlice makes a slice of a Service, or changes one.
func (g *generator) putSlice(s *corev1.Service) op {
	family := discoveryv1.AddressTypeIPv4
	if g.chance(45) {
		family = discoveryv1.AddressTypeIPv6
	}
	if g.chance(3) {
		family = discoveryv1.AddressTypeFQDN
	}
	name := fmt.Sprintf("%s-%s-%d", s.Name, strings.ToLower(string(family)), g.rand.IntN(slicesOfService))
	if old := g.slices[name]; old != nil && len(old.Endpoints) > 0 && g.chance(60) {
		slice := old.DeepCopy()
		i := g.rand.IntN(len(slice.Endpoints))
		g.rollConditions(&slice.Endpoints[i])
		if g.chance(30) {
			g.rollHints(slice)
		}
		g.slices[name] = slice
		return op{slice: slice.DeepCopy()}
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{
			discoveryv1.LabelServiceName: s.Name, discoveryv1.LabelManagedBy: "contract.sluice.dev",
		}},
		AddressType: family,
	}
	if g.chance(4) {
		slice.Labels[corev1.IsHeadlessService] = ""
	}
	// Mostly the Service's own port names, all of them; in every slice the number may be another.
	for _, p := range s.Spec.Ports {
		if g.chance(10) {
			continue
		}
		name, proto, number := p.Name, p.Protocol, pick(g, backendPorts)
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &proto, Port: &number})
	}
	for _, b := range g.rand.Perm(len(backends))[:g.rand.IntN(5)] {
		e := discoveryv1.Endpoint{}
		node := backends[b].node
		if g.chance(90) {
			e.NodeName = &node
		}
		switch family {
		case discoveryv1.AddressTypeFQDN:
			e.Addresses = []string{fmt.Sprintf("b%d.example", b)}
		case discoveryv1.AddressTypeIPv6:
			e.Addresses = []string{backends[b].addr(netlab.IPv6).String()}
		default:
			e.Addresses = []string{backends[b].addr(netlab.IPv4).String()}
		}
		g.rollConditions(&e)
		slice.Endpoints = append(slice.Endpoints, e)
	}
	g.rollHints(slice)
	g.slices[name] = slice
	return op{slice: slice.DeepCopy()}
}

func (g *generator) rollConditions(e *discoveryv1.Endpoint) {
	yes, no := true, false
	e.Conditions = discoveryv1.EndpointConditions{}
	switch n := g.rand.IntN(100); {
	case n < 50:
		e.Conditions.Ready = &yes
	case n < 60: // nil means ready
	case n < 70:
		e.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &no}
	case n < 88:
		e.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
	case n < 94:
		e.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &yes}
	default: // odd, but legal
		e.Conditions = discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &yes}
	}
}

// rollHints gives hints to all endpoints, to none, or to some.
func (g *generator) rollHints(s *discoveryv1.EndpointSlice) {
	percent := pick(g, []int{0, 0, 100, 60})
	byNode := g.chance(40)
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		e.Hints = nil
		if s.AddressType == discoveryv1.AddressTypeFQDN || !g.chance(percent) {
			continue
		}
		e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: pick(g, []string{"zone-a", "zone-b"})}}}
		if byNode {
			e.Hints.ForNodes = []discoveryv1.ForNode{{Name: pick(g, []string{stand.Node1, stand.Node2})}}
		}
	}
}
