package service

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// TestEndpointChoice re-expresses kube-proxy's TestCategorizeEndpoints for a ClusterIP: which endpoints are usable for new
// flows on node n1 in zone z1, and which may keep existing ones.
func TestEndpointChoice(t *testing.T) {
	const a, b, c = "198.18.0.1", "198.18.0.2", "198.18.0.3"
	n1, n2, z1, z2 := []string{"n1"}, []string{"n2"}, []string{"z1"}, []string{"z2"}
	zones := func(e discoveryv1.Endpoint, z []string) discoveryv1.Endpoint { return hinted(e, nil, z) }
	for _, tc := range []struct {
		name      string
		local     bool
		endpoints []discoveryv1.Endpoint
		action    Action
		usable    string
		serving   string
	}{
		{name: "none", action: Reject},
		{name: "none, local", local: true, action: Reject},
		{name: "nil conditions", endpoints: []discoveryv1.Endpoint{{Addresses: []string{a}}}, usable: a, serving: a},
		{name: "ready", endpoints: []discoveryv1.Endpoint{pod(a, "rs"), pod(b, "rs")}, usable: a + " " + b, serving: a + " " + b},
		{name: "not ready is left out", endpoints: []discoveryv1.Endpoint{pod(a, "rs"), pod(b, "")}, usable: a, serving: a},
		{name: "only not ready", endpoints: []discoveryv1.Endpoint{pod(a, ""), pod(b, "")}, action: Reject},
		{name: "serving but neither ready nor terminating", endpoints: []discoveryv1.Endpoint{pod(a, "s")}, action: Reject, serving: a},
		{name: "terminating is left out while others are ready", endpoints: []discoveryv1.Endpoint{pod(a, "rs"), pod(b, "st")}, usable: a, serving: a + " " + b},
		{name: "only serving and terminating", endpoints: []discoveryv1.Endpoint{pod(a, "st"), pod(b, "t"), pod(c, "")}, usable: a, serving: a},
		{name: "only terminating", endpoints: []discoveryv1.Endpoint{pod(a, "t")}, action: Reject},
		{name: "publishNotReadyAddresses: ready and terminating", endpoints: []discoveryv1.Endpoint{pod(a, "rst")}, usable: a, serving: a},
		{name: "ready but not serving", endpoints: []discoveryv1.Endpoint{pod(a, "r")}, usable: a, serving: a},

		{name: "local ready", local: true, endpoints: []discoveryv1.Endpoint{on("n1", pod(a, "rs")), on("n2", pod(b, "rs"))}, usable: a, serving: a + " " + b},
		{name: "local: falls back to serving and terminating", local: true, endpoints: []discoveryv1.Endpoint{on("n1", pod(a, "st")), on("n2", pod(b, "rs"))}, usable: a, serving: a + " " + b},
		{name: "local: none here, ready elsewhere", local: true, endpoints: []discoveryv1.Endpoint{on("n2", pod(a, "rs"))}, action: Drop, serving: a},
		{name: "local: none here, terminating elsewhere", local: true, endpoints: []discoveryv1.Endpoint{on("n2", pod(a, "st"))}, action: Drop, serving: a},
		{name: "local: none here, unusable elsewhere", local: true, endpoints: []discoveryv1.Endpoint{on("n2", pod(a, "t"))}, action: Reject},
		{name: "local: not ready here, ready elsewhere", local: true, endpoints: []discoveryv1.Endpoint{on("n1", pod(a, "")), on("n2", pod(b, "rs"))}, action: Drop, serving: b},
		{name: "local: no node name", local: true, endpoints: []discoveryv1.Endpoint{pod(a, "rs")}, action: Drop, serving: a},
		{name: "local ignores hints", local: true, endpoints: []discoveryv1.Endpoint{zones(on("n1", pod(a, "rs")), z2), zones(on("n1", pod(b, "rs")), z1)}, usable: a + " " + b, serving: a + " " + b},

		{name: "zone hints", endpoints: []discoveryv1.Endpoint{zones(pod(a, "rs"), z1), zones(pod(b, "rs"), z2)}, usable: a, serving: a + " " + b},
		{name: "zone hints: one missing", endpoints: []discoveryv1.Endpoint{zones(pod(a, "rs"), z1), pod(b, "rs")}, usable: a + " " + b, serving: a + " " + b},
		{name: "zone hints: none for us", endpoints: []discoveryv1.Endpoint{zones(pod(a, "rs"), z2), zones(pod(b, "rs"), z2)}, usable: a + " " + b, serving: a + " " + b},
		{name: "zone hints: a terminating one without does not count", endpoints: []discoveryv1.Endpoint{zones(pod(a, "rs"), z1), zones(pod(b, "rs"), z2), pod(c, "st")}, usable: a, serving: a + " " + b + " " + c},
		{name: "zone hints: all terminating, hints ignored", endpoints: []discoveryv1.Endpoint{zones(pod(a, "st"), z1), zones(pod(b, "st"), z2)}, usable: a + " " + b, serving: a + " " + b},
		{name: "zone hints: several zones", endpoints: []discoveryv1.Endpoint{zones(pod(a, "rs"), []string{"z2", "z1"}), zones(pod(b, "rs"), z2)}, usable: a, serving: a + " " + b},
		{name: "node hints before zone hints", endpoints: []discoveryv1.Endpoint{hinted(pod(a, "rs"), n1, z1), hinted(pod(b, "rs"), n2, z1)}, usable: a, serving: a + " " + b},
		{name: "node hints: none for us, zone hints", endpoints: []discoveryv1.Endpoint{hinted(pod(a, "rs"), n2, z1), hinted(pod(b, "rs"), n2, z2)}, usable: a, serving: a + " " + b},
		{name: "node hints: one missing, zone hints", endpoints: []discoveryv1.Endpoint{hinted(pod(a, "rs"), nil, z1), hinted(pod(b, "rs"), n1, z1), hinted(pod(c, "rs"), n1, z2)}, usable: a + " " + b, serving: a + " " + b + " " + c},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService("web", []string{"198.19.0.1"}, tcp("http", 80))
			if tc.local {
				policy := corev1.ServiceInternalTrafficPolicyLocal
				s.Spec.InternalTrafficPolicy = &policy
			}
			slice := newSlice("web-1", "web", http(8080), tc.endpoints...)
			snapshot, report := Build(&Config{NodeName: "n1", Zone: "z1"}, nil, []*corev1.Service{s}, []*discoveryv1.EndpointSlice{slice})
			if len(report.Problems) != 0 {
				t.Errorf("problems: %v", report.Problems)
			}
			p := snapshot.Lookup(frontend("198.19.0.1", 80, TCP))
			if p == nil {
				t.Fatal("no ServicePort")
			}
			if p.Action != tc.action {
				t.Errorf("action %v, want %v", p.Action, tc.action)
			}
			want := func(s string) []string {
				out := strings.Fields(s)
				for i := range out {
					out[i] += ":8080"
				}
				return out
			}
			if got := texts(p.Backends); !slices.Equal(got, want(tc.usable)) {
				t.Errorf("usable %v, want %v", got, want(tc.usable))
			}
			if got := texts(p.ServingBackends()); !slices.Equal(got, want(tc.serving)) {
				t.Errorf("serving %v, want %v", got, want(tc.serving))
			}
			for _, e := range []string{a, b, c} {
				backend := backendOf(e + ":8080")
				if got, want := p.Serving(&backend), slices.Contains(strings.Fields(tc.serving), e); got != want {
					t.Errorf("Serving(%s) = %v, want %v", e, got, want)
				}
			}
		})
	}
}

