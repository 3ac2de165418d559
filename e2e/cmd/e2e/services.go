package main

import (
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-net/sluice/e2e/stand"
	"github.com/sluice-net/sluice/internal/netlab"
)

// serviceScenarios are those of upstream's test/e2e/network/service.go.
func serviceScenarios() []scenario {
	const s = "[sig-network] Services "
	return []scenario{
		{name: s + "should serve a basic endpoint from pods", run: basicEndpoint},
		{name: s + "should serve multiport endpoints from pods", run: multiport},
		{name: s + "should serve endpoints on same port and different protocols", run: samePortProtocols},
		{name: s + "should be updated after adding or deleting ports", run: addDeletePorts},
		{name: s + "should preserve source pod IP for traffic thru service cluster IP", run: preserveSource},
		{name: s + "should allow pods to hairpin back to themselves through services", run: hairpin},
		{name: s + "should be able to up and down services", run: upAndDown},
		{name: s + "should work after the service has been recreated", run: recreated},
		{name: s + "should create endpoints for unready pods", run: unreadyPods},
		{name: s + "should be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is true", run: publishNotReady},
		{name: s + "should not be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is false", run: dontPublishNotReady},
		{name: s + "should be able to change the type from ExternalName to ClusterIP", run: externalNameTo(corev1.ServiceTypeClusterIP)},
		{name: s + "should be able to change the type from ExternalName to NodePort", run: externalNameTo(corev1.ServiceTypeNodePort)},
		{name: s + "should be able to change the type from ClusterIP to ExternalName", run: toExternalName(corev1.ServiceTypeClusterIP)},
		{name: s + "should be able to change the type from NodePort to ExternalName", run: toExternalName(corev1.ServiceTypeNodePort)},
		{name: s + "should have session affinity work for service with type clusterIP", run: affinity(corev1.ServiceTypeClusterIP)},
		{name: s + "should be able to switch session affinity for service with type clusterIP", run: switchAffinity(corev1.ServiceTypeClusterIP)},
		{name: s + "should have session affinity work for NodePort service", run: affinity(corev1.ServiceTypeNodePort)},
		{name: s + "should be able to switch session affinity for NodePort service", run: switchAffinity(corev1.ServiceTypeNodePort)},
		{name: s + "should have session affinity timeout work for service with type clusterIP", run: affinityTimeout, longest: true},
		{name: s + "should implement service.kubernetes.io/service-proxy-name", run: proxyName},
		{name: s + "should implement service.kubernetes.io/headless", run: headless},
		{name: s + "should be rejected when no endpoints exist", run: rejectedNoEndpoints},
		{name: s + "should be rejected for evicted pods (no endpoints exist)", run: rejectedEvicted},
		{name: s + "should respect internalTrafficPolicy=Local Pod to Pod", run: internalLocal},
		{name: s + "should respect internalTrafficPolicy=Local Pod (hostNetwork: true) to Pod", run: internalLocalFromHost},
		{name: s + "should respect internalTrafficPolicy=Local Pod and Node, to Pod (hostNetwork: true)", run: internalLocalToHost},
		{name: s + "should fallback to terminating endpoints when there are no ready endpoints with internalTrafficPolicy=Cluster", run: terminatingCluster},
		{name: s + "should fallback to local terminating endpoints when there are no ready endpoints with internalTrafficPolicy=Local", run: terminatingLocal},
		{name: s + "should serve endpoints on same port and different protocol for internal traffic on Type LoadBalancer", run: loadBalancerInternal},
		{name: s + "should connect to the ports exposed by restartable init containers", run: sidecarPorts},
		{name: s + "should connect to the named targetPorts that resolve to different ports on different endpoints", run: namedTargetPorts},
		{name: s + "should delete a collection of services", run: deleteCollection},
		{name: s + "should complete a service status lifecycle", run: statusLifecycle},
		{name: "[sig-network] SCTP should create a ClusterIP Service with SCTP ports", run: sctpService},
		{name: "[sig-network] SCTP should allow creating a basic SCTP service with pod and endpoints", run: sctpBasic},
		{name: "[sig-network] Service endpoints latency should not be very high", run: endpointsLatency},
		{name: "[sig-apps] Deployment should be able to do zero-downtime Blue Green deployment using a Service selector and readiness gates", run: blueGreen},
	}
}

