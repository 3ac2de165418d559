//go:build linux

package xsk

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"

	"golang.org/x/sys/unix"
)

// Layout of a received frame in its chunk:
//
//	chunk                +256 +headroom
//	  |                    |
//	  v                    v
//	  +--------------------+---------------------------+
//	  | room in front      | frame, to the chunk's end |
//	  +--------------------+---------------------------+
//
// The kernel leaves XDP_PACKET_HEADROOM and the umem's headroom in front of what it receives
// (net/xdp/xsk_buff_pool.c: xp_init_xskb_addr, xp_alloc), so the 24 bytes of TX metadata always
// fit there.
const rxHeadroom = 256 // XDP_PACKET_HEADROOM

const (
	defaultFrames    = 4096
	defaultFrameSize = 4096
	minFrameSize     = 2048 // net/xdp/xdp_umem.c: XDP_UMEM_MIN_CHUNK_SIZE
)

// UmemConfig describes a Umem. The zero value is good for one or two busy sockets.
type UmemConfig struct {
	Frames    int // number of frames; 0: 4096
	FrameSize int // bytes, 2048 or 4096 (no more than a page); 0: 4096
	Headroom  int // bytes in front of a received frame, beside the kernel's own 256
	Slab      int // frames that a worker takes from the pool at once; 0: 64

	// CheckFrames has every change of a frame's owner verified: see Checker. For tests.
	CheckFrames bool

	swChecksum bool // XDP_UMEM_TX_SW_CSUM: the kernel finishes requested checksums itself
	noMetadata bool // register without TX metadata
}

func (c UmemConfig) withDefaults() UmemConfig {
	if c.Frames == 0 {
		c.Frames = defaultFrames
	}
	if c.FrameSize == 0 {
		c.FrameSize = defaultFrameSize
	}
	if c.Slab == 0 {
		c.Slab = defaultSlab
	}
	return c
}

func (c UmemConfig) validate() error {
	var errs []error
	if c.Frames < 1 || c.Frames > 1<<24 {
		errs = append(errs, fmt.Errorf("frames: %d is not between 1 and %d", c.Frames, 1<<24))
	}
	if n := c.FrameSize; n < minFrameSize || n > unix.Getpagesize() || n&(n-1) != 0 {
		errs = append(errs, fmt.Errorf("frame size: %d is not a power of two from %d to the page size of %d",
			n, minFrameSize, unix.Getpagesize()))
	}
	if c.Headroom < 0 || c.Headroom >= c.FrameSize-rxHeadroom {
		errs = append(errs, fmt.Errorf("headroom: %d does not fit a frame of %d, of which the kernel keeps %d",
			c.Headroom, c.FrameSize, rxHeadroom))
	}
	if c.Slab < 1 {
		errs = append(errs, fmt.Errorf("slab: %d is less than 1", c.Slab))
	}
	return errors.Join(errs...)
}

// Umem is the memory that frames live in, shared by the sockets opened on it.
type Umem struct {
	mem       []byte
	size      uint64
	chunk     uint64 // frame size, bytes
	chunkMask uint64 // an address & chunkMask is its chunk's
	shift     uint   // log2 of chunk
	headroom  int
	pool      *Pool
	check     *Checker // nil in production

	swChecksum bool
	noMetadata bool

	mu      sync.Mutex // guards what follows; held while a socket is opened or closed
	sockets []*Socket
	nextID  uint32
	closed  bool
}

// NewUmem maps the memory. The kernel learns of it with the first socket.
func NewUmem(cfg UmemConfig) (*Umem, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("umem: %w", err)
	}
	size := cfg.Frames * cfg.FrameSize
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("umem: map %d bytes: %w", size, err)
	}
	// Huge pages where the kernel has them: every frame lies in another small page, and
	// would cost a miss in the TLB.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	// Populated now: the kernel pins the pages anyway, and a page fault then would be the
	// first packet's.
	if err := unix.Madvise(mem, unix.MADV_POPULATE_WRITE); err != nil {
		_ = unix.Munmap(mem)
		return nil, fmt.Errorf("umem: populate %d bytes: %w", size, err)
	}
	return newUmem(mem, cfg), nil
}

