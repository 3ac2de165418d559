//go:build linux

package xsk

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Mode says how frames get between the device and the umem.
type Mode uint8

const (
	// ModeAuto takes zero copy where the driver has it, else copies. On a umem that already has a
	// socket it is that socket's mode.
	ModeAuto Mode = iota
	// ModeCopy copies. The only mode of veth, and the only one in which devices share a umem.
	ModeCopy
	// ModeZeroCopy has the device work in the umem, or fails.
	ModeZeroCopy
)

func (m Mode) String() string {
	switch m {
	case ModeAuto:
		return "auto"
	case ModeCopy:
		return "copy"
	case ModeZeroCopy:
		return "zero-copy"
	default:
		return fmt.Sprintf("mode %d", uint8(m))
	}
}

const (
	defaultRing        = 2048
	defaultTxBudget    = 64
	defaultBusyTimeout = 250 * time.Millisecond

	minTxBudget = 32 // net/xdp/xsk.c: TX_BATCH_SIZE, and its own default

	// frameOverhead is what a device's MTU does not count: an Ethernet header and two VLAN tags.
	frameOverhead = 14 + 2*4

	// sendBuffer is what a socket's frames in flight may weigh, as skbs. The default, 208 KiB, is
	// less than a batch of multi-buffer packets, and answers EAGAIN.
	sendBuffer = 4 << 20
)

// Config describes a Socket. Only Ifindex has no default.
type Config struct {
	Ifindex   int    // the device, in the network namespace of the calling thread
	Interface string // its name, for messages; "": looked up
	Queue     int

	// Entries of the rings, powers of two; 0: 2048. The fill and rx ring together never hold
	// more frames than the smaller of the two has entries.
	FillSize, RxSize, TxSize, CompletionSize int

	// The following are properties of a umem. The first socket on it sets them; a later one
	// inherits them, and fails if it asks for more.

	Mode         Mode
	MultiBuffer  bool // packets of several frames (XDP_USE_SG); the program needs xdp.frags
	NoNeedWakeup bool // do not bind with XDP_USE_NEED_WAKEUP

	// BusyPoll has system calls on the socket poll the device for this long, BusyPollBudget packets
	// at a time. 0: they do not; a budget of the kernel's. On veth there is nothing to poll.
	BusyPoll       time.Duration
	BusyPollBudget int

	// TxBudget is the number of descriptors that one system call sends, from 32 to TxSize;
	// 0: 64. The thread cannot be preempted meanwhile. Kernels before 6.17 send 32.
	TxBudget int

	// BusyTimeout bounds the wait for a queue that is busy: that of a socket just closed is, for
	// 4 to 15 ms. 0: 250 ms.
	BusyTimeout time.Duration
}

