package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-net/sluice/internal/netlab"
	"github.com/sluice-net/sluice/service"
)

// What ports cost a node that has no traffic.

// BenchmarkIdle is the processor time that 50 steered ports take without traffic, in
// percent of one processor over ten seconds.
func BenchmarkIdle(b *testing.B) {
	for _, mode := range []WorkerMode{WorkerAdaptive, WorkerInterrupt} {
		b.Run(mode.String(), func(b *testing.B) {
			node := newPodNode(b, 50)
			node.open(b, mode)
			time.Sleep(2 * time.Second) // what opening has begun is over
			for b.Loop() {
				before, start := processTime(b), time.Now()
				time.Sleep(10 * time.Second)
				b.ReportMetric(100*float64(processTime(b)-before)/float64(time.Since(start)), "%cpu")
			}
		})
	}
}

// BenchmarkAttach is the time that 250 steered ports take to be served, and the memory:
// what is locked, which is the return port's, and what the process has on its heap.
func BenchmarkAttach(b *testing.B) {
	const pods = 250
	node := newPodNode(b, pods)
	for b.Loop() {
		before := heap()
		start := time.Now()
		d, stop := node.open(b, WorkerAdaptive)
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms")
		b.ReportMetric(float64(d.umem.Frames()*d.umem.FrameSize())/1024/pods, "locked-KiB/port")
		b.ReportMetric(float64(heap()-before)/1024/pods, "heap-KiB/port")
		stop()
	}
}

// podNode is a node with pods' devices and no dataplane yet.
type podNode struct {
	*netlab.Namespace
	ports []PortConfig
	pods  int
}

func newPodNode(b *testing.B, pods int) *podNode {
	b.Helper()
	netlab.RequireRoot(b)
	lab := netlab.New(b)
	n := &podNode{Namespace: lab.Namespace("node"), ports: []PortConfig{{Name: "pod*", Kind: KindSteered}}, pods: pods}
	peers := lab.Namespace("pods")
	for i := range pods {
		lab.Veth(n.Namespace, fmt.Sprintf("pod%d", i), peers, fmt.Sprintf("eth%d", i), netlab.VethOptions{})
	}
	return n
}

// open opens and runs a dataplane on the node, which stop ends.
func (n *podNode) open(b *testing.B, mode WorkerMode) (d *Dataplane, stop func()) {
	b.Helper()
	if err := n.Do(func() (err error) {
		d, err = Open(Config{Ports: n.ports, WorkerMode: mode}, slog.New(slog.DiscardHandler))
		return err
	}); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	for deadline := time.Now().Add(time.Minute); len(d.Stats().Ports)-1 < n.pods; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("%d of %d ports are served", len(d.Stats().Ports)-1, n.pods)
		}
	}
	over := false
	stop = func() {
		if over {
			return
		}
		over = true
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
		if err := d.Close(); err != nil {
			b.Error(err)
		}
	}
	b.Cleanup(stop)
	return d, stop
}

// heap is what is in use on the heap.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// processTime is the processor time that the process has had.
func processTime(tb testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPassedBulk is TCP bulk, one stream, between two pods of a node that does not
// go to a Service: what a port costs all that is only passed. The kinds take turns, so
// that a machine with moods has them for all; each is compared with no port at all.
func BenchmarkPassedBulk(b *testing.B) { bulk(b, false) }

// BenchmarkServedBulk is the same through a ClusterIP, beside the kernel's own DNAT.
func BenchmarkServedBulk(b *testing.B) { bulk(b, true) }

// bulkFor is how long a stream is measured, bulkTurns how often each kind has its turn.
const (
	bulkFor   = 1500 * time.Millisecond
	bulkTurns = 5
)

func bulk(b *testing.B, served bool) {
	netlab.RequireRoot(b)
	const none, steered, native = "none", "steered", "native"
	kinds := map[string]PortKind{steered: KindSteered, native: KindNative}
	for b.Loop() {
		rates := map[string][]float64{}
		for range bulkTurns {
			for _, name := range []string{none, steered, native} {
				rates[name] = append(rates[name], bulkOnce(b, name, kinds[name], served))
			}
		}
		for name, of := range rates {
			var ratios []float64
			for i := range of {
				ratios = append(ratios, of[i]/rates[none][i]) // of one turn
			}
			b.ReportMetric(median(of), name+"-Gbit/s")
			b.ReportMetric(100*median(ratios), name+"-%")
		}
	}
}

// bulkOnce makes a node, with ports of this kind or none, and gives a stream's rate in
// Gbit/s.
func bulkOnce(b *testing.B, name string, kind PortKind, served bool) float64 {
	b.Helper()
	lab := netlab.New(b)
	c := lab.Cluster(netlab.ClusterOptions{Backends: 1})
	to := c.Backends[0].AddrPort(netlab.IPv4, 8080)
	l, err := c.Backends[0].Listen(netip.AddrPortFrom(netip.IPv6Unspecified(), 8080))
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	var received atomic.Uint64
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		buf := make([]byte, 1<<18)
		for {
			n, err := conn.Read(buf)
			received.Add(uint64(n))
			if err != nil {
				return
			}
		}
	}()
	vip := netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 50), 80)
	if name == "none" && served {
		c.Node.DNAT(vip, unix.IPPROTO_TCP, []netip.AddrPort{to}, netlab.PickFirst)
	}
	if name != "none" {
		n := &podNode{Namespace: c.Node, pods: 2, ports: []PortConfig{{Name: c.Clients[0].HostDevice, Kind: kind}, {Name: c.Backends[0].HostDevice, Kind: kind}}}
		d, stop := n.open(b, WorkerAdaptive)
		defer stop()
		if served {
			svc, eps := testService{name: "bulk", number: 50, port: 80, backends: []netip.AddrPort{to}}.objects()
			s, _ := service.Build(&service.Config{}, nil, []*corev1.Service{svc}, eps)
			if err := d.Publish(s); err != nil {
				b.Fatal(err)
			}
		}
	}
	if served {
		to = vip
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := c.Clients[0].Dial(ctx, "tcp", to)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	go func() {
		buf := make([]byte, 1<<18)
		for {
			if _, err := conn.Write(buf); err != nil {
				return
			}
		}
	}()
	time.Sleep(200 * time.Millisecond)
	before, start := received.Load(), time.Now()
	time.Sleep(bulkFor)
	return float64(received.Load()-before) * 8 / float64(time.Since(start))
}

func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}
