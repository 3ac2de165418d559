package dataplane

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func a16(s string) [16]byte { return netip.MustParseAddr(s).As16() }

func dst(s string) *net.IPNet {
	p := netip.MustParsePrefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func unicast(family int, to string, dev int) netlink.Route {
	r := netlink.Route{Family: family, LinkIndex: dev, Type: unix.RTN_UNICAST}
	if to != "" {
		r.Dst = dst(to)
	}
	return r
}

func TestFIBLookup(t *testing.T) {
	v4, v6 := unix.AF_INET, unix.AF_INET6
	gw := unicast(v4, "198.18.9.0/24", 3)
	gw.Gw = net.IPv4(192, 0, 2, 2)
	via := unicast(v4, "198.18.10.0/24", 3)
	via.Via = &netlink.Via{AddrFamily: v6, Addr: net.ParseIP("fe80::1")}
	worse := unicast(v4, "198.18.0.7/32", 8)
	worse.Priority = 100
	hole := netlink.Route{Family: v4, Dst: dst("198.19.0.0/16"), Type: unix.RTN_UNREACHABLE}
	ecmp := netlink.Route{Family: v6, Dst: dst("2001:db8:1:9::/64"), Type: unix.RTN_UNICAST, MultiPath: []*netlink.NexthopInfo{{LinkIndex: 1}, {LinkIndex: 2}}}
	self := netlink.Route{Family: v4, Dst: dst("192.0.2.1/32"), LinkIndex: 1, Type: unix.RTN_LOCAL}
	shadow := unicast(v4, "192.0.2.1/32", 9)
	f := newFIB(nil, []netlink.Route{self}, []netlink.Route{
		unicast(v4, "192.0.2.0/24", 3), unicast(v4, "198.18.0.7/32", 7), worse, gw, via, hole, ecmp, shadow,
		unicast(v6, "2001:db8:1::7/128", 7), unicast(v6, "", 3),
	}, nil)
	for _, c := range []struct {
		addr string
		want route
	}{
		{"198.18.0.7", route{kind: routeUnicast, ifindex: 7}},
		{"198.18.9.200", route{kind: routeUnicast, ifindex: 3, gateway: a16("192.0.2.2")}},
		{"198.18.10.1", route{kind: routeUnicast, ifindex: 3, gateway: a16("fe80::1")}},
		{"198.19.3.4", route{kind: routeNone}},
		{"192.0.2.1", route{kind: routeLocal, ifindex: 1}},
		{"192.0.2.77", route{kind: routeUnicast, ifindex: 3}},
		{"203.0.113.1", route{}}, // ::/0 is not a route for IPv4
		{"2001:db8:1::7", route{kind: routeUnicast, ifindex: 7}},
		{"2001:db8:1::8", route{kind: routeUnicast, ifindex: 3}},
		{"2001:db8:1:9::1", route{kind: routeKernel}},
	} {
		if got := f.lookup(a16(c.addr)); got != c.want {
			t.Errorf("lookup(%s) = %+v, want %+v", c.addr, got, c.want)
		}
	}
}

// TestMaskAddr compares with the standard library on every prefix length.
func TestMaskAddr(t *testing.T) {
	a := netip.MustParseAddr("fedc:ba98:7654:3210:fedc:ba98:7654:3211")
	for bits := 0; bits <= 128; bits++ {
		want := netip.PrefixFrom(a, bits).Masked().Addr().As16()
		if got := maskAddr(a.As16(), bits); got != want {
			t.Errorf("maskAddr(%s, %d) = %s, want %s", a, bits, netip.AddrFrom16(got), netip.AddrFrom16(want))
		}
	}
}

func testEgress(f *fib, ports ...*port) *egress {
	e := &egress{ports: &atomic.Pointer[portSet]{}, adj: newAdjacencies(8)}
	e.ports.Store(newPortSet(ports))
	e.fib.Store(f)
	return e
}

func TestBelieves(t *testing.T) {
	links := []netlink.Link{
		&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 2, Name: "pod"}},
		&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 3, Name: "uplink"}},
		&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 4, Name: "bridged", MasterIndex: 5}},
		&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: 5, Name: "br"}},
		&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 7, Name: "bridged too", MasterIndex: 5}},
		&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Index: 6, Name: "uplink.100", ParentIndex: 3}, VlanId: 100},
	}
	f := newFIB(links, []netlink.Route{{Family: unix.AF_INET, Dst: dst("192.0.2.1/32"), LinkIndex: 1, Type: unix.RTN_LOCAL}}, []netlink.Route{
		unicast(unix.AF_INET, "198.18.0.2/32", 2), unicast(unix.AF_INET, "198.18.5.0/24", 5),
		unicast(unix.AF_INET, "198.18.6.0/24", 6), unicast(unix.AF_INET, "", 3),
	}, []netlink.Neigh{
		{LinkIndex: 5, IP: net.ParseIP("198.18.5.9"), State: netlink.NUD_STALE, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}},
		{LinkIndex: 5, IP: net.ParseIP("198.18.5.8"), State: netlink.NUD_REACHABLE, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 8}},
	})
	f.learn([]netlink.Neigh{
		{LinkIndex: 4, MasterIndex: 5, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}},
		{LinkIndex: 7, MasterIndex: 5, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 8}},
	})
	pod, uplink, bridged, other := &port{ifindex: 2}, &port{ifindex: 3, slot: 1}, &port{ifindex: 4, slot: 2}, &port{ifindex: 7, slot: 3}
	ret := &port{ifindex: 9, returns: true}
	e := testEgress(f, pod, uplink, bridged)
	tag := []byte{0x81, 0, 0x20, 100}
	for _, c := range []struct {
		src  string
		port *port
		tags []byte
		want bool
	}{
		{"198.18.0.2", pod, nil, true},
		{"198.18.0.3", pod, nil, false},
		{"198.18.0.2", uplink, nil, false},
		{"203.0.113.9", uplink, nil, true},
		{"198.18.5.9", bridged, nil, true},
		{"198.18.5.9", other, nil, false}, // the neighbour is behind the other one
		{"198.18.5.8", bridged, nil, false},
		{"198.18.5.8", other, nil, true},
		{"198.18.5.7", bridged, nil, false}, // nobody knows where
		{"198.18.5.9", pod, nil, false},
		{"198.18.6.9", uplink, tag, true},
		{"198.18.6.9", uplink, nil, false},
		{"203.0.113.9", uplink, tag, false},
		{"198.18.6.9", uplink, []byte{0x81, 0, 0, 101}, false},
		{"198.18.0.2", pod, []byte{0x81, 0, 0xe0, 0}, true},
		{"198.18.0.2", pod, []byte{0x81, 0, 0, 0, 0x81, 0, 0, 0}, true},
		{"198.18.0.2", uplink, []byte{0x81, 0, 0, 0}, false},
		{"198.18.6.9", uplink, []byte{0x81, 0, 0, 0, 0x81, 0, 0, 100}, true},
		{"192.0.2.1", ret, nil, true},
		{"198.18.0.2", ret, nil, false},
		{"192.0.2.1", pod, nil, false},
		{"2001:db8:1::2", pod, nil, false},
	} {
		if got := e.believes(a16(c.src), c.port, c.tags); got != c.want {
			t.Errorf("believes(%s, ifindex %d, tags %x) = %v, want %v", c.src, c.port.ifindex, c.tags, got, c.want)
		}
	}
}

