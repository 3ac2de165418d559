//go:build linux

package xdpprog

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ErrIncompatiblePins means that the pin directory holds maps that this build
// with this [Spec] cannot adopt. [Cleanup] makes room for a clean start, at the
// price of the flows in them.
var ErrIncompatiblePins = errors.New("pinned maps cannot be adopted")

// Objects are the loaded programs, their maps and their attachments. Its methods
// may be called from any goroutine, but those that attach and detach act in the
// calling thread's network namespace.
type Objects struct {
	spec      Spec
	adopted   bool
	conntrack error // why connection tracking is not asked, nil if it is

	xdp    *ebpf.Program
	steer  *ebpf.Program
	egress *ebpf.Program
	maps   xdpMaps
	memory struct {
		flowIndex, flowRecords, beats, claims []byte
	}

	mu       sync.Mutex
	attached map[hookOf]link.Link
	ports    map[int]bool // ifindex, set through us
}

// Load makes the maps, or adopts them from the pin directory, and loads the
// programs. Nothing is attached yet.
//
// An error that is [ErrIncompatiblePins] left the pins as they were.
func Load(spec Spec) (_ *Objects, err error) {
	spec = spec.withDefaults()
	if err := spec.validate(); err != nil {
		return nil, fmt.Errorf("classifier: %w", err)
	}
	if spec.PinDir != "" {
		if err := preparePinDir(spec.PinDir); err != nil {
			return nil, err
		}
	}
	xdp, err := loadXdp()
	if err != nil {
		return nil, fmt.Errorf("classifier: %w", err)
	}
	steer, err := loadSteer()
	if err != nil {
		return nil, fmt.Errorf("classifier: %w", err)
	}
	egress, err := loadEgress()
	if err != nil {
		return nil, fmt.Errorf("classifier: %w", err)
	}
	o := &Objects{
		spec:     spec,
		attached: make(map[hookOf]link.Link),
		ports:    make(map[int]bool),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.Close())
		}
	}()
	if err := o.openMaps(xdp); err != nil {
		return nil, err
	}
	if err := o.loadPrograms(xdp, steer, egress); err != nil {
		return nil, err
	}
	return o, nil
}

// sizes is how many entries each map has, but those that the classifier sizes itself.
func (s *Spec) sizes() map[string]uint32 {
	sockets := uint32(s.Slots * s.Queues)
	return map[string]uint32{
		xdpMapFlowIndex:     uint32(s.FlowBuckets),
		xdpMapFlowRecords:   uint32(s.FlowRecords),
		xdpMapFrontendAddrs: uint32(s.MaxAddresses),
		xdpMapBackendAddrs:  uint32(s.MaxAddresses),
		// Room for the entries of devices that vanished while nobody looked.
		xdpMapPorts: uint32(2 * s.Slots),
		xdpMapXsks:  sockets,
		xdpMapBeats: sockets,
		// The last one counts the frames of unknown ports.
		xdpMapCounters: uint32(s.Slots + 1),
	}
}

