package dataplane

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"sort"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The fib is the kernel's routes, neighbours and links as one immutable value.
// It answers, without a system call, which way the kernel would send a packet:
// the control loop (egress.go) builds a new one from a full dump whenever the
// kernel says that something changed, so that a lost event costs nothing but
// time, and the workers read it through an atomic pointer.
//
// It holds the tables local and main, in that order, as the default rules
// do. A node with further rules (policy routing) is served by the same answers;
// egress.warnOfRules says so once.

// routeKind is what a route does with a packet.
type routeKind uint8

const (
	routeNone    routeKind = iota // no route, or one that refuses
	routeUnicast                  // to a next hop by a device
	routeLocal                    // to the node itself
	routeKernel                   // multipath or encapsulated: the kernel's to decide
)

// route is one entry of the fib.
type route struct {
	kind    routeKind
	ifindex int
	gateway [16]byte // zero: the destination itself is the next hop
	mtu     int      // of the route, 0 none
	metric  int
}

// hop is the next hop on the route's way to addr.
func (r route) hop(addr [16]byte) [16]byte {
	if r.gateway == ([16]byte{}) {
		return addr
	}
	return r.gateway
}

// neighbour is a resolved link-layer address.
type neighbour struct {
	mac   [6]byte
	stale bool // the kernel has not heard of it lately: ask it to
}

type neighbourKey struct {
	ifindex int
	addr    [16]byte
}

// station is a link-layer address behind a bridge.
type station struct {
	bridge int
	mac    [6]byte
}

// learn takes in what bridges know: which station is behind which of their ports.
func (f *fib) learn(forwarding []netlink.Neigh) {
	f.stations = make(map[station]int, len(forwarding))
	for _, n := range forwarding {
		if n.MasterIndex == 0 || len(n.HardwareAddr) != 6 {
			continue
		}
		f.stations[station{n.MasterIndex, [6]byte(n.HardwareAddr)}] = n.LinkIndex
	}
}

// behind reports whether addr lives behind this port of a bridge: whether the station that
// has it, as the kernel's neighbour entry says, is behind that port. known says whether
// there is such an entry.
func (f *fib) behind(addr [16]byte, bridge, port int) (yes, known bool) {
	n, ok := f.neighbours[neighbourKey{bridge, addr}]
	if !ok {
		return false, false
	}
	at, ok := f.stations[station{bridge, n.mac}]
	return at == port, ok
}

// device is what the fib knows of a link.
type device struct {
	name   string
	mac    [6]byte
	mtu    int
	up     bool
	master int // bridge it is enslaved to, 0 none
	parent int // of a VLAN device: the device below
	vlan   int // its VLAN id, 0 not a VLAN device
}

// station is the address that the device takes frames for, as port.hw has it:
// its own, or any on a device that a bridge listens through.
func (d device) station() uint64 {
	if d.master != 0 {
		return 0
	}
	return stationOf(d.mac[:])
}

// stationOf reads a link-layer address as port.hw has it.
func stationOf(mac []byte) uint64 {
	return uint64(binary.LittleEndian.Uint32(mac)) | uint64(binary.LittleEndian.Uint16(mac[4:]))<<32
}

// fib is immutable once published.
type fib struct {
	lens       []int // prefix lengths (of 128) in use, longest first
	routes     map[int]map[[16]byte]route
	neighbours map[neighbourKey]neighbour
	devices    map[int]device
	gateways   map[int]bool    // devices that a route with a gateway leaves by
	stations   map[station]int // bridges' ports, by the stations behind them
	// node4 and node6 are addresses of the node's own, zero if it has none: the
	// source that a pod sees that talks to itself through a Service.
	node4, node6 [16]byte
}

// lookup is the longest-prefix match of a.
func (f *fib) lookup(a [16]byte) route {
	least := 0
	if isIPv4(&a) {
		least = 96 // ::/0 is no route for ::ffff:192.0.2.1
	}
	for _, n := range f.lens {
		if n < least {
			break
		}
		if r, ok := f.routes[n][maskAddr(a, n)]; ok {
			return r
		}
	}
	return route{}
}

// maskAddr zeroes all but the first bits of a.
func maskAddr(a [16]byte, bits int) [16]byte {
	for i := range a {
		switch left := bits - i*8; {
		case left >= 8:
		case left <= 0:
			a[i] = 0
		default:
			a[i] &= ^byte(0) << (8 - left)
		}
	}
	return a
}