func (c Config) withDefaults() Config {
	for _, size := range []*int{&c.FillSize, &c.RxSize, &c.TxSize, &c.CompletionSize} {
		if *size == 0 {
			*size = defaultRing
		}
	}
	if c.TxBudget == 0 {
		c.TxBudget = max(minTxBudget, min(defaultTxBudget, c.TxSize))
	}
	if c.BusyTimeout == 0 {
		c.BusyTimeout = defaultBusyTimeout
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	for _, r := range []struct {
		name string
		size int
	}{{"fill", c.FillSize}, {"rx", c.RxSize}, {"tx", c.TxSize}, {"completion", c.CompletionSize}} {
		if r.size < 1 || r.size > 1<<20 || r.size&(r.size-1) != 0 {
			errs = append(errs, fmt.Errorf("%s ring size %d is not a power of two up to %d", r.name, r.size, 1<<20))
		}
	}
	if c.Mode > ModeZeroCopy {
		errs = append(errs, fmt.Errorf("unknown mode %d", c.Mode))
	}
	if c.Queue < 0 || c.Queue > 1<<16-1 {
		errs = append(errs, fmt.Errorf("queue %d is not a queue's number", c.Queue))
	}
	if c.TxBudget < minTxBudget || c.TxSize >= minTxBudget && c.TxBudget > c.TxSize {
		errs = append(errs, fmt.Errorf("tx budget %d is not from %d to the tx ring's size %d", c.TxBudget, minTxBudget, c.TxSize))
	}
	return errors.Join(errs...)
}

// Granted is what the kernel agreed to.
type Granted struct {
	Mode        Mode // ModeCopy or ModeZeroCopy, as read back from the kernel
	NeedWakeup  bool
	MultiBuffer bool
	TxBudget    int
	SharedUmem  bool // the umem was registered by another socket
}

// Socket is an AF_XDP socket and its rings, bound to one queue of one device. See the
// package's ownership rule.
type Socket struct {
	// The receive side, and then the send side, which may have another user: a cache line apart.
	Fill FillRing
	Rx   RxRing
	_    [64]byte

	Tx         TxRing
	Completion CompletionRing
	Kicks      KickCounters
	fd         int
	_          [64]byte

	umem    *Umem
	id      owner
	name    string // "eth0 queue 3"
	granted Granted
	netns   uint64 // cookie
	ifindex int
	queue   int

	maps   [4][]byte // ring mappings
	closed atomic.Bool
	mu     sync.Mutex // one Close at a time
	close  error      // its result
}

// Open makes a socket on u, bound to a queue. It must run on a thread of the device's network
// namespace.
func Open(u *Umem, cfg Config) (*Socket, error) {
	cfg = cfg.withDefaults()
	if name, err := deviceName(cfg.Ifindex); err != nil {
		if cfg.Interface == "" {
			cfg.Interface = fmt.Sprintf("ifindex %d", cfg.Ifindex)
		}
		return nil, explainBind(cfg.fail("SIOCGIFNAME", err), cfg, false)
	} else if cfg.Interface == "" {
		cfg.Interface = name
	}
	if err := cfg.validate(); err != nil {
		return nil, cfg.fail("config", err)
	}
	if err := checkMTU(u, cfg); err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil, cfg.fail("config", errors.New("the umem is closed"))
	}
	s := &Socket{
		umem:    u,
		id:      owner(u.nextID),
		name:    fmt.Sprintf("%s queue %d", cfg.Interface, cfg.Queue),
		fd:      -1,
		ifindex: cfg.Ifindex,
		queue:   cfg.Queue,
	}
	if err := s.open(cfg); err != nil {
		s.unmap()
		if s.fd >= 0 {
			unix.Close(s.fd)
		}
		return nil, err
	}
	u.nextID++
	u.sockets = append(u.sockets, s)
	if u.check != nil {
		u.check.open(s.id, s.name)
	}
	return s, nil
}

// fail makes an OpenError.
func (c Config) fail(option string, err error) *OpenError {
	return &OpenError{Interface: c.Interface, Queue: c.Queue, Option: option, Err: err}
}

// checkMTU refuses a device whose full-sized frames the kernel would drop, one by one.
func checkMTU(u *Umem, cfg Config) error {
	if cfg.MultiBuffer {
		return nil
	}
	mtu, err := deviceMTU(cfg.Interface)
	if err != nil {
		return nil // bind will say why
	}
	if mtu+frameOverhead > u.MaxReceive() {
		e := cfg.fail("MTU", nil)
		e.Kind = ErrMTU
		e.Mend = fmt.Sprintf("the MTU is %d, a frame of %d bytes holds one of %d: lower the MTU or ask for multi-buffer",
			mtu, u.FrameSize(), u.MaxReceive()-frameOverhead)
		return e
	}
	return nil
}

// open takes the steps; Open undoes them. It holds the umem's mu.
func (s *Socket) open(cfg Config) error {
	u := s.umem
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return explainSocket(cfg.fail("socket(AF_XDP)", err))
	}
	s.fd = fd
	s.netns, _ = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	for _, o := range u.sockets {
		if o.netns == s.netns && o.ifindex == s.ifindex && o.queue == s.queue && !o.dead() {
			e := cfg.fail("bind", unix.EBUSY)
			e.Kind = ErrBusy
			e.Mend = "this umem has a socket on it already"
			return e
		}
	}
	for _, r := range []struct {
		option int
		name   string
		size   int
	}{
		{unix.XDP_UMEM_FILL_RING, "XDP_UMEM_FILL_RING", cfg.FillSize},
		{unix.XDP_UMEM_COMPLETION_RING, "XDP_UMEM_COMPLETION_RING", cfg.CompletionSize},
		{unix.XDP_RX_RING, "XDP_RX_RING", cfg.RxSize},
		{unix.XDP_TX_RING, "XDP_TX_RING", cfg.TxSize},
	} {
		if err := unix.SetsockoptInt(fd, unix.SOL_XDP, r.option, r.size); err != nil {
			return cfg.fail(r.name, err)
		}
	}
	s.granted.TxBudget = minTxBudget
	if cfg.TxSize >= minTxBudget {
		switch err := unix.SetsockoptInt(fd, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, cfg.TxBudget); {
		case err == nil:
			s.granted.TxBudget = cfg.TxBudget
		case !errors.Is(err, unix.ENOPROTOOPT): // not there before 6.17
			return cfg.fail("XDP_MAX_TX_SKB_BUDGET", err)
		}
	}
	// The forced one needs CAP_NET_ADMIN; the other is capped by net.core.wmem_max. Neither is
	// worth failing for.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
	}
	if err := s.busyPoll(cfg); err != nil {
		return err
	}
	if err := s.mapRings(cfg); err != nil {
		return err
	}
	if err := s.bind(cfg); err != nil {
		return err
	}
	var opts uint32 // struct xdp_options
	if err := getsockopt(fd, unix.XDP_OPTIONS, &opts); err != nil {
		return cfg.fail("XDP_OPTIONS", err)
	}
	s.granted.Mode = ModeCopy
	if opts&unix.XDP_OPTIONS_ZEROCOPY != 0 {
		s.granted.Mode = ModeZeroCopy
	}
	return nil
}

