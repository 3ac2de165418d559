//go:build linux

package xsk

import "encoding/binary"

// struct xsk_tx_metadata (include/uapi/linux/if_xdp.h), in the bytes right before the frame:
//
//	 0               2               4                               8
//	+---------------------------------------------------------------+
//	|                             flags                             |
//	+---------------+---------------+-------------------------------+
//	|  csum_start   |  csum_offset  |            padding            |
//	+---------------+---------------+-------------------------------+
//	|                          launch_time                          |
//	+---------------------------------------------------------------+
//
// All in the machine's byte order. The kernel reads it if the descriptor says so. If what it
// reads is wrong (an unknown flag, a checksum beyond the frame), sendto answers EINVAL and the
// descriptor stays at the head of the ring for good (net/xdp/xsk.c: xsk_skb_metadata,
// xsk_build_skb). So one function writes all three words, checks them and sets the descriptor's
// flag: bytes that an earlier frame left there are never sent as metadata.
const (
	metadataLen          = 24
	metadataChecksum     = 1 << 1 // XDP_TXMD_FLAGS_CHECKSUM
	metadataChecksumSize = 2      // sizeof(__sum16)
)

// RequestChecksum asks that the kernel, or the device, finish the frame's checksum: sum up
// from start to the frame's end, and store the result at start+offset, where the pseudo
// header's sum is now. Both count from the frame's first byte. It writes the request in front of
// the frame and sets the flag in d. It reports false, and changes nothing, if the request does
// not fit in front of the frame or the field does not lie inside it.
//
// Of a packet of several descriptors, only the first carries the request, and the field must
// lie in it.
func (u *Umem) RequestChecksum(d *Desc, start, offset uint16) bool {
	inChunk := d.Addr &^ u.chunkMask
	if d.Addr >= u.size || inChunk < metadataLen || inChunk+uint64(d.Len) > u.chunk || u.noMetadata {
		return false
	}
	if uint32(start)+uint32(offset)+metadataChecksumSize > d.Len {
		return false
	}
	m := u.mem[d.Addr-metadataLen : d.Addr : d.Addr]
	binary.NativeEndian.PutUint64(m[0:8], metadataChecksum)
	binary.NativeEndian.PutUint64(m[8:16], 0)
	binary.NativeEndian.PutUint16(m[8:10], start)
	binary.NativeEndian.PutUint16(m[10:12], offset)
	binary.NativeEndian.PutUint64(m[16:24], 0)
	d.Options |= optionMetadata
	return true
}
