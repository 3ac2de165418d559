//go:build linux

package xsk

import (
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// heapOffsets is a ring's layout for tests: the words a cache line apart, then the entries.
var heapOffsets = unix.XDPRingOffset{Producer: 0, Consumer: 64, Flags: 128, Desc: 192}

// heapRing is ring memory on the heap, where the race detector sees it, and the kernel's end of it.
type heapRing[T uint64 | Desc] struct {
	mem                []byte
	producer, consumer *uint32
	entries            []T
	mask               uint32
}

func newHeapRing[T uint64 | Desc](size uint32) *heapRing[T] {
	words := make([]uint64, mappingSize[T](heapOffsets, size)/8) // aligned
	mem := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8)
	return &heapRing[T]{
		mem:      mem,
		producer: word(mem, heapOffsets.Producer),
		consumer: word(mem, heapOffsets.Consumer),
		entries:  entries[T](mem, heapOffsets.Desc, size),
		mask:     size - 1,
	}
}

// start sets both indices, to begin near the wrap.
func (h *heapRing[T]) start(at uint32) *heapRing[T] {
	*h.producer, *h.consumer = at, at
	return h
}

// produce is the kernel's side of a ring that we consume.
func (h *heapRing[T]) produce(e T) bool {
	prod := atomic.LoadUint32(h.producer)
	if prod-atomic.LoadUint32(h.consumer) > h.mask {
		return false
	}
	h.entries[prod&h.mask] = e
	atomic.StoreUint32(h.producer, prod+1)
	return true
}

// consume is the kernel's side of a ring that we produce.
func (h *heapRing[T]) consume() (e T, ok bool) {
	cons := atomic.LoadUint32(h.consumer)
	if cons == atomic.LoadUint32(h.producer) {
		return e, false
	}
	e = h.entries[cons&h.mask]
	atomic.StoreUint32(h.consumer, cons+1)
	return e, true
}

// heapSocket is a Socket without a kernel: its rings on the heap, with the kernel's end of each.
type heapSocket struct {
	*Socket
	fill, completion *heapRing[uint64]
	rx, tx           *heapRing[Desc]
}

func newHeapSocket(u *Umem, size int, start uint32) *heapSocket {
	n := uint32(size)
	h := &heapSocket{
		Socket:     &Socket{umem: u, fd: -1, name: "heap queue 0"},
		fill:       newHeapRing[uint64](n).start(start),
		rx:         newHeapRing[Desc](n).start(start),
		tx:         newHeapRing[Desc](n).start(start),
		completion: newHeapRing[uint64](n).start(start),
	}
	h.maps = [4][]byte{h.fill.mem, h.rx.mem, h.tx.mem, h.completion.mem}
	h.setRings(Config{FillSize: size, RxSize: size, TxSize: size, CompletionSize: size}, &unix.XDPMmapOffsets{
		Rx: heapOffsets, Tx: heapOffsets, Fr: heapOffsets, Cr: heapOffsets,
	})
	u.sockets = append(u.sockets, h.Socket)
	return h
}

// receive is the kernel receiving a frame: from the fill ring, where FIFO, into the rx ring.
func (h *heapSocket) receive(length uint32) bool {
	if *h.rx.producer-atomic.LoadUint32(h.rx.consumer) > h.rx.mask {
		return false
	}
	addr, ok := h.fill.consume()
	if !ok {
		return false
	}
	return h.rx.produce(Desc{Addr: h.umem.Payload(addr), Len: length})
}

// send is the kernel sending a frame: from the tx ring into the completion ring.
func (h *heapSocket) send() (Desc, bool) {
	d, ok := h.tx.consume()
	if ok && !h.completion.produce(d.Addr) {
		panic("completion ring overrun")
	}
	return d, ok
}

// heapUmem is a Umem on the heap.
func heapUmem(cfg UmemConfig) *Umem {
	cfg = cfg.withDefaults()
	return newUmem(make([]byte, cfg.Frames*cfg.FrameSize), cfg)
}

// wrapStarts are first indices from which a short test crosses every boundary there is.
var wrapStarts = map[string]uint32{
	"from zero":           0,
	"across the slots":    7,
	"across the sign bit": 1<<31 - 3,
	"across 2^32":         ^uint32(0) - 2,
}

func TestDescLayout(t *testing.T) {
	// struct xdp_desc
	if s := unsafe.Sizeof(Desc{}); s != 16 {
		t.Errorf("size of Desc is %d, want 16", s)
	}
	if o := unsafe.Offsetof(Desc{}.Len); o != 8 {
		t.Errorf("offset of Desc.Len is %d, want 8", o)
	}
	if o := unsafe.Offsetof(Desc{}.Options); o != 12 {
		t.Errorf("offset of Desc.Options is %d, want 12", o)
	}
	if OptionContinued != unix.XDP_PKT_CONTD || optionMetadata != unix.XDP_TX_METADATA || ringNeedWakeup != unix.XDP_RING_NEED_WAKEUP {
		t.Error("flags differ from the kernel's")
	}
	if s := unsafe.Sizeof(Statistics{}); s != unsafe.Sizeof(unix.XDPStatistics{}) {
		t.Errorf("size of Statistics is %d, want %d", s, unsafe.Sizeof(unix.XDPStatistics{}))
	}
}

