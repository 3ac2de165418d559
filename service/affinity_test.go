package service

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// sticky makes a ServicePort with the backends and an affinity of the timeout, after its former self, if any.
func sticky(c *Catalog, timeout time.Duration, backends ...string) *ServicePort {
	web := newService("web", []string{"198.19.0.1"}, tcp("http", 80))
	if timeout != 0 {
		web.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		seconds := int32(timeout / time.Second)
		web.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	var endpoints []discoveryv1.Endpoint
	for _, b := range backends {
		endpoints = append(endpoints, pod(b, "rs"))
	}
	c.ReplaceServices([]*corev1.Service{web})
	c.ReplaceSlices([]*discoveryv1.EndpointSlice{newSlice("web-1", "web", http(8080), endpoints...)})
	return c.Commit().Snapshot.ServicePorts()[0]
}

const second = uint64(time.Second)

// TestAffinityClock: it slides with each connection, and at the very instant of the timeout it is over.
func TestAffinityClock(t *testing.T) {
	p := sticky(NewCatalog(Config{}), 10*time.Second, "198.18.0.1", "198.18.0.2", "198.18.0.3")
	a := NewAffinities(100)
	client := clientAddr(1)
	at := func(now uint64, fresh int) int {
		b := a.Choose(p, &client, &p.Backends[fresh], now)
		for i := range p.Backends {
			if b == &p.Backends[i] {
				return i
			}
		}
		t.Fatalf("%v is none of the backends", b)
		return 0
	}
	for _, step := range []struct {
		now         uint64
		fresh, want int
	}{
		{100 * second, 1, 1},   // the first
		{105 * second, 0, 1},   // sticks
		{114 * second, 0, 1},   // the clock began again at 105
		{124*second - 1, 2, 1}, // and at 114: the last instant
		{134*second - 1, 2, 2}, // ten seconds after that to the nanosecond: over
		{134 * second, 0, 2},
		{1000 * second, 0, 0},
	} {
		if got := at(step.now, step.fresh); got != step.want {
			t.Fatalf("at %v: backend %d, want %d", time.Duration(step.now), got, step.want)
		}
	}
}

// TestAffinityIsOfClientAndPort: other clients and other ports choose for themselves, and frontends of one port together.
func TestAffinityIsOfClientAndPort(t *testing.T) {
	c := NewCatalog(Config{})
	p := sticky(c, time.Hour, "198.18.0.1", "198.18.0.2")
	q := sticky(NewCatalog(Config{}), time.Hour, "198.18.0.1", "198.18.0.2")
	a := NewAffinities(100)
	one, two := clientAddr(1), clientAddr(2)
	a.Choose(p, &one, &p.Backends[0], 1)
	if b := a.Choose(p, &two, &p.Backends[1], 1); b != &p.Backends[1] {
		t.Error("another client got the first one's backend")
	}
	if b := a.Choose(q, &one, &q.Backends[1], 1); b != &q.Backends[1] {
		t.Error("another ServicePort got the first one's backend")
	}
	if b := a.Choose(p, &one, &p.Backends[1], 2); b != &p.Backends[0] {
		t.Error("forgotten")
	}
}

// TestAffinityEdges: a backend that leaves, and comes back; a Service that is switched off and on; one that is changed otherwise.
func TestAffinityEdges(t *testing.T) {
	c := NewCatalog(Config{})
	p := sticky(c, time.Hour, "198.18.0.1", "198.18.0.2", "198.18.0.3")
	a := NewAffinities(100)
	client := clientAddr(1)
	choose := func(p *ServicePort, fresh int) string {
		return a.Choose(p, &client, &p.Backends[fresh], second).String()
	}
	if b := choose(p, 1); b != "198.18.0.2:8080" {
		t.Fatal(b)
	}
	p = sticky(c, time.Minute, "198.18.0.0", "198.18.0.2", "198.18.0.3") // its place in the list is another, and its timeout
	if b := choose(p, 0); b != "198.18.0.2:8080" {
		t.Errorf("after a change beside it: %s", b)
	}
	p = sticky(c, time.Hour, "198.18.0.1", "198.18.0.3")
	if b := choose(p, 1); b != "198.18.0.3:8080" {
		t.Errorf("its backend is gone: %s", b)
	}
	p = sticky(c, time.Hour, "198.18.0.1", "198.18.0.2", "198.18.0.3")
	if b := choose(p, 1); b != "198.18.0.3:8080" {
		t.Errorf("its first backend is back: %s", b)
	}
	sticky(c, 0, "198.18.0.1", "198.18.0.2", "198.18.0.3")
	p = sticky(c, time.Hour, "198.18.0.1", "198.18.0.2", "198.18.0.3")
	if b := choose(p, 0); b != "198.18.0.1:8080" {
		t.Errorf("switched to None and back: %s", b)
	}
	if b := choose(p, 1); b != "198.18.0.1:8080" {
		t.Errorf("and sticky again: %s", b)
	}
	c.DeleteService("demo", "web")
	c.Commit()
	p = sticky(c, time.Hour, "198.18.0.1", "198.18.0.2", "198.18.0.3")
	if b := choose(p, 2); b != "198.18.0.3:8080" {
		t.Errorf("deleted and made again: %s", b)
	}
}

// TestAffinityAgainstTwin compares with a map that forgets nothing, while there is room.
func TestAffinityAgainstTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	a := NewAffinities(4096)
	type entry struct {
		backend Backend
		used    uint64
	}
	type key struct {
		client [16]byte
		port   *ServicePort
	}
	twin := make(map[key]entry)
	ports := []*ServicePort{
		sticky(NewCatalog(Config{}), 10*time.Second, "198.18.0.1", "198.18.0.2"),
		sticky(NewCatalog(Config{}), 60*time.Second, "198.18.0.1", "198.18.0.2", "198.18.0.3"),
	}
	now := second
	for range 100_000 {
		now += r.Uint64N(second / 5)
		p, client := ports[r.IntN(2)], clientAddr(r.Uint32N(100))
		fresh := &p.Backends[r.IntN(len(p.Backends))]
		k := key{client, p}
		want := *fresh
		if e, ok := twin[k]; ok && now-e.used < uint64(p.Affinity) {
			want = e.backend
		}
		twin[k] = entry{want, now}
		if got := a.Choose(p, &client, fresh, now); *got != want {
			t.Fatalf("%v, want %v", got, want)
		}
	}
	if a.Evicted() != 0 {
		t.Errorf("%d evicted", a.Evicted())
	}
}

