package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What a Catalog keeps of an object is a view: the few fields that matter, read once, without the object. A cluster of
// 100 000 endpoints is some 5 MB of views.

// serviceView is what a Catalog keeps of a Service that is ours. It is immutable.
type serviceView struct {
	name      types.NamespacedName
	created   int64 // Unix seconds; 0: unknown
	addrs     []netip.Addr
	ports     []portView
	selection Selection
	affinity  time.Duration
	local     bool // internalTrafficPolicy Local
	problems  Report
}

// portView is one port of a Service, in all of its families.
type portView struct {
	name  string
	proto uint8
	port  uint16
	index int // in spec.ports
}

// sliceView is what a Catalog keeps of an EndpointSlice. Only used changes after it has been read.
type sliceView struct {
	name      string
	ipv6      bool
	ports     []slicePort // sorted by name and protocol
	endpoints []endpoint
	problems  Report
}

type slicePort struct {
	name  string
	proto uint8
	port  uint16
	index int  // in the slice
	used  bool // some port of the Service asked for it: scratch of assemble
}

// endpoint is one endpoint of a slice, without port.
type endpoint struct {
	addr  [16]byte
	node  unique.Handle[string]
	hints unique.Handle[hints]
	index uint16 // in the slice
	flags condition
}

type condition uint8

const (
	ready condition = 1 << iota
	serving
	terminating
)

// hints are the names of the nodes and zones that should use an endpoint, each ended by a zero byte, which no name has.
type hints struct{ nodes, zones string }

func (h hints) names(list, name string) bool {
	return name != "" && (strings.HasPrefix(list, name+"\x00") || strings.Contains(list, "\x00"+name+"\x00"))
}

var (
	noNode  = unique.Make("")
	noHints = unique.Make(hints{})
)

// ours says whether the Service is one to serve at all. The ways not to be are all ordinary, so they are no Problems.
func (c *Config) ours(s *corev1.Service) bool {
	if s.Spec.Type == corev1.ServiceTypeExternalName || s.Spec.ClusterIP == corev1.ClusterIPNone {
		return false
	}
	name, labelled := s.Labels[ProxyNameLabel]
	if c.ProxyName == "" {
		return !labelled
	}
	return name == c.ProxyName
}

// readService reads a Service that is ours.
func (c *Config) readService(s *corev1.Service) *serviceView {
	v := &serviceView{name: nameOf(s), affinity: affinityOf(s)}
	if !s.CreationTimestamp.IsZero() {
		v.created = s.CreationTimestamp.Unix()
	}
	policy := s.Spec.InternalTrafficPolicy
	v.local = policy != nil && *policy == corev1.ServiceInternalTrafficPolicyLocal
	v.selection = c.Selection
	if text, ok := s.Annotations[SelectionAnnotation]; ok {
		if chosen, err := ParseSelection(text); err == nil {
			v.selection = chosen
		} else {
			v.problems.add(objectName(s), "metadata.annotations["+SelectionAnnotation+"]", "%v: using %v", err, c.Selection)
		}
	}
	v.readAddrs(s)
	v.readPorts(s)
	return v
}

// readAddrs lists the addresses of a Service, at most one a family.
func (v *serviceView) readAddrs(s *corev1.Service) {
	list := s.Spec.ClusterIPs
	if len(list) == 0 {
		list = []string{s.Spec.ClusterIP}
	}
	for i, text := range list {
		if text == corev1.ClusterIPNone || text == "" {
			continue
		}
		at := "spec.clusterIP"
		if len(s.Spec.ClusterIPs) != 0 {
			at = fmt.Sprintf("spec.clusterIPs[%d]", i)
		}
		addr, err := parseAddr(text)
		if err != nil {
			v.problems.add(objectName(s), at, "%q is %v", text, err)
			continue
		}
		if why := unsafeAddr(addr); why != "" {
			v.problems.add(objectName(s), at, "%s is %s", text, why)
			continue
		}
		if len(v.addrs) == 2 || len(v.addrs) == 1 && v.addrs[0].Is6() == addr.Is6() {
			v.problems.add(objectName(s), at, "%s is ignored: a Service has one address in each family", text)
			continue
		}
		v.addrs = append(v.addrs, addr)
	}
}

// readPorts lists the ports of a Service. Endpoints are joined by name and protocol, so a second port of the same would take
// the first one's; and of two ports with one number and protocol the first has the frontend.
func (v *serviceView) readPorts(s *corev1.Service) {
	if len(v.addrs) == 0 {
		return
	}
	v.ports = make([]portView, 0, len(s.Spec.Ports))
	type key struct {
		name  string
		proto uint8
		port  uint16
	}
	seen := make(map[key]int)
	for i := range s.Spec.Ports {
		port := &s.Spec.Ports[i]
		proto, ok := protoOf(port.Protocol)
		if !ok {
			v.problems.add(objectName(s), fmt.Sprintf("spec.ports[%d].protocol", i), "%q is none of TCP, UDP, SCTP", port.Protocol)
			continue
		}
		if port.Port < 1 || port.Port > 65535 {
			v.problems.add(objectName(s), fmt.Sprintf("spec.ports[%d].port", i), "%d is not in 1..65535", port.Port)
			continue
		}
		p := portView{name: port.Name, proto: proto, port: uint16(port.Port), index: i}
		byName, byNumber := key{name: "n" + p.name, proto: proto}, key{port: p.port, proto: proto}
		if _, twice := seen[byName]; twice {
			v.problems.add(objectName(s), fmt.Sprintf("spec.ports[%d].name", i), "another %s port has the name %q: this one is ignored", protoName(proto), port.Name)
			continue
		}
		seen[byName] = len(v.ports)
		if first, twice := seen[byNumber]; twice {
			for _, addr := range v.addrs {
				own := ServicePort{Namespace: s.Namespace, Name: s.Name, PortName: v.ports[first].name}
				v.problems.add(objectName(s), fmt.Sprintf("spec.ports[%d]", i), "%v belongs to Service %v already", p.frontend(addr), &own)
			}
			continue
		}
		seen[byNumber] = len(v.ports)
		v.ports = append(v.ports, p)
	}
}

