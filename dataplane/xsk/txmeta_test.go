//go:build linux

package xsk

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRequestChecksum(t *testing.T) {
	u := heapUmem(UmemConfig{Frames: 4})
	for _, tt := range []struct {
		name          string
		desc          Desc
		start, offset uint16
		want          bool
	}{
		{"a received frame", Desc{Addr: 4096 + 256, Len: 60}, 34, 16, true},
		{"just room in front", Desc{Addr: 4096 + 24, Len: 60}, 34, 16, true},
		{"one byte short in front", Desc{Addr: 4096 + 23, Len: 60}, 34, 16, false},
		{"at the chunk's start", Desc{Addr: 4096, Len: 60}, 34, 16, false},
		{"at the umem's start", Desc{Addr: 0, Len: 60}, 34, 16, false},
		{"outside", Desc{Addr: 1 << 30, Len: 60}, 34, 16, false},
		{"across the chunk's end", Desc{Addr: 8192 - 30, Len: 60}, 34, 16, false},
		{"field at the frame's end", Desc{Addr: 256, Len: 60}, 42, 16, true},
		{"field across the frame's end", Desc{Addr: 256, Len: 60}, 43, 16, false},
		{"start beyond the frame", Desc{Addr: 256, Len: 60}, 65535, 65535, false},
		{"first of several", Desc{Addr: 256, Len: 60, Options: OptionContinued}, 34, 6, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for i := range u.mem {
				u.mem[i] = 0xff // stale
			}
			d := tt.desc
			if got := u.RequestChecksum(&d, tt.start, tt.offset); got != tt.want {
				t.Fatalf("RequestChecksum(%+v, %d, %d) = %t, want %t", tt.desc, tt.start, tt.offset, got, tt.want)
			}
			if !tt.want {
				if d != tt.desc {
					t.Errorf("descriptor changed to %+v", d)
				}
				if bytes.Contains(u.mem, []byte{0}) {
					t.Error("memory changed")
				}
				return
			}
			if d.Options != tt.desc.Options|unix.XDP_TX_METADATA {
				t.Errorf("options %#x, want the metadata flag beside %#x", d.Options, tt.desc.Options)
			}
			// struct xsk_tx_metadata
			want := make([]byte, 24)
			binary.NativeEndian.PutUint64(want[0:], unix.XDP_TXMD_FLAGS_CHECKSUM)
			binary.NativeEndian.PutUint16(want[8:], tt.start)
			binary.NativeEndian.PutUint16(want[10:], tt.offset)
			if got := u.mem[d.Addr-24 : d.Addr]; !bytes.Equal(got, want) {
				t.Errorf("metadata % x, want % x", got, want)
			}
			if u.mem[d.Addr] != 0xff || d.Addr > 24 && u.mem[d.Addr-25] != 0xff {
				t.Error("bytes beside the metadata changed")
			}
		})
	}
}

// TestMetadataIsNotInherited: a slot of the tx ring that carried a request carries none when it is
// used again, and neither does a frame.
func TestMetadataIsNotInherited(t *testing.T) {
	u := heapUmem(UmemConfig{Frames: 4})
	s := newHeapSocket(u, 1, 0)
	c := u.pool.NewCache()
	for round := range 4 {
		chunk, _ := c.Get()
		d := Desc{Addr: u.Payload(chunk), Len: 60}
		if round%2 == 0 {
			u.RequestChecksum(&d, 34, 16)
		}
		if s.Transmit([]Desc{d}) != 1 {
			t.Fatal("no room")
		}
		got, _ := s.send()
		if want := uint32(0); round%2 == 1 && got.Options != want {
			t.Errorf("round %d: options %#x, want %#x", round, got.Options, want)
		}
		s.Complete(c)
	}
}
