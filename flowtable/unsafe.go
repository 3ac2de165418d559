package flowtable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"
)

// All of the package's unsafe is here: two casts from bytes to typed slices, made once a table after every condition
// that they need has been checked. From then on Go's own bounds checks hold.

// view returns the arrays as buckets and records. The memory must outlive them: heap in tests, a mapping in life.
func view(index, records []byte) ([]bucket, []record, error) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		return nil, nil, errors.New("flow table: big-endian machines are not supported")
	}
	n := len(index) / BucketSize
	if len(index)%BucketSize != 0 || n < 2 || n > 1<<31 {
		return nil, nil, fmt.Errorf("flow table: index of %d bytes, want at least two buckets of %d", len(index), BucketSize)
	}
	m := len(records) / RecordSize
	if len(records)%RecordSize != 0 || m < 2 || m > maxRecords {
		return nil, nil, fmt.Errorf("flow table: records of %d bytes, want the header and 1 to %d records of %d", len(records), maxRecords-1, RecordSize)
	}
	i, r := unsafe.Pointer(unsafe.SliceData(index)), unsafe.Pointer(unsafe.SliceData(records))
	if uintptr(i)%8 != 0 || uintptr(r)%8 != 0 {
		return nil, nil, errors.New("flow table: arrays are not aligned to 8 bytes")
	}
	return unsafe.Slice((*bucket)(i), n), unsafe.Slice((*record)(r), m), nil
}

// The Go struct is the layout: a field that moves does not compile, because a negative constant is not a uintptr.
const (
	_ = -(unsafe.Sizeof(bucket{}) ^ BucketSize)
	_ = -(unsafe.Sizeof(record{}) ^ RecordSize)
	_ = -(unsafe.Sizeof(Ref{}) ^ 8) // prefetch_amd64.s steps by it

	_ = -(unsafe.Offsetof(record{}.addr) ^ OffsetClient)
	_ = -(unsafe.Offsetof(record{}.addr) + 16*frontend ^ OffsetFrontend)
	_ = -(unsafe.Offsetof(record{}.addr) + 16*backend ^ OffsetBackend)
	_ = -(unsafe.Offsetof(record{}.ports) ^ OffsetClientPort)
	_ = -(unsafe.Offsetof(record{}.ports) + 4 ^ OffsetBackendPort)
	_ = -(unsafe.Offsetof(record{}.proto) ^ OffsetProto)
	_ = -(unsafe.Offsetof(record{}.flags) ^ OffsetFlags)
	_ = -(unsafe.Offsetof(record{}.source) ^ OffsetSource)
	_ = -(unsafe.Offsetof(record{}.generation) ^ OffsetGeneration)
	_ = -(unsafe.Offsetof(record{}.began) ^ OffsetBegan)
	_ = -(unsafe.Offsetof(record{}.adj) ^ OffsetForwardAdj)
	_ = -(unsafe.Offsetof(record{}.seen) ^ OffsetForwardSeen)
	_ = -(unsafe.Offsetof(record{}.state) ^ OffsetState)
	_ = -(unsafe.Offsetof(record{}.life) ^ OffsetLife)
	_ = -(unsafe.Offsetof(record{}.packets) ^ OffsetForwardPackets)
)
