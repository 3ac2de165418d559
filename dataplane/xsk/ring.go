//go:build linux

package xsk

import "sync/atomic"

// Terminology and invariants
//
// A ring is a power of two of entries and two words in memory that is shared with the
// kernel: producer and consumer, free-running uint32 that count entries and wrap at 2^32. The
// entry of index i lives in slot i & mask. producer - consumer, in wrapping arithmetic, is
// the number of entries in the ring, and never above its size. Each word has one writer.
//
//	consumer             producer
//	   v                    v
//	---[ entries to consume ]------ free slots ------
//
// Both sides keep private copies and touch the shared words only when they must:
//
//   - cachedProd of a Producer runs ahead of the shared word by what is reserved and not
//     submitted; cachedCons of a Consumer by what is peeked and not released.
//   - The other side's word is loaded (acquire) only when its cached copy says that there is
//     not enough; ours is stored (release) once a submit or release, which is once a batch.
//
// sync/atomic is sequentially consistent, so stronger than the acquire and release that
// net/xdp/xsk_queue.h pairs with; at one operation a batch that costs nothing.

// Desc is struct xdp_desc: a frame, or a part of one, in the rx or tx ring.
type Desc struct {
	Addr    uint64 // offset into the umem of the first byte
	Len     uint32 // bytes
	Options uint32 // OptionContinued and, by RequestChecksum, the metadata flag
}

// OptionContinued in a Desc says that the packet goes on in the next descriptor
// (XDP_PKT_CONTD). It is the same flag on rx and tx.
const OptionContinued = 1 << 0

// optionMetadata (XDP_TX_METADATA) says that struct xsk_tx_metadata stands in front of the
// frame. Only RequestChecksum sets it, so that it cannot be set over stale bytes.
const optionMetadata = 1 << 1

// Continued reports whether the packet goes on in the next descriptor.
func (d Desc) Continued() bool { return d.Options&OptionContinued != 0 }

// ringNeedWakeup is XDP_RING_NEED_WAKEUP in a ring's flags word.
const ringNeedWakeup = 1 << 0

// Producer is the index arithmetic of a ring that we produce: fill or tx.
type Producer struct {
	producer *uint32 // shared; written by us alone
	consumer *uint32 // shared; written by the kernel alone
	flags    *uint32 // shared; written by the kernel alone

	cachedProd uint32 // next index to reserve
	cachedCons uint32 // kernel's consumer as last loaded, plus size: the end of the free slots
	submitted  uint32 // what the shared producer word holds

	mask uint32
	size uint32
}

// Size is the number of entries that the ring holds.
func (p *Producer) Size() uint32 { return p.size }

// Free returns how many entries can be reserved. It looks at the shared word only if its
// cached copy promises fewer than n; a larger answer than n may therefore be understated.
func (p *Producer) Free(n uint32) uint32 {
	if free := p.cachedCons - p.cachedProd; free >= n {
		return free
	}
	return p.refresh()
}

// refresh loads the kernel's consumer.
func (p *Producer) refresh() uint32 {
	// cachedCons is kept one ring size ahead of the kernel's word, so that the free count is
	// one subtraction, without a "+ size" each time (as xsk.h does).
	p.cachedCons = atomic.LoadUint32(p.consumer) + p.size
	free := p.cachedCons - p.cachedProd
	if free > p.size { // indices that lie: offer nothing
		p.cachedCons = p.cachedProd
		return 0
	}
	return free
}

// Reserve takes n entries, all or none, and returns the index of the first. The following
// ones have the following indices, modulo 2^32.
func (p *Producer) Reserve(n uint32) (idx uint32, ok bool) {
	if p.cachedCons-p.cachedProd < n && p.refresh() < n {
		return 0, false
	}
	idx = p.cachedProd
	p.cachedProd = idx + n
	return idx, true
}

// Cancel gives the last n reserved and not submitted entries back.
func (p *Producer) Cancel(n uint32) { p.cachedProd -= n }

// submit publishes the first n reserved entries.
func (p *Producer) submit(n uint32) {
	p.submitted += n
	atomic.StoreUint32(p.producer, p.submitted)
}

// NeedsWakeup reports whether the kernel wants a system call before it looks at the ring. In
// copy mode the tx ring's flag is always set and the fill ring's never.
func (p *Producer) NeedsWakeup() bool {
	return atomic.LoadUint32(p.flags)&ringNeedWakeup != 0
}

// pending returns how many submitted entries the kernel has not said to have consumed.
func (p *Producer) pending() uint32 { return p.submitted - atomic.LoadUint32(p.consumer) }

// Consumer is the index arithmetic of a ring that we consume: rx or completion.
type Consumer struct {
	producer *uint32 // shared; written by the kernel alone
	consumer *uint32 // shared; written by us alone

	cachedProd uint32 // kernel's producer as last loaded
	cachedCons uint32 // next index to peek
	released   uint32 // what the shared consumer word holds

	mask uint32
	size uint32
}

// Size is the number of entries that the ring holds.
func (c *Consumer) Size() uint32 { return c.size }

