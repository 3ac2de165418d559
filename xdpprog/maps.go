//go:build linux

package xdpprog

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// PortFlags are what the classifier knows of a port beside its slot.
type PortFlags uint32

// ReturnPort marks the return port's inner end: what would pass elsewhere is
// dropped there, since it would be routed back to where it came from.
const ReturnPort PortFlags = 1 << 0

// MarkedSlot reads the source address of a frame that the return port received: one of
// the tc programs' gives the slot that it came in by, the return port's own if the node
// itself has sent it, and RoutedSlot if the daemon had. Nothing else on that device has
// such an address.
func MarkedSlot(source [6]byte) (slot int, ok bool) {
	if source[0] != 0x02 || source[1] != 's' || source[2] != 'l' || source[3] != 'o' {
		return 0, false
	}
	return int(source[4])<<8 | int(source[5]), true
}

// RoutedSlot is what MarkedSlot reads of a reply that went out of the return port
// untranslated, and that the kernel has routed.
const RoutedSlot = 0xffff

// Port is an entry of the port map, struct port in bpf/classifier.h.
type Port struct {
	Slot  uint32
	Flags PortFlags
}

// FlowIndex, FlowRecords, BeatsMemory and Claims are the memory of four maps, shared
// with the programs. They are valid until [Objects.Close].
//
// A beat is a native-endian uint64 at 8 times [Objects.Index], nanoseconds of
// CLOCK_MONOTONIC. It has to be stored by one 64-bit store, which takes an unsafe
// pointer: so that is done by the owner of the sockets and not here. The memory is
// page-aligned.
func (o *Objects) FlowIndex() []byte { return o.memory.flowIndex }

// FlowRecords is described at [Objects.FlowIndex].
func (o *Objects) FlowRecords() []byte { return o.memory.flowRecords }

// BeatsMemory is described at [Objects.FlowIndex].
func (o *Objects) BeatsMemory() []byte { return o.memory.beats }

// Claims is described at [Objects.FlowIndex]. It says which tuples connections with
// backends themselves claim, those that are no flows: a native-endian uint64 at 8 times
// (hash of the tuple mod length/8), until when in nanoseconds of CLOCK_MONOTONIC. The
// tuple is that of the frames to the backend, the hash the flow table's. The programs
// write it, and several tuples may share a cell.
func (o *Objects) Claims() []byte { return o.memory.claims }

// Index is where a queue of a port has its socket and its beat.
func (o *Objects) Index(slot, queue int) int { return slot*o.spec.Queues + queue }

// SetPort gives a device its slot. Frames of a device without one pass, so a port
// is set before its program is attached, and its sockets come last. The counters
// of the slot start anew with a new device.
func (o *Objects) SetPort(ifindex, slot int, flags PortFlags) error {
	if slot < 0 || slot >= o.spec.Slots {
		return fmt.Errorf("device %d: slot %d of %d", ifindex, slot, o.spec.Slots)
	}
	key, port := uint32(ifindex), Port{Slot: uint32(slot), Flags: flags}
	var old Port
	err := o.maps.Ports.Lookup(key, &old)
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && old.Slot != port.Slot:
		cpus, err := ebpf.PossibleCPU()
		if err != nil {
			return fmt.Errorf("counting CPUs: %w", err)
		}
		if err := o.maps.Counters.Put(port.Slot, make([]PortCounters, cpus)); err != nil {
			return fmt.Errorf("clearing the counters of slot %d: %w", slot, err)
		}
	case err != nil:
		return fmt.Errorf("looking up port %d: %w", ifindex, err)
	}
	if err := o.maps.Ports.Put(key, port); err != nil {
		return fmt.Errorf("setting port %d to slot %d: %w", ifindex, slot, full(err, o.maps.Ports))
	}
	o.mu.Lock()
	o.ports[ifindex] = true
	o.mu.Unlock()
	return nil
}

// DeletePort takes a device out of the port map; its frames pass from now on.
func (o *Objects) DeletePort(ifindex int) error {
	o.mu.Lock()
	delete(o.ports, ifindex)
	o.mu.Unlock()
	if err := deleteKey(o.maps.Ports, uint32(ifindex)); err != nil {
		return fmt.Errorf("deleting port %d: %w", ifindex, err)
	}
	return nil
}

