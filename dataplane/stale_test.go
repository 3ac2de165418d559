package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-net/sluice/internal/netlab"
)

// TestStaleUDP: a client that only sends keeps its flow alive by itself. In every
// way that a backend can go, not one more packet reaches it: the flow is bound to the
// snapshot that it was last checked against, and a newer one is looked at with the
// next packet, whatever events were lost.
func TestStaleUDP(t *testing.T) { eachKind(t, testStaleUDP) }

func testStaleUDP(t *testing.T, kind PortKind) {
	b := newTestbed(t, netlab.ClusterOptions{Backends: 3}, of(kind))
	var servers []*netlab.EchoServer
	var at []netip.AddrPort
	for _, p := range b.Backends {
		a := p.AddrPort(netlab.IPv4, 8080)
		servers = append(servers, p.EchoUDP(a))
		at = append(at, a)
	}
	service := func(number int, backends ...int) testService {
		s := testService{name: "s", number: number, port: 80}
		for _, n := range backends {
			s.backends = append(s.backends, at[n])
		}
		return s
	}
	const one, other = 20, 21 // ClusterIPs
	b.publish(service(one, 0))

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var stop atomic.Bool
	var senders sync.WaitGroup
	for _, number := range []int{one, other} {
		c, err := b.Clients[0].Dial(ctx, "udp", netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, number), 80))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		senders.Go(func() {
			for !stop.Load() {
				c.Write([]byte("one way")) // refused now and then, which is no matter
				time.Sleep(time.Millisecond)
			}
		})
	}
	defer senders.Wait()
	defer stop.Store(true)

	for _, step := range []struct {
		name     string
		services []testService
		served   []int // backends that packets must reach, and no others
	}{
		{"as it begins", []testService{service(one, 0)}, []int{0}},
		{"all backends gone", []testService{service(one)}, nil},
		{"backends again", []testService{service(one, 1)}, []int{1}},
		{"other backends", []testService{service(one, 2)}, []int{2}},
		{"service deleted", nil, nil},
		{"service recreated", []testService{service(one, 0)}, []int{0}},
		{"backend's address now another service's", []testService{service(one, 1), {name: "t", number: other, port: 80, backends: at[:1]}}, []int{0, 1}},
		{"address now another service's", []testService{{name: "t", number: one, port: 80, backends: at[2:]}}, []int{2}},
	} {
		b.publish(step.services...)
		time.Sleep(100 * time.Millisecond) // what is in the rings, and on the wire
		before := make([]uint64, len(servers))
		for i, s := range servers {
			before[i] = s.Requests()
		}
		time.Sleep(200 * time.Millisecond)
		for i, s := range servers {
			got := s.Requests() - before[i]
			want := false
			for _, n := range step.served {
				want = want || n == i
			}
			if (got > 0) != want {
				t.Errorf("%s: backend %d got %d packets, want some: %v", step.name, i, got, want)
			}
		}
	}
}

// TestResetOfGoneBackends: on request, a connection whose backend no longer serves
// is reset with its next segment; without it, it goes on.
func TestResetOfGoneBackends(t *testing.T) { eachKind(t, testResetOfGoneBackends) }

func testResetOfGoneBackends(t *testing.T, kind PortKind) {
	for _, reset := range []bool{false, true} {
		b := newTestbed(t, netlab.ClusterOptions{}, of(kind, func(c *Config) { c.ResetGoneBackends = reset }))
		at := b.Backends[0].AddrPort(netlab.IPv4, 8080)
		b.Backends[0].EchoTCP(at)
		b.publish(testService{name: "s", number: 22, port: 80, backends: []netip.AddrPort{at}})
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		c, err := b.Clients[0].Dial(ctx, "tcp", netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 22), 80))
		if err != nil {
			t.Fatal(err)
		}
		s := &stream{Conn: c}
		if err := s.ping(); err != nil {
			t.Fatal(err)
		}
		b.publish(testService{name: "s", number: 22, port: 80})
		err = s.ping()
		if gone := errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE); gone != reset || err != nil && !gone {
			t.Errorf("reset %v: the next bytes on the connection gave %v", reset, err)
		}
		c.Close()
		cancel()
	}
}

// TestClientOverCap: a client that has all the flows it may have gets no more, and
// another is not hurt.
func TestClientOverCap(t *testing.T) {
	b := newTestbed(t, netlab.ClusterOptions{Clients: 2}, func(c *Config) { c.MaxFlowsPerClient = 10 })
	_, backends := b.echo(8080)
	b.publish(testService{name: "s", number: 23, port: 80, backends: backends})
	vip := netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 23), 80)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for i := range 10 {
		if _, err := b.Clients[0].Exchange(ctx, "udp", vip, 10); err != nil {
			t.Fatalf("flow %d: %v", i, err)
		}
	}
	short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	defer stop()
	if _, err := b.Clients[0].Exchange(short, "udp", vip, 10); err == nil {
		t.Error("an eleventh flow was made")
	}
	if _, err := b.Clients[1].Exchange(ctx, "udp", vip, 10); err != nil {
		t.Errorf("another client: %v", err)
	}
	if s := b.settle(); s.Reason(ClientOverCap) == 0 {
		t.Error("nothing was counted")
	}
}