func TestResolve(t *testing.T) {
	up := uint32(unix.IFF_UP | unix.IFF_RUNNING)
	dev := func(i int, name string, flags uint32, mtu int) netlink.Link {
		return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: i, Name: name, RawFlags: flags, MTU: mtu, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}}}
	}
	neigh := func(dev int, ip string, state int) netlink.Neigh {
		return netlink.Neigh{LinkIndex: dev, IP: net.ParseIP(ip), State: state, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 1, byte(dev)}}
	}
	remote := unicast(unix.AF_INET, "198.18.9.0/24", 3)
	remote.Gw = net.IPv4(192, 0, 2, 2)
	remote.MTU = 1400
	f := newFIB([]netlink.Link{dev(2, "pod", up, 1500), dev(3, "uplink", up, 9000), dev(4, "down", unix.IFF_UP, 1500), dev(5, "other", up, 1500)},
		[]netlink.Route{{Family: unix.AF_INET, Dst: dst("192.0.2.1/32"), LinkIndex: 1, Type: unix.RTN_LOCAL}},
		[]netlink.Route{
			unicast(unix.AF_INET, "198.18.0.2/32", 2), unicast(unix.AF_INET, "198.18.0.3/32", 2), unicast(unix.AF_INET, "198.18.0.4/32", 4),
			unicast(unix.AF_INET, "198.18.0.5/32", 5), remote,
		},
		[]netlink.Neigh{neigh(2, "198.18.0.2", netlink.NUD_REACHABLE), neigh(2, "198.18.0.3", netlink.NUD_FAILED),
			neigh(4, "198.18.0.4", netlink.NUD_PERMANENT), neigh(3, "192.0.2.2", netlink.NUD_STALE), neigh(5, "198.18.0.5", netlink.NUD_REACHABLE)})
	pod, uplink, down := &port{ifindex: 2}, &port{ifindex: 3}, &port{ifindex: 4}
	e := testEgress(f, pod, uplink, down)
	for _, c := range []struct {
		addr string
		want adjacency
	}{
		{"198.18.0.2", adjacency{port: pod, dst: [6]byte{2, 0, 0, 0, 1, 2}, src: [6]byte{2, 0, 0, 0, 0, 2}, mtu: 1500, path: pathServed, ifindex: 2}},
		{"198.18.0.3", adjacency{path: pathServed, ifindex: 2}}, // neighbour failed
		{"198.18.0.4", adjacency{path: pathServed, ifindex: 4}}, // no carrier
		{"198.18.0.5", adjacency{path: pathUnserved, ifindex: 5}},
		{"198.18.9.9", adjacency{port: uplink, dst: [6]byte{2, 0, 0, 0, 1, 3}, src: [6]byte{2, 0, 0, 0, 0, 3}, mtu: 1400, path: pathServed, ifindex: 3, stale: true}},
		{"192.0.2.1", adjacency{path: pathLocal, ifindex: 1}},
		{"203.0.113.1", adjacency{path: pathNone}},
	} {
		c.want.addr = a16(c.addr)
		if got := e.resolve(a16(c.addr)); *got != c.want {
			t.Errorf("resolve(%s) = %+v, want %+v", c.addr, *got, c.want)
		}
	}
}