func basicEndpoint(t *T) {
	s := t.service("endpoint-test2", httpSpec())
	client, to := t.clientPod(), frontend(s, 80)
	t.refused(client, "tcp", to)
	one := t.pod("pod1", podOptions{})
	t.reaches(client, "tcp", to, one)
	two := t.pod("pod2", podOptions{node: stand.Node2})
	t.reaches(client, "tcp", to, one, two)
	one.kill()
	t.reaches(client, "tcp", to, two)
	two.kill()
	t.refused(client, "tcp", to)
}

func multiport(t *T) {
	s := t.service("multi-endpoint-test", corev1.ServiceSpec{Selector: web, Ports: []corev1.ServicePort{
		servicePort("portname1", "tcp", 80, "portname1"), servicePort("portname2", "tcp", 81, "portname2"),
	}})
	client := t.clientPod()
	one := t.pod("pod1", podOptions{ports: []port{{"portname1", "tcp", 100}}})
	two := t.pod("pod2", podOptions{ports: []port{{"portname2", "tcp", 101}}, node: stand.Node2})
	t.reaches(client, "tcp", frontend(s, 80), one)
	t.reaches(client, "tcp", frontend(s, 81), two)
	one.kill()
	t.refused(client, "tcp", frontend(s, 80))
	t.reaches(client, "tcp", frontend(s, 81), two)
	two.kill()
	t.refused(client, "tcp", frontend(s, 81))
}

func samePortProtocols(t *T) {
	s := t.service("multiprotocol-test", corev1.ServiceSpec{Selector: web, Ports: []corev1.ServicePort{
		servicePort("tcp", "tcp", 80, "tcp"), servicePort("udp", "udp", 80, "udp"),
	}})
	client, to := t.clientPod(), frontend(s, 80)
	one := t.pod("pod1", podOptions{ports: []port{{"tcp", "tcp", 8080}}})
	two := t.pod("pod2", podOptions{ports: []port{{"udp", "udp", 8080}}, node: stand.Node2})
	t.reaches(client, "tcp", to, one)
	t.reaches(client, "udp", to, two)
	one.kill()
	t.refused(client, "tcp", to)
	t.reaches(client, "udp", to, two)
	two.kill()
	t.refused(client, "udp", to)
}

func addDeletePorts(t *T) {
	s := t.service("edge-port-test", httpSpec())
	client := t.clientPod()
	p := t.pod("pod1", podOptions{ports: []port{{"a", "tcp", 80}, {"b", "tcp", 81}}})
	t.reaches(client, "tcp", frontend(s, 80), p)
	s = t.change(s, func(s *corev1.Service) { s.Spec.Ports = append(s.Spec.Ports, servicePort("more", "tcp", 81, 81)) })
	t.reaches(client, "tcp", frontend(s, 81), p)
	t.reaches(client, "tcp", frontend(s, 80), p)
	s = t.change(s, func(s *corev1.Service) { s.Spec.Ports = s.Spec.Ports[1:] })
	t.unreachable(client, "tcp", frontend(s, 80))
	t.reaches(client, "tcp", frontend(s, 81), p)
}

func preserveSource(t *T) {
	s := t.service("sourceip-test", httpSpec())
	local, remote := t.pod("pod-local", podOptions{}), t.pod("pod-remote", podOptions{node: stand.Node2})
	place := t.place(stand.Node1)
	client, to := place.Namespace, frontend(s, 80)
	t.reaches(client, "tcp", to, local, remote)
	seen := map[string]bool{}
	for range 40 {
		a, err := t.ask(client, "tcp", to)
		t.check(err, "asking")
		if a.Client.Addr() != place.IP4 {
			t.fatalf("%s saw %s, want the client's %s", a.Server, a.Client, place.IP4)
		}
		seen[a.Server] = true
	}
	if len(seen) != 2 {
		t.fatalf("40 connections reached only %v", seen)
	}
}

