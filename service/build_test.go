package service

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestServiceReading: which Services are served, at which frontends.
func TestServiceReading(t *testing.T) {
	v4, v6 := "198.19.0.1", "2001:db8:2::1"
	edit := func(s *corev1.Service, f func(*corev1.Service)) *corev1.Service {
		f(s)
		return s
	}
	labelled := func(value string) *corev1.Service {
		return edit(newService("web", []string{v4}, tcp("http", 80)), func(s *corev1.Service) { s.Labels = map[string]string{ProxyNameLabel: value} })
	}
	for _, tc := range []struct {
		name      string
		cfg       Config
		services  []*corev1.Service
		frontends string
		problem   string
	}{
		{"one family", Config{}, []*corev1.Service{newService("web", []string{v4}, tcp("http", 80))}, "198.19.0.1:80/TCP", ""},
		{"both families", Config{}, []*corev1.Service{newService("web", []string{v6, v4}, tcp("http", 80))}, "198.19.0.1:80/TCP [2001:db8:2::1]:80/TCP", ""},
		{"clusterIP alone", Config{}, []*corev1.Service{edit(newService("web", []string{v4}, tcp("http", 80)), func(s *corev1.Service) { s.Spec.ClusterIPs = nil })}, "198.19.0.1:80/TCP", ""},
		{"one number, three protocols", Config{}, []*corev1.Service{newService("web", []string{v4}, tcp("a", 53), udp("b", 53), corev1.ServicePort{Name: "c", Port: 53, Protocol: corev1.ProtocolSCTP})}, "198.19.0.1:53/TCP 198.19.0.1:53/UDP 198.19.0.1:53/SCTP", ""},
		{"no protocol is TCP", Config{}, []*corev1.Service{newService("web", []string{v4}, corev1.ServicePort{Port: 80})}, "198.19.0.1:80/TCP", ""},
		{"nil service", Config{}, []*corev1.Service{nil}, "", ""},
		{"headless", Config{}, []*corev1.Service{newService("web", []string{"None"}, tcp("http", 80))}, "", ""},
		{"headless by clusterIP", Config{}, []*corev1.Service{edit(newService("web", []string{v4}, tcp("http", 80)), func(s *corev1.Service) { s.Spec.ClusterIP = "None" })}, "", ""},
		{"no address yet", Config{}, []*corev1.Service{newService("web", nil, tcp("http", 80))}, "", ""},
		{"ExternalName", Config{}, []*corev1.Service{edit(newService("web", []string{v4}, tcp("http", 80)), func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName })}, "", ""},
		{"another proxy's", Config{}, []*corev1.Service{labelled("sluice")}, "", ""},
		{"another proxy's without a name", Config{}, []*corev1.Service{labelled("")}, "", ""},
		{"ours by name", Config{ProxyName: "sluice"}, []*corev1.Service{labelled("sluice")}, "198.19.0.1:80/TCP", ""},
		{"not ours by name", Config{ProxyName: "sluice"}, []*corev1.Service{labelled("other")}, "", ""},
		{"unlabelled, and we go by name", Config{ProxyName: "sluice"}, []*corev1.Service{newService("web", []string{v4}, tcp("http", 80))}, "", ""},
		{"external IPs, node port and load balancer are not taken", Config{}, []*corev1.Service{edit(newService("web", []string{v4}, tcp("http", 80)), func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalIPs, s.Spec.LoadBalancerIP = corev1.ServiceTypeLoadBalancer, []string{"203.0.113.1"}, "203.0.113.2"
			s.Spec.Ports[0].NodePort = 30080
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.3"}}
		})}, "198.19.0.1:80/TCP", ""},

		{"not an address", Config{}, []*corev1.Service{newService("web", []string{"198.19.0.1/32"}, tcp("http", 80))}, "", `spec.clusterIPs[0]: "198.19.0.1/32" is not an IP address`},
		{"unsafe address", Config{}, []*corev1.Service{newService("web", []string{"127.0.0.1", v6}, tcp("http", 80))}, "[2001:db8:2::1]:80/TCP", "127.0.0.1 is a loopback address"},
		{"mapped address", Config{}, []*corev1.Service{newService("web", []string{"::ffff:198.19.0.1"}, tcp("http", 80))}, "", "mapped into IPv6"},
		{"two of a family", Config{}, []*corev1.Service{newService("web", []string{v4, "198.19.0.2"}, tcp("http", 80))}, "198.19.0.1:80/TCP", "clusterIPs[1]: 198.19.0.2 is ignored"},
		{"port 0", Config{}, []*corev1.Service{newService("web", []string{v4, v6}, tcp("http", 0))}, "", "spec.ports[0].port: 0 is not"},
		{"port 65536", Config{}, []*corev1.Service{newService("web", []string{v4}, tcp("http", 65536))}, "", "65536 is not"},
		{"unknown protocol", Config{}, []*corev1.Service{newService("web", []string{v4}, corev1.ServicePort{Port: 80, Protocol: "tcp"})}, "", `"tcp" is none of`},
		{"name twice", Config{}, []*corev1.Service{newService("web", []string{v4}, tcp("http", 80), tcp("http", 81))}, "198.19.0.1:80/TCP", "spec.ports[1].name"},
		{"number twice", Config{}, []*corev1.Service{newService("web", []string{v4}, tcp("a", 80), tcp("b", 80))}, "198.19.0.1:80/TCP", "spec.ports[1]: 198.19.0.1:80/TCP belongs to Service demo/web:a already"},
		{"object twice", Config{}, []*corev1.Service{newService("web", []string{v4}, tcp("http", 80)), newService("web", []string{v6}, tcp("http", 80))}, "198.19.0.1:80/TCP", "another Service has the same name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, report := Build(&tc.cfg, nil, tc.services, nil)
			var got []string
			for _, p := range s.ServicePorts() {
				got = append(got, p.Frontends[0].String())
				if p.Action != Reject {
					t.Errorf("%v: %v without endpoints", p, p.Action)
				}
			}
			if got := strings.Join(got, " "); got != tc.frontends {
				t.Errorf("frontends %q, want %q", got, tc.frontends)
			}
			checkProblem(t, report, tc.problem)
		})
	}
}