// TestAffinityIsFull: memory is bounded, the latest clients are remembered.
func TestAffinityIsFull(t *testing.T) {
	p := sticky(NewCatalog(Config{}), time.Hour, "198.18.0.1", "198.18.0.2")
	a := NewAffinities(64)
	for i := range uint32(10000) {
		client := clientAddr(i)
		a.Choose(p, &client, &p.Backends[0], second+uint64(i))
		if b := a.Choose(p, &client, &p.Backends[1], second+uint64(i)); b != &p.Backends[0] {
			t.Fatalf("client %d was forgotten at once", i)
		}
	}
	if n := a.Evicted(); n < 10000-64 || n > 10000 {
		t.Errorf("%d evicted", n)
	}
}

// TestAffinityRace: workers that ask at once get one answer.
func TestAffinityRace(t *testing.T) {
	p := sticky(NewCatalog(Config{}), time.Hour, "198.18.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.4")
	a := NewAffinities(1 << 14)
	const clients = 2000
	var got [4][clients]*Backend
	var workers sync.WaitGroup
	for w := range got {
		workers.Go(func() {
			for i := range got[w] {
				client := clientAddr(uint32(i))
				got[w][i] = a.Choose(p, &client, &p.Backends[w], second)
			}
		})
	}
	workers.Wait()
	for i := range clients {
		if got[0][i] != got[1][i] || got[1][i] != got[2][i] || got[2][i] != got[3][i] {
			t.Fatalf("client %d got %v %v %v %v", i, got[0][i], got[1][i], got[2][i], got[3][i])
		}
	}
}

func TestAffinityRemembers(t *testing.T) {
	p := sticky(NewCatalog(Config{}), 10*time.Second, "198.18.0.1", "198.18.0.2")
	a := NewAffinities(64)
	client := clientAddr(1)
	a.Remember(p, &client, &p.Backends[1], 5*second)
	a.Remember(p, &client, &p.Backends[0], 6*second)
	if b := a.Choose(p, &client, &p.Backends[0], 14*second); b != &p.Backends[1] {
		t.Error("not as remembered")
	}
}

func BenchmarkAffinity(b *testing.B) {
	p := sticky(NewCatalog(Config{}), time.Hour, "198.18.0.1", "198.18.0.2", "198.18.0.3")
	a := NewAffinities(1 << 16)
	b.ReportAllocs()
	i := uint32(0)
	for b.Loop() {
		client := clientAddr(i & 0xfff)
		a.Choose(p, &client, &p.Backends[i%3], second)
		i++
	}
}

func TestAffinityDoesNotAllocate(t *testing.T) {
	p := sticky(NewCatalog(Config{}), time.Hour, "198.18.0.1", "198.18.0.2", "198.18.0.3")
	a := NewAffinities(64)
	i := uint32(0)
	client := clientAddr(0) // allocates under the race detector
	if n := testing.AllocsPerRun(1000, func() {
		client[14], client[15] = byte(i>>8), byte(i)
		a.Choose(p, &client, &p.Backends[0], second)
		i++
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
