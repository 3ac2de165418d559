//go:build linux

package netlab

import (
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// TB is what a lab needs of its owner. testing.TB has it; a command brings its own.
// Fatalf must not return: it ends the goroutine (runtime.Goexit) or panics.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Cleanup(func())
	Name() string
}

// RequireRoot skips the test, with the reason, if this process may not make network namespaces. Where CI=true
// promises privileges, it fails instead, so that a runner without them cannot pass by skipping.
func RequireRoot(tb TB) {
	tb.Helper()
	err := privileged()
	if err == nil {
		return
	}
	if skipper, ok := tb.(interface{ Skipf(string, ...any) }); ok && os.Getenv("CI") != "true" {
		skipper.Skipf("needs root and network namespaces: %v", err)
	}
	tb.Fatalf("needs root and network namespaces: %v", err)
}

// privileged tries once what every lab does first.
var privileged = sync.OnceValue(func() error {
	fd, err := newNetNS()
	if err != nil {
		return err
	}
	return unix.Close(fd)
})

// Lab is a set of namespaces and of what was made in them.
type Lab struct {
	tb TB
}

// New returns an empty lab which tb's Cleanup takes down.
func New(tb TB) *Lab {
	return &Lab{tb: tb}
}

// newNetNS makes a network namespace and returns a descriptor of it, the only thing that holds it.
func newNetNS() (int, error) {
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the thread is in the new namespace and the runtime discards it with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{-1, fmt.Errorf("unsharing the network namespace: %w", err)}
			return
		}
		fd, err := openThreadNetNS()
		done <- result{fd, err}
	}()
	r := <-done
	return r.fd, r.err
}

// openThreadNetNS opens the network namespace of the calling thread.
func openThreadNetNS() (int, error) {
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening the thread's network namespace: %w", err)
	}
	return fd, nil
}