// newFIB builds a fib from what the kernel dumped. Routes of the local table
// come first, as the rules have it: a main-table route of the same prefix
// never replaces one of them.
func newFIB(links []netlink.Link, local, mainTable []netlink.Route, neighs []netlink.Neigh) *fib {
	f := &fib{
		routes:     map[int]map[[16]byte]route{},
		neighbours: make(map[neighbourKey]neighbour, len(neighs)),
		devices:    make(map[int]device, len(links)),
		gateways:   map[int]bool{},
	}
	for _, l := range links {
		at := l.Attrs()
		d := device{name: at.Name, mtu: at.MTU, up: at.RawFlags&unix.IFF_UP != 0 && at.RawFlags&unix.IFF_RUNNING != 0, master: at.MasterIndex}
		copy(d.mac[:], at.HardwareAddr)
		if v, ok := l.(*netlink.Vlan); ok {
			d.parent, d.vlan = at.ParentIndex, v.VlanId
		}
		f.devices[at.Index] = d
	}
	for _, r := range local {
		f.add(r, true)
	}
	f.chooseNodeAddresses(local)
	for _, r := range mainTable {
		f.add(r, false)
	}
	for n := range f.routes {
		f.lens = append(f.lens, n)
	}
	sort.Sort(sort.Reverse(sort.IntSlice(f.lens)))
	for _, n := range neighs {
		if len(n.HardwareAddr) != 6 || n.State&(netlink.NUD_INCOMPLETE|netlink.NUD_FAILED|netlink.NUD_NONE) != 0 && n.State&netlink.NUD_PERMANENT == 0 {
			continue
		}
		k := neighbourKey{ifindex: n.LinkIndex}
		var ok bool
		if k.addr, ok = addrOf(n.IP); !ok {
			continue
		}
		v := neighbour{stale: n.State&netlink.NUD_STALE != 0}
		copy(v.mac[:], n.HardwareAddr)
		f.neighbours[k] = v
	}
	return f
}

// add takes one dumped route in; of two with the same prefix the one with the
// lower metric wins, as in the kernel, unless the first is of the local table.
func (f *fib) add(r netlink.Route, local bool) {
	var prefix [16]byte
	bits := 0
	v6 := r.Family == unix.AF_INET6
	if r.Dst != nil {
		ones, size := r.Dst.Mask.Size()
		if size == 32 {
			ones += 96
		}
		bits = ones
		var ok bool
		if prefix, ok = addrOf(r.Dst.IP); !ok {
			return
		}
	} else if !v6 {
		bits = 96 // 0.0.0.0/0 is ::ffff:0:0/96
		prefix = netip.AddrFrom4([4]byte{}).As16()
	}
	e := route{ifindex: r.LinkIndex, mtu: r.MTU, metric: r.Priority}
	switch r.Type {
	case unix.RTN_LOCAL, unix.RTN_ANYCAST:
		e.kind = routeLocal
	case unix.RTN_UNICAST:
		e.kind = routeUnicast
	default: // blackhole, unreachable, prohibit, throw, broadcast, multicast
		e.kind = routeNone
	}
	if len(r.MultiPath) > 0 || r.Encap != nil || r.MPLSDst != nil {
		e.kind = routeKernel
	}
	switch {
	case r.Gw != nil:
		e.gateway, _ = addrOf(r.Gw)
	case r.Via != nil:
		if via, ok := r.Via.(*netlink.Via); ok {
			e.gateway, _ = addrOf(via.Addr)
		} else {
			e.kind = routeKernel
		}
	}
	if r.Gw != nil || r.Via != nil {
		f.gateways[r.LinkIndex] = true
	}
	for _, hop := range r.MultiPath {
		if hop.Gw != nil || hop.Via != nil {
			f.gateways[hop.LinkIndex] = true
		}
	}
	m := f.routes[bits]
	if m == nil {
		m = map[[16]byte]route{}
		f.routes[bits] = m
	}
	prefix = maskAddr(prefix, bits)
	if old, ok := m[prefix]; ok && (!local && old.kind == routeLocal || old.metric <= e.metric) {
		return
	}
	m[prefix] = e
}

// chooseNodeAddresses takes, of the addresses that other hosts could know the node
// by, those on the device with the lowest index, and of these the lowest: any would
// do, as long as it stays the same.
func (f *fib) chooseNodeAddresses(local []netlink.Route) {
	from4, from6 := 0, 0
	for _, r := range local {
		if r.Type != unix.RTN_LOCAL || r.Dst == nil {
			continue
		}
		a, ok := netip.AddrFromSlice(r.Dst.IP)
		if ones, bits := r.Dst.Mask.Size(); !ok || ones != bits || !a.Unmap().IsGlobalUnicast() {
			continue
		}
		best, from := &f.node6, &from6
		if a.Unmap().Is4() {
			best, from = &f.node4, &from4
		}
		b := a.As16()
		if *from == 0 || r.LinkIndex < *from || r.LinkIndex == *from && bytes.Compare(b[:], best[:]) < 0 {
			*best, *from = b, r.LinkIndex
		}
	}
}

// nodeAddress is the node's own address of the family of like, zero if there is
// none.
func (f *fib) nodeAddress(like *[16]byte) [16]byte {
	if isIPv4(like) {
		return f.node4
	}
	return f.node6
}

// addrOf maps a net.IP to the 16 bytes that addresses have everywhere here.
func addrOf(ip net.IP) ([16]byte, bool) {
	a, ok := netip.AddrFromSlice(ip)
	return a.As16(), ok
}

// isIPv4 reports whether a is an IPv4 address in its mapped form.
func isIPv4(a *[16]byte) bool {
	return netip.AddrFrom16(*a).Is4In6()
}