func hairpin(t *T) {
	s := t.service("hairpin-test", httpSpec())
	p := t.pod("hairpin", podOptions{})
	t.reaches(t.clientPod(), "tcp", frontend(s, 80), p)
	t.reaches(p.ns, "tcp", frontend(s, 80), p)
	// Large enough for several segments each way.
	_, err := stand.Ask(t.ctx, stand.Question{From: p.ns, Proto: "tcp", To: frontend(s, 80), Body: make([]byte, 1<<20)})
	t.check(err, "asking itself with a body of 1 MiB")
}

func upAndDown(t *T) {
	client := t.clientPod()
	set := func(name string) (*corev1.Service, []*pod) {
		labels := map[string]string{"set": name}
		spec := httpSpec()
		spec.Selector = labels
		s := t.service(name, spec)
		return s, []*pod{t.pod(name+"-1", podOptions{labels: labels}), t.pod(name+"-2", podOptions{labels: labels, node: stand.Node2})}
	}
	one, pods1 := set("up-down-1")
	two, pods2 := set("up-down-2")
	t.reaches(client, "tcp", frontend(one, 80), pods1...)
	t.reaches(client, "tcp", frontend(two, 80), pods2...)
	t.deleteService(one)
	t.unreachable(client, "tcp", frontend(one, 80))
	t.reaches(client, "tcp", frontend(two, 80), pods2...)
	three, pods3 := set("up-down-3")
	t.reaches(client, "tcp", frontend(two, 80), pods2...)
	t.reaches(client, "tcp", frontend(three, 80), pods3...)
}

func recreated(t *T) {
	client := t.clientPod()
	p := t.pod("pod1", podOptions{})
	s := t.service("svc", httpSpec())
	t.reaches(client, "tcp", frontend(s, 80), p)
	t.deleteService(s)
	t.unreachable(client, "tcp", frontend(s, 80))
	spec := httpSpec()
	spec.ClusterIP = s.Spec.ClusterIP
	again := t.service("svc", spec)
	t.reaches(client, "tcp", frontend(again, 80), p)
}

func unreadyPods(t *T) {
	spec := httpSpec()
	spec.PublishNotReadyAddresses = true
	s := t.service("tolerate-unready", spec)
	client, to := t.clientPod(), frontend(s, 80)
	p := t.pod("unready", podOptions{notReady: true})
	t.reaches(client, "tcp", to, p)
	s = t.change(s, func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = false })
	t.refused(client, "tcp", to)
	t.change(s, func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true })
	t.reaches(client, "tcp", to, p)
	p.terminate()
	t.sleep(time.Second)
	t.reaches(client, "tcp", to, p)
}

func publishNotReady(t *T) {
	spec := httpSpec()
	spec.PublishNotReadyAddresses = true
	s := t.service("tolerate-unready", spec)
	client, to := t.clientPod(), frontend(s, 80)
	p := t.pod("p", podOptions{})
	t.reaches(client, "tcp", to, p)
	p.terminate()
	p.status(false)
	t.waitEndpoints("tolerate-unready", func(c endpointState) bool { return c.terminating == 1 })
	for range 10 {
		t.reaches(client, "tcp", to, p)
	}
	t.reaches(t.c.lab.Node, "tcp", to, p)
}

func dontPublishNotReady(t *T) {
	s := t.service("no-unready", httpSpec())
	client, to := t.clientPod(), frontend(s, 80)
	p := t.pod("p", podOptions{})
	t.reaches(client, "tcp", to, p)
	p.terminate()
	p.status(false)
	t.waitEndpoints("no-unready", func(c endpointState) bool { return c.terminating == 1 && c.serving == 0 })
	t.refused(client, "tcp", to)
	t.refused(t.c.lab.Node, "tcp", to)
}