// TestSliceReading: the rules by which kube-proxy reads EndpointSlices (TestEndpointsMapFromESC).
func TestSliceReading(t *testing.T) {
	label := func(s *discoveryv1.EndpointSlice, key, value string) *discoveryv1.EndpointSlice {
		s.Labels[key] = value
		return s
	}
	of := func(s *discoveryv1.EndpointSlice, addressType discoveryv1.AddressType) *discoveryv1.EndpointSlice {
		s.AddressType = addressType
		return s
	}
	elsewhere := newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs"))
	elsewhere.Namespace = "other"
	unlabelled := newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs"))
	unlabelled.Labels = nil
	nameless := newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs"))
	nameless.Ports[0].Name = nil
	portless := newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs"))
	portless.Ports[0].Port = nil
	defaulted := newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs"))
	defaulted.Ports[0].Protocol = nil
	two := newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs"))
	two.Ports = append(two.Ports, http(8081))
	many := newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs"))
	many.Endpoints[0].Addresses = append(many.Endpoints[0].Addresses, "198.18.0.2")
	none := newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs"))
	none.Endpoints[0].Addresses = nil

	for _, tc := range []struct {
		name    string
		slices  []*discoveryv1.EndpointSlice
		usable  []string
		problem string // part of the only problem; empty: none
	}{
		{"one", []*discoveryv1.EndpointSlice{newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs"))}, []string{"198.18.0.1:8080"}, ""},
		{"several slices", []*discoveryv1.EndpointSlice{
			newSlice("web-2", "web", http(8080), pod("198.18.0.2", "rs")),
			newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs")),
		}, []string{"198.18.0.1:8080", "198.18.0.2:8080"}, ""},
		{"port number differs by slice", []*discoveryv1.EndpointSlice{
			newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs")),
			newSlice("web-2", "web", http(9090), pod("198.18.0.2", "rs")),
		}, []string{"198.18.0.1:8080", "198.18.0.2:9090"}, ""},
		{"one address with two ports", []*discoveryv1.EndpointSlice{
			newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs")),
			newSlice("web-2", "web", http(9090), pod("198.18.0.1", "rs")),
		}, []string{"198.18.0.1:8080", "198.18.0.1:9090"}, ""},
		{"two ports of a name in one slice", []*discoveryv1.EndpointSlice{two}, []string{"198.18.0.1:8080", "198.18.0.1:8081"}, ""},
		{"in two slices during a move", []*discoveryv1.EndpointSlice{
			newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs")),
			newSlice("web-2", "web", http(8080), pod("198.18.0.1", "rs")),
		}, []string{"198.18.0.1:8080"}, ""},
		{"address reused: terminating comes first", []*discoveryv1.EndpointSlice{
			newSlice("web-1", "web", http(8080), pod("198.18.0.1", "t"), pod("198.18.0.1", "rs")),
		}, []string{"198.18.0.1:8080"}, ""},
		{"address reused: terminating comes last", []*discoveryv1.EndpointSlice{
			newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs")),
			newSlice("web-2", "web", http(8080), pod("198.18.0.1", "t")),
		}, []string{"198.18.0.1:8080"}, ""},
		{"address reused: the new pod is not ready, the old one serves", []*discoveryv1.EndpointSlice{
			newSlice("web-1", "web", http(8080), pod("198.18.0.1", "st"), pod("198.18.0.1", "")),
		}, nil, ""},
		{"nil protocol is TCP", []*discoveryv1.EndpointSlice{defaulted}, []string{"198.18.0.1:8080"}, ""},
		{"nil port name", []*discoveryv1.EndpointSlice{nameless}, nil, "EndpointSlice demo/web-1: ports[0].name: missing"},
		{"nil port", []*discoveryv1.EndpointSlice{portless}, nil, "EndpointSlice demo/web-1: ports[0].port: missing"},
		{"port 0", []*discoveryv1.EndpointSlice{newSlice("web-1", "web", http(0), pod("198.18.0.1", "rs"))}, nil, "ports[0].port: missing"},
		{"port too high", []*discoveryv1.EndpointSlice{newSlice("web-1", "web", http(65536), pod("198.18.0.1", "rs"))}, nil, "65536 is not in 1..65535"},
		{"port negative", []*discoveryv1.EndpointSlice{newSlice("web-1", "web", http(-1), pod("198.18.0.1", "rs"))}, nil, "-1 is not in 1..65535"},
		{"other port name", []*discoveryv1.EndpointSlice{newSlice("web-1", "web", slicePortOf("dns", corev1.ProtocolTCP, 53), pod("198.18.0.1", "rs"))}, nil, `the Service has no TCP port named "dns"`},
		{"other protocol", []*discoveryv1.EndpointSlice{newSlice("web-1", "web", slicePortOf("http", corev1.ProtocolUDP, 80), pod("198.18.0.1", "rs"))}, nil, `the Service has no UDP port named "http"`},
		{"unknown protocol", []*discoveryv1.EndpointSlice{newSlice("web-1", "web", slicePortOf("http", "ICMP", 80), pod("198.18.0.1", "rs"))}, nil, `"ICMP" is none of`},
		{"first address only", []*discoveryv1.EndpointSlice{many}, []string{"198.18.0.1:8080"}, "endpoints[0].addresses: only the first of 2 is used"},
		{"no address", []*discoveryv1.EndpointSlice{none}, nil, "endpoints[0].addresses[0]: missing"},
		{"other family", []*discoveryv1.EndpointSlice{newSlice("web-1", "web", http(8080), pod("2001:db8:1::1", "rs"))}, nil, ""},
		{"address outside of the slice's family", []*discoveryv1.EndpointSlice{of(newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs"), pod("2001:db8:1::1", "rs")), discoveryv1.AddressTypeIPv4)}, []string{"198.18.0.1:8080"}, "2001:db8:1::1 is refused: the slice's addressType is IPv4"},
		{"FQDN", []*discoveryv1.EndpointSlice{of(newSlice("web-1", "web", http(8080), pod("pod.example", "rs")), discoveryv1.AddressTypeFQDN)}, nil, `addressType: "FQDN" is ignored`},
		{"headless label", []*discoveryv1.EndpointSlice{label(newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs")), corev1.IsHeadlessService, "")}, nil, ""},
		{"no service label", []*discoveryv1.EndpointSlice{unlabelled}, nil, "belongs to no Service"},
		{"another service", []*discoveryv1.EndpointSlice{newSlice("web-1", "api", http(8080), pod("198.18.0.1", "rs"))}, nil, "there is no Service demo/api"},
		{"another namespace", []*discoveryv1.EndpointSlice{elsewhere}, nil, "there is no Service other/web"},
		{"nil slice", []*discoveryv1.EndpointSlice{nil}, nil, ""},
		{"one name twice", []*discoveryv1.EndpointSlice{
			newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs")),
			newSlice("web-1", "web", http(8080), pod("198.18.0.2", "rs")),
		}, []string{"198.18.0.1:8080"}, "another EndpointSlice has the same name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			services := []*corev1.Service{newService("web", []string{"198.19.0.1"}, tcp("http", 80))}
			snapshot, report := Build(&Config{}, nil, services, tc.slices)
			if got := texts(snapshot.Lookup(frontend("198.19.0.1", 80, TCP)).Backends); !slices.Equal(got, tc.usable) {
				t.Errorf("usable %v, want %v", got, tc.usable)
			}
			checkProblem(t, report, tc.problem)
		})
	}
}

func checkProblem(t *testing.T, report *Report, want string) {
	t.Helper()
	switch {
	case want == "" && len(report.Problems) != 0:
		t.Errorf("problems %v, want none", report.Problems)
	case want != "" && len(report.Problems) != 1:
		t.Errorf("problems %v, want one with %q", report.Problems, want)
	case want != "" && !strings.Contains(report.Problems[0].Error(), want):
		t.Errorf("problem %q, want one with %q", report.Problems[0].Error(), want)
	}
}

// TestUnsafeEndpoints: addresses that must never be translated to (CVE-2021-25737 and its kin), whoever asks for it.
func TestUnsafeEndpoints(t *testing.T) {
	for addr, why := range map[string]string{
		"127.0.0.1":           "loopback",
		"127.255.255.254":     "loopback",
		"::1":                 "loopback",
		"169.254.169.254":     "link-local",
		"fe80::1":             "link-local",
		"224.0.0.1":           "multicast",
		"239.255.255.255":     "multicast",
		"ff02::1":             "multicast",
		"0.0.0.0":             "unspecified",
		"::":                  "unspecified",
		"0.1.2.3":             "this network",
		"255.255.255.255":     "broadcast",
		"198.19.0.1":          "ClusterIP",
		"2001:db8:2::1":       "ClusterIP",
		"::ffff:127.0.0.1":    "mapped into IPv6",
		"::ffff:198.18.0.1":   "mapped into IPv6",
		"198.18.0.010":        "not an IP address",
		"fe80::1%eth0":        "zone",
		"2001:db8:1::1%lo":    "zone",
		"198.18.0.1/32":       "not an IP address",
		"198.18.0.1:80":       "not an IP address",
		"":                    "not an IP address",
		"pod.example":         "not an IP address",
		"198.18.0.1\nlog: ok": "not an IP address",
	} {
		t.Run(addr, func(t *testing.T) {
			services := []*corev1.Service{newService("web", []string{"198.19.0.1", "2001:db8:2::1"}, tcp("http", 80))}
			slice := newSlice("web-1", "web", http(8080), pod(addr, "rs"))
			snapshot, report := Build(&Config{}, nil, services, []*discoveryv1.EndpointSlice{slice})
			for _, p := range snapshot.ServicePorts() {
				if p.Action != Reject || len(p.ServingBackends()) != 0 {
					t.Errorf("%v %v: %v", p, p.Action, p.ServingBackends())
				}
			}
			checkProblem(t, report, why)
			if report.Refused != 1 || !strings.HasPrefix(report.Problems[0].Object, "EndpointSlice demo/web-1") {
				t.Errorf("refused %d, problem %+v", report.Refused, report.Problems)
			}
		})
	}
}

// TestReportIsBounded: a slice full of nonsense must not become a report without end.
func TestReportIsBounded(t *testing.T) {
	var endpoints []discoveryv1.Endpoint
	for i := range 5000 {
		endpoints = append(endpoints, pod(fmt.Sprintf("127.0.%d.%d", i/250, i%250), "rs"))
	}
	services := []*corev1.Service{newService("web", []string{"198.19.0.1"}, tcp("http", 80))}
	_, report := Build(&Config{}, nil, services, []*discoveryv1.EndpointSlice{newSlice("web-1", "web", http(80), endpoints...)})
	if len(report.Problems) != maxProblems || report.Omitted != 5000-maxProblems || report.Refused != 5000 {
		t.Errorf("problems %d, omitted %d, refused %d", len(report.Problems), report.Omitted, report.Refused)
	}
}
