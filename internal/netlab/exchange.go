//go:build linux

package netlab

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Exchanged is what an [Namespace.Exchange] did.
type Exchanged struct {
	Local netip.AddrPort // the client's own end; over UDP the address may be unspecified
	Took  time.Duration  // from before the connect to the last byte
}

// Exchange sends size random bytes from a fresh socket in the namespace to an echo server, over "tcp" or "udp" (then
// as one datagram), and checks that exactly they come back, and from the address dialled.
func (n *Namespace) Exchange(ctx context.Context, network string, to netip.AddrPort, size int) (Exchanged, error) {
	return n.ExchangeFrom(ctx, network, netip.AddrPort{}, to, size)
}

// ExchangeFrom is Exchange from a given local address and port; a zero port is the kernel's choice.
func (n *Namespace) ExchangeFrom(ctx context.Context, network string, from, to netip.AddrPort, size int) (Exchanged, error) {
	sent := make([]byte, size)
	crand.Read(sent)
	var (
		x     Exchanged
		err   error
		start = time.Now()
	)
	switch network {
	case "tcp":
		x.Local, err = n.exchangeTCP(ctx, from, to, sent)
	case "udp":
		x.Local, err = n.exchangeUDP(ctx, from, to, sent)
	default:
		err = fmt.Errorf("network %q is neither tcp nor udp", network)
	}
	x.Took = time.Since(start)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("%w (%w)", err, cause)
		}
		return x, fmt.Errorf("exchanging %d bytes with %s %s: %w", size, network, to, err)
	}
	return x, nil
}

func (n *Namespace) exchangeTCP(ctx context.Context, from, to netip.AddrPort, sent []byte) (netip.AddrPort, error) {
	dial := n.Dial // binding before connecting would reserve the port against all servers at once
	if from.IsValid() {
		dial = func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
			return n.DialFrom(ctx, network, from, to)
		}
	}
	conn, err := dial(ctx, "tcp", to)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer conn.Close()
	defer wakeWithContext(ctx, conn)()
	local := addrPort(conn.LocalAddr())
	if got := addrPort(conn.RemoteAddr()); got != to {
		return local, fmt.Errorf("connected to %s", got)
	}
	// The echo comes while we send: one who does not read meanwhile would stop the server, and so himself.
	written := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		written <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	got := make([]byte, len(sent)+1) // room for a byte too many
	count, err := io.ReadFull(conn, got)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		err = nil
	}
	if err != nil {
		conn.Close() // frees the writer
	}
	if err := errors.Join(err, <-written); err != nil {
		return local, fmt.Errorf("after %d bytes: %w", count, err)
	}
	return local, compare(sent, got[:count])
}

// exchangeUDP leaves its socket unconnected, so that a reply from a wrong address is seen and named, not ignored.
func (n *Namespace) exchangeUDP(ctx context.Context, from, to netip.AddrPort, sent []byte) (netip.AddrPort, error) {
	if !from.IsValid() {
		from = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
		if to.Addr().Is6() {
			from = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
		}
	}
	conn, err := n.ListenPacket(from)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer conn.Close()
	defer wakeWithContext(ctx, conn)()
	local := addrPort(conn.LocalAddr())
	if err := reportICMP(conn, to.Addr()); err != nil {
		return local, err
	}
	if _, err := conn.WriteToUDPAddrPort(sent, to); err != nil {
		return local, err
	}
	got := make([]byte, 64<<10)
	count, source, err := conn.ReadFromUDPAddrPort(got)
	if err != nil {
		return local, err
	}
	if source = netip.AddrPortFrom(source.Addr().Unmap(), source.Port()); source != to {
		return local, fmt.Errorf("%d bytes came from %s", count, source)
	}
	return local, compare(sent, got[:count])
}

// reportICMP lets errors like "port unreachable" reach an unconnected socket.
func reportICMP(conn *net.UDPConn, to netip.Addr) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		if to.Is4() {
			serr = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1)
		} else {
			serr = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
		}
	})
	return errors.Join(err, serr)
}

// wakeWithContext ends the waiting of a connection when ctx ends.
func wakeWithContext(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
}

func compare(sent, got []byte) error {
	if bytes.Equal(sent, got) {
		return nil
	}
	at := 0
	for at < min(len(sent), len(got)) && sent[at] == got[at] {
		at++
	}
	return fmt.Errorf("echo differs from byte %d on: sent %d bytes, got %d", at, len(sent), len(got))
}
