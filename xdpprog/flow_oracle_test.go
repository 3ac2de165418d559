//go:build linux

package xdpprog

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/flowtable"
)

// The C structs are the memory that package flowtable describes, member for member, as the compiler laid them out.
func TestLayoutIsFlowtables(t *testing.T) {
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){"xdp": loadXdp, "egress": loadEgress} {
		t.Run(name, func(t *testing.T) {
			spec, err := load()
			if err != nil {
				t.Fatal(err)
			}
			members := func(name string, size int) map[string]btf.Member {
				var s *btf.Struct
				if err := spec.Types.TypeByName(name, &s); err != nil {
					t.Fatal(err)
				}
				if int(s.Size) != size {
					t.Errorf("struct %s has %d bytes, want %d", name, s.Size, size)
				}
				m := map[string]btf.Member{}
				for _, member := range s.Members {
					m[member.Name] = member
				}
				return m
			}
			record := members("flow_record", flowtable.RecordSize)
			for _, want := range []struct {
				member     string
				at, length int
			}{
				{"client", flowtable.OffsetClient, 16},
				{"frontend", flowtable.OffsetFrontend, 16},
				{"backend", flowtable.OffsetBackend, 16},
				{"forward_ports", flowtable.OffsetClientPort, 4},
				{"reply_ports", flowtable.OffsetBackendPort, 4},
				{"proto", flowtable.OffsetProto, 1},
				{"flags", flowtable.OffsetFlags, 1},
				{"source", flowtable.OffsetSource, 16},
				{"rest", flowtable.OffsetGeneration, flowtable.RecordSize - flowtable.OffsetGeneration},
			} {
				member, ok := record[want.member]
				if !ok {
					t.Errorf("struct flow_record has no %s", want.member)
					continue
				}
				size, err := btf.Sizeof(member.Type)
				if err != nil {
					t.Fatal(err)
				}
				if int(member.Offset.Bytes()) != want.at || size != want.length {
					t.Errorf("%s: %d bytes at %d, want %d at %d", want.member, size, member.Offset.Bytes(), want.length, want.at)
				}
			}
			// A pair of ports is one word in C.
			if flowtable.OffsetFrontendPort != flowtable.OffsetClientPort+2 || flowtable.OffsetSourcePort != flowtable.OffsetBackendPort+2 {
				t.Error("the ports of a direction do not stand side by side")
			}
			cells := members("flow_bucket", flowtable.BucketSize)["cell"]
			if size, err := btf.Sizeof(cells.Type); err != nil || size != flowtable.BucketSize || cells.Offset != 0 {
				t.Errorf("cells: %d bytes at %d: %v", size, cells.Offset, err)
			}
		})
	}
}

// Of the header the programs read the seed and nothing else. No map has the struct for its value, so it has no type
// in the object: its offsets show in which bytes change the hash.
func TestSeedIsWhereTheHeaderHasIt(t *testing.T) {
	r := newRig(t, nil)
	r.alive(t, directSlot)
	r.insertKnown(t)
	frame := packet{src: known4, flags: "A"}.frame(t)
	header := r.FlowRecords()[:flowtable.RecordSize]
	for at := range header {
		header[at] ^= 0x10
		got := r.ingress(t, frame, r.direct, 0).Reason
		header[at] ^= 0x10
		seed := at >= flowtable.HeaderSeed0 && at < flowtable.HeaderSeed0+8 || at >= flowtable.HeaderSeed1 && at < flowtable.HeaderSeed1+8
		if found := got == ReasonForward; found == seed {
			t.Errorf("byte %d of the header changed: %v", at, got)
		}
	}
}

// An oracle asks the XDP program about tuples, many a second: frames are patched and not built.
type oracle struct {
	*rig
	context xdpContext
	frames  map[[2]bool][]byte // by IPv6, UDP
}

func newOracle(t testing.TB, flows int) *oracle {
	o := &oracle{rig: newRig(t, func(s *Spec) { s.FlowBuckets, s.FlowRecords = flowtable.Geometry(flows) }), frames: map[[2]bool][]byte{}}
	o.alive(t, directSlot)
	for _, v6 := range []bool{false, true} {
		for _, proto := range []layers.IPProtocol{tcp, udp} {
			p := packet{src: client4, dst: backend4, proto: proto, flags: "A"}
			if v6 {
				p.src, p.dst = client6, backend6
			}
			o.frames[[2]bool{v6, proto == udp}] = p.frame(t)
		}
	}
	return o
}

func isMapped(a *[16]byte) bool { return netip.AddrFrom16(*a).Is4In6() }

