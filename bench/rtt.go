//go:build linux

package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

// Threads of this file wait in raw system calls, so that a packet wakes the thread and
// nobody else; they never wait longer than this, for the runtime cannot stop them there.
const pollTimeout = 20 * time.Millisecond

// echo answers datagrams of one run on the UDP port of every backend, a thread for each,
// and counts all others.
type echo struct {
	run   uint32
	fds   []int
	stop  atomic.Bool
	done  sync.WaitGroup
	other atomic.Uint64
}

// newEcho answers datagrams of the run, or of any if it is 0.
func newEcho(s *Site, run uint32) (*echo, error) {
	e := &echo{run: run}
	for _, p := range s.Sinks {
		err := p.Do(func() error {
			fd, err := udpSocket(netip.AddrPortFrom(p.IP4, udpBackendPort))
			if err != nil {
				return err
			}
			e.fds = append(e.fds, fd)
			return errors.Join(setTimeout(fd), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer/2))
		})
		if err != nil {
			e.close()
			return nil, fmt.Errorf("opening the echo of %s: %w", p.HostDevice, err)
		}
	}
	for _, fd := range e.fds {
		e.done.Go(func() { e.serve(fd) })
	}
	return e, nil
}

func setTimeout(fd int) error {
	tv := unix.NsecToTimeval(pollTimeout.Nanoseconds())
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

func (e *echo) serve(fd int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	d := newDatagram(2048)
	for !e.stop.Load() {
		n, err := d.receive(fd)
		if err != 0 {
			continue // nobody asked for a while, or an ICMP error
		}
		if n >= stampSize && e.run != 0 && d.run() != e.run {
			e.other.Add(1)
			continue
		}
		d.answer(fd, n)
	}
}

func (e *echo) close() {
	e.stop.Store(true)
	e.done.Wait()
	for _, fd := range e.fds {
		unix.Close(fd)
	}
}

// pings is a row of round trips.
type pings struct {
	count int
	// fresh makes each the first packet of a new flow.
	fresh bool
	// targets are taken in turn.
	targets []netip.AddrPort
	// load is background traffic, none if its rate is 0.
	load traffic
}

// pingResult is what came of them.
type pingResult struct {
	Histogram   *hdrhistogram.Histogram // ns
	Lost        int
	Corrupted   int
	WrongSource int
	Load        float64 // background datagrams received a second
}

const pingSize = 22 // a frame of 64 bytes

// ping measures round trips, one at a time.
func (b *bed) ping(p pings) (r pingResult, err error) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // no thread is to be stopped meanwhile
	run := newRun()
	e, err := newEcho(b.Site, run)
	if err != nil {
		return r, err
	}
	defer e.close()
	if p.load.rate > 0 {
		var stop func() error
		if stop, err = b.background(p.load); err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, stop()) }()
		time.Sleep(50 * time.Millisecond)
	}
	r.Histogram = hdrhistogram.New(1000, time.Second.Nanoseconds(), 3)
	started, before := time.Now(), e.other.Load()
	err = b.Client.Do(func() error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		return r.row(p, run)
	})
	r.Load = float64(e.other.Load()-before) / time.Since(started).Seconds()
	return r, err
}

// background sends a load until its end is called.
func (b *bed) background(t traffic) (func() error, error) {
	t.run = newRun()
	u, err := newUDPSender(b.Site, t)
	if err != nil {
		return nil, err
	}
	var stop atomic.Bool
	ended := make(chan error, 1)
	go func() { ended <- u.run(0, &stop) }()
	return func() error {
		stop.Store(true)
		err := <-ended
		u.close()
		return err
	}, nil
}

// row sends and receives, on a thread of the client's namespace.
func (r *pingResult) row(p pings, run uint32) error {
	// A port that no earlier row had, so that fresh flows are fresh.
	fd, err := udpSocket(netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(1024+run%15000)))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := setTimeout(fd); err != nil {
		return err
	}
	m := newMessages(1, pingSize, true)
	fill(m.data[0])
	in := newDatagram(2048)
	const warm = 20
	for i := range p.count + warm {
		to := p.targets[i%len(p.targets)]
		source := uint32(0)
		if p.fresh {
			source = uint32(i)
		}
		s := stamp{run: run, flow: source, seq: uint32(i)}
		s.write(m.data[0])
		m.to(0, to)
		m.from(0, clientAddr(source).As4())
		start := time.Now()
		if _, err := m.send(fd, 1); err != nil {
			return fmt.Errorf("sending: %w", err)
		}
		for {
			n, e := in.receive(fd)
			took := time.Since(start)
			if e != 0 {
				if took > 10*pollTimeout {
					r.Lost++
					break
				}
				continue
			}
			got, ok := readStamp(in.data[:n], m.data[0])
			if !ok {
				// The stamp of the one before differs only in numbers.
				r.Corrupted++
				break
			}
			if got.seq != s.seq {
				continue // late
			}
			if from := in.from(); from != to {
				r.WrongSource++
			}
			if i >= warm {
				r.Histogram.RecordValue(took.Nanoseconds())
			}
			break
		}
	}
	return nil
}
