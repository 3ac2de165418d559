package dataplane

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-net/sluice/dataplane/xsk"
	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/internal/netlab"
	"github.com/sluice-net/sluice/nat"
	"github.com/sluice-net/sluice/service"
)

// A rig is a worker without sockets: the user side of the packet loop over a
// umem and a flow table in plain memory, with a client port, a backend port and
// a return port.
type rig struct {
	*worker
	client, backend *port
}

const (
	clientPort  = 2 // ifindexes
	backendPort = 3
)

var (
	rigClient  = netlab.PodAddr(netlab.IPv4, 1, 1)
	rigBackend = netlab.PodAddr(netlab.IPv4, 1, 2)
	rigVIP     = netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 1), 80)
)

func newRig(tb testing.TB, flows int) *rig {
	tb.Helper()
	buckets, records := flowtable.Geometry(max(flows, 64))
	index, recs := make([]byte, buckets*64), make([]byte, records*128)
	if err := flowtable.Format(index, recs, [2]uint64{1, 2}); err != nil {
		tb.Fatal(err)
	}
	table, _, err := flowtable.Open(index, recs, flowtable.Timeouts{})
	if err != nil {
		tb.Fatal(err)
	}
	umem, err := xsk.NewUmem(xsk.UmemConfig{Frames: 2048})
	if err != nil {
		tb.Fatal(err)
	}
	clock, err := newClock()
	if err != nil {
		tb.Fatal(err)
	}
	up := uint32(unix.IFF_UP | unix.IFF_RUNNING)
	var links []netlink.Link
	var routes []netlink.Route
	var neighs []netlink.Neigh
	for i, a := range map[int]netip.Addr{clientPort: rigClient, backendPort: rigBackend} {
		links = append(links, &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: i, RawFlags: up, MTU: 1500, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}}})
		routes = append(routes, unicast(unix.AF_INET, netip.PrefixFrom(a, 32).String(), i))
		neighs = append(neighs, netlink.Neigh{LinkIndex: i, IP: a.AsSlice(), State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}})
	}
	// Any client in the pod subnet is behind the client's port.
	routes = append(routes, unicast(unix.AF_INET, "198.18.0.0/16", clientPort))
	r := &rig{client: &port{slot: 1, ifindex: clientPort}, backend: &port{slot: 2, ifindex: backendPort}}
	e := testEgress(newFIB(links, nil, routes, neighs), r.client, r.backend)
	e.adj = newAdjacencies(1 << 17)
	d := &Dataplane{cfg: Config{}.withDefaults(), log: slog.New(slog.DiscardHandler), clock: clock, table: table, umem: umem, egress: e,
		returnPort: &port{returns: true, ifindex: 9}, errorLimit: newErrorLimit(defaultErrorRates), claims: make([]atomic.Uint64, 1<<12)}
	svc, eps := testService{name: "s", number: 1, port: 80, backends: []netip.AddrPort{netip.AddrPortFrom(rigBackend, 8080)}}.objects()
	snapshot, _ := service.Build(&service.Config{}, nil, []*corev1.Service{svc}, eps)
	r.worker = newWorker(d, 0)
	r.snapshot = snapshot
	r.cache = umem.Pool().NewCache()
	r.in = &queue{port: r.client}
	r.ports = newPortSet([]*port{d.returnPort, r.client, r.backend})
	for _, p := range r.ports.all {
		p.out = make([]outbox, 1)
	}
	r.tick = flowtable.TickOf(clock.now())
	tb.Cleanup(func() { r.cache.Close(); umem.Close() })
	return r
}

// flowClient is the client's address and port of the n-th flow.
func flowClient(n int) netip.AddrPort {
	client := rigClient.As4()
	client[2], client[3] = byte(8+n>>22), byte(1+n%251)
	return netip.AddrPortFrom(netip.AddrFrom4(client), uint16(1024+n/251))
}

// udpFrame is a client's frame of the n-th flow.
func udpFrame(tb testing.TB, n int) []byte { return udpFromTo(tb, flowClient(n), rigVIP) }

// udpFromTo is a frame of 64 bytes.
func udpFromTo(tb testing.TB, src, dst netip.AddrPort) []byte {
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	udp := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
	udp.SetNetworkLayerForChecksum(ip)
	return serialize(tb, &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 1, 1, 1, 1, 1}, DstMAC: net.HardwareAddr{2, 2, 2, 2, 2, 2}, EthernetType: layers.EthernetTypeIPv4}, ip, udp, gopacket.Payload(make([]byte, 22)))
}

