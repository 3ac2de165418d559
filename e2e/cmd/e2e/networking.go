package main

import (
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-net/sluice/e2e/kube"
	"github.com/sluice-net/sluice/e2e/stand"
	"github.com/sluice-net/sluice/internal/netlab"
)

// networkingScenarios are those of upstream's test/e2e/network/networking.go and dual_stack.go.
func networkingScenarios() []scenario {
	list := []scenario{
		{name: "[sig-network] Networking should check kube-proxy urls", run: proxyURLs},
	}
	for _, stack := range []struct {
		group string
		index int // of the ClusterIP
	}{
		{"[sig-network] Networking Granular Checks: Services ", 0},
		{"[sig-network] [Feature:IPv6DualStack] Granular Checks: Services Secondary IP Family ", 1},
	} {
		for _, proto := range []string{"http", "udp", "sctp"} {
			list = append(list,
				scenario{name: stack.group + "should function for pod-Service: " + proto, run: granular(stack.index, proto, "pod")},
				scenario{name: stack.group + "should function for node-Service: " + proto, run: granular(stack.index, proto, "node")},
				scenario{name: stack.group + "should function for endpoint-Service: " + proto, run: granular(stack.index, proto, "endpoint")})
		}
		for _, proto := range []string{"http", "udp"} {
			list = append(list,
				scenario{name: stack.group + "should update endpoints: " + proto, run: updateEndpoints(stack.index, proto)},
				scenario{name: stack.group + "should function for client IP based session affinity: " + proto, run: granularAffinity(stack.index, proto)},
				scenario{name: stack.group + "should be able to handle large requests: " + proto, run: largeRequests(stack.index, proto)})
		}
		list = append(list,
			scenario{name: stack.group + "should function for service endpoints using hostNetwork", run: hostNetworkEndpoints(stack.index)},
			scenario{name: stack.group + "should function for multiple endpoint-Services with same selector", run: sameSelector(stack.index)})
	}
	for _, families := range [][]corev1.IPFamily{
		{corev1.IPv4Protocol}, {corev1.IPv6Protocol},
		{corev1.IPv4Protocol, corev1.IPv6Protocol}, {corev1.IPv6Protocol, corev1.IPv4Protocol},
	} {
		var names []string
		for _, f := range families {
			names = append(names, strings.ToLower(string(f)))
		}
		list = append(list, scenario{
			name: "[sig-network] [Feature:IPv6DualStack] should create service with " + strings.Join(names, ",") + " cluster ip", run: familyService(families),
		})
	}
	return list
}

// proxyURLs: kube-proxy's own where it is tested, Sluice's where that is.
func proxyURLs(t *T) {
	urls := []string{t.c.dataplane.Healthz(), t.c.dataplane.Metrics()}
	if !t.c.dataplane.IsSluice() {
		urls = append(urls, "http://"+kube.ProxyMetrics+"/proxyMode")
	}
	for _, url := range urls {
		status, err := kube.Get(t.ctx, t.c.lab.Node, url)
		t.check(err, "asking %s", url)
		if status != http.StatusOK {
			t.fatalf("%s: status %d", url, status)
		}
	}
}

// wire is the protocol under the name that upstream uses.
func wire(proto string) string {
	if proto == "http" {
		return "tcp"
	}
	return proto
}

// The netserver's ports, and the Service's in front of them.
var netserverPorts = []port{{"http", "tcp", 8083}, {"udp", "udp", 8081}, {"sctp", "sctp", 8082}}

const (
	serviceHTTP = 80
	serviceUDP  = 90
	serviceSCTP = 9090
)

func netserverSpec() corev1.ServiceSpec {
	dual := corev1.IPFamilyPolicyRequireDualStack
	return corev1.ServiceSpec{Selector: web, Type: corev1.ServiceTypeNodePort, IPFamilyPolicy: &dual, Ports: []corev1.ServicePort{
		servicePort("http", "tcp", serviceHTTP, 8083), servicePort("udp", "udp", serviceUDP, 8081), servicePort("sctp", "sctp", serviceSCTP, 8082),
	}}
}

func serviceNumber(proto string) int32 {
	return map[string]int32{"http": serviceHTTP, "udp": serviceUDP, "sctp": serviceSCTP}[proto]
}

// netservers are two on the node and one on the other.
func netservers(t *T) []*pod {
	return []*pod{
		t.pod("netserver-0", podOptions{ports: netserverPorts}), t.pod("netserver-1", podOptions{ports: netserverPorts}),
		t.pod("netserver-2", podOptions{ports: netserverPorts, node: stand.Node2}),
	}
}

