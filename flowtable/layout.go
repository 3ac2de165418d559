package flowtable

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync/atomic"
)

// Sizes of the two arrays' values. The BPF maps are made with them.
const (
	BucketSize = 64  // one cache line: eight cells
	RecordSize = 128 // two: what is compared, what changes

	// Version of the layout. Whatever moves a field, changes the hash or gives a reserved bit a meaning raises it.
	Version = 3
	// Magic is "sluiceFT" as the bytes lie in memory.
	Magic uint64 = 0x54466563_69756c73

	// MaxCapacity keeps the bucket count and the record number far inside 32 bits.
	MaxCapacity = 1 << 26
	maxRecords  = 1 + MaxCapacity + MaxCapacity/reserveShare
)

// Offsets within a record, for whoever shares the memory in another language. unsafe.go holds the Go struct to them.
const (
	OffsetClient         = 0
	OffsetFrontend       = 16
	OffsetBackend        = 32
	OffsetClientPort     = 48 // ports are in network byte order
	OffsetFrontendPort   = 50
	OffsetBackendPort    = 52
	OffsetSourcePort     = 54
	OffsetProto          = 56
	OffsetFlags          = 57
	OffsetSource         = 64
	OffsetGeneration     = 80
	OffsetBegan          = 84
	OffsetForwardAdj     = 88
	OffsetReplyAdj       = 92
	OffsetForwardSeen    = 96
	OffsetReplySeen      = 100
	OffsetState          = 104
	OffsetLife           = 108
	OffsetForwardPackets = 112
	OffsetReplyPackets   = 120
)

// Offsets within the header, which is record 0.
const (
	HeaderMagic      = 0
	HeaderVersion    = 8
	HeaderBuckets    = 12
	HeaderRecords    = 16
	HeaderRecordSize = 20
	HeaderSeed0      = 24
	HeaderSeed1      = 32
	HeaderChecksum   = 40 // CRC32C of the bytes before it
	HeaderOverflow   = 64 // until when there are flows without a record: see SetOverflow
)

// Life of a record.
const (
	LifeFree    = 0 // on the free list, or being filled
	LifeLive    = 1 // complete; its cells are published, or are about to be
	LifeRetired = 2 // unpublished; a reader may still be on it
)

// FlagSource says that the backend sees the address Source and not Client.
const FlagSource = 1

// The parts of a cell. The record number is below, so that a cell without its tag is (direction, record).
const (
	bucketCells = BucketSize / 8
	cellRecord  = 1<<32 - 1
	cellReply   = 1 << 32
	cellTag     = 1 << 33 // the lowest bit of the tag: a cell xor a tag is below it exactly if the tags are equal
)

// A bucket is one line of the index.
type bucket [bucketCells]uint64

// A record is one flow. All of it is written by Insert while the record belongs to nobody else. Then addr, ports,
// proto, flags, source and began do not change before the record is reused, and are read plainly by whoever found it through
// a cell; the other fields are read and written with atomics by any worker, and some by the kernel.
type record struct {
	addr  [3][2]uint64 // client, frontend, backend, as words of the bytes in memory
	ports [2]uint32    // by direction: source and destination port of the tuple, as they lie in a frame
	proto uint8
	flags uint8
	_     [6]byte

	source     [2]uint64
	generation uint32
	began      uint32    // the tick of the first packet; as source, it does not change
	adj        [2]uint32 // by direction, as the next three
	seen       [2]uint32
	state      uint32
	life       uint32 // written under the stripes of both tuples, or while the record is on no list
	packets    [2]uint64
}

// Places in record.addr. A forward tuple is addr[0] to addr[1], a reply is addr[2] to addr[0]: source 2*direction,
// destination 1-direction.
const (
	client   = 0
	frontend = 1
	backend  = 2
)

// Geometry returns the sizes of the arrays for a number of flows: the count of buckets leaves half of the
// cells empty when the table is full, the records include the header and the reserve for removed ones (pressure.go), an
// eighth of the capacity. Capacities outside 1..MaxCapacity are clamped.
func Geometry(capacity int) (buckets, records int) {
	capacity = min(max(capacity, 1), MaxCapacity)
	cells := 2 * 2 * capacity // two a flow, half of them empty
	buckets = max((cells+bucketCells-1)/bucketCells, 2)
	return buckets, 1 + capacity + capacity/reserveShare
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Format makes an empty table of the two arrays, whose lengths decide the geometry. The seed keys the hash and must
// come from the system's randomness. Programs of the kernel may read the arrays meanwhile: the index is emptied
// before any record changes, so call it before the records' last grace period ends, not in it.
func Format(index, records []byte, seed [2]uint64) error {
	bs, rs, err := view(index, records)
	if err != nil {
		return err
	}
	// No header, no table: a daemon killed in here leaves something that Open refuses.
	clear(records[:RecordSize])
	for i := range bs {
		for j := range bs[i] {
			atomic.StoreUint64(&bs[i][j], 0)
		}
	}
	clear(records)

	h := records[:RecordSize]
	le := binary.LittleEndian
	le.PutUint32(h[HeaderVersion:], Version)
	le.PutUint32(h[HeaderBuckets:], uint32(len(bs)))
	le.PutUint32(h[HeaderRecords:], uint32(len(rs)))
	le.PutUint32(h[HeaderRecordSize:], RecordSize)
	le.PutUint64(h[HeaderSeed0:], seed[0])
	le.PutUint64(h[HeaderSeed1:], seed[1])
	le.PutUint64(h[HeaderMagic:], Magic)
	le.PutUint32(h[HeaderChecksum:], crc32.Checksum(h[:HeaderChecksum], castagnoli))
	return nil
}

// checkHeader says why the arrays are not a table of this version, or returns its seed.
func checkHeader(bs []bucket, rs []record, h []byte) (seed [2]uint64, err error) {
	le := binary.LittleEndian
	if got := le.Uint64(h[HeaderMagic:]); got != Magic {
		return seed, fmt.Errorf("flow table header: magic %#x, want %#x", got, Magic)
	}
	if got := le.Uint32(h[HeaderVersion:]); got != Version {
		return seed, fmt.Errorf("flow table header: layout version %d, this program has %d", got, Version)
	}
	if got, want := le.Uint32(h[HeaderChecksum:]), crc32.Checksum(h[:HeaderChecksum], castagnoli); got != want {
		return seed, fmt.Errorf("flow table header: checksum %#x, its content has %#x", got, want)
	}
	if got := le.Uint32(h[HeaderRecordSize:]); got != RecordSize {
		return seed, fmt.Errorf("flow table header: records of %d bytes, want %d", got, RecordSize)
	}
	if got := le.Uint32(h[HeaderBuckets:]); got != uint32(len(bs)) {
		return seed, fmt.Errorf("flow table header: %d buckets, the index has %d", got, len(bs))
	}
	if got := le.Uint32(h[HeaderRecords:]); got != uint32(len(rs)) {
		return seed, fmt.Errorf("flow table header: %d records, the array has %d", got, len(rs))
	}
	return [2]uint64{le.Uint64(h[HeaderSeed0:]), le.Uint64(h[HeaderSeed1:])}, nil
}
