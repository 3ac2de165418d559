package service

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func aPod(name, node, addr string, labels map[string]string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: name, Labels: labels}}
	p.Spec.NodeName = node
	p.Status.PodIPs = []corev1.PodIP{{IP: addr}}
	return p
}

func aPolicy(name string, labels map[string]string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: name},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: labels}},
	}
}

// TestNetworkPolicy follows a Service and its backend through everything that makes a policy select it, or not.
func TestNetworkPolicy(t *testing.T) {
	web := func() *corev1.Service { return newService("web", []string{"198.19.0.1"}, tcp("http", 80)) }
	app := map[string]string{"app": "web"}
	for _, when := range []Action{Pass, Refuse, Forward} {
		c := NewCatalog(Config{NodeName: "n1", Policed: when})
		c.SetService(web())
		c.SetSlice(newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs"), pod("198.18.9.1", "rs")))
		check := func(what string, policed bool) {
			t.Helper()
			s := c.Commit().Snapshot
			checkSnapshot(t, s)
			p := s.Lookup(frontend("198.19.0.1", 80, TCP))
			want := Forward
			if policed {
				want = when
			}
			if p.Action != want || s.Serves(addr16("198.19.0.1")) != (want != Pass) || !p.Serving(&Backend{addr16("198.18.0.1"), 8080}) {
				t.Errorf("%v, %s: %v, served %v", when, what, p.Action, s.Serves(addr16("198.19.0.1")))
			}
			client := addr16("198.18.0.1")
			if got := s.Policed(&client); got != (policed && when != Forward) {
				t.Errorf("%v, %s: client policed %v", when, what, got)
			}
			if problems := c.Commit().Report.Problems; (len(problems) == 1) != (want != Forward) {
				t.Errorf("%v, %s: %v", when, what, problems)
			}
		}
		check("no policy", false)
		c.SetPolicy(aPolicy("p", app))
		check("no pod", false)
		c.SetPod(aPod("a", "n1", "198.18.0.1", nil))
		check("a pod without labels", false)
		c.SetPod(aPod("a", "n1", "198.18.0.1", app))
		check("selected", true)
		c.SetPolicy(aPolicy("p", map[string]string{"app": "db"}))
		check("the policy selects others", false)
		c.SetPolicy(aPolicy("all", nil))
		check("a policy for all pods", true)
		c.DeletePolicy("demo", "all")
		check("deleted", false)
		c.ReplacePolicies([]*networkingv1.NetworkPolicy{aPolicy("q", app)})
		check("listed again", true)
		elsewhere := aPolicy("q", app)
		elsewhere.Namespace = "other"
		c.ReplacePolicies([]*networkingv1.NetworkPolicy{elsewhere})
		check("a policy of another namespace", false)
		c.SetPolicy(aPolicy("q", app))
		c.SetPod(aPod("a", "n2", "198.18.0.1", app))
		check("the pod is another node's", false)
		host := aPod("a", "n1", "198.18.0.1", app)
		host.Spec.HostNetwork = true
		c.SetPod(host)
		check("on the host's network", false)
		c.ReplacePods([]*corev1.Pod{aPod("b", "n1", "198.18.0.1", app)})
		check("another pod with the address", true)
		done := aPod("b", "n1", "198.18.0.1", app)
		done.Status.Phase = corev1.PodSucceeded
		c.SetPod(done)
		check("it has ended", false)
		c.SetPod(aPod("b", "n1", "198.18.0.1", app))
		check("and runs", true)
		c.ReplacePods(nil)
		check("gone", false)
	}
}

// TestRanges: with a known Service range a ClusterIP outside of it is refused, and so is an endpoint inside.
func TestRanges(t *testing.T) {
	aRange := func(name, cidr string) *networkingv1.ServiceCIDR {
		return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{cidr}}}
	}
	c := NewCatalog(Config{})
	c.SetService(newService("in", []string{"198.19.0.1", "2001:db8:2::1"}, tcp("http", 80)))
	c.SetService(newService("out", []string{"198.19.99.1"}, tcp("http", 80)))
	c.SetSlice(newSlice("in-1", "in", http(8080), pod("198.18.0.1", "rs"), pod("198.19.0.77", "rs")))
	check := func(what string, in, out, backends int) {
		t.Helper()
		s := c.Commit().Snapshot
		checkSnapshot(t, s)
		got := [3]int{}
		for _, p := range s.ServicePorts() {
			if p.Name == "in" {
				got[0]++
			} else {
				got[1]++
			}
			got[2] += len(p.Backends)
		}
		if got != [3]int{in, out, backends} {
			t.Errorf("%s: %v", what, got)
		}
		if n := c.Counts().RefusedClusterIPs; n != 3-in-out {
			t.Errorf("%s: %d refused", what, n)
		}
	}
	check("no range is known", 2, 1, 2)
	c.SetRange(aRange("kubernetes", "198.19.0.0/24"))
	check("a range", 2, 0, 1)
	if r := c.Commit().Snapshot.Ranges(); len(r) != 1 || r[0].String() != "198.19.0.0/24" {
		t.Errorf("ranges %v", r)
	}
	c.SetRange(aRange("more", "198.19.99.0/24"))
	check("another range", 2, 1, 1)
	c.SetRange(aRange("six", "2001:db8:2:1::/112"))
	check("a range of the other family", 1, 1, 1)
	c.ReplaceRanges([]*networkingv1.ServiceCIDR{aRange("kubernetes", "198.19.0.0/24")})
	check("listed again", 2, 0, 1)
	c.DeleteRange("", "kubernetes")
	check("gone", 2, 1, 2)
	c = NewCatalog(Config{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("198.19.99.0/24")}})
	c.SetService(newService("in", []string{"198.19.0.1", "2001:db8:2::1"}, tcp("http", 80)))
	c.SetService(newService("out", []string{"198.19.99.1"}, tcp("http", 80)))
	check("by configuration", 1, 1, 0)
}

