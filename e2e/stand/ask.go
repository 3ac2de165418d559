package stand

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/e2e/kube"
	"github.com/sluice-net/sluice/internal/netlab"
)

// Answer is what a server said.
type Answer struct {
	Server string         // its name
	Client netip.AddrPort // whom it saw
}

// What can become of a question that is not answered. Everything else is an error of its own kind.
var (
	ErrRefused = errors.New("refused")
	ErrSilent  = errors.New("no answer")
)

// Question is one from a client.
type Question struct {
	From  *netlab.Namespace
	Proto string // tcp, udp or sctp
	To    netip.AddrPort
	Local netip.AddrPort // of the client's socket; zero: the kernel's choice. TCP and UDP only.
	Body  []byte         // that has to come back; TCP and UDP only
	Wait  time.Duration  // 0: two seconds
}

// Ask asks once, over a new socket.
func Ask(ctx context.Context, q Question) (Answer, error) {
	if q.Wait == 0 {
		q.Wait = 2 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, q.Wait)
	defer cancel()
	var (
		text []byte
		err  error
	)
	switch q.Proto {
	case "tcp":
		text, err = askTCP(ctx, q)
	case "udp":
		text, err = askUDP(ctx, q)
	case "sctp":
		text, err = askSCTP(ctx, q)
	default:
		err = fmt.Errorf("protocol %q is none of tcp, udp, sctp", q.Proto)
	}
	if err != nil {
		return Answer{}, fmt.Errorf("%s %s: %w", q.Proto, q.To, kindOf(ctx, err))
	}
	return parseAnswer(text, q.Body)
}

func parseAnswer(text, body []byte) (Answer, error) {
	line, rest, _ := bytes.Cut(text, []byte("\n"))
	server, client, ok := strings.Cut(string(line), " ")
	addr, err := netip.ParseAddrPort(client)
	if !ok || err != nil {
		return Answer{}, fmt.Errorf("answer %q is not a name and an address", line)
	}
	if !bytes.Equal(rest, body) {
		return Answer{}, fmt.Errorf("%d bytes sent and %d others came back", len(body), len(rest))
	}
	return Answer{Server: server, Client: netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())}, nil
}

// kindOf names the two outcomes that are verdicts.
func kindOf(ctx context.Context, err error) error {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EPERM): // the latter from a rule on a host's own output
		return ErrRefused
	case ctx.Err() != nil, errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("%w (%w)", ErrSilent, err)
	}
	return err
}

func askTCP(ctx context.Context, q Question) ([]byte, error) {
	dial := kube.Dialer(q.From)
	if q.Local.IsValid() {
		dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return q.From.DialFrom(ctx, network, q.Local, q.To)
		}
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	method := http.MethodGet
	if q.Body != nil {
		method = http.MethodPost
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+q.To.String()+"/", bytes.NewReader(q.Body))
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

func askUDP(ctx context.Context, q Question) ([]byte, error) {
	var (
		conn net.Conn
		err  error
	)
	if q.Local.IsValid() {
		conn, err = q.From.DialFrom(ctx, "udp", q.Local, q.To)
	} else {
		conn, err = q.From.Dial(ctx, "udp", q.To)
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer wakeWithContext(ctx, conn)()
	if _, err := conn.Write(q.Body); err != nil {
		return nil, err
	}
	buf := make([]byte, 64<<10)
	n, err := conn.Read(buf)
	return buf[:n], err
}
