package service

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// portOf builds a ServicePort of n backends, 198.18.0.1:8080 onwards.
func portOf(n int, selection Selection) *ServicePort {
	var endpoints []discoveryv1.Endpoint
	for i := range n {
		endpoints = append(endpoints, pod(fmt.Sprintf("198.18.%d.%d", (i+1)/256, (i+1)%256), "rs"))
	}
	services := []*corev1.Service{newService("web", []string{"198.19.0.1"}, tcp("http", 80))}
	s, _ := Build(&Config{Selection: selection}, nil, services, []*discoveryv1.EndpointSlice{newSlice("web-1", "web", http(8080), endpoints...)})
	return s.ServicePorts()[0]
}

func clientAddr(i uint32) [16]byte {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 198<<24|18<<16|128<<8+i))).As16()
}

// TestConsistentIsFixed pins the hash: another version of the program, or another node, must choose the same.
func TestConsistentIsFixed(t *testing.T) {
	p := portOf(7, Consistent)
	v6 := *p
	v6.Backends = []Backend{backendOf("[2001:db8:1::1]:8080"), backendOf("[2001:db8:1::2]:8080"), backendOf("[2001:db8:1::3]:8080")}
	v6.hashBackends()
	for _, tc := range []struct {
		port   *ServicePort
		client string
		f      *Frontend
		want   string
	}{
		{p, "198.18.1.1:40000", frontend("198.19.0.1", 80, TCP), "198.18.0.1:8080"},
		{p, "198.18.1.1:40001", frontend("198.19.0.1", 80, TCP), "198.18.0.2:8080"},
		{p, "198.18.1.1:40000", frontend("198.19.0.1", 80, UDP), "198.18.0.5:8080"},
		{p, "198.18.1.1:40000", frontend("198.19.0.1", 81, TCP), "198.18.0.4:8080"},
		{p, "198.18.1.1:40000", frontend("198.19.0.2", 80, TCP), "198.18.0.1:8080"},
		{p, "198.18.1.2:40000", frontend("198.19.0.1", 80, TCP), "198.18.0.2:8080"},
		{&v6, "[2001:db8:1::9]:40000", frontend("2001:db8:2::1", 80, TCP), "[2001:db8:1::2]:8080"},
		{&v6, "[2001:db8:1::9]:40001", frontend("2001:db8:2::1", 80, TCP), "[2001:db8:1::2]:8080"},
		{&v6, "[2001:db8:1::a]:40000", frontend("2001:db8:2::1", 80, TCP), "[2001:db8:1::1]:8080"},
	} {
		client := netip.MustParseAddrPort(tc.client)
		if got := tc.port.Select(client.Addr().As16(), client.Port(), tc.f, 0).String(); got != tc.want {
			t.Errorf("%s to %v: %s, want %s", tc.client, tc.f, got, tc.want)
		}
	}
	a, f := addr16("198.18.1.1"), frontend("198.19.0.1", 80, TCP)
	b := backendOf("198.18.0.1:8080")
	for name, h := range map[string][2]uint64{
		"flow":    {hashFlow(&a, 40000, f), 0x218aabf38d95eb83},
		"client":  {hashClient(&a), 0x94c7fb53648c749a},
		"backend": {hashBackend(&b), 0xd04ed41677bdc0c0},
	} {
		if h[0] != h[1] {
			t.Errorf("hash of %s: %#016x, want %#016x", name, h[0], h[1])
		}
	}
}

// chiSquare says how many standard deviations the counts are from even.
func chiSquare(counts []int) float64 {
	sum := 0
	for _, c := range counts {
		sum += c
	}
	expected, x := float64(sum)/float64(len(counts)), 0.0
	for _, c := range counts {
		x += (float64(c) - expected) * (float64(c) - expected) / expected
	}
	free := float64(len(counts) - 1)
	return (x - free) / math.Sqrt(2*free)
}

