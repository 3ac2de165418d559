package dataplane

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"

	"github.com/sluice-net/sluice/dataplane/xsk"
	"github.com/sluice-net/sluice/flowtable"
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
	d := &Dataplane{cfg: cfg, log: log, pressed: make(chan struct{}, 1)}
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
	devices, err := d.inspect()
	if err != nil {
		return nil, err
	}
	if err := d.openUmem(devices); err != nil {
		return nil, err
	}
	if err := d.openReturnPort(devices); err != nil {
		return nil, err
	}
	if err := d.load(devices); err != nil {
		return nil, err
	}
	if err := d.openSockets(); err != nil {
		return nil, err
	}
	if d.egress, err = newEgress(d.nl, &d.ports, log); err != nil {
		return nil, err
	}
	d.onClose(func() error { d.egress.close(); return nil })
	if err := d.makeWorkers(); err != nil {
		return nil, err
	}
	if err := d.attach(); err != nil {
		return nil, err
	}
	return d, nil
}

// onClose remembers a step of Close.
func (d *Dataplane) onClose(f func() error) { d.undo = append(d.undo, f) }

// inspect looks at the devices to be served and refuses those that cannot be.
func (d *Dataplane) inspect() ([]*port, error) {
	eth, err := ethtool.NewEthtool()
	if err != nil {
		return nil, fmt.Errorf("ethtool: %w", err)
	}
	defer eth.Close()
	var ports []*port
	for _, c := range d.cfg.Ports {
		l, err := d.nl.LinkByName(c.Name)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", c.Name, err)
		}
		p, err := inspectPort(eth, l, c.Kind)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", c.Name, err)
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// inspectPort reads what a port needs to know of its device, and decides of which kind
// it is.
func inspectPort(eth *ethtool.Ethtool, l netlink.Link, asked PortKind) (*port, error) {
	at := l.Attrs()
	if at.EncapType != "ether" || len(at.HardwareAddr) != 6 {
		return nil, fmt.Errorf("a device of type %s has no Ethernet header: it cannot be served", at.EncapType)
	}
	p := &port{name: at.Name, ifindex: at.Index, mtu: at.MTU, asked: asked, granted: asked}
	p.driver, _ = eth.DriverName(at.Name)
	// The kernel names the kind of every device that it makes, and of no other
	// (IFLA_INFO_KIND).
	hardware := l.Type() == "device"
	switch {
	case asked == KindAuto && hardware:
		p.granted = KindNative
	case asked == KindAuto:
		p.granted = KindSteered
	case asked == KindGeneric && !hardware:
		// Segments come merged from the other side's stack: TCP longer than a
		// frame of the umem, datagrams (UDP_SEGMENT) without their boundaries.
		return nil, fmt.Errorf("generic XDP on a device of kind %s would lose what comes merged from the other side: ask for steered", l.Type())
	case asked == KindGeneric:
		if features, err := eth.Features(at.Name); err == nil && features["rx-gro"] {
			return nil, fmt.Errorf("generic XDP would get packets that are merged already: turn that off (ethtool -K %s gro off), or ask for steered", at.Name)
		}
	}
	if p.steered = p.granted == KindSteered; p.steered {
		return p, nil
	}
	p.partial = p.driver == "veth" || p.driver == "tun"
	n := 1
	if ch, err := eth.GetChannels(at.Name); err == nil {
		n = max(1, int(ch.RxCount+ch.CombinedCount))
	}
	if n > maxQueues {
		return nil, fmt.Errorf("%d receive queues: at most %d can be served; set fewer with ethtool -L %s", n, maxQueues, at.Name)
	}
	p.queues = make([]*queue, n)
	return p, nil
}

// openReturnPort creates the return port, with an MTU that takes what any of
// the direct ports takes.
func (d *Dataplane) openReturnPort(ports []*port) error {
	mtu := 0
	for _, p := range ports {
		mtu = max(mtu, p.mtu)
	}
	var err error
	if d.pair, err = openReturnPort(d.nl, d.cfg.ReturnPort, mtu); err != nil {
		return err
	}
	d.onClose(func() error {
		if d.cfg.OnExit == OnExitKeep {
			return nil
		}
		return d.pair.remove(d.nl)
	})
	inner := d.pair.inner.Attrs()
	d.returnPort = &port{name: inner.Name, ifindex: inner.Index, mtu: mtu, driver: "veth", returns: true, asked: KindNative, granted: KindNative, queues: make([]*queue, 1)}
	copy(d.returnPort.outerMAC[:], d.pair.outer.Attrs().HardwareAddr)
	return nil
}

// load puts the classifier and its maps in place, and opens the flow table in
// them: the one that a predecessor left, if it fits.
func (d *Dataplane) load(ports []*port) error {
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
	if err := d.openTable(); err != nil {
		return err
	}
	return d.giveSlots(ports)
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
	d.table, _, err = flowtable.OpenWith(index, records, options)
	return err
}

// giveSlots gives every port its slot. A device that a predecessor served keeps
// the one it had: a slot must never hold another device's socket, not even for
// the moment of a restart.
func (d *Dataplane) giveSlots(ports []*port) error {
	had, err := d.prog.Ports()
	if err != nil {
		return err
	}
	taken := map[int]bool{returnSlot: true}
	for _, p := range ports {
		p.slot = -1
		if old, ok := had[p.ifindex]; ok && !taken[int(old.Slot)] {
			p.slot = int(old.Slot)
			taken[p.slot] = true
		}
	}
	// The rest get slots that nobody had, if there are any.
	for _, p := range had {
		taken[int(p.Slot)] = true
	}
	next := 0
	for _, p := range ports {
		for p.slot < 0 {
			if next == maxPorts {
				next, taken = 0, map[int]bool{returnSlot: true}
				for _, q := range ports {
					taken[q.slot] = true
				}
			}
			if !taken[next] {
				p.slot = next
			}
			next++
		}
	}
	all := append([]*port{d.returnPort}, ports...)
	d.ports.Store(newPortSet(all))
	for _, p := range all {
		if !p.steered {
			p.out = make([]outbox, d.cfg.Workers)
		}
		for i := range p.queues {
			p.queues[i] = &queue{port: p, number: i, index: d.prog.Index(p.slot, i)}
		}
	}
	return nil
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

// openUmem makes the memory that every frame lives in, for these ports and the
// return port, and refuses ports whose frames would not fit.
func (d *Dataplane) openUmem(ports []*port) error {
	queues := 1
	for _, p := range ports {
		queues += len(p.queues)
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
	room := d.umem.MaxReceive() - etherLen - 8 // two VLAN tags
	for _, p := range ports {
		if p.mtu > room {
			return fmt.Errorf("interface %s: MTU %d is above %d, the longest packet that a frame of %d bytes holds: lower the MTU or do not serve it", p.name, p.mtu, room, d.cfg.FrameSize)
		}
	}
	return nil
}

// openSockets opens a socket for every queue, the return port's first: it
// registers the umem, and outlives the others.
func (d *Dataplane) openSockets() (err error) {
	for _, p := range d.ports.Load().all {
		for _, q := range p.queues {
			q.sock, err = xsk.Open(d.umem, xsk.Config{
				Interface: p.name, Ifindex: p.ifindex, Queue: q.number, Mode: xsk.ModeCopy,
				FillSize: d.cfg.RingSize, RxSize: d.cfg.RingSize, TxSize: d.cfg.RingSize, CompletionSize: d.cfg.RingSize,
			})
			if err != nil {
				return err
			}
			d.onClose(q.sock.Close)
		}
	}
	return nil
}

// makeWorkers gives the queues out in turn and fills their fill rings.
func (d *Dataplane) makeWorkers() error {
	for i := range d.cfg.Workers {
		w := newWorker(d, i)
		w.cache = d.umem.Pool().NewCache()
		d.workers = append(d.workers, w)
	}
	n := 0
	for _, p := range d.ports.Load().all {
		for _, q := range p.queues {
			w := d.workers[n%len(d.workers)]
			w.queues = append(w.queues, q)
			q.sock.Refill(w.cache)
			n++
		}
	}
	for _, w := range d.workers {
		var err error
		if w.poller, err = xsk.NewPoller(); err != nil {
			return err
		}
		d.onClose(w.poller.Close)
		for _, q := range w.queues {
			w.poller.Add(q.sock)
		}
	}
	return nil
}

// attach makes the frames come: slots, heartbeats and sockets first, then the
// programs, the return port's before all others.
func (d *Dataplane) attach() error {
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
	for _, p := range d.ports.Load().all {
		if err := d.attachPort(p); err != nil {
			return fmt.Errorf("interface %s: %w", p.name, err)
		}
	}
	swept, err := d.prog.Sweep()
	for _, s := range swept {
		d.log.Info("removed what a predecessor left", "what", s)
	}
	return err
}

// attachPort is attach for one port.
func (d *Dataplane) attachPort(p *port) error {
	var flags xdpprog.PortFlags
	if p.returns {
		flags = xdpprog.ReturnPort
	}
	if err := d.prog.SetPort(p.ifindex, p.slot, flags); err != nil {
		return err
	}
	now := d.clock.now()
	for _, q := range p.queues {
		d.beat(q.index, now)
		if err := d.prog.SetSocket(q.index, q.sock.FD()); err != nil {
			return err
		}
	}
	adopted, err := d.attachIngress(p)
	if err != nil {
		return err
	}
	if !p.returns {
		if _, err := d.prog.AttachEgress(p.ifindex); err != nil {
			return err
		}
	}
	d.log.Info("serving", "interface", p.name, "driver", p.driver, "asked", p.asked.String(), "granted", p.granted.String(),
		"adopted", adopted, "queues", len(p.queues), "mtu", p.mtu)
	return nil
}

// attachIngress attaches the program that gives the port its frames, and says whether
// it took one over.
func (d *Dataplane) attachIngress(p *port) (adopted bool, err error) {
	if p.steered {
		return d.prog.AttachSteer(p.ifindex)
	}
	mode := xdpprog.Native
	if p.granted == KindGeneric {
		mode = xdpprog.Generic
	}
	x, err := d.prog.AttachXDP(p.ifindex, xdpprog.XDPOptions{Mode: mode, Replace: d.cfg.ReplaceForeignXDP && !p.returns})
	if x.Replaced != nil {
		d.log.Warn("replaced a foreign XDP program", "interface", p.name, "program", x.Replaced.Error())
	}
	return x.Adopted, err
}

// detach takes the programs off every port.
func (d *Dataplane) detach() error {
	var errs []error
	for _, p := range d.ports.Load().all {
		errs = append(errs, d.prog.Detach(p.ifindex))
	}
	return errors.Join(errs...)
}
