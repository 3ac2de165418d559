//go:build linux

package xdpprog

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/internal/netlab"
)

// BenchmarkClassifier measures one run of the XDP program in the kernel, by what it
// decides. The first is the price of the measurement.
func BenchmarkClassifier(b *testing.B) {
	const flows = 1 << 14
	r := newRig(b, func(s *Spec) { s.FlowBuckets, s.FlowRecords = flowtable.Geometry(flows) })
	for i := range flows - 8 {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 64 + byte(i>>8), byte(i)}), 1000)
		r.insert(b, flowOf(client, frontend4, backend4, tcp))
	}
	r.insertKnown(b)
	// Without a context the frame comes from the loopback.
	if err := r.SetPort(ifindexLoopback, 0, 0); err != nil {
		b.Fatal(err)
	}
	r.socket(b, 0)
	elsewhere4 := netip.AddrPortFrom(netlab.PodAddr(netlab.IPv4, 1, 77), 8080)
	if err := r.UpdateBackends([][16]byte{backend4.Addr().As16(), backend6.Addr().As16()}, nil); err != nil {
		b.Fatal(err)
	}
	for _, bb := range []struct {
		packet
		want Reason
	}{
		{packet{edit: put8(0, 0x65)}, ReasonBadHeader},
		{packet{dst: elsewhere4, flags: "A"}, ReasonNotOurs},
		{packet{dst: backend4, flags: "A"}, ReasonNotOurs}, // it claims its tuple
		{packet{dst: backend6, flags: "A"}, ReasonNotOurs},
		{packet{dst: backend4, proto: udp}, ReasonNotOurs},
		{packet{src: known4, flags: "A"}, ReasonForward},
		{packet{src: backend4, dst: known4, flags: "A"}, ReasonReply},
		{packet{src: known6, dst: frontend6, flags: "A"}, ReasonForward},
		{packet{}, ReasonNew},
		{packet{flags: "A"}, ReasonKernelTCP},
		{packet{proto: udp}, ReasonNew},
	} {
		family := 4
		if bb.dst.IsValid() && bb.dst.Addr().Is6() {
			family = 6
		}
		proto := "tcp"
		if bb.proto == udp {
			proto = "udp"
		}
		b.Run(fmt.Sprintf("%v-%s%d", bb.want, proto, family), func(b *testing.B) {
			const repeat = 10_000
			frame := bb.frame(b)
			var total time.Duration
			best := time.Hour // what a busy machine cannot blur
			runs := 0
			before := r.counters(b)[0].Ingress[bb.want]
			for b.Loop() {
				r.beat(0, 0)
				if err := r.ns.Do(func() error {
					_, each, err := r.xdp.Benchmark(frame, repeat, nil)
					total += each
					best = min(best, each)
					return err
				}); err != nil {
					b.Fatal(err)
				}
				runs++
			}
			if n := r.counters(b)[0].Ingress[bb.want] - before; n < uint64(runs*repeat) {
				b.Errorf("%d of %d frames were %v", n, runs*repeat, bb.want)
			}
			b.ReportMetric(float64(total.Nanoseconds())/float64(runs), "ns/frame")
			b.ReportMetric(float64(best.Nanoseconds()), "best-ns/frame")
			b.ReportMetric(0, "ns/op")
		})
	}
}
