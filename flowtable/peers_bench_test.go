//go:build linux

package flowtable_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/puzpuzpuz/xsync/v4"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/flowtable"
)

// BenchmarkPeers puts the table, in mapped BPF arrays as in life, beside what one would use in its place: a Go map under
// a RWMutex, sync.Map, xsync.Map, and a BPF hash map asked by system call, which is how a daemon reaches the
// kernel's own tables. All hold the same flows by the same two tuples, at 80 % of the capacity that they were made for,
// and do the same work in the same run. The peers keep 128 bytes for each flow, as the table does.
//
//	lookup      tuples of either direction, in random order, 64 a call; also B/flow, the memory of one flow, all in
//	readers-n   lookups by n threads while a writer adds and removes 64 flows each millisecond
//	two-reads   what memory alone costs a lookup: a random cell of the index, and then the record that it names, one pair
//	            after the other. A single lookup cannot cost less unless the core overlaps it with the next one
//	insert      both tuples of a new flow, each only if absent; as many old flows have left before, off the clock
//
// ns/key is wall time, cpu-ns/key what the thread itself used, which a busy machine cannot blur as much. Read it with
//
//	benchstat -row /flows,/op -col /impl
func BenchmarkPeers(b *testing.B) {
	for _, size := range []struct {
		name  string
		flows int
	}{{"1k", 1000}, {"64k", 64_000}, {"1M", 1_000_000}, {"4M", 4_000_000}} {
		for _, peer := range peers {
			b.Run("flows="+size.name+"/impl="+peer.name, func(b *testing.B) {
				runtime.GC()
				before := heapBytes()
				p := peer.open(b, size.flows*10/8)
				defer p.close()
				for i := range size.flows {
					if !p.insert(i) {
						b.Fatalf("flow %d: no room", i)
					}
				}
				runtime.GC()
				memory := float64(int64(heapBytes()-before)+p.bytes()) / float64(size.flows)
				tuples := peerTuples(size.flows)
				b.Run("op=lookup", func(b *testing.B) {
					benchPeerLookup(b, p, tuples)
					b.ReportMetric(memory, "B/flow")
				})
				for _, readers := range []int{1, 2} {
					b.Run(fmt.Sprintf("op=readers-%d", readers), func(b *testing.B) { benchPeerReaders(b, p, tuples, readers) })
				}
				if s, ok := p.(*sluice); ok && !s.batch {
					b.Run("op=two-reads", s.benchTwoReads)
				}
				age := &generations{next: size.flows}
				b.Run("op=insert", func(b *testing.B) { benchPeerInsert(b, p, age) })
				runtime.KeepAlive(p)
			})
		}
	}
}

const peerBatch = 64

// A peer is a table of flows by number.
type peer interface {
	insert(i int) bool
	remove(i int)
	settle()                             // a grace period, for who needs one
	lookup(tuples []flowtable.Tuple) int // how many it found
	bytes() int64                        // beyond the Go heap
	close()
}

var peers = []struct {
	name string
	open func(b *testing.B, capacity int) peer
}{
	{"sluice-batch", func(b *testing.B, capacity int) peer { return openSluice(b, capacity, true) }},
	{"sluice", func(b *testing.B, capacity int) peer { return openSluice(b, capacity, false) }},
	{"map", func(_ *testing.B, capacity int) peer {
		return &mapPeer{m: make(map[flowtable.Tuple]*peerFlow, 2*capacity)}
	}},
	{"sync.Map", func(*testing.B, int) peer { return &syncPeer{} }},
	{"xsync", func(_ *testing.B, capacity int) peer {
		return &xsyncPeer{xsync.NewMap[flowtable.Tuple, *peerFlow](xsync.WithPresize(2 * capacity))}
	}},
	{"bpf-hash", openBPF},
}

func benchPeerLookup(b *testing.B, p peer, tuples []flowtable.Tuple) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	at := 0
	cpu := threadTime(b)
	for b.Loop() {
		if p.lookup(tuples[at:at+peerBatch]) != peerBatch {
			b.Fatal("not found")
		}
		at = (at + peerBatch) % len(tuples)
	}
	perKey(b, b.Elapsed(), threadTime(b)-cpu, b.N*peerBatch)
}

func perKey(b *testing.B, wall, cpu time.Duration, keys int) {
	b.ReportMetric(float64(wall)/float64(keys), "ns/key")
	b.ReportMetric(float64(cpu)/float64(keys), "cpu-ns/key")
	b.ReportMetric(0, "ns/op")
}