func TestProducer(t *testing.T) {
	for name, start := range wrapStarts {
		t.Run(name, func(t *testing.T) {
			const size = 4
			h := newHeapRing[Desc](size).start(start)
			r := TxRing{Producer: newProducer(h.mem, heapOffsets, size), descs: h.entries}
			for round := range uint32(3 * size) {
				if got := r.Free(size); got != size {
					t.Fatalf("round %d: %d free in an empty ring, want %d", round, got, size)
				}
				if _, ok := r.Reserve(size + 1); ok {
					t.Fatalf("round %d: reserved more than the ring holds", round)
				}
				idx, ok := r.Reserve(3)
				if !ok || idx != start+round*3 {
					t.Fatalf("round %d: reserve 3: index %d, %t, want %d", round, idx, ok, start+round*3)
				}
				if _, ok := r.Reserve(2); ok {
					t.Fatalf("round %d: reserved 2 of 1 free", round)
				}
				for i := range uint32(3) {
					*r.Desc(idx + i) = Desc{Addr: uint64(idx + i)}
				}
				if _, ok := h.consume(); ok {
					t.Fatalf("round %d: the kernel sees what is reserved", round)
				}
				r.Submit(2)
				r.Submit(1)
				if got := r.pending(); got != 3 {
					t.Fatalf("round %d: %d pending, want 3", round, got)
				}
				if got := r.Free(2); got != 1 {
					t.Fatalf("round %d: %d free, want 1", round, got)
				}
				for i := range uint32(3) {
					d, ok := h.consume()
					if want := uint64(idx + i); !ok || d.Addr != want {
						t.Fatalf("round %d: the kernel reads %d, %t, want %d", round, d.Addr, ok, want)
					}
				}
			}
		})
	}
}

func TestProducerCancel(t *testing.T) {
	h := newHeapRing[Desc](8).start(^uint32(0))
	r := TxRing{Producer: newProducer(h.mem, heapOffsets, 8), descs: h.entries}
	a, _ := r.Reserve(5)
	r.Cancel(3)
	b, ok := r.Reserve(6)
	if !ok || b != a+2 {
		t.Errorf("after cancelling 3 of 5: reserve 6 at %d, %t, want %d", b-a, ok, 2)
	}
}

func TestConsumer(t *testing.T) {
	for name, start := range wrapStarts {
		t.Run(name, func(t *testing.T) {
			const size = 4
			h := newHeapRing[uint64](size).start(start)
			r := CompletionRing{Consumer: newConsumer(h.mem, heapOffsets, size), addrs: h.entries}
			next, want := uint64(0), uint64(0)
			for round := range uint32(3 * size) {
				if _, n := r.Peek(size); n != 0 {
					t.Fatalf("round %d: peeked %d in an empty ring", round, n)
				}
				for range 3 {
					if !h.produce(next) {
						t.Fatalf("round %d: the kernel finds no room", round)
					}
					next++
				}
				idx, n := r.Peek(2)
				if n != 2 || idx != start+3*round {
					t.Fatalf("round %d: peek 2: %d at %d, want 2 at %d", round, n, idx, start+3*round)
				}
				r.Cancel(1)
				idx, n = r.Peek(size)
				if n != 2 || idx != start+3*round+1 {
					t.Fatalf("round %d: peek after cancel: %d at %d, want 2 at %d", round, n, idx, start+3*round+1)
				}
				for i := range uint32(3) {
					if got := r.Addr(start + 3*round + i); got != want {
						t.Fatalf("round %d: entry %d is %d, want %d", round, i, got, want)
					}
					want++
				}
				// Two slots are the kernel's again only with the release.
				if !h.produce(99) || h.produce(99) {
					t.Fatalf("round %d: the kernel should find one free slot", round)
				}
				*h.producer--
				r.cachedProd = *h.producer
				r.Release(3)
			}
		})
	}
}

