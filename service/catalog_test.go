package service

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// histories is how many random histories of events TestHistories goes through.
func histories(t *testing.T) int {
	if text := os.Getenv("SLUICE_EVENT_HISTORIES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if raceEnabled {
		return 300
	}
	return 3000
}

// TestHistories: whatever way the objects came to be what they are, by events, relists, deletions that were missed, in
// pieces of any size, the Snapshot is the one of the twin, which sees only what there is. And what a Snapshot says of its
// difference from the one before is the difference.
func TestHistories(t *testing.T) {
	compared, steps, n := 0, 0, histories(t)
	for seed := range uint64(n) {
		c, s := history(t, seed)
		compared, steps = compared+c, steps+s
	}
	if compared < steps/3 {
		t.Errorf("only %d of %d steps could be compared", compared, steps)
	}
	t.Logf("histories=%d steps=%d compared=%d differences=0", n, steps, compared)
}

func history(t *testing.T, seed uint64) (compared, steps int) {
	r := rand.New(rand.NewPCG(seed, 77))
	cfg := Config{NodeName: "n1", Zone: "z1"}
	c := NewCatalog(cfg)
	services, all := make(map[string]*corev1.Service), make(map[string]*discoveryv1.EndpointSlice)
	var last *Snapshot
	for range 2 + r.IntN(6) {
		for range 1 + r.IntN(4) {
			someServices, someSlices := randomObjects(r)
			switch r.IntN(10) {
			case 0: // a relist of Services, after events that were missed
				clear(services)
				for _, s := range someServices {
					services[s.Name] = s
				}
				c.ReplaceServices(slices.Collect(maps.Values(services)))
			case 1:
				clear(all)
				for _, s := range someSlices {
					all[s.Namespace+s.Name] = s
				}
				c.ReplaceSlices(slices.Collect(maps.Values(all)))
			case 2:
				for _, s := range someServices {
					delete(services, s.Name)
					c.DeleteService(s.Namespace, s.Name)
				}
			case 3:
				for _, s := range someSlices {
					delete(all, s.Namespace+s.Name)
					c.DeleteSlice(s.Namespace, s.Name)
				}
			case 4, 5, 6:
				for _, s := range someServices {
					services[s.Name] = s
					c.SetService(s)
				}
			default:
				for _, s := range someSlices {
					all[s.Namespace+s.Name] = s
					c.SetSlice(s)
				}
			}
		}
		change := c.Commit()
		s := change.Snapshot
		checkSnapshot(t, s)
		checkDelta(t, seed, last, s)
		if change.Changed == (s == last) {
			t.Fatalf("seed %d: changed %v, generation %d", seed, change.Changed, s.Generation)
		}
		steps++
		endpointSlices := slices.Collect(maps.Values(all))
		if !ambiguous(endpointSlices) {
			compared++
			if got, want := contents(s), plainBuild(&cfg, slices.Collect(maps.Values(services)), endpointSlices); !maps.Equal(got, want) {
				t.Fatalf("seed %d: got %v, want %v", seed, got, want)
			}
		}
		fresh, report := Build(&cfg, nil, slices.Collect(maps.Values(services)), endpointSlices)
		if got := contents(s); !maps.Equal(got, contents(fresh)) {
			t.Fatalf("seed %d: got %v, afresh %v", seed, got, contents(fresh))
		}
		if !sameProblems(change.Report, report) {
			t.Fatalf("seed %d: report %v, afresh %v", seed, change.Report, report)
		}
		last = s
	}
	return compared, steps
}

// sameProblems compares without regard to the order of those that depends on the order of what was told.
func sameProblems(a, b *Report) bool {
	texts := func(r *Report) []string {
		var list []string
		for i := range r.Problems {
			list = append(list, r.Problems[i].Error())
		}
		slices.Sort(list)
		return list
	}
	return a.Refused == b.Refused && a.Omitted == b.Omitted && slices.Equal(texts(a), texts(b))
}

