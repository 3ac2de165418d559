package dataplane

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/dataplane/xsk"
	"github.com/sluice-net/sluice/xdpprog"
)

// The life of ports. Open opens those whose devices are there; from then on the control
// loop compares, after each change of links that the kernel reports, the devices there
// are with the ports there are. It opens and closes them one by one, and never stops a
// worker for it:
//
//	open    slot, sockets, into the set, queues to a worker, into the classifier, programs
//	close   programs, out of the classifier, out of the set, queues from their worker,
//	        wait until no worker has it in its hands, sockets, slot
//
// A slot rests before another device gets it, since frames that were marked with it may
// still be on their way.

// portSet is the ports of one moment, immutable. The workers load it once a batch,
// so a port that leaves the set is out of use once each of them has passed a batch
// boundary.
type portSet struct {
	all     []*port // the return port first
	bySlot  [maxPorts]*port
	byIndex map[int]*port // by ifindex, without the return port
	routed  *port         // the return port, for replies that it sent out and gets back
}

// newPortSet makes a set of ports that have their slots.
func newPortSet(all []*port) *portSet {
	s := &portSet{all: all, byIndex: make(map[int]*port, len(all))}
	for _, p := range all {
		s.bySlot[p.slot] = p
		if !p.returns {
			s.byIndex[p.ifindex] = p
			continue
		}
		s.routed = &port{slot: p.slot, name: p.name, ifindex: p.ifindex, driver: p.driver, mtu: p.mtu, returns: true, routed: true}
	}
	return s
}

// cameBy is the port that a frame came in by: the socket's, or, on the return port,
// the one that its mark names. nil is a port that is no more.
func (s *portSet) cameBy(socket *port, frame []byte) *port {
	if !socket.returns || len(frame) < etherLen {
		return socket
	}
	slot, marked := xdpprog.MarkedSlot([6]byte(frame[6:12]))
	if !marked {
		return socket // from the node, by a route
	}
	switch {
	case slot == xdpprog.RoutedSlot:
		return s.routed
	case slot >= maxPorts:
		return nil
	}
	return s.bySlot[slot]
}

// slotRest is how long a slot rests. What was marked with it before has been received
// by then: the return port's rings hold milliseconds.
const slotRest = time.Second

// slots are the numbers that ports may have, beside the return port's.
type slots struct {
	free []freeSlot    // in the order in which they became so
	had  map[int]uint8 // reserved: the slots of a predecessor's devices, by slot
}

type freeSlot struct {
	slot  int
	since uint64 // monotonic ns
}

// newSlots makes all slots free but those that a predecessor's devices have.
func newSlots(had map[int]xdpprog.Port) *slots {
	s := &slots{had: map[int]uint8{}}
	for _, p := range had {
		s.had[int(p.Slot)]++
	}
	for i := range maxPorts {
		if i != returnSlot && s.had[i] == 0 {
			s.free = append(s.free, freeSlot{slot: i})
		}
	}
	return s
}

// errNoSlot is the refusal of a port for which there is no slot now.
var errNoSlot = fmt.Errorf("%d ports are all that can be served, those that closed in the last %v among them", maxPorts-1, slotRest)

// take gives the slot that has rested longest.
func (s *slots) take(now uint64) (int, error) {
	if len(s.free) == 0 || s.free[0].since != 0 && now-s.free[0].since < uint64(slotRest) {
		return 0, errNoSlot
	}
	slot := s.free[0].slot
	s.free = s.free[1:]
	return slot, nil
}

// claim gives a device the slot that it had, if a predecessor's device had that one
// alone.
func (s *slots) claim(slot int) bool {
	if s.had[slot] != 1 || slot == returnSlot || slot >= maxPorts {
		return false
	}
	delete(s.had, slot)
	return true
}

// release makes a slot free.
func (s *slots) release(slot int, now uint64) {
	if slot != returnSlot {
		s.free = append(s.free, freeSlot{slot, now})
	}
}

// forget makes what a predecessor's devices still have free.
func (s *slots) forget(now uint64) {
	for slot := range s.had {
		if slot < maxPorts {
			s.release(slot, now)
		}
	}
	s.had = nil
}