// busyPoll asks that system calls on the socket poll the device's NAPI themselves. Where the
// queue has no NAPI id, as on veth, it does nothing at all.
func (s *Socket) busyPoll(cfg Config) error {
	if cfg.BusyPoll <= 0 {
		return nil
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_PREFER_BUSY_POLL, 1); err != nil {
		return cfg.fail("SO_PREFER_BUSY_POLL", err)
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_BUSY_POLL, int(cfg.BusyPoll.Microseconds())); err != nil {
		return cfg.fail("SO_BUSY_POLL", err)
	}
	if cfg.BusyPollBudget > 0 {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_BUSY_POLL_BUDGET, cfg.BusyPollBudget); err != nil {
			return cfg.fail("SO_BUSY_POLL_BUDGET", err)
		}
	}
	return nil
}

// mapRings maps the four rings and sets the fields of s on top of them.
func (s *Socket) mapRings(cfg Config) error {
	var off unix.XDPMmapOffsets
	err := getsockopt(s.fd, unix.XDP_MMAP_OFFSETS, &off)
	if errors.Is(err, unix.EINVAL) { // the shape of before 5.4, without flags words
		e := cfg.fail("XDP_MMAP_OFFSETS", err)
		e.Kind = ErrUnsupported
		return e
	}
	if err != nil {
		return cfg.fail("XDP_MMAP_OFFSETS", err)
	}
	for i, r := range []struct {
		name   string
		offset int64
		size   int
	}{
		{"fill", unix.XDP_UMEM_PGOFF_FILL_RING, mappingSize[uint64](off.Fr, uint32(cfg.FillSize))},
		{"rx", unix.XDP_PGOFF_RX_RING, mappingSize[Desc](off.Rx, uint32(cfg.RxSize))},
		{"tx", unix.XDP_PGOFF_TX_RING, mappingSize[Desc](off.Tx, uint32(cfg.TxSize))},
		{"completion", unix.XDP_UMEM_PGOFF_COMPLETION_RING, mappingSize[uint64](off.Cr, uint32(cfg.CompletionSize))},
	} {
		s.maps[i], err = unix.Mmap(s.fd, r.offset, r.size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			return cfg.fail("mmap of the "+r.name+" ring", err)
		}
	}
	s.setRings(cfg, &off)
	return nil
}

// setRings lays the rings over the mappings.
func (s *Socket) setRings(cfg Config, off *unix.XDPMmapOffsets) {
	fill, rx, tx, completion := uint32(cfg.FillSize), uint32(cfg.RxSize), uint32(cfg.TxSize), uint32(cfg.CompletionSize)
	check := s.umem.check
	s.Fill = FillRing{
		Producer: newProducer(s.maps[0], off.Fr, fill),
		addrs:    entries[uint64](s.maps[0], off.Fr.Desc, fill),
		rx:       &s.Rx,
		limit:    min(fill, rx),
		check:    check,
		owner:    s.id,
	}
	s.Rx = RxRing{
		Consumer: newConsumer(s.maps[1], off.Rx, rx),
		descs:    entries[Desc](s.maps[1], off.Rx.Desc, rx),
		check:    check,
		owner:    s.id,
	}
	s.Tx = TxRing{
		Producer: newProducer(s.maps[2], off.Tx, tx),
		descs:    entries[Desc](s.maps[2], off.Tx.Desc, tx),
		check:    check,
		owner:    s.id,
	}
	s.Completion = CompletionRing{
		Consumer: newConsumer(s.maps[3], off.Cr, completion),
		addrs:    entries[uint64](s.maps[3], off.Cr.Desc, completion),
		check:    check,
		owner:    s.id,
	}
}

