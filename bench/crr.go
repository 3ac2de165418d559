//go:build linux

package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// requestSize is that of a request and of its answer, which repeats it.
const requestSize = 64

// sources is how many of its addresses the client uses, so that connections which wait
// for their port to be free again never hold all ports.
const sources = 256

// crrServer answers requests on the TCP port of every backend, on one thread.
type crrServer struct {
	epoll     int
	listeners map[int32]bool
	stop      atomic.Bool
	done      sync.WaitGroup
	err       error
}

func newCRRServer(s *Site) (_ *crrServer, err error) {
	k := &crrServer{listeners: map[int32]bool{}}
	if k.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	for _, p := range s.Sinks {
		err := p.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			k.listeners[int32(fd)] = true
			return errors.Join(
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.Bind(fd, &unix.SockaddrInet4{Port: tcpBackendPort, Addr: p.IP4.As4()}),
				unix.Listen(fd, 4096),
				unix.EpollCtl(k.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}))
		})
		if err != nil {
			k.close()
			return nil, fmt.Errorf("listening in %s: %w", p.HostDevice, err)
		}
	}
	k.done.Go(k.run)
	return k, nil
}

func (k *crrServer) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	open := map[int]bool{}
	defer func() {
		for fd := range open {
			unix.Close(fd)
		}
	}()
	events := make([]unix.EpollEvent, 256)
	buf := make([]byte, 2*requestSize)
	for !k.stop.Load() {
		n, err := unix.EpollWait(k.epoll, events, 20)
		if err != nil && err != unix.EINTR {
			k.err = err
			return
		}
		for _, e := range events[:max(n, 0)] {
			if !k.listeners[e.Fd] {
				fd := int(e.Fd)
				// A request is one segment and comes whole.
				got, err := unix.Read(fd, buf)
				if err == unix.EAGAIN {
					continue
				}
				if err == nil && got > 0 {
					if _, err = unix.Write(fd, buf[:got]); err == nil {
						continue
					}
				}
				unix.Close(fd)
				delete(open, fd)
				continue
			}
			for {
				fd, _, err := unix.Accept4(int(e.Fd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
				if err != nil {
					break
				}
				open[fd] = true
				unix.EpollCtl(k.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
			}
		}
	}
}

func (k *crrServer) close() {
	k.stop.Store(true)
	k.done.Wait()
	for fd := range k.listeners {
		unix.Close(int(fd))
	}
	unix.Close(k.epoll)
}

// crrResult is what a run of connections came to.
type crrResult struct {
	Rate     float64 // connections completed a second
	Done     uint64  // in the window
	Failed   uint64  // refused, reset
	Wrong    uint64  // answered with something else than was sent
	CPU      CPUTime
	Duration time.Duration
}

// crr opens connections to targets in turn, at most open at a time: connect, send a
// request, get it back, close.
func (b *bed) crr(targets []netip.AddrPort, open int, d time.Duration) (r crrResult, err error) {
	server, err := newCRRServer(b.Site)
	if err != nil {
		return r, err
	}
	defer func() {
		server.close()
		err = errors.Join(err, server.err)
	}()
	// All sockets are made on a thread of the client's namespace.
	err = b.Client.Do(func() error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		c, err := newCRRClient(targets, open)
		if err != nil {
			return err
		}
		defer c.close()
		if err := c.runFor(d / 4); err != nil {
			return err
		}
		before, err := cpuTime()
		if err != nil {
			return err
		}
		done, start := c.completed, time.Now()
		if err := c.runFor(d); err != nil {
			return err
		}
		r.Duration, r.Done = time.Since(start), c.completed-done
		after, err := cpuTime()
		if err != nil {
			return err
		}
		r.CPU, r.Failed, r.Wrong = after.sub(before), c.failed, c.wrong
		r.Rate = float64(r.Done) / r.Duration.Seconds()
		return nil
	})
	return r, err
}

type crrClient struct {
	epoll                    int
	targets                  []unix.SockaddrInet4
	next                     uint32
	conns                    map[int32]*crrConn
	completed, failed, wrong uint64
	buf, want                []byte
}

type crrConn struct {
	number uint32
	asked  bool
}

func newCRRClient(targets []netip.AddrPort, open int) (*crrClient, error) {
	c := &crrClient{conns: map[int32]*crrConn{}, buf: make([]byte, 2*requestSize), want: make([]byte, requestSize)}
	for _, t := range targets {
		c.targets = append(c.targets, unix.SockaddrInet4{Port: int(t.Port()), Addr: t.Addr().As4()})
	}
	fill(c.want)
	var err error
	if c.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	for range open {
		if err := c.open(&crrConn{}); err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

// open starts another connection in the place of one that is over.
func (c *crrClient) open(conn *crrConn) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	conn.number, conn.asked = c.next, false
	c.next++
	src := unix.SockaddrInet4{Addr: clientAddr(conn.number % sources).As4()}
	to := &c.targets[conn.number%uint32(len(c.targets))]
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.Bind(fd, &src))
	if err == nil {
		if err = unix.Connect(fd, to); err == unix.EINPROGRESS {
			err = nil
		}
	}
	if err == nil {
		err = unix.EpollCtl(c.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET, Fd: int32(fd)})
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("connecting: %w", err)
	}
	c.conns[int32(fd)] = conn
	return nil
}

func (c *crrClient) runFor(d time.Duration) error {
	events := make([]unix.EpollEvent, 256)
	for end := time.Now().Add(d); time.Now().Before(end); {
		n, err := unix.EpollWait(c.epoll, events, 20)
		if err != nil && err != unix.EINTR {
			return err
		}
		for _, e := range events[:max(n, 0)] {
			conn := c.conns[e.Fd]
			if conn == nil {
				continue
			}
			over := c.step(int(e.Fd), conn, e.Events)
			if !over {
				continue
			}
			unix.Close(int(e.Fd))
			delete(c.conns, e.Fd)
			if err := c.open(conn); err != nil {
				return err
			}
		}
	}
	return nil
}

// step moves a connection on and reports whether it is over.
func (c *crrClient) step(fd int, conn *crrConn, events uint32) bool {
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		c.failed++
		return true
	}
	s := stamp{seq: conn.number}
	if !conn.asked {
		if events&unix.EPOLLOUT == 0 {
			return false
		}
		s.write(c.want)
		if _, err := unix.Write(fd, c.want); err != nil {
			c.failed++
			return true
		}
		conn.asked = true
		return false
	}
	if events&unix.EPOLLIN == 0 {
		return false
	}
	n, err := unix.Read(fd, c.buf)
	if err == unix.EAGAIN {
		return false
	}
	s.write(c.want)
	switch {
	case err != nil || n == 0:
		c.failed++
	case string(c.buf[:n]) != string(c.want):
		c.wrong++
	default:
		c.completed++
	}
	return true
}

func (c *crrClient) close() {
	for fd := range c.conns {
		unix.Close(int(fd))
	}
	unix.Close(c.epoll)
}
