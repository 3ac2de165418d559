package dataplane

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"

	"github.com/sluice-net/sluice/dataplane/xsk"
	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/service"
	"github.com/sluice-net/sluice/xdpprog"
)

// Opening, step by step. What likely refuses comes first, and every step that
// made something says how Close undoes it.

// Open makes cfg's devices ports: it creates the return port, loads the
// classifier or takes over the pinned one with its flow table, opens a socket for
// each queue and attaches. It does everything or nothing. The workers start with
// Run; nothing but known flows is translated before the first Publish.
//
// It is to be called on a thread in the node's network namespace; Run, Publish
// and Close may then be called from anywhere.
func Open(cfg Config, log *slog.Logger) (_ *Dataplane, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	d := &Dataplane{cfg: cfg, log: log, pressed: make(chan struct{}, 1), refused: map[int]refusal{}}
	d.ports.Store(newPortSet(nil))
	defer func() {
		if err != nil {
			d.cfg.OnExit = OnExitRemove
			if d.prog != nil && d.prog.Adopted() {
				d.cfg.OnExit = OnExitKeep // what a predecessor left is not ours to remove
			}
			d.Close()
		}
	}()
	if d.clock, err = newClock(); err != nil {
		return nil, err
	}
	if err := membarrier(); err != nil {
		return nil, fmt.Errorf("%w: the kernel cannot say when its readers of the flow table are done (it cannot with nohz_full)", err)
	}
	if d.nl, err = netlink.NewHandle(); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	d.onClose(func() error { d.nl.Close(); return nil })
	if d.eth, err = ethtool.NewEthtool(); err != nil {
		return nil, fmt.Errorf("ethtool: %w", err)
	}
	d.onClose(func() error { d.eth.Close(); return nil })
	if d.egress, err = newEgress(d.nl, &d.ports, log); err != nil {
		return nil, err
	}
	d.onClose(func() error { d.egress.close(); return nil })
	ports, err := d.wanted()
	if err != nil {
		return nil, err
	}
	if err := d.openUmem(ports); err != nil {
		return nil, err
	}
	if err := d.openReturnPort(ports); err != nil {
		return nil, err
	}
	if err := d.load(); err != nil {
		return nil, err
	}
	d.onClose(func() error {
		var errs []error
		for _, p := range slices.Backward(d.ports.Load().all) { // the return port last
			errs = append(errs, d.closeSockets(p))
		}
		return errors.Join(errs...)
	})
	if err := d.makeWorkers(); err != nil {
		return nil, err
	}
	if err := d.openPorts(ports); err != nil {
		return nil, err
	}
	return d, nil
}

// onClose remembers a step of Close.
func (d *Dataplane) onClose(f func() error) { d.undo = append(d.undo, f) }

// named is the devices that the configuration names, and not by a pattern.
func (d *Dataplane) named() map[string]bool {
	names := map[string]bool{}
	for i := range d.cfg.Ports {
		if c := &d.cfg.Ports[i]; !c.isPattern() && c.Kind != KindNone {
			names[c.Name] = true
		}
	}
	return names
}

