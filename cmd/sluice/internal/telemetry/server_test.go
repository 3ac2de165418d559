package telemetry

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

func metricsHandler(profiling bool) http.Handler {
	return MetricsHandler(NewRegistry(samplePicture, NewSyncs(), Build{}), profiling, quiet)
}

func TestMetricsHandler(t *testing.T) {
	off, on := metricsHandler(false), metricsHandler(true)
	for _, c := range []struct {
		h            http.Handler
		method, path string
		code         int
		contains     string
	}{
		{off, "GET", "/metrics", 200, "sluice_flows 82"},
		{off, "POST", "/metrics", 405, ""},
		{off, "GET", "/", 404, ""},
		{off, "GET", "/livez", 404, ""},
		{off, "GET", "/debug/pprof/", 404, ""},
		{off, "GET", "/debug/pprof/heap", 404, ""},
		{off, "GET", "/debug/pprof/profile", 404, ""},
		{on, "GET", "/metrics", 200, "sluice_flows 82"},
		{on, "GET", "/debug/pprof/", 200, "goroutine"},
		{on, "GET", "/debug/pprof/goroutine?debug=1", 200, "TestMetricsHandler"},
		{on, "GET", "/debug/pprof/cmdline", 200, ""},
	} {
		w := get(c.h, c.method, c.path)
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.contains) {
			t.Errorf("%s %s: %d, want %d with %q", c.method, c.path, w.Code, c.code, c.contains)
		}
	}
}

func TestServer(t *testing.T) {
	s, err := Serve("metricsBindAddress", "127.0.0.1:0", true, metricsHandler(false), quiet)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	url := fmt.Sprintf("http://%s/metrics", s.Addr())
	r, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(r.Body)
	r.Body.Close()
	if !strings.Contains(string(body), "sluice_build_info{") {
		t.Errorf("a scrape gives %q", body)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := client.Get(url); err == nil {
		t.Error("served after Close")
	}
}

// TestLongHeadersAreRefused checks the bound on what a client can make the
// daemon hold.
func TestLongHeadersAreRefused(t *testing.T) {
	s, err := Serve("healthzBindAddress", "127.0.0.1:0", true, metricsHandler(false), quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := net.DialTimeout("tcp", s.Addr().String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(c, "GET /metrics HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", 2*maxHeaderBytes))
	line, _ := bufio.NewReader(c).ReadString('\n')
	if !strings.Contains(line, "431") {
		t.Errorf("the answer begins with %q", line)
	}
}

func TestTakenAddress(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := taken.Addr().String()

	_, err = Serve("metricsBindAddress", address, true, metricsHandler(false), quiet)
	want := "metricsBindAddress " + address + ": address already in use; name a free port, or :0 for any"
	if err == nil || err.Error() != want {
		t.Errorf("hard: %v, want %q", err, want)
	}

	s, err := Serve("metricsBindAddress", address, false, metricsHandler(false), quiet)
	if err != nil {
		t.Fatalf("soft: %v", err)
	}
	if a := s.Addr(); a != nil {
		t.Errorf("soft: bound to %v", a)
	}
	if err := s.Close(); err != nil {
		t.Errorf("closing one that waits: %v", err)
	}
}

func TestRetry(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan net.Listener)
	go func() { got <- retry(t.Context(), "metricsBindAddress", taken.Addr().String(), time.Millisecond) }()
	taken.Close()
	l := <-got
	if l == nil {
		t.Fatal("gave up")
	}
	l.Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if l := retry(ended, "metricsBindAddress", "127.0.0.1:0", time.Hour); l != nil {
		l.Close()
		t.Error("bound after the end")
	}
}
