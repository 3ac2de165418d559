package dataplane

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// egress knows which way a packet leaves: by a direct port with these
// link-layer addresses, or by the return port. It follows the kernel's routes,
// neighbours and links.
type egress struct {
	log   *slog.Logger
	nl    *netlink.Handle
	ns    netns.NsHandle
	ports *atomic.Pointer[portSet]
	fib   atomic.Pointer[fib]
	adj   *adjacencies

	wondered chan neighbourKey // by workers: who has this?
	changed  chan struct{}     // the kernel said that something changed
	lost     atomic.Bool       // a subscription has ended
	// subscriptions is closed to end them; the control loop's.
	subscriptions chan struct{}
	warned        bool // of policy routing
}

// maxAdjacencies bounds the destinations in use: clients and backends of all
// live flows. Beyond it packets leave by the return port.
const maxAdjacencies = 1 << 17

// staleProbe is how often the kernel is asked to confirm a neighbour of ours
// that it has not heard of: what we send past it does not count as use.
const staleProbe = 15 * time.Second

// newEgress subscribes to the kernel's changes and then reads all there is, so
// that nothing falls between. To be called on a thread in the node's network
// namespace.
func newEgress(nl *netlink.Handle, ports *atomic.Pointer[portSet], log *slog.Logger) (*egress, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("network namespace of this thread: %w", err)
	}
	e := &egress{
		log: log, nl: nl, ns: ns, ports: ports,
		adj:      newAdjacencies(maxAdjacencies),
		changed:  make(chan struct{}, 1),
		wondered: make(chan neighbourKey, 64),
	}
	if err := e.subscribe(); err != nil {
		e.close()
		return nil, err
	}
	if _, err := e.reload(); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// subscribe turns every change of route, neighbour and link into one mark: what
// changed is read from the next dump. On a thread in the node's network namespace.
func (e *egress) subscribe() error {
	done := make(chan struct{})
	e.subscriptions = done
	lost := func(err error) {
		select {
		case <-done: // closed: no news
		default:
			// The library has ended this subscription.
			e.log.Warn("netlink subscription lost events: reading everything again", "err", err)
			e.lost.Store(true)
			e.mark()
		}
	}
	routes := make(chan netlink.RouteUpdate, 64)
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: lost,
		ReceiveBufferSize: subscriptionBuffer, ReceiveBufferForceSize: true}); err != nil {
		return fmt.Errorf("subscribing to routes: %w", err)
	}
	go drain(routes, e.mark)
	neighs := make(chan netlink.NeighUpdate, 64)
	if err := netlink.NeighSubscribeWithOptions(neighs, done, netlink.NeighSubscribeOptions{ErrorCallback: lost,
		ReceiveBufferSize: subscriptionBuffer, ReceiveBufferForceSize: true}); err != nil {
		return fmt.Errorf("subscribing to neighbours: %w", err)
	}
	go drain(neighs, e.mark)
	links := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: lost,
		ReceiveBufferSize: subscriptionBuffer, ReceiveBufferForceSize: true}); err != nil {
		return fmt.Errorf("subscribing to links: %w", err)
	}
	go drain(links, e.mark)
	return nil
}

// subscriptionBuffer is how many bytes of news may wait: some thousand changes of links.
// A test has less.
var subscriptionBuffer = 4 << 20

// resubscribe subscribes anew if a subscription has ended. Control loop only; what it
// missed is in the dump that follows.
func (e *egress) resubscribe() error {
	if !e.lost.Swap(false) {
		return nil
	}
	close(e.subscriptions)
	if err := e.subscribe(); err != nil {
		e.lost.Store(true)
		time.AfterFunc(time.Second, e.mark)
		return err
	}
	return nil
}

// drain marks for each update until the subscription ends.
func drain[T any](updates <-chan T, mark func()) {
	for range updates {
		mark()
	}
}

// mark asks for a reload; it never blocks.
func (e *egress) mark() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// portsChanged takes a new set of ports in. Control loop only.
func (e *egress) portsChanged(s *portSet) {
	f := e.fib.Load()
	for i, p := range s.byIndex {
		p.hw.Store(f.devices[i].station())
	}
	e.adj.refresh(e.resolve)
}

// reload dumps what the kernel has, resolves every adjacency anew, and gives the links.
func (e *egress) reload() ([]netlink.Link, error) {
	links, err := retryDump(e.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	var local, mainTable []netlink.Route
	var neighs []netlink.Neigh
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		table := func(n int) ([]netlink.Route, error) {
			return retryDump(func() ([]netlink.Route, error) {
				return e.nl.RouteListFiltered(family, &netlink.Route{Table: n}, netlink.RT_FILTER_TABLE)
			})
		}
		l, err := table(unix.RT_TABLE_LOCAL)
		if err != nil {
			return nil, fmt.Errorf("listing local routes: %w", err)
		}
		local = append(local, l...)
		m, err := table(unix.RT_TABLE_MAIN)
		if err != nil {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		mainTable = append(mainTable, m...)
		ns, err := retryDump(func() ([]netlink.Neigh, error) { return e.nl.NeighList(0, family) })
		if err != nil {
			return nil, fmt.Errorf("listing neighbours: %w", err)
		}
		neighs = append(neighs, ns...)
	}
	f := newFIB(links, local, mainTable, neighs)
	if slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Type() == "bridge" }) {
		forwarding, err := retryDump(func() ([]netlink.Neigh, error) { return e.nl.NeighList(0, unix.AF_BRIDGE) })
		if err != nil {
			return nil, fmt.Errorf("listing what bridges have learnt: %w", err)
		}
		f.learn(forwarding)
	}
	e.fib.Store(f)
	e.portsChanged(e.ports.Load())
	e.warnOfRules()
	return links, nil
}

