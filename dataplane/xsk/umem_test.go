//go:build linux

package xsk

import (
	"strings"
	"testing"
)

func TestUmemConfig(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  UmemConfig
		want string // in the error; "": none
	}{
		{"zero value", UmemConfig{}, ""},
		{"2K frames", UmemConfig{FrameSize: 2048, Frames: 3}, ""},
		{"headroom", UmemConfig{Headroom: 256, Frames: 3}, ""},
		{"negative frames", UmemConfig{Frames: -1}, "frames: -1"},
		{"odd frame size", UmemConfig{FrameSize: 3000}, "frame size: 3000"},
		{"small frames", UmemConfig{FrameSize: 1024}, "frame size: 1024"},
		{"more than a page", UmemConfig{FrameSize: 8192}, "frame size: 8192"},
		{"headroom without a frame", UmemConfig{Headroom: 3840}, "headroom: 3840"},
		{"negative slab", UmemConfig{Slab: -1}, "slab: -1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, err := NewUmem(tt.cfg)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if err := u.Close(); err != nil {
					t.Error(err)
				}
				if err := u.Close(); err != nil {
					t.Errorf("second close: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestFrameBounds(t *testing.T) {
	u := heapUmem(UmemConfig{Frames: 4})
	size := u.size
	for _, tt := range []struct {
		name     string
		addr     uint64
		n        uint32
		want     bool
		capacity int
	}{
		{"first frame", 0, 60, true, 4096},
		{"a received frame", 256, 60, true, 3840},
		{"whole chunk", 4096, 4096, true, 4096},
		{"to the chunk's end", 4096 + 4000, 96, true, 96},
		{"last byte", size - 1, 1, true, 1},
		{"no bytes", 0, 0, false, 0},
		{"across a chunk's end", 4096 + 4000, 97, false, 0},
		{"longer than a chunk", 0, 4097, false, 0},
		{"longest", 0, ^uint32(0), false, 0},
		{"past the end", size, 1, false, 0},
		{"across the end", size - 1, 2, false, 0},
		{"far away", 1 << 40, 60, false, 0},
		{"wrapping", ^uint64(0), 60, false, 0},
		{"wrapping to zero", ^uint64(0), 1, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := u.Frame(tt.addr, tt.n)
			if (f != nil) != tt.want {
				t.Fatalf("Frame(%#x, %d) has %d bytes, want a frame: %t", tt.addr, tt.n, len(f), tt.want)
			}
			if f == nil {
				return
			}
			if len(f) != int(tt.n) || cap(f) != tt.capacity || &f[0] != &u.mem[tt.addr] {
				t.Errorf("Frame(%#x, %d): length %d, capacity %d, want %d, %d", tt.addr, tt.n, len(f), cap(f), tt.n, tt.capacity)
			}
		})
	}
}

// sendableSlow says in the kernel's own terms what a tx descriptor must be.
func sendableSlow(u *Umem, d Desc) bool {
	const known = 1 | 2 // XDP_PKT_CONTD | XDP_TX_METADATA
	if d.Len == 0 || d.Options&^known != 0 {
		return false
	}
	if d.Addr >= u.size || d.Addr < metadataLen {
		return false
	}
	first, last := d.Addr-metadataLen, d.Addr+uint64(d.Len)-1
	return first/u.chunk == last/u.chunk && last < u.size
}

func FuzzDescriptor(f *testing.F) {
	f.Add(uint64(256), uint32(60), uint32(0), uint16(34), uint16(16))
	f.Add(uint64(4096), uint32(60), uint32(0), uint16(34), uint16(16))
	f.Add(uint64(4096+24), uint32(4072), uint32(1), uint16(4070), uint16(0))
	f.Add(^uint64(0), ^uint32(0), ^uint32(0), ^uint16(0), ^uint16(0))
	u := heapUmem(UmemConfig{Frames: 4})
	f.Fuzz(func(t *testing.T, addr uint64, n, options uint32, start, offset uint16) {
		d := Desc{Addr: addr, Len: n, Options: options}
		if got, want := u.Sendable(d), sendableSlow(u, d); got != want {
			t.Fatalf("Sendable(%+v) = %t, want %t", d, got, want)
		}
		frame := u.Frame(addr, n)
		if u.Sendable(d) && frame == nil {
			t.Fatalf("%+v is sendable and no frame", d)
		}
		if frame != nil && (len(frame) != int(n) || addr/u.chunk != (addr+uint64(n)-1)/u.chunk) {
			t.Fatalf("%+v: frame of %d bytes", d, len(frame))
		}
		before := d
		if u.RequestChecksum(&d, start, offset) {
			d.Options &^= optionMetadata
			before.Options &^= optionMetadata
			if d != before {
				t.Fatalf("RequestChecksum changed %+v to %+v", before, d)
			}
			d.Options = optionMetadata
			if !u.Sendable(d) || int(start)+int(offset)+2 > int(n) {
				t.Fatalf("RequestChecksum(%+v, %d, %d) asks for what the kernel refuses", d, start, offset)
			}
		} else if d != before {
			t.Fatalf("RequestChecksum refused, and changed %+v to %+v", before, d)
		}
	})
}

// FuzzRings lets a kernel that lies write what it likes into the rings: nothing panics, and only
// frames of the umem come out, no more than the ring holds.
func FuzzRings(f *testing.F) {
	f.Add(uint32(3), uint32(0), uint64(256), uint32(60), uint64(4096))
	f.Add(uint32(3), uint32(0), uint64(256), uint32(60), uint64(1<<40)) // completes what is no frame
	f.Add(uint32(9), uint32(77), ^uint64(0), ^uint32(0), ^uint64(0))
	f.Add(^uint32(0), ^uint32(0), uint64(4*4096), uint32(1), uint64(4*4096))
	f.Fuzz(func(t *testing.T, producer, consumer uint32, addr uint64, n uint32, done uint64) {
		const size = 8
		u := heapUmem(UmemConfig{Frames: 4, FrameSize: 2048})
		s := newHeapSocket(u, size, 0)
		c := u.pool.NewCache()
		*s.rx.producer, *s.completion.producer = producer, producer
		*s.fill.consumer, *s.tx.consumer = consumer, consumer
		for i := range s.rx.entries {
			s.rx.entries[i] = Desc{Addr: addr + uint64(i), Len: n}
			s.completion.entries[i] = done + uint64(i)
		}
		var descs [2 * size]Desc
		got := s.Receive(descs[:])
		if got > size || got != 0 && got != int(producer) {
			t.Fatalf("received %d, producer %d", got, producer)
		}
		for _, d := range descs[:got] {
			if fr := u.Frame(d.Addr, d.Len); fr != nil {
				fr[0] = 1
			}
		}
		if got := s.Complete(c); got > size {
			t.Fatalf("completed %d of %d", got, size)
		}
		for range c.Len() {
			if addr, _ := c.Get(); addr >= u.size || addr%u.chunk != 0 {
				t.Fatalf("the cache holds %#x", addr)
			}
		}
		s.Refill(c)
		if got := s.Transmit(descs[:]); got > size {
			t.Fatalf("%d in a tx ring of %d", got, size)
		}
		s.frames()
	})
}
