package service

import (
	"math"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func twoServices() ([]*corev1.Service, []*discoveryv1.EndpointSlice) {
	return []*corev1.Service{
			newService("web", []string{"198.19.0.1", "2001:db8:2::1"}, tcp("http", 80), udp("quic", 80)),
			newService("api", []string{"198.19.0.2"}, tcp("http", 443)),
		}, []*discoveryv1.EndpointSlice{
			newSlice("web-4", "web", http(8080), pod("198.18.0.1", "rs"), pod("198.18.0.2", "rs")),
			newSlice("web-6", "web", http(8080), pod("2001:db8:1::1", "rs")),
			newSlice("api-4", "api", http(6443), pod("198.18.0.9", "rs")),
		}
}

func TestSnapshot(t *testing.T) {
	services, endpointSlices := twoServices()
	s, report := Build(&Config{}, nil, services, endpointSlices)
	checkProblem(t, report, "")
	if s.Generation != 1 {
		t.Errorf("generation %d", s.Generation)
	}
	var names []string
	for _, p := range s.ServicePorts() {
		names = append(names, p.String()+" "+p.Frontends[0].String()+" "+p.Action.String())
		if s.Lookup(&p.Frontends[0]) != p {
			t.Errorf("Lookup(%v) does not find %v", p.Frontends[0], p)
		}
	}
	if want := []string{
		"demo/api:http 198.19.0.2:443/TCP forward",
		"demo/web:http 198.19.0.1:80/TCP forward",
		"demo/web:http [2001:db8:2::1]:80/TCP forward",
		"demo/web:quic 198.19.0.1:80/UDP reject",
		"demo/web:quic [2001:db8:2::1]:80/UDP reject",
	}; !slices.Equal(names, want) {
		t.Errorf("ports %q, want %q", names, want)
	}
	for addr, want := range map[string]bool{"198.19.0.1": true, "198.19.0.2": true, "2001:db8:2::1": true, "198.19.0.3": false, "198.18.0.1": false, "::": false} {
		if got := s.Serves(addr16(addr)); got != want {
			t.Errorf("Serves(%s) = %v", addr, got)
		}
	}
	if want := [][16]byte{addr16("198.19.0.1"), addr16("198.19.0.2"), addr16("2001:db8:2::1")}; !slices.Equal(s.Addresses(), want) {
		t.Errorf("addresses %v", s.Addresses())
	}
	for _, f := range []*Frontend{frontend("198.19.0.1", 81, TCP), frontend("198.19.0.1", 80, SCTP), frontend("198.19.0.2", 443, UDP), frontend("198.18.0.1", 80, TCP)} {
		if p := s.Lookup(f); p != nil {
			t.Errorf("Lookup(%v) = %v", f, p)
		}
	}
}

// TestSnapshotShares: what did not change is the same memory, and a Build without a change is the same Snapshot.
func TestSnapshotShares(t *testing.T) {
	services, endpointSlices := twoServices()
	first, _ := Build(&Config{}, nil, services, endpointSlices)

	slices.Reverse(services)
	slices.Reverse(endpointSlices)
	if again, _ := Build(&Config{}, first, services, endpointSlices); again != first {
		t.Errorf("nothing changed but the order: generation %d", again.Generation)
	}

	web, api := frontend("198.19.0.1", 80, TCP), frontend("198.19.0.2", 443, TCP)
	endpointSlices[2].Endpoints[1].Conditions.Ready = new(bool) // 198.18.0.2 fails its probe, and goes on serving
	second, _ := Build(&Config{}, first, services, endpointSlices)
	if second.Generation != 2 {
		t.Errorf("generation %d", second.Generation)
	}
	if second.Lookup(api) != first.Lookup(api) {
		t.Error("demo/api was built again")
	}
	before, after := first.Lookup(web), second.Lookup(web)
	if before == after {
		t.Fatal("demo/web did not change")
	}
	if got := texts(before.Backends); len(got) != 2 {
		t.Errorf("the first Snapshot changed: %v", got)
	}
	if got := texts(after.Backends); !slices.Equal(got, []string{"198.18.0.1:8080"}) {
		t.Errorf("backends %v", got)
	}
	if &before.serving[0] != &after.serving[0] {
		t.Error("the serving endpoints were copied")
	}
	if &first.Addresses()[0] != &second.Addresses()[0] {
		t.Error("the addresses were copied")
	}

	third, _ := Build(&Config{}, second, services[:1], endpointSlices)
	if third.Serves(addr16("198.19.0.1")) || third.Lookup(web) != nil || len(third.ServicePorts()) != 1 {
		t.Errorf("demo/web is still there: %v", third.ServicePorts())
	}
}

// TestActionAloneChanges: an endpoint elsewhere stops terminating without getting ready. No list changes, but Drop becomes Reject.
func TestActionAloneChanges(t *testing.T) {
	web := newService("web", []string{"198.19.0.1"}, tcp("http", 80))
	policy := corev1.ServiceInternalTrafficPolicyLocal
	web.Spec.InternalTrafficPolicy = &policy
	slice := newSlice("web-1", "web", http(8080), on("n2", pod("198.18.0.1", "st")))
	first, _ := Build(&Config{NodeName: "n1"}, nil, []*corev1.Service{web}, []*discoveryv1.EndpointSlice{slice})
	*slice.Endpoints[0].Conditions.Terminating = false
	second, _ := Build(&Config{NodeName: "n1"}, first, []*corev1.Service{web}, []*discoveryv1.EndpointSlice{slice})
	if a, b := first.ServicePorts()[0].Action, second.ServicePorts()[0].Action; a != Drop || b != Reject {
		t.Errorf("%v, then %v", a, b)
	}
}

func TestGenerationIsNeverZero(t *testing.T) {
	services, endpointSlices := twoServices()
	last := &Snapshot{Generation: math.MaxUint32}
	if next, _ := Build(&Config{}, last, services, endpointSlices); next.Generation != 1 {
		t.Errorf("generation %d", next.Generation)
	}
	if empty, _ := Build(&Config{}, nil, nil, nil); empty.Generation != 1 || empty.Serves([16]byte{}) {
		t.Errorf("an empty Snapshot: %+v", empty)
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	services, endpointSlices := twoServices()
	s, _ := Build(&Config{}, nil, services, endpointSlices)
	f, b := frontend("198.19.0.1", 80, TCP), backendOf("198.18.0.2:8080")
	if n := testing.AllocsPerRun(100, func() {
		if !s.Serves(f.Addr) || !s.Lookup(f).Serving(&b) {
			t.Error("not found")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
