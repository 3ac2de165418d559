package service

import (
	"net/netip"
	"slices"
)

// serviceRanges are the ranges that ClusterIPs come from: those of the configuration and those of ServiceCIDR objects.
type serviceRanges struct {
	configured []netip.Prefix
	objects    map[string][]netip.Prefix // by name of the ServiceCIDR
	dirty      bool
	all        []netip.Prefix // sorted, each once
}

// refresh gathers all, and says whether that changed anything.
func (r *serviceRanges) refresh() bool {
	all := slices.Clone(r.configured)
	for _, list := range r.objects {
		all = append(all, list...)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	all = slices.Compact(all)
	changed := !slices.Equal(all, r.all)
	r.all = all
	return changed
}

// allow says whether a ClusterIP may have the address: it is in a range, or no range of its family is known.
func (r *serviceRanges) allow(addr netip.Addr) bool {
	known := false
	for _, p := range r.all {
		if p.Contains(addr) {
			return true
		}
		known = known || p.Addr().Is4() == addr.Is4()
	}
	return !known
}

// holds says why an endpoint must not have the address, or "".
func (r *serviceRanges) holds(addr [16]byte) string {
	if len(r.all) == 0 {
		return ""
	}
	a := netip.AddrFrom16(addr).Unmap()
	for _, p := range r.all {
		if p.Contains(a) {
			return "inside of the Service range " + p.String()
		}
	}
	return ""
}
