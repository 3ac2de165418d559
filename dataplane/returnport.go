package dataplane

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The return port is a veth pair of Sluice's own. What the fast path sends into
// its inner end enters the node's kernel at the outer end as if it came off a
// wire; what the kernel, or a classifier, sends into the outer end arrives at
// the fast path, segmented and with its checksum finished, because the outer
// end has its offloads off.
//
//	fast path --AF_XDP tx--> inner (sluice-in) ==veth==> outer (sluice-out) --> node's kernel
//	fast path <--XDP, rx---- inner (sluice-in) <==veth== outer (sluice-out) <-- redirect, route
//
// It is the first port opened and the last closed, and survives a restart.

// The source addresses of frames sent into the inner end. The node's rules can
// tell a translated frame, which connection tracking must not see (it would see
// one direction only), from one that was returned unchanged, which it must.
var (
	macReturned   = [6]byte{0x02, 's', 'l', 'u', 'i', 0x00}
	macTranslated = [6]byte{0x02, 's', 'l', 'u', 'i', 0x01}
)

// outerAddress makes the outer end an IPv4 interface with an address, without
// which even loose reverse-path filtering drops (net/ipv4/fib_frontend.c:
// __fib_validate_source, last_resort). Nothing is ever sent to it.
var outerAddress = &net.IPNet{IP: net.IPv4(169, 254, 77, 1), Mask: net.CIDRMask(32, 32)}

// returnAlias marks the pair as ours.
const returnAlias = "sluice return port"

// returnPort is the pair as opened.
type returnPort struct {
	outer, inner netlink.Link
	created      bool // by this process: undone if Open fails
	queues       int  // of each end, both ways
}

// setQueues gives both ends as many queues as wanted, or as a veth can have: one for each
// processor. Neither end may have fewer to receive with than the other has to send, so
// it depends on what they have which comes first.
func setQueues(eth *ethtool.Ethtool, outer, inner string, want int) (int, error) {
	now, err := eth.GetChannels(outer)
	if err != nil {
		return 0, err
	}
	want = max(1, min(want, maxQueues, int(now.MaxRx), int(now.MaxTx)))
	ends := []string{inner, outer}
	if uint32(want) < now.TxCount {
		ends = []string{outer, inner}
	}
	for _, name := range ends {
		ch, err := eth.GetChannels(name)
		if err != nil {
			return 0, err
		}
		if int(ch.RxCount) == want && int(ch.TxCount) == want {
			continue
		}
		ch.RxCount, ch.TxCount = uint32(want), uint32(want)
		if _, err := eth.SetChannels(name, ch); err != nil {
			return 0, fmt.Errorf("%d on %s: %w", want, name, err)
		}
	}
	return want, nil
}

// openReturnPort creates the pair, or takes over the one that a predecessor
// left, and gives both ends their settings. mtu is the largest of the ports', queues
// how many of them each end is to have, of which it may get less.
// To be called on a thread in the node's network namespace.
func openReturnPort(nl *netlink.Handle, name string, mtu, queues int) (_ *returnPort, err error) {
	outer, inner := name+"-out", name+"-in"
	rp := &returnPort{}
	old, err := nl.LinkByName(outer)
	switch {
	case err == nil:
		if old.Attrs().Alias != returnAlias {
			return nil, fmt.Errorf("interface %s exists and is not ours: delete it, or choose another returnPort name", outer)
		}
	case errors.As(err, &netlink.LinkNotFoundError{}):
		la := netlink.NewLinkAttrs()
		la.Name, la.MTU = outer, mtu
		veth := &netlink.Veth{LinkAttrs: la, PeerName: inner, PeerMTU: uint32(mtu)}
		if err := nl.LinkAdd(veth); err != nil {
			return nil, fmt.Errorf("creating the return port %s: %w", outer, err)
		}
		rp.created = true
	default:
		return nil, fmt.Errorf("looking for the return port %s: %w", outer, err)
	}
	defer func() {
		if err != nil && rp.created {
			rp.remove(nl)
		}
	}()
	if rp.outer, err = nl.LinkByName(outer); err != nil {
		return nil, fmt.Errorf("return port %s: %w", outer, err)
	}
	if rp.inner, err = nl.LinkByName(inner); err != nil {
		return nil, fmt.Errorf("return port %s has lost its other end %s: delete it and start again: %w", outer, inner, err)
	}
	if err := rp.configure(nl, mtu, queues); err != nil {
		return nil, fmt.Errorf("return port %s: %w", outer, err)
	}
	return rp, nil
}

