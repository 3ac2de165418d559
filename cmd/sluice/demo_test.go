package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
	"github.com/sluice-net/sluice/cmd/sluice/internal/demo"
	"github.com/sluice-net/sluice/dataplane"
	"github.com/sluice-net/sluice/internal/netlab"
)

// runDemo runs a small demo and gives what it printed, the last line apart.
func runDemo(t *testing.T, ctx context.Context, serve demo.Serve, out *demoOutput) (last string, err error) {
	t.Helper()
	netlab.RequireRoot(t)
	var log bytes.Buffer
	err = demo.Run(ctx, demo.Options{
		Serve: serve, Exchanges: 12, Out: out,
		Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the demo's error: %v\nits output:\n%s\nits log:\n%s", err, out.String(), log.String())
		}
	})
	lines := strings.Split(strings.TrimRight(out.String(), "\n"), "\n")
	for _, line := range lines[:len(lines)-1] {
		if len(line) > 100 {
			t.Errorf("a line of %d columns: %s", len(line), line)
		}
	}
	return lines[len(lines)-1], err
}

// demoOutput is a buffer that does something when a text has been written.
type demoOutput struct {
	bytes.Buffer
	after string
	do    func()
}

func (o *demoOutput) Write(b []byte) (int, error) {
	if o.do != nil && bytes.Contains(b, []byte(o.after)) {
		o.do()
	}
	return o.Buffer.Write(b)
}

func TestDemoShowsThatAllIsWell(t *testing.T) {
	var out demoOutput
	last, err := runDemo(t, t.Context(), serve, &out)
	if err != nil {
		t.Error(err)
	}
	want := "demo: tcp=24 udp=24 families=2 backends=4 wrong_source=0 errors=0 bad_checksums=0 leaked_frames=0 leftovers=0"
	if last != want {
		t.Errorf("last line:\n got %s\nwant %s", last, want)
	}
	if n := strings.Count(out.String(), "demo: "); n != 1 {
		t.Errorf("%d lines of result, want one", n)
	}
}

// A demo that cannot fail shows nothing: here nobody serves one of the four
// kinds of exchanges, as the manifests have it.
func TestDemoShowsThatSomethingIsWrong(t *testing.T) {
	serve := func(ctx context.Context, cfg *config.Configuration, log *slog.Logger, opened, drained func(*dataplane.Dataplane)) error {
		file := filepath.Join(cfg.Manifests, "endpoints.yaml")
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		// The first EndpointSlice is that of TCP over IPv4.
		wrong := bytes.Replace(data, []byte("port: 8080"), []byte("port: 8081"), 1)
		if bytes.Equal(wrong, data) {
			t.Errorf("no port 8080 in the manifests:\n%s", data)
		}
		if err := os.WriteFile(file, wrong, 0o644); err != nil {
			return err
		}
		return serve(ctx, cfg, log, opened, drained)
	}
	last, err := runDemo(t, t.Context(), serve, new(demoOutput))
	if err == nil {
		t.Error("the demo says that all is well")
	}
	want := "demo: tcp=12 udp=24 families=1 backends="
	if !strings.HasPrefix(last, want) || strings.Contains(last, "errors=0") {
		t.Errorf("last line:\n got %s\nwant %s... and errors", last, want)
	}
	if !strings.HasSuffix(last, " leaked_frames=0 leftovers=0") {
		t.Errorf("last line: %s: want nothing leaked or left", last)
	}
}

func TestDemoEndsWhenInterrupted(t *testing.T) {
	for _, at := range []string{"How each port", "exchanges of each kind", "A live edit"} {
		t.Run(at, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			// A short name: there will be a socket in it.
			tmp, err := os.MkdirTemp("", "demo")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(tmp)
			t.Setenv("TMPDIR", tmp)
			last, err := runDemo(t, ctx, serve, &demoOutput{after: at, do: cancel})
			if err == nil || !strings.Contains(err.Error(), "interrupted") {
				t.Errorf("error %v: want that it was interrupted", err)
			}
			if strings.HasPrefix(last, "demo: ") {
				t.Errorf("a result, %s: want none", last)
			}
			if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v %v", left, err)
			}
		})
	}
}

func TestDemoTellsWhyTheDaemonDoesNotStart(t *testing.T) {
	serve := func(ctx context.Context, cfg *config.Configuration, log *slog.Logger, opened, drained func(*dataplane.Dataplane)) error {
		cfg.Interfaces[0].Name = "nosuch0"
		return serve(ctx, cfg, log, opened, drained)
	}
	last, err := runDemo(t, t.Context(), serve, new(demoOutput))
	if err == nil || !strings.Contains(err.Error(), "nosuch0") {
		t.Errorf("error %v: want one that names the interface", err)
	}
	if strings.HasPrefix(last, "demo: ") {
		t.Errorf("a result, %s: want none", last)
	}
}