// TestFrontendClaimedTwice: the older Service keeps a frontend, then the first by name; its other ports are not touched.
func TestFrontendClaimedTwice(t *testing.T) {
	at := func(s *corev1.Service, seconds int64) *corev1.Service {
		if seconds > 0 {
			s.CreationTimestamp = metav1.NewTime(time.Unix(seconds, 0))
		}
		return s
	}
	for _, tc := range []struct {
		name          string
		ageA, ageB    int64
		winner, loser string
	}{
		{"b is older", 200, 100, "b", "a"},
		{"a is older", 100, 200, "a", "b"},
		{"same age", 100, 100, "a", "b"},
		{"no age", 0, 0, "a", "b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			services := []*corev1.Service{
				at(newService("b", []string{"198.19.0.1"}, tcp("own", 81), tcp("both", 80)), tc.ageB),
				at(newService("a", []string{"198.19.0.1"}, tcp("own", 82), tcp("both", 80)), tc.ageA),
			}
			for range 2 {
				s, report := Build(&Config{}, nil, services, nil)
				if got := s.Lookup(frontend("198.19.0.1", 80, TCP)).Name; got != tc.winner {
					t.Errorf("%s has the frontend, want %s", got, tc.winner)
				}
				if len(s.ServicePorts()) != 3 {
					t.Errorf("ports %v", s.ServicePorts())
				}
				checkProblem(t, report, "Service demo/"+tc.loser+": spec.ports[1]: 198.19.0.1:80/TCP belongs to Service demo/"+tc.winner+":both already")
				slices.Reverse(services)
			}
		})
	}
}

