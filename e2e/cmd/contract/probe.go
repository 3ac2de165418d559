package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-net/sluice/e2e/stand"
	"github.com/sluice-net/sluice/internal/netlab"
)

var families = netlab.Families

func portText(p uint16) string { return strconv.Itoa(int(p)) }

// frontend is an address that clients ask.
type frontend struct {
	to    netip.AddrPort
	proto string
	kind  frontendKind
}

type frontendKind string

// Kinds of frontends, as the world is now.
const (
	servedPort  frontendKind = "served"       // of a Service
	unknownPort frontendKind = "unknown_port" // a Service's address, but none of its ports
	noService   frontendKind = "no_service"   // an address in the Services' range that no Service has
)

func (f frontend) String() string { return fmt.Sprintf("%s %s (%s)", f.proto, f.to, f.kind) }

// lookup finds the Service that a frontend is of, as the dataplane under test should see it.
func (w *world) lookup(to netip.AddrPort, proto string) (*corev1.Service, *corev1.ServicePort, frontendKind) {
	kind := noService
	for _, name := range sortedKeys(w.services) {
		s := w.services[name]
		if !slices.Contains(s.Spec.ClusterIPs, to.Addr().String()) || s.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		if s.Labels[proxyNameLabel] != "" {
			continue
		}
		kind = unknownPort
		for i := range s.Spec.Ports {
			p := &s.Spec.Ports[i]
			if p.Port == int32(to.Port()) && strings.EqualFold(string(p.Protocol), proto) {
				return s, p, servedPort
			}
		}
	}
	return nil, nil, kind
}

// frontends are all that a history has had so far, and some beside them.
type frontends map[frontend]bool

func (fs frontends) add(s *corev1.Service) {
	for _, ip := range s.Spec.ClusterIPs {
		addr := netip.MustParseAddr(ip)
		for _, p := range s.Spec.Ports {
			fs[frontend{to: netip.AddrPortFrom(addr, uint16(p.Port)), proto: strings.ToLower(string(p.Protocol))}] = true
		}
		fs[frontend{to: netip.AddrPortFrom(addr, 444), proto: "tcp"}] = true
		fs[frontend{to: netip.AddrPortFrom(addr, 80), proto: "udp"}] = true
	}
}

// outcome is what a client sees of a frontend with new connections.
type outcome struct {
	verdict  string   // answered, refused, silent, mixed, or an error
	backends []string // who answered, sorted
	own      string   // whose address they saw: own, other; empty where it is not compared
}

func (o outcome) String() string {
	if o.verdict != "answered" {
		return o.verdict
	}
	own := ""
	if o.own == "other" {
		own = " masqueraded"
	}
	return fmt.Sprintf("%v%s", o.backends, own)
}

func (o outcome) equal(p outcome) bool {
	return o.verdict == p.verdict && o.own == p.own && slices.Equal(o.backends, p.backends)
}

// observer asks from one client and keeps what it has seen.
type observer struct {
	side    *side
	client  *client
	at      frontend
	wait    time.Duration
	asked   int
	seen    map[string]int // server or verdict: how often
	sources map[string]int
}

func newObserver(s *side, c *client, at frontend, wait time.Duration) *observer {
	return &observer{side: s, client: c, at: at, wait: wait, seen: map[string]int{}, sources: map[string]int{}}
}

const (
	refused = "refused"
	silent  = "silent"
)

// ask asks n times over new connections.
func (o *observer) ask(ctx context.Context, n int) {
	for range n {
		a, err := o.client.ask(ctx, o.at, o.wait)
		o.asked++
		switch {
		case errors.Is(err, stand.ErrRefused):
			o.seen[refused]++
		case errors.Is(err, stand.ErrSilent):
			o.seen[silent]++
			if (o.asked >= 2 || o.at.proto == "tcp") && len(o.seen) == 1 {
				return // more silence costs too much
			}
		case err != nil:
			o.seen["error: "+err.Error()]++
		default:
			o.seen[a.Server]++
			if o.client.own != nil {
				if o.client.own(a.Client.Addr()) {
					o.sources["own"]++
				} else {
					o.sources["other"]++
				}
			}
		}
	}
}

// ask asks once from a port that was not used lately.
func (c *client) ask(ctx context.Context, at frontend, wait time.Duration) (stand.Answer, error) {
	unspecified := netip.IPv4Unspecified()
	if at.to.Addr().Is6() {
		unspecified = netip.IPv6Unspecified()
	}
	for {
		local := netip.AddrPortFrom(unspecified, c.nextPort())
		a, err := stand.Ask(ctx, stand.Question{From: c.ns, Proto: at.proto, To: at.to, Local: local, Wait: wait})
		if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return a, err
		}
	}
}