func granular(index int, proto, from string) func(*T) {
	return func(t *T) {
		s := t.service("node-port-service", netserverSpec())
		servers := netservers(t)
		client := servers[0].ns
		switch from {
		case "pod":
			client = t.clientPod()
		case "node":
			client = t.c.lab.Node
		}
		t.reaches(client, wire(proto), frontends(s, serviceNumber(proto))[index], servers...)
	}
}

func updateEndpoints(index int, proto string) func(*T) {
	return func(t *T) {
		s := t.service("node-port-service", netserverSpec())
		servers := netservers(t)
		client, to := t.clientPod(), frontends(s, serviceNumber(proto))[index]
		t.reaches(client, wire(proto), to, servers...)
		servers[0].kill()
		t.reaches(client, wire(proto), to, servers[1:]...)
	}
}

func granularAffinity(index int, proto string) func(*T) {
	return func(t *T) {
		spec := netserverSpec()
		spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s := t.service("session-affinity-service", spec)
		netservers(t)
		t.waitEndpoints("session-affinity-service", func(c endpointState) bool { return c.ready == 3 })
		t.sticks(t.clientPod(), wire(proto), frontends(s, serviceNumber(proto))[index])
	}
}

// largeRequests: upstream sends 2000 bytes and wants them back. More than that, up to what a datagram holds, are sent here.
func largeRequests(index int, proto string) func(*T) {
	return func(t *T) {
		s := t.service("node-port-service", netserverSpec())
		servers := netservers(t)
		client, to := t.clientPod(), frontends(s, serviceNumber(proto))[index]
		t.reaches(client, wire(proto), to, servers...)
		sizes := []int{2000, 8000, 20000, 60000}
		if proto == "http" {
			sizes = append(sizes, 1<<20)
		}
		for _, size := range sizes {
			body := make([]byte, size)
			for i := range body {
				body[i] = byte(i * 7)
			}
			for range 6 {
				_, err := stand.Ask(t.ctx, stand.Question{From: client, Proto: wire(proto), To: to, Body: body})
				t.check(err, "sending %d bytes", size)
			}
		}
	}
}

func hostNetworkEndpoints(index int) func(*T) {
	return func(t *T) {
		number := t.hostPort()
		spec := netserverSpec()
		spec.Ports = spec.Ports[:2]
		spec.Ports[0].TargetPort, spec.Ports[1].TargetPort = intstr.FromInt32(number), intstr.FromInt32(number)
		s := t.service("node-port-service", spec)
		ports := []port{{"http", "tcp", number}, {"udp", "udp", number}}
		servers := []*pod{
			t.pod("netserver-0", podOptions{ports: ports, hostNetwork: true}),
			t.pod("netserver-1", podOptions{ports: ports, hostNetwork: true, node: stand.Node2}),
		}
		for _, client := range []*netlab.Namespace{t.clientPod(), t.c.lab.Node} {
			t.reaches(client, "tcp", frontends(s, serviceHTTP)[index], servers...)
			t.reaches(client, "udp", frontends(s, serviceUDP)[index], servers...)
		}
	}
}

func sameSelector(index int) func(*T) {
	return func(t *T) {
		one, two := t.service("service-1", netserverSpec()), t.service("service-2", netserverSpec())
		servers := netservers(t)
		client := servers[1].ns
		t.reaches(client, "tcp", frontends(one, serviceHTTP)[index], servers...)
		t.reaches(client, "tcp", frontends(two, serviceHTTP)[index], servers...)
		t.deleteService(two)
		t.unreachable(client, "tcp", frontends(two, serviceHTTP)[index])
		t.reaches(client, "tcp", frontends(one, serviceHTTP)[index], servers...)
	}
}

func familyService(families []corev1.IPFamily) func(*T) {
	return func(t *T) {
		policy := corev1.IPFamilyPolicySingleStack
		if len(families) > 1 {
			policy = corev1.IPFamilyPolicyRequireDualStack
		}
		spec := httpSpec()
		spec.IPFamilies, spec.IPFamilyPolicy = families, &policy
		s := t.service("families", spec)
		if len(s.Spec.ClusterIPs) != len(families) {
			t.fatalf("clusterIPs %v for %v", s.Spec.ClusterIPs, families)
		}
		local, remote := t.pod("local", podOptions{}), t.pod("remote", podOptions{node: stand.Node2})
		client := t.clientPod()
		for i, to := range frontends(s, 80) {
			if want := families[i] == corev1.IPv6Protocol; to.Addr().Is6() != want {
				t.fatalf("clusterIPs %v for %v", s.Spec.ClusterIPs, families)
			}
			t.reaches(client, "tcp", to, local, remote)
			t.reaches(t.c.lab.Node, "tcp", to, local, remote)
		}
	}
}
