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
func newNetNS() (fd int, err error) {
	done := make(chan struct{})
	goLocked(func() {
		defer close(done)
		err = visitNetNS(
			func() error { return unix.Unshare(unix.CLONE_NEWNET) },
			func() error {
				fd, err = openThreadNetNS()
				return err
			})
	})
	<-done
	return fd, err
}

// goLocked runs f on a goroutine that is locked to its thread, which is never the first thread of the process: what
// /proc/self says of namespaces is that thread's. f unlocks the thread if it may be used again.
func goLocked(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		// Held until f has a thread, the first thread cannot be chosen again.
		placed := make(chan struct{})
		goLocked(func() {
			close(placed)
			f()
		})
		<-placed
		runtime.UnlockOSThread()
	}()
}

// visitNetNS takes the calling, locked thread into another namespace by enter, runs f, and takes it back. Only then does
// it unlock the thread: one that could not go back is discarded by the runtime when its goroutine ends.
func visitNetNS(enter, f func() error) error {
	home, err := openThreadNetNS()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(home)
	if err := enter(); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering the namespace: %w", err)
	}
	defer func() {
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

// openThreadNetNS opens the network namespace of the calling thread.
func openThreadNetNS() (int, error) {
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening the thread's network namespace: %w", err)
	}
	return fd, nil
}
