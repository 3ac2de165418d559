//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dial connects from the namespace, like net.Dialer's DialContext: network is "tcp" or "udp". Addresses are literal,
// so nothing is resolved and the socket is made on this very thread.
func (n *Namespace) Dial(ctx context.Context, network string, remote netip.AddrPort) (net.Conn, error) {
	return n.dial(ctx, &net.Dialer{}, network, remote)
}

// DialFrom is Dial from a given local address and port; a zero port is the kernel's choice. One port may be used towards
// several remotes at once.
func (n *Namespace) DialFrom(ctx context.Context, network string, local, remote netip.AddrPort) (net.Conn, error) {
	d := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(local)}
	if network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(local)
	}
	d.Control = func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		return errors.Join(cerr, err)
	}
	return n.dial(ctx, d, network, remote)
}

func (n *Namespace) dial(ctx context.Context, d *net.Dialer, network string, remote netip.AddrPort) (c net.Conn, err error) {
	if network != "tcp" && network != "udp" {
		return nil, fmt.Errorf("dialling %s: network %q is neither tcp nor udp", remote, network)
	}
	err = n.Do(func() error {
		c, err = d.DialContext(ctx, network, remote.String())
		return err
	})
	return c, err
}

// Listen listens for TCP connections in the namespace. The unspecified IPv6 address takes both families.
func (n *Namespace) Listen(local netip.AddrPort) (l *net.TCPListener, err error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false) // plain TCP, as most servers speak it
	err = n.Do(func() error {
		listener, err := config.Listen(context.Background(), "tcp"+only4(local), local.String())
		if err == nil {
			l = listener.(*net.TCPListener)
		}
		return err
	})
	return l, err
}

// ListenPacket opens an unconnected UDP socket in the namespace. The unspecified IPv6 address takes both families.
func (n *Namespace) ListenPacket(local netip.AddrPort) (c *net.UDPConn, err error) {
	err = n.Do(func() error {
		c, err = net.ListenUDP("udp"+only4(local), net.UDPAddrFromAddrPort(local))
		return err
	})
	return c, err
}

// only4 keeps package net from making a dual-stack socket of an IPv4 one.
func only4(local netip.AddrPort) string {
	if local.Addr().Is4() {
		return "4"
	}
	return ""
}