func TestSelectionAndAffinityOfService(t *testing.T) {
	services := []*corev1.Service{newService("web", []string{"198.19.0.1", "2001:db8:2::1"}, tcp("http", 80))}
	read := func(cfg Config) (*ServicePort, *Report) {
		s, report := Build(&cfg, nil, services, nil)
		return s.ServicePorts()[0], report
	}
	if p, _ := read(Config{}); p.Selection != Consistent || p.Affinity != 0 {
		t.Errorf("default: %v, %v", p.Selection, p.Affinity)
	}
	if p, _ := read(Config{Selection: Random}); p.Selection != Random {
		t.Errorf("by config: %v", p.Selection)
	}
	services[0].Annotations = map[string]string{SelectionAnnotation: "roundRobin"}
	if p, report := read(Config{Selection: Random}); p.Selection != RoundRobin || len(report.Problems) != 0 {
		t.Errorf("by annotation: %v, %v", p.Selection, report.Problems)
	}
	services[0].Annotations[SelectionAnnotation] = "fastest"
	p, report := read(Config{Selection: Random})
	if p.Selection != Random {
		t.Errorf("unknown annotation: %v", p.Selection)
	}
	checkProblem(t, report, `metadata.annotations[sluice.dev/selection]: selection "fastest" is none of consistent, random, roundRobin: using random`)

	services[0].Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	if p, _ := read(Config{}); p.Affinity != 3*time.Hour {
		t.Errorf("affinity without a timeout: %v", p.Affinity)
	}
	timeout := int32(10)
	services[0].Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
	if p, _ := read(Config{}); p.Affinity != 10*time.Second {
		t.Errorf("affinity: %v", p.Affinity)
	}
}

// plainPort is what the twin below says of a frontend.
type plainPort struct {
	action            Action
	backends, serving string
}

// plainBuild is Build's twin: the rules as they are told, one frontend at a time, with maps, strings and no sharing.
func plainBuild(cfg *Config, services []*corev1.Service, all []*discoveryv1.EndpointSlice) map[Frontend]plainPort {
	older := slices.SortedFunc(slices.Values(services), func(a, b *corev1.Service) int {
		return strings.Compare(fmt.Sprintf("%020d %s", a.CreationTimestamp.Unix()+1<<40, a.Name), fmt.Sprintf("%020d %s", b.CreationTimestamp.Unix()+1<<40, b.Name))
	})
	type claim struct {
		s    *corev1.Service
		port corev1.ServicePort
	}
	claims := make(map[Frontend]claim)
	clusterIPs := make(map[string]bool)
	for _, s := range older {
		if s.Spec.ClusterIP == "None" || s.Spec.Type == corev1.ServiceTypeExternalName || s.Labels[ProxyNameLabel] != cfg.ProxyName {
			continue
		}
		for _, port := range s.Spec.Ports {
			for _, ip := range s.Spec.ClusterIPs {
				proto := map[corev1.Protocol]uint8{"TCP": TCP, "UDP": UDP}[port.Protocol]
				f := Frontend{Addr: addr16(ip), Port: uint16(port.Port), Proto: proto}
				if _, taken := claims[f]; !taken {
					claims[f] = claim{s, port}
					clusterIPs[ip] = true
				}
			}
		}
	}
	yes := func(b *bool, unknown bool) bool {
		if b == nil {
			return unknown
		}
		return *b
	}
	out := make(map[Frontend]plainPort)
	for f, c := range claims {
		ipv4 := f.Addr[10] == 0xff
		byName := make(map[string]discoveryv1.Endpoint) // of the endpoints, by address and port
		for _, slice := range all {
			if slice.Namespace != c.s.Namespace || slice.Labels[discoveryv1.LabelServiceName] != c.s.Name || (slice.AddressType == "IPv4") != ipv4 {
				continue
			}
			for _, port := range slice.Ports {
				if port.Name == nil || *port.Name != c.port.Name || *port.Protocol != c.port.Protocol || port.Port == nil {
					continue
				}
				for _, e := range slice.Endpoints {
					addr := e.Addresses[0]
					if clusterIPs[addr] || strings.HasPrefix(addr, "127.") {
						continue
					}
					name := netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(*port.Port)).String()
					if known, ok := byName[name]; !ok || yes(known.Conditions.Terminating, false) && !yes(e.Conditions.Terminating, false) {
						byName[name] = e
					}
				}
			}
		}
		ready, draining := func(e discoveryv1.Endpoint) bool { return yes(e.Conditions.Ready, true) }, func(e discoveryv1.Endpoint) bool {
			return yes(e.Conditions.Serving, true) && yes(e.Conditions.Terminating, false)
		}
		here := func(e discoveryv1.Endpoint) bool { return e.NodeName != nil && *e.NodeName == cfg.NodeName }
		pick := func(of ...func(discoveryv1.Endpoint) bool) (names []string) {
			for name, e := range byName {
				if !slices.ContainsFunc(of, func(f func(discoveryv1.Endpoint) bool) bool { return !f(e) }) {
					names = append(names, name)
				}
			}
			return names
		}
		var usable []string
		if p := c.s.Spec.InternalTrafficPolicy; p != nil && *p == "Local" {
			if usable = pick(ready, here); len(usable) == 0 {
				usable = pick(draining, here)
			}
		} else {
			hint := func(e discoveryv1.Endpoint) bool {
				return e.Hints != nil && e.Hints.ForZones[0].Name == cfg.Zone
			}
			noHint := func(e discoveryv1.Endpoint) bool { return e.Hints == nil }
			usable = pick(ready)
			if len(pick(ready, hint)) > 0 && len(pick(ready, noHint)) == 0 {
				usable = pick(ready, hint)
			}
			if len(usable) == 0 {
				usable = pick(draining)
			}
		}
		p := plainPort{action: Reject}
		if len(pick(ready))+len(pick(draining)) > 0 {
			p.action = Drop
		}
		if len(usable) > 0 {
			p.action = Forward
		}
		serving := append(pick(func(e discoveryv1.Endpoint) bool { return yes(e.Conditions.Serving, true) }), usable...)
		sorted := func(names []string) string {
			var backends []Backend
			for _, n := range names {
				backends = append(backends, backendOf(n))
			}
			slices.SortFunc(backends, compareBackend)
			return strings.Join(texts(slices.Compact(backends)), " ")
		}
		p.backends, p.serving = sorted(usable), sorted(serving)
		out[f] = p
	}
	return out
}