// endpointState counts the endpoints of a Service's slices.
type endpointState struct{ all, ready, serving, terminating int }

func (t *T) waitEndpoints(service string, ok func(endpointState) bool) {
	t.eventually("endpoints of "+service, func() error {
		var c endpointState
		for _, s := range t.slicesOf(service) {
			if s.AddressType != "IPv4" {
				continue
			}
			for _, e := range s.Endpoints {
				c.all++
				if e.Conditions.Ready == nil || *e.Conditions.Ready {
					c.ready++
				}
				if e.Conditions.Serving == nil || *e.Conditions.Serving {
					c.serving++
				}
				if e.Conditions.Terminating != nil && *e.Conditions.Terminating {
					c.terminating++
				}
			}
		}
		if ok(c) {
			return nil
		}
		return fmt.Errorf("%+v", c)
	})
}

func externalNameTo(kind corev1.ServiceType) func(*T) {
	return func(t *T) {
		p := t.pod("p", podOptions{})
		s := t.service("externalname-service", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "foo.example.com"})
		s = t.change(s, func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalName = kind, ""
			s.Spec.Selector, s.Spec.Ports = web, httpSpec().Ports
		})
		t.reaches(t.clientPod(), "tcp", frontend(s, 80), p)
	}
}

func toExternalName(kind corev1.ServiceType) func(*T) {
	return func(t *T) {
		p := t.pod("p", podOptions{})
		spec := httpSpec()
		spec.Type = kind
		s := t.service("service", spec)
		client, to := t.clientPod(), frontend(s, 80)
		t.reaches(client, "tcp", to, p)
		t.change(s, func(s *corev1.Service) {
			s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "foo.example.com"}
		})
		t.unreachable(client, "tcp", to)
	}
}

func clientIP(spec corev1.ServiceSpec, kind corev1.ServiceType) corev1.ServiceSpec {
	spec.Type = kind
	spec.SessionAffinity = corev1.ServiceAffinityClientIP
	return spec
}

// threePods are enough for chance not to look like affinity: 15 questions go to one of three by chance once in 3^14.
func threePods(t *T, ports ...port) []*pod {
	return []*pod{
		t.pod("affinity-1", podOptions{ports: ports}), t.pod("affinity-2", podOptions{ports: ports}),
		t.pod("affinity-3", podOptions{ports: ports, node: stand.Node2}),
	}
}

// sticks waits until 15 questions in a row have one answerer, which it returns; spreads until they have several.
func (t *T) sticks(from *netlab.Namespace, proto string, to netip.AddrPort) (who string) {
	t.eventually("affinity of "+to.String(), func() (err error) {
		who, err = t.answerers(from, proto, to, true)
		return err
	})
	return who
}

func (t *T) spreads(from *netlab.Namespace, proto string, to netip.AddrPort) {
	t.eventually("spreading of "+to.String(), func() error {
		_, err := t.answerers(from, proto, to, false)
		return err
	})
}

func (t *T) answerers(from *netlab.Namespace, proto string, to netip.AddrPort, one bool) (string, error) {
	first := ""
	for range 15 {
		a, err := t.ask(from, proto, to)
		switch {
		case err != nil:
			return "", err
		case first == "":
			first = a.Server
		case a.Server != first && one:
			return "", fmt.Errorf("%s answered after %s", a.Server, first)
		case a.Server != first:
			return "", nil
		}
	}
	if !one {
		return "", fmt.Errorf("only %s answers", first)
	}
	return first, nil
}

func affinity(kind corev1.ServiceType) func(*T) {
	return func(t *T) {
		s := t.service("affinity", clientIP(httpSpec(), kind))
		threePods(t, port{"http", "tcp", 80})
		t.waitEndpoints("affinity", func(c endpointState) bool { return c.ready == 3 })
		t.sticks(t.clientPod(), "tcp", frontend(s, 80))
	}
}

