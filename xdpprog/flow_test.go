//go:build linux

package xdpprog

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/sluice-net/sluice/flowtable"
)

// The classifier's lookup is the Go one's twin: what package flowtable inserts it
// finds, in both directions, and nothing else. That holds only if the hashes are
// the same.
func TestLookupIsFlowtables(t *testing.T) {
	const flows = 5000
	r := newRig(t, func(s *Spec) { s.FlowBuckets, s.FlowRecords = flowtable.Geometry(flows) })
	r.alive(t, directSlot)
	random := rand.New(rand.NewPCG(1, 2))
	before := r.counters(t)[directSlot].Ingress
	var want Counters

	// A tuple as a frame, and what Go says of it.
	look := func(src, dst netip.AddrPort, proto layers.IPProtocol) {
		ref := r.table.Lookup(&flowtable.Tuple{
			Src: src.Addr().As16(), SrcPort: src.Port(),
			Dst: dst.Addr().As16(), DstPort: dst.Port(), Proto: uint8(proto),
		})
		reason, verdict := ReasonNotOurs, "pass"
		if ref.Record != 0 {
			reason, verdict = ReasonForward, "redirect"
			if ref.Direction == flowtable.Reply {
				reason = ReasonReply
			}
		}
		want[reason]++
		frame := packet{src: src, dst: dst, proto: proto, flags: "A"}.frame(t)
		got, _ := r.run(t, r.xdp, frame, &xdpContext{DataEnd: uint32(len(frame)), IngressIfindex: uint32(r.direct)})
		if xdpVerdicts[got] != verdict {
			t.Fatalf("%v to %v, protocol %d: %s, but Go says %v", src, dst, proto, xdpVerdicts[got], reason)
		}
	}
	address := func(v6 bool) netip.AddrPort {
		var b [16]byte
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		port := uint16(random.Uint32())
		if v6 {
			return netip.AddrPortFrom(netip.AddrFrom16(b), port)
		}
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[:4])), port)
	}
	for i := range flows {
		r.beat(r.Index(directSlot, 0), 0)
		v6, proto := i%2 == 1, tcp
		if i%4 >= 2 {
			proto = udp
		}
		client, frontend, backend := address(v6), address(v6), address(v6)
		flow := flowOf(client, frontend, backend, proto)
		source := client
		switch i % 3 {
		case 1: // another port, as after a collision
			source = netip.AddrPortFrom(client.Addr(), client.Port()^1)
		case 2: // another source, as for a hairpin
			source = address(v6)
		}
		flow.Source, flow.SourcePort = source.Addr().As16(), source.Port()
		// Neither is there yet.
		if i%10 == 0 {
			look(client, frontend, proto)
		}
		r.insert(t, flow)
		look(client, frontend, proto)
		look(backend, source, proto)
		if i%10 == 0 {
			// Near misses: one part differs.
			look(netip.AddrPortFrom(client.Addr(), client.Port()^1), frontend, proto)
			look(netip.AddrPortFrom(client.Addr().Next(), client.Port()), frontend, proto)
			look(client, netip.AddrPortFrom(frontend.Addr(), frontend.Port()^0x100), proto)
			look(client, netip.AddrPortFrom(frontend.Addr().Prev(), frontend.Port()), proto)
			look(client, frontend, tcp+udp-proto)
			look(frontend, client, proto) // the other way round
			look(source, backend, proto)
		}
	}
	got := r.counters(t)[directSlot].Ingress
	for reason := range got {
		if n := got[reason] - before[reason]; n != want[reason] {
			t.Errorf("%s: %d frames, want %d", Reason(reason), n, want[reason])
		}
	}
	if want[ReasonForward] < flows || want[ReasonReply] < flows || want[ReasonNotOurs] < 4000 {
		t.Errorf("too easy: %d forward, %d reply, %d misses", want[ReasonForward], want[ReasonReply], want[ReasonNotOurs])
	}
	t.Logf("%d forward, %d reply, %d misses", want[ReasonForward], want[ReasonReply], want[ReasonNotOurs])
}

// Both buckets of a tuple are looked at, also where the hash names the same twice.
func TestLookupInTwoBuckets(t *testing.T) {
	r := newRig(t, func(s *Spec) { s.FlowBuckets, s.FlowRecords = 2, 8 })
	r.alive(t, directSlot)
	for i := range 7 {
		client := netip.AddrPortFrom(client4.Addr(), uint16(1000+i))
		r.insert(t, flowOf(client, frontend4, backend4, tcp))
	}
	for i := range 7 {
		client := netip.AddrPortFrom(client4.Addr(), uint16(1000+i))
		if got := r.ingress(t, packet{src: client, flags: "A"}.frame(t), r.direct, 0); got.Reason != ReasonForward {
			t.Errorf("flow %d, forward: %v", i, got)
		}
		if got := r.ingress(t, packet{src: backend4, dst: client, flags: "A"}.frame(t), r.direct, 0); got.Reason != ReasonReply {
			t.Errorf("flow %d, reply: %v", i, got)
		}
	}
}

