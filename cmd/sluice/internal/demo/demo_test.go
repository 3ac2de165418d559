package demo

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sluice-net/sluice/internal/netlab"
)

func TestResult(t *testing.T) {
	good := result{tcp: 600, udp: 600, families: 2, backends: 4}
	if got, want := good.String(), "demo: tcp=600 udp=600 families=2 backends=4 wrong_source=0 errors=0 bad_checksums=0 leaked_frames=0 leftovers=0"; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if !good.good(300, 4) {
		t.Errorf("%s: not good", &good)
	}
	for _, spoil := range []func(*result){
		func(r *result) { r.tcp-- },
		func(r *result) { r.udp-- },
		func(r *result) { r.families-- },
		func(r *result) { r.backends-- },
		func(r *result) { r.wrongSource++ },
		func(r *result) { r.errors++ },
		func(r *result) { r.badChecksums++ },
		func(r *result) { r.leakedFrames++ },
		func(r *result) { r.leftovers++ },
	} {
		bad := good
		spoil(&bad)
		if bad.good(300, 4) {
			t.Errorf("%s: good", &bad)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, k := range kinds() {
		most := map[string]int{"tcp ipv4": 65536, "tcp ipv6": 65536, "udp ipv4": 1472, "udp ipv6": 1452}[k.String()]
		sizes := k.sizes(299)
		if len(sizes) != 299 || sizes[0] != 1 || slices.Max(sizes) != most {
			t.Errorf("%s: %d sizes from %d to %d, want 299 from 1 to %d", k, len(sizes), sizes[0], slices.Max(sizes), most)
		}
	}
}

func TestWithout(t *testing.T) {
	got := without([]string{"a", "b", "a", "c"}, []string{"a", "c", "d"})
	if want := []string{"b", "a"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// asNobody makes TestNeedsRoot, in a process of its own, run the demo.
const asNobody = "SLUICE_TEST_DEMO_AS_NOBODY"

func TestNeedsRoot(t *testing.T) {
	if os.Getenv(asNobody) != "" {
		fmt.Fprintln(os.Stderr, Run(context.Background(), Options{Out: os.Stdout, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}))
		os.Exit(0)
	}
	netlab.RequireRoot(t)
	binary, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	// By its descriptor: it lies in a folder that is root's alone.
	cmd := &exec.Cmd{
		Path: "/proc/self/fd/3", Args: []string{"demo", "-test.run=^TestNeedsRoot$"},
		Env: []string{asNobody + "=1"}, Dir: "/", ExtraFiles: []*os.File{binary},
		SysProcAttr: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}},
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	if stdout.Len() != 0 || strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), "needs root") {
		t.Errorf("stdout %q, stderr %q: want one line that says why", stdout.String(), stderr.String())
	}
}
