package nat

import (
	"fmt"
	"testing"
)

// Frames of 64 bytes on the wire, 60 in memory; IPv6 has no TCP or UDP packet so short.
func benchFrames(tb testing.TB) map[string][]byte {
	return map[string][]byte{
		"udp4": build(tb, spec{udp: true, payload: make([]byte, 18)}),
		"tcp4": build(tb, spec{padding: 6}),
		"udp6": build(tb, spec{ipv6: true, udp: true}),
		"tcp6": build(tb, spec{ipv6: true}),
	}
}

var benchOrder = []string{"udp4", "tcp4", "udp6", "tcp6"}

// there and back again, so that every round changes the frame.
func benchEndpoints(p *Packet) [2]Endpoints {
	to := forward4
	if p.IPv6 {
		to = forward6
	}
	return [2]Endpoints{to, {p.Src, p.Dst, p.SrcPort, p.DstPort}}
}

var sink uint64

// A batch of equal frames: in life no frame is parsed again right after it was
// written, and a load that overlaps a store still in flight would be what is measured.
const benchBatch = 64

func benchCopies(frame []byte) *[benchBatch][]byte {
	var all [benchBatch][]byte
	for i := range all {
		all[i] = append([]byte(nil), frame...)
	}
	return &all
}

func BenchmarkParse(b *testing.B) {
	frames := benchFrames(b)
	for _, name := range benchOrder {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			batch := benchCopies(frames[name])
			var p Packet
			i := 0
			for b.Loop() {
				sink += uint64(p.Parse(batch[i%benchBatch]))
				i++
			}
		})
	}
}

func BenchmarkRewrite(b *testing.B) {
	frames := benchFrames(b)
	for _, name := range benchOrder {
		for _, partial := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/partial=%v", name, partial), func(b *testing.B) {
				b.ReportAllocs()
				batch := benchCopies(frames[name])
				p := mustParse(b, batch[0])
				p.Partial = partial
				ends := benchEndpoints(p)
				i := 0
				for b.Loop() {
					p.Rewrite(batch[i%benchBatch], &ends[i/benchBatch&1])
					i++
				}
			})
		}
	}
}

// What the packet loop does to a frame between receive and transmit.
func BenchmarkParseRewrite(b *testing.B) {
	frames := benchFrames(b)
	for _, name := range benchOrder {
		for _, detect := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/detect=%v", name, detect), func(b *testing.B) {
				b.ReportAllocs()
				batch := benchCopies(frames[name])
				var p Packet
				p.Parse(batch[0])
				ends := benchEndpoints(&p)
				i := 0
				for b.Loop() {
					frame := batch[i%benchBatch]
					if p.Parse(frame) != OK {
						b.Fatal("refused")
					}
					if detect {
						p.DetectPartial(frame)
					}
					p.Rewrite(frame, &ends[i/benchBatch&1])
					i++
				}
			})
		}
	}
}

func BenchmarkDecrementTTL(b *testing.B) {
	frame := build(b, spec{})
	p := mustParse(b, frame)
	for b.Loop() {
		p.TTL = 64
		p.DecrementTTL(frame)
	}
}

// What verifying the IPv4 header checksum costs is the first line.
func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 64, 576, 1500, 9000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			data := make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				sink += uint64(fold(sum(data, 0)))
			}
		})
	}
}

func BenchmarkBuildUnreachable(b *testing.B) {
	frames := benchFrames(b)
	dst := make([]byte, UnreachableSize)
	for _, name := range benchOrder {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			p := mustParse(b, frames[name])
			from := node4
			if p.IPv6 {
				from = node6
			}
			for b.Loop() {
				sink += uint64(BuildUnreachable(dst, frames[name], p, from))
			}
		})
	}
}

func TestNothingAllocates(t *testing.T) {
	dst := make([]byte, UnreachableSize)
	for name, frame := range benchFrames(t) {
		p := mustParse(t, frame)
		ends := benchEndpoints(p)
		from := ends[1].Dst
		for _, c := range []struct {
			name string
			do   func()
		}{
			{"Parse", func() { p.Parse(frame) }},
			{"DetectPartial", func() { p.DetectPartial(frame) }},
			{"Rewrite", func() { p.Rewrite(frame, &ends[0]) }},
			{"DecrementTTL", func() { p.TTL = 64; p.DecrementTTL(frame) }},
			{"BuildUnreachable", func() { BuildUnreachable(dst, frame, p, from) }},
		} {
			if n := testing.AllocsPerRun(100, c.do); n != 0 {
				t.Errorf("%s %s: %v allocations", name, c.name, n)
			}
		}
	}
}
