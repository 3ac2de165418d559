package bench

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Peer is a way to get packets from a client to the backends of a Service. A new one
// is a file of its own and a line in Peers.
type Peer interface {
	// Name is its word in tables and results.
	Name() string
	// About says in a line what it is.
	About() string
	// Translates reports whether it serves ClusterIPs. One that does not is sent
	// to the backends directly: a floor, no competitor.
	Translates() bool
	// Prepare does what is not part of the peer's own start: manifests and API
	// objects.
	Prepare(ctx context.Context, s *Site) error
	// Start makes the site's node serve the site's world, and returns when it
	// is at work, not necessarily in sync.
	Start(ctx context.Context, s *Site) (Instance, error)
}

// Instance is a peer at work on a site.
type Instance interface {
	// Granted says what it asked of the lab and what it got: XDP modes,
	// offloads switched, versions.
	Granted() []string
	// Stop takes it off the site again.
	Stop() error
}

// Updater is an instance whose Services can be changed while it works.
type Updater interface {
	// SetBackends changes the endpoints of Service n.
	SetBackends(n int, backends []netip.Addr) error
}

// Pauser is an instance that shares its source of Services with another peer's, and
// can be kept from following what is meant for that one.
type Pauser interface{ Pause(on bool) error }

// Living is an instance that may end by itself; the error says why it did.
type Living interface{ Alive() error }

// Process is an instance that has processes, for their memory and profiles.
type Process interface {
	Pids() []int
}

// Profiler is an instance whose user side can be profiled.
type Profiler interface {
	// CPUProfile records for a while and returns a pprof profile.
	CPUProfile(ctx context.Context, d time.Duration) ([]byte, error)
}

// ErrNotProgrammed is how a peer fails that was not in sync in time.
var ErrNotProgrammed = errors.New("not programmed in time")

// Unavailable is why a peer cannot take part here: something is not installed.
type Unavailable struct{ Reason string }

func (u *Unavailable) Error() string { return u.Reason }

// Unsuited is why a peer does not take part in a workload: what came of it could
// not be compared.
type Unsuited struct{ Reason string }

func (u *Unsuited) Error() string { return u.Reason }

// target is where traffic for Service n goes with this peer: to the Service, or to
// its first backend if the peer does not translate.
func target(p Peer, s *Site, n int, frontend func(int) netip.AddrPort, backendPort uint16) netip.AddrPort {
	if p.Translates() {
		return frontend(n)
	}
	return netip.AddrPortFrom(s.World.Backends[0], backendPort)
}

// nothing is what a peer grants and stops that changes nothing.
type nothing struct{}

func (nothing) Granted() []string { return nil }
func (nothing) Stop() error       { return nil }