// newUmem makes a Umem of memory that is there, for NewUmem and for tests on the heap.
func newUmem(mem []byte, cfg UmemConfig) *Umem {
	u := &Umem{
		mem:        mem,
		size:       uint64(len(mem)),
		chunk:      uint64(cfg.FrameSize),
		chunkMask:  ^uint64(cfg.FrameSize - 1),
		shift:      uint(bits.TrailingZeros(uint(cfg.FrameSize))),
		headroom:   cfg.Headroom,
		swChecksum: cfg.swChecksum,
		noMetadata: cfg.noMetadata,
	}
	if cfg.CheckFrames {
		u.check = newChecker(u)
	}
	u.pool = newPool(u, cfg.Slab)
	return u
}

// Frames is the number of frames.
func (u *Umem) Frames() int { return int(u.size >> u.shift) }

// FrameSize is the size of a frame's chunk in bytes.
func (u *Umem) FrameSize() int { return int(u.chunk) }

// MaxReceive is the longest frame that one chunk receives; without multi-buffer, longer ones
// are dropped by the kernel and counted as RxDropped.
func (u *Umem) MaxReceive() int { return MaxReceive(int(u.chunk)) - u.headroom }

// MaxReceive is that of a Umem with this frame size and no headroom of its own.
func MaxReceive(frameSize int) int { return frameSize - rxHeadroom }

// Pool is the stock of free frames.
func (u *Umem) Pool() *Pool { return u.pool }

// Checker is the checker of frame ownership, nil unless UmemConfig.CheckFrames was set.
func (u *Umem) Checker() *Checker { return u.check }

// Chunk returns the address of the chunk that addr lies in.
func (u *Umem) Chunk(addr uint64) uint64 { return addr & u.chunkMask }

// Frame returns the n bytes at addr, with a capacity that ends with the chunk. It is nil if they
// do not lie inside one chunk, or are none: what comes from a ring is checked here.
func (u *Umem) Frame(addr uint64, n uint32) []byte {
	if addr >= u.size || addr&^u.chunkMask+uint64(n) > u.chunk || n == 0 {
		return nil
	}
	return u.mem[addr : addr+uint64(n) : addr&u.chunkMask+u.chunk]
}

// Payload returns the address where a frame of the process's own making starts in its chunk:
// where a received one would. The room in front is needed for TX metadata.
func (u *Umem) Payload(chunk uint64) uint64 {
	return chunk&u.chunkMask + rxHeadroom + uint64(u.headroom)
}

// Sendable reports whether the kernel takes d as a tx descriptor (net/xdp/xsk_queue.h:
// xp_aligned_validate_desc). One that it does not take is dropped and ends the system call; 6.18
// completes it, earlier kernels do not, and its frame is lost.
func (u *Umem) Sendable(d Desc) bool {
	if d.Len == 0 || d.Options&^(OptionContinued|optionMetadata) != 0 {
		return false
	}
	if u.noMetadata {
		return d.Addr < u.size && d.Addr&^u.chunkMask+uint64(d.Len) <= u.chunk
	}
	// The metadata area must lie in the chunk whether or not it is used.
	offset := d.Addr &^ u.chunkMask
	return d.Addr < u.size && offset >= metadataLen && offset+uint64(d.Len) <= u.chunk
}

// Close unmaps the memory. It refuses while sockets are open: they are to be closed first.
func (u *Umem) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil
	}
	if n := len(u.sockets); n > 0 {
		return fmt.Errorf("umem: %d sockets are open, the first on %s", n, u.sockets[0])
	}
	u.closed = true
	mem := u.mem
	u.mem, u.size = nil, 0
	if err := unix.Munmap(mem); err != nil {
		return fmt.Errorf("umem: unmap: %w", err)
	}
	return nil
}

// register tells the kernel of the memory, by way of the socket fd. The caller holds mu.
func (u *Umem) register(fd int) error {
	reg := unix.XDPUmemReg{
		Len:      u.size,
		Size:     uint32(u.chunk),
		Headroom: uint32(u.headroom),
	}
	if !u.noMetadata {
		reg.Flags |= unix.XDP_UMEM_TX_METADATA_LEN
		reg.Tx_metadata_len = metadataLen
	}
	if u.swChecksum {
		reg.Flags |= unix.XDP_UMEM_TX_SW_CSUM
	}
	return setUmemReg(fd, u.mem, &reg)
}
