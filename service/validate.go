package service

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Behind an API server every object has been validated and its defaults filled in. A manifest in a folder has nobody to do
// that, so it is done here, by the API server's rules, for the fields that this package reads.

func bad(field, format string, args ...any) *Problem {
	return &Problem{Field: field, Text: fmt.Sprintf(format, args...)}
}

func validateService(s *corev1.Service) *Problem {
	if p := validateName("metadata.name", s.Name, validation.IsDNS1123Label); p != nil {
		return p
	}
	if p := validateName("metadata.namespace", s.Namespace, validation.IsDNS1123Label); p != nil {
		return p
	}
	switch s.Spec.Type {
	case "", corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		if p := validateClusterIPs(&s.Spec); p != nil {
			return p
		}
		if len(s.Spec.Ports) == 0 && s.Spec.ClusterIP != corev1.ClusterIPNone {
			return bad("spec.ports", "missing")
		}
	case corev1.ServiceTypeExternalName:
		if s.Spec.ExternalName == "" {
			return bad("spec.externalName", "missing")
		}
	default:
		return bad("spec.type", "%q is none of ClusterIP, NodePort, LoadBalancer, ExternalName", s.Spec.Type)
	}
	if p := validateServicePorts(s.Spec.Ports); p != nil {
		return p
	}
	switch s.Spec.SessionAffinity {
	case "", corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP:
	default:
		return bad("spec.sessionAffinity", "%q is none of None, ClientIP", s.Spec.SessionAffinity)
	}
	if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		if t := *c.ClientIP.TimeoutSeconds; t < 1 || t > maxAffinitySeconds {
			return bad("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "%d is not in 1..%d", t, maxAffinitySeconds)
		}
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil && *p != corev1.ServiceInternalTrafficPolicyCluster && *p != corev1.ServiceInternalTrafficPolicyLocal {
		return bad("spec.internalTrafficPolicy", "%q is none of Cluster, Local", *p)
	}
	return nil
}

// validatePod checks what matters of a pod here: whose it is, and its addresses.
func validatePod(p *corev1.Pod) *Problem {
	if problem := validateName("metadata.name", p.Name, validation.IsDNS1123Subdomain); problem != nil {
		return problem
	}
	for i, ip := range p.Status.PodIPs {
		if _, err := parseAddr(ip.IP); err != nil {
			return bad(fmt.Sprintf("status.podIPs[%d].ip", i), "%q is %v", ip.IP, err)
		}
	}
	return nil
}

func validatePolicy(p *networkingv1.NetworkPolicy) *Problem {
	if problem := validateName("metadata.name", p.Name, validation.IsDNS1123Subdomain); problem != nil {
		return problem
	}
	if _, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector); err != nil {
		return bad("spec.podSelector", "%v", err)
	}
	return nil
}

func validateClusterIPs(spec *corev1.ServiceSpec) *Problem {
	list := spec.ClusterIPs
	switch {
	case spec.ClusterIP == "" && len(list) == 0:
		return bad("spec.clusterIP", "missing: nobody allocates one for a manifest, so write an address or None")
	case spec.ClusterIP != "" && len(list) != 0 && list[0] != spec.ClusterIP:
		return bad("spec.clusterIPs[0]", "%q is not the %q of spec.clusterIP", list[0], spec.ClusterIP)
	case len(list) > 2:
		return bad("spec.clusterIPs", "%d addresses: a Service has at most one in each family", len(list))
	}
	field := "spec.clusterIP"
	if len(list) == 0 {
		list = []string{spec.ClusterIP}
	} else {
		field = "spec.clusterIPs"
	}
	var families [2]bool
	for _, text := range list {
		if text == corev1.ClusterIPNone {
			if len(list) > 1 {
				return bad(field, "None stands alone")
			}
			continue
		}
		addr, err := parseAddr(text)
		if err != nil {
			return bad(field, "%q is %v", text, err)
		}
		family := 0
		if addr.Is6() {
			family = 1
		}
		if families[family] {
			return bad(field, "%s: a Service has at most one address in each family", text)
		}
		families[family] = true
	}
	return nil
}

func validateServicePorts(ports []corev1.ServicePort) *Problem {
	type number struct {
		port  int32
		proto uint8
	}
	names, numbers := make(map[string]bool, len(ports)), make(map[number]bool, len(ports))
	for i := range ports {
		p := &ports[i]
		at := func(field string) string { return fmt.Sprintf("spec.ports[%d].%s", i, field) }
		proto, ok := protoOf(p.Protocol)
		if !ok {
			return bad(at("protocol"), "%q is none of TCP, UDP, SCTP", p.Protocol)
		}
		if p.Port < 1 || p.Port > 65535 {
			return bad(at("port"), "%d is not in 1..65535", p.Port)
		}
		if numbers[number{p.Port, proto}] {
			return bad(at("port"), "%d/%s is there twice", p.Port, protoName(proto))
		}
		numbers[number{p.Port, proto}] = true
		if p.Name != "" || len(ports) > 1 {
			if p := validateName(at("name"), p.Name, validation.IsDNS1123Label); p != nil {
				return p
			}
		}
		if names[p.Name] {
			return bad(at("name"), "%q is there twice", p.Name)
		}
		names[p.Name] = true
		switch p.TargetPort.Type {
		case intstr.Int:
			if n := p.TargetPort.IntVal; n < 0 || n > 65535 {
				return bad(at("targetPort"), "%d is not in 1..65535", n)
			}
		case intstr.String:
			if len(validation.IsValidPortName(p.TargetPort.StrVal)) != 0 {
				return bad(at("targetPort"), "%q is not a port name", p.TargetPort.StrVal)
			}
		}
		if p.NodePort < 0 || p.NodePort > 65535 {
			return bad(at("nodePort"), "%d is not in 1..65535", p.NodePort)
		}
	}
	return nil
}

