//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain asserts that the labs of all tests have left nothing: no goroutine, descriptor, device of the host, process, or
// thread in another namespace than the one it came from.
func TestMain(m *testing.M) {
	before := leftovers()
	code := m.Run()
	if code == 0 {
		err := goleak.Find()
		// What the runtime or the kernel still takes down may need a moment.
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			after := leftovers()
			if err == nil && after == before {
				break
			}
			if time.Now().After(deadline) {
				fmt.Printf("left behind: %v\nbefore:\n%s\nafter:\n%s\n", err, before, after)
				code = 1
				break
			}
			err = goleak.Find()
		}
	}
	os.Exit(code)
}

// leftovers lists what a lab could leave in the process and on the host. Pipes and files of the runtime's own poller,
// which come with the first socket, are there before: it makes one.
func leftovers() string {
	var b strings.Builder
	if c, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err == nil {
		os.NewFile(uintptr(c), "probe").Close()
	}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(target, "/proc/") {
			fmt.Fprintln(&b, "fd", target)
		}
	}
	namespaces := make(map[string]bool)
	tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, task := range tasks {
		if target, err := os.Readlink(task); err == nil {
			namespaces[target] = true
		}
	}
	fmt.Fprintln(&b, "network namespaces of threads", namespaces)
	children, _ := filepath.Glob("/proc/self/task/*/children")
	for _, c := range children {
		if pids, _ := os.ReadFile(c); len(pids) > 0 {
			fmt.Fprintf(&b, "child %s\n", pids)
		}
	}
	return b.String()
}

// testContext bounds a test's waiting.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(context.Background(), 10*time.Second, errors.New("test took too long"))
	t.Cleanup(cancel)
	return ctx
}

// wire is two namespaces with a veth pair, eth0 to eth0.
func wire(t *testing.T, o VethOptions) (a, b *Namespace) {
	t.Helper()
	RequireRoot(t)
	lab := New(t)
	a, b = lab.Namespace("a"), lab.Namespace("b")
	lab.Veth(a, "eth0", b, "eth0", o)
	return a, b
}

// addressed is a wire with 192.0.2.1 and 2001:db8:3::1 on one end, .2 and ::2 on the other.
func addressed(t *testing.T, o VethOptions) (a, b *Namespace) {
	t.Helper()
	a, b = wire(t, o)
	for _, f := range Families {
		a.Addr("eth0", cidr(NodeAddr(f, 1), nodeBits(f)))
		b.Addr("eth0", cidr(NodeAddr(f, 2), nodeBits(f)))
	}
	return a, b
}

func nodeBits(f Family) int {
	if f == IPv4 {
		return 24
	}
	return 64
}

// fakeTB records what a lab says to its owner; Fatalf ends the goroutine as testing's does.
type fakeTB struct {
	cleanups []func()
	fatal    string
	skipped  string
	logs     []string
}

func (f *fakeTB) Helper()          {}
func (f *fakeTB) Name() string     { return "fake" }
func (f *fakeTB) Cleanup(c func()) { f.cleanups = append(f.cleanups, c) }
func (f *fakeTB) Logf(format string, args ...any) {
	f.logs = append(f.logs, fmt.Sprintf(format, args...))
}
func (f *fakeTB) Fatalf(format string, args ...any) {
	f.fatal = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// run runs f as a test of the fake would, cleanups included.
func (f *fakeTB) run(test func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for i := len(f.cleanups) - 1; i >= 0; i-- {
				f.cleanups[i]()
			}
		}()
		test()
	}()
	<-done
}

type skippingTB struct{ fakeTB }

func (s *skippingTB) Skipf(format string, args ...any) {
	s.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestRequireRoot(t *testing.T) {
	refused := errors.New("refused")
	for _, tt := range []struct {
		name      string
		ci        string
		err       error
		wantFatal bool
		wantSkip  bool
	}{
		{"privileged", "", nil, false, false},
		{"privileged in CI", "true", nil, false, false},
		{"unprivileged", "", refused, false, true},
		{"unprivileged in CI", "true", refused, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("CI", tt.ci)
			old := privileged
			privileged = func() error { return tt.err }
			defer func() { privileged = old }()
			var tb skippingTB
			tb.run(func() { RequireRoot(&tb) })
			if got := tb.fatal != ""; got != tt.wantFatal {
				t.Errorf("fatal %q, want one: %t", tb.fatal, tt.wantFatal)
			}
			if got := tb.skipped != ""; got != tt.wantSkip {
				t.Errorf("skip %q, want one: %t", tb.skipped, tt.wantSkip)
			}
		})
	}
}

// TestLabLeavesNothing takes a lab with one of everything down and looks at once.
func TestLabLeavesNothing(t *testing.T) {
	RequireRoot(t)
	links := func() int {
		list, err := netlink.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	linksBefore, goroutines, before := links(), runtime.NumGoroutine(), leftovers()
	var tb fakeTB
	tb.run(func() {
		c := New(&tb).Cluster(ClusterOptions{})
		c.Backends[0].EchoOn(echoPort)
		c.Node.Capture(UplinkDevice, CaptureOptions{})
		c.Node.Inject(UplinkDevice)
		c.Node.Command("sleep", "1000")
		c.Clients[0].Exchange(testContext(t), "tcp", c.Backends[0].AddrPort(IPv4, echoPort), 100)
	})
	if tb.fatal != "" {
		t.Fatal(tb.fatal)
	}
	if got := leftovers(); got != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, got)
	}
	if got := links(); got != linksBefore {
		t.Errorf("the host has %d links, had %d", got, linksBefore)
	}
	for deadline := time.Now().Add(2 * time.Second); runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, were %d", runtime.NumGoroutine(), goroutines)
		}
	}
	for _, line := range tb.logs {
		t.Errorf("taking the lab down said: %s", line)
	}
}