// bind binds the socket, sharing the umem of another open socket if there is one.
//
// Any bound socket will do as the one to share from, not just the one that registered. If all of
// them have lost their devices (EBADF), the memory is registered anew: a second kernel object over
// the same pages, which does no harm.
func (s *Socket) bind(cfg Config) error {
	for _, o := range s.umem.sockets {
		if cfg.Mode == ModeZeroCopy && o.granted.Mode == ModeCopy {
			e := cfg.fail("bind", nil)
			e.Kind = ErrZeroCopy
			e.Mend = "the umem is shared with " + o.name + ", which copies; a zero-copy device needs a umem of its own"
			return e
		}
		if cfg.MultiBuffer && !o.granted.MultiBuffer {
			e := cfg.fail("bind", nil)
			e.Kind = ErrMultiBuffer
			e.Mend = "ask for it on the first socket, here " + o.name
			return e
		}
		// No flag beside this one may be set; they are taken from the other socket.
		err := s.bindOnce(cfg, unix.XDP_SHARED_UMEM, o.fd)
		if errors.Is(err, unix.EBADF) {
			continue
		}
		if err != nil {
			return explainBind(cfg.fail("bind", err), cfg, true)
		}
		s.granted.SharedUmem = true
		s.granted.NeedWakeup = o.granted.NeedWakeup
		s.granted.MultiBuffer = o.granted.MultiBuffer
		return nil
	}
	if err := s.umem.register(s.fd); err != nil {
		return explainRegister(cfg.fail("XDP_UMEM_REG", err), s.umem.size)
	}
	var flags uint16
	switch cfg.Mode {
	case ModeCopy:
		flags |= unix.XDP_COPY
	case ModeZeroCopy:
		flags |= unix.XDP_ZEROCOPY
	}
	if !cfg.NoNeedWakeup {
		flags |= unix.XDP_USE_NEED_WAKEUP
	}
	if cfg.MultiBuffer {
		flags |= unix.XDP_USE_SG
	}
	if err := s.bindOnce(cfg, flags, 0); err != nil {
		return explainBind(cfg.fail("bind", err), cfg, false)
	}
	s.granted.NeedWakeup = !cfg.NoNeedWakeup
	s.granted.MultiBuffer = cfg.MultiBuffer
	return nil
}

// bindOnce binds with these flags, waiting for a busy queue.
func (s *Socket) bindOnce(cfg Config, flags uint16, shared int) error {
	sa := &unix.SockaddrXDP{
		Flags:        flags,
		Ifindex:      uint32(cfg.Ifindex),
		QueueID:      uint32(cfg.Queue),
		SharedUmemFD: uint32(shared),
	}
	deadline := time.Now().Add(cfg.BusyTimeout)
	for {
		err := unix.Bind(s.fd, sa)
		// A closed socket's queue is freed by deferred work (net/xdp/xsk_buff_pool.c:
		// xp_release_deferred), which nothing waits for.
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// String names the socket for people: its device and queue.
func (s *Socket) String() string { return s.name }

// FD is the file descriptor, for the socket map and for poll; -1 once closed.
func (s *Socket) FD() int {
	if s.closed.Load() {
		return -1
	}
	return s.fd
}

// Granted is what the kernel agreed to when the socket was bound.
func (s *Socket) Granted() Granted { return s.granted }

// Umem is the umem that the socket was opened on.
func (s *Socket) Umem() *Umem { return s.umem }

// Statistics are the kernel's counters of a socket (struct xdp_statistics).
type Statistics struct {
	RxDropped       uint64 // no free frame, or longer than a frame holds
	RxInvalidDescs  uint64 // addresses in the fill ring that are outside the umem
	TxInvalidDescs  uint64 // descriptors refused (Umem.Sendable), or packets of too many
	RxRingFull      uint64 // frames dropped for want of an rx entry
	RxFillRingEmpty uint64 // attempts to receive that found the fill ring empty
	TxRingEmpty     uint64 // kicks, and looks by the kernel, that found nothing to send
}

// Statistics reads the kernel's counters.
func (s *Socket) Statistics() (Statistics, error) {
	var st Statistics
	fd := s.FD()
	if fd < 0 {
		return st, fmt.Errorf("af_xdp socket on %s: statistics: closed", s.name)
	}
	if err := getsockopt(fd, unix.XDP_STATISTICS, &st); err != nil {
		return st, fmt.Errorf("af_xdp socket on %s: XDP_STATISTICS: %w", s.name, err)
	}
	return st, nil
}

// dead reports whether the kernel has unbound the socket because its device is gone.
func (s *Socket) dead() bool { return receiveKick(s.fd) == unix.ENXIO }

// Close closes the socket and gives the frames that it had back to the pool; Pool.Lost counts
// those that it cannot. Nobody may be using the socket, or polling it. It waits a moment for
// frames in flight. Further calls return what the first did.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return s.close
	}
	u := s.umem
	u.mu.Lock()
	defer u.mu.Unlock()

	s.settle()
	rx, tx, lost := s.frames()
	s.closed.Store(true)

	// In this order: a mapping holds a reference to the file, and only with the last of them the
	// kernel unbinds the socket, stops receiving into its frames and frees the queue.
	errs := s.unmap()
	// A child between fork and exec would hold one too.
	syscall.ForkLock.RLock()
	err := unix.Close(s.fd)
	syscall.ForkLock.RUnlock()
	if err != nil {
		errs = append(errs, err)
	}
	if s.granted.Mode == ModeZeroCopy {
		// The driver is stopped by deferred work, so the device may still write to them
		// (net/xdp/xsk_buff_pool.c: xp_release_deferred). A zero-copy umem goes with its device.
		lost += len(rx) + len(tx)
		rx, tx = nil, nil
	}
	if u.check != nil {
		u.check.reclaim(s.id, rx, tx)
	}
	u.pool.put(rx, lost)
	u.pool.put(tx, 0)
	for i, o := range u.sockets {
		if o == s {
			u.sockets = append(u.sockets[:i], u.sockets[i+1:]...)
			break
		}
	}
	if err := errors.Join(errs...); err != nil {
		s.close = fmt.Errorf("close af_xdp socket on %s: %w", s.name, err)
	}
	return s.close
}

