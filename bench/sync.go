//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// prober asks Services over UDP whether they answer, from the client. It and its
// echo servers are not to be used while other traffic is measured.
type prober struct {
	b     *bed
	echo  *echo
	run   uint32
	fd    int
	m     *messages
	in    *datagram
	asked uint32
}

func newProber(b *bed) (*prober, error) {
	p := &prober{b: b, run: newRun(), m: newMessages(1, pingSize, true), in: newDatagram(2048), fd: -1}
	fill(p.m.data[0])
	var err error
	if p.echo, err = newEcho(b.Site, p.run); err != nil {
		return nil, err
	}
	err = b.Client.Do(func() error {
		var err error
		p.fd, err = udpSocket(netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(16500+p.run%3000)))
		return err
	})
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *prober) close() {
	p.echo.close()
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
}

// ask sends one question to Service n, always from another source, so that what the
// node remembers of an earlier one does not answer for it.
func (p *prober) ask(n int) error {
	p.asked++
	p.m.to(0, target(p.b.peer, p.b.Site, n, p.b.World.UDP, udpBackendPort))
	p.m.from(0, clientAddr(p.asked).As4())
	stamp{p.run, uint32(n), p.asked}.write(p.m.data[0])
	_, err := p.m.send(p.fd, 1)
	if errors.Is(err, unix.ENOBUFS) {
		err = nil
	}
	return err
}

// answers takes the answers that are there and gives each Service's number.
func (p *prober) answers(each func(n int, seq uint32)) {
	for {
		n, e := p.in.receiveNow(p.fd)
		if e == unix.EAGAIN {
			return
		}
		if e != 0 {
			continue
		}
		if s, ok := readStamp(p.in.data[:n], p.m.data[0]); ok && s.run == p.run {
			each(int(s.flow), s.seq)
		}
	}
}

// all asks every Service until each has answered, and returns how long after since the
// last one did; it fails with ErrNotProgrammed when ctx ends before.
func (p *prober) all(ctx context.Context, since time.Time) (took time.Duration, err error) {
	const between = 20 * time.Microsecond // two questions
	open := make(map[int]bool, p.b.World.Services)
	for n := 1; n <= p.b.World.Services; n++ {
		open[n] = true
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	take := func(n int, _ uint32) {
		if open[n] {
			delete(open, n)
			took = time.Since(since)
		}
	}
	for {
		asked := 0
		for n := range open {
			if err := p.ask(n); err != nil {
				return 0, err
			}
			p.answers(take)
			// Questions to what is not there cost the node an answer each: do not
			// keep it from its work.
			if asked++; asked%64 == 0 {
				time.Sleep(64 * between)
			}
		}
		for range 10 {
			p.answers(take)
			if len(open) == 0 {
				return took, nil
			}
			time.Sleep(200 * time.Microsecond)
		}
		if len(open) > 0 && asked > 1000 {
			time.Sleep(20 * time.Millisecond)
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("%w: %d of %d Services do not answer", ErrNotProgrammed, len(open), p.b.World.Services)
		}
	}
}

// changes measures one change: how long after change has begun the first question that
// is sent gets an answer (answering), or none any more.
func (p *prober) change(ctx context.Context, n int, change func() error, answering bool) (time.Duration, error) {
	start := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- change() }()
	last := map[uint32]time.Time{}
	var silentSince time.Time
	for {
		if err := p.ask(n); err != nil {
			return 0, err
		}
		asked := p.asked
		last[asked] = time.Now()
		deadline := time.Now().Add(time.Millisecond)
		answered := false
		for time.Now().Before(deadline) && !answered {
			p.answers(func(m int, seq uint32) {
				if m == n && seq == asked {
					answered = true
				}
			})
			time.Sleep(50 * time.Microsecond)
		}
		switch {
		case answering && answered:
			return last[asked].Sub(start), <-ended
		case !answering && answered:
			silentSince = time.Time{}
		case !answering && silentSince.IsZero():
			silentSince = last[asked]
		case !answering && time.Since(silentSince) > 20*time.Millisecond:
			return silentSince.Sub(start), <-ended
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("%w: a change of %s", ErrNotProgrammed, serviceName(n))
		}
	}
}