// openMaps first looks at all that is pinned, and makes what is missing only when
// all of that is fit to be adopted.
func (o *Objects) openMaps(xdp *ebpf.CollectionSpec) error {
	sizes := o.spec.sizes()
	all := []struct {
		name string
		to   **ebpf.Map
	}{
		{xdpMapFlowIndex, &o.maps.FlowIndex},
		{xdpMapFlowRecords, &o.maps.FlowRecords},
		{xdpMapFrontendAddrs, &o.maps.FrontendAddrs},
		{xdpMapBackendAddrs, &o.maps.BackendAddrs},
		{xdpMapPorts, &o.maps.Ports},
		{xdpMapXsks, &o.maps.Xsks},
		{xdpMapBeats, &o.maps.Beats},
		{xdpMapClaims, &o.maps.Claims},
		{xdpMapCounters, &o.maps.Counters},
	}
	for _, m := range all {
		spec := xdp.Maps[m.name]
		if n, ok := sizes[m.name]; ok {
			spec.MaxEntries = n
		}
		var err error
		if *m.to, err = o.adoptMap(spec); err != nil {
			return err
		}
	}
	if (o.maps.FlowIndex == nil) != (o.maps.FlowRecords == nil) {
		return fmt.Errorf("%w: half of the flow table is missing from %s", ErrIncompatiblePins, o.mapsDir())
	}
	o.adopted = o.maps.FlowRecords != nil
	for _, m := range all {
		if *m.to != nil {
			continue
		}
		var err error
		if *m.to, err = o.makeMap(xdp.Maps[m.name]); err != nil {
			return err
		}
	}

	for _, m := range []struct {
		from *ebpf.Map
		to   *[]byte
	}{
		{o.maps.FlowIndex, &o.memory.flowIndex},
		{o.maps.FlowRecords, &o.memory.flowRecords},
		{o.maps.Beats, &o.memory.beats},
		{o.maps.Claims, &o.memory.claims},
	} {
		var err error
		if *m.to, err = mapMemory(m.from); err != nil {
			return err
		}
	}
	return nil
}

// adoptMap returns the pinned map of that name, or nil if there is none.
func (o *Objects) adoptMap(spec *ebpf.MapSpec) (*ebpf.Map, error) {
	if o.spec.PinDir == "" {
		return nil, nil
	}
	path := filepath.Join(o.mapsDir(), spec.Name)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrIncompatiblePins, path, err)
	}
	err = spec.Compatible(m)
	if err == nil {
		return m, nil
	}
	m.Close()
	if spec.Name == xdpMapCounters || spec.Name == xdpMapClaims {
		// Counters change with every new reason, and connections claim their tuples
		// again with their next frame: nothing to lose flows for.
		return nil, nil
	}
	return nil, fmt.Errorf("%w: %s: %w", ErrIncompatiblePins, path, err)
}

func (o *Objects) makeMap(spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("creating map %s of %d entries: %w", spec.Name, spec.MaxEntries, err)
	}
	if o.spec.PinDir == "" {
		return m, nil
	}
	path := filepath.Join(o.mapsDir(), spec.Name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("removing an outdated pin: %w", err), m.Close())
	}
	if err := m.Pin(path); err != nil {
		return nil, errors.Join(fmt.Errorf("pinning map %s: %w", path, err), m.Close())
	}
	return m, nil
}

func (o *Objects) loadPrograms(xdp, steer, egress *ebpf.CollectionSpec) error {
	ours := map[string]*ebpf.Map{
		xdpMapFlowIndex:     o.maps.FlowIndex,
		xdpMapFlowRecords:   o.maps.FlowRecords,
		xdpMapFrontendAddrs: o.maps.FrontendAddrs,
		xdpMapBackendAddrs:  o.maps.BackendAddrs,
		xdpMapPorts:         o.maps.Ports,
		xdpMapXsks:          o.maps.Xsks,
		xdpMapBeats:         o.maps.Beats,
		xdpMapClaims:        o.maps.Claims,
		xdpMapCounters:      o.maps.Counters,
	}
	for _, spec := range []*ebpf.CollectionSpec{steer, egress} {
		for name, m := range spec.Maps {
			if ours[name] != nil {
				m.MaxEntries = ours[name].MaxEntries()
			}
		}
	}
	options := ebpf.CollectionOptions{MapReplacements: ours, Cache: btf.NewCache()}

	if err := o.setConstants(egress, false); err != nil {
		return err
	}
	var egressPrograms egressPrograms
	if err := egress.LoadAndAssign(&egressPrograms, &options); err != nil {
		return fmt.Errorf("loading the egress classifier: %w", err)
	}
	o.egress = egressPrograms.SluiceEgress

	load := func(conntrack bool) error {
		spec := xdp.Copy()
		if err := o.setConstants(spec, conntrack); err != nil {
			return err
		}
		var programs xdpPrograms
		if err := spec.LoadAndAssign(&programs, &options); err != nil {
			return fmt.Errorf("loading the XDP classifier: %w", err)
		}
		o.xdp = programs.SluiceXdp
		spec = steer.Copy()
		if err := o.setConstants(spec, conntrack); err != nil {
			return err
		}
		var steerPrograms steerPrograms
		if err := spec.LoadAndAssign(&steerPrograms, &options); err != nil {
			o.xdp.Close()
			return fmt.Errorf("loading the steering classifier: %w", err)
		}
		o.steer = steerPrograms.SluiceSteer
		return nil
	}
	if o.spec.Mode != ModeFront || o.spec.Conntrack == ConntrackOff {
		o.conntrack = errors.New("connection tracking is not asked for")
		return load(false)
	}
	// Whether the calls exist is a question of the kernel's build, of its
	// modules and of BTF: the verifier's answer is the only sure one.
	o.conntrack = load(true)
	if o.conntrack == nil || o.spec.Conntrack == ConntrackRequired {
		return o.conntrack
	}
	return load(false)
}

