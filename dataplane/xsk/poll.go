//go:build linux

package xsk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Poller waits for several sockets at once, and can be woken from elsewhere. One goroutine owns
// it; only Wake may be called by others.
//
// To poll a socket in copy mode also sends what is in its tx ring (net/xdp/xsk.c: xsk_poll). The
// kernel does not report a device that was deleted: neither an event nor an error comes.
type Poller struct {
	event   int           // an eventfd; constant, so that Wake may read it from anywhere
	fds     []unix.PollFd // the first is the eventfd
	sockets []*Socket     // by index in fds, the first nil
	timeout unix.Timespec // here, so that it is not allocated a call
}

// NewPoller makes a Poller without sockets.
func NewPoller() (*Poller, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("poller: eventfd: %w", err)
	}
	return &Poller{
		event:   fd,
		fds:     []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}},
		sockets: []*Socket{nil},
	}, nil
}

// Add has the socket's received frames end a Wait.
func (p *Poller) Add(s *Socket) {
	p.fds = append(p.fds, unix.PollFd{Fd: int32(s.FD()), Events: unix.POLLIN})
	p.sockets = append(p.sockets, s)
}

// Remove forgets a socket. It must be called before the socket is closed.
func (p *Poller) Remove(s *Socket) {
	if i := slices.Index(p.sockets, s); i > 0 {
		p.fds = slices.Delete(p.fds, i, i+1)
		p.sockets = slices.Delete(p.sockets, i, i+1)
	}
}

// WaitWritable says whether room in the socket's tx ring ends a Wait too: more than half of it.
func (p *Poller) WaitWritable(s *Socket, on bool) {
	if i := slices.Index(p.sockets, s); i > 0 {
		p.fds[i].Events = unix.POLLIN
		if on {
			p.fds[i].Events |= unix.POLLOUT
		}
	}
}

// Ready reports whether the last Wait found frames received on the socket, and room to send if
// WaitWritable asked for it.
func (p *Poller) Ready(s *Socket) (readable, writable bool) {
	i := slices.Index(p.sockets, s)
	if i <= 0 {
		return false, false
	}
	return p.fds[i].Revents&unix.POLLIN != 0, p.fds[i].Revents&unix.POLLOUT != 0
}

// Wait returns when a socket has something, at a Wake, at a signal, or after the timeout, which
// a negative one never reaches. It returns the number of sockets that have something.
func (p *Poller) Wait(timeout time.Duration) (int, error) {
	var ts *unix.Timespec
	if timeout >= 0 {
		p.timeout = unix.NsecToTimespec(int64(timeout))
		ts = &p.timeout
	}
	n, err := unix.Ppoll(p.fds, ts, nil)
	if err != nil {
		for i := range p.fds {
			p.fds[i].Revents = 0
		}
		if errors.Is(err, unix.EINTR) {
			return 0, nil
		}
		return 0, fmt.Errorf("poller: ppoll: %w", err)
	}
	if p.fds[0].Revents != 0 {
		var buf [8]byte
		_, _ = unix.Read(p.event, buf[:]) // resets it; non-blocking
		n--
	}
	return n, nil
}

// Wake ends the Wait that is under way, or the next. Any goroutine may call it, until Close.
func (p *Poller) Wake() error {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// EAGAIN: 2^64-2 wakes are pending, which is a wake.
	if _, err := unix.Write(p.event, one[:]); err != nil && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("poller: wake: %w", err)
	}
	return nil
}

// Close closes the eventfd. Sockets stay open.
func (p *Poller) Close() error {
	if len(p.fds) == 0 {
		return nil
	}
	p.fds, p.sockets = nil, nil
	if err := unix.Close(p.event); err != nil {
		return fmt.Errorf("poller: close: %w", err)
	}
	return nil
}