// A cell is a hint: what it names is compared in full, and damage is no flow.
func TestCellsAreOnlyHints(t *testing.T) {
	r := newRig(t, nil)
	r.alive(t, directSlot)
	r.insert(t, flowOf(known4, frontend4, backend4, tcp))
	ref := r.table.Lookup(&flowtable.Tuple{
		Src: known4.Addr().As16(), Dst: frontend4.Addr().As16(), SrcPort: known4.Port(), DstPort: frontend4.Port(), Proto: uint8(tcp),
	})

	// Where the cells of another tuple would be, and their tag.
	stranger := flowtable.Tuple{Src: client4.Addr().As16(), Dst: gone4.Addr().As16(), SrcPort: client4.Port(), DstPort: gone4.Port(), Proto: uint8(tcp)}
	h := r.table.Hash(&stranger)
	n := uint64(len(r.FlowIndex()) / flowtable.BucketSize)
	tag := h * 0x9e3779b97f4a7c15 >> 33
	first := h << 32 >> 32 * n >> 32
	buckets := []uint64{first, (first + 1 + h>>32*(n-1)>>32) % n}
	// Another tuple of the known flow, for its own cell with the wrong direction.
	frame := packet{src: client4, dst: gone4, flags: "A"}.frame(t)

	for _, record := range []uint32{0, ref.Record, ref.Record + 1, uint32(len(r.FlowRecords())/flowtable.RecordSize) - 1,
		uint32(len(r.FlowRecords()) / flowtable.RecordSize), 1 << 31, 1<<32 - 1} {
		for _, direction := range []uint64{0, 1} {
			for _, bucket := range buckets {
				t.Run(fmt.Sprintf("record %d direction %d bucket %d", record, direction, bucket), func(t *testing.T) {
					cell := r.FlowIndex()[bucket*flowtable.BucketSize+7*8:][:8]
					binary.NativeEndian.PutUint64(cell, tag<<33|direction<<32|uint64(record))
					defer clear(cell)
					if got, want := r.ingress(t, frame, r.direct, 0), (outcome{"pass", directSlot, ReasonNotOurs}); got != want {
						t.Errorf("got %v, want %v", got, want)
					}
				})
			}
		}
	}

	// The known tuple, but its cell says that it is a reply.
	for i := 0; i < len(r.FlowIndex()); i += 8 {
		cell := r.FlowIndex()[i:][:8]
		if v := binary.NativeEndian.Uint64(cell); uint32(v) == ref.Record {
			binary.NativeEndian.PutUint64(cell, v^1<<32)
		}
	}
	if got := r.ingress(t, packet{src: known4, flags: "A"}.frame(t), r.direct, 0); got.Reason != ReasonKernelTCP {
		t.Errorf("forward frame with a cell for replies: %v", got)
	}
	if got := r.ingress(t, packet{src: backend4, dst: known4, flags: "A"}.frame(t), r.direct, 0); got.Reason != ReasonNotOurs {
		t.Errorf("reply with a cell for forward frames: %v", got)
	}
}

// Memory that no table was made in holds no flow.
func TestLookupInUnformattedTable(t *testing.T) {
	r := newRig(t, nil)
	r.alive(t, directSlot)
	clear(r.FlowIndex())
	clear(r.FlowRecords())
	for _, p := range []packet{{dst: backend4}, {dst: backend6}} {
		if got := r.ingress(t, p.frame(t), r.direct, 0); got.Reason != ReasonNotOurs {
			t.Errorf("got %v", got)
		}
	}
}

// A removed flow is not found any more.
func TestRemovedFlow(t *testing.T) {
	r := newRig(t, nil)
	r.alive(t, directSlot)
	flow := flowOf(known4, frontend4, backend4, tcp)
	ref, _ := r.table.Insert(&flow, 0)
	frame := packet{src: backend4, dst: known4, flags: "A"}.frame(t)
	if got := r.ingress(t, frame, r.direct, 0); got.Reason != ReasonReply {
		t.Fatalf("got %v", got)
	}
	r.table.Remove(ref.Record)
	if got := r.ingress(t, frame, r.direct, 0); got.Reason != ReasonNotOurs {
		t.Errorf("removed: %v", got)
	}
}
