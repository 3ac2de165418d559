// Package control is how the command line asks the daemon of its network
// namespace: HTTP over a Unix socket in the run folder, which only the daemon's
// own user and root may open. What the other end says it is does not count; the
// kernel says who it is (SO_PEERCRED).
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// timeout bounds a question and its answer, or the time until an answer of
	// many lines goes on.
	timeout = 10 * time.Second
	// maxPath is what sockaddr_un holds, with the zero at its end.
	maxPath = 107
)

// Path is the socket of the daemon that serves the network namespace that the
// caller's thread is in.
func Path(runDir string) (string, error) {
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return "", fmt.Errorf("identifying the network namespace: %w", err)
	}
	path := filepath.Join(runDir, fmt.Sprintf("netns-%d.sock", ns.Ino))
	if len(path) > maxPath {
		return "", fmt.Errorf("the socket %s has a path of more than %d bytes; name a shorter runDir", path, maxPath)
	}
	return path, nil
}

// Server answers on a socket.
type Server struct {
	http *http.Server
	path string
	done chan struct{}
}

// Answer is what a question with these values gets, or why it gets none. It is sent
// as JSON; Lines of it one value a line, as they come.
type Answer func(url.Values) (any, error)

// Lines is an answer of any length, which nobody has to hold as a whole.
type Lines iter.Seq[any]

// Serve answers on the socket at path, in place of what a daemon that was killed
// left there. Each of answers is asked for by GET at its key. The caller holds the
// lock that keeps a second daemon away.
func Serve(path string, answers map[string]Answer, log *slog.Logger) (*Server, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), l.Close())
	}
	mux := http.NewServeMux()
	for name, answer := range answers {
		mux.HandleFunc("GET "+name, func(w http.ResponseWriter, r *http.Request) { answer.send(w, r.URL.Query()) })
	}
	s := &Server{
		http: &http.Server{
			Handler: mux, ReadTimeout: timeout, WriteTimeout: timeout, IdleTimeout: timeout, MaxHeaderBytes: 16 << 10,
			ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
		path: path, done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(&guarded{l, log}); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the control socket ended", "path", path, "err", err)
		}
	}()
	return s, nil
}

// send answers one question. An error while it writes means that the asker is gone.
func (a Answer) send(w http.ResponseWriter, question url.Values) {
	v, err := a(question)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	lines, ok := v.(Lines)
	if !ok {
		_ = e.Encode(v)
		return
	}
	n := 0
	for v := range lines {
		if n++; n%1024 == 0 { // who reads on may take longer than timeout
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(timeout))
		}
		if e.Encode(v) != nil {
			return
		}
	}
}

// Close ends the answers and removes the socket.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	if gone := os.Remove(s.path); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}

// guarded lets in only who may.
type guarded struct {
	net.Listener
	log *slog.Logger
}

// Accept implements net.Listener.
func (g *guarded) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := peer(conn)
		if err == nil && allowed(uid, uint32(os.Geteuid())) {
			return conn, nil
		}
		g.log.Warn("refused at the control socket", "uid", uid, "err", err)
		_ = conn.Close()
	}
}

// allowed says whether a peer may ask: root, and who the daemon runs as.
func allowed(uid, own uint32) bool { return uid == 0 || uid == own }

// peer is the user at the other end.
func peer(conn net.Conn) (uint32, error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("not a Unix socket: %T", conn)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var asked error
	if err := raw.Control(func(fd uintptr) { cred, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if asked != nil {
		return 0, asked
	}
	return cred.Uid, nil
}

// Ask asks the daemon at the socket and reads its answer into to.
func Ask(path, name string, to any) error {
	return ask(path, name, nil, func(d *json.Decoder) error { return d.Decode(to) })
}

// AskLines asks the daemon at the socket for an answer of Lines, and hands each to
// take.
func AskLines[T any](path, name string, question url.Values, take func(T)) error {
	return ask(path, name, question, func(d *json.Decoder) error {
		for {
			var v T
			switch err := d.Decode(&v); {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return fmt.Errorf("the daemon at %s broke off: %w", path, err)
			}
			take(v)
		}
	})
}

// ask asks, and has the answer read.
func ask(path, name string, question url.Values, read func(*json.Decoder) error) error {
	transport := &http.Transport{
		DisableKeepAlives:     true,
		ResponseHeaderTimeout: timeout,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{Timeout: timeout}).DialContext(ctx, "unix", path)
			if err != nil {
				return nil, err
			}
			return &patient{conn}, nil
		},
	}
	at := url.URL{Scheme: "http", Host: "sluice", Path: name, RawQuery: question.Encode()}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, at.String(), nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("no daemon answers at %s; is one running in this network namespace, with this --run-dir?", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s belongs to another user; ask as root", path)
	case err != nil:
		return fmt.Errorf("asking the daemon at %s: %w", path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("the daemon at %s answers %s: %s", path, resp.Status, bytes.TrimSpace(text))
	}
	return read(json.NewDecoder(resp.Body))
}

// patient waits for an answer to go on, but not for ever.
type patient struct{ net.Conn }

// Read implements net.Conn.
func (p *patient) Read(b []byte) (int, error) {
	if err := p.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return 0, err
	}
	return p.Conn.Read(b)
}
