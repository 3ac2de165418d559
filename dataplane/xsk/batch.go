//go:build linux

package xsk

import "golang.org/x/sys/unix"

// The packet path, in a worker's order: Complete, Refill, Receive, Transmit, Kick.

// Complete takes all frames that were sent into the cache and returns their number.
func (s *Socket) Complete(c *Cache) int {
	r := &s.Completion
	idx, n := r.Peek(r.size)
	if n == 0 {
		return 0
	}
	size := s.umem.size
	for end := idx + n; idx != end; {
		slots := c.reserve(int(end - idx))
		put := 0
		for range slots {
			if addr := r.Addr(idx); addr < size { // else a kernel that lies
				slots[put] = addr & c.chunkMask
				put++
			}
			idx++
		}
		c.submit(slots, put)
	}
	r.Release(n)
	return int(n)
}

// Refill gives the kernel free frames from the cache, as many as the rings bear, and returns
// their number.
func (s *Socket) Refill(c *Cache) int {
	r := &s.Fill
	want := r.Free()
	if want == 0 {
		return 0
	}
	idx, _ := r.Reserve(want)
	var n uint32
	for n < want {
		frames := c.take(int(want - n))
		if len(frames) == 0 {
			r.Cancel(want - n)
			break
		}
		for _, addr := range frames {
			*r.Addr(idx + n) = addr
			n++
		}
	}
	if n > 0 {
		r.Submit(n)
	}
	return int(n)
}

// Receive moves up to len(descs) received descriptors out of the rx ring and returns their
// number. Their frames are the caller's.
func (s *Socket) Receive(descs []Desc) int {
	r := &s.Rx
	idx, n := r.Peek(uint32(len(descs)))
	if n == 0 {
		return 0
	}
	descs = descs[:n]
	for i := range descs {
		descs[i] = *r.Desc(idx + uint32(i))
	}
	r.Release(n)
	return int(n)
}

// Transmit moves descriptors into the tx ring, as many of the first ones as have room, and
// returns their number; the frames of the others stay the caller's. Umem.Sendable must hold for
// each. A packet of several descriptors must not be torn: with those in use, look at Tx.Free
// first. Nothing is sent before the Kick.
func (s *Socket) Transmit(descs []Desc) int {
	r := &s.Tx
	n := uint32(len(descs))
	if free := r.Free(n); free < n {
		n = free
	}
	if n == 0 {
		return 0
	}
	idx, _ := r.Reserve(n)
	for i, d := range descs[:n] {
		*r.Desc(idx + uint32(i)) = d
	}
	r.Submit(n)
	return int(n)
}

// KickResult is how a Kick ended.
type KickResult uint8

const (
	// KickDone: the kernel has taken every descriptor.
	KickDone KickResult = iota
	// KickAgain: descriptors are left, because completions were not drained, or the device or
	// memory is short. Complete, then kick again.
	KickAgain
	// KickDown: the device is administratively down; descriptors stay until it is up.
	KickDown
	// KickGone: the device is gone. Close the socket.
	KickGone
	// KickStuck: the kernel refuses the first descriptor for good, and all behind it wait
	// (KickCounters.Errno says why). Close the socket and open it again.
	KickStuck
)

func (k KickResult) String() string {
	switch k {
	case KickDone:
		return "done"
	case KickAgain:
		return "again"
	case KickDown:
		return "down"
	case KickGone:
		return "gone"
	case KickStuck:
		return "stuck"
	default:
		return "unknown"
	}
}

// KickCounters count what kicks did. Whoever kicks the socket owns them.
type KickCounters struct {
	Calls      uint64 // sendto calls
	Suppressed uint64 // kicks without a call: nothing to send, or the kernel is awake
	Again      uint64 // calls that left descriptors: EAGAIN, ENOBUFS, ENOMEM
	Dropped    uint64 // frames that the device dropped: EBUSY
	Errno      uint16 // the last error that none of the others stands for
}

// maxKickCalls bounds the system calls of one Kick. At the smallest budget it still sends a
// ring of 2048.
const maxKickCalls = 64

// Kick has the kernel send what is in the tx ring. In copy mode the whole of it happens in the
// call, the receiver's softirq included.
func (s *Socket) Kick() KickResult {
	left := s.Tx.pending()
	if left == 0 || !s.Tx.NeedsWakeup() {
		s.Kicks.Suppressed++
		return KickDone
	}
	idle := false // the previous call moved nothing
	for range maxKickCalls {
		s.Kicks.Calls++
		// The answers: net/xdp/xsk.c, __xsk_sendmsg and __xsk_generic_xmit.
		switch errno := sendKick(s.fd); errno {
		case 0:
			// Zero copy: the driver was woken, and consumes when it likes.
			if s.granted.Mode == ModeZeroCopy {
				return KickDone
			}
			// Copy: all sent, or the walk ended at a descriptor that is invalid and now skipped;
			// those behind it wait for the next call.
		case unix.EBUSY:
			// One frame is dropped, and completed. The word may not say so yet.
			s.Kicks.Dropped++
			idle = false
			if s.Tx.pending() == 0 {
				return KickDone
			}
			continue
		case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
			// The budget is used, or the completion ring, the send buffer or the driver's ring is
			// full. Only the first goes away by itself: it has moved something.
			s.Kicks.Again++
			now := s.Tx.pending()
			if now == left {
				return KickAgain
			}
			left = now
			continue
		case unix.ENETDOWN:
			return KickDown
		case unix.ENXIO, unix.EBADF:
			return KickGone
		default:
			s.Kicks.Errno = uint16(errno)
			return KickStuck
		}
		now := s.Tx.pending()
		if now == 0 {
			return KickDone
		}
		// A skipped descriptor is published by the call after; a queue beyond the device's tx
		// queues never moves.
		if now == left && idle {
			s.Kicks.Errno = 0
			return KickStuck
		}
		idle = now == left
		left = now
	}
	return KickAgain
}

// KickRx wakes the driver if it waits for entries in the fill ring. In copy mode nobody ever
// waits for that, and this is one load.
func (s *Socket) KickRx() {
	if s.Fill.NeedsWakeup() {
		receiveKick(s.fd)
	}
}
