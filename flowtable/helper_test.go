package flowtable

import (
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

// The address plan: pods 198.18.0.0/16 and 2001:db8:1::/48, ClusterIPs 198.19.0.0/16 and 2001:db8:2::/112.

func v4(a, b, c, d byte) [16]byte {
	return [16]byte{10: 0xff, 11: 0xff, 12: a, 13: b, 14: c, 15: d}
}

func pod(n uint32) [16]byte       { return v4(198, 18, byte(n>>8), byte(n)) }
func clusterIP(n uint32) [16]byte { return v4(198, 19, byte(n>>8), byte(n)) }

func pod6(n uint32) [16]byte {
	a := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 1}
	binary.BigEndian.PutUint32(a[12:], n)
	return a
}

func clusterIP6(n uint32) [16]byte {
	a := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 2}
	binary.BigEndian.PutUint16(a[14:], uint16(n))
	return a
}

var testSeed = [2]uint64{0x0706050403020100, 0x0f0e0d0c0b0a0908}

// newTable makes a table on the heap, where the race detector sees it.
func newTable(tb testing.TB, capacity int, timeouts Timeouts) *Table {
	tb.Helper()
	index, records := newImage(tb, capacity)
	return open(tb, index, records, timeouts)
}

func newImage(tb testing.TB, capacity int) (index, records []byte) {
	tb.Helper()
	buckets, n := Geometry(capacity)
	index, records = make([]byte, buckets*BucketSize), make([]byte, n*RecordSize)
	if err := Format(index, records, testSeed); err != nil {
		tb.Fatalf("Format: %v", err)
	}
	return index, records
}

func open(tb testing.TB, index, records []byte, timeouts Timeouts) *Table {
	tb.Helper()
	t, _, err := Open(index, records, timeouts)
	if err != nil {
		tb.Fatalf("Open: %v", err)
	}
	return t
}

// flowN is the n-th of many distinct flows, IPv4 but for every sixteenth.
func flowN(n uint32) Flow {
	f := Flow{
		Client: pod(n >> 14), Frontend: clusterIP(n % 50), Backend: pod(40000 + n%100),
		ClientPort: uint16(1024 + n&0x3fff), FrontendPort: 80, BackendPort: 8080, Proto: protoTCP,
	}
	if n%16 == 15 {
		f.Client, f.Frontend, f.Backend = pod6(n>>14), clusterIP6(n%50), pod6(40000+n%100)
	}
	if n%2 == 1 {
		f.Proto, f.FrontendPort, f.BackendPort = 17, 53, 5353
	}
	return f
}

// normal is the flow as the table gives it back.
func normal(f Flow) Flow {
	if f.Source == ([16]byte{}) {
		f.Source = f.Client
	}
	if f.SourcePort == 0 {
		f.SourcePort = f.ClientPort
	}
	return f
}

func (f *Flow) forward() Tuple {
	return Tuple{f.Client, f.Frontend, f.ClientPort, f.FrontendPort, f.Proto}
}

func (f *Flow) reply() Tuple {
	n := normal(*f)
	return Tuple{n.Backend, n.Source, n.BackendPort, n.SourcePort, n.Proto}
}

func fill(tb testing.TB, t *Table, n int) {
	tb.Helper()
	for i := range uint32(n) {
		f := flowN(i)
		if _, res := t.Insert(&f, 0); res != Inserted {
			tb.Fatalf("flow %d: %v", i, res)
		}
	}
}

// settleFlow makes a flow one that is never shed.
func settleFlow(t *Table, rec uint32) {
	flags := uint8(0)
	if t.records[rec].proto == protoTCP {
		flags = ack
	}
	t.Touch(rec, Forward, Tick(t.records[rec].seen[Forward]), flags)
	t.Touch(rec, Reply, Tick(t.records[rec].seen[Forward]), flags)
}