// configure gives both ends their settings: of our own devices only.
func (rp *returnPort) configure(nl *netlink.Handle, mtu, queues int) error {
	outer, inner := rp.outer.Attrs().Name, rp.inner.Attrs().Name
	if err := nl.LinkSetAlias(rp.outer, returnAlias); err != nil {
		return fmt.Errorf("marking it: %w", err)
	}
	for _, l := range []netlink.Link{rp.outer, rp.inner} {
		if err := nl.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("MTU %d: %w", mtu, err)
		}
	}
	eth, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("ethtool: %w", err)
	}
	defer eth.Close()
	if rp.queues, err = setQueues(eth, outer, inner, queues); err != nil {
		return fmt.Errorf("queues: %w", err)
	}
	off := map[string]bool{}
	have, err := eth.Features(outer)
	if err != nil {
		return fmt.Errorf("reading offloads: %w", err)
	}
	for _, f := range []string{"tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6", "tx-tcp-segmentation", "tx-tcp6-segmentation",
		"tx-tcp-mangleid-segmentation", "tx-tcp-ecn-segmentation", "tx-udp-segmentation", "tx-generic-segmentation", "tx-gso-list", "tx-checksum-sctp", "tx-sctp-segmentation"} {
		if have[f] {
			off[f] = false
		}
	}
	if err := eth.Change(outer, off); err != nil {
		return fmt.Errorf("turning offloads off: %w", err)
	}
	// The kernel takes the larger of a device's setting and that of "all".
	// Loose (2) must not be less than a strict "all" (1), but it drops what
	// has a source without a route, as a ClusterIP on a node that has no
	// default route: without reverse-path filtering there is none here either.
	rpFilter := "2"
	if all, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/rp_filter"); err == nil && strings.TrimSpace(string(all)) == "0" {
		rpFilter = "0"
	}
	settings := []struct{ path, value string }{
		{"ipv6/conf/" + inner + "/disable_ipv6", "1"},
		{"ipv6/conf/" + outer + "/accept_ra", "0"},
		{"ipv6/conf/" + outer + "/accept_dad", "0"},
		{"ipv6/conf/" + outer + "/forwarding", "1"},
		{"ipv4/conf/" + outer + "/rp_filter", rpFilter},
		{"ipv4/conf/" + outer + "/accept_local", "1"},
		{"ipv4/conf/" + outer + "/forwarding", "1"},
		{"ipv4/conf/" + outer + "/send_redirects", "0"},
		{"ipv4/conf/" + inner + "/arp_ignore", "8"},
	}
	for _, s := range settings {
		err := os.WriteFile("/proc/sys/net/"+s.path, []byte(s.value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // no IPv6 here
			return fmt.Errorf("setting %s: %w", s.path, err)
		}
	}
	if err := nl.AddrReplace(rp.outer, &netlink.Addr{IPNet: outerAddress, Scope: unix.RT_SCOPE_HOST, Flags: unix.IFA_F_NOPREFIXROUTE}); err != nil {
		return fmt.Errorf("adding its address: %w", err)
	}
	if err := nl.LinkSetARPOff(rp.outer); err != nil {
		return fmt.Errorf("ARP off: %w", err)
	}
	for _, l := range []netlink.Link{rp.inner, rp.outer} {
		if err := nl.LinkSetUp(l); err != nil {
			return fmt.Errorf("up: %w", err)
		}
	}
	// The addresses' own attributes may have changed above.
	if rp.outer, err = nl.LinkByIndex(rp.outer.Attrs().Index); err != nil {
		return err
	}
	return nil
}

// remove deletes the pair.
func (rp *returnPort) remove(nl *netlink.Handle) error {
	l := rp.outer
	if l == nil {
		return nil
	}
	if err := nl.LinkDel(l); err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("deleting the return port %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// untrack is the table of our own that keeps exactly the translated frames out
// of connection tracking.
const untrackTable = "sluice"

// inNamespace has a connection opened in a network namespace, which takes CAP_SYS_ADMIN
// unless the calling thread is there.
func inNamespace(ns int) []nftables.ConnOption {
	if here, err := netns.Get(); err == nil {
		defer here.Close()
		if here.Equal(netns.NsHandle(ns)) {
			return nil
		}
	}
	return []nftables.ConnOption{nftables.WithNetNSFd(ns)}
}

// installUntrack puts the rule in place, replacing a predecessor's.
func installUntrack(ns int, outer string) error {
	c, err := nftables.New(inNamespace(ns)...)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := &nftables.Table{Name: tableName(outer), Family: nftables.TableFamilyINet}
	c.AddTable(t) // so that deleting it never fails
	c.DelTable(t)
	c.AddTable(t)
	pre := c.AddChain(&nftables.Chain{Name: "prerouting", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, outer)
	c.AddRule(&nftables.Rule{Table: t, Chain: pre, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: bytes.Clone(macTranslated[:])},
		&expr.Counter{},
		&expr.Notrack{},
	}})
	// What the node's own processes send to a ClusterIP by the return port comes back untracked, so it leaves untracked, too. And in
	// mode named kube-proxy's nftables rules drop whatever is new and bound for an address of the Services' range that
	// they do not know: an untracked packet is not new.
	out := c.AddChain(&nftables.Chain{Name: "output", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRaw})
	c.AddRule(&nftables.Rule{Table: t, Chain: out, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Counter{},
		&expr.Notrack{},
	}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables rule that keeps translated frames untracked: %w", err)
	}
	return nil
}

// removeUntrack deletes the table, if it is there.
func removeUntrack(ns int, outer string) error {
	c, err := nftables.New(inNamespace(ns)...)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := &nftables.Table{Name: tableName(outer), Family: nftables.TableFamilyINet}
	c.AddTable(t)
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("deleting nftables table %s: %w", t.Name, err)
	}
	return nil
}

// tableName is the nftables table of the return port with this outer end: one
// for each, since two instances may serve one node under different names.
func tableName(outer string) string {
	return untrackTable + "-" + outer
}
