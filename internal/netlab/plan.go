package netlab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// The address plan: every test, benchmark, demo and document uses these prefixes and no other. They are reserved for
// benchmarks and documentation (RFC 2544, 5737, 3849), so nothing real can be hit by a mistake.
const (
	PodPrefix4       = "198.18.0.0/16"
	PodPrefix6       = "2001:db8:1::/48"
	ClusterIPPrefix4 = "198.19.0.0/16"
	ClusterIPPrefix6 = "2001:db8:2::/112"
	NodePrefix4      = "192.0.2.0/24"
	NodePrefix6      = "2001:db8:3::/64"
	OutsidePrefix4   = "203.0.113.0/24"
	OutsidePrefix6   = "2001:db8:4::/64"

	// Every pod's gateway: an address that each host end has. Link-local, so that one does for all.
	Gateway4 = "169.254.1.1"
	Gateway6 = "fe80::1"
)

// Families are both, for tests to range over.
var Families = []Family{IPv4, IPv6}

// Family is an IP version.
type Family uint8

const (
	IPv4 Family = 4
	IPv6 Family = 6
)

func (f Family) String() string { return fmt.Sprintf("ipv%d", uint8(f)) }

// maxSubnet and maxHost bound what fits the narrower of the two families' prefixes.
const (
	maxSubnet    = 255
	maxHost      = 254
	maxClusterIP = 65534
)

// PodSubnet returns the pods' subnet of the n-th node: 198.18.n.0/24 and 2001:db8:1:n::/64.
func PodSubnet(f Family, node int) netip.Prefix {
	mustFit("node", node, 0, maxSubnet)
	if f == IPv4 {
		return netip.PrefixFrom(within(PodPrefix4, uint64(node)<<8), 24)
	}
	p := netip.MustParsePrefix(PodPrefix6).Addr().As16()
	p[7] = byte(node)
	return netip.PrefixFrom(netip.AddrFrom16(p), 64)
}

// PodAddr returns the address of the n-th pod, from 1, on a node.
func PodAddr(f Family, node, n int) netip.Addr {
	mustFit("pod", n, 1, maxHost)
	return within(PodSubnet(f, node).String(), uint64(n))
}

// ClusterIP returns the n-th ClusterIP, from 1.
func ClusterIP(f Family, n int) netip.Addr {
	mustFit("ClusterIP", n, 1, maxClusterIP)
	if f == IPv4 {
		return within(ClusterIPPrefix4, uint64(n))
	}
	return within(ClusterIPPrefix6, uint64(n))
}

// NodeAddr returns the address of the n-th node, from 1, on the network between the nodes.
func NodeAddr(f Family, n int) netip.Addr {
	mustFit("node", n, 1, maxHost)
	if f == IPv4 {
		return within(NodePrefix4, uint64(n))
	}
	return within(NodePrefix6, uint64(n))
}

// OutsideAddr returns the n-th address, from 1, on the network outside of the cluster.
func OutsideAddr(f Family, n int) netip.Addr {
	mustFit("host", n, 1, maxHost)
	if f == IPv4 {
		return within(OutsidePrefix4, uint64(n))
	}
	return within(OutsidePrefix6, uint64(n))
}

// within returns the n-th address of a prefix.
func within(prefix string, n uint64) netip.Addr {
	base := netip.MustParsePrefix(prefix).Masked().Addr()
	if base.Is4() {
		b := base.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
		return netip.AddrFrom4(b)
	}
	b := base.As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+n)
	return netip.AddrFrom16(b)
}

func mustFit(what string, n, low, high int) {
	if n < low || n > high {
		panic(fmt.Sprintf("netlab: %s %d is not within %d to %d of the address plan", what, n, low, high))
	}
}
