//go:build linux

package xdpprog

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/internal/netlab"
)

// A packet is what frames of the tests are built from. What is left out is an
// ordinary TCP SYN over IPv4 from client4 to frontend4.
type packet struct {
	src, dst   netip.AddrPort
	proto      layers.IPProtocol // TCP
	flags      string            // of TCP: "S"; of "SAFRPUEC"
	vlans      []layers.EthernetType
	options    []layers.IPv4Option
	extensions []extension // IPv6
	l4         []byte      // instead of TCP and UDP
	payload    int
	padding    int
	dmac       net.HardwareAddr
	edit       func(l3 []byte) // after all lengths and checksums
	etherType  layers.EthernetType
}

type extension struct {
	proto layers.IPProtocol
	bytes []byte // its first byte, the next header, is filled in
}

// An extension header of 8*words bytes.
func ext(proto layers.IPProtocol, words int) extension {
	b := make([]byte, 8*words)
	b[1] = byte(words - 1)
	b[2], b[3] = 1, byte(min(len(b)-4, 255)) // PadN
	if proto == layers.IPProtocolIPv6Routing {
		b[2], b[3] = 0, 0 // no segments left
	}
	return extension{proto, b}
}

var (
	client4   = netip.AddrPortFrom(netlab.PodAddr(netlab.IPv4, 1, 1), 40000)
	client6   = netip.AddrPortFrom(netlab.PodAddr(netlab.IPv6, 1, 1), 40000)
	backend4  = netip.AddrPortFrom(netlab.PodAddr(netlab.IPv4, 1, 2), 8080)
	backend6  = netip.AddrPortFrom(netlab.PodAddr(netlab.IPv6, 1, 2), 8080)
	frontend4 = netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 1), 80)
	frontend6 = netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv6, 1), 80)
	source4   = netip.AddrPortFrom(netlab.NodeAddr(netlab.IPv4, 9), 50000)
	source6   = netip.AddrPortFrom(netlab.NodeAddr(netlab.IPv6, 9), 50000)
)

func (p packet) frame(t testing.TB) []byte {
	t.Helper()
	if !p.dst.IsValid() {
		p.dst = frontend4
		if p.src.IsValid() && p.src.Addr().Is6() {
			p.dst = frontend6
		}
	}
	if !p.src.IsValid() {
		p.src = client4
		if p.dst.Addr().Is6() {
			p.src = client6
		}
	}
	if p.proto == 0 && p.l4 == nil {
		p.proto = layers.IPProtocolTCP
	}
	if p.flags == "" {
		p.flags = "S"
	}
	if p.dmac == nil {
		p.dmac = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	}
	v6 := p.dst.Addr().Is6()
	if p.etherType == 0 {
		p.etherType = layers.EthernetTypeIPv4
		if v6 {
			p.etherType = layers.EthernetTypeIPv6
		}
	}

	var stack []gopacket.SerializableLayer
	types := append(p.vlans, p.etherType)
	// By hand, since gopacket's layer pads.
	ethernet := binary.BigEndian.AppendUint16(append(append([]byte{}, p.dmac...), 2, 0, 0, 0, 0, 2), uint16(types[0]))
	l3 := 14
	for i, next := range types[1:] {
		stack = append(stack, &layers.Dot1Q{VLANIdentifier: uint16(i + 1), Type: next})
		l3 += 4
	}
	var network gopacket.NetworkLayer
	if v6 {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: p.proto, SrcIP: p.src.Addr().AsSlice(), DstIP: p.dst.Addr().AsSlice()}
		network = ip
		stack = append(stack, ip)
		for i, e := range p.extensions {
			if i == 0 {
				ip.NextHeader = e.proto
			}
			b := append([]byte(nil), e.bytes...)
			b[0] = byte(p.proto)
			if i+1 < len(p.extensions) {
				b[0] = byte(p.extensions[i+1].proto)
			}
			stack = append(stack, gopacket.Payload(b))
		}
	} else {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: p.proto, SrcIP: p.src.Addr().AsSlice(), DstIP: p.dst.Addr().AsSlice(), Options: p.options}
		network = ip
		stack = append(stack, ip)
	}
	switch {
	case p.l4 != nil:
		stack = append(stack, gopacket.Payload(p.l4))
	case p.proto == layers.IPProtocolTCP:
		has := func(f string) bool { return strings.Contains(p.flags, f) }
		tcp := &layers.TCP{
			SrcPort: layers.TCPPort(p.src.Port()), DstPort: layers.TCPPort(p.dst.Port()), Window: 1024,
			SYN: has("S"), ACK: has("A"), FIN: has("F"), RST: has("R"), PSH: has("P"), URG: has("U"), ECE: has("E"), CWR: has("C"),
		}
		if err := tcp.SetNetworkLayerForChecksum(network); err != nil {
			t.Fatal(err)
		}
		stack = append(stack, tcp)
	case p.proto == layers.IPProtocolUDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(p.src.Port()), DstPort: layers.UDPPort(p.dst.Port())}
		if err := udp.SetNetworkLayerForChecksum(network); err != nil {
			t.Fatal(err)
		}
		stack = append(stack, udp)
	}
	stack = append(stack, gopacket.Payload(make([]byte, p.payload)))

	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		t.Fatal(err)
	}
	frame := append(ethernet, buf.Bytes()...)
	if p.edit != nil {
		p.edit(frame[l3:])
	}
	frame = append(frame, make([]byte, p.padding)...)
	return frame
}