// openPort makes p, which has been inspected, a port. The control loop, or Open; on a
// thread in the node's network namespace.
func (d *Dataplane) openPort(p *port) (err error) {
	if err := d.fits(p); err != nil {
		return err
	}
	if p.slot, err = d.slotFor(p); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.closePort(p))
		}
	}()
	for i := range p.queues {
		p.queues[i] = &queue{port: p, number: i, index: d.prog.Index(p.slot, i)}
	}
	if !p.steered {
		p.out = make([]outbox, d.cfg.Workers)
	}
	if err := d.openSockets(p); err != nil {
		return err
	}
	d.setPorts(append(slices.Clone(d.ports.Load().all), p))
	d.assign(p)
	if err := d.prog.SetPort(p.ifindex, p.slot, p.flags()); err != nil {
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

// room is the longest packet that fits into a frame of the umem.
func (d *Dataplane) room() int { return xsk.MaxReceive(d.cfg.FrameSize) - etherLen - 8 } // two VLAN tags

// fits refuses a port whose frames would not fit into the umem's, and widens the return
// port to what p takes.
func (d *Dataplane) fits(p *port) error {
	room := d.room()
	if p.mtu > room {
		return fmt.Errorf("MTU %d is above %d, the longest packet that a frame of %d bytes holds: lower the MTU or do not serve it", p.mtu, room, d.cfg.FrameSize)
	}
	if p.returns || p.mtu <= d.returnPort.mtu {
		return nil
	}
	for _, l := range []netlink.Link{d.pair.inner, d.pair.outer} {
		if err := d.nl.LinkSetMTU(l, p.mtu); err != nil {
			return fmt.Errorf("raising the return port's MTU to %d: %w", p.mtu, err)
		}
	}
	d.returnPort.mtu = p.mtu
	return nil
}

// slotFor gives a port its slot. A device that a predecessor served keeps the one it
// had: a slot must never hold another device's socket, not even for the moment of a
// restart.
func (d *Dataplane) slotFor(p *port) (int, error) {
	if p.returns {
		return returnSlot, nil
	}
	if old, ok := d.adopted[p.ifindex]; ok && d.slots.claim(int(old.Slot)) {
		return int(old.Slot), nil
	}
	return d.slots.take(d.clock.now())
}

// flags are what the classifier has to know of a port.
func (p *port) flags() xdpprog.PortFlags {
	if p.returns {
		return xdpprog.ReturnPort
	}
	return 0
}

// openSockets opens a socket for each queue of a port.
func (d *Dataplane) openSockets(p *port) error {
	if need, free := len(p.queues)*d.cfg.RingSize, d.umem.Pool().Free(); free < need {
		return fmt.Errorf("%d frames of packet memory are free, its queues need %d: set frames higher", free, need)
	}
	for _, q := range p.queues {
		sock, err := xsk.Open(d.umem, xsk.Config{
			Interface: p.name, Ifindex: p.ifindex, Queue: q.number, Mode: xsk.ModeCopy,
			FillSize: d.cfg.RingSize, RxSize: d.cfg.RingSize, TxSize: d.cfg.RingSize, CompletionSize: d.cfg.RingSize,
		})
		if err != nil {
			return err
		}
		q.sock = sock
	}
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

// closePort undoes openPort, as far as that got, and leaves nothing of the port in the
// kernel. Its device may be gone.
func (d *Dataplane) closePort(p *port) error {
	errs := []error{d.prog.Detach(p.ifindex), d.prog.DeletePort(p.ifindex)}
	for _, q := range p.queues {
		if q != nil {
			errs = append(errs, d.prog.DeleteSocket(q.index))
		}
	}
	d.setPorts(slices.DeleteFunc(slices.Clone(d.ports.Load().all), func(o *port) bool { return o == p }))
	d.unassign(p)
	d.quiesce()
	errs = append(errs, d.closeSockets(p))
	d.slots.release(p.slot, d.clock.now())
	return errors.Join(errs...)
}

// closeSockets closes the sockets of a port that nobody uses any more.
func (d *Dataplane) closeSockets(p *port) error {
	d.looking.Lock()
	defer d.looking.Unlock()
	var errs []error
	for _, q := range p.queues {
		if q != nil && q.sock != nil {
			errs = append(errs, q.sock.Close())
		}
	}
	return errors.Join(errs...)
}

// setPorts makes these the ports.
func (d *Dataplane) setPorts(all []*port) {
	s := newPortSet(all)
	d.ports.Store(s)
	d.egress.portsChanged(s)
}

// assign gives each queue of a port to the worker that has the fewest.
func (d *Dataplane) assign(p *port) {
	for _, q := range p.queues {
		least := d.workers[0]
		for _, w := range d.workers[1:] {
			if len(*w.given.Load()) < len(*least.given.Load()) {
				least = w
			}
		}
		d.give(least, append(slices.Clone(*least.given.Load()), q))
	}
}

// unassign takes the queues of a port from their workers.
func (d *Dataplane) unassign(p *port) {
	for _, w := range d.workers {
		given := *w.given.Load()
		if left := slices.DeleteFunc(slices.Clone(given), func(q *queue) bool { return q.port == p }); len(left) != len(given) {
			d.give(w, left)
		}
	}
}

// give makes these a worker's queues, and returns when it has taken them over.
func (d *Dataplane) give(w *worker, queues []*queue) {
	w.given.Store(&queues)
	if !d.running.Load() {
		w.adopt()
		return
	}
	w.wake()
	for w.has.Load() != w.given.Load() && !w.over.Load() {
		time.Sleep(50 * time.Microsecond)
	}
}

// quiesce returns when each worker has passed a batch boundary, or sleeps.
func (d *Dataplane) quiesce() {
	for _, w := range d.workers {
		seen := w.turn.Load()
		for d.running.Load() && !w.quiet(seen) && !w.over.Load() {
			time.Sleep(50 * time.Microsecond)
		}
	}
}

// refusal is a device that is to be served and cannot be.
type refusal struct {
	name string
	why  string
	of   string // what it was like: when that changes, it is tried again. Empty: it waits for a slot
}

// follow keeps ports, routes and neighbours as the kernel has them, until ctx is done:
// the control loop's part that listens. It is on a thread of its own in the node's
// network namespace, and fails only if there is none.
func (d *Dataplane) follow(ctx context.Context) error {
	runtime.LockOSThread() // never unlocked: it may be in another namespace than the rest
	if err := enter(d.egress.ns); err != nil {
		return err
	}
	e := d.egress
	probe := time.NewTicker(staleProbe)
	defer probe.Stop()
	// A dump a minute repairs whatever a lost event left wrong.
	reconcile := time.NewTicker(time.Minute)
	defer reconcile.Stop()
	// The kernel does not report a change of queues, and a slot rests for as long (slotRest).
	queues := time.NewTicker(time.Second)
	defer queues.Stop()
	e.mark() // what changed since Open, and what it left to open
	swept := false
	for {
		again := false
		select {
		case <-ctx.Done():
			return nil
		case <-probe.C:
			e.probeStale()
			continue
		case k := <-e.wondered:
			e.ask(k)
			continue
		case <-queues.C:
			if !d.queuesChanged() && !d.waitsForSlot() {
				continue
			}
		case <-reconcile.C:
			again = true
		case <-e.changed:
		}
		if err := e.resubscribe(); err != nil {
			d.log.Warn("listening to the kernel", "err", err)
		}
		links, err := e.reload()
		if err != nil {
			d.log.Warn("reading routes and neighbours: the old ones serve on", "err", err)
		} else if err := d.reconcile(links, again); err != nil {
			return err
		} else {
			d.keepHostRoutes()
			if !swept {
				d.sweep()
				swept = true
			}
		}
		// Changes come in bursts; the next dump takes the rest of this one.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// enter puts the calling thread into a network namespace, which takes CAP_SYS_ADMIN
// unless it is there.
func enter(ns netns.NsHandle) error {
	here, err := netns.Get()
	if err != nil {
		return fmt.Errorf("network namespace of the control loop: %w", err)
	}
	defer here.Close()
	if here.Equal(ns) {
		return nil
	}
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("entering the node's network namespace: %w", err)
	}
	return nil
}

// reconcile makes the ports those that the configuration chooses of these devices.
// Those that could not be served are tried again if they have changed, or if again says
// so. The error is one that ends the dataplane.
func (d *Dataplane) reconcile(links []netlink.Link, again bool) error {
	f := d.egress.fib.Load()
	there := make(map[int]netlink.Link, len(links))
	for _, l := range links {
		there[l.Attrs().Index] = l
	}
	if err := d.keepReturnPort(there); err != nil {
		return err
	}
	for _, p := range d.ports.Load().byIndex {
		why := d.outdated(p, there[p.ifindex], f)
		if why == "" {
			continue
		}
		d.log.Info("no longer serving", "interface", p.name, "why", why)
		if err := d.closePort(p); err != nil {
			d.log.Warn("closing a port", "interface", p.name, "err", err)
		}
	}
	for i := range d.refused {
		if there[i] == nil {
			d.unrefuse(i)
		}
	}
	for i, l := range there {
		c := d.choose(l, f)
		if c == nil || d.ports.Load().byIndex[i] != nil {
			d.unrefuse(i)
			continue
		}
		of := likeness(l)
		if r, ok := d.refused[i]; ok && r.of == of && !again {
			continue
		}
		p, err := d.inspect(l, c)
		if err == nil {
			err = d.openPort(p)
		}
		switch {
		case err == nil:
			d.unrefuse(i)
		case d.isGone(i):
			// It went while it was opened, which the kernel will report.
		default:
			d.refuse(l, err)
		}
	}
	return nil
}

// isGone reports whether there is no such device any more.
func (d *Dataplane) isGone(ifindex int) bool {
	_, err := d.nl.LinkByIndex(ifindex)
	return errors.As(err, &netlink.LinkNotFoundError{})
}

// outdated says why a port can no longer be as it is, or nothing. What can change under
// an open port, its name and MTU, is changed here.
func (d *Dataplane) outdated(p *port, l netlink.Link, f *fib) string {
	if l == nil {
		return "the device is gone"
	}
	at := l.Attrs()
	c := d.choose(l, f)
	switch {
	case !d.prog.Attached(p.ifindex):
		return "the device is another, or somebody detached its programs"
	case c == nil:
		return "the configuration no longer chooses it"
	case kindOf(c.Kind, l) != p.granted:
		return "the configuration wants it served otherwise"
	}
	if p.name != at.Name {
		d.log.Info("renamed", "interface", at.Name, "was", p.name)
		d.looking.Lock()
		p.name = at.Name
		d.looking.Unlock()
	}
	if p.mtu != at.MTU {
		p.mtu = at.MTU
		if err := d.fits(p); err != nil {
			return err.Error()
		}
	}
	if n := d.queuesOf(p); !p.steered && n != len(p.queues) {
		return fmt.Sprintf("it has %d receive queues now, not %d", n, len(p.queues))
	}
	return ""
}

// keepReturnPort sees to it that the return port is there and up. Without it nothing
// can be served.
func (d *Dataplane) keepReturnPort(there map[int]netlink.Link) error {
	for _, end := range []netlink.Link{d.pair.outer, d.pair.inner} {
		at := end.Attrs()
		l := there[at.Index]
		if l == nil || l.Type() != "veth" {
			return fmt.Errorf("somebody deleted the return port's device %s", at.Name)
		}
		if l.Attrs().RawFlags&unix.IFF_UP == 0 {
			d.log.Warn("somebody set the return port down: it is set up again", "interface", at.Name)
			if err := d.nl.LinkSetUp(end); err != nil {
				d.log.Error("setting the return port up", "interface", at.Name, "err", err)
			}
			d.forgetHostRoutes() // the kernel has removed them
		}
	}
	return nil
}

// likeness is what decides whether a device can be served, as far as the kernel reports
// changes of it.
func likeness(l netlink.Link) string {
	at := l.Attrs()
	program := uint32(0)
	if at.Xdp != nil && at.Xdp.Attached {
		program = at.Xdp.ProgId
	}
	return fmt.Sprint(at.Name, at.MTU, at.RawFlags&unix.IFF_UP, at.MasterIndex, at.HardwareAddr, at.NumRxQueues, program)
}

// refuse says once why a device cannot be served.
func (d *Dataplane) refuse(l netlink.Link, err error) {
	at := l.Attrs()
	r := refusal{name: at.Name, why: err.Error(), of: likeness(l)}
	if old := d.refused[at.Index]; old.why != r.why {
		d.log.Warn("cannot be served: it is tried again when it changes", "interface", r.name, "err", err)
	}
	if errors.Is(err, errNoSlot) {
		r.of = ""
	}
	d.looking.Lock()
	d.refused[at.Index] = r
	d.looking.Unlock()
}

// waitsForSlot reports whether a device is refused only until a slot has rested.
func (d *Dataplane) waitsForSlot() bool {
	for _, r := range d.refused {
		if r.of == "" {
			return true
		}
	}
	return false
}

// unrefuse forgets a refusal.
func (d *Dataplane) unrefuse(ifindex int) {
	d.looking.Lock()
	delete(d.refused, ifindex)
	d.looking.Unlock()
}

// queuesChanged reports whether a direct port has another number of queues than it had.
func (d *Dataplane) queuesChanged() bool {
	for _, p := range d.ports.Load().byIndex {
		if !p.steered && d.queuesOf(p) != len(p.queues) {
			return true
		}
	}
	return false
}
