package control

import (
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestAsk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	if err := os.WriteFile(path, nil, 0o644); err != nil { // as if left behind
		t.Fatal(err)
	}
	s, err := Serve(path, map[string]Answer{
		"/number": func(url.Values) (any, error) { return 7, nil },
		"/count":  countTo,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != fs.ModeSocket {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	var n int
	if err := Ask(path, "/number", &n); err != nil || n != 7 {
		t.Errorf("%d, %v", n, err)
	}
	if err := Ask(path, "/other", &n); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("%v", err)
	}
	sum := 0
	if err := AskLines(path, "/count", url.Values{"to": {"5000"}}, func(n int) { sum += n }); err != nil || sum != 5000*5001/2 {
		t.Errorf("%d, %v", sum, err)
	}
	if err := AskLines(path, "/count", url.Values{"to": {"many"}}, func(int) { t.Error("a line") }); err == nil || !strings.Contains(err.Error(), "400 Bad Request: strconv.Atoi") {
		t.Errorf("%v", err)
	}
	if err := AskLines(path, "/count", url.Values{"to": {"-5000"}}, func(int) {}); err == nil || !strings.Contains(err.Error(), "broke off") {
		t.Errorf("%v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is left")
	}
	if err := Ask(path, "/number", &n); err == nil || !strings.Contains(err.Error(), "no daemon answers at "+path) {
		t.Errorf("%v", err)
	}
}

// countTo answers with the numbers up to one; below 0 it breaks off there.
func countTo(question url.Values) (any, error) {
	to, err := strconv.Atoi(question.Get("to"))
	if err != nil {
		return nil, err
	}
	return Lines(func(yield func(any) bool) {
		for n := 1; n <= max(to, -to); n++ {
			if !yield(n) {
				return
			}
		}
		if to < 0 {
			panic(http.ErrAbortHandler)
		}
	}), nil
}

func TestAllowed(t *testing.T) {
	for _, tc := range []struct {
		uid, own uint32
		want     bool
	}{{0, 0, true}, {0, 65532, true}, {65532, 65532, true}, {1000, 0, false}, {1000, 65532, false}} {
		if got := allowed(tc.uid, tc.own); got != tc.want {
			t.Errorf("%d at %d's: %v", tc.uid, tc.own, got)
		}
	}
}

func TestPath(t *testing.T) {
	if p, err := Path("/run/sluice"); err != nil || !strings.HasPrefix(p, "/run/sluice/netns-") {
		t.Errorf("%q, %v", p, err)
	}
	if _, err := Path("/" + strings.Repeat("x", 100)); err == nil {
		t.Error("a path that no socket can have")
	}
}