func TestNodeOfCatalog(t *testing.T) {
	node := func(zone string, pods ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: zone}}}
		n.Spec.PodCIDRs = pods
		return n
	}
	c := NewCatalog(Config{NodeName: "n1", NodePods: true})
	c.SetService(newService("web", []string{"198.19.0.1"}, tcp("http", 80)))
	c.SetSlice(newSlice("web-1", "web", http(8080), hinted(pod("198.18.0.1", "rs"), nil, []string{"z1"}), hinted(pod("198.18.0.2", "rs"), nil, []string{"z2"})))
	inside, outside, six := addr16("198.18.0.9"), addr16("203.0.113.1"), addr16("2001:db8:9::1")
	for _, step := range []struct {
		what     string
		do       func()
		backends int
		outside  bool
	}{
		{"no node", func() {}, 2, false},
		{"in a zone", func() { c.SetNode(node("z1", "198.18.0.0/24")) }, 1, true},
		{"in another zone", func() { c.SetNode(node("z3", "198.18.0.0/24")) }, 2, true},
		{"another node", func() { n := node("z1"); n.Name = "n2"; c.SetNode(n) }, 2, true},
		{"listed", func() { c.ReplaceNodes([]*corev1.Node{node("z2", "198.18.0.0/16")}) }, 1, true},
		{"gone", func() { c.ReplaceNodes(nil) }, 2, false},
	} {
		step.do()
		s := c.Commit().Snapshot
		if n := len(s.ServicePorts()[0].Backends); n != step.backends {
			t.Errorf("%s: %d backends", step.what, n)
		}
		if s.Outside(&inside) || s.Outside(&outside) != step.outside || s.Outside(&six) {
			t.Errorf("%s: outside %v %v %v", step.what, s.Outside(&inside), s.Outside(&outside), s.Outside(&six))
		}
	}
}

// TestCatalogMoves: objects that change hands within one Commit.
func TestCatalogMoves(t *testing.T) {
	c := NewCatalog(Config{})
	old, young := newService("old", []string{"198.19.0.1"}, tcp("http", 80)), newService("young", []string{"198.19.0.1"}, tcp("http", 80))
	c.SetService(old)
	c.SetSlice(newSlice("x-1", "old", http(8080), pod("198.18.0.1", "rs")))
	holder := func() string {
		s := c.Commit().Snapshot
		checkSnapshot(t, s)
		if p := s.Lookup(frontend("198.19.0.1", 80, TCP)); p != nil {
			return p.Name + " " + p.Action.String()
		}
		return "nobody"
	}
	if got := holder(); got != "old forward" {
		t.Error(got)
	}
	c.SetService(young) // the address goes to another Service in one batch, in the bad order
	c.DeleteService("demo", "old")
	c.SetSlice(newSlice("x-1", "young", http(8080), pod("198.18.0.1", "rs"))) // and so does the slice
	if got := holder(); got != "young forward" {
		t.Error(got)
	}
	young.Spec.Type, young.Spec.ExternalName = corev1.ServiceTypeExternalName, "example.com"
	c.SetService(young)
	if got := holder(); got != "nobody" {
		t.Error(got)
	}
	young.Spec.Type = corev1.ServiceTypeClusterIP
	c.SetService(young)
	if got := holder(); got != "young forward" {
		t.Error(got)
	}
	c.DeleteSlice("demo", "x-1")
	if got := holder(); got != "young reject" {
		t.Error(got)
	}
	c.ReplaceServices(nil)
	c.ReplaceSlices([]*discoveryv1.EndpointSlice{nil})
	if got := holder(); got != "nobody" || len(c.entries) != 0 {
		t.Errorf("%s, %d entries", got, len(c.entries))
	}
}
