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

// traffic describes a stream of datagrams.
type traffic struct {
	run   uint32
	frame int     // length of a frame from the Ethernet header on
	flows int     // different sources
	rate  float64 // datagrams a second; 0: as fast as it goes
	to    netip.AddrPort
}

func (t traffic) payload() int { return t.frame - headerSize }

var nextRun atomic.Uint32

// newRun is a number that no other run of this process has.
func newRun() uint32 { return nextRun.Add(1) | uint32(time.Now().Unix())<<16 }

const sendBatch = 32

// udpSender sends from ordinary sockets of the client.
type udpSender struct {
	traffic
	fds  []int // by port
	m    *messages
	sent atomic.Uint64
	cost time.Duration // of its thread
}

// newUDPSender opens a socket for each client port that the flows need.
func newUDPSender(s *Site, t traffic) (*udpSender, error) {
	u := &udpSender{traffic: t, m: newMessages(sendBatch, t.payload(), true)}
	for i := range u.m.data {
		fill(u.m.data[i])
		u.m.to(i, t.to)
	}
	err := s.Client.Do(func() error {
		for port := 0; port <= (t.flows-1)>>flowBits; port++ {
			fd, err := udpSocket(netip.AddrPortFrom(netip.IPv4Unspecified(), firstPort+uint16(port)))
			if err != nil {
				return err
			}
			u.fds = append(u.fds, fd)
		}
		return nil
	})
	if err != nil {
		u.close()
		return nil, fmt.Errorf("opening the sender's sockets: %w", err)
	}
	return u, nil
}

// udpSocket opens a bound, blocking UDP socket in the namespace of the thread.
func udpSocket(local netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(local.Port()), Addr: local.Addr().As4()}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (u *udpSender) close() {
	for _, fd := range u.fds {
		unix.Close(fd)
	}
}

// run sends until stop, or limit datagrams if that is not 0.
func (u *udpSender) run(limit uint64, stop *atomic.Bool) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadTime()
	defer func() { u.cost = threadTime() - before }()
	batch := sendBatch
	if u.rate > 0 { // a tenth of a millisecond's worth, so that it is a stream and no row of bursts
		batch = min(sendBatch, max(1, int(u.rate/10_000)))
	}
	seq := uint32(0)
	start := time.Now()
	for !stop.Load() && (limit == 0 || uint64(seq) < limit) {
		if u.rate > 0 {
			due := start.Add(time.Duration(float64(seq) / u.rate * 1e9))
			for wait := time.Until(due); wait > 0; wait = time.Until(due) {
				if wait > 200*time.Microsecond {
					time.Sleep(wait - 100*time.Microsecond)
				}
			}
		}
		n := batch
		if limit > 0 {
			n = min(n, int(limit-uint64(seq)))
		}
		port := int(seq%uint32(u.flows)) >> flowBits
		for i := range n {
			flow := (seq + uint32(i)) % uint32(u.flows)
			if int(flow>>flowBits) != port { // of another socket
				n = i
				break
			}
			stamp{u.traffic.run, flow, seq + uint32(i)}.write(u.m.data[i])
			u.m.from(i, clientAddr(flow).As4())
		}
		sent, err := u.m.send(u.fds[port], n)
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("sending: %w", err)
		}
		seq += uint32(sent)
		u.sent.Store(uint64(seq))
	}
	return nil
}

// udpSink receives on an ordinary socket of each backend, all on one thread.
type udpSink struct {
	traffic
	epoll    int
	fds      []int
	ledger   *ledger
	received atomic.Uint64
	cost     time.Duration
	stop     atomic.Bool
	done     sync.WaitGroup
	err      error
}

// receiveBuffer of each socket, in bytes, the kernel's overhead of a datagram included.
const receiveBuffer = 4 << 20

func newUDPSink(s *Site, t traffic) (_ *udpSink, err error) {
	k := &udpSink{traffic: t, ledger: newLedger(t.flows)}
	if k.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	for _, p := range s.Sinks {
		err := p.Do(func() error {
			fd, err := udpSocket(netip.AddrPortFrom(p.IP4, udpBackendPort))
			if err != nil {
				return err
			}
			k.fds = append(k.fds, fd)
			return errors.Join(
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer/2),
				unix.EpollCtl(k.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}))
		})
		if err != nil {
			k.close()
			return nil, fmt.Errorf("opening the sink of %s: %w", p.HostDevice, err)
		}
	}
	k.done.Go(k.run)
	return k, nil
}

func (k *udpSink) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadTime()
	defer func() { k.cost = threadTime() - before }()
	m := newMessages(64, k.payload()+1, false) // room for a byte too many
	want := make([]byte, k.payload())
	fill(want)
	events := make([]unix.EpollEvent, len(k.fds))
	for !k.stop.Load() {
		n, err := unix.EpollWait(k.epoll, events, 20)
		if err != nil && err != unix.EINTR {
			k.err = err
			return
		}
		for _, e := range events[:max(n, 0)] {
			got, err := m.receive(int(e.Fd))
			if err != nil && err != unix.EAGAIN {
				k.err = err
				return
			}
			for i := range got {
				k.take(m, i, want)
			}
			k.received.Store(k.ledger.Received + k.ledger.Corrupted)
		}
	}
}

func (k *udpSink) take(m *messages, i int, want []byte) {
	s, ok := readStamp(m.payload(i), want)
	switch {
	case !ok:
		k.ledger.Corrupted++
	case s.run != k.traffic.run: // late, from a run before
	default:
		addr, port := m.source(i)
		k.ledger.note(s, addr == clientAddr(s.flow).As4() && port == clientPort(s.flow))
	}
}

// count is how many have come, read by anyone.
func (k *udpSink) count() uint64 { return k.received.Load() }

// tally ends the sink and settles the account.
func (k *udpSink) tally(sent uint64) (Tally, error) {
	k.stop.Store(true)
	k.done.Wait()
	k.ledger.close(sent)
	return k.ledger.Tally, k.err
}

func (k *udpSink) close() {
	k.stop.Store(true)
	k.done.Wait()
	for _, fd := range k.fds {
		unix.Close(fd)
	}
	unix.Close(k.epoll)
}