func switchAffinity(kind corev1.ServiceType) func(*T) {
	return func(t *T) {
		spec := httpSpec()
		spec.Type = kind
		s := t.service("affinity-transition", spec)
		threePods(t, port{"http", "tcp", 80})
		client, to := t.clientPod(), frontend(s, 80)
		t.spreads(client, "tcp", to)
		s = t.change(s, func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP })
		t.sticks(client, "tcp", to)
		t.change(s, func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityNone })
		t.spreads(client, "tcp", to)
	}
}

// affinityTimeout: within the time the client stays; after it, another backend becomes possible. Chance may choose the same
// one again, which seven times in a row happens once in 3^7.
func affinityTimeout(t *T) {
	const timeout = 4
	spec := clientIP(httpSpec(), corev1.ServiceTypeClusterIP)
	seconds := int32(timeout)
	spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	s := t.service("affinity-clusterip-timeout", spec)
	threePods(t, port{"http", "tcp", 80})
	t.waitEndpoints("affinity-clusterip-timeout", func(c endpointState) bool { return c.ready == 3 })
	client, to := t.clientPod(), frontend(s, 80)
	first := t.sticks(client, "tcp", to)
	for range 7 {
		t.sleep((timeout + 2) * time.Second)
		if now := t.sticks(client, "tcp", to); now != first {
			return
		}
	}
	t.fatalf("seven times %d s after the last connection the client still reached %s", timeout+2, first)
}

func proxyName(t *T) {
	p := t.pod("p", podOptions{})
	client := t.clientPod()
	enabled := t.service("service-proxy-toggled", httpSpec())
	t.reaches(client, "tcp", frontend(enabled, 80), p)
	other := t.service("service-proxy-disabled", httpSpec(), proxyNameLabel, "foo-bar")
	t.unreachable(client, "tcp", frontend(other, 80))
	before := enabled.Labels[proxyNameLabel]
	enabled = t.change(enabled, func(s *corev1.Service) { s.Labels = map[string]string{proxyNameLabel: "foo-bar"} })
	t.unreachable(client, "tcp", frontend(enabled, 80))
	t.unreachable(t.c.lab.Node, "tcp", frontend(enabled, 80))
	t.change(enabled, func(s *corev1.Service) {
		s.Labels = nil
		if before != "" {
			s.Labels = map[string]string{proxyNameLabel: before}
		}
	})
	t.reaches(client, "tcp", frontend(enabled, 80), p)
	t.unreachable(client, "tcp", frontend(other, 80))
}

// headless toggles the label on the EndpointSlice, as upstream does since 1.36. On the Service it means nothing to 1.36, while 1.35
// leaves such a Service alone.
func headless(t *T) {
	p := t.pod("p", podOptions{})
	client := t.clientPod()
	spec := httpSpec()
	spec.Selector = nil
	toggled, labelled := t.service("service-headless-toggled", spec), t.service("service-headless", spec)
	slice := t.slice("toggled", sliceOf("IPv4", p.ips[:1], slicePort{"http", "tcp", 80}), toggled.Name)
	other := sliceOf("IPv4", p.ips[:1], slicePort{"http", "tcp", 80})
	other.Labels = map[string]string{headlessLabel: ""}
	t.slice("labelled", other, labelled.Name)
	label := func(yes bool) {
		if delete(slice.Labels, headlessLabel); yes {
			slice.Labels[headlessLabel] = ""
		}
		var err error
		slice, err = t.c.client.DiscoveryV1().EndpointSlices(t.ns).Update(t.ctx, slice, metav1.UpdateOptions{})
		t.check(err, "labelling the slice")
	}
	t.reaches(client, "tcp", frontend(toggled, 80), p)
	t.refused(client, "tcp", frontend(labelled, 80))
	label(true)
	t.refused(client, "tcp", frontend(toggled, 80))
	label(false)
	t.reaches(client, "tcp", frontend(toggled, 80), p)
	t.refused(client, "tcp", frontend(labelled, 80))
}

