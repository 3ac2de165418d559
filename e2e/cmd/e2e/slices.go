//lint:file-ignore SA1019 Endpoints are deprecated, and mirrored to slices for those who still write them

package main

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-net/sluice/e2e/stand"
)

// sliceScenarios are those of upstream's endpointslice.go, endpointslicemirroring.go and service_cidrs.go.
func sliceScenarios() []scenario {
	const s = "[sig-network] EndpointSlice should "
	const m = "[sig-network] EndpointSliceMirroring should "
	return []scenario{
		{name: s + "create and delete Endpoints and EndpointSlices for a Service with a selector specified", run: slicesForSelector},
		{name: s + "create Endpoints and EndpointSlices for Pods matching a Service", run: slicesForPods},
		{name: s + "support a Service with multiple ports specified in multiple EndpointSlices", run: portsInSlices},
		{name: s + "support a Service with multiple endpoint IPs specified in multiple EndpointSlices", run: addressesInSlices},
		{name: m + "mirror a custom Endpoints resource through create update and delete", run: mirrored},
		{name: m + "mirror a custom Endpoint with multiple subsets and same IP address", run: mirroredSubsets},
		{name: "[sig-network] Service CIDRs should create Services and serve on different Service CIDRs", run: serviceCIDRs},
	}
}

// slicePort is a port of an EndpointSlice.
type slicePort = port

// sliceOf is an EndpointSlice with ready endpoints.
func sliceOf(family string, addrs []netip.Addr, ports ...slicePort) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressType(family)}
	yes := true
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}})
	}
	for _, p := range ports {
		proto := corev1.Protocol(strings.ToUpper(p.proto))
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p.name, Protocol: &proto, Port: &p.number})
	}
	return s
}

func slicesForSelector(t *T) {
	spec := httpSpec()
	spec.Selector = map[string]string{"does-not-match-anything": "endpoints-and-endpoint-slices-should-still-be-created"}
	s := t.service("example-empty-selector", spec)
	t.eventually("slices", func() error {
		if len(t.slicesOf(s.Name)) == 0 {
			return fmt.Errorf("there are none")
		}
		return nil
	})
	client := t.clientPod()
	t.refused(client, "tcp", frontend(s, 80))
	t.deleteService(s)
	t.eventually("slices after the deletion", func() error {
		if n := len(t.slicesOf(s.Name)); n > 0 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
}

func slicesForPods(t *T) {
	int1 := t.service("example-int-port", corev1.ServiceSpec{Selector: web, PublishNotReadyAddresses: true, Ports: []corev1.ServicePort{servicePort("example", "tcp", 80, 3000)}})
	named := t.service("example-named-port", corev1.ServiceSpec{Selector: web, PublishNotReadyAddresses: true, Ports: []corev1.ServicePort{servicePort("http", "tcp", 80, "example-name")}})
	none := t.service("example-no-match", corev1.ServiceSpec{Selector: map[string]string{"foo": "none"}, Ports: []corev1.ServicePort{servicePort("http", "tcp", 80, 3000)}})
	ports := []port{{"example-name", "tcp", 3000}}
	one, two := t.pod("pod1", podOptions{ports: ports}), t.pod("pod2", podOptions{ports: ports, node: stand.Node2, notReady: true})
	client := t.clientPod()
	t.reaches(client, "tcp", frontend(int1, 80), one, two)
	t.reaches(client, "tcp", frontend(named, 80), one, two)
	t.refused(client, "tcp", frontend(none, 80))
}

func portsInSlices(t *T) {
	s := t.service("example-custom-endpoints", corev1.ServiceSpec{Ports: []corev1.ServicePort{
		servicePort("http80", "tcp", 80, 80), servicePort("http81", "tcp", 81, 81),
	}})
	one := t.pod("pod1", podOptions{ports: []port{{"a", "tcp", 8090}}})
	two := t.pod("pod2", podOptions{ports: []port{{"b", "tcp", 9090}}, node: stand.Node2})
	t.slice("example-80", sliceOf("IPv4", one.ips[:1], slicePort{"http80", "tcp", 8090}), s.Name)
	t.slice("example-81", sliceOf("IPv4", two.ips[:1], slicePort{"http81", "tcp", 9090}), s.Name)
	client := t.clientPod()
	t.reaches(client, "tcp", frontend(s, 80), one)
	t.reaches(client, "tcp", frontend(s, 81), two)
}

func addressesInSlices(t *T) {
	s := t.service("example-custom-endpoints", corev1.ServiceSpec{Ports: []corev1.ServicePort{servicePort("http", "tcp", 80, 80)}})
	ports := []port{{"a", "tcp", 8090}}
	one, two, three := t.pod("pod1", podOptions{ports: ports}), t.pod("pod2", podOptions{ports: ports}), t.pod("pod3", podOptions{ports: ports, node: stand.Node2})
	t.slice("example-1", sliceOf("IPv4", one.ips[:1], slicePort{"http", "tcp", 8090}), s.Name)
	t.slice("example-2", sliceOf("IPv4", two.ips[:1], slicePort{"http", "tcp", 8090}), s.Name)
	// The third sits in two slices at once, as endpoints do while they are moved.
	t.slice("example-3", sliceOf("IPv4", three.ips[:1], slicePort{"http", "tcp", 8090}), s.Name)
	t.slice("example-4", sliceOf("IPv4", three.ips[:1], slicePort{"http", "tcp", 8090}), s.Name)
	t.reaches(t.clientPod(), "tcp", frontend(s, 80), one, two, three)
}

func mirrored(t *T) {
	s := t.service("example-custom-endpoints", corev1.ServiceSpec{Ports: []corev1.ServicePort{servicePort("example", "tcp", 80, 80)}})
	one, two := t.pod("pod1", podOptions{}), t.pod("pod2", podOptions{node: stand.Node2})
	client, to := t.clientPod(), frontend(s, 80)
	endpoints := t.c.client.CoreV1().Endpoints(t.ns)
	object := func(p *pod) *corev1.Endpoints {
		return &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: s.Name}, Subsets: []corev1.EndpointSubset{{
			Addresses: []corev1.EndpointAddress{{IP: p.ips[0].String()}}, Ports: []corev1.EndpointPort{{Name: "example", Port: 80}},
		}}}
	}
	_, err := endpoints.Create(t.ctx, object(one), metav1.CreateOptions{})
	t.check(err, "creating endpoints")
	t.reaches(client, "tcp", to, one)
	_, err = endpoints.Update(t.ctx, object(two), metav1.UpdateOptions{})
	t.check(err, "updating endpoints")
	t.reaches(client, "tcp", to, two)
	t.check(endpoints.Delete(t.ctx, s.Name, metav1.DeleteOptions{}), "deleting endpoints")
	t.refused(client, "tcp", to)
}