// wanted inspects the devices to be served. One that is named must be there, and be
// one that can be; of the others a refusal is reported.
func (d *Dataplane) wanted() ([]*port, error) {
	links, err := retryDump(d.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	missing := d.named()
	var ports []*port
	f := d.egress.fib.Load()
	for _, l := range links {
		delete(missing, l.Attrs().Name)
		c := d.choose(l, f)
		if c == nil {
			continue
		}
		p, err := d.inspect(l, c)
		switch {
		case err == nil:
			ports = append(ports, p)
		case c.isPattern():
			d.refuse(l, err)
		default:
			return nil, fmt.Errorf("interface %s: %w", l.Attrs().Name, err)
		}
	}
	for name := range missing {
		return nil, fmt.Errorf("interface %s: no such device", name)
	}
	return ports, nil
}

// kindOf is the kind of port that a device is to be.
func kindOf(asked PortKind, l netlink.Link) PortKind {
	switch {
	case asked != KindAuto:
		return asked
	case isHardware(l):
		return KindNative
	}
	return KindSteered
}

// isHardware reports whether the device is one that the kernel has not made: it names
// the kind of every one of those (IFLA_INFO_KIND).
func isHardware(l netlink.Link) bool { return l.Type() == "device" }

// inspect reads what a port needs to know of its device, and refuses what cannot be
// one.
func (d *Dataplane) inspect(l netlink.Link, c *PortConfig) (*port, error) {
	at := l.Attrs()
	if at.EncapType != "ether" || len(at.HardwareAddr) != 6 {
		return nil, fmt.Errorf("a device of type %s has no Ethernet header: it cannot be served", at.EncapType)
	}
	p := &port{slot: -1, name: at.Name, ifindex: at.Index, mtu: at.MTU, asked: c.Kind, granted: kindOf(c.Kind, l), named: !c.isPattern()}
	p.driver = d.driverOf(l)
	if p.granted == KindGeneric {
		// Segments come merged from the other side's stack: TCP longer than a
		// frame of the umem, datagrams (UDP_SEGMENT) without their boundaries.
		if !isHardware(l) {
			return nil, fmt.Errorf("generic XDP on a device of kind %s would lose what comes merged from the other side: ask for steered", l.Type())
		}
		if features, err := d.eth.Features(at.Name); err == nil && features["rx-gro"] {
			return nil, fmt.Errorf("generic XDP would get packets that are merged already: turn that off (ethtool -K %s gro off), or ask for steered", at.Name)
		}
	}
	if p.steered = p.granted == KindSteered; p.steered {
		return p, nil
	}
	p.partial = p.driver == "veth" || p.driver == "tun"
	n := d.queuesOf(p)
	if n > maxQueues {
		return nil, fmt.Errorf("%d receive queues: at most %d can be served; set fewer with ethtool -L %s", n, maxQueues, at.Name)
	}
	p.queues = make([]*queue, n)
	return p, nil
}

// queuesOf is how many receive queues a port's device has now.
func (d *Dataplane) queuesOf(p *port) int {
	if ch, err := d.eth.GetChannels(p.name); err == nil {
		return max(1, int(ch.RxCount+ch.CombinedCount))
	}
	return 1
}

// openReturnPort creates the return port, with an MTU that takes what any of the
// ports takes.
func (d *Dataplane) openReturnPort(ports []*port) error {
	mtu := 1500
	for _, p := range ports {
		if p.mtu <= d.room() {
			mtu = max(mtu, p.mtu)
		}
	}
	var err error
	if d.pair, err = openReturnPort(d.nl, d.cfg.ReturnPort, mtu, d.cfg.Workers); err != nil {
		return err
	}
	d.onClose(func() error {
		if d.cfg.OnExit == OnExitKeep {
			return nil
		}
		return d.pair.remove(d.nl)
	})
	d.onClose(func() error {
		if d.cfg.OnExit == OnExitKeep || d.cfg.Mode == ModeFront {
			return nil
		}
		return removeHostRoutes(d.nl, func(*netlink.Route) bool { return false })
	})
	inner := d.pair.inner.Attrs()
	d.returnPort = &port{name: inner.Name, ifindex: inner.Index, mtu: mtu, driver: "veth", returns: true, asked: KindNative, granted: KindNative, queues: make([]*queue, d.pair.queues)}
	copy(d.returnPort.outerMAC[:], d.pair.outer.Attrs().HardwareAddr)
	return nil
}

// load puts the classifier and its maps in place, and opens the flow table in
// them: the one that a predecessor left, if it fits.
func (d *Dataplane) load() error {
	buckets, records := flowtable.Geometry(d.cfg.FlowCapacity)
	spec := xdpprog.Spec{
		Slots:        maxPorts,
		Queues:       maxQueues,
		FlowBuckets:  buckets,
		FlowRecords:  records,
		StaleAfter:   d.cfg.HeartbeatStale,
		HoldFor:      d.cfg.HoldKnown,
		OuterIfindex: d.pair.outer.Attrs().Index,
		ReturnSlot:   returnSlot,
		ReturnQueues: d.pair.queues,
		Fragments:    true,
		ICMPErrors:   true,
		SCTP:         true,
		PinDir:       d.pinDir(),
	}
	if d.cfg.Mode != ModeFront {
		spec.Mode = xdpprog.ModeAlone
	}
	var err error
	d.prog, err = xdpprog.Load(spec)
	if errors.Is(err, xdpprog.ErrIncompatiblePins) {
		d.log.Warn("what an earlier version pinned does not fit: starting without its flows", "err", err)
		if err := xdpprog.Cleanup(spec.PinDir); err != nil {
			return err
		}
		d.prog, err = xdpprog.Load(spec)
	}
	if err != nil {
		return err
	}
	d.onClose(d.prog.Close)
	if d.beats, err = xsk.Words(d.prog.BeatsMemory()); err != nil {
		return err
	}
	if d.claims, err = xsk.Words(d.prog.Claims()); err != nil {
		return err
	}
	d.localPorts = localPorts()
	d.errorLimit = newErrorLimit(readErrorRates())
	d.affinities = service.NewAffinities(d.cfg.AffinityCapacity)
	if err := d.openTable(); err != nil {
		return err
	}
	if d.adopted, err = d.prog.Ports(); err != nil {
		return err
	}
	d.slots = newSlots(d.adopted)
	return nil
}

// openTable adopts the flow table in the maps, or formats a new one.
func (d *Dataplane) openTable() error {
	index, records := d.prog.FlowIndex(), d.prog.FlowRecords()
	options := flowtable.Options{Timeouts: d.cfg.Timeouts, MaxPerClient: d.cfg.MaxFlowsPerClient}
	if d.prog.Adopted() {
		table, report, err := flowtable.OpenWith(index, records, options)
		if err == nil {
			d.table = table
			d.log.Info("took over the flow table", "flows", report.Flows, "torn", report.Torn, "cells", report.Cells)
			return nil
		}
		d.log.Warn("the pinned flow table is not usable: starting with an empty one", "err", err)
	}
	var seed [16]byte
	rand.Read(seed[:])
	err := flowtable.Format(index, records, [2]uint64{binary.NativeEndian.Uint64(seed[:]), binary.NativeEndian.Uint64(seed[8:])})
	if err != nil {
		return err
	}
	for i := range d.claims {
		d.claims[i].Store(0) // by another hash
	}
	d.table, _, err = flowtable.OpenWith(index, records, options)
	return err
}

// beat writes the heartbeat of a queue. Its worker, or Open.
func (d *Dataplane) beat(index int, now uint64) { d.beats[index].Store(now) }

// pinDir is where pins go: nowhere, if nothing is to outlive the process.
func (d *Dataplane) pinDir() string {
	if d.cfg.OnExit == OnExitKeep {
		return d.cfg.PinDir
	}
	return ""
}

// spareQueues is how many queues of direct ports may be opened later.
const spareQueues = 4

// openUmem makes the memory that every frame lives in.
func (d *Dataplane) openUmem(ports []*port) error {
	queues := min(d.cfg.Workers, maxQueues) // the return port's
	for _, p := range ports {
		queues += len(p.queues)
	}
	if slices.ContainsFunc(d.cfg.Ports, func(c PortConfig) bool {
		return c.isPattern() && c.Kind != KindSteered && c.Kind != KindNone && c.Role != RolePods && c.Role != RoleTunnels
	}) {
		queues += spareQueues
	}
	frames := d.cfg.Frames
	if frames == 0 {
		// A full fill ring for each queue; for each worker a ring of
		// transmission, two slabs of cache, and fragments that wait; some
		// to spare.
		frames = queues*d.cfg.RingSize + d.cfg.Workers*(d.cfg.RingSize+4*batchSize+maxWaiting)
	}
	var err error
	d.umem, err = xsk.NewUmem(xsk.UmemConfig{Frames: frames, FrameSize: d.cfg.FrameSize, CheckFrames: d.cfg.Debug})
	if err != nil {
		return err
	}
	d.onClose(d.umem.Close)
	return nil
}

// makeWorkers makes the workers, without queues.
func (d *Dataplane) makeWorkers() error {
	for i := range d.cfg.Workers {
		w := newWorker(d, i)
		w.cache = d.umem.Pool().NewCache()
		var err error
		if w.poller, err = xsk.NewPoller(); err != nil {
			return err
		}
		d.onClose(w.poller.Close)
		d.workers = append(d.workers, w)
	}
	return nil
}

// openPorts opens the return port, which registers the umem, and the ports that are
// named. The rest is opened by the control loop, with the workers at work: on a node with
// many pods that takes seconds, and a predecessor's steered ports work meanwhile.
func (d *Dataplane) openPorts(ports []*port) error {
	outer := d.pair.outer.Attrs().Name
	if err := installUntrack(int(d.egress.ns), outer); err != nil {
		return err
	}
	d.onClose(func() error {
		if d.cfg.OnExit == OnExitKeep {
			return nil
		}
		return removeUntrack(int(d.egress.ns), outer)
	})
	for _, p := range append([]*port{d.returnPort}, ports...) {
		if !p.returns && !p.named {
			continue
		}
		if err := d.openPort(p); err != nil {
			return fmt.Errorf("interface %s: %w", p.name, err)
		}
	}
	return nil
}

// sweep removes, once every port has been opened, what a predecessor left and nobody has
// taken over.
func (d *Dataplane) sweep() {
	swept, err := d.prog.Sweep()
	for _, s := range swept {
		d.log.Info("removed what a predecessor left", "what", s)
	}
	if err != nil {
		d.log.Warn("removing what a predecessor left", "err", err)
	}
	d.slots.forget(d.clock.now())
	d.adopted = nil
}

// detach takes the programs off every port.
func (d *Dataplane) detach() error {
	var errs []error
	for _, p := range d.ports.Load().all {
		errs = append(errs, d.prog.Detach(p.ifindex))
	}
	return errors.Join(errs...)
}
