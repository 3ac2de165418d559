package nat

import (
	"fmt"
	"maps"
	"slices"
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

func BenchmarkBuild(b *testing.B) {
	frames := benchFrames(b)
	dst := make([]byte, UnreachableSize)
	for _, c := range []struct {
		name  string
		build func(frame []byte, p *Packet, from [16]byte) int
	}{
		{"unreachable", func(frame []byte, p *Packet, from [16]byte) int { return BuildUnreachable(dst, frame, p, from) }},
		{"time exceeded", func(frame []byte, p *Packet, from [16]byte) int { return BuildTimeExceeded(dst, frame, p, from) }},
		{"too big", func(frame []byte, p *Packet, from [16]byte) int { return BuildTooBig(dst, frame, p, from, 1300) }},
		{"reset", func(frame []byte, p *Packet, from [16]byte) int { return BuildReset(dst, frame, p) }},
	} {
		for _, name := range []string{"tcp4", "tcp6"} {
			b.Run(c.name+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				p := mustParse(b, frames[name])
				from := node4
				if p.IPv6 {
					from = node6
				}
				for b.Loop() {
					sink += uint64(c.build(frames[name], p, from))
				}
			})
		}
	}
}

// benchErrors are errors that quote all they can of a large packet, and eight bytes.
func benchErrors(tb testing.TB) map[string][]byte {
	all := map[string][]byte{}
	for name, c := range map[string]errorCase{
		"icmp/8":     {packet: spec{payload: make([]byte, 1400)}, to: forward4, kind: 3, code: 4, info: 1280, cut: 8},
		"icmp/548":   {packet: spec{payload: make([]byte, 1400)}, to: forward4, kind: 3, code: 4, info: 1280, cut: 528},
		"icmp6/8":    {packet: spec{ipv6: true, payload: make([]byte, 1400)}, to: forward6, kind: 2, info: 1280, cut: 8},
		"icmp6/1232": {packet: spec{ipv6: true, payload: make([]byte, 1400)}, to: forward6, kind: 2, info: 1280, cut: 1192},
	} {
		all[name], _ = c.frames(tb, nil)
	}
	return all
}

func benchFragments(tb testing.TB) map[string][]byte {
	udp4, udp6 := spec{udp: true, payload: make([]byte, 1600)}, spec{ipv6: true, udp: true, payload: make([]byte, 1600)}
	a, b := fragments(tb, build(tb, udp4), 1480, 1, 0), fragments(tb, build(tb, udp6), 1448, 1, 0)
	return map[string][]byte{"first/udp4": a[0], "later/udp4": a[1], "first/udp6": b[0], "later/udp6": b[1]}
}

func benchSCTP(tb testing.TB) map[string][]byte {
	return map[string][]byte{
		"init":  build(tb, spec{sctp: true}),
		"data":  build(tb, spec{sctp: true, payload: chunk(0, 1400)}),
		"init6": build(tb, spec{sctp: true, ipv6: true}),
	}
}

// backAndForth gives the two endpoints between which a benchmark moves.
func backAndForth(from Endpoints, ipv6 bool) [2]Endpoints {
	to := hairpin4
	if ipv6 {
		to = hairpin6
	}
	return [2]Endpoints{to, from}
}

func rewriteError(frame []byte, i int, ends *[2]Endpoints) {
	var p Packet
	var q Quote
	p.Parse(frame)
	if q.Parse(frame, &p) == OK {
		to := &ends[i&1]
		p.RewriteError(frame, &q, &to.Dst, &to.Src, to)
		sink++
	}
}

func rewriteFragment(frame []byte, i int, ends *[2]Endpoints) {
	var p Packet
	var f Piece
	p.Parse(frame)
	if f.Parse(frame, &p) == OK && p.RewriteFragment(frame, &f, &ends[i&1]) {
		sink++
	}
}

func rewriteSCTP(frame []byte, i int, ends *[2]Endpoints) {
	var p Packet
	p.Parse(frame)
	if p.ParseSCTP(frame) == OK {
		p.Rewrite(frame, &ends[i&1])
		sink++
	}
}

// Parse, parse further, rewrite: all of what each kind of frame costs.
var benchFurther = []struct {
	name   string
	frames func(testing.TB) map[string][]byte
	do     func(frame []byte, i int, ends *[2]Endpoints)
}{
	{"Error", benchErrors, rewriteError},
	{"Fragment", benchFragments, rewriteFragment},
	{"SCTP", benchSCTP, rewriteSCTP},
}

func BenchmarkFurther(b *testing.B) {
	for _, c := range benchFurther {
		frames := c.frames(b)
		for _, name := range slices.Sorted(maps.Keys(frames)) {
			b.Run(c.name+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				batch := benchCopies(frames[name])
				ends := furtherEnds(frames[name])
				i, before := 0, sink
				for b.Loop() {
					c.do(batch[i%benchBatch], i/benchBatch, &ends)
					i++
				}
				if sink-before != uint64(i) {
					b.Fatalf("%d of %d were rewritten", sink-before, i)
				}
			})
		}
	}
}

// furtherEnds are endpoints for a frame that Parse leaves to others.
func furtherEnds(frame []byte) [2]Endpoints {
	var p Packet
	p.Parse(frame)
	return backAndForth(Endpoints{p.Dst, p.Src, frontendPort, clientPort}, p.IPv6)
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
			{"Complete", func() { p.DetectPartial(frame); p.Complete(frame) }},
			{"Rewrite", func() { p.Rewrite(frame, &ends[0]) }},
			{"DecrementTTL", func() { p.TTL = 64; p.DecrementTTL(frame) }},
			{"BuildUnreachable", func() { BuildUnreachable(dst, frame, p, from) }},
			{"BuildTimeExceeded", func() { BuildTimeExceeded(dst, frame, p, from) }},
			{"BuildTooBig", func() { BuildTooBig(dst, frame, p, from, 1300) }},
			{"BuildReset", func() { BuildReset(dst, frame, p) }},
		} {
			if n := testing.AllocsPerRun(100, c.do); n != 0 {
				t.Errorf("%s %s: %v allocations", name, c.name, n)
			}
		}
	}
	for _, c := range benchFurther {
		for name, frame := range c.frames(t) {
			ends := furtherEnds(frame)
			i, before := 0, sink
			if n := testing.AllocsPerRun(100, func() { c.do(frame, i, &ends); i++ }); n != 0 {
				t.Errorf("%s %s: %v allocations", c.name, name, n)
			}
			if sink-before != uint64(i) {
				t.Errorf("%s %s: %d of %d were rewritten", c.name, name, sink-before, i)
			}
		}
	}
}