// A flow of the tests, and the frames of its two directions.
func flowOf(client, frontend, backend netip.AddrPort, proto layers.IPProtocol) flowtable.Flow {
	return flowtable.Flow{
		Client: client.Addr().As16(), ClientPort: client.Port(),
		Frontend: frontend.Addr().As16(), FrontendPort: frontend.Port(),
		Backend: backend.Addr().As16(), BackendPort: backend.Port(),
		Proto: uint8(proto),
	}
}

// A rig is a loaded classifier in a namespace of its own, with these ports:
//
//	direct   slot 3, device "port" of two queues, of which Spec.Queues are known
//	return   slot 1, device "inner"; its outer end is "outer"
//	unknown  device "stranger"
type rig struct {
	*Objects
	ns    *netlab.Namespace
	table *flowtable.Table

	direct, inner, outer, stranger int // ifindex
}

const (
	directSlot = 3
	returnSlot = 1
	rigSlots   = 4
)

// The rig's times, so that a slow machine cannot blur them.
const (
	rigStale = 10 * time.Second
	rigHold  = 100 * time.Second
)

func newRig(t testing.TB, edit func(*Spec)) *rig {
	t.Helper()
	netlab.RequireRoot(t)
	lab := netlab.New(t)
	r := &rig{ns: lab.Namespace("node")}
	lab.Veth(r.ns, "port", r.ns, "peer", netlab.VethOptions{Queues: 2})
	lab.Veth(r.ns, "inner", r.ns, "outer", netlab.VethOptions{})
	lab.Veth(r.ns, "stranger", r.ns, "danger", netlab.VethOptions{})
	r.direct, r.inner, r.outer, r.stranger = r.ns.Index("port"), r.ns.Index("inner"), r.ns.Index("outer"), r.ns.Index("stranger")
	r.load(t, edit)
	return r
}

func (r *rig) load(t testing.TB, edit func(*Spec)) {
	t.Helper()
	spec := Spec{
		Slots: rigSlots, Queues: 1, MaxAddresses: 16,
		StaleAfter: rigStale, HoldFor: rigHold,
		OuterIfindex: r.outer, ReturnSlot: returnSlot,
	}
	spec.FlowBuckets, spec.FlowRecords = flowtable.Geometry(64)
	if edit != nil {
		edit(&spec)
	}
	var err error
	if r.Objects, err = Load(spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := flowtable.Format(r.FlowIndex(), r.FlowRecords(), [2]uint64{0x0706050403020100, 0x0f0e0d0c0b0a0908}); err != nil {
		t.Fatal(err)
	}
	if r.table, _, err = flowtable.Open(r.FlowIndex(), r.FlowRecords(), flowtable.Timeouts{}); err != nil {
		t.Fatal(err)
	}
	if err := r.SetPort(r.direct, directSlot, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.SetPort(r.inner, returnSlot, ReturnPort); err != nil {
		t.Fatal(err)
	}
	if err := r.UpdateAddresses([][16]byte{frontend4.Addr().As16(), frontend6.Addr().As16()}, nil); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) insert(t testing.TB, f flowtable.Flow) {
	t.Helper()
	if _, result := r.table.Insert(&f, 0); result != flowtable.Inserted {
		t.Fatalf("inserting %+v: %v", f, result)
	}
}

// beat makes the worker of an index last beat so long ago; negative: in the future.
func (r *rig) beat(index int, ago time.Duration) {
	binary.NativeEndian.PutUint64(r.BeatsMemory()[8*index:], monotonic()-uint64(ago))
}

func monotonic() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return uint64(ts.Nano())
}

// socket puts an AF_XDP socket into the map. It need not be bound for that.
func (r *rig) socket(t testing.TB, index int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := r.SetSocket(index, fd); err != nil {
		t.Fatal(err)
	}
}

// alive makes a slot one that a daemon serves.
func (r *rig) alive(t testing.TB, slot int) {
	t.Helper()
	r.socket(t, r.Index(slot, 0))
	r.beat(r.Index(slot, 0), 0)
}

// verdicts of a frame, and why.
type outcome struct {
	Verdict string
	Slot    int // the last for unknown ports
	Reason  Reason
}

var xdpVerdicts = []string{"aborted", "drop", "pass", "tx", "redirect"}

// xdpContext is struct xdp_md as test_run takes it.
type xdpContext struct {
	Data, DataEnd, DataMeta, IngressIfindex, RxQueueIndex, EgressIfindex uint32
}

// skbContext is the head of struct __sk_buff, up to what test_run lets us set.
type skbContext struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTCI, VlanProto, Priority, IngressIfindex, Ifindex uint32
	_                                                                                                              [37]uint32
}