// ask returns the program's verdict on a frame that has the tuple. It must run in the rig's namespace.
func (o *oracle) ask(k *flowtable.Tuple) (uint32, error) {
	v6 := !isMapped(&k.Src)
	frame := o.frames[[2]bool{v6, k.Proto == uint8(udp)}]
	l3 := frame[14:]
	l4 := l3[20:]
	if v6 {
		l4 = l3[40:]
		copy(l3[8:], k.Src[:])
		copy(l3[24:], k.Dst[:])
	} else {
		copy(l3[12:], k.Src[12:])
		copy(l3[16:], k.Dst[12:])
	}
	binary.BigEndian.PutUint16(l4, k.SrcPort)
	binary.BigEndian.PutUint16(l4[2:], k.DstPort)
	o.context = xdpContext{DataEnd: uint32(len(frame)), IngressIfindex: uint32(o.direct)}
	return o.xdp.Run(&ebpf.RunOptions{Data: frame, Context: &o.context})
}

const xdpRedirect = 4

// tuples asks about tuples of one kind, and wants one verdict and one reason for all.
func (o *oracle) tuples(t *testing.T, tuples []flowtable.Tuple, want Reason) {
	o.beat(o.Index(directSlot, 0), 0)
	before := o.counters(t)[directSlot].Ingress[want]
	if err := o.ns.Do(func() error {
		for i := range tuples {
			verdict, err := o.ask(&tuples[i])
			if err != nil {
				return err
			}
			if (verdict == xdpRedirect) != (want != ReasonNotOurs) {
				return fmt.Errorf("%+v: %s, Go says %v", tuples[i], xdpVerdicts[verdict], want)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n := o.counters(t)[directSlot].Ingress[want] - before; n != uint64(len(tuples)) {
		t.Fatalf("%d of %d tuples are %v to the program, Go says all", n, len(tuples), want)
	}
}

func number(t testing.TB, name string, otherwise int) int {
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Random tuples, asked of the program and of Go: flows of both families in both directions, near misses that
// differ in one bit, and strangers. SLUICE_TUPLES is their number.
func TestOracle(t *testing.T) {
	const flows = 1 << 16
	n := number(t, "SLUICE_TUPLES", 100_000)
	o := newOracle(t, flows)
	// A seed of this run: the test is also of the hash.
	rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	if err := flowtable.Format(o.FlowIndex(), o.FlowRecords(), [2]uint64{rng.Uint64(), rng.Uint64()}); err != nil {
		t.Fatal(err)
	}
	var err error
	if o.table, _, err = flowtable.Open(o.FlowIndex(), o.FlowRecords(), flowtable.Timeouts{}); err != nil {
		t.Fatal(err)
	}
	address := func(v6 bool) (a [16]byte) {
		a = [16]byte{10: 0xff, 11: 0xff}
		from := 12
		if v6 {
			from = 0
		}
		for i := from; i < 16; i++ {
			a[i] = byte(rng.Uint32())
		}
		return a
	}
	port := func() uint16 { return uint16(rng.Uint32()) }
	proto := func() uint8 { return [2]uint8{uint8(tcp), uint8(udp)}[rng.IntN(2)] }
	all := make([]flowtable.Flow, 0, flows)
	for len(all) < flows*9/10 {
		v6 := rng.IntN(2) == 0
		f := flowtable.Flow{
			Client: address(v6), Frontend: address(v6), Backend: address(v6), ClientPort: port(), FrontendPort: port(), BackendPort: port(),
			Proto: proto(),
		}
		f.Source, f.SourcePort = f.Client, f.ClientPort
		if rng.IntN(4) == 0 {
			f.Source = address(v6)
		}
		if rng.IntN(4) == 0 {
			f.SourcePort = port()
		}
		if len(all) > 0 && rng.IntN(2) == 0 { // as flows are: of few clients, frontends and backends
			g := &all[rng.IntN(len(all))]
			if isMapped(&g.Client) == !v6 {
				f.Frontend, f.FrontendPort, f.Backend, f.BackendPort = g.Frontend, g.FrontendPort, g.Backend, g.BackendPort
			}
		}
		if _, result := o.table.Insert(&f, 0); result == flowtable.Inserted {
			all = append(all, f)
		}
	}

	const batch = 512
	queues := map[Reason][]flowtable.Tuple{}
	counts := map[Reason]int{}
	began := time.Now()
	for i := range n {
		f := &all[rng.IntN(len(all))]
		k := flowtable.Tuple{Src: f.Client, Dst: f.Frontend, SrcPort: f.ClientPort, DstPort: f.FrontendPort, Proto: f.Proto}
		if rng.IntN(2) == 0 {
			k = flowtable.Tuple{Src: f.Backend, Dst: f.Source, SrcPort: f.BackendPort, DstPort: f.SourcePort, Proto: f.Proto}
		}
		v6 := !isMapped(&k.Src)
		switch rng.IntN(8) {
		case 0: // one bit off
			bit := rng.IntN(32)
			at := bit / 8
			if v6 {
				bit = rng.IntN(128)
				at = bit/8 - 12
			}
			switch rng.IntN(5) {
			case 0:
				k.Src[12+at] ^= 1 << (bit % 8)
			case 1:
				k.Dst[12+at] ^= 1 << (bit % 8)
			case 2:
				k.SrcPort ^= 1 << (bit % 16)
			case 3:
				k.DstPort ^= 1 << (bit % 16)
			default:
				k.Proto = uint8(tcp) + uint8(udp) - k.Proto
			}
		case 1: // a stranger
			v6 = rng.IntN(2) == 0
			k = flowtable.Tuple{Src: address(v6), Dst: address(v6), SrcPort: port(), DstPort: port(), Proto: proto()}
		}
		reason := ReasonNotOurs
		if ref := o.table.Lookup(&k); ref.Record != 0 {
			reason = ReasonForward
			if ref.Direction == flowtable.Reply {
				reason = ReasonReply
			}
		}
		counts[reason]++
		queues[reason] = append(queues[reason], k)
		if len(queues[reason]) == batch {
			o.tuples(t, queues[reason], reason)
			queues[reason] = queues[reason][:0]
		}
		if t.Failed() {
			t.Fatalf("after %d tuples", i)
		}
	}
	for reason, rest := range queues {
		o.tuples(t, rest, reason)
	}
	t.Logf("%d tuples in %v: %v", n, time.Since(began).Round(time.Millisecond), counts)
	for _, reason := range []Reason{ReasonForward, ReasonReply, ReasonNotOurs} {
		if counts[reason] < n/8 {
			t.Errorf("too easy: %d are %v", counts[reason], reason)
		}
	}
}

// While Go inserts, removes and uses records again with the grace period that the kernel gives, the program finds
// every flow that stays, and never one that was not in the table for the whole of the run.
func TestLookupWhileWritten(t *testing.T) {
	const flows, lasting = 4096, 64
	o := newOracle(t, flows)
	tuple := func(i int, frontend netip.AddrPort) flowtable.Tuple {
		return flowtable.Tuple{
			Src: client4.Addr().As16(), SrcPort: uint16(i), Dst: frontend.Addr().As16(), DstPort: frontend.Port(), Proto: uint8(tcp),
		}
	}
	insert := func(i int) (uint32, bool) {
		f := flowOf(netip.AddrPortFrom(client4.Addr(), uint16(i)), gone4, backend4, tcp)
		ref, result := o.table.Insert(&f, 0)
		return ref.Record, result == flowtable.Inserted
	}
	for i := range lasting {
		if _, ok := insert(i); !ok {
			t.Fatal("no room")
		}
	}
	var turn atomic.Uint64
	var stop atomic.Bool
	var wg sync.WaitGroup
	var inserted, reclaimed int
	wg.Add(2)
	go func() { // the writer
		defer wg.Done()
		var recs []uint32
		for i := 0; !stop.Load(); i++ {
			if rec, ok := insert(lasting + i%(1<<15)); ok {
				recs = append(recs, rec)
				inserted++
			}
			if len(recs) > 1024 {
				for _, rec := range recs {
					o.table.Remove(rec)
				}
				recs = recs[:0]
			}
			turn.Add(1)
		}
	}()
	go func() { // the housekeeper
		defer wg.Done()
		for !stop.Load() {
			b := o.table.Limbo()
			for was := turn.Load(); turn.Load() == was && !stop.Load(); {
				runtime.Gosched()
			}
			if stop.Load() {
				return
			}
			if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, 1, 0, 0); errno != 0 {
				t.Errorf("membarrier: %v", errno)
				return
			}
			reclaimed += b.Len()
			o.table.Reclaim(b)
		}
	}()
	var staying, strangers []flowtable.Tuple
	for i := range lasting {
		staying = append(staying, tuple(i, gone4))
		strangers = append(strangers, tuple(i, backend4)) // of no flow: only the frontend differs
	}
	asked := 0
	for began := time.Now(); time.Since(began) < 2*time.Second && !t.Failed(); asked += 2 * lasting {
		o.tuples(t, staying, ReasonForward)
		o.tuples(t, strangers, ReasonNotOurs)
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d lookups while %d flows came, %d records were used again", asked, inserted, reclaimed)
	if inserted < flows || reclaimed < flows {
		t.Error("nothing happened")
	}
}