func rejectedNoEndpoints(t *T) {
	spec := httpSpec()
	spec.Ports = append(spec.Ports, servicePort("udp", "udp", 80, 80), servicePort("sctp", "sctp", 80, 80))
	s := t.service("no-pods", spec)
	client := t.clientPod()
	for _, proto := range []string{"tcp", "udp", "sctp"} {
		t.refused(client, proto, frontend(s, 80))
	}
	t.refused(t.c.lab.Node, "tcp", frontend(s, 80))
	t.refused(t.c.lab.Node, "udp", frontend(s, 80))
}

func rejectedEvicted(t *T) {
	s := t.service("evicted-pods", httpSpec())
	client, to := t.clientPod(), frontend(s, 80)
	p := t.pod("evicted", podOptions{})
	t.reaches(client, "tcp", to, p)
	p.update(func(o *corev1.Pod) {
		o.Status.Phase, o.Status.Reason = corev1.PodFailed, "Evicted"
		setCondition(o, corev1.PodReady, false)
	})
	p.close()
	t.refused(client, "tcp", to)
	t.refused(t.c.lab.Node, "tcp", to)
}

func localSpec() corev1.ServiceSpec {
	spec := httpSpec()
	local := corev1.ServiceInternalTrafficPolicyLocal
	spec.InternalTrafficPolicy = &local
	return spec
}

func internalLocal(t *T) {
	s := t.service("svc-itp", localSpec())
	client, to := t.clientPod(), frontend(s, 80)
	remote := t.pod("remote", podOptions{node: stand.Node2})
	t.waitEndpoints("svc-itp", func(c endpointState) bool { return c.ready == 1 })
	t.silent(client, "tcp", to) // elsewhere there are endpoints: a client had better wait than give up
	local := t.pod("local", podOptions{})
	t.reaches(client, "tcp", to, local)
	local.kill()
	t.silent(client, "tcp", to)
	remote.kill()
	t.refused(client, "tcp", to)
}

func internalLocalFromHost(t *T) {
	s := t.service("svc-itp", localSpec())
	to := frontend(s, 80)
	t.pod("remote", podOptions{node: stand.Node2})
	t.waitEndpoints("svc-itp", func(c endpointState) bool { return c.ready == 1 })
	t.silent(t.c.lab.Node, "tcp", to)
	local := t.pod("local", podOptions{})
	t.reaches(t.c.lab.Node, "tcp", to, local)
}

func internalLocalToHost(t *T) {
	spec := localSpec()
	number := t.hostPort()
	spec.Ports[0].TargetPort = intstr.FromInt32(number)
	s := t.service("svc-itp", spec)
	client, to := t.clientPod(), frontend(s, 80)
	ports := []port{{"http", "tcp", number}}
	t.pod("remote", podOptions{node: stand.Node2, hostNetwork: true, ports: ports})
	t.waitEndpoints("svc-itp", func(c endpointState) bool { return c.ready == 1 })
	t.silent(client, "tcp", to)
	local := t.pod("local", podOptions{hostNetwork: true, ports: ports})
	t.reaches(client, "tcp", to, local)
	t.reaches(t.c.lab.Node, "tcp", to, local)
}

func terminatingCluster(t *T) {
	s := t.service("svc-proxy-terminating", httpSpec())
	client, to := t.clientPod(), frontend(s, 80)
	local, remote := t.pod("local", podOptions{}), t.pod("remote", podOptions{node: stand.Node2})
	t.reaches(client, "tcp", to, local, remote)
	local.terminate()
	t.reaches(client, "tcp", to, remote)
	remote.terminate()
	t.waitEndpoints("svc-proxy-terminating", func(c endpointState) bool { return c.terminating == 2 && c.serving == 2 })
	t.reaches(client, "tcp", to, local, remote)
	t.reaches(t.c.lab.Node, "tcp", to, local, remote)
	remote.status(false)
	t.reaches(client, "tcp", to, local)
}

