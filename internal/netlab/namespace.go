//go:build linux

package netlab

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is an anonymous network namespace with its loopback up and IPv6 duplicate address detection off.
type Namespace struct {
	tb     TB
	name   string
	fd     int
	handle *netlink.Handle // a route socket that lives in the namespace
	nat    natTables
}

// quietSysctls make a namespace the same on every host (IPv4's per-device settings are otherwise copied from the
// initial namespace, net/ipv4/devinet.c:devinet_init_net) and keep it from waiting or talking by itself.
var quietSysctls = []struct{ key, value string }{
	{"net.ipv4.conf.all.rp_filter", "0"},
	{"net.ipv4.conf.default.rp_filter", "0"},
	{"net.ipv4.conf.all.accept_local", "0"},
	{"net.ipv4.conf.default.accept_local", "0"},
	{"net.ipv4.ip_forward", "0"},
	{"net.ipv6.conf.all.disable_ipv6", "0"},
	{"net.ipv6.conf.default.disable_ipv6", "0"},
	{"net.ipv6.conf.all.accept_dad", "0"},
	{"net.ipv6.conf.default.accept_dad", "0"},
	{"net.ipv6.conf.default.dad_transmits", "0"},
	{"net.ipv6.conf.default.accept_ra", "0"},
	{"net.ipv6.conf.default.router_solicitations", "0"},
}

// Namespace makes a namespace. The name is for messages only and need not be unique.
func (l *Lab) Namespace(name string) *Namespace {
	l.tb.Helper()
	n, err := newNamespace(l.tb, name)
	if err != nil {
		l.tb.Fatalf("making namespace %q: %v", name, err)
	}
	l.tb.Cleanup(func() {
		n.handle.Close()
		if err := unix.Close(n.fd); err != nil {
			l.tb.Logf("closing namespace %q: %v", name, err)
		}
	})
	return n
}

func newNamespace(tb TB, name string) (_ *Namespace, err error) {
	fd, err := newNetNS()
	if err != nil {
		return nil, err
	}
	n := &Namespace{tb: tb, name: name, fd: fd}
	defer func() {
		if err != nil {
			if n.handle != nil {
				n.handle.Close()
			}
			unix.Close(fd)
		}
	}()
	err = n.Do(func() error {
		for _, s := range quietSysctls {
			if err := writeSysctl(s.key, s.value); err != nil {
				return err
			}
		}
		var err error
		// In Do rather than by NewHandleAt, which returns the thread to the pool even if it could not leave the namespace.
		n.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, err
	}
	lo, err := n.handle.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("finding lo: %w", err)
	}
	if err := n.handle.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("setting lo up: %w", err)
	}
	return n, nil
}

// Name returns the name that messages use.
func (n *Namespace) Name() string { return n.name }

// FD returns the descriptor that holds the namespace. It stays the namespace's: do not close it.
func (n *Namespace) FD() int { return n.fd }

// Handle returns the route netlink socket of the namespace, for what has no method here. It stays the namespace's.
func (n *Namespace) Handle() *netlink.Handle { return n.handle }

// Do runs f on an OS thread inside the namespace and returns its error. Goroutines which f starts run elsewhere;
// sockets and files which it opens stay in the namespace and can be used from anywhere. /proc/sys/net is the namespace's,
// but /proc/net is not: that is /proc/thread-self/net. A panic or Goexit (t.FailNow) in f goes on in the caller.
func (n *Namespace) Do(f func() error) error {
	type outcome struct {
		err      error
		returned bool
		panicked any
		stack    []byte
	}
	done := make(chan outcome, 1)
	goLocked(func() {
		var o outcome
		// Last, so that the caller goes on only after the thread has left the namespace or is lost.
		defer func() {
			if !o.returned {
				if o.panicked = recover(); o.panicked != nil {
					o.stack = debug.Stack()
				}
			}
			done <- o
		}()
		o.err = visitNetNS(func() error { return unix.Setns(n.fd, unix.CLONE_NEWNET) }, f)
		o.returned = true
	})
	o := <-done
	switch {
	case o.panicked != nil:
		n.tb.Logf("panic in namespace %q: %v\n%s", n.name, o.panicked, o.stack)
		panic(o.panicked)
	case !o.returned:
		runtime.Goexit()
	}
	return o.err
}

// do is Do for building: an error ends the test.
func (n *Namespace) do(what string, f func() error) {
	n.tb.Helper()
	if err := n.Do(f); err != nil {
		n.tb.Fatalf("%s in namespace %q: %v", what, n.name, err)
	}
}

// Here returns the network namespace that the calling thread is in, as it is: nothing in it is changed, and it outlives tb.
func Here(tb TB) (*Namespace, error) {
	fd, err := openThreadNetNS()
	if err != nil {
		return nil, err
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	tb.Cleanup(func() {
		handle.Close()
		unix.Close(fd)
	})
	return &Namespace{tb: tb, name: "here", fd: fd, handle: handle}, nil
}