func contents(s *Snapshot) map[Frontend]plainPort {
	out := make(map[Frontend]plainPort)
	for _, p := range s.ServicePorts() {
		for _, f := range p.Frontends {
			out[f] = plainPort{p.Action, strings.Join(texts(p.Backends), " "), strings.Join(texts(p.ServingBackends()), " ")}
		}
	}
	return out
}

// randomObjects makes a small crowded world: names, addresses and frontends collide, conditions and hints are of all kinds.
func randomObjects(r *rand.Rand) ([]*corev1.Service, []*discoveryv1.EndpointSlice) {
	var services []*corev1.Service
	for i := range r.IntN(5) {
		ips := [][]string{{"198.19.0.1"}, {"198.19.0.2"}, {"2001:db8:2::1", "198.19.0.1"}, {"2001:db8:2::2"}, {"None"}}[r.IntN(5)]
		s := newService(fmt.Sprint("s", i), ips)
		for k := range r.IntN(4) {
			s.Spec.Ports = append(s.Spec.Ports, []corev1.ServicePort{tcp("http", 80), udp("dns", 53), tcp("web", 80), tcp("alt", 8080)}[k])
		}
		if r.IntN(3) == 0 {
			policy := corev1.ServiceInternalTrafficPolicyLocal
			s.Spec.InternalTrafficPolicy = &policy
		}
		if r.IntN(3) == 0 {
			s.CreationTimestamp = metav1.NewTime(time.Unix(int64(1+r.IntN(3)), 0))
		}
		if r.IntN(6) == 0 {
			s.Labels = map[string]string{ProxyNameLabel: "other"}
		}
		services = append(services, s)
	}
	condition := func() *bool {
		switch r.IntN(3) {
		case 0:
			return nil
		case 1:
			return new(bool)
		}
		b := true
		return &b
	}
	var all []*discoveryv1.EndpointSlice
	for i := range r.IntN(8) {
		s := newSlice(fmt.Sprint("slice", i), fmt.Sprint("s", r.IntN(6)), http(8080))
		if r.IntN(8) == 0 {
			s.Namespace = "other"
		}
		family, prefix := discoveryv1.AddressTypeIPv4, "198.18.0."
		if r.IntN(3) == 0 {
			family, prefix = discoveryv1.AddressTypeIPv6, "2001:db8:1::"
		}
		s.AddressType, s.Ports = family, nil
		for range r.IntN(3) {
			s.Ports = append(s.Ports, []discoveryv1.EndpointPort{http(8080), http(9090), slicePortOf("dns", "UDP", 53), slicePortOf("dns", "TCP", 53), {Name: nil}}[r.IntN(5)])
		}
		for range r.IntN(5) {
			e := discoveryv1.Endpoint{Addresses: []string{prefix + fmt.Sprint(1+r.IntN(4))}}
			if r.IntN(10) == 0 && family == discoveryv1.AddressTypeIPv4 {
				e.Addresses[0] = []string{"198.19.0.1", "198.19.0.2", "127.0.0.1"}[r.IntN(3)]
			}
			e.Conditions = discoveryv1.EndpointConditions{Ready: condition(), Serving: condition(), Terminating: condition()}
			if r.IntN(2) == 0 {
				e = on([]string{"n1", "n2"}[r.IntN(2)], e)
			}
			if r.IntN(4) > 0 {
				e = hinted(e, nil, []string{[]string{"z1", "z2"}[r.IntN(2)]})
			}
			s.Endpoints = append(s.Endpoints, e)
		}
		all = append(all, s)
	}
	return services, all
}