func terminatingLocal(t *T) {
	s := t.service("svc-proxy-terminating", localSpec())
	client, to := t.clientPod(), frontend(s, 80)
	one, two := t.pod("local-1", podOptions{}), t.pod("local-2", podOptions{})
	t.pod("remote", podOptions{node: stand.Node2})
	t.reaches(client, "tcp", to, one, two)
	one.terminate()
	t.reaches(client, "tcp", to, two)
	two.terminate()
	t.reaches(client, "tcp", to, one, two) // not the ready one elsewhere
	t.reaches(t.c.lab.Node, "tcp", to, one, two)
}

func loadBalancerInternal(t *T) {
	s := t.service("multiprotocol-lb-test", corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Selector: web, Ports: []corev1.ServicePort{
		servicePort("portname1", "tcp", 80, 80), servicePort("portname2", "udp", 80, 80),
	}})
	client := t.clientPod()
	p := t.pod("pod1", podOptions{ports: []port{{"tcp", "tcp", 80}, {"udp", "udp", 80}}})
	t.reaches(client, "tcp", frontend(s, 80), p)
	t.reaches(client, "udp", frontend(s, 80), p)
}

func sidecarPorts(t *T) {
	s := t.service("sidecar-with-port", corev1.ServiceSpec{Selector: web, Ports: []corev1.ServicePort{servicePort("http", "tcp", 80, "sidecar-port")}})
	p := t.pod("sidecar", podOptions{sidecar: true, ports: []port{{"sidecar-port", "tcp", 8080}}})
	t.reaches(t.clientPod(), "tcp", frontend(s, 80), p)
}

func namedTargetPorts(t *T) {
	s := t.service("named-targetports", corev1.ServiceSpec{Selector: web, Ports: []corev1.ServicePort{servicePort("http", "tcp", 80, "http")}})
	one := t.pod("pod1", podOptions{ports: []port{{"http", "tcp", 8081}}})
	two := t.pod("pod2", podOptions{ports: []port{{"http", "tcp", 8082}}})
	three := t.pod("pod3", podOptions{ports: []port{{"http", "tcp", 8083}}, node: stand.Node2})
	t.reaches(t.clientPod(), "tcp", frontend(s, 80), one, two, three)
}

func deleteCollection(t *T) {
	client := t.clientPod()
	p := t.pod("p", podOptions{})
	var deleted []*corev1.Service
	for i := range 3 {
		deleted = append(deleted, t.service(fmt.Sprintf("e2e-svc-%d", i), httpSpec(), "collection", "yes"))
	}
	kept := t.service("e2e-svc-kept", httpSpec())
	for _, s := range append(deleted, kept) {
		t.reaches(client, "tcp", frontend(s, 80), p)
	}
	err := t.c.client.CoreV1().RESTClient().Delete().Namespace(t.ns).Resource("services").Param("labelSelector", "collection=yes").Do(t.ctx).Error()
	t.check(err, "deleting the collection")
	for _, s := range deleted {
		t.unreachable(client, "tcp", frontend(s, 80))
	}
	t.reaches(client, "tcp", frontend(kept, 80), p)
}

