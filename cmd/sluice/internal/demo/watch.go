package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sluice-net/sluice/internal/netlab"
	"github.com/sluice-net/sluice/nat"
)

// watcher looks at every frame of a pod's eth0. What the pod receives there has
// been through Sluice: its checksums are verified in full, and it must come
// from where the pod may expect it.
type watcher struct {
	pod      string
	capture  *netlab.Capture
	expected func(netip.Addr) bool // of the source of what arrives
	done     chan struct{}

	mu        sync.Mutex
	counts    watchCounts
	recording bool
	recorded  []sighting
	problems  []error // the first few
}

// watchCounts are sums over a watcher's frames that arrived.
type watchCounts struct {
	Arrived     int // TCP and UDP
	Partial     int // of these, left to the receiver's device to finish
	Bad         int // checksums
	WrongSource int
	Lost        int // by the capture
}

// sighting is a frame with data, and what it says.
type sighting struct {
	at     string
	frame  netlab.Frame
	packet nat.Packet
	data   int // offset of the payload
}

func (s *sighting) src() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(s.packet.Src).Unmap(), s.packet.SrcPort)
}

func (s *sighting) dst() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(s.packet.Dst).Unmap(), s.packet.DstPort)
}

// watch begins to look.
func watch(pod string, ns *netlab.Namespace, expected func(netip.Addr) bool) *watcher {
	w := &watcher{pod: pod, expected: expected, done: make(chan struct{})}
	w.capture = ns.Capture(netlab.PodDevice, netlab.CaptureOptions{Buffer: 32 << 20})
	go w.loop()
	return w
}

func (w *watcher) loop() {
	defer close(w.done)
	for {
		f, err := w.capture.Next(context.Background())
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			w.problem(fmt.Errorf("%s: capturing: %w", w.pod, err))
			return
		}
		w.see(f)
	}
}

// see takes one frame.
func (w *watcher) see(f netlab.Frame) {
	s := sighting{at: w.pod, frame: f}
	ours := s.packet.Parse(f.Data) == nat.OK
	var bad error
	if f.Direction == netlab.In {
		bad = netlab.VerifyChecksums(&f)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if bad != nil {
		w.counts.Bad++
		w.keep(fmt.Errorf("%s: frame from %s: %w", w.pod, s.src(), bad))
	}
	if !ours {
		return
	}
	if f.Direction == netlab.In {
		w.counts.Arrived++
		if f.Partial {
			w.counts.Partial++
		}
		if !w.expected(s.src().Addr()) {
			w.counts.WrongSource++
			w.keep(fmt.Errorf("%s: a frame came from %s", w.pod, s.src()))
		}
	}
	if w.recording {
		s.data = int(s.packet.L4) + 8
		if s.packet.Proto == 6 {
			s.data = int(s.packet.L4) + int(f.Data[s.packet.L4+12]>>4)*4
		}
		if s.data < int(s.packet.End) {
			w.recorded = append(w.recorded, s)
		}
	}
}

func (w *watcher) problem(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts.Lost++
	w.keep(err)
}

// keep remembers the first few problems. The caller holds mu.
func (w *watcher) keep(err error) {
	if len(w.problems) < 3 {
		w.problems = append(w.problems, err)
	}
}

// record begins or ends to keep frames with data, and gives those kept so far.
func (w *watcher) record(on bool) []sighting {
	w.mu.Lock()
	defer w.mu.Unlock()
	kept := w.recorded
	w.recording = on
	if !on {
		w.recorded = nil
	}
	return kept
}

// settle waits until what has arrived has been seen: until nothing new has been
// seen for a while.
func (w *watcher) settle() {
	last := -1
	for range 50 {
		w.mu.Lock()
		n := w.counts.Arrived
		w.mu.Unlock()
		if n == last {
			return
		}
		last = n
		time.Sleep(20 * time.Millisecond)
	}
}

// close ends the capture and gives the counts.
func (w *watcher) close() (watchCounts, []error) {
	w.settle()
	w.capture.Close()
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts.Lost += int(w.capture.Lost())
	return w.counts, w.problems
}
