//go:build linux

package netlab

import (
	"errors"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func threadNetNS(t *testing.T) string {
	t.Helper()
	link, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Error(err)
	}
	return link
}

func TestDoRunsInNamespace(t *testing.T) {
	RequireRoot(t)
	lab := New(t)
	a, b := lab.Namespace("a"), lab.Namespace("b")
	home, leader := threadNetNS(t), func() string {
		link, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Error(err)
		}
		return link
	}
	leaderBefore := leader()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			var inA, inB string
			a.Do(func() error {
				inA = threadNetNS(t)
				if unix.Gettid() == unix.Getpid() || leader() != leaderBefore {
					t.Error("the first thread of the process left its namespace")
				}
				return b.Do(func() error { inB = threadNetNS(t); return nil })
			})
			if inA == home || inB == home || inA == inB {
				t.Errorf("home %s, a %s, b %s: want three different ones", home, inA, inB)
			}
			if got := threadNetNS(t); got != home {
				t.Errorf("after Do the thread is in %s, want %s", got, home)
			}
		})
	}
	wg.Wait()
}

func TestDoKeepsMountNamespace(t *testing.T) {
	RequireRoot(t)
	want, err := os.Readlink("/proc/thread-self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	New(t).Namespace("a").Do(func() error {
		if got, err := os.Readlink("/proc/thread-self/ns/mnt"); got != want {
			t.Errorf("mount namespace %s, %v; want %s", got, err, want)
		}
		return nil
	})
}

func TestDoHandsOn(t *testing.T) {
	RequireRoot(t)
	var tb fakeTB
	home := threadNetNS(t)
	broken := errors.New("broken")
	tb.run(func() {
		n := New(&tb).Namespace("a")
		if err := n.Do(func() error { return broken }); err != broken {
			t.Errorf("error %v, want %v", err, broken)
		}
		func() {
			defer func() {
				if p := recover(); p != "ouch" {
					t.Errorf("panic %v, want ouch", p)
				}
			}()
			n.Do(func() error { panic("ouch") })
			t.Error("a panic did not go on in the caller")
		}()
		n.Do(func() error { tb.Fatalf("fatal within"); return nil })
		t.Error("Goexit did not go on in the caller")
	})
	if tb.fatal != "fatal within" {
		t.Errorf("fatal %q", tb.fatal)
	}
	if got := threadNetNS(t); got != home {
		t.Errorf("the thread is in %s, want %s", got, home)
	}
}

// A closed descriptor stands for any failure to enter.
func TestDoReportsFailure(t *testing.T) {
	RequireRoot(t)
	called := false
	n := &Namespace{tb: t, name: "gone", fd: -1}
	if err := n.Do(func() error { called = true; return nil }); !errors.Is(err, unix.EBADF) || called {
		t.Errorf("error %v, function called: %t; want EBADF, not called", err, called)
	}
}

func TestNamespaceIsQuiet(t *testing.T) {
	RequireRoot(t)
	n := New(t).Namespace("a")
	for _, s := range quietSysctls {
		n.Do(func() error {
			got, err := os.ReadFile(sysctlPath(s.key))
			if string(got) != s.value+"\n" {
				t.Errorf("%s is %q, %v; want %q", s.key, got, err, s.value)
			}
			return nil
		})
	}
	if lo := n.link("lo").Attrs(); lo.Flags&1 == 0 {
		t.Errorf("lo is down: %v", lo.Flags)
	}
}

func TestHereIsWhereTheThreadIs(t *testing.T) {
	RequireRoot(t)
	lab := New(t)
	a := lab.Namespace("a")
	err := a.Do(func() error {
		here, err := Here(t)
		if err != nil {
			return err
		}
		want := threadNetNS(t)
		return here.Do(func() error {
			if got := threadNetNS(t); got != want {
				t.Errorf("Here is in %s, want %s", got, want)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}
