package dataplane

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/service"
)

// Where nobody else serves ClusterIPs (modes alone and named), processes of the node reach
// them through the return port: a route for each Service range to its outer end. What such
// a process sends arrives at the fast path like a frame of a pod, and what comes back
// enters the node there.
//
// Behind each of them is a second route of the worst metric that answers unreachable. It
// counts when the first is gone, as it is when somebody deletes the return port: then
// ClusterIPs are unreachable, and never follow the node's default route out of it. While
// the daemon is away the first one leads to the return port, where nothing passes.
//
// A process that is led to a backend on the node itself must see its answers come back
// here, so the backend sees an address that is routed to the return port as its client.

const (
	// hostRouteProtocol marks the routes as ours (rtm_protocol; 115 is free in
	// /etc/iproute2/rt_protos).
	hostRouteProtocol = 115
	hostRouteMetric   = 1024
	unreachableMetric = 1<<32 - 1 - 115
)

// hairpin4 and hairpin6 are what a backend on the node sees of a client on the node.
// Nobody has them.
var (
	hairpin4 = netip.AddrFrom4([4]byte{169, 254, 77, 2})
	hairpin6 = netip.MustParseAddr("fd73:6c75:6963:65::2")
)

// maxHostRoutes bounds the routes to single addresses, where no ranges are known.
const maxHostRoutes = 1024

// hostRoute is what a route of ours depends on.
type hostRoute struct {
	prefix netip.Prefix
	source [16]byte // the node's own address that processes send from
}

// keepHostRoutes makes the routes what they should be, after a change of the node's own
// addresses. Control loop only.
func (d *Dataplane) keepHostRoutes() {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	s := d.snapshot.Load()
	if s != nil && d.routedFor == d.routesDependOn(s) {
		return
	}
	if err := d.routeHosts(s); err != nil {
		d.log.Warn("routes for processes of the node", "err", err)
	}
}

// routeState is all that the routes depend on: while it is the same, they are right.
type routeState struct {
	snapshot *service.Snapshot
	v4, v6   [16]byte // the node's own addresses
}

func (d *Dataplane) routesDependOn(s *service.Snapshot) routeState {
	f := d.egress.fib.Load()
	like4, like6 := hairpin4.As16(), hairpin6.As16()
	return routeState{s, f.nodeAddress(&like4), f.nodeAddress(&like6)}
}

// forgetHostRoutes has keepHostRoutes add every route again. Control loop only.
func (d *Dataplane) forgetHostRoutes() {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	clear(d.hostRoutes)
	d.routedFor = routeState{}
}

// routeHosts makes the routes those of a snapshot. Under publishing.
func (d *Dataplane) routeHosts(s *service.Snapshot) error {
	if d.cfg.Mode == ModeFront || s == nil {
		return nil
	}
	state := d.routesDependOn(s)
	wanted := map[hostRoute]bool{}
	want := func(p netip.Prefix) {
		source := state.v6
		if p.Addr().Is4() {
			source = state.v4
		}
		wanted[hostRoute{p, source}] = true
	}
	want(netip.PrefixFrom(hairpin4, 32))
	want(netip.PrefixFrom(hairpin6, 128))
	for _, p := range s.Ranges() {
		want(p)
	}
	if len(s.Ranges()) == 0 {
		for _, a := range s.Addresses() {
			if len(wanted) == maxHostRoutes {
				d.log.Warn("processes of the node reach only some ClusterIPs: no Service range is known", "routes", maxHostRoutes)
				break
			}
			addr := netip.AddrFrom16(a).Unmap()
			want(netip.PrefixFrom(addr, addr.BitLen()))
		}
	}
	var errs []error
	if d.hostRoutes == nil {
		d.hostRoutes = map[hostRoute]bool{}
		errs = append(errs, d.sweepHostRoutes(wanted))
	}
	for r := range d.hostRoutes {
		if !wanted[r] {
			errs = append(errs, d.removeHostRoute(r.prefix))
			delete(d.hostRoutes, r)
		}
	}
	for r := range wanted {
		if d.hostRoutes[r] {
			continue
		}
		if err := d.addHostRoute(r); err != nil {
			errs = append(errs, fmt.Errorf("routing %v to the return port: %w", r.prefix, err))
			continue
		}
		d.hostRoutes[r] = true
	}
	d.routedFor = routeState{} // what failed is tried again
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.routedFor = state
	return nil
}

// sweepHostRoutes removes what a predecessor has routed and is not wanted any more.
func (d *Dataplane) sweepHostRoutes(wanted map[hostRoute]bool) error {
	prefixes := map[string]bool{}
	for r := range wanted {
		prefixes[netOf(r.prefix).String()] = true
	}
	return removeHostRoutes(d.nl, func(r *netlink.Route) bool { return r.Dst != nil && prefixes[r.Dst.String()] })
}

// addHostRoute adds or replaces the two routes of a prefix.
func (d *Dataplane) addHostRoute(r hostRoute) error {
	to := &netlink.Route{
		LinkIndex: d.pair.outer.Attrs().Index, Dst: netOf(r.prefix), Scope: netlink.SCOPE_LINK,
		Protocol: hostRouteProtocol, Priority: hostRouteMetric,
	}
	if r.source != ([16]byte{}) {
		to.Src = netip.AddrFrom16(r.source).Unmap().AsSlice()
	}
	last := &netlink.Route{Dst: to.Dst, Type: unix.RTN_UNREACHABLE, Protocol: hostRouteProtocol, Priority: unreachableMetric}
	for _, route := range []*netlink.Route{last, to} {
		err := d.nl.RouteReplace(route)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil // no IPv6 here
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *Dataplane) removeHostRoute(p netip.Prefix) error {
	var errs []error
	for _, route := range []*netlink.Route{
		{LinkIndex: d.pair.outer.Attrs().Index, Dst: netOf(p), Scope: netlink.SCOPE_LINK, Protocol: hostRouteProtocol, Priority: hostRouteMetric},
		{Dst: netOf(p), Type: unix.RTN_UNREACHABLE, Protocol: hostRouteProtocol, Priority: unreachableMetric},
	} {
		if err := d.nl.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("removing the route for %v: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// removeHostRoutes removes every route of ours, whoever of us added it, but those to keep.
func removeHostRoutes(nl *netlink.Handle, keep func(*netlink.Route) bool) error {
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := retryDump(func() ([]netlink.Route, error) {
			return nl.RouteListFiltered(family, &netlink.Route{Protocol: hostRouteProtocol, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		})
		errs = append(errs, err)
		for i := range routes {
			if r := &routes[i]; r.Priority == hostRouteMetric || r.Priority == unreachableMetric {
				if keep(r) {
					continue
				}
				if err := nl.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
					errs = append(errs, fmt.Errorf("removing the route for %v: %w", r.Dst, err))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// hairpin is what a backend on the node sees of a client on the node.
func hairpin(like *[16]byte) [16]byte {
	if isIPv4(like) {
		return hairpin4.As16()
	}
	return hairpin6.As16()
}

func netOf(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
