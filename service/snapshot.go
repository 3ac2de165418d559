package service

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Protocol numbers that a Service can have.
const (
	TCP  uint8 = 6
	UDP  uint8 = 17
	SCTP uint8 = 132
)

// Frontend is what a client speaks to: the ClusterIP (IPv4 mapped), port and protocol of a ServicePort. It is flat and
// without pointers, so it is a map key as it stands.
type Frontend struct {
	Addr  [16]byte
	Port  uint16
	Proto uint8
}

func (f Frontend) String() string {
	return netip.AddrPortFrom(netip.AddrFrom16(f.Addr).Unmap(), f.Port).String() + "/" + protoName(f.Proto)
}

// Backend is what serves: the address (IPv4 mapped) and port of an endpoint.
type Backend struct {
	Addr [16]byte
	Port uint16
}

func (b Backend) String() string {
	return netip.AddrPortFrom(netip.AddrFrom16(b.Addr).Unmap(), b.Port).String()
}

// Action is what happens to a new flow to a ServicePort.
type Action uint8

const (
	Forward Action = iota // to one of Backends
	Reject                // no usable endpoint anywhere: port unreachable
	Drop                  // internalTrafficPolicy Local, none on this node, but some elsewhere
	Pass                  // the kernel's: a NetworkPolicy selects a backend, and kube-proxy serves it
	Refuse                // the same where nobody else serves it: port unreachable
)

func (a Action) String() string {
	switch a {
	case Forward:
		return "forward"
	case Reject:
		return "reject"
	case Drop:
		return "drop"
	case Pass:
		return "pass"
	case Refuse:
		return "refuse"
	}
	return "unknown"
}

// ServicePort is one port of a Service in one address family. It is immutable.
type ServicePort struct {
	Namespace string
	Name      string // of the Service
	PortName  string
	Proto     uint8
	IPv6      bool

	Frontends []Frontend // at least one
	Backends  []Backend  // usable for new flows, sorted; empty unless Action is Forward
	Action    Action
	Selection Selection     // how Select chooses
	Affinity  time.Duration // sessionAffinity ClientIP with this timeout; 0: none

	hashes  []uint64  // hash of each of Backends, for consistent selection
	serving []Backend // sorted: every endpoint that existing flows may stay with
	// affinity tells the affinities of this ServicePort from those of others, and of its own former lives.
	affinity uint64
	// turn counts roundRobin choices. Workers add to it; all Snapshots of the same ServicePort share it.
	turn *atomic.Uint64
}

// Serving says whether an existing flow may keep the backend b: the endpoint still serves, be it terminating, or outside
// of what policy and topology offer to new flows.
func (p *ServicePort) Serving(b *Backend) bool {
	low, high := 0, len(p.serving)
	for low < high {
		mid := int(uint(low+high) >> 1)
		at := &p.serving[mid]
		c := bytes.Compare(at.Addr[:], b.Addr[:])
		if c == 0 {
			c = int(at.Port) - int(b.Port)
		}
		switch {
		case c == 0:
			return true
		case c < 0:
			low = mid + 1
		default:
			high = mid
		}
	}
	return false
}

// ServingBackends lists what Serving says yes to, sorted. The caller must not change it.
func (p *ServicePort) ServingBackends() []Backend { return p.serving }

func (p *ServicePort) String() string {
	s := p.Namespace + "/" + p.Name
	if p.PortName != "" {
		s += ":" + p.PortName
	}
	return s
}

// Snapshot is everything the dataplane knows of Services at one moment. It is immutable: a Catalog makes the next one.
type Snapshot struct {
	// Generation is 1 for the first Snapshot of a process and one more for each following one. It is never 0.
	Generation uint32

	ports     []*ServicePort // sorted
	addresses [][16]byte     // sorted
	around    around
	shards    [shards]map[[16]byte]*atAddress

	// What is not as in the Snapshot before.
	before                      *lineage
	newAddresses, goneAddresses [][16]byte
	newBackends, goneBackends   [][16]byte
	self                        *lineage
}

