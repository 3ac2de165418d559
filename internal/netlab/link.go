//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxDeviceName is what fits the kernel's name buffer beside its final zero.
const maxDeviceName = unix.IFNAMSIZ - 1

// VethOptions describe a pair of devices. The zero value is what the kernel makes by itself, offloads included.
type VethOptions struct {
	Queues int              // receive and transmit queues of both ends; 0: one each
	MTU    int              // of both ends; 0: 1500
	AMAC   net.HardwareAddr // nil: random
	BMAC   net.HardwareAddr // nil: random
}

// Veth makes a pair of devices, one end in each namespace (which may be the same one), sets both up, and returns once the
// kernel has settled them: carrier seen, link-local addresses usable.
func (l *Lab) Veth(a *Namespace, aName string, b *Namespace, bName string, o VethOptions) {
	l.tb.Helper()
	if err := addVeth(a, aName, b, bName, o); err != nil {
		l.tb.Fatalf("making veth %q in namespace %q, %q in namespace %q: %v", aName, a.name, bName, b.name, err)
	}
}

func addVeth(a *Namespace, aName string, b *Namespace, bName string, o VethOptions) error {
	for _, name := range []string{aName, bName} {
		if name == "" || len(name) > maxDeviceName {
			return fmt.Errorf("device name %q: want 1 to %d bytes", name, maxDeviceName)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aName
	attrs.MTU = o.MTU
	attrs.NumTxQueues, attrs.NumRxQueues = o.Queues, o.Queues
	attrs.HardwareAddr = o.AMAC
	veth := netlink.NewVeth(attrs)
	veth.PeerName = bName
	veth.PeerHardwareAddr = o.BMAC
	veth.PeerNamespace = netlink.NsFd(b.fd)
	if err := a.handle.LinkAdd(veth); err != nil {
		return err
	}
	if err := a.setUp(aName, true); err != nil {
		return err
	}
	if err := b.setUp(bName, true); err != nil {
		return err
	}
	if err := a.settle(aName, true); err != nil {
		return err
	}
	return b.settle(bName, true)
}

// settle waits until the IPv6 addresses of a device are in use, and, if asked, until its carrier has been seen. Both happen
// in the kernel's work queues, even with duplicate address detection off (net/core/link_watch.c,
// net/ipv6/addrconf.c:addrconf_dad_work).
func (n *Namespace) settle(dev string, carrier bool) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		link, err := n.handle.LinkByName(dev)
		if err != nil {
			return err
		}
		waiting := ""
		if carrier && link.Attrs().OperState != netlink.OperUp {
			waiting = "a carrier"
		} else if waiting, err = n.unsettledAddr(link); err != nil {
			return err
		}
		if waiting == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%q still waits for %s", dev, waiting)
		}
	}
}