func mirroredSubsets(t *T) {
	s := t.service("example-custom-endpoints", corev1.ServiceSpec{Ports: []corev1.ServicePort{
		servicePort("port80", "tcp", 80, 80), servicePort("port81", "tcp", 81, 81),
	}})
	p := t.pod("pod1", podOptions{ports: []port{{"a", "tcp", 8090}, {"b", "tcp", 9090}}})
	address := []corev1.EndpointAddress{{IP: p.ips[0].String()}}
	_, err := t.c.client.CoreV1().Endpoints(t.ns).Create(t.ctx, &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: s.Name}, Subsets: []corev1.EndpointSubset{
		{Addresses: address, Ports: []corev1.EndpointPort{{Name: "port80", Port: 8090}}},
		{Addresses: address, Ports: []corev1.EndpointPort{{Name: "port81", Port: 9090}}},
	}}, metav1.CreateOptions{})
	t.check(err, "creating endpoints")
	client := t.clientPod()
	t.reaches(client, "tcp", frontend(s, 80), p)
	t.reaches(client, "tcp", frontend(s, 81), p)
}

func serviceCIDRs(t *T) {
	client := t.clientPod()
	p, q := t.pod("pod1", podOptions{}), t.pod("pod2", podOptions{node: stand.Node2})
	cidrs := t.c.client.NetworkingV1().ServiceCIDRs()
	_, err := cidrs.Create(t.ctx, &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "test-svc-cidr"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"198.19.200.0/24"}},
	}, metav1.CreateOptions{})
	t.check(err, "creating a ServiceCIDR")
	t.cleanup(func() { cidrs.Delete(t.ctx, "test-svc-cidr", metav1.DeleteOptions{}) })
	spec := httpSpec()
	spec.ClusterIP = "198.19.200.77"
	var s *corev1.Service
	t.eventually("the ServiceCIDR to be ready", func() error {
		c, err := cidrs.Get(t.ctx, "test-svc-cidr", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, cond := range c.Status.Conditions {
			if cond.Type == networkingv1.ServiceCIDRConditionReady && cond.Status == metav1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("conditions %v", c.Status.Conditions)
	})
	t.eventually("a ClusterIP of the range", func() (err error) {
		s, err = t.c.client.CoreV1().Services(t.ns).Create(t.ctx, t.object("svc-in-range", spec), metav1.CreateOptions{})
		return err
	})
	old := t.service("svc-in-default-range", httpSpec())
	for _, from := range []*corev1.Service{s, old} {
		t.reaches(client, "tcp", frontend(from, 80), p, q)
		t.reaches(t.c.lab.Node, "tcp", frontend(from, 80), p, q)
	}
}