// TestRingsAgainstQueue runs random verbs on both ends of a ring and compares with a plain queue.
func TestRingsAgainstQueue(t *testing.T) {
	const size = 16
	for name, start := range wrapStarts {
		t.Run(name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(1, uint64(start)))
			th := newHeapRing[Desc](size).start(start)
			ch := newHeapRing[uint64](size).start(start)
			tx := TxRing{Producer: newProducer(th.mem, heapOffsets, size), descs: th.entries}
			completion := CompletionRing{Consumer: newConsumer(ch.mem, heapOffsets, size), addrs: ch.entries}
			var sent, done []uint64 // queues: reserved and not consumed, produced and not released
			next := uint64(0)
			for step := range 20000 {
				switch rnd.IntN(4) {
				case 0:
					n := rnd.Uint32N(size + 2)
					room := uint32(size - len(sent))
					if free := tx.Free(n); free > room {
						t.Fatalf("step %d: %d free, want at most %d", step, free, room)
					}
					idx, ok := tx.Reserve(n)
					if ok != (n <= room) {
						t.Fatalf("step %d: reserve %d of %d: %t", step, n, room, ok)
					}
					if ok {
						for i := range n {
							*tx.Desc(idx + i) = Desc{Addr: next}
							sent = append(sent, next)
							next++
						}
						tx.Submit(n)
					}
				case 1:
					if d, ok := th.consume(); ok {
						if len(sent) == 0 || d.Addr != sent[0] {
							t.Fatalf("step %d: the kernel reads %d of %v", step, d.Addr, sent)
						}
						sent = sent[1:]
						if ch.produce(d.Addr) {
							done = append(done, d.Addr)
						}
					} else if len(sent) != 0 {
						t.Fatalf("step %d: the kernel misses %v", step, sent)
					}
				default:
					n := rnd.Uint32N(size + 2)
					idx, got := completion.Peek(n)
					if int(got) > len(done) || got == 0 && n > 0 && len(done) > 0 {
						t.Fatalf("step %d: peek %d: %d of %d", step, n, got, len(done))
					}
					for i := range got {
						if a := completion.Addr(idx + i); a != done[i] {
							t.Fatalf("step %d: entry %d: %d, want %d", step, i, a, done[i])
						}
					}
					keep := rnd.Uint32N(got + 1)
					completion.Cancel(keep)
					completion.Release(got - keep)
					done = done[got-keep:]
				}
			}
		})
	}
}

// TestRingsConcurrent has the kernel's end on another goroutine, for the race detector: the
// indices are all that orders the entries.
func TestRingsConcurrent(t *testing.T) {
	const size, total = 64, 50000
	th := newHeapRing[Desc](size)
	ch := newHeapRing[uint64](size)
	tx := TxRing{Producer: newProducer(th.mem, heapOffsets, size), descs: th.entries}
	completion := CompletionRing{Consumer: newConsumer(ch.mem, heapOffsets, size), addrs: ch.entries}
	var kernel sync.WaitGroup
	kernel.Go(func() {
		for n := 0; n < total; {
			d, ok := th.consume()
			if !ok {
				continue
			}
			for !ch.produce(d.Addr) {
			}
			n++
		}
	})
	var next, want uint64
	for want < total {
		if n := min(tx.Free(8), 8, uint32(total-next)); n > 0 {
			idx, _ := tx.Reserve(n)
			for i := range n {
				*tx.Desc(idx + i) = Desc{Addr: next}
				next++
			}
			tx.Submit(n)
		}
		idx, n := completion.Peek(8)
		for i := range n {
			if got := completion.Addr(idx + i); got != want {
				t.Fatalf("completed %d, want %d", got, want)
			}
			want++
		}
		if n > 0 {
			completion.Release(n)
		}
	}
	kernel.Wait()
}

// TestFillLimit: the kernel is never given more frames than the rx ring can return.
func TestFillLimit(t *testing.T) {
	for name, start := range wrapStarts {
		t.Run(name, func(t *testing.T) {
			const size = 8
			u := heapUmem(UmemConfig{Frames: 64, CheckFrames: true})
			s := newHeapSocket(u, size, start)
			c := u.pool.NewCache()
			if n := s.Refill(c); n != size {
				t.Fatalf("first refill gives %d, want %d", n, size)
			}
			for i := range 5 {
				if !s.receive(60) {
					t.Fatalf("the kernel cannot receive frame %d", i)
				}
			}
			if n := s.Refill(c); n != 0 {
				t.Fatalf("5 of %d frames are in the rx ring, but %d more are given", size, n)
			}
			// Peeked is not released: the slots are not free.
			idx, n := s.Rx.Peek(3)
			if n != 3 {
				t.Fatalf("peeked %d, want 3", n)
			}
			if n := s.Refill(c); n != 0 {
				t.Fatalf("none is released, but %d more are given", n)
			}
			for i := range n {
				c.Put(s.Rx.Desc(idx + i).Addr)
			}
			s.Rx.Release(n)
			if n := s.Refill(c); n != 3 {
				t.Fatalf("3 are released, but %d more are given", n)
			}
			if _, err := u.Checker().Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAccessorsInline: what runs for each descriptor costs no call.
func TestAccessorsInline(t *testing.T) {
	out, err := exec.Command("go", "build", "-gcflags=-m", ".").CombinedOutput()
	if err != nil {
		t.Skipf("go build: %v\n%s", err, out)
	}
	for _, f := range []string{
		"(*FillRing).Addr", "(*FillRing).Free", "(*FillRing).Reserve",
		"(*RxRing).Desc", "(*RxRing).Release",
		"(*TxRing).Desc", "(*Producer).Free", "(*Producer).Reserve", "(*Producer).NeedsWakeup", "(*TxRing).Submit",
		"(*CompletionRing).Addr", "(*CompletionRing).Release", "(*Consumer).Available",
		"(*Umem).Frame", "(*Umem).Chunk", "(*Umem).Payload", "(*Umem).Sendable", "Desc.Continued",
	} {
		if !strings.Contains(string(out), "can inline "+f+"\n") {
			t.Errorf("%s is not inlined", f)
		}
	}
}
