package xsk

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

// Words views mapped memory, such as an array map's, as 64-bit words that are loaded and
// stored atomically. The memory must be aligned to 8 bytes and stay mapped.
func Words(mem []byte) ([]atomic.Uint64, error) {
	p := unsafe.Pointer(unsafe.SliceData(mem))
	if len(mem)%8 != 0 || uintptr(p)%8 != 0 {
		return nil, fmt.Errorf("%d bytes at an offset of %d: not aligned words", len(mem), uintptr(p)%8)
	}
	return unsafe.Slice((*atomic.Uint64)(p), len(mem)/8), nil
}