// checkDelta compares what s says of its difference from prev with what it is.
func checkDelta(t *testing.T, seed uint64, prev, s *Snapshot) {
	t.Helper()
	if prev == nil || prev == s {
		return
	}
	delta, ok := s.After(prev)
	if !ok {
		t.Fatalf("seed %d: generation %d does not know the one before", seed, s.Generation)
	}
	backends := func(s *Snapshot) map[[16]byte]bool {
		set := make(map[[16]byte]bool)
		for _, p := range s.ServicePorts() {
			for _, b := range p.ServingBackends() {
				set[b.Addr] = true
			}
		}
		return set
	}
	addresses := func(s *Snapshot) map[[16]byte]bool {
		set := make(map[[16]byte]bool)
		for _, a := range s.Addresses() {
			set[a] = true
		}
		return set
	}
	check := func(what string, before, after map[[16]byte]bool, come, gone [][16]byte) {
		t.Helper()
		for _, a := range gone {
			if !before[a] {
				t.Fatalf("seed %d: %s %v is gone and was not there", seed, what, a)
			}
			delete(before, a)
		}
		for _, a := range come {
			if before[a] {
				t.Fatalf("seed %d: %s %v came and was there", seed, what, a)
			}
			before[a] = true
		}
		if !maps.Equal(before, after) {
			t.Fatalf("seed %d: %s: %v, want %v", seed, what, before, after)
		}
	}
	check("backend", backends(prev), backends(s), delta.NewBackends, delta.GoneBackends)
	check("address", addresses(prev), addresses(s), delta.NewAddresses, delta.GoneAddresses)
}

func FuzzHistory(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { history(t, seed) })
}

// big makes n Services of two ports and 10 endpoints each.
func big(n int) ([]*corev1.Service, []*discoveryv1.EndpointSlice) {
	services, all := make([]*corev1.Service, n), make([]*discoveryv1.EndpointSlice, n)
	for i := range n {
		services[i] = newService(fmt.Sprintf("s%05d", i), []string{fmt.Sprintf("2001:db8:2::%x:%x", i>>8, i&255)}, tcp("http", 80), tcp("https", 443))
		var endpoints []discoveryv1.Endpoint
		for k := range 10 {
			endpoints = append(endpoints, on(fmt.Sprint("n", (i+k)%100), pod(fmt.Sprintf("2001:db8:1::%x:%x", i, k+1), "rs")))
		}
		all[i] = newSlice(fmt.Sprintf("s%05d-x", i), services[i].Name, http(8080), endpoints...)
		all[i].Ports = append(all[i].Ports, slicePortOf("https", corev1.ProtocolTCP, 8443))
	}
	return services, all
}

// BenchmarkCatalog: a cold start, one endpoint changed, and one Service added and removed, in clusters of 10 endpoints a Service.
func BenchmarkCatalog(b *testing.B) {
	for _, n := range []int{1000, 10000, 40000} {
		services, all := big(n)
		told := func() *Catalog {
			c := NewCatalog(Config{NodeName: "n1"})
			c.ReplaceServices(services)
			c.ReplaceSlices(all)
			return c
		}
		b.Run(fmt.Sprintf("services=%d/cold", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				told().Commit()
			}
		})
		b.Run(fmt.Sprintf("services=%d/memory", n), func(b *testing.B) {
			heap := func() uint64 {
				runtime.GC()
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return m.HeapAlloc
			}
			for b.Loop() {
				before := heap()
				c := NewCatalog(Config{NodeName: "n1"})
				moreServices, moreSlices := big(n) // their strings are kept, as those that come off a wire are
				c.ReplaceServices(moreServices)
				c.ReplaceSlices(moreSlices)
				c.Commit()
				moreServices, moreSlices = nil, nil
				b.ReportMetric(float64(heap()-before)/(1<<20), "MiB")
				runtime.KeepAlive(c)
			}
		})
		b.Run(fmt.Sprintf("services=%d/endpoint", n), func(b *testing.B) {
			b.ReportAllocs()
			c := told()
			c.Commit()
			for b.Loop() {
				ready := all[n/2].Endpoints[0].Conditions.Ready
				*ready = !*ready
				c.SetSlice(all[n/2])
				c.Commit()
			}
		})
		b.Run(fmt.Sprintf("services=%d/service", n), func(b *testing.B) {
			b.ReportAllocs()
			c := told()
			c.Commit()
			s := newService("z", []string{"2001:db8:2::ffff:1"}, tcp("http", 80))
			here := false
			for b.Loop() {
				if here = !here; here {
					c.SetService(s)
				} else {
					c.DeleteService(s.Namespace, s.Name)
				}
				c.Commit()
			}
		})
	}
}