func serialize(tb testing.TB, l ...gopacket.SerializableLayer) []byte {
	tb.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

// load puts frames into the batch as the receive stage would.
func (r *rig) load(frames [][]byte) {
	b := &r.b
	b.n = len(frames)
	for i, f := range frames {
		addr := r.d.umem.Payload(uint64(i * r.d.umem.FrameSize()))
		b.descs[i] = xsk.Desc{Addr: addr, Len: uint32(len(f))}
		copy(r.d.umem.Frame(addr, uint32(len(f))), f)
	}
}

// sent takes what the outboxes hold for a port.
func (r *rig) sent(p *port) (frames [][]byte) {
	o := &p.out[r.id]
	for _, d := range o.descs[:o.n] {
		frames = append(frames, r.d.umem.Frame(d.Addr, d.Len))
	}
	return frames
}

// clear forgets the outboxes.
func (r *rig) clear() {
	for _, p := range r.touched {
		p.out[r.id].n = 0
	}
	r.touched = r.touched[:0]
}

// TestProcessAllocatesNothing covers known flows, first frames of new flows,
// rejects, returned and dropped frames.
func TestProcessAllocatesNothing(t *testing.T) {
	r := newRig(t, 4096)
	known := make([][]byte, 32)
	for i := range known {
		known[i] = udpFrame(t, i)
	}
	r.load(known)
	r.process()
	r.clear()
	next := len(known)
	fresh := make([][]byte, 2000)
	for i := range fresh {
		// New flows of clients that are known.
		fresh[i] = udpFrame(t, i%len(known)+251*(1+i/len(known)))
	}
	unknownPort := udpFromTo(t, flowClient(0), netip.AddrPortFrom(rigVIP.Addr(), 81))
	spoofed := udpFromTo(t, netip.AddrPortFrom(netlab.OutsideAddr(netlab.IPv4, 9), 1024), rigVIP)
	short := known[0][:20]
	frames := make([][]byte, 0, batchSize)
	got := testing.AllocsPerRun(50, func() {
		frames = append(frames[:0], known...)
		frames = append(frames, fresh[next:next+8]...)
		next += 8
		frames = append(frames, unknownPort, spoofed, short)
		r.load(frames)
		r.process()
		r.clear()
	})
	if got != 0 {
		t.Errorf("a batch of every kind: %v allocations, want 0", got)
	}
	for _, c := range []struct {
		reason Reason
		least  uint64
	}{{ForwardDirect, 51 * 40}, {UnknownPort, 6}, {RejectLimited, 40}, {SpoofedSource, 51}, {unparsed(nat.Truncated), 51}} {
		if r.counts[c.reason] < c.least {
			t.Errorf("%s: %d frames, want at least %d", c.reason, r.counts[c.reason], c.least)
		}
	}
}

// TestTaggedFrameOfAKnownFlow: a frame of another VLAN is from somebody else, though its
// addresses and ports are those of a flow of the port's own network.
func TestTaggedFrameOfAKnownFlow(t *testing.T) {
	r := newRig(t, 64)
	frame := udpFrame(t, 0)
	tag := func(id byte) []byte { return slices.Concat(frame[:12], []byte{0x81, 0, 0, id}, frame[12:]) }
	for _, c := range []struct {
		frame  []byte
		reason Reason
	}{{frame, ForwardDirect}, {tag(0), ForwardDirect}, {tag(100), SpoofedSource}} {
		was := r.counts[c.reason]
		r.load([][]byte{c.frame})
		r.process()
		r.clear()
		if r.counts[c.reason] != was+1 {
			t.Errorf("%x: not %s", c.frame[12:18], c.reason)
		}
	}
}

// TestSCTP: an association's first packet, with its checksum and with the zero that
// veth senders leave, gets a new checksum with its new port.
func TestSCTP(t *testing.T) {
	for _, partial := range []bool{false, true} {
		r := newRig(t, 64)
		r.client.partial = partial
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolSCTP, SrcIP: flowClient(0).Addr().AsSlice(), DstIP: rigVIP.Addr().AsSlice()}
		init := &layers.SCTPInit{
			SCTPChunk:   layers.SCTPChunk{Type: layers.SCTPChunkTypeInit, Length: 20},
			InitiateTag: 7, AdvertisedReceiverWindowCredit: 4096, OutboundStreams: 1, InboundStreams: 1, InitialTSN: 1,
		}
		frame := serialize(t, &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 1, 1, 1, 1, 1}, DstMAC: net.HardwareAddr{2, 2, 2, 2, 2, 2}, EthernetType: layers.EthernetTypeIPv4},
			ip, &layers.SCTP{SrcPort: 5000, DstPort: layers.SCTPPort(rigVIP.Port())}, init)
		if partial {
			clear(frame[14+20+8 : 14+20+12])
		}
		r.load([][]byte{frame})
		r.process()
		out := r.sent(r.backend)
		if len(out) != 1 {
			t.Fatalf("partial %v: sent %d frames, want 1; counts %v", partial, len(out), r.counts)
		}
		p := gopacket.NewPacket(out[0], layers.LayerTypeEthernet, gopacket.Default)
		s, _ := p.Layer(layers.LayerTypeSCTP).(*layers.SCTP)
		if s == nil || s.DstPort != 8080 || s.SrcPort != 5000 {
			t.Errorf("partial %v: got %v", partial, p)
		}
		if err := netlab.VerifyChecksums(&netlab.Frame{Data: out[0]}); err != nil {
			t.Errorf("partial %v: %v", partial, err)
		}
	}
}