// settle runs a grace period in which nobody reads.
func settle(t *Table) { t.Reclaim(t.Limbo()) }

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// check holds a quiet table to its invariants.
func check(tb testing.TB, t *Table) {
	tb.Helper()
	cells := make([][2]int, len(t.records))
	for b := range t.buckets {
		for i := range t.buckets[b] {
			c := atomic.LoadUint64(&t.buckets[b][i])
			if c == 0 {
				continue
			}
			rec, d := uint32(c), Direction(c>>32&1)
			if rec == 0 || int(rec) >= len(t.records) {
				tb.Fatalf("bucket %d cell %d: record %d of %d", b, i, rec, len(t.records))
			}
			r := &t.records[rec]
			if r.life != LifeLive {
				tb.Fatalf("bucket %d cell %d: record %d has life %d", b, i, rec, r.life)
			}
			k := r.key(d)
			h := t.hash(k)
			if b1, b2 := t.pair(h); uint32(b) != b1 && uint32(b) != b2 {
				tb.Fatalf("bucket %d cell %d: the tuple belongs to buckets %d and %d", b, i, b1, b2)
			}
			if want := cellOf(h, rec, d); c != want {
				tb.Fatalf("bucket %d cell %d: %#x, want %#x", b, i, c, want)
			}
			if got := t.search(k, h); got != (Ref{rec, d}) {
				tb.Fatalf("record %d %v: its tuple finds %+v", rec, d, got)
			}
			cells[rec][d]++
		}
	}
	live := 0
	for rec := 1; rec < len(t.records); rec++ {
		want := [2]int{}
		if t.records[rec].life == LifeLive {
			want = [2]int{1, 1}
			live++
		}
		if cells[rec] != want {
			tb.Fatalf("record %d: life %d with %v cells", rec, t.records[rec].life, cells[rec])
		}
	}
	listed := make([]bool, len(t.records))
	walk := func(head, life uint32) (n int) {
		for rec := head; rec != 0; rec = t.links[rec].next {
			if listed[rec] {
				tb.Fatalf("record %d is listed twice", rec)
			}
			if listed[rec] = true; t.records[rec].life != life {
				tb.Fatalf("record %d: listed for life %d, has %d", rec, life, t.records[rec].life)
			}
			n++
		}
		return n
	}
	if free := walk(t.free, LifeFree); free != t.freeCount || live != t.liveCount {
		tb.Fatalf("%d free and %d live, counted %d and %d", free, live, t.freeCount, t.liveCount)
	}
	if limbo := walk(t.limbo, LifeRetired); limbo != t.limboCount {
		tb.Fatalf("%d in limbo, counted %d", limbo, t.limboCount)
	}
	for q := unanswered; q <= halfOpen; q++ {
		n, s := 0, t.sentinel(q)
		for prev, rec := s, t.links[s].next; rec != s; prev, rec = rec, t.links[rec].next {
			if listed[rec] || t.records[rec].life != LifeLive || t.links[rec].prev != prev|uint32(q)*inHalfOpen {
				tb.Fatalf("queue %d, record %d: listed %v, life %d, links %#x", q, rec, listed[rec], t.records[rec].life, t.links[rec])
			}
			listed[rec] = true
			n++
		}
		if n != t.queued[q] {
			tb.Fatalf("%d in queue %d, counted %d", n, q, t.queued[q])
		}
	}
	counts := map[[2]uint64]uint32{}
	for rec := uint32(1); int(rec) < len(t.records); rec++ {
		r := &t.records[rec]
		if r.life != LifeLive {
			continue
		}
		counts[r.addr[client]]++
		if !listed[rec] && (t.links[rec] != link{rec, rec} || r.standing() != settled) {
			tb.Fatalf("record %d is on no queue: links %v, standing %d", rec, t.links[rec], r.standing())
		}
	}
	if t.clients.most == 0 {
		return
	}
	clients := 0
	for i := range t.clients.slots {
		if t.clients.slots[i].n != 0 {
			clients++
		}
	}
	for a, n := range counts {
		if got := t.clients.slots[t.clients.find(t.hashClient(a))].n; got != n {
			tb.Fatalf("client %x has %d flows, counted %d", a, n, got)
		}
	}
	if clients != len(counts) {
		tb.Fatalf("%d clients, counted %d", len(counts), clients)
	}
}