// unsettledAddr returns an IPv6 address of a device that is tentative, or has lost that flag but not got its route yet.
func (n *Namespace) unsettledAddr(link netlink.Link) (string, error) {
	addrs, err := dumped(func() ([]netlink.Addr, error) { return n.handle.AddrList(link, netlink.FAMILY_V6) })
	if err != nil {
		return "", err
	}
	routes, err := dumped(func() ([]netlink.Route, error) {
		return n.handle.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return "", err
	}
	for _, a := range addrs {
		routed := slices.ContainsFunc(routes, func(r netlink.Route) bool {
			return r.Type == unix.RTN_LOCAL && r.LinkIndex == a.LinkIndex && r.Dst != nil && r.Dst.IP.Equal(a.IP)
		})
		if a.Flags&unix.IFA_F_TENTATIVE != 0 || !routed {
			return a.IP.String(), nil
		}
	}
	return "", nil
}

func (n *Namespace) setUp(dev string, up bool) error {
	link, err := n.handle.LinkByName(dev)
	if err != nil {
		return err
	}
	if up {
		return n.handle.LinkSetUp(link)
	}
	return n.handle.LinkSetDown(link)
}

// link returns a device or ends the test.
func (n *Namespace) link(dev string) netlink.Link {
	n.tb.Helper()
	link, err := n.handle.LinkByName(dev)
	if err != nil {
		n.tb.Fatalf("finding device %q in namespace %q: %v", dev, n.name, err)
	}
	return link
}

// check ends the test on an error of a netlink request.
func (n *Namespace) check(err error, format string, args ...any) {
	n.tb.Helper()
	if err != nil {
		n.tb.Fatalf("%s in namespace %q: %v", fmt.Sprintf(format, args...), n.name, err)
	}
}

// Up sets a device up.
func (n *Namespace) Up(dev string) {
	n.tb.Helper()
	n.check(n.setUp(dev, true), "setting %q up", dev)
}

// Down sets a device down.
func (n *Namespace) Down(dev string) {
	n.tb.Helper()
	n.check(n.setUp(dev, false), "setting %q down", dev)
}

// Rename gives a device another name, for which it is down for a moment.
func (n *Namespace) Rename(dev, name string) {
	n.tb.Helper()
	link := n.link(dev)
	n.check(errors.Join(n.handle.LinkSetDown(link), n.handle.LinkSetName(link, name), n.handle.LinkSetUp(link)), "renaming %q to %q", dev, name)
}

// Delete removes a device; the other end of a veth pair goes with it.
func (n *Namespace) Delete(dev string) {
	n.tb.Helper()
	n.check(n.handle.LinkDel(n.link(dev)), "deleting %q", dev)
}

// MTU sets the MTU of a device.
func (n *Namespace) MTU(dev string, mtu int) {
	n.tb.Helper()
	n.check(n.handle.LinkSetMTU(n.link(dev), mtu), "setting the MTU of %q to %d", dev, mtu)
}

// Index returns the index of a device, which is unique only in its namespace.
func (n *Namespace) Index(dev string) int {
	n.tb.Helper()
	return n.link(dev).Attrs().Index
}

// MAC returns the Ethernet address of a device.
func (n *Namespace) MAC(dev string) net.HardwareAddr {
	n.tb.Helper()
	return n.link(dev).Attrs().HardwareAddr
}

// Addr gives a device an address, such as "192.0.2.1/24".
func (n *Namespace) Addr(dev, cidr string) {
	n.tb.Helper()
	addr, err := netlink.ParseAddr(cidr)
	n.check(err, "parsing address %q", cidr)
	if addr.IP.To4() == nil {
		addr.Flags = unix.IFA_F_NODAD
	} else {
		addr.Broadcast = net.IPv4zero // none: the library computes one otherwise, as for a /32
	}
	n.check(n.handle.AddrAdd(n.link(dev), addr), "adding address %s to %q", cidr, dev)
	n.check(n.settle(dev, false), "waiting for address %s of %q", cidr, dev)
}

// Route routes dst ("198.19.0.0/16", "::/0") to the gateway via, or, if that is empty, directly onto the device. The
// gateway need not be in an on-link subnet. The source address for the namespace's own packets may be given as src.
func (n *Namespace) Route(dst, via, dev string, src ...string) {
	n.tb.Helper()
	n.route(0, dst, via, dev, src...)
}

// RouteFirst is Route with the best metric: whatever else leads to dst is not asked.
func (n *Namespace) RouteFirst(dst, via, dev string) {
	n.tb.Helper()
	n.route(1, dst, via, dev)
}

func (n *Namespace) route(metric int, dst, via, dev string, src ...string) {
	n.tb.Helper()
	prefix, err := netip.ParsePrefix(dst)
	n.check(err, "parsing destination %q", dst)
	route := &netlink.Route{LinkIndex: n.link(dev).Attrs().Index, Dst: ipNet(prefix), Priority: metric}
	if via == "" {
		route.Scope = netlink.SCOPE_LINK
	} else {
		gw, err := netip.ParseAddr(via)
		n.check(err, "parsing gateway %q", via)
		route.Gw = gw.AsSlice()
		route.Flags = int(netlink.FLAG_ONLINK)
	}
	for _, s := range src {
		addr, err := netip.ParseAddr(s)
		n.check(err, "parsing source %q", s)
		route.Src = addr.AsSlice()
	}
	n.check(n.handle.RouteReplace(route), "routing %s via %q dev %q", dst, via, dev)
}

// Neighbour gives a device a permanent neighbour entry.
func (n *Namespace) Neighbour(dev, addr string, mac net.HardwareAddr) {
	n.tb.Helper()
	ip, err := netip.ParseAddr(addr)
	n.check(err, "parsing neighbour %q", addr)
	family := netlink.FAMILY_V4
	if ip.Is6() {
		family = netlink.FAMILY_V6
	}
	n.check(n.handle.NeighSet(&netlink.Neigh{
		LinkIndex:    n.link(dev).Attrs().Index,
		Family:       family,
		State:        netlink.NUD_PERMANENT,
		IP:           ip.AsSlice(),
		HardwareAddr: mac,
	}), "setting neighbour %s of %q", addr, dev)
}

// Sysctl sets a network setting: "net.ipv4.ip_forward". A device name with a dot in it is written with a slash, as
// sysctl(8) does.
func (n *Namespace) Sysctl(key, value string) {
	n.tb.Helper()
	n.do(fmt.Sprintf("setting %s=%s", key, value), func() error { return writeSysctl(key, value) })
}

// sysctlPath turns a key into its file. /proc/sys/net is that of the thread which opens it.
func sysctlPath(key string) string {
	return "/proc/sys/" + strings.NewReplacer(".", "/", "/", ".").Replace(key)
}

func writeSysctl(key, value string) error {
	return os.WriteFile(sysctlPath(key), []byte(value), 0)
}

func ipNet(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
