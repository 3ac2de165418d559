//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/nftables"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// State is a listing of what is configured in a namespace, one line a thing, sorted: links with their features and
// programs, addresses, routes, rules, permanent neighbours, nftables, queueing disciplines and the settings of
// interest. What traffic changes (counters, learnt neighbours, connections) is not in it.
type State []string

// watchedSysctls are patterns below /proc/sys/net.
var watchedSysctls = []string{
	"ipv4/ip_forward",
	"ipv4/conf/*/rp_filter",
	"ipv4/conf/*/forwarding",
	"ipv4/conf/*/accept_local",
	"ipv4/conf/*/proxy_arp",
	"ipv4/conf/*/route_localnet",
	"ipv4/conf/*/arp_ignore",
	"ipv4/conf/*/send_redirects",
	"ipv6/conf/*/forwarding",
	"ipv6/conf/*/disable_ipv6",
	"ipv6/conf/*/accept_ra",
	"ipv6/conf/*/proxy_ndp",
}

// State lists the namespace.
func (n *Namespace) State() State {
	n.tb.Helper()
	var s State
	n.do("listing the state", func() error {
		for _, list := range []func(*State) error{
			n.listLinks, n.listRoutes, n.listRules, n.listNeighbours, listNFTables, listSysctls,
		} {
			if err := list(&s); err != nil {
				return err
			}
		}
		return nil
	})
	sort.Strings(s)
	return s
}

// Diff returns what differs between two listings of a namespace, one line each, with "-" for what is gone and "+" for
// what is new; empty if nothing does.
func Diff(before, after State) string {
	var b strings.Builder
	i, j := 0, 0
	for i < len(before) || j < len(after) {
		switch {
		case j == len(after) || i < len(before) && before[i] < after[j]:
			fmt.Fprintf(&b, "- %s\n", before[i])
			i++
		case i == len(before) || after[j] < before[i]:
			fmt.Fprintf(&b, "+ %s\n", after[j])
			j++
		default:
			i++
			j++
		}
	}
	return b.String()
}