// TestSelectIsEven: chi-square over clients and ports as they really come, one after the other.
func TestSelectIsEven(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	flows := map[string]func(i int) (client [16]byte, port uint16, f *Frontend){
		"ports of one client": func(i int) ([16]byte, uint16, *Frontend) {
			return clientAddr(uint32(i / 60000)), uint16(1024 + i%60000), frontend("198.19.0.1", 80, TCP)
		},
		"clients with one port": func(i int) ([16]byte, uint16, *Frontend) {
			return clientAddr(uint32(i)), 40000, frontend("198.19.0.1", 80, TCP)
		},
		"frontends": func(i int) ([16]byte, uint16, *Frontend) {
			f := frontend("198.19.0.1", uint16(i), TCP)
			f.Addr[14] = byte(i >> 16)
			return clientAddr(1), 40000, f
		},
		"random IPv6 clients": func(i int) ([16]byte, uint16, *Frontend) {
			c := addr16("2001:db8:1::")
			binary.BigEndian.PutUint64(c[8:], r.Uint64())
			return c, uint16(r.Uint32()), frontend("2001:db8:2::1", 80, UDP)
		},
	}
	count := 60000
	if raceEnabled {
		count = 6000
	}
	for _, n := range []int{2, 3, 4, 10, 100} {
		p := portOf(n, Consistent)
		second := portOf(n, Consistent) // without the backend that is chosen first
		for name, flow := range flows {
			t.Run(fmt.Sprintf("backends=%d/%s", n, name), func(t *testing.T) {
				counts, pairs := make([]int, n), make([]int, n*n)
				for i := range count {
					client, port, f := flow(i)
					first := slices.Index(p.Backends, *p.Select(client, port, f, 0))
					counts[first]++
					if n <= 10 {
						second.hashes = append(append(second.hashes[:0], p.hashes[:first]...), p.hashes[first+1:]...)
						second.Backends = append(append(second.Backends[:0], p.Backends[:first]...), p.Backends[first+1:]...)
						next := slices.Index(p.Backends, *second.Select(client, port, f, 0))
						pairs[first*n+next]++
					}
				}
				// The input is fixed, so this passes always or never.
				if x := chiSquare(counts); x > 4 {
					t.Errorf("%.1f standard deviations from even: %v", x, counts)
				}
				if n > 2 && n <= 10 { // a backend that leaves must spread over all others alike
					pairs = slices.DeleteFunc(pairs, func(c int) bool { return c == 0 })
					if x := chiSquare(pairs); x > 4 || len(pairs) != n*(n-1) {
						t.Errorf("%.1f standard deviations from even without the first choice: %v", x, pairs)
					}
				}
			})
		}
	}
	for _, selection := range []Selection{Random, RoundRobin} {
		p := portOf(7, selection)
		counts := make([]int, 7)
		for range 70000 {
			counts[slices.Index(p.Backends, *p.Select([16]byte{}, 0, &p.Frontends[0], r.Uint64()))]++
		}
		if x := chiSquare(counts); x > 4 {
			t.Errorf("%v: %.1f standard deviations from even: %v", selection, x, counts)
		}
	}
}

// TestConsistentDisruption: when a backend leaves, its flows move and no others; when it comes back, exactly those return.
func TestConsistentDisruption(t *testing.T) {
	for _, n := range []int{2, 5, 50} {
		all := portOf(n, Consistent)
		for _, gone := range []int{0, n / 2, n - 1} {
			less := &ServicePort{Backends: slices.Delete(slices.Clone(all.Backends), gone, gone+1)}
			less.hashBackends()
			moved := 0
			for i := range 20000 {
				client, port := clientAddr(uint32(i%500)), uint16(1024+i)
				before, after := *all.Select(client, port, &all.Frontends[0], 0), *less.Select(client, port, &all.Frontends[0], 0)
				switch {
				case before == all.Backends[gone]:
					moved++
				case before != after:
					t.Fatalf("%d backends without number %d: a flow moved from %v, which stayed, to %v", n, gone, before, after)
				}
			}
			if want := 20000 / n; moved < want*8/10 || moved > want*12/10 {
				t.Errorf("%d backends without number %d: %d flows moved, about %d expected", n, gone, moved, want)
			}
		}
	}
}

