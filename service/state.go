package service

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// State is what a Catalog knew at one moment, for a start without its source. It holds nothing that changes, so it can be
// written while the Catalog goes on.
type State struct {
	proxyName string
	entries   []savedEntry
	around    savedAround
}

type savedEntry struct {
	name    types.NamespacedName
	service *serviceView
	slices  []*sliceView
}

type savedAround struct {
	Zone     string                       `json:"zone,omitempty"`
	PodCIDRs []netip.Prefix               `json:"podCIDRs,omitempty"`
	Ranges   map[string][]netip.Prefix    `json:"ranges,omitempty"`
	Pods     []savedPod                   `json:"pods,omitempty"`
	Policies map[string]map[string]string `json:"policies,omitempty"` // selectors by namespace and name
	Services []*corev1.Service            `json:"services"`
	Slices   []*discoveryv1.EndpointSlice `json:"endpointSlices"`
}

type savedPod struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Addresses []netip.Addr      `json:"addresses"`
}

// State gives what is known now.
func (c *Catalog) State() *State {
	s := &State{proxyName: c.cfg.ProxyName, entries: make([]savedEntry, 0, len(c.entries))}
	for name, e := range c.entries {
		s.entries = append(s.entries, savedEntry{name, e.service, append([]*sliceView(nil), e.slices...)})
	}
	a := &s.around
	a.Zone = c.asm.zone
	if c.cfg.NodePods {
		a.PodCIDRs = c.around.pods
	}
	a.Ranges = make(map[string][]netip.Prefix)
	for name, list := range c.ranges.objects {
		a.Ranges[name] = list
	}
	for name, p := range c.policies.pods {
		pod := savedPod{Namespace: name.Namespace, Name: name.Name, Labels: p.labels}
		for at := 0; at < len(p.addrs); at += 16 {
			pod.Addresses = append(pod.Addresses, netip.AddrFrom16([16]byte([]byte(p.addrs[at:at+16]))).Unmap())
		}
		a.Pods = append(a.Pods, pod)
	}
	a.Policies = make(map[string]map[string]string)
	for namespace, in := range c.policies.selectors {
		a.Policies[namespace] = make(map[string]string)
		for name, selector := range in {
			a.Policies[namespace][name] = selector.String()
		}
	}
	return s
}

// Write writes the state as JSON, its Services and EndpointSlices as the API has them, but for what is not read.
func (s *State) Write(w io.Writer) error {
	a := s.around
	for i := range s.entries {
		e := &s.entries[i]
		if e.service != nil {
			a.Services = append(a.Services, e.service.object(s.proxyName))
		}
		for _, v := range e.slices {
			a.Slices = append(a.Slices, v.object(e.name))
		}
	}
	return json.NewEncoder(w).Encode(&a)
}

// Restore tells a Catalog that knows nothing of what Write has written.
func (c *Catalog) Restore(r io.Reader) error {
	var a savedAround
	if err := json.NewDecoder(r).Decode(&a); err != nil {
		return fmt.Errorf("reading the saved state: %w", err)
	}
	c.setNode(a.Zone, a.PodCIDRs)
	for name, list := range a.Ranges {
		c.ranges.objects[name], c.ranges.dirty = list, true
	}
	for _, p := range a.Pods {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, Labels: p.Labels}}
		pod.Spec.NodeName = c.cfg.NodeName
		for _, addr := range p.Addresses {
			pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: addr.String()})
		}
		c.SetPod(pod)
	}
	for namespace, in := range a.Policies {
		for name, text := range in {
			policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
			selector, err := metav1.ParseToLabelSelector(text)
			if err == nil {
				policy.Spec.PodSelector = *selector
			}
			c.SetPolicy(policy) // one that cannot be read selects everything
		}
	}
	c.ReplaceServices(a.Services)
	c.ReplaceSlices(a.Slices)
	c.triggers = nil
	return nil
}

// object makes a Service that readService makes v of.
func (v *serviceView) object(proxyName string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: v.name.Namespace, Name: v.name.Name}}
	if v.created != 0 {
		s.CreationTimestamp = metav1.Unix(v.created, 0)
	}
	if proxyName != "" {
		s.Labels = labels.Set{ProxyNameLabel: proxyName}
	}
	s.Annotations = map[string]string{SelectionAnnotation: v.selection.String()}
	for _, a := range v.addrs {
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, a.String())
	}
	if len(v.addrs) != 0 {
		s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	}
	for _, p := range v.ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: p.name, Protocol: corev1.Protocol(protoName(p.proto)), Port: int32(p.port)})
	}
	if v.affinity != 0 {
		seconds := int32(v.affinity.Seconds())
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	if v.local {
		local := corev1.ServiceInternalTrafficPolicyLocal
		s.Spec.InternalTrafficPolicy = &local
	}
	return s
}

// object makes an EndpointSlice that readSlice makes v of. It does not look at what assemble writes.
func (v *sliceView) object(owner types.NamespacedName) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: owner.Namespace, Name: v.name, Labels: map[string]string{discoveryv1.LabelServiceName: owner.Name},
	}}
	s.AddressType = discoveryv1.AddressTypeIPv4
	if v.ipv6 {
		s.AddressType = discoveryv1.AddressTypeIPv6
	}
	for i := range v.ports {
		p := &v.ports[i]
		name, port, proto := p.name, int32(p.port), corev1.Protocol(protoName(p.proto))
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Port: &port, Protocol: &proto})
	}
	for i := range v.endpoints {
		in := &v.endpoints[i]
		is := func(c condition) *bool { b := in.flags&c != 0; return &b }
		e := discoveryv1.Endpoint{
			Addresses:  []string{netip.AddrFrom16(in.addr).Unmap().String()},
			Conditions: discoveryv1.EndpointConditions{Ready: is(ready), Serving: is(serving), Terminating: is(terminating)},
		}
		if in.node != noNode {
			node := in.node.Value()
			e.NodeName = &node
		}
		if in.hints != noHints {
			h := in.hints.Value()
			e.Hints = new(discoveryv1.EndpointHints)
			for name := range strings.SplitSeq(strings.TrimSuffix(h.nodes, "\x00"), "\x00") {
				if name != "" {
					e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: name})
				}
			}
			for name := range strings.SplitSeq(strings.TrimSuffix(h.zones, "\x00"), "\x00") {
				if name != "" {
					e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: name})
				}
			}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}