// Ports returns the port map by ifindex: after an adoption, the slots that the
// earlier process had given.
func (o *Objects) Ports() (map[int]Port, error) {
	ports := make(map[int]Port)
	var key uint32
	var port Port
	entries := o.maps.Ports.Iterate()
	for entries.Next(&key, &port) {
		ports[int(key)] = port
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("reading the port map: %w", err)
	}
	return ports, nil
}

// SetSocket hands the frames of an index, see [Objects.Index], to the AF_XDP
// socket fd. The socket leaves the map by itself when it is closed.
func (o *Objects) SetSocket(index, fd int) error {
	if err := o.maps.Xsks.Put(uint32(index), uint32(fd)); err != nil {
		return fmt.Errorf("setting socket %d: %w", index, err)
	}
	return nil
}

// DeleteSocket takes a socket out; one that is not there is no error.
func (o *Objects) DeleteSocket(index int) error {
	if err := deleteKey(o.maps.Xsks, uint32(index)); err != nil {
		return fmt.Errorf("deleting socket %d: %w", index, err)
	}
	return nil
}

// UpdateAddresses changes which addresses we serve, IPv4 as mapped addresses.
// Those to remove are removed first, to make room.
func (o *Objects) UpdateAddresses(add, remove [][16]byte) error {
	if err := updateSet(o.maps.FrontendAddrs, add, remove); err != nil {
		return fmt.Errorf("served addresses: %w", err)
	}
	return nil
}

// Addresses returns the addresses we serve, in no order: after an adoption,
// those of the earlier process.
func (o *Objects) Addresses() ([][16]byte, error) {
	addresses, err := readSet(o.maps.FrontendAddrs)
	if err != nil {
		return nil, fmt.Errorf("served addresses: %w", err)
	}
	return addresses, nil
}

// UpdateBackends changes which addresses are those of backends, as
// [Objects.UpdateAddresses] does for those we serve. Fragments from them are ours,
// see [Spec], and connections with them claim their tuples. An
// address has to stay while flows to it live, or the later fragments of their replies pass
// untranslated.
func (o *Objects) UpdateBackends(add, remove [][16]byte) error {
	if err := updateSet(o.maps.BackendAddrs, add, remove); err != nil {
		return fmt.Errorf("addresses of backends: %w", err)
	}
	return nil
}

// Backends returns the addresses of backends, in no order: after an adoption,
// those of the earlier process, or none if it knew of no such map.
func (o *Objects) Backends() ([][16]byte, error) {
	addresses, err := readSet(o.maps.BackendAddrs)
	if err != nil {
		return nil, fmt.Errorf("addresses of backends: %w", err)
	}
	return addresses, nil
}

// updateSet changes a set of addresses.
func updateSet(set *ebpf.Map, add, remove [][16]byte) error {
	for _, a := range remove {
		if err := deleteKey(set, a); err != nil {
			return fmt.Errorf("removing one: %w", err)
		}
	}
	for _, a := range add {
		if err := set.Put(a, uint32(0)); err != nil {
			return fmt.Errorf("adding one: %w", full(err, set))
		}
	}
	return nil
}

func readSet(set *ebpf.Map) ([][16]byte, error) {
	var addresses [][16]byte
	var key [16]byte
	var flags uint32
	entries := set.Iterate()
	for entries.Next(&key, &flags) {
		addresses = append(addresses, key)
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("reading: %w", err)
	}
	return addresses, nil
}

// Counters returns the counters of every slot, summed over CPUs. One more entry
// at the end counts the frames of devices that are not in the port map.
func (o *Objects) Counters() ([]PortCounters, error) {
	sums := make([]PortCounters, o.spec.Slots+1)
	var cpus []PortCounters
	for slot := range sums {
		if err := o.maps.Counters.Lookup(uint32(slot), &cpus); err != nil {
			return nil, fmt.Errorf("reading the counters of slot %d: %w", slot, err)
		}
		for i := range cpus {
			for r := range NumReasons {
				sums[slot].Ingress[r] += cpus[i].Ingress[r]
				sums[slot].Egress[r] += cpus[i].Egress[r]
			}
		}
	}
	return sums, nil
}

func deleteKey(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// full says so if a map is.
func full(err error, m *ebpf.Map) error {
	if errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("more than %d entries: %w", m.MaxEntries(), err)
	}
	return err
}