// Available returns how many entries can be peeked. It looks at the shared word only if the
// cached copy shows none at all: what came since is there at the next call.
func (c *Consumer) Available() uint32 {
	if n := c.cachedProd - c.cachedCons; n != 0 {
		return n
	}
	return c.refresh()
}

// refresh loads the kernel's producer.
func (c *Consumer) refresh() uint32 {
	prod := atomic.LoadUint32(c.producer)
	if prod-c.released > c.size { // indices that lie: there is nothing
		prod = c.cachedCons
	}
	c.cachedProd = prod
	return prod - c.cachedCons
}

// peek takes up to n entries and returns the index of the first and their number.
func (c *Consumer) peek(n uint32) (idx, got uint32) {
	got = min(n, c.Available())
	idx = c.cachedCons
	c.cachedCons = idx + got
	return idx, got
}

// release hands the slots of the first n peeked entries back to the kernel.
func (c *Consumer) release(n uint32) {
	c.released += n
	atomic.StoreUint32(c.consumer, c.released)
}

// FillRing carries addresses of frames to receive into. We produce.
type FillRing struct {
	Producer
	addrs []uint64
	rx    *RxRing  // the ring that the frames come back through
	limit uint32   // frames that the kernel may have: the smaller of both rings
	check *Checker // nil in production
	owner owner
}

// Free returns how many frames the kernel can be given.
//
// It is not the free slots of the fill ring that limit, but the frames out: those in the fill
// ring and those in the rx ring. With more of them than the rx ring holds, the kernel could
// find it full and keep a frame on a list of its own. And since a frame that has come back has
// left its slot, frames out below the fill ring's size means a free slot: neither of the
// kernel's words has to be looked at.
func (r *FillRing) Free() uint32 { return r.limit - (r.cachedProd - r.rx.released) }

// Reserve takes n entries, all or none, and returns the index of the first.
func (r *FillRing) Reserve(n uint32) (idx uint32, ok bool) {
	if r.Free() < n {
		return 0, false
	}
	idx = r.cachedProd
	r.cachedProd = idx + n
	return idx, true
}

// Addr is the entry of a reserved index.
func (r *FillRing) Addr(idx uint32) *uint64 { return &r.addrs[idx&r.mask] }

// Submit hands the first n reserved entries to the kernel.
func (r *FillRing) Submit(n uint32) {
	if r.check != nil {
		r.check.submitFill(r, n)
	}
	r.submit(n)
}

// RxRing carries descriptors of received frames. We consume.
type RxRing struct {
	Consumer
	descs []Desc
	check *Checker
	owner owner
}

// Peek takes up to n entries and returns the index of the first and their number.
func (r *RxRing) Peek(n uint32) (idx, got uint32) {
	idx, got = r.peek(n)
	if r.check != nil {
		r.check.peekRx(r, idx, got)
	}
	return idx, got
}

// Desc is the entry of a peeked index. It comes from shared memory: Umem.Frame checks it.
func (r *RxRing) Desc(idx uint32) *Desc { return &r.descs[idx&r.mask] }

// Cancel gives the last n peeked and not released entries back to the ring.
func (r *RxRing) Cancel(n uint32) {
	r.cachedCons -= n
	if r.check != nil {
		r.check.cancelRx(r, r.cachedCons, n)
	}
}

// Release hands the slots of the first n peeked entries back to the kernel. The frames
// stay the caller's.
func (r *RxRing) Release(n uint32) { r.release(n) }

// TxRing carries descriptors of frames to send. We produce.
type TxRing struct {
	Producer
	descs []Desc
	check *Checker
	owner owner
}

// Desc is the entry of a reserved index. All three fields must be written: a slot still
// holds what was sent from it last.
func (r *TxRing) Desc(idx uint32) *Desc { return &r.descs[idx&r.mask] }

// Submit hands the first n reserved entries to the kernel, which looks at them at the next
// Kick, or when anyone polls the socket.
func (r *TxRing) Submit(n uint32) {
	if r.check != nil {
		r.check.submitTx(r, n)
	}
	r.submit(n)
}

// CompletionRing carries addresses of frames that were sent. We consume.
type CompletionRing struct {
	Consumer
	addrs []uint64
	check *Checker
	owner owner
}

// Peek takes up to n entries and returns the index of the first and their number.
func (r *CompletionRing) Peek(n uint32) (idx, got uint32) {
	idx, got = r.peek(n)
	if r.check != nil {
		r.check.peekCompletion(r, idx, got)
	}
	return idx, got
}

// Addr is the entry of a peeked index: the address that was sent, not its chunk's.
func (r *CompletionRing) Addr(idx uint32) uint64 { return r.addrs[idx&r.mask] }

// Cancel gives the last n peeked and not released entries back to the ring.
func (r *CompletionRing) Cancel(n uint32) {
	r.cachedCons -= n
	if r.check != nil {
		r.check.cancelCompletion(r, r.cachedCons, n)
	}
}

// Release hands the slots of the first n peeked entries back to the kernel.
func (r *CompletionRing) Release(n uint32) { r.release(n) }
