package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
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