// generations says which flows a table has: those from oldest up to next.
type generations struct{ oldest, next int }

// benchPeerInsert keeps the number of flows: the oldest leave in the pauses.
func benchPeerInsert(b *testing.B, p peer, age *generations) {
	const batch = 256
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var wall, cpu time.Duration
	for b.Loop() {
		for range batch {
			p.remove(age.oldest)
			age.oldest++
		}
		p.settle()
		began, used := time.Now(), threadTime(b)
		for range batch {
			if !p.insert(age.next) {
				b.Fatal("no room")
			}
			age.next++
		}
		wall += time.Since(began)
		cpu += threadTime(b) - used
	}
	perKey(b, wall, cpu, b.N*batch)
}

func benchPeerReaders(b *testing.B, p peer, tuples []flowtable.Tuple, readers int) {
	var stop atomic.Bool
	var writer sync.WaitGroup
	writer.Add(1)
	go func() {
		defer writer.Done()
		for first := 1 << 30; !stop.Load(); time.Sleep(time.Millisecond) {
			for i := range peerBatch {
				p.insert(first + i)
			}
			for i := range peerBatch {
				p.remove(first + i)
			}
			// New numbers, and records that no reader of these can be on: they look for other flows.
			first = 1<<30 + (first+peerBatch)%(1<<20)
			p.settle()
		}
	}()
	var cpu, keys, failed atomic.Int64
	var done sync.WaitGroup
	each := make(chan int)
	for r := range readers {
		done.Add(1)
		go func() {
			defer done.Done()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			n := <-each
			at := r * len(tuples) / readers
			used := threadTime(b)
			for range n {
				if p.lookup(tuples[at:at+peerBatch]) != peerBatch {
					failed.Add(1)
				}
				at = (at + peerBatch) % len(tuples)
			}
			cpu.Add(int64(threadTime(b) - used))
			keys.Add(int64(n) * peerBatch)
		}()
	}
	b.ResetTimer()
	for range readers {
		each <- b.N
	}
	done.Wait()
	wall := b.Elapsed()
	stop.Store(true)
	writer.Wait()
	if failed.Load() > 0 {
		b.Fatalf("%d batches with a flow not found", failed.Load())
	}
	perKey(b, wall, time.Duration(cpu.Load()), int(keys.Load()))
	b.ReportMetric(float64(keys.Load())/wall.Seconds()/1e6, "Mkeys/s")
}

// Flows.

func peerFlowOf(i int) flowtable.Flow {
	a := func(b0, b1 byte, n int) [16]byte {
		return [16]byte{10: 0xff, 11: 0xff, 12: b0, 13: b1, 14: byte(n >> 8), 15: byte(n)}
	}
	f := flowtable.Flow{
		Client: a(198, 18, i>>15), Frontend: a(198, 19, i%100), Backend: a(198, 18, 0x8000+i%1000),
		ClientPort: uint16(i | 0x8000), FrontendPort: uint16(80 + i>>15>>16), BackendPort: 8080, Proto: 6,
	}
	f.Source, f.SourcePort = f.Client, f.ClientPort
	return f
}

func tuplesOf(f *flowtable.Flow) (forward, reply flowtable.Tuple) {
	return flowtable.Tuple{Src: f.Client, Dst: f.Frontend, SrcPort: f.ClientPort, DstPort: f.FrontendPort, Proto: f.Proto},
		flowtable.Tuple{Src: f.Backend, Dst: f.Source, SrcPort: f.BackendPort, DstPort: f.SourcePort, Proto: f.Proto}
}

// peerTuples returns tuples of the flows in random order, more than caches hold.
func peerTuples(flows int) []flowtable.Tuple {
	tuples := make([]flowtable.Tuple, 1<<20)
	x := uint64(1)
	for i := range tuples {
		x = x*6364136223846793005 + 1442695040888963407
		f := peerFlowOf(int(x>>33) % flows)
		forward, reply := tuplesOf(&f)
		if tuples[i] = forward; x>>32&1 == 0 {
			tuples[i] = reply
		}
	}
	return tuples
}

// The table itself.

type sluice struct {
	*flowtable.Table
	batch   bool
	maps    [2]*ebpf.Map
	memory  [2][]byte
	scratch sync.Pool
}

