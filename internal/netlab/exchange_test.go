//go:build linux

package netlab

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDialListen(t *testing.T) {
	a, b := addressed(t, VethOptions{})
	ctx := testContext(t)
	for _, f := range Families {
		l, err := b.Listen(netip.AddrPortFrom(NodeAddr(f, 2), 0))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		from := netip.AddrPortFrom(NodeAddr(f, 1), 4444)
		c, err := a.DialFrom(ctx, "tcp", from, addrPort(l.Addr()))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if got := addrPort(s.RemoteAddr()); got != from {
			t.Errorf("connected from %s, want %s", got, from)
		}

		p, err := b.ListenPacket(netip.AddrPortFrom(NodeAddr(f, 2), 0))
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		u, err := a.DialFrom(ctx, "udp", from, addrPort(p.LocalAddr()))
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		if _, err := u.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		if n, source, err := p.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "hello" || source.Port() != from.Port() {
			t.Errorf("got %q from %s, %v", buf[:n], source, err)
		}
	}
	// What listens in one namespace is not there in the other.
	if c, err := b.Dial(ctx, "tcp", netip.AddrPortFrom(NodeAddr(IPv4, 1), 4444)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%v, %v; want refused", c, err)
	}
	if _, err := a.Dial(ctx, "unix", netip.AddrPort{}); err == nil {
		t.Error("dialled a unix socket")
	}
}

func TestDialEndsWithContext(t *testing.T) {
	a, _ := addressed(t, VethOptions{})
	a.Neighbour("eth0", "192.0.2.77", net.HardwareAddr{2, 0, 0, 0, 0, 77}) // nobody's
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Dial(ctx, "tcp", netip.MustParseAddrPort("192.0.2.77:80")); err == nil {
		t.Error("connected to nobody")
	}
	for _, network := range []string{"tcp", "udp"} {
		_, err := a.Exchange(ctx, network, netip.MustParseAddrPort("192.0.2.77:80"), 10)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: error %v, want %v", network, err, context.DeadlineExceeded)
		}
	}
}

func TestExchange(t *testing.T) {
	a, b := addressed(t, VethOptions{})
	ctx := testContext(t)
	for _, f := range Families {
		local := netip.AddrPortFrom(NodeAddr(f, 2), echoPort)
		tcp, udp := b.EchoTCP(local), b.EchoUDP(local)
		from := netip.AddrPortFrom(NodeAddr(f, 1), 5000)
		for _, tt := range []struct {
			network string
			server  *EchoServer
			sizes   []int
		}{
			{"tcp", tcp, []int{0, 1, 1460, 1 << 20}},
			{"udp", udp, []int{0, 1, 1472, 65507 - 20}},
		} {
			for i, size := range tt.sizes {
				x, err := a.ExchangeFrom(ctx, tt.network, netip.AddrPortFrom(from.Addr(), from.Port()+uint16(i)), local, size)
				if err != nil {
					t.Error(err)
				}
				if want := netip.AddrPortFrom(from.Addr(), from.Port()+uint16(i)); x.Local != want || x.Took <= 0 {
					t.Errorf("exchanged %+v, want it from %s", x, want)
				}
			}
			peers := tt.server.Peers()
			if len(peers) != len(tt.sizes) || peers[0] != from || tt.server.Requests() != uint64(len(tt.sizes)) {
				t.Errorf("%s server saw %v, %d requests; want %d from %s on", tt.network, peers, tt.server.Requests(), len(tt.sizes), from)
			}
		}
	}
}

// TestExchangeNotices has servers which do not echo, each in its own way.
func TestExchangeNotices(t *testing.T) {
	a, b := addressed(t, VethOptions{})
	ctx := testContext(t)
	refused := netip.AddrPortFrom(NodeAddr(IPv4, 2), 9)
	for _, network := range []string{"tcp", "udp"} {
		for _, f := range Families {
			to := netip.AddrPortFrom(NodeAddr(f, 2), refused.Port())
			if _, err := a.Exchange(ctx, network, to, 10); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s to a closed port of %v: error %v, want %v", network, f, err, unix.ECONNREFUSED)
			}
		}
	}
	for _, tt := range []struct {
		name   string
		answer func([]byte) []byte
		want   string
	}{
		{"a bit", func(b []byte) []byte { b[7] ^= 4; return b }, "from byte 7 on"},
		{"short", func(b []byte) []byte { return b[:len(b)-1] }, "sent 100 bytes, got 99"},
		{"long", func(b []byte) []byte { return append(b, 0) }, "sent 100 bytes, got 101"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := b.Listen(netip.AddrPortFrom(NodeAddr(IPv4, 2), 0))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			p, err := b.ListenPacket(addrPort(l.Addr()))
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				got, _ := io.ReadAll(c)
				c.Write(tt.answer(got))
			})
			wg.Go(func() {
				buf := make([]byte, 1000)
				n, from, err := p.ReadFromUDPAddrPort(buf)
				if err == nil {
					p.WriteToUDPAddrPort(tt.answer(bytes.Clone(buf[:n])), from)
				}
			})
			for _, network := range []string{"tcp", "udp"} {
				_, err := a.Exchange(ctx, network, addrPort(l.Addr()), 100)
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%s: error %v, want %q", network, err, tt.want)
				}
			}
		})
	}
	t.Run("another source", func(t *testing.T) {
		p, err := b.ListenPacket(netip.AddrPortFrom(NodeAddr(IPv4, 2), 0))
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		other, err := b.ListenPacket(netip.AddrPortFrom(NodeAddr(IPv4, 2), 0))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			buf := make([]byte, 1000)
			if n, from, err := p.ReadFromUDPAddrPort(buf); err == nil {
				other.WriteToUDPAddrPort(buf[:n], from)
			}
		})
		if _, err := a.Exchange(ctx, "udp", addrPort(p.LocalAddr()), 100); err == nil || !strings.Contains(err.Error(), other.LocalAddr().String()) {
			t.Errorf("error %v, want one that names %s", err, other.LocalAddr())
		}
	})
}

func TestEchoManyConnections(t *testing.T) {
	a, b := addressed(t, VethOptions{})
	ctx := testContext(t)
	server := b.EchoTCP(netip.AddrPortFrom(NodeAddr(IPv4, 2), 0))
	const conns = 300
	open := make([]net.Conn, conns)
	for i := range open {
		c, err := a.Dial(ctx, "tcp", server.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open[i] = c
	}
	buf := make([]byte, 5)
	for _, c := range open {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
			t.Fatalf("echo %q, %v", buf, err)
		}
	}
	if got := len(server.Peers()); got != conns {
		t.Errorf("%d peers, want %d", got, conns)
	}
	server.Close() // with its connections
	if _, err := open[0].Read(buf); err == nil {
		t.Error("a connection outlived its server")
	}
	server.Close()
}

func TestPeersAreBounded(t *testing.T) {
	s := &EchoServer{conns: make(map[net.Conn]struct{}), seen: make(map[netip.AddrPort]struct{})}
	for i := range maxPeers + 10 {
		s.note(netip.AddrPortFrom(within(PodPrefix6, uint64(i)), 1), nil)
	}
	if len(s.Peers()) != maxPeers || len(s.seen) != maxPeers || s.Requests() != maxPeers+10 {
		t.Errorf("%d peers, %d requests", len(s.Peers()), s.Requests())
	}
}
