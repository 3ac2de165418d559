//go:build linux

package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

// generatorConfig is struct generator of bpf/traffic.c.
type generatorConfig struct {
	Interval, Next                          uint64
	Run, Seq, Limit, Flows, FirstFlow, Bits uint32
	Client                                  uint32
	Frontend                                [4]byte
	FirstPort                               uint16
	FrontendPort                            [2]byte
	Length                                  uint16
	RestSum                                 uint16
	Dest, Source                            [6]byte
	_                                       [4]byte
}

// sinkConfig is struct sink.
type sinkConfig struct {
	Run, Flows, FirstFlow, Bits, Client                                   uint32
	FirstPort                                                             uint16
	Port                                                                  [2]byte
	Length, _                                                             uint32
	Received, Bytes, Duplicated, Reordered, Corrupted, WrongSource, Stray uint64
}

// What the maps hold.
const (
	maxSeq      = 1 << 23
	maxTapFlows = 1 << 20
	liveRepeat  = 1 << 30
)

// tap is the generator and the sink in the kernel, of one site.
type tap struct {
	site *Site
	objs *trafficObjects
	undo []func() error
}

// traffic loads the programs of the suite, once for a bed: a profile must find their names.
func (b *bed) loadTraffic() (*trafficObjects, error) {
	if b.objs == nil {
		objs := new(trafficObjects)
		if err := loadTrafficObjects(objs, nil); err != nil {
			return nil, fmt.Errorf("loading generator and sink: %w", err)
		}
		b.objs = objs
		b.stand.Cleanup(func() { objs.Close() })
	}
	return b.objs, nil
}

