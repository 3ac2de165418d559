//go:build linux

package bench

import (
	"fmt"
	"sync/atomic"
	"time"
)

// bed is a peer at work on its site, with what traffic needs there.
type bed struct {
	peer Peer
	*Site
	instance Instance
	objs     *trafficObjects
	scenario string
}

// target is where traffic of Service n goes.
func (b *bed) udpTarget(n int) (t traffic) {
	t.to = target(b.peer, b.Site, n, b.World.UDP, udpBackendPort)
	return t
}

// trial is one run of datagrams, and what it measured.
type trial struct {
	Tally
	Offered  float64 // a second
	Rate     float64 // received a second, over the middle of the run
	CPU      CPUTime // of the whole machine, over the same time
	Window   time.Duration
	InWindow uint64
	SendCost time.Duration // thread time a datagram sent
	SinkCost time.Duration // thread time a datagram received; 0 for the sink in the kernel
}

// sender and sink are what a trial needs of either kind.
type sender struct {
	run  func(limit uint64, stop *atomic.Bool) error
	sent func() uint64
	cost func() time.Duration
}

type counter interface {
	count() uint64
	tally(sent uint64) (Tally, error)
}

// drained is how long nothing must come before a run is over.
const drained = 30 * time.Millisecond

// measure runs a trial: a quarter of d to get going, then d measured, and what is on
// its way then still counts. With a limit it ends when so many are sent.
func measure(send sender, k counter, d time.Duration, limit uint64) (t trial, err error) {
	var stop atomic.Bool
	ended := make(chan error, 1)
	go func() { ended <- send.run(limit, &stop) }()
	over := false
	wait := func(d time.Duration) {
		if over {
			return
		}
		select {
		case err = <-ended:
			over = true
		case <-time.After(d):
		}
	}
	if limit == 0 {
		wait(d / 4)
	}
	start, received, offered := time.Now(), k.count(), send.sent()
	cpu, cerr := cpuTime()
	wait(d)
	t.Window, t.InWindow = time.Since(start), k.count()-received
	sent := send.sent() - offered
	after, cerr2 := cpuTime()
	stop.Store(true)
	if !over {
		err = <-ended
	}
	for _, e := range []error{err, cerr, cerr2} {
		if e != nil {
			return t, e
		}
	}
	for last, quiet := k.count(), time.Now(); time.Since(quiet) < drained; time.Sleep(drained / 10) {
		if n := k.count(); n != last {
			last, quiet = n, time.Now()
		}
	}
	if t.Tally, err = k.tally(send.sent()); err != nil {
		return t, err
	}
	t.CPU = after.sub(cpu)
	t.Rate = float64(t.InWindow) / t.Window.Seconds()
	t.Offered = float64(sent) / t.Window.Seconds()
	if t.Sent > 0 {
		t.SendCost = send.cost() / time.Duration(t.Sent)
	}
	if s, ok := k.(*udpSink); ok && t.Received > 0 {
		t.SinkCost = s.cost / time.Duration(t.Received)
	}
	return t, nil
}

// sockets is a trial between ordinary sockets.
func (b *bed) sockets(t traffic, d time.Duration, limit uint64) (trial, error) {
	t.run = newRun()
	k, err := newUDPSink(b.Site, t)
	if err != nil {
		return trial{}, err
	}
	defer k.close()
	return b.fromSockets(t, k, d, limit)
}

func (b *bed) fromSockets(t traffic, k counter, d time.Duration, limit uint64) (trial, error) {
	u, err := newUDPSender(b.Site, t)
	if err != nil {
		return trial{}, err
	}
	defer u.close()
	return measure(sender{u.run, u.sent.Load, func() time.Duration { return u.cost }}, k, d, limit)
}

// socketsToTap is a trial from ordinary sockets to the sink in the kernel.
func (b *bed) socketsToTap(t traffic, d time.Duration, limit uint64) (trial, error) {
	t.run = newRun()
	tap, err := newTap(b)
	if err != nil {
		return trial{}, err
	}
	defer tap.close()
	if err := tap.arm(t, 0); err != nil {
		return trial{}, err
	}
	return b.fromSockets(t, tap, d, limit)
}

// injected is a trial of injected frames.
func (b *bed) injected(t traffic, firstFlow uint32, d time.Duration, limit uint64) (trial, error) {
	tap, err := newTap(b)
	if err != nil {
		return trial{}, err
	}
	defer tap.close()
	t.run = newRun()
	if err := tap.arm(t, firstFlow); err != nil {
		return trial{}, err
	}
	// Frames that are redirected into a veth need NAPI on its other end, and a
	// kernel path has that only with GRO.
	if err := b.receiveByNAPI(true); err != nil {
		return trial{}, err
	}
	defer b.receiveByNAPI(false)
	i := &injector{t: tap}
	return measure(sender{
		func(limit uint64, stop *atomic.Bool) error { return i.run(t, firstFlow, limit, stop) },
		i.sent, func() time.Duration { return i.cost },
	}, tap, d, limit)
}

// receiveByNAPI switches GRO on the node's end of the client's wire.
func (b *bed) receiveByNAPI(on bool) error {
	return b.Run(func() error {
		b.Node.Offload(b.Client.HostDevice, "gro", on)
		return nil
	})
}

// String is for logs.
func (t trial) String() string {
	return fmt.Sprintf("%.0f/s received, %.0f/s offered, %v", t.Rate, t.Offered, t.Tally)
}