func (o *Objects) setConstants(spec *ebpf.CollectionSpec, conntrack bool) error {
	s := &o.spec
	hold := s.HoldFor
	if hold < 0 {
		hold = math.MinInt64 // no beat is that young
	}
	for name, value := range map[string]any{
		xdpVarMode:         uint32(s.Mode),
		xdpVarSlots:        uint32(s.Slots),
		xdpVarQueues:       uint32(s.Queues),
		xdpVarFlowBuckets:  uint32(s.FlowBuckets),
		xdpVarStaleNs:      uint64(s.StaleAfter),
		xdpVarHoldNs:       uint64(hold),
		xdpVarOuterIfindex: uint32(s.OuterIfindex),
		xdpVarReturnSlot:   uint32(s.ReturnSlot),
		xdpVarReturnQueues: uint32(s.ReturnQueues),
		xdpVarUseCt:        conntrack,
		xdpVarFragments:    s.Fragments,
		xdpVarIcmpErrors:   s.ICMPErrors,
		xdpVarSctp:         s.SCTP,
	} {
		v := spec.Variables[name]
		if v == nil {
			return fmt.Errorf("classifier has no constant %s", name)
		}
		if err := v.Set(value); err != nil {
			return fmt.Errorf("setting constant %s: %w", name, err)
		}
	}
	return nil
}

// Adopted says whether the flow table is that of an earlier process.
func (o *Objects) Adopted() bool { return o.adopted }

// Conntrack is nil if the classifier asks the kernel's connection tracking, else
// the reason why it does not.
func (o *Objects) Conntrack() error { return o.conntrack }

// Close lets go of everything. What is pinned stays and works on; the rest
// is gone, attachments included. The memory that [Objects.FlowIndex] and its like
// returned must not be touched any more: whoever does so faults.
func (o *Objects) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for at, l := range o.attached {
		errs = append(errs, l.Close())
		delete(o.attached, at)
	}
	for _, memory := range []*[]byte{&o.memory.flowIndex, &o.memory.flowRecords, &o.memory.beats, &o.memory.claims} {
		if *memory != nil {
			errs = append(errs, unix.Munmap((*memory)[:cap(*memory)]))
			*memory = nil
		}
	}
	// Closing a nil or a closed program or map does nothing.
	errs = append(errs, o.xdp.Close(), o.steer.Close(), o.egress.Close(), o.maps.Close())
	return errors.Join(errs...)
}

// mapMemory maps an array in whole pages and returns its values. The slice's
// capacity is the mapping's size, for Munmap.
func mapMemory(m *ebpf.Map) ([]byte, error) {
	size := int(m.MaxEntries()) * int(m.ValueSize())
	page := os.Getpagesize()
	b, err := unix.Mmap(m.FD(), 0, (size+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping %d bytes of %s: %w", size, m, err)
	}
	return b[:size], nil
}