// lineage tells Snapshots from each other without holding on to them.
type lineage struct{ _ byte }

// shards is in how many parts the index of a Snapshot is: what changes costs a copy of one of them.
const shards = 1024

// atAddress are the ServicePorts of one ClusterIP, sorted by protocol and port.
type atAddress struct {
	ports  []located
	served bool // some of them are not left to the kernel
}

type located struct {
	number uint32 // protocol<<16 | port
	*ServicePort
}

func numberOf(f *Frontend) uint32 { return uint32(f.Proto)<<16 | uint32(f.Port) }

func shardOf(addr *[16]byte) int {
	return int(mix(binary.LittleEndian.Uint64(addr[8:])^key0, binary.LittleEndian.Uint64(addr[:8])^key1) % shards)
}

// Lookup finds the ServicePort that has the frontend, or nil.
func (s *Snapshot) Lookup(f *Frontend) *ServicePort {
	at := s.shards[shardOf(&f.Addr)][f.Addr]
	if at == nil {
		return nil
	}
	number := numberOf(f)
	if len(at.ports) > 8 {
		if i, ok := slices.BinarySearchFunc(at.ports, number, compareLocated); ok {
			return at.ports[i].ServicePort
		}
		return nil
	}
	for i := range at.ports {
		if at.ports[i].number == number {
			return at.ports[i].ServicePort
		}
	}
	return nil
}

func compareLocated(l located, number uint32) int { return cmp.Compare(l.number, number) }

// Serves says whether the address belongs to any frontend that is not left to the kernel. If so and Lookup finds nothing, the
// client uses a port or protocol that the Service does not define.
func (s *Snapshot) Serves(addr [16]byte) bool {
	at := s.shards[shardOf(&addr)][addr]
	return at != nil && at.served
}

// Addresses lists every address that Serves says yes to, sorted. The caller must not change it.
func (s *Snapshot) Addresses() [][16]byte { return s.addresses }

// ServicePorts lists all, sorted by namespace, name, port name, protocol and family. The caller must not change it.
func (s *Snapshot) ServicePorts() []*ServicePort { return s.ports }

// Delta is what one Snapshot has more, and less, than another. Backends are those that serve, be it only flows that they have.
type Delta struct {
	NewAddresses, GoneAddresses [][16]byte
	NewBackends, GoneBackends   [][16]byte
}

// After gives what is not as in prev, if prev is the Snapshot that s was made from.
func (s *Snapshot) After(prev *Snapshot) (Delta, bool) {
	if prev == nil || s.before == nil || s.before != prev.self {
		return Delta{}, false
	}
	return Delta{s.newAddresses, s.goneAddresses, s.newBackends, s.goneBackends}, true
}

// edit replaces the ServicePorts of one Service by others.
type edit struct{ old, new []*ServicePort }

