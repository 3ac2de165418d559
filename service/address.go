package service

import (
	"errors"
	"net/netip"
)

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// parseAddr reads an address as Kubernetes means it: no zone, no leading zeros in IPv4 (CVE-2021-29923), and not an IPv4
// address in IPv6 clothes, which would slip past a check of its family.
func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return a, errors.New("not an IP address")
	case a.Zone() != "":
		return a, errors.New("an address with a zone")
	case a.Is4In6():
		return a, errors.New("an IPv4 address mapped into IPv6")
	}
	return a, nil
}

// unsafeAddr says why nothing may be translated to or from the address, or "". Translating to such an address reaches what the
// author of a Service must not reach: the node's own loopback (CVE-2020-8558, CVE-2021-25737), its link, everyone.
func unsafeAddr(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "an unspecified address"
	case a.IsLoopback():
		return "a loopback address"
	case a.IsLinkLocalUnicast():
		return "a link-local address"
	case a.IsMulticast():
		return "a multicast address"
	case a == broadcast:
		return "the broadcast address"
	case a.Is4() && a.As4()[0] == 0:
		return "an address of this network (0.0.0.0/8)"
	}
	return ""
}