// newTap puts the sink on every backend.
func newTap(b *bed) (_ *tap, err error) {
	t := &tap{site: b.Site}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if t.objs, err = b.loadTraffic(); err != nil {
		return nil, err
	}
	for _, p := range b.Sinks {
		if err := t.attach(p.Namespace, netlab.PodDevice, t.objs.Sink); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// attach puts a program on the tc ingress of a device.
func (t *tap) attach(n *netlab.Namespace, dev string, p *ebpf.Program) error {
	return n.Do(func() error {
		d, err := n.Handle().LinkByName(dev)
		if err != nil {
			return err
		}
		l, err := link.AttachTCX(link.TCXOptions{Interface: d.Attrs().Index, Program: p, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
		if err != nil {
			return fmt.Errorf("attaching to %s of %s: %w", dev, n.Name(), err)
		}
		t.undo = append(t.undo, l.Close)
		return nil
	})
}

// cutOff drops everything that comes from the client at the node's door, whatever
// peer is behind: what is left is the generator's own cost.
func (t *tap) cutOff() error { return t.attach(t.site.Node, t.site.Client.HostDevice, t.objs.Early) }

// arm makes the sink count a run, and only that.
func (t *tap) arm(tr traffic, firstFlow uint32) error {
	if tr.flows > maxTapFlows {
		return fmt.Errorf("%d flows: the sink knows at most %d", tr.flows, maxTapFlows)
	}
	zero := uint32(0)
	if err := errors.Join(clearMap[uint64](t.objs.Seen), clearMap[uint32](t.objs.Latest)); err != nil {
		return err
	}
	c := sinkConfig{
		Run: tr.run, Flows: uint32(tr.flows), FirstFlow: firstFlow, Bits: flowBits,
		Client: binary.BigEndian.Uint32(clientBase[:]), FirstPort: firstPort, Length: uint32(tr.frame - 14),
	}
	binary.BigEndian.PutUint16(c.Port[:], udpBackendPort)
	return t.objs.Counted.Put(zero, c)
}

// clearMap writes zeroes through the map's memory.
func clearMap[T uint32 | uint64](m *ebpf.Map) error {
	mem, err := m.Memory()
	if err != nil {
		return err
	}
	zero := make([]byte, 1<<16)
	for off := int64(0); off < int64(mem.Size()); off += int64(len(zero)) {
		if _, err := mem.WriteAt(zero[:min(len(zero), int(mem.Size())-int(off))], off); err != nil {
			return err
		}
	}
	return nil
}

// counted reads the sink.
func (t *tap) counted() (sinkConfig, error) {
	var c sinkConfig
	err := t.objs.Counted.Lookup(uint32(0), &c)
	return c, err
}

// count is how many have come.
func (t *tap) count() uint64 {
	c, err := t.counted()
	if err != nil {
		return 0
	}
	return c.Received + c.Corrupted
}

// tally settles the account of the run.
func (t *tap) tally(sent uint64) (Tally, error) {
	c, err := t.counted()
	if err != nil {
		return Tally{}, err
	}
	tally := Tally{Received: c.Received, Duplicated: c.Duplicated, Reordered: c.Reordered, Corrupted: c.Corrupted, WrongSource: c.WrongSource}
	tally.close(sent)
	return tally, nil
}

func (t *tap) close() {
	for i := len(t.undo) - 1; i >= 0; i-- {
		t.undo[i]()
	}
	t.undo = nil
}

// injector sends XDP frames out of the client's device, as fast as one core goes or at a
// rate.
type injector struct {
	t    *tap
	cost time.Duration
}

// sent is how many frames went out so far.
func (i *injector) sent() uint64 {
	var g generatorConfig
	if i.t.objs.Generator.Lookup(uint32(0), &g) != nil {
		return 0
	}
	return uint64(g.Seq)
}

// run injects until stop, or limit frames. With fresh, each frame is the first of a flow
// of its own, from firstFlow on.
func (i *injector) run(tr traffic, firstFlow uint32, limit uint64, stop *atomic.Bool) error {
	s := i.t.site
	if limit == 0 || limit > maxSeq {
		limit = maxSeq
	}
	frame := make([]byte, tr.frame)
	fill(frame[headerSize:])
	g := generatorConfig{
		Run: tr.run, Limit: uint32(limit), Flows: uint32(tr.flows), FirstFlow: firstFlow, Bits: flowBits,
		Client: binary.BigEndian.Uint32(clientBase[:]), Frontend: tr.to.Addr().As4(),
		FirstPort: firstPort, Length: uint16(tr.frame - 14), RestSum: sumOf(frame[headerSize+stampSize:]),
		Dest: [6]byte(s.Node.MAC(s.Client.HostDevice)), Source: [6]byte(s.Client.MAC(netlab.PodDevice)),
	}
	binary.BigEndian.PutUint16(g.FrontendPort[:], tr.to.Port())
	if tr.rate > 0 {
		var now unix.Timespec
		unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
		g.Interval, g.Next = uint64(1e9/tr.rate), uint64(now.Nano())
	}
	if err := i.t.objs.Generator.Put(uint32(0), g); err != nil {
		return err
	}
	// struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
	md := make([]byte, 24)
	binary.NativeEndian.PutUint32(md[4:], uint32(len(frame)))
	binary.NativeEndian.PutUint32(md[12:], uint32(s.Client.Index(netlab.PodDevice)))
	return s.Client.Do(func() error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		before := threadTime()
		defer func() { i.cost = threadTime() - before }()
		over := make(chan struct{})
		var watch sync.WaitGroup
		defer watch.Wait()
		defer close(over)
		tid := unix.Gettid()
		watch.Go(func() { i.interrupt(tid, limit, stop, over) })
		// One call for all: each has a beginning and an end that cost milliseconds.
		err := runLive(i.t.objs.Generate.FD(), frame, md, liveRepeat)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("injecting: %w", err)
		}
		return nil
	})
}

// interrupt ends the call of a thread when it is time. The runtime takes the signal for one of
// its own, which are sent at any time, and does nothing.
func (i *injector) interrupt(tid int, limit uint64, stop *atomic.Bool, over chan struct{}) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-over:
			return
		case <-tick.C:
			if stop.Load() || i.sent() >= limit {
				unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
			}
		}
	}
}

// sumOf is the ones' complement sum of bytes as the machine reads them, an odd one padded.
func sumOf(b []byte) uint16 {
	var sum uint64
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(binary.NativeEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint64(b[0])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