// result sums up.
func (o *observer) result() outcome {
	var r outcome
	verdicts := map[string]bool{}
	for what := range o.seen {
		if what == refused || what == silent || strings.HasPrefix(what, "error") {
			verdicts[what] = true
		} else {
			verdicts["answered"] = true
			r.backends = append(r.backends, what)
		}
	}
	sort.Strings(r.backends)
	if len(verdicts) == 1 {
		for v := range verdicts {
			r.verdict = v
		}
	} else {
		var parts []string
		for what, n := range o.seen {
			parts = append(parts, fmt.Sprintf("%s x%d", what, n))
		}
		sort.Strings(parts)
		r.verdict = "mixed: " + strings.Join(parts, ", ")
	}
	switch len(o.sources) {
	case 1:
		for s := range o.sources {
			r.own = s
		}
	case 2:
		// Only who reaches itself is masqueraded, so that both are seen is right for one who is a backend.
		r.own = "both"
	}
	return r
}

// observe asks on all sides until each has had a fair chance to show what any of them has shown: of n backends, one goes
// unseen for 14n questions once in a million times.
func observe(ctx context.Context, sides []*side, clientIndex int, at frontend, sticky bool, wait time.Duration) []outcome {
	var all []*observer
	for _, s := range sides {
		all = append(all, newObserver(s, s.clients[clientIndex], at, wait))
	}
	var wg sync.WaitGroup
	each := func(f func(*observer)) {
		for _, o := range all {
			wg.Go(func() { f(o) })
		}
		wg.Wait()
	}
	each(func(o *observer) { o.ask(ctx, 4) })
	for !sticky {
		union := map[string]bool{}
		for _, o := range all {
			for what := range o.seen {
				if what != refused && what != silent {
					union[what] = true
				}
			}
		}
		limit := 14 * len(union)
		more := false
		each(func(o *observer) {
			if o.seen[silent] > 0 || o.seen[refused] > 0 {
				return
			}
			missing := func() bool {
				for what := range union {
					if o.seen[what] == 0 {
						return true
					}
				}
				return false
			}
			for missing() && o.asked < limit {
				o.ask(ctx, 4)
			}
		})
		for _, o := range all {
			for what := range o.seen {
				more = more || !union[what] && what != refused && what != silent
			}
		}
		if !more {
			break
		}
	}
	if sticky {
		each(func(o *observer) {
			if o.seen[silent] == 0 && o.seen[refused] == 0 {
				o.ask(ctx, 6)
			}
		})
	}
	results := make([]outcome, len(all))
	for i, o := range all {
		results[i] = o.result()
	}
	return results
}

// held is a flow that outlives changes: a UDP socket or a TCP connection.
type held struct {
	conn    net.Conn
	reader  *bufio.Reader
	backend string // the one that answered first, of a TCP connection
	count   uint64
}

// askUDP asks over the held socket; an answer to an earlier question is not taken for one to this.
func (h *held) askUDP(wait time.Duration) (string, error) {
	h.count++
	body := binary.BigEndian.AppendUint64(nil, h.count)
	h.conn.SetDeadline(time.Now().Add(wait))
	// What came late is read, an error that waits is fetched by the first write or read, and that may be of an earlier datagram.
	if _, err := h.conn.Write(body); err != nil {
		if _, err = h.conn.Write(body); err != nil {
			return "", kind(err)
		}
	}
	buf := make([]byte, 2048)
	for {
		n, err := h.conn.Read(buf)
		if err != nil {
			return "", kind(err)
		}
		line, rest, _ := strings.Cut(string(buf[:n]), "\n")
		if rest == string(body) {
			name, _, _ := strings.Cut(line, " ")
			return name, nil
		}
	}
}

func kind(err error) error {
	var timeout net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EPERM):
		return stand.ErrRefused
	case errors.As(err, &timeout) && timeout.Timeout():
		return stand.ErrSilent
	}
	return err
}

// askTCP asks over the held connection.
func (h *held) askTCP(wait time.Duration) (string, error) {
	h.conn.SetDeadline(time.Now().Add(wait))
	if _, err := fmt.Fprintf(h.conn, "GET / HTTP/1.1\r\nHost: lab\r\n\r\n"); err != nil {
		return "", kind(err)
	}
	response, err := http.ReadResponse(h.reader, nil)
	if err != nil {
		return "", kind(err)
	}
	defer response.Body.Close()
	buf := make([]byte, 256)
	n, _ := response.Body.Read(buf)
	name, _, _ := strings.Cut(string(buf[:n]), " ")
	return name, nil
}

// hold opens a flow.
func hold(ctx context.Context, c *client, at frontend, wait time.Duration) (*held, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	unspecified := netip.IPv4Unspecified()
	if at.to.Addr().Is6() {
		unspecified = netip.IPv6Unspecified()
	}
	for {
		conn, err := c.ns.DialFrom(ctx, at.proto, netip.AddrPortFrom(unspecified, c.nextPort()), at.to)
		if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return &held{conn: conn, reader: bufio.NewReader(conn)}, nil
	}
}