// unmap unmaps the rings and takes them from the socket: a use after that is a nil
// dereference, not a fault.
func (s *Socket) unmap() []error {
	var errs []error
	s.Fill, s.Rx, s.Tx, s.Completion = FillRing{}, RxRing{}, TxRing{}, CompletionRing{}
	for i, m := range s.maps {
		if m == nil {
			continue
		}
		if err := unix.Munmap(m); err != nil {
			errs = append(errs, err)
		}
		s.maps[i] = nil
	}
	return errs
}

const (
	settleStep  = time.Millisecond
	settleSteps = 50
)

// settle waits, for a bounded time, until the kernel holds no frame in flight: taken off the tx
// ring and not in the completion ring. In copy mode there is none as soon as the kick returns,
// unless somebody on the way queues, or the kernel is one that never completes a descriptor
// that it refused.
func (s *Socket) settle() {
	for range settleSteps {
		flying := atomic.LoadUint32(s.Tx.consumer) - atomic.LoadUint32(s.Completion.producer)
		if int32(flying) <= 0 {
			return
		}
		time.Sleep(settleStep)
	}
}

// frames collects the chunks of the frames that the socket's rings own, and counts those that
// it should own and does not find.
func (s *Socket) frames() (rx, tx []uint64, lost int) {
	u := s.umem
	seen := make(map[uint64]bool)
	collect := func(to []uint64, addr uint64) []uint64 {
		chunk := u.Chunk(addr)
		if addr >= u.size || seen[chunk] {
			return to
		}
		seen[chunk] = true
		return append(to, chunk)
	}
	// The receive side, without asking the kernel, which may be moving its indices right now:
	// in copy mode frames come back in the order in which they went (net/xdp/xsk.c: __xsk_rcv), so
	// those not peeked yet are the last that were submitted. Their entries are still in the fill
	// ring, since it is never handed more frames than it has slots.
	out := s.Fill.submitted - s.Rx.cachedCons
	for i := range min(out, s.Fill.size) {
		rx = collect(rx, s.Fill.addrs[(s.Rx.cachedCons+i)&s.Fill.mask])
	}
	lost = int(out) - len(rx)

	// The send side: those done, and those not begun. A frame can be in both, when the kernel
	// had no reason yet to publish that it took the descriptor.
	done := atomic.LoadUint32(s.Completion.producer) - s.Completion.cachedCons
	for i := range min(done, s.Completion.size) {
		tx = collect(tx, s.Completion.Addr(s.Completion.cachedCons+i))
	}
	waiting := s.Tx.pending()
	for i := range min(waiting, s.Tx.size) {
		tx = collect(tx, s.Tx.Desc(s.Tx.submitted-waiting+i).Addr)
	}
	lost += int(s.Tx.submitted-s.Completion.cachedCons) - len(tx)
	return rx, tx, max(lost, 0)
}
