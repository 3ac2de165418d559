package stand

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"

	"github.com/sluice-net/sluice/internal/netlab"
)

// Server answers over TCP (HTTP), UDP or SCTP with its name and with the address that it saw the client come from.
type Server struct {
	name  string
	close func()
	asked atomic.Int64
}

// Serve serves on a local address of a namespace until Close.
func Serve(n *netlab.Namespace, name, proto string, local netip.AddrPort) (*Server, error) {
	s := &Server{name: name}
	switch proto {
	case "tcp":
		l, err := n.Listen(local)
		if err != nil {
			return nil, err
		}
		h := &http.Server{Handler: http.HandlerFunc(s.http)}
		go h.Serve(l)
		s.close = func() { h.Close() }
	case "udp":
		c, err := n.ListenPacket(local)
		if err != nil {
			return nil, err
		}
		go s.udp(c)
		s.close = func() { c.Close() }
	case "sctp":
		c, err := listenSCTP(n, local)
		if err != nil {
			return nil, err
		}
		go s.sctp(c, local.Port())
		s.close = func() { c.Close() }
	default:
		return nil, fmt.Errorf("protocol %q is none of tcp, udp, sctp", proto)
	}
	return s, nil
}

// Close ends it and its connections, as the end of its process would.
func (s *Server) Close() { s.close() }

// Asked is how often it was asked.
func (s *Server) Asked() int64 { return s.asked.Load() }

// http answers GET with a line, and POST with its body after that line.
func (s *Server) http(w http.ResponseWriter, r *http.Request) {
	s.asked.Add(1)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	io.WriteString(w, s.line(r.RemoteAddr))
	w.Write(body)
}

func (s *Server) line(client string) string { return s.name + " " + client + "\n" }

// udp answers a datagram with the line and what came.
func (s *Server) udp(c *net.UDPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		s.asked.Add(1)
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		c.WriteToUDPAddrPort(append([]byte(s.line(from.String())), buf[:n]...), from)
	}
}

// wakeWithContext ends the waiting of a connection when ctx ends.
func wakeWithContext(ctx context.Context, c interface{ Close() error }) (stop func() bool) {
	return context.AfterFunc(ctx, func() { c.Close() })
}