// ingress runs the XDP program on a frame that a device received.
func (r *rig) ingress(t testing.TB, frame []byte, ifindex, queue int) outcome {
	t.Helper()
	before := r.counters(t)
	verdict, out := r.run(t, r.xdp, frame, &xdpContext{DataEnd: uint32(len(frame)), IngressIfindex: uint32(ifindex), RxQueueIndex: uint32(queue)})
	if diff := cmp.Diff(frame, out); diff != "" {
		t.Errorf("the classifier changed the frame:\n%s", diff)
	}
	got := outcome{Verdict: xdpVerdicts[verdict]}
	got.Slot, got.Reason = counted(t, before, r.counters(t), func(p *PortCounters) *Counters { return &p.Ingress })
	return got
}

// egressOf runs the egress program on a frame of the node itself that a device is
// about to send.
func (r *rig) egressOf(t testing.TB, frame []byte, ifindex int) outcome {
	t.Helper()
	return r.egressFrom(t, frame, ifindex, 0)
}

// egressFrom does so with a frame that came in by a device.
func (r *rig) egressFrom(t testing.TB, frame []byte, ifindex, ingress int) outcome {
	t.Helper()
	before := r.counters(t)
	slot := returnSlot
	if ingress == r.outer {
		slot = RoutedSlot
	}
	got := r.tcx(t, r.egress, frame, &skbContext{Ifindex: uint32(ifindex), IngressIfindex: uint32(ingress)}, slot)
	got.Slot, got.Reason = counted(t, before, r.counters(t), func(p *PortCounters) *Counters { return &p.Egress })
	return got
}

// steer runs the steering program on a frame that a device received.
func (r *rig) steer(t testing.TB, frame []byte, ifindex int) outcome {
	t.Helper()
	before := r.counters(t)
	got := r.tcx(t, r.Objects.steer, frame, &skbContext{Ifindex: uint32(ifindex), IngressIfindex: uint32(ifindex)}, directSlot)
	got.Slot, got.Reason = counted(t, before, r.counters(t), func(p *PortCounters) *Counters { return &p.Ingress })
	return got
}

// steered expects the steering program to do with a frame what the XDP program does
// on a direct port, while the return port is as alive as that.
func (r *rig) steered(t testing.TB, frame []byte, direct outcome) {
	t.Helper()
	if direct.Verdict == "pass" {
		direct.Verdict = "next"
	}
	if got := r.steer(t, frame, r.direct); got != direct {
		t.Errorf("steered: got %v, want %v: % x", got, direct, frame)
	}
}

// tcx runs a tc program. What goes to the return port is marked with a slot; all else
// is left as it is.
func (r *rig) tcx(t testing.TB, program *ebpf.Program, frame []byte, context *skbContext, slot int) outcome {
	t.Helper()
	verdict, out := r.run(t, program, frame, context)
	names := map[int32]string{-1: "next", 0: "pass", 2: "drop", 7: "redirect"}
	got := outcome{Verdict: names[int32(verdict)]}
	if got.Verdict == "redirect" {
		if marked, ok := MarkedSlot([6]byte(out[6:])); !ok || marked != slot {
			t.Errorf("marked with % x, want slot %d", out[6:12], slot)
		}
		copy(out[6:12], frame[6:12])
	}
	if diff := cmp.Diff(frame, out); diff != "" {
		t.Errorf("the classifier changed the frame:\n%s", diff)
	}
	return got
}

func (r *rig) run(t testing.TB, program *ebpf.Program, frame []byte, context any) (verdict uint32, out []byte) {
	t.Helper()
	options := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: context}
	err := r.ns.Do(func() (err error) {
		verdict, err = program.Run(&options)
		return err
	})
	if err != nil {
		t.Fatalf("frame of %d bytes: %v", len(frame), err)
	}
	return verdict, options.DataOut
}

func (r *rig) counters(t testing.TB) []PortCounters {
	t.Helper()
	c, err := r.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// counted returns where one frame was counted, and fails unless it was exactly once.
func counted(t testing.TB, before, after []PortCounters, hook func(*PortCounters) *Counters) (slot int, reason Reason) {
	t.Helper()
	var all []string
	for s := range after {
		for r := range Reason(NumReasons) {
			if n := hook(&after[s])[r] - hook(&before[s])[r]; n != 0 {
				slot, reason = s, r
				all = append(all, fmt.Sprintf("slot %d %s %d", s, r, n))
			}
		}
	}
	if len(all) != 1 || !strings.HasSuffix(all[0], " 1") {
		t.Errorf("one frame was counted as %q", all)
	}
	return slot, reason
}