// edit makes the next Snapshot. The edits are sorted by Service. s may be nil.
func (s *Snapshot) edit(edits []edit) *Snapshot {
	next := &Snapshot{Generation: 1, self: new(lineage)}
	if s != nil {
		next.Generation = s.Generation + 1
		if next.Generation == 0 {
			next.Generation = 1
		}
		next.before, next.shards, next.addresses = s.self, s.shards, s.addresses
	}
	next.ports = s.editPorts(edits)
	var mine [shards]bool // those of next that are not shared with s
	touched := make(map[[16]byte]bool)
	at := func(f *Frontend) *atAddress {
		shard := shardOf(&f.Addr)
		if !mine[shard] {
			mine[shard] = true
			if next.shards[shard] = maps.Clone(next.shards[shard]); next.shards[shard] == nil {
				next.shards[shard] = make(map[[16]byte]*atAddress)
			}
		}
		was := next.shards[shard][f.Addr]
		if was != nil && touched[f.Addr] {
			return was
		}
		touched[f.Addr] = true
		is := new(atAddress)
		if was != nil {
			is.ports = slices.Clone(was.ports)
		}
		next.shards[shard][f.Addr] = is
		return is
	}
	for i := range edits { // what goes first: an address may change hands
		for _, p := range edits[i].old {
			for k := range p.Frontends {
				a := at(&p.Frontends[k])
				if at, ok := slices.BinarySearchFunc(a.ports, numberOf(&p.Frontends[k]), compareLocated); ok && a.ports[at].ServicePort == p {
					a.ports = slices.Delete(a.ports, at, at+1)
				}
			}
		}
	}
	for i := range edits {
		for _, p := range edits[i].new {
			for k := range p.Frontends {
				a, n := at(&p.Frontends[k]), numberOf(&p.Frontends[k])
				where, _ := slices.BinarySearchFunc(a.ports, n, compareLocated)
				a.ports = slices.Insert(a.ports, where, located{n, p})
			}
		}
	}
	for addr := range touched {
		shard := shardOf(&addr)
		at := next.shards[shard][addr]
		at.served = slices.ContainsFunc(at.ports, func(l located) bool { return l.Action != Pass })
		if len(at.ports) == 0 {
			delete(next.shards[shard], addr)
		}
		switch was := s != nil && s.Serves(addr); {
		case was && !at.served:
			next.goneAddresses = append(next.goneAddresses, addr)
		case !was && at.served:
			next.newAddresses = append(next.newAddresses, addr)
		}
	}
	if len(next.newAddresses)+len(next.goneAddresses) != 0 {
		next.addresses = editAddresses(next.addresses, next.newAddresses, next.goneAddresses)
	}
	return next
}

// editPorts copies the list of ports with the edits in it.
func (s *Snapshot) editPorts(edits []edit) []*ServicePort {
	var old []*ServicePort
	if s != nil {
		old = s.ports
	}
	size := len(old)
	for i := range edits {
		size += len(edits[i].new) - len(edits[i].old)
	}
	ports := make([]*ServicePort, 0, size)
	for i := range edits {
		first := edits[i].new
		if len(first) == 0 {
			first = edits[i].old
		}
		if len(first) == 0 {
			continue
		}
		service := first[0]
		at, _ := slices.BinarySearchFunc(old, service, compareService)
		ports = append(append(ports, old[:at]...), edits[i].new...)
		old = old[at+len(edits[i].old):]
	}
	return append(ports, old...)
}

// editAddresses copies a sorted list of addresses with come in it and gone not.
func editAddresses(old, come, gone [][16]byte) [][16]byte {
	slices.SortFunc(come, compareAddr)
	slices.SortFunc(gone, compareAddr)
	list := make([][16]byte, 0, len(old)+len(come)-len(gone))
	for _, a := range old {
		for len(come) != 0 && compareAddr(come[0], a) < 0 {
			list, come = append(list, come[0]), come[1:]
		}
		if len(gone) != 0 && gone[0] == a {
			gone = gone[1:]
			continue
		}
		list = append(list, a)
	}
	return append(list, come...)
}

func compareService(a, b *ServicePort) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

func comparePort(a, b *ServicePort) int {
	if c := compareService(a, b); c != 0 {
		return c
	}
	if c := strings.Compare(a.PortName, b.PortName); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Proto, b.Proto); c != 0 {
		return c
	}
	return cmp.Compare(familyOf(a.IPv6), familyOf(b.IPv6))
}

func compareAddr(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) }

func compareBackend(a, b Backend) int {
	if c := compareAddr(a.Addr, b.Addr); c != 0 {
		return c
	}
	return cmp.Compare(a.Port, b.Port)
}

func familyOf(v6 bool) int {
	if v6 {
		return 6
	}
	return 4
}

func protoName(p uint8) string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return "unknown"
}