// ambiguous says whether an endpoint is listed twice and the rules leave open which one counts: more than one of them is not
// terminating, or more than one is.
func ambiguous(all []*discoveryv1.EndpointSlice) bool {
	type key struct{ service, addr string }
	running, terminating := make(map[key]int), make(map[key]int)
	for _, s := range all {
		for _, e := range s.Endpoints {
			k := key{s.Labels[discoveryv1.LabelServiceName], e.Addresses[0]}
			if t := e.Conditions.Terminating; t != nil && *t {
				terminating[k]++
			} else {
				running[k]++
			}
		}
	}
	for _, n := range terminating { // be there one that is not: it may be in a slice without the port
		if n > 1 {
			return true
		}
	}
	for _, n := range running {
		if n > 1 {
			return true
		}
	}
	return false
}

func checkBuild(t *testing.T, seed uint64) (compared bool) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	cfg := &Config{NodeName: "n1", Zone: "z1"}
	var prev *Snapshot
	for range 3 {
		services, all := randomObjects(r)
		s, _ := Build(cfg, prev, services, all)
		got := contents(s)
		if !ambiguous(all) {
			compared = true
			if want := plainBuild(cfg, services, all); !maps.Equal(got, want) {
				t.Fatalf("seed %d: got %v, want %v", seed, got, want)
			}
		}
		r.Shuffle(len(services), func(i, k int) { services[i], services[k] = services[k], services[i] })
		r.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
		if again, _ := Build(cfg, s, services, all); again != s {
			t.Fatalf("seed %d: the order of the objects matters: %v, was %v", seed, contents(again), got)
		}
		if fresh, _ := Build(cfg, nil, services, all); !maps.Equal(contents(fresh), got) {
			t.Fatalf("seed %d: the Snapshot before matters: %v without it, %v with it", seed, contents(fresh), got)
		}
		checkSnapshot(t, s)
		if prev != nil && s != prev && s.Generation != prev.Generation+1 {
			t.Fatalf("seed %d: generation %d after %d", seed, s.Generation, prev.Generation)
		}
		prev = s
	}
	return compared
}

