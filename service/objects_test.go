package service

import (
	"net/netip"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The objects that the tests of this package are made of. Addresses: pods 198.18.0.0/16 and 2001:db8:1::/48, ClusterIPs
// 198.19.0.0/16 and 2001:db8:2::/112.

func newService(name string, clusterIPs []string, ports ...corev1.ServicePort) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: name}}
	s.Spec.ClusterIPs = clusterIPs
	if len(clusterIPs) > 0 {
		s.Spec.ClusterIP = clusterIPs[0]
	}
	s.Spec.Ports = ports
	return s
}

func tcp(name string, port int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: port, Protocol: corev1.ProtocolTCP}
}

func udp(name string, port int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: port, Protocol: corev1.ProtocolUDP}
}

func newSlice(name, service string, port discoveryv1.EndpointPort, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: "demo", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service},
	}}
	s.AddressType = discoveryv1.AddressTypeIPv4
	if len(endpoints) > 0 && len(endpoints[0].Addresses) > 0 {
		if a, err := netip.ParseAddr(endpoints[0].Addresses[0]); err == nil && a.Is6() {
			s.AddressType = discoveryv1.AddressTypeIPv6
		}
	}
	s.Ports = []discoveryv1.EndpointPort{port}
	s.Endpoints = endpoints
	return s
}

func slicePortOf(name string, protocol corev1.Protocol, port int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port}
}

func http(port int32) discoveryv1.EndpointPort { return slicePortOf("http", corev1.ProtocolTCP, port) }

// pod makes an endpoint. Letters: r ready, s serving, t terminating, given or not.
func pod(addr, conditions string) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{addr}}
	for letter, c := range map[rune]**bool{'r': &e.Conditions.Ready, 's': &e.Conditions.Serving, 't': &e.Conditions.Terminating} {
		*c = new(bool)
		for _, l := range conditions {
			**c = **c || l == letter
		}
	}
	return e
}

func on(node string, e discoveryv1.Endpoint) discoveryv1.Endpoint {
	e.NodeName = &node
	return e
}

func hinted(e discoveryv1.Endpoint, nodes, zones []string) discoveryv1.Endpoint {
	e.Hints = &discoveryv1.EndpointHints{}
	for _, n := range nodes {
		e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: n})
	}
	for _, z := range zones {
		e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: z})
	}
	return e
}

func addr16(s string) [16]byte { return netip.MustParseAddr(s).As16() }

func frontend(addr string, port uint16, proto uint8) *Frontend {
	return &Frontend{Addr: addr16(addr), Port: port, Proto: proto}
}

func backendOf(s string) Backend {
	a := netip.MustParseAddrPort(s)
	return Backend{Addr: a.Addr().As16(), Port: a.Port()}
}

func texts(backends []Backend) []string {
	out := make([]string, len(backends))
	for i, b := range backends {
		out[i] = b.String()
	}
	return out
}
