//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sluice-net/sluice/internal/netlab"
)

// sluiceBinary is the program, built once.
var sluiceBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sluice-bench-test-")
	if err != nil {
		return "", err
	}
	builtIn = dir
	binary := filepath.Join(dir, "sluice")
	out, err := exec.Command("go", "build", "-o", binary, "../cmd/sluice").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return binary, err
})

var builtIn string

func TestMain(m *testing.M) {
	code := m.Run()
	if builtIn != "" {
		os.RemoveAll(builtIn)
	}
	os.Exit(code)
}

func command(t testing.TB) func(args ...string) *exec.Cmd {
	binary, err := sluiceBinary()
	if err != nil {
		t.Fatal(err)
	}
	return func(args ...string) *exec.Cmd { return exec.Command(binary, args...) }
}

// newBed puts a peer on a site of its own.
func newBed(t testing.TB, p Peer, topology Topology, services int) *bed {
	t.Helper()
	netlab.RequireRoot(t)
	s, err := newSite(p.Name(), topology, services, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s.API = sharedAPI(t, s)
	if err := p.Prepare(ctx, s); err != nil {
		if _, missing := errors.AsType[*Unavailable](err); missing {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	i, err := p.Start(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Stop(); err != nil {
			t.Error(err)
		}
	})
	b := &bed{peer: p, Site: s, instance: i}
	probe, err := newProber(b)
	if err != nil {
		t.Fatal(err)
	}
	defer probe.close()
	if _, err := probe.all(ctx, time.Now()); err != nil {
		t.Fatal(err)
	}
	return b
}

// kubernetes is where the module e2e puts its binaries, unless the environment says otherwise.
func kubernetes() string {
	if dir := os.Getenv("SLUICE_KUBERNETES"); dir != "" {
		return dir
	}
	return "../bin/kube"
}

// sharedAPI starts an API server for the site when a peer asks for one.
func sharedAPI(t testing.TB, s *Site) func(context.Context) (*API, error) {
	var api *API
	return func(ctx context.Context) (*API, error) {
		if api != nil {
			return api, nil
		}
		var err error
		api, err = newAPI(ctx, kubernetes(), s.World, slog.New(slog.DiscardHandler))
		if err == nil {
			t.Cleanup(func() {
				if err := api.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		return api, err
	}
}

// TestPeersLoseNothing sends what every peer can bear, by both generators into both sinks.
func TestPeersLoseNothing(t *testing.T) {
	for _, p := range Peers(Programs{Sluice: command(t), Kubernetes: kubernetes()}) {
		t.Run(p.Name(), func(t *testing.T) {
			switch p.Name() {
			case "generator":
				t.Skip("it has nothing behind it")
			case "sluice-generic":
				t.Skip("the daemon refuses it on veth: see TestAbsent")
			}
			b := newBed(t, p, Local, 3)
			for _, frame := range []int{64, 1400} {
				tr := b.udpTarget(2)
				tr.frame, tr.flows, tr.rate = frame, 1000, 20_000
				for name, run := range map[string]func() (trial, error){
					"sockets":        func() (trial, error) { return b.sockets(tr, time.Minute, 5000) },
					"sockets to tap": func() (trial, error) { return b.socketsToTap(tr, time.Minute, 5000) },
					"injected":       func() (trial, error) { return b.injected(tr, 0, time.Minute, 5000) },
				} {
					got, err := run()
					if err != nil {
						t.Fatal(name, err)
					}
					want := Tally{Sent: 5000, Received: 5000}
					if got.Tally != want {
						t.Errorf("%s, %d bytes: %v", name, frame, got)
					}
				}
			}
		})
	}
}
