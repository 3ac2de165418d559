package flowtable

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// Direction of a frame within its flow.
type Direction uint8

const (
	Forward Direction = 0 // client to frontend
	Reply   Direction = 1 // backend to client
)

func (d Direction) String() string {
	if d == Forward {
		return "forward"
	}
	return "reply"
}

// Tuple is what identifies a frame, as it is before any translation. IPv4 addresses are mapped (::ffff:a.b.c.d).
type Tuple struct {
	Src, Dst         [16]byte
	SrcPort, DstPort uint16
	Proto            uint8
}

// Flow is one translated connection. The forward tuple is Client to Frontend, the reply tuple is Backend to Source.
type Flow struct {
	Client, Frontend, Backend [16]byte
	Source                    [16]byte // what the backend sees; given to Insert, zero means Client
	ClientPort, FrontendPort  uint16
	BackendPort               uint16
	SourcePort                uint16 // what the backend sees; given to Insert, zero means ClientPort
	Proto                     uint8
	Generation                uint32 // of the snapshot it was last checked against; 0 is none
	ForwardAdj, ReplyAdj      uint32 // numbers of adjacencies; 0 is none
}

// Ref is what a lookup returns: which flow, and which way. The zero Ref is "not found". It is good until the worker's
// next batch boundary.
type Ref struct {
	Record    uint32
	Direction Direction
}

// Tick is coarse monotonic time, about 1.05 ms, in the 32 bits that a record has for it. It wraps after 52 days.
type Tick uint32

const tickShift = 20

// TickOf turns CLOCK_MONOTONIC into a tick, as the kernel's programs do.
func TickOf(monotonicNanos uint64) Tick { return Tick(monotonicNanos >> tickShift) }

// Duration is the time that so many ticks take.
func (t Tick) Duration() time.Duration { return time.Duration(t) << tickShift }

// Table is one node's flow table over two shared arrays. See the package comment for who may call what from where.
//
// Locks, in the order in which they are taken: sweep, stripes by ascending number, mu. Lookups take none.
type Table struct {
	buckets []bucket
	records []record // records[0] is the header
	n       uint64   // len(buckets)
	v       [4]uint64
	idle    [classes]Tick // by class; 0 for none

	// stripes serialise writers: a cell changes only under the lock of its bucket's stripe. 64, so that a set of them
	// is one word. A mutex, not a spin: a worker can lose its CPU while it holds one, and on two cores a spinning
	// waiter would keep it from getting it back.
	stripes [stripeCount]stripe

	// sweep is held by whoever walks records by number rather than by a cell, and by Reclaim: while it is held no
	// record becomes free, so none is reused under the walker. Packets never wait for it.
	sweep  sync.Mutex
	cursor uint32 // the record that Expire looked at last; under sweep
	second uint32 // the one that Reconcile did
	entry  Entry  // what Reconcile shows; here because the heap is slow

	limit, reserve int         // how many flows may live before Insert sheds; how many records there are beyond
	urgent         atomic.Bool // what Urgent says

	mu    sync.Mutex // guards what follows, for a few instructions at a time
	links []link     // by record number, and the second queue's sentinel; see pressure.go
	free  uint32     // head of the list of free records
	// limbo is the head of the list of retired records that no batch has taken yet.
	limbo                uint32
	limboCount           int
	freeCount, liveCount int
	queued               [2]int // by standing: the lengths of the queues
	walk                 uint32 // the record that settle looks at next, 0 to begin anew
	urgentNow            bool
	clients              clients

	inserted, removed, reclaimed        uint64 // under mu
	expired, reconciled                 uint64 // under mu
	exists, collisions, sheds, overCaps atomic.Uint64
	fullRecords, fullCells, stray       atomic.Uint64
}

const stripeCount = 64

type stripe struct {
	sync.Mutex
	_ [BucketSize - 8]byte // a line each
}

// key is a tuple in words: addresses as they lie in memory, tail = ports as they lie in a frame | protocol << 32.
type key struct{ s0, s1, d0, d1, tail uint64 }

func (k *Tuple) src() (uint64, uint64) {
	return binary.LittleEndian.Uint64(k.Src[:8]), binary.LittleEndian.Uint64(k.Src[8:])
}

func (k *Tuple) dst() (uint64, uint64) {
	return binary.LittleEndian.Uint64(k.Dst[:8]), binary.LittleEndian.Uint64(k.Dst[8:])
}

func (k *Tuple) tail() uint64 {
	return uint64(portsOf(k.SrcPort, k.DstPort)) | uint64(k.Proto)<<32
}

// portsOf returns two ports as the word that they are in a frame.
func portsOf(src, dst uint16) uint32 {
	w := uint32(src) | uint32(dst)<<16
	return w>>8&0x00ff00ff | w&0x00ff00ff<<8
}

func portsTo(w uint32) (src, dst uint16) {
	return bits.ReverseBytes16(uint16(w)), bits.ReverseBytes16(uint16(w >> 16))
}

func wordsOf(a *[16]byte) [2]uint64 {
	return [2]uint64{binary.LittleEndian.Uint64(a[:8]), binary.LittleEndian.Uint64(a[8:])}
}

func wordsTo(a *[16]byte, w *[2]uint64) {
	binary.LittleEndian.PutUint64(a[:8], w[0])
	binary.LittleEndian.PutUint64(a[8:], w[1])
}

// seenAs returns the address that the backend sees.
func (r *record) seenAs() *[2]uint64 {
	if r.flags&FlagSource != 0 {
		return &r.source
	}
	return &r.addr[client]
}

// key returns the tuple of one direction.
func (r *record) key(d Direction) key {
	src, dst := &r.addr[client], &r.addr[frontend]
	if d == Reply {
		src, dst = &r.addr[backend], r.seenAs()
	}
	return key{src[0], src[1], dst[0], dst[1], uint64(r.ports[d&1]) | uint64(r.proto)<<32}
}

// lock takes the stripes of the buckets of two hashes and returns them as a set. Ascending order is what keeps two
// writers from waiting for each other.
func (t *Table) lock(a, b uint64) (set uint64) {
	a1, a2 := t.pair(a)
	b1, b2 := t.pair(b)
	set = 1<<(a1%stripeCount) | 1<<(a2%stripeCount) | 1<<(b1%stripeCount) | 1<<(b2%stripeCount)
	for s := set; s != 0; s &= s - 1 {
		t.stripes[bits.TrailingZeros64(s)].Lock()
	}
	return set
}

func (t *Table) unlock(set uint64) {
	for s := set; s != 0; s &= s - 1 {
		t.stripes[bits.TrailingZeros64(s)].Unlock()
	}
}