func openSluice(b *testing.B, capacity int, batch bool) peer {
	if os.Getuid() != 0 {
		b.Skip("needs root: the table lies in BPF arrays")
	}
	buckets, records := flowtable.Geometry(capacity)
	s := &sluice{batch: batch}
	for i, m := range []struct{ size, n int }{{flowtable.BucketSize, buckets}, {flowtable.RecordSize, records}} {
		var err error
		if s.maps[i], err = ebpf.NewMap(&ebpf.MapSpec{
			Type: ebpf.Array, KeySize: 4, ValueSize: uint32(m.size), MaxEntries: uint32(m.n), Flags: unix.BPF_F_MMAPABLE,
		}); err != nil {
			b.Fatal(err)
		}
		whole := (m.size*m.n + 4095) / 4096 * 4096
		if s.memory[i], err = unix.Mmap(s.maps[i].FD(), 0, whole, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
			b.Fatal(err)
		}
		s.memory[i] = s.memory[i][:m.size*m.n]
	}
	err := flowtable.Format(s.memory[0], s.memory[1], [2]uint64{1, 2})
	if err == nil {
		s.Table, _, err = flowtable.Open(s.memory[0], s.memory[1], flowtable.Timeouts{})
	}
	if err != nil {
		b.Fatal(err)
	}
	s.scratch.New = func() any { return new(sluiceScratch) }
	return s
}

type sluiceScratch struct {
	hashes [peerBatch]uint64
	refs   [peerBatch]flowtable.Ref
}

func (s *sluice) insert(i int) bool {
	f := peerFlowOf(i)
	_, result := s.Insert(&f, 0)
	return result == flowtable.Inserted
}

func (s *sluice) remove(i int) {
	f := peerFlowOf(i)
	forward, _ := tuplesOf(&f)
	s.Remove(s.Lookup(&forward).Record)
}

func (s *sluice) settle() { s.Reclaim(s.Limbo()) }

func (s *sluice) lookup(tuples []flowtable.Tuple) (found int) {
	if !s.batch {
		for i := range tuples {
			if s.Lookup(&tuples[i]).Record != 0 {
				found++
			}
		}
		return found
	}
	scratch := s.scratch.Get().(*sluiceScratch)
	s.LookupBatch(tuples, scratch.hashes[:], scratch.refs[:])
	for i := range scratch.refs {
		if scratch.refs[i].Record != 0 {
			found++
		}
	}
	s.scratch.Put(scratch)
	return found
}

func (s *sluice) benchTwoReads(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	le := binary.LittleEndian
	cells, records := uint64(len(s.memory[0])/8), uint64(len(s.memory[1])/flowtable.RecordSize)
	x := uint64(1)
	cpu := threadTime(b)
	for b.Loop() {
		x = x*6364136223846793005 + 1442695040888963407
		record := uint64(le.Uint32(s.memory[0][x>>33%cells*8:]))
		if record == 0 { // an empty cell
			record = x >> 33 % records
		}
		x += le.Uint64(s.memory[1][record*flowtable.RecordSize+flowtable.OffsetClientPort:])
	}
	perKey(b, b.Elapsed(), threadTime(b)-cpu, b.N)
	runtime.KeepAlive(x)
}

func (s *sluice) bytes() int64 { return int64(len(s.memory[0]) + len(s.memory[1])) }

func (s *sluice) close() {
	for i := range s.maps {
		_ = unix.Munmap(s.memory[i][:cap(s.memory[i])])
		s.maps[i].Close()
	}
}

// The peers.

type peerFlow struct{ _ [flowtable.RecordSize]byte }

type mapPeer struct {
	mu sync.RWMutex
	m  map[flowtable.Tuple]*peerFlow
}

func (p *mapPeer) insert(i int) bool {
	f := peerFlowOf(i)
	forward, reply := tuplesOf(&f)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m[forward] != nil || p.m[reply] != nil {
		return false
	}
	flow := new(peerFlow)
	p.m[forward], p.m[reply] = flow, flow
	return true
}

func (p *mapPeer) remove(i int) {
	f := peerFlowOf(i)
	forward, reply := tuplesOf(&f)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.m, forward)
	delete(p.m, reply)
}

func (p *mapPeer) lookup(tuples []flowtable.Tuple) (found int) {
	for i := range tuples {
		p.mu.RLock()
		if p.m[tuples[i]] != nil {
			found++
		}
		p.mu.RUnlock()
	}
	return found
}

func (*mapPeer) settle()      {}
func (*mapPeer) bytes() int64 { return 0 }
func (*mapPeer) close()       {}

type syncPeer struct{ m sync.Map }