// retryDump repeats a dump that the kernel says was interrupted by a change.
func retryDump[T any](dump func() (T, error)) (v T, err error) {
	for range 5 {
		if v, err = dump(); err == nil {
			break
		}
	}
	return v, err
}

// warnOfRules says once that policy routing is not followed.
func (e *egress) warnOfRules() {
	if e.warned {
		return
	}
	if r := foreignRule(e.nl); r != nil {
		e.warned = true
		e.log.Warn("policy routing rules are not followed: packets leave as the tables local and main have it", "rule", r.String())
	}
}

// foreignRule is a rule that sends packets to another table than the default rules do,
// nil if there is none.
func foreignRule(nl *netlink.Handle) *netlink.Rule {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := nl.RuleList(family)
		if err != nil {
			continue
		}
		for i := range rules {
			if t := rules[i].Table; t != unix.RT_TABLE_LOCAL && t != unix.RT_TABLE_MAIN && t != unix.RT_TABLE_DEFAULT {
				return &rules[i]
			}
		}
	}
	return nil
}

// resolve is what the current fib says of addr. Any thread.
func (e *egress) resolve(addr [16]byte) *adjacency {
	f := e.fib.Load()
	a := &adjacency{addr: addr}
	r := f.lookup(addr)
	a.ifindex = r.ifindex
	switch r.kind {
	case routeNone:
		return a
	case routeLocal:
		a.path = pathLocal
		return a
	case routeKernel:
		a.path = pathUnserved
		return a
	}
	p := e.ports.Load().byIndex[r.ifindex]
	if p == nil {
		a.path = pathUnserved
		if e.bridged(f, r.ifindex) {
			a.path = pathServed
			// What is steered or received past the bridge keeps neither its
			// knowledge of stations nor the neighbour fresh: asking does.
			a.stale = f.neighbours[neighbourKey{r.ifindex, r.hop(addr)}].stale
		}
		return a
	}
	a.path = pathServed
	d := f.devices[r.ifindex]
	mtu := d.mtu
	if r.mtu > 0 && r.mtu < mtu {
		mtu = r.mtu
	}
	if p.steered {
		a.mtu = mtu
		return a // the kernel's way keeps what the device can do
	}
	n, ok := f.neighbours[neighbourKey{r.ifindex, r.hop(addr)}]
	if !ok || !d.up {
		return a // known way, unknown next hop: the kernel asks for it
	}
	a.port, a.dst, a.src, a.mtu, a.stale = p, n.mac, d.mac, mtu, n.stale
	return a
}

// bridged reports whether a served port is enslaved to the bridge. What goes there leaves
// by the return port, over the bridge.
func (e *egress) bridged(f *fib, bridge int) bool {
	for i := range e.ports.Load().byIndex {
		if f.devices[i].master == bridge {
			return true
		}
	}
	return false
}

// believes reports whether a source address seen on port p is one that the
// kernel would reach through p (or through the bridge that p is enslaved to):
// the strict reverse-path check of RFC 3704. tags are the frame's VLAN tags, the
// outer one first, four bytes each: then p is the device below a VLAN's. On the
// return port only the node's own addresses are believed.
func (e *egress) believes(src [16]byte, p *port, tags []byte) bool {
	f := e.fib.Load()
	r := f.lookup(src)
	if p.returns {
		return r.kind == routeLocal
	}
	if r.kind != routeUnicast {
		return false
	}
	in := r.ifindex
	for ; len(tags) > 0; tags = tags[:len(tags)-4] {
		id := int(tags[len(tags)-2]&0x0f)<<8 | int(tags[len(tags)-1])
		if id == 0 {
			continue // a priority and no VLAN (IEEE 802.1Q, 9.6)
		}
		d := f.devices[in]
		if d.vlan == 0 || d.vlan != id {
			return false
		}
		in = d.parent
	}
	if in == p.ifindex {
		return true
	}
	if in == 0 || f.devices[p.ifindex].master != in {
		return false
	}
	// Of pods on one bridge each could take another's address, as far as the route goes.
	behind, known := f.behind(src, in, p.ifindex)
	if !known {
		e.wonder(neighbourKey{in, src})
	}
	return behind
}

// wonder has the control loop ask the kernel who has an address behind a bridge: the
// frame that came from there cannot be believed yet. Any thread; it never waits.
func (e *egress) wonder(k neighbourKey) {
	select {
	case e.wondered <- k:
	default:
	}
}

// ask asks the kernel to find, or to confirm, a neighbour (NTF_USE,
// net/core/neighbour.c:neigh_add).
func (e *egress) ask(k neighbourKey) {
	ip := netip.AddrFrom16(k.addr).Unmap()
	family := unix.AF_INET6
	if ip.Is4() {
		family = unix.AF_INET
	}
	err := e.nl.NeighSet(&netlink.Neigh{LinkIndex: k.ifindex, Family: family, IP: net.IP(ip.AsSlice()), Flags: netlink.NTF_USE})
	if err != nil {
		e.log.Debug("asking for a neighbour", "address", ip, "err", err)
	}
}

// probeStale asks the kernel to confirm the neighbours that we send to and it
// has not heard of.
func (e *egress) probeStale() {
	f := e.fib.Load()
	asked := map[neighbourKey]bool{}
	e.adj.each(func(a *adjacency) {
		if a == nil || !a.stale {
			return
		}
		asked[neighbourKey{a.ifindex, f.lookup(a.addr).hop(a.addr)}] = true
	})
	for k := range asked {
		e.ask(k)
	}
}

// close ends the subscriptions.
func (e *egress) close() {
	close(e.subscriptions)
	e.ns.Close()
}