func TestSelectEdges(t *testing.T) {
	none := portOf(0, Consistent)
	if b := none.Select([16]byte{}, 1, &none.Frontends[0], 1); b != nil {
		t.Errorf("no backends: %v", b)
	}
	for _, selection := range []Selection{Consistent, Random, RoundRobin} {
		one := portOf(1, selection)
		if b := one.Select([16]byte{}, 1, &one.Frontends[0], math.MaxUint64); b != &one.Backends[0] {
			t.Errorf("%v of one: %v", selection, b)
		}
	}
	p := portOf(3, Random)
	for rnd, want := range map[uint64]int{0: 0, math.MaxUint64 / 3: 0, math.MaxUint64/3 + 1: 1, math.MaxUint64: 2} {
		if b := p.Select([16]byte{}, 1, &p.Frontends[0], rnd); b != &p.Backends[want] {
			t.Errorf("random number %#x: %v", rnd, b)
		}
	}
}

// TestRoundRobinTakesTurns: over workers, and over Snapshots in which the ServicePort has changed.
func TestRoundRobinTakesTurns(t *testing.T) {
	services := []*corev1.Service{newService("web", []string{"198.19.0.1"}, tcp("http", 80))}
	slice := newSlice("web-1", "web", http(8080), pod("198.18.0.1", "rs"), pod("198.18.0.2", "rs"), pod("198.18.0.3", "rs"))
	cfg := &Config{Selection: RoundRobin}
	s, _ := Build(cfg, nil, services, []*discoveryv1.EndpointSlice{slice})
	p := s.ServicePorts()[0]
	for i := range 7 {
		if b := p.Select([16]byte{}, 1, &p.Frontends[0], 0); b != &p.Backends[i%3] {
			t.Fatalf("turn %d: %v", i, b)
		}
	}
	*slice.Endpoints[2].Conditions.Ready = false
	s, _ = Build(cfg, s, services, []*discoveryv1.EndpointSlice{slice})
	next := s.ServicePorts()[0]
	if b := next.Select([16]byte{}, 1, &next.Frontends[0], 0); b != &next.Backends[7%2] {
		t.Errorf("turn 7, now of 2: %v", b)
	}

	var wait sync.WaitGroup
	var mu sync.Mutex
	counts := make(map[Backend]int)
	for range 4 {
		wait.Go(func() {
			for range 500 {
				b := next.Select([16]byte{}, 1, &next.Frontends[0], 0)
				mu.Lock()
				counts[*b]++
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	for b, n := range counts {
		if n != 1000 {
			t.Errorf("%v had %d of 2000 turns", b, n)
		}
	}
}

func TestSelectDoesNotAllocate(t *testing.T) {
	for _, selection := range []Selection{Consistent, Random, RoundRobin} {
		p := portOf(100, selection)
		client := clientAddr(7)
		port := uint16(0)
		if n := testing.AllocsPerRun(100, func() {
			port++
			if p.Select(client, port, &p.Frontends[0], uint64(port)<<48) == nil {
				t.Error("none")
			}
		}); n != 0 {
			t.Errorf("%v: %v allocations", selection, n)
		}
	}
}

func TestSelectionText(t *testing.T) {
	for _, want := range []Selection{Consistent, Random, RoundRobin} {
		text, _ := want.MarshalText()
		var got Selection
		if err := got.UnmarshalText(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	got := Random
	if err := got.UnmarshalText([]byte("roundrobin")); err == nil || got != Random {
		t.Errorf("roundrobin: %v, %v", got, err)
	}
}

func BenchmarkSelect(b *testing.B) {
	for _, selection := range []Selection{Consistent, Random, RoundRobin} {
		for _, n := range []int{1, 4, 100, 1000} {
			b.Run(fmt.Sprintf("%v/backends=%d", selection, n), func(b *testing.B) {
				p := portOf(n, selection)
				client, port := clientAddr(7), uint16(0)
				b.ReportAllocs()
				for b.Loop() {
					port++
					if p.Select(client, port, &p.Frontends[0], uint64(port)<<48) == nil {
						b.Fatal("none")
					}
				}
			})
		}
	}
}

func BenchmarkServing(b *testing.B) {
	for _, n := range []int{4, 1000} {
		b.Run(fmt.Sprintf("backends=%d", n), func(b *testing.B) {
			p := portOf(n, Consistent)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				if !p.Serving(&p.Backends[i%n]) {
					b.Fatal("not serving")
				}
			}
		})
	}
}