func (p *syncPeer) insert(i int) bool {
	f := peerFlowOf(i)
	forward, reply := tuplesOf(&f)
	flow := new(peerFlow)
	if _, loaded := p.m.LoadOrStore(reply, flow); loaded {
		return false
	}
	_, loaded := p.m.LoadOrStore(forward, flow)
	return !loaded
}

func (p *syncPeer) remove(i int) {
	f := peerFlowOf(i)
	forward, reply := tuplesOf(&f)
	p.m.Delete(forward)
	p.m.Delete(reply)
}

func (p *syncPeer) lookup(tuples []flowtable.Tuple) (found int) {
	for i := range tuples {
		if _, ok := p.m.Load(tuples[i]); ok {
			found++
		}
	}
	return found
}

func (*syncPeer) settle()      {}
func (*syncPeer) bytes() int64 { return 0 }
func (*syncPeer) close()       {}

type xsyncPeer struct {
	m *xsync.Map[flowtable.Tuple, *peerFlow]
}

func (p *xsyncPeer) insert(i int) bool {
	f := peerFlowOf(i)
	forward, reply := tuplesOf(&f)
	flow := new(peerFlow)
	if _, loaded := p.m.LoadOrStore(reply, flow); loaded {
		return false
	}
	_, loaded := p.m.LoadOrStore(forward, flow)
	return !loaded
}

func (p *xsyncPeer) remove(i int) {
	f := peerFlowOf(i)
	forward, reply := tuplesOf(&f)
	p.m.Delete(forward)
	p.m.Delete(reply)
}

func (p *xsyncPeer) lookup(tuples []flowtable.Tuple) (found int) {
	for i := range tuples {
		if _, ok := p.m.Load(tuples[i]); ok {
			found++
		}
	}
	return found
}

func (*xsyncPeer) settle()      {}
func (*xsyncPeer) bytes() int64 { return 0 }
func (*xsyncPeer) close()       {}

// bpfPeer is a BPF hash map, one system call an operation. The record is the value of the forward tuple; the reply
// tuple's value is as large, since a map has one size of values.
type bpfPeer struct{ m *ebpf.Map }

type bpfValue [flowtable.RecordSize / 2]byte // half of the record each

func openBPF(b *testing.B, capacity int) peer {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.Hash, KeySize: uint32(unsafe.Sizeof(flowtable.Tuple{})), ValueSize: uint32(unsafe.Sizeof(bpfValue{})), MaxEntries: uint32(2 * capacity),
	})
	if err != nil {
		b.Fatal(err)
	}
	return &bpfPeer{m}
}

// do is bpf(2) on one element. The library's own way costs more than the call.
func (p *bpfPeer) do(cmd uintptr, k *flowtable.Tuple, v *bpfValue, flags uint64) bool {
	attr := struct {
		fd         uint32
		_          uint32
		key, value unsafe.Pointer
		flags      uint64
	}{fd: uint32(p.m.FD()), key: unsafe.Pointer(k), value: unsafe.Pointer(v), flags: flags}
	_, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	return errno == 0
}

func (p *bpfPeer) insert(i int) bool {
	f := peerFlowOf(i)
	forward, reply := tuplesOf(&f)
	var v bpfValue
	return p.do(unix.BPF_MAP_UPDATE_ELEM, &reply, &v, unix.BPF_NOEXIST) && p.do(unix.BPF_MAP_UPDATE_ELEM, &forward, &v, unix.BPF_NOEXIST)
}

func (p *bpfPeer) remove(i int) {
	f := peerFlowOf(i)
	forward, reply := tuplesOf(&f)
	p.do(unix.BPF_MAP_DELETE_ELEM, &forward, nil, 0)
	p.do(unix.BPF_MAP_DELETE_ELEM, &reply, nil, 0)
}

func (p *bpfPeer) lookup(tuples []flowtable.Tuple) (found int) {
	var v bpfValue
	for i := range tuples {
		if p.do(unix.BPF_MAP_LOOKUP_ELEM, &tuples[i], &v, 0) {
			found++
		}
	}
	return found
}

func (*bpfPeer) settle() {}

// bytes is what the kernel charges.
func (p *bpfPeer) bytes() int64 {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", p.m.FD()))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(info)) {
		if rest, ok := strings.CutPrefix(line, "memlock:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			return n
		}
	}
	return 0
}

func (p *bpfPeer) close() { p.m.Close() }

func heapBytes() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// threadTime is the processor time that this thread has used.
func threadTime(tb testing.TB) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