func (s *State) add(format string, args ...any) {
	*s = append(*s, strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// dumped repeats a dump that a change interrupted.
func dumped[T any](dump func() ([]T, error)) ([]T, error) {
	for range 10 {
		list, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return nil, netlink.ErrDumpInterrupted
}

func (n *Namespace) listLinks(s *State) error {
	links, err := dumped(n.handle.LinkList)
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return err
	}
	defer tool.Close()
	for _, l := range links {
		a := l.Attrs()
		s.add("link %s index %d type %s mtu %d %s mac %s master %d queues %d/%d promisc %d alias %q",
			a.Name, a.Index, l.Type(), a.MTU, a.Flags&net.FlagUp, a.HardwareAddr, a.MasterIndex, a.NumRxQueues, a.NumTxQueues, a.Promisc, a.Alias)
		if a.Xdp != nil && a.Xdp.Attached {
			s.add("xdp %s mode %d program %d", a.Name, a.Xdp.AttachMode, a.Xdp.ProgId)
		}
		if err := listTCX(s, a.Name, a.Index); err != nil {
			return err
		}
		features, err := tool.Features(a.Name)
		if err != nil {
			return fmt.Errorf("listing features of %q: %w", a.Name, err)
		}
		var active []string
		for name, on := range features {
			if on {
				active = append(active, name)
			}
		}
		slices.Sort(active)
		s.add("features %s %s", a.Name, strings.Join(active, " "))
		if c, err := tool.GetChannels(a.Name); err == nil { // lo has none
			s.add("channels %s rx %d tx %d combined %d", a.Name, c.RxCount, c.TxCount, c.CombinedCount)
		}
		addrs, err := dumped(func() ([]netlink.Addr, error) { return n.handle.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			return fmt.Errorf("listing addresses of %q: %w", a.Name, err)
		}
		for _, addr := range addrs {
			s.add("address %s dev %s scope %d", addr.IPNet, a.Name, addr.Scope)
		}
		if err := n.listTC(s, l); err != nil {
			return err
		}
	}
	return nil
}

// listTCX is called inside the namespace, where the device's index means it.
func listTCX(s *State, name string, index int) error {
	for _, at := range []struct {
		word string
		hook ebpf.AttachType
	}{{"ingress", ebpf.AttachTCXIngress}, {"egress", ebpf.AttachTCXEgress}} {
		r, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: at.hook})
		if errors.Is(err, unix.ENODEV) {
			continue // gone meanwhile
		}
		if err != nil {
			return fmt.Errorf("listing tcx %s programs of %q: %w", at.word, name, err)
		}
		for i, p := range r.Programs {
			s.add("tcx %s %s position %d program %d", name, at.word, i, p.ID)
		}
	}
	return nil
}

func (n *Namespace) listTC(s *State, l netlink.Link) error {
	name := l.Attrs().Name
	qdiscs, err := dumped(func() ([]netlink.Qdisc, error) { return n.handle.QdiscList(l) })
	if err != nil {
		return fmt.Errorf("listing queueing disciplines of %q: %w", name, err)
	}
	for _, q := range qdiscs {
		s.add("qdisc %s %s handle %#x parent %#x", name, q.Type(), q.Attrs().Handle, q.Attrs().Parent)
		if q.Attrs().Parent != netlink.HANDLE_CLSACT {
			continue
		}
		parents := []uint32{netlink.HANDLE_MIN_INGRESS}
		if q.Type() == "clsact" {
			parents = append(parents, netlink.HANDLE_MIN_EGRESS)
		}
		for _, parent := range parents {
			filters, err := dumped(func() ([]netlink.Filter, error) { return n.handle.FilterList(l, parent) })
			if err != nil {
				return fmt.Errorf("listing filters of %q: %w", name, err)
			}
			for _, f := range filters {
				s.add("filter %s %s parent %#x handle %#x priority %d", name, f.Type(), parent, f.Attrs().Handle, f.Attrs().Priority)
			}
		}
	}
	return nil
}

func (n *Namespace) listRoutes(s *State) error {
	names, err := n.deviceNames()
	if err != nil {
		return err
	}
	routes, err := dumped(func() ([]netlink.Route, error) {
		// Without a filter on the table only the main one is listed.
		return n.handle.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range routes {
		var hops []string
		for _, h := range r.MultiPath {
			hops = append(hops, fmt.Sprintf("via %v dev %s weight %d", h.Gw, names[h.LinkIndex], h.Hops+1))
		}
		s.add("route table %d type %d to %v via %v dev %s source %v scope %s protocol %d metric %d mtu %d flags %#x %s",
			r.Table, r.Type, r.Dst, r.Gw, names[r.LinkIndex], r.Src, r.Scope, r.Protocol, r.Priority, r.MTU,
			r.Flags&int(netlink.FLAG_ONLINK), strings.Join(hops, " "))
	}
	return nil
}

func (n *Namespace) deviceNames() (map[int]string, error) {
	links, err := dumped(n.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
}

func (n *Namespace) listRules(s *State) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := dumped(func() ([]netlink.Rule, error) { return n.handle.RuleList(family) })
		if err != nil {
			return fmt.Errorf("listing rules: %w", err)
		}
		for _, r := range rules {
			mask := uint32(0)
			if r.Mask != nil {
				mask = *r.Mask
			}
			s.add("rule %s %d from %v to %v mark %#x/%#x iif %q oif %q proto %d table %d type %d invert %t",
				map[int]string{netlink.FAMILY_V4: "ipv4", netlink.FAMILY_V6: "ipv6"}[family],
				r.Priority, r.Src, r.Dst, r.Mark, mask, r.IifName, r.OifName, r.IPProto, r.Table, r.Type, r.Invert)
		}
	}
	return nil
}

func (n *Namespace) listNeighbours(s *State) error {
	names, err := n.deviceNames()
	if err != nil {
		return err
	}
	neighbours, err := dumped(func() ([]netlink.Neigh, error) { return n.handle.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing neighbours: %w", err)
	}
	for _, e := range neighbours {
		if e.State&netlink.NUD_PERMANENT != 0 {
			s.add("neighbour %s dev %s mac %s", e.IP, names[e.LinkIndex], e.HardwareAddr)
		}
	}
	return nil
}

// listNFTables is called inside the namespace.
func listNFTables(s *State) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return fmt.Errorf("listing nftables: %w", err)
	}
	for _, t := range tables {
		s.add("nft family %d table %s", t.Family, t.Name)
		sets, err := conn.GetSets(t)
		if err != nil {
			return fmt.Errorf("listing sets of table %q: %w", t.Name, err)
		}
		for _, set := range sets {
			elements, err := conn.GetSetElements(set)
			if err != nil {
				return fmt.Errorf("listing set %q of table %q: %w", set.Name, t.Name, err)
			}
			s.add("nft family %d table %s set %s elements %d", t.Family, t.Name, set.Name, len(elements))
		}
	}
	chains, err := conn.ListChains()
	if err != nil {
		return fmt.Errorf("listing chains: %w", err)
	}
	for _, c := range chains {
		hook, priority, policy := "none", 0, "none"
		if c.Hooknum != nil {
			hook = fmt.Sprint(*c.Hooknum)
		}
		if c.Priority != nil {
			priority = int(*c.Priority)
		}
		if c.Policy != nil {
			policy = fmt.Sprint(*c.Policy)
		}
		s.add("nft family %d table %s chain %s type %s hook %s priority %d policy %s",
			c.Table.Family, c.Table.Name, c.Name, c.Type, hook, priority, policy)
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return fmt.Errorf("listing rules of chain %q: %w", c.Name, err)
		}
		for i, r := range rules {
			var words []string
			for _, e := range r.Exprs {
				words = append(words, strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", e), "*expr.")))
			}
			s.add("nft family %d table %s chain %s rule %d handle %d: %s", c.Table.Family, c.Table.Name, c.Name, i, r.Handle, strings.Join(words, " "))
		}
	}
	return nil
}

// listSysctls is called inside the namespace.
func listSysctls(s *State) error {
	const root = "/proc/sys/net"
	for _, pattern := range watchedSysctls {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			value, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) {
				continue // the device is gone meanwhile
			}
			if err != nil {
				return err
			}
			s.add("sysctl net.%s = %s", sysctlKey(strings.TrimPrefix(path, root+"/")), strings.TrimSpace(string(value)))
		}
	}
	return nil
}

func sysctlKey(path string) string { return strings.NewReplacer("/", ".", ".", "/").Replace(path) }
