//go:build linux

package netlab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Pick says how the kernel's rules choose a backend for a new connection.
type Pick uint8

const (
	PickRandom Pick = iota // each with the same chance
	PickFirst              // always the first
)

// DNAT is the kernel's translation of one frontend.
type DNAT struct {
	n      *Namespace
	family Family
	number int
	key    []byte
}

// natTables is what the rules of a namespace share: one table per family, made by the first frontend and removed with the last.
// Its map leads from (address, protocol, port) to the frontend's chain, as in kube-proxy's nftables mode, so that many
// frontends cost a connection no more than one.
type natTables struct {
	mu     sync.Mutex
	next   int
	inUse  map[Family]int
	byAddr map[Family]*nftables.Set
}

const natTable = "netlab"

// DNAT makes the namespace's kernel translate connections to a frontend, as kube-proxy's rules do: those that it
// forwards and its own, to a backend of the same family, with the source replaced only where a backend reaches itself. proto is
// unix.IPPROTO_TCP, UDP or SCTP.
func (n *Namespace) DNAT(frontend netip.AddrPort, proto uint8, backends []netip.AddrPort, pick Pick) *DNAT {
	n.tb.Helper()
	d := &DNAT{n: n, family: familyOf(frontend.Addr()), key: natKey(frontend, proto)}
	if len(backends) == 0 {
		n.tb.Fatalf("translating %s in namespace %q: no backends", frontend, n.name)
	}
	for _, b := range backends {
		if familyOf(b.Addr()) != d.family {
			n.tb.Fatalf("translating %s in namespace %q: backend %s is of another family", frontend, n.name, b)
		}
	}
	if pick == PickFirst {
		backends = backends[:1]
	}
	n.check(d.install(proto, backends), "translating %s", frontend)
	return d
}

// Remove removes the translation. Connections that it has translated go on: the kernel tracks them.
func (d *DNAT) Remove() {
	d.n.tb.Helper()
	d.n.check(d.remove(), "removing a translation")
}

func (d *DNAT) install(proto uint8, backends []netip.AddrPort) error {
	t := &d.n.nat
	t.mu.Lock()
	defer t.mu.Unlock()
	conn, err := nftables.New(nftables.WithNetNSFd(d.n.fd))
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: natTable, Family: tableFamily(d.family)}
	if t.inUse[d.family] == 0 {
		if t.inUse == nil {
			t.inUse, t.byAddr = make(map[Family]int), make(map[Family]*nftables.Set)
		}
		set, err := addNATTable(conn, table, d.family)
		if err != nil {
			return err
		}
		t.byAddr[d.family] = set
	}
	t.next++
	d.number = t.next

	chain := conn.AddChain(&nftables.Chain{Name: d.chain(), Table: table})
	for i, b := range backends {
		var exprs []expr.Any
		if left := len(backends) - i; left > 1 {
			exprs = append(exprs,
				&expr.Numgen{Register: 1, Type: unix.NFT_NG_RANDOM, Modulus: uint32(left)},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)})
		}
		exprs = append(exprs,
			&expr.Immediate{Register: 1, Data: b.Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, b.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: nfProto(d.family), RegAddrMin: 1, RegProtoMin: 2})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
	}

	hairpin := conn.AddChain(&nftables.Chain{
		Name: d.hairpinChain(), Table: table,
		Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	layout := layouts[d.family]
	for _, b := range backends {
		conn.AddRule(&nftables.Rule{Table: table, Chain: hairpin, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: layout.source, Len: layout.size},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b.Addr().AsSlice()},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: layout.destination, Len: layout.size},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b.Addr().AsSlice()},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
			&expr.Masq{},
		}})
	}

	if err := conn.SetAddElements(t.byAddr[d.family], []nftables.SetElement{d.element()}); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return err
	}
	t.inUse[d.family]++
	return nil
}

func (d *DNAT) remove() error {
	t := &d.n.nat
	t.mu.Lock()
	defer t.mu.Unlock()
	if d.number == 0 {
		return nil
	}
	conn, err := nftables.New(nftables.WithNetNSFd(d.n.fd))
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: natTable, Family: tableFamily(d.family)}
	if t.inUse[d.family] == 1 {
		conn.DelTable(table)
	} else {
		if err := conn.SetDeleteElements(t.byAddr[d.family], []nftables.SetElement{d.element()}); err != nil {
			return err
		}
		for _, name := range []string{d.chain(), d.hairpinChain()} {
			chain := &nftables.Chain{Name: name, Table: table}
			conn.FlushChain(chain)
			conn.DelChain(chain)
		}
	}
	if err := conn.Flush(); err != nil {
		return err
	}
	t.inUse[d.family]--
	d.number = 0
	return nil
}

func (d *DNAT) chain() string        { return fmt.Sprintf("frontend-%d", d.number) }
func (d *DNAT) hairpinChain() string { return fmt.Sprintf("hairpin-%d", d.number) }

func (d *DNAT) element() nftables.SetElement {
	return nftables.SetElement{Key: d.key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: d.chain()}}
}

// addNATTable makes the table, its map and the two chains that consult it.
func addNATTable(conn *nftables.Conn, table *nftables.Table, f Family) (*nftables.Set, error) {
	conn.AddTable(table)
	addr := nftables.TypeIPAddr
	if f == IPv6 {
		addr = nftables.TypeIP6Addr
	}
	set := &nftables.Set{
		Table: table, Name: "frontends", IsMap: true, Concatenation: true,
		KeyType:  nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService),
		DataType: nftables.TypeVerdict,
	}
	if err := conn.AddSet(set, nil); err != nil {
		return nil, err
	}
	layout := layouts[f]
	for _, c := range []struct {
		name string
		hook *nftables.ChainHook
	}{
		{"prerouting", nftables.ChainHookPrerouting},
		{"output", nftables.ChainHookOutput},
	} {
		chain := conn.AddChain(&nftables.Chain{
			Name: c.name, Table: table,
			Type: nftables.ChainTypeNAT, Hooknum: c.hook, Priority: nftables.ChainPriorityNATDest,
		})
		// The key's fields stand in consecutive 32-bit registers.
		const first = unix.NFT_REG32_00
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: first, Base: expr.PayloadBaseNetworkHeader, Offset: layout.destination, Len: layout.size},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: first + layout.size/4},
			&expr.Payload{DestRegister: first + layout.size/4 + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: first, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: set.Name, SetID: set.ID},
		}})
	}
	return set, nil
}

// natKey is the map's key: address, protocol and port, each padded to 32 bits.
func natKey(frontend netip.AddrPort, proto uint8) []byte {
	key := append(frontend.Addr().AsSlice(), proto, 0, 0, 0)
	key = binary.BigEndian.AppendUint16(key, frontend.Port())
	return append(key, 0, 0)
}

// layouts are the places of the addresses in the IP headers.
var layouts = map[Family]struct{ source, destination, size uint32 }{
	IPv4: {12, 16, 4},
	IPv6: {8, 24, 16},
}

func familyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

func tableFamily(f Family) nftables.TableFamily {
	if f == IPv4 {
		return nftables.TableFamilyIPv4
	}
	return nftables.TableFamilyIPv6
}

func nfProto(f Family) uint32 {
	if f == IPv4 {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}