// The API server's limits (pkg/apis/core/validation and pkg/apis/discovery/validation).
const (
	maxAffinitySeconds   = 86400
	maxSliceEndpoints    = 1000
	maxEndpointAddresses = 100
	maxSlicePorts        = 20000
)

func validateSlice(s *discoveryv1.EndpointSlice) *Problem {
	if p := validateName("metadata.name", s.Name, validation.IsDNS1123Subdomain); p != nil {
		return p
	}
	if p := validateName("metadata.namespace", s.Namespace, validation.IsDNS1123Label); p != nil {
		return p
	}
	if owner, ok := s.Labels[discoveryv1.LabelServiceName]; ok {
		if p := validateName("metadata.labels["+discoveryv1.LabelServiceName+"]", owner, validation.IsDNS1123Label); p != nil {
			return p
		}
	}
	var fits func(netip.Addr) bool
	switch s.AddressType {
	case discoveryv1.AddressTypeIPv4:
		fits = netip.Addr.Is4
	case discoveryv1.AddressTypeIPv6:
		fits = netip.Addr.Is6
	case discoveryv1.AddressTypeFQDN:
	case "":
		return bad("addressType", "missing")
	default:
		return bad("addressType", "%q is none of IPv4, IPv6, FQDN", s.AddressType)
	}
	if n := len(s.Ports); n > maxSlicePorts {
		return bad("ports", "%d: at most %d are allowed in a slice", n, maxSlicePorts)
	}
	names := make(map[string]bool, len(s.Ports))
	for i := range s.Ports {
		p := &s.Ports[i]
		at := func(field string) string { return fmt.Sprintf("ports[%d].%s", i, field) }
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		if name != "" {
			if p := validateName(at("name"), name, validation.IsDNS1123Label); p != nil {
				return p
			}
		}
		if names[name] {
			return bad(at("name"), "%q is there twice", name)
		}
		names[name] = true
		if p.Port != nil && (*p.Port < 1 || *p.Port > 65535) {
			return bad(at("port"), "%d is not in 1..65535", *p.Port)
		}
		if p.Protocol != nil {
			if _, ok := protoOf(*p.Protocol); !ok || *p.Protocol == "" {
				return bad(at("protocol"), "%q is none of TCP, UDP, SCTP", *p.Protocol)
			}
		}
	}
	if n := len(s.Endpoints); n > maxSliceEndpoints {
		return bad("endpoints", "%d: at most %d are allowed in a slice", n, maxSliceEndpoints)
	}
	for i := range s.Endpoints {
		addresses := s.Endpoints[i].Addresses
		if n := len(addresses); n == 0 || n > maxEndpointAddresses {
			return bad(fmt.Sprintf("endpoints[%d].addresses", i), "%d: 1 to %d are wanted", n, maxEndpointAddresses)
		}
		if fits == nil {
			continue // FQDN: nobody will look at it
		}
		for k, text := range addresses {
			addr, err := netip.ParseAddr(text)
			if err != nil || addr.Zone() != "" {
				return bad(fmt.Sprintf("endpoints[%d].addresses[%d]", i, k), "%q is not an IP address", text)
			}
			if !fits(addr) {
				return bad(fmt.Sprintf("endpoints[%d].addresses[%d]", i, k), "%s is not in the family of addressType %s", text, s.AddressType)
			}
		}
	}
	return nil
}

func validateName(field, name string, rule func(string) []string) *Problem {
	if name == "" {
		return bad(field, "missing")
	}
	if len(rule(name)) != 0 {
		return bad(field, "%q is not a valid name: lower case letters, digits and '-' make one", name)
	}
	return nil
}

// defaultService and defaultSlice fill in what the API server would, as far as Build looks at it. Most defaults need nothing:
// Build reads "" as the default too.
func defaultService(s *corev1.Service) {
	if s.Spec.ClusterIP == "" && len(s.Spec.ClusterIPs) > 0 {
		s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	}
}

func defaultSlice(s *discoveryv1.EndpointSlice) {
	for i := range s.Ports {
		if s.Ports[i].Name == nil {
			s.Ports[i].Name = new(string)
		}
	}
}