// statusLifecycle: what is written into the status of a LoadBalancer must not disturb its ClusterIP.
func statusLifecycle(t *T) {
	client := t.clientPod()
	p := t.pod("p", podOptions{})
	spec := httpSpec()
	spec.Type = corev1.ServiceTypeLoadBalancer
	s := t.service("test-service", spec)
	t.reaches(client, "tcp", frontend(s, 80), p)
	t.retry("writing the status", func() error {
		o, err := t.c.client.CoreV1().Services(t.ns).Get(t.ctx, s.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		o.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.77"}}
		_, err = t.c.client.CoreV1().Services(t.ns).UpdateStatus(t.ctx, o, metav1.UpdateOptions{})
		return err
	})
	t.reaches(client, "tcp", frontend(s, 80), p)
}

func sctpService(t *T) {
	s := t.service("sctp-clusterip", corev1.ServiceSpec{Selector: web, Ports: []corev1.ServicePort{servicePort("sctp", "sctp", 5060, 5060)}})
	one := t.pod("p1", podOptions{ports: []port{{"sctp", "sctp", 5060}}})
	two := t.pod("p2", podOptions{ports: []port{{"sctp", "sctp", 5060}}, node: stand.Node2})
	t.reaches(t.clientPod(), "sctp", frontend(s, 5060), one, two)
}

func sctpBasic(t *T) {
	s := t.service("sctp-endpoint-test", corev1.ServiceSpec{Selector: web, Ports: []corev1.ServicePort{servicePort("sctp", "sctp", 5060, 5061)}})
	client, to := t.clientPod(), frontend(s, 5060)
	t.refused(client, "sctp", to)
	p := t.pod("pod1", podOptions{ports: []port{{"sctp", "sctp", 5061}}})
	t.reaches(client, "sctp", to, p)
	p.kill()
	t.refused(client, "sctp", to)
}

// endpointsLatency has upstream's bounds, which are generous, and prints nothing: they are asked of the way from a Service's
// creation to its first answer, and not only to its endpoints.
func endpointsLatency(t *T) {
	const services, median, worst = 30, 20 * time.Second, 50 * time.Second
	client := t.clientPod()
	p := t.pod("p", podOptions{})
	slow := 0
	for i := range services {
		began := time.Now()
		s := t.service(fmt.Sprintf("latency-svc-%d", i), httpSpec())
		t.reaches(client, "tcp", frontend(s, 80), p)
		if took := time.Since(began); took > worst {
			t.fatalf("service %d took %v", i, took)
		} else if took > median {
			slow++
		}
	}
	if slow > services/2 {
		t.fatalf("%d of %d services took more than %v", slow, services, median)
	}
}

// blueGreen: the green pods become ready by a gate that is opened from outside, the selector changes, and no connection fails.
func blueGreen(t *T) {
	const gate = "e2e.sluice.dev/open"
	color := func(name string, gates ...corev1.PodReadinessGate) []*pod {
		labels := map[string]string{"app": "web", "color": name}
		return []*pod{
			t.pod(name+"-1", podOptions{labels: labels, gates: gates, notReady: gates != nil}),
			t.pod(name+"-2", podOptions{labels: labels, gates: gates, notReady: gates != nil, node: stand.Node2}),
		}
	}
	blue := color("blue")
	spec := httpSpec()
	spec.Selector = map[string]string{"app": "web", "color": "blue"}
	s := t.service("blue-green-svc", spec)
	client, to := t.clientPod(), frontend(s, 80)
	t.reaches(client, "tcp", to, blue...)

	green := color("green", corev1.PodReadinessGate{ConditionType: gate})
	for _, p := range green {
		p.update(func(o *corev1.Pod) { setCondition(o, gate, true); setCondition(o, corev1.PodReady, true) })
	}
	stop, failures := t.background(client, "tcp", to)
	s = t.change(s, func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "web"} })
	t.reaches(client, "tcp", to, append(blue, green...)...)
	t.change(s, func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "web", "color": "green"} })
	t.reaches(client, "tcp", to, green...)
	stop()
	if n, last := failures(); n > 0 {
		t.fatalf("%d connections failed during the change, the last one: %v", n, last)
	}
}

// background asks again and again until stop.
func (t *T) background(from *netlab.Namespace, proto string, to netip.AddrPort) (stop func(), failures func() (int, error)) {
	ended, done := make(chan struct{}), make(chan struct{})
	count, last := 0, error(nil)
	go func() {
		defer close(done)
		for {
			select {
			case <-ended:
				return
			default:
			}
			if _, err := stand.Ask(t.ctx, stand.Question{From: from, Proto: proto, To: to, Wait: 5 * time.Second}); err != nil {
				count++
				last = err
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	stopped := false
	return func() {
			if !stopped {
				stopped = true
				close(ended)
				<-done
			}
		}, func() (int, error) {
			return count, last
		}
}