// checkSnapshot asserts what holds of any Snapshot.
func checkSnapshot(t *testing.T, s *Snapshot) {
	t.Helper()
	if s.Generation == 0 || !slices.IsSortedFunc(s.ports, comparePort) || !slices.IsSortedFunc(s.addresses, compareAddr) {
		t.Fatalf("generation %d, ports %v, addresses %v", s.Generation, s.ports, s.addresses)
	}
	count := 0
	for _, p := range s.ports {
		count += len(p.Frontends)
		for i := range p.Frontends {
			f := &p.Frontends[i]
			if s.Lookup(f) != p || s.Serves(f.Addr) == (p.Action == Pass) || f.Proto != p.Proto || f.Port == 0 {
				t.Fatalf("frontend %v of %v", f, p)
			}
		}
		if len(p.Frontends) == 0 || (p.Action == Forward) != (len(p.Backends) > 0) || len(p.hashes) != len(p.Backends) || p.turn == nil {
			t.Fatalf("%v: %+v", p, *p)
		}
		for _, list := range [][]Backend{p.Backends, p.serving} {
			for i, b := range list {
				if i > 0 && compareBackend(list[i-1], b) >= 0 {
					t.Fatalf("%v: not sorted: %v", p, list)
				}
				a := netip.AddrFrom16(b.Addr).Unmap()
				if b.Port == 0 || a.Is6() != p.IPv6 || unsafeAddr(a) != "" || s.Serves(b.Addr) || !p.Serving(&b) {
					t.Fatalf("%v: backend %v", p, b)
				}
			}
		}
	}
	frontends, addresses := 0, 0
	for i := range s.shards {
		for _, at := range s.shards[i] {
			if at.served {
				addresses++
			}
			frontends += len(at.ports)
		}
	}
	if count != frontends || addresses != len(s.addresses) {
		t.Fatalf("%d frontends of ports, %d indexed; %d addresses, %d indexed", count, frontends, len(s.addresses), addresses)
	}
}

func TestBuildAgainstTwin(t *testing.T) {
	compared, seeds := 0, 3000
	if raceEnabled {
		seeds = 300
	}
	for seed := range uint64(seeds) {
		if checkBuild(t, seed) {
			compared++
		}
	}
	if compared < seeds/3 {
		t.Errorf("only %d of %d histories could be compared", compared, seeds)
	}
}

func FuzzBuild(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { checkBuild(t, seed) })
}

// cluster makes n Services of 4 endpoints each.
func cluster(n int) ([]*corev1.Service, []*discoveryv1.EndpointSlice) {
	services, all := make([]*corev1.Service, n), make([]*discoveryv1.EndpointSlice, n)
	for i := range n {
		services[i] = newService(fmt.Sprintf("s%05d", i), []string{fmt.Sprintf("198.19.%d.%d", i/256, i%256)}, tcp("http", 80))
		var endpoints []discoveryv1.Endpoint
		for k := range 4 {
			endpoints = append(endpoints, pod(fmt.Sprintf("198.18.%d.%d", (i*4+k)/256%256, (i*4+k)%256), "rs"))
		}
		all[i] = newSlice(fmt.Sprintf("s%05d-x", i), services[i].Name, http(8080), endpoints...)
	}
	return services, all
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		services, all := cluster(n)
		b.Run(fmt.Sprintf("services=%d/cold", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Build(&Config{}, nil, services, all)
			}
		})
		b.Run(fmt.Sprintf("services=%d/one_endpoint_changed", n), func(b *testing.B) {
			b.ReportAllocs()
			prev, _ := Build(&Config{}, nil, services, all)
			for b.Loop() {
				ready := all[n/2].Endpoints[0].Conditions.Ready
				*ready = !*ready
				prev, _ = Build(&Config{}, prev, services, all)
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	services, all := cluster(10000)
	s, _ := Build(&Config{}, nil, services, all)
	frontends := make([]Frontend, 1024)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range frontends {
		frontends[i] = s.ServicePorts()[r.IntN(10000)].Frontends[0]
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if s.Lookup(&frontends[i&1023]) == nil {
			b.Fatal("not found")
		}
		i++
	}
}

// TestManyEndpoints: a Service of 100 full slices.
func TestManyEndpoints(t *testing.T) {
	var all []*discoveryv1.EndpointSlice
	for i := range 100 {
		endpoints := make([]discoveryv1.Endpoint, 1000)
		for k := range endpoints {
			endpoints[k].Addresses = []string{fmt.Sprintf("2001:db8:1::%x:%x", i, k+1)}
		}
		all = append(all, newSlice(fmt.Sprint("web-", i), "web", http(8080), endpoints...))
	}
	s, report := Build(&Config{}, nil, []*corev1.Service{newService("web", []string{"2001:db8:2::1"}, tcp("http", 80))}, all)
	checkProblem(t, report, "")
	checkSnapshot(t, s)
	if p := s.ServicePorts()[0]; len(p.Backends) != 100000 || p.Select([16]byte{1}, 1, &p.Frontends[0], 0) == nil {
		t.Errorf("%d backends", len(p.Backends))
	}
}