func (p *portView) frontend(addr netip.Addr) Frontend {
	return Frontend{Addr: addr.As16(), Port: p.port, Proto: p.proto}
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

// ownerOf is the Service that a slice belongs to: the one that its label names, in the slice's own namespace (CVE-2021-25740:
// a slice must not lend a Service endpoints from elsewhere).
func ownerOf(s *discoveryv1.EndpointSlice) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
}

// readSlice reads an EndpointSlice.
func readSlice(s *discoveryv1.EndpointSlice) *sliceView {
	v := &sliceView{name: s.Name, ipv6: s.AddressType == discoveryv1.AddressTypeIPv6}
	if s.AddressType != discoveryv1.AddressTypeIPv4 && !v.ipv6 {
		v.problems.add(sliceName(s), "addressType", "%q is ignored: only IPv4 and IPv6 can be translated to", s.AddressType)
		return v
	}
	v.readPorts(s)
	v.readEndpoints(s)
	return v
}

func (v *sliceView) readPorts(s *discoveryv1.EndpointSlice) {
	v.ports = make([]slicePort, 0, len(s.Ports))
	for i := range s.Ports {
		port := &s.Ports[i]
		if port.Name == nil {
			v.problems.add(sliceName(s), fmt.Sprintf("ports[%d].name", i), "missing: the port is ignored")
			continue
		}
		if port.Port == nil || *port.Port == 0 {
			v.problems.add(sliceName(s), fmt.Sprintf("ports[%d].port", i), "missing: the port is ignored")
			continue
		}
		if *port.Port < 0 || *port.Port > 65535 {
			v.problems.add(sliceName(s), fmt.Sprintf("ports[%d].port", i), "%d is not in 1..65535", *port.Port)
			continue
		}
		proto := TCP
		if port.Protocol != nil {
			var ok bool
			if proto, ok = protoOf(*port.Protocol); !ok {
				v.problems.add(sliceName(s), fmt.Sprintf("ports[%d].protocol", i), "%q is none of TCP, UDP, SCTP", *port.Protocol)
				continue
			}
		}
		v.ports = append(v.ports, slicePort{name: *port.Name, proto: proto, port: uint16(*port.Port), index: i})
	}
	slices.SortFunc(v.ports, compareSlicePort)
}

func compareSlicePort(a, b slicePort) int {
	return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.proto, b.proto), cmp.Compare(a.port, b.port))
}

func (v *sliceView) readEndpoints(s *discoveryv1.EndpointSlice) {
	v.endpoints = make([]endpoint, 0, len(s.Endpoints))
	for i := range s.Endpoints {
		in := &s.Endpoints[i]
		refuse := func(format string, args ...any) {
			v.problems.add(sliceName(s), endpointField(i), format, args...)
		}
		if len(in.Addresses) == 0 {
			refuse("missing: the endpoint is ignored")
			continue
		}
		text := in.Addresses[0]
		addr, err := parseAddr(text)
		if err != nil {
			v.problems.Refused++
			refuse("%q is refused: %v", text, err)
			continue
		}
		if addr.Is6() != v.ipv6 {
			v.problems.Refused++
			refuse("%s is refused: the slice's addressType is %s", text, s.AddressType)
			continue
		}
		if why := unsafeAddr(addr); why != "" {
			v.problems.Refused++
			refuse("%s is refused: %s", text, why)
			continue
		}
		if len(in.Addresses) > 1 {
			v.problems.add(sliceName(s), fmt.Sprintf("endpoints[%d].addresses", i), "only the first of %d is used", len(in.Addresses))
		}
		e := endpoint{addr: addr.As16(), node: noNode, hints: noHints, index: uint16(i)}
		// Nil conditions mean what the API says of unknown ones: ready, serving, not terminating.
		if c := in.Conditions.Ready; c == nil || *c {
			e.flags |= ready
		}
		if c := in.Conditions.Serving; c == nil || *c {
			e.flags |= serving
		}
		if c := in.Conditions.Terminating; c != nil && *c {
			e.flags |= terminating
		}
		if in.NodeName != nil {
			e.node = unique.Make(*in.NodeName)
		}
		if h := in.Hints; h != nil && len(h.ForNodes)+len(h.ForZones) != 0 {
			var named hints
			for _, n := range h.ForNodes {
				named.nodes += n.Name + "\x00"
			}
			for _, z := range h.ForZones {
				named.zones += z.Name + "\x00"
			}
			e.hints = unique.Make(named)
		}
		v.endpoints = append(v.endpoints, e)
	}
}

func endpointField(i int) string { return fmt.Sprintf("endpoints[%d].addresses[0]", i) }

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
