package main

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-net/sluice/e2e/stand"
)

// distributionScenarios are those of upstream's traffic_distribution.go and topology_hints.go, for the clients of node1. node3 is
// of the same zone, node2 of another.
func distributionScenarios() []scenario {
	const s = "[sig-network] Traffic Distribution should route traffic "
	return []scenario{
		{name: s + "to an endpoint in the same zone when using PreferClose", run: sameZone(corev1.ServiceTrafficDistributionPreferClose)},
		{name: s + "to an endpoint in the same zone when using PreferSameZone", run: sameZone(corev1.ServiceTrafficDistributionPreferSameZone)},
		{name: s + "correctly between pods on multiple nodes when using PreferClose", run: severalNodes(corev1.ServiceTrafficDistributionPreferClose)},
		{name: s + "correctly between pods on multiple nodes when using PreferSameZone", run: severalNodes(corev1.ServiceTrafficDistributionPreferSameZone)},
		{name: s + "to an endpoint on the same node or fall back to same zone when using PreferSameNode", run: sameNodeOrZone},
		{name: s + "to an endpoint on the same node when using PreferSameNode and fall back when the endpoint becomes unavailable", run: sameNodeFallback},
		{name: "[sig-network] Topology Hints should distribute endpoints evenly", run: topologyHints},
	}
}

func distributed(how string) corev1.ServiceSpec {
	spec := httpSpec()
	spec.TrafficDistribution = &how
	return spec
}

func sameZone(how string) func(*T) {
	return func(t *T) {
		s := t.service("traffic-dist-test-service", distributed(how))
		client, to := t.clientPod(), frontend(s, 80)
		near := t.pod("near", podOptions{})
		t.pod("far", podOptions{node: stand.Node2})
		t.waitEndpoints(s.Name, func(c endpointState) bool { return c.ready == 2 })
		t.reaches(client, "tcp", to, near)
		t.reaches(t.c.lab.Node, "tcp", to, near)
	}
}

func severalNodes(how string) func(*T) {
	return func(t *T) {
		s := t.service("traffic-dist-test-service", distributed(how))
		client, to := t.clientPod(), frontend(s, 80)
		far := t.pod("far", podOptions{node: stand.Node2})
		t.reaches(client, "tcp", to, far) // nobody is nearer
		zone := t.pod("zone", podOptions{node: node3})
		t.reaches(client, "tcp", to, zone)
		local := t.pod("local", podOptions{})
		t.reaches(client, "tcp", to, zone, local) // the zone is the same, the node does not matter
		zone.kill()
		t.reaches(client, "tcp", to, local)
		local.kill()
		t.reaches(client, "tcp", to, far)
	}
}

func sameNodeOrZone(t *T) {
	s := t.service("traffic-dist-test-service", distributed(corev1.ServiceTrafficDistributionPreferSameNode))
	client, to := t.clientPod(), frontend(s, 80)
	t.pod("far", podOptions{node: stand.Node2})
	zone := t.pod("zone", podOptions{node: node3})
	t.waitEndpoints(s.Name, func(c endpointState) bool { return c.ready == 2 })
	t.reaches(client, "tcp", to, zone)
	local := t.pod("local", podOptions{})
	t.reaches(client, "tcp", to, local)
	t.reaches(t.c.lab.Node, "tcp", to, local)
}

func sameNodeFallback(t *T) {
	s := t.service("traffic-dist-test-service", distributed(corev1.ServiceTrafficDistributionPreferSameNode))
	client, to := t.clientPod(), frontend(s, 80)
	far, local := t.pod("far", podOptions{node: stand.Node2}), t.pod("local", podOptions{})
	t.reaches(client, "tcp", to, local)
	local.status(false)
	t.reaches(client, "tcp", to, far)
	local.status(true)
	t.reaches(client, "tcp", to, local)
	local.terminate()
	t.reaches(client, "tcp", to, far)
}

// topologyHints: the zones are of equal size, so each is given the two endpoints that lie in it.
func topologyHints(t *T) {
	spec := httpSpec()
	object := t.object("topology-hints", spec)
	object.Annotations = map[string]string{corev1.AnnotationTopologyMode: "Auto"}
	s, err := t.c.client.CoreV1().Services(t.ns).Create(t.ctx, object, metav1.CreateOptions{})
	t.check(err, "creating the service")
	one, two := t.pod("a1", podOptions{}), t.pod("a2", podOptions{node: node3})
	t.pod("b1", podOptions{node: stand.Node2})
	t.pod("b2", podOptions{node: stand.Node2})
	t.waitEndpoints(s.Name, func(c endpointState) bool { return c.ready == 4 })
	t.reaches(t.clientPod(), "tcp", frontend(s, 80), one, two)
}
