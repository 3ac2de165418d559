//go:build linux

package netlab

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// maxPeers bounds what an echo server remembers.
const maxPeers = 1 << 16

// EchoServer answers with what it got: UDP datagram by datagram, TCP as a stream up to its end.
type EchoServer struct {
	addr   netip.AddrPort
	socket io.Closer
	wg     sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	conns    map[net.Conn]struct{}
	seen     map[netip.AddrPort]struct{}
	peers    []netip.AddrPort // in the order in which they came
	requests uint64
}

// EchoTCP serves TCP on an address of the namespace; port 0 is the kernel's choice.
func (n *Namespace) EchoTCP(local netip.AddrPort) *EchoServer {
	n.tb.Helper()
	l, err := n.Listen(local)
	n.check(err, "listening on TCP %s", local)
	s := n.newEchoServer(l, l.Addr())
	s.wg.Go(func() { s.accept(l) })
	return s
}

// EchoUDP serves UDP on an address of the namespace; port 0 is the kernel's choice.
func (n *Namespace) EchoUDP(local netip.AddrPort) *EchoServer {
	n.tb.Helper()
	c, err := n.ListenPacket(local)
	n.check(err, "listening on UDP %s", local)
	c.SetReadBuffer(4 << 20) // as far as the host allows; bursts of a benchmark
	s := n.newEchoServer(c, c.LocalAddr())
	s.wg.Go(func() { s.serveUDP(c) })
	return s
}

func (n *Namespace) newEchoServer(socket io.Closer, local net.Addr) *EchoServer {
	s := &EchoServer{
		addr:   addrPort(local),
		socket: socket,
		conns:  make(map[net.Conn]struct{}),
		seen:   make(map[netip.AddrPort]struct{}),
	}
	n.tb.Cleanup(s.Close)
	return s
}

// Addr returns the address served.
func (s *EchoServer) Addr() netip.AddrPort { return s.addr }

// Peers returns the addresses and ports the server was reached from, each once, in order; the first 65536 of them.
func (s *EchoServer) Peers() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]netip.AddrPort(nil), s.peers...)
}

// Requests returns how many connections or datagrams came.
func (s *EchoServer) Requests() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

// Close ends the server and its connections, and waits for its goroutines.
func (s *EchoServer) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		s.socket.Close()
		for c := range s.conns {
			c.Close()
		}
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// note counts a request; conn is nil for a datagram. It returns false if the server is closed.
func (s *EchoServer) note(peer netip.AddrPort, conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.requests++
	if _, ok := s.seen[peer]; !ok && len(s.peers) < maxPeers {
		s.seen[peer] = struct{}{}
		s.peers = append(s.peers, peer)
	}
	if conn != nil {
		s.conns[conn] = struct{}{}
	}
	return true
}

func (s *EchoServer) accept(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors: the connections that end free some
			continue
		}
		if !s.note(addrPort(c.RemoteAddr()), c) {
			c.Close()
			return
		}
		s.wg.Go(func() {
			defer func() {
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
				c.Close()
			}()
			echoStream(c)
		})
	}
}

// echoStream copies through a buffer of its own: io.Copy between sockets would splice, whose pipes stay cached and look
// like leaked descriptors.
func echoStream(c *net.TCPConn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			if _, werr := c.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err == io.EOF {
			c.CloseWrite()
			return
		}
		if err != nil {
			return
		}
	}
}

func (s *EchoServer) serveUDP(c *net.UDPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if !s.note(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), nil) {
			return
		}
		c.WriteToUDPAddrPort(buf[:n], from) // a lost answer is the client's to notice
	}
}

// addrPort is the address of a TCP or UDP socket, an IPv4 one never in its mapped form.
func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(interface{ AddrPort() netip.AddrPort }).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