// TestFramesForAnotherStation: what a switch floods is not forwarded by us.
func TestFramesForAnotherStation(t *testing.T) {
	for _, c := range []struct {
		mac  []byte
		want Reason
	}{{[]byte{2, 2, 2, 2, 2, 2}, ForwardDirect}, {[]byte{2, 2, 2, 2, 2, 3}, OtherHost}, {[]byte{0, 2, 2, 2, 2, 2}, OtherHost}} {
		r := newRig(t, 64)
		r.client.hw.Store(stationOf(c.mac))
		r.load([][]byte{udpFrame(t, 1)}) // to 02:02:02:02:02:02
		r.process()
		if r.counts[c.want] != 1 {
			t.Errorf("station %x: %d frames ended as %s, want 1", c.mac, r.counts[c.want], c.want)
		}
	}
}

// TestTranslatedFrameLeavesAsItShould looks at the bytes of one frame.
func TestTranslatedFrameLeavesAsItShould(t *testing.T) {
	r := newRig(t, 64)
	r.load([][]byte{append(udpFrame(t, 7), make([]byte, 9)...)}) // with padding
	r.process()
	out := r.sent(r.backend)
	if len(out) != 1 {
		t.Fatalf("sent %d frames to the backend's port, want 1; counts %v", len(out), r.counts)
	}
	p := gopacket.NewPacket(out[0], layers.LayerTypeEthernet, gopacket.Default)
	eth := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	ip := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	udp := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	want := fmt.Sprintf("02:00:00:00:00:03>02:00:00:00:01:03 198.18.8.8:1024>%s:8080 ttl 63 64 bytes", rigBackend)
	got := fmt.Sprintf("%s>%s %s:%d>%s:%d ttl %d %d bytes", eth.SrcMAC, eth.DstMAC, ip.SrcIP, udp.SrcPort, ip.DstIP, udp.DstPort, ip.TTL, len(out[0]))
	if got != want {
		t.Errorf("forward frame: got %s, want %s", got, want)
	}
	if err := netlab.VerifyChecksums(&netlab.Frame{Data: out[0]}); err != nil {
		t.Errorf("forward frame: %v", err)
	}
}

// TestReasonsAreExhaustive: every reason has a word of its own and a verdict.
func TestReasonsAreExhaustive(t *testing.T) {
	words := map[string]bool{}
	for r := range Reason(numReasons) {
		w := r.String()
		if w == "" || words[w] {
			t.Errorf("reason %d: word %q is empty or taken", r, w)
		}
		words[w] = true
		if v := r.Verdict(); v >= numVerdicts {
			t.Errorf("reason %s: verdict %d", w, v)
		}
	}
	if numReasons > 256 {
		t.Errorf("%d reasons do not fit a byte", numReasons)
	}
}

// threadTime is the processor time that this thread has used.
func threadTime(tb testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkUserSide is the whole user-side path of a 64-byte frame, from its
// descriptor in the receive ring to its descriptor in an outbox: parse, lookup,
// rewrite, egress, in batches of 64. The copy of the frame into the umem, which
// the kernel does in life, is measured apart (copy-ns) and taken off; ns/op has it.
func BenchmarkUserSide(b *testing.B) {
	for _, flows := range []int{1, 1000, 64000} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			r := newRig(b, flows)
			// The frames of all flows, one after the other in memory, so that
			// reading them is as cheap as it can be.
			size := len(udpFrame(b, 0))
			frames := make([]byte, 0, flows*size)
			for i := range flows {
				frames = append(frames, udpFrame(b, i)...)
			}
			batch := make([][]byte, batchSize)
			at := 0
			fill := func() {
				for i := range batch {
					batch[i] = frames[at : at+size]
					if at += size; at == len(frames) {
						at = 0
					}
				}
				r.load(batch)
			}
			turn := func() {
				fill()
				r.process()
				r.clear()
			}
			for range flows/batchSize + 1 {
				turn() // inserts the flows
			}
			if r.d.table.Stats().Flows != flows {
				b.Fatalf("%d flows in the table, want %d", r.d.table.Stats().Flows, flows)
			}
			b.ReportAllocs()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			// The kernel's part, which is to copy the frames in.
			const copies = 50000
			began := threadTime(b)
			for range copies {
				fill()
			}
			kernels := float64(threadTime(b)-began) / copies / batchSize
			began = threadTime(b)
			for b.Loop() {
				turn()
			}
			// What the thread itself used: less at the mercy of neighbours.
			used := float64(threadTime(b)-began) / float64(b.N) / batchSize
			b.ReportMetric(used-kernels, "cpu-ns/frame")
			b.ReportMetric(kernels, "copy-ns/frame")
			if want := uint64(b.N) * batchSize; r.counts[ForwardDirect] < want {
				b.Fatalf("%d frames sent, want at least %d", r.counts[ForwardDirect], want)
			}
		})
	}
}
