package flowtable

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// rounds scales the work down under the race detector.
func rounds(n int) int {
	if raceEnabled {
		return n / 10
	}
	return n
}

// worker stands for a packet loop: a batch boundary is an increment of its counter, and odd is asleep.
type worker struct {
	passed atomic.Uint64
	_      [56]byte
}

func (w *worker) boundary() { w.passed.Add(2) }
func (w *worker) sleep()    { w.passed.Or(1) }

// grace returns once every worker has passed a boundary, or sleeps. There is no kernel here, hence no membarrier.
func grace(ws []worker) {
	for i := range ws {
		was := ws[i].passed.Load()
		for was&1 == 0 && ws[i].passed.Load() == was {
			runtime.Gosched()
		}
	}
}

// twin is a flow whose every field follows from the client's number and the backend chosen, so that a record of two
// halves shows.
func twin(n, choice uint32) Flow {
	f := Flow{
		Client: pod(n), Frontend: clusterIP(n), Backend: pod(1000 + choice), ClientPort: uint16(n + 1), FrontendPort: 80,
		BackendPort: uint16(2000 + choice), Proto: protoTCP, Generation: choice,
	}
	if choice%2 == 1 {
		f.Source, f.SourcePort = clusterIP(5000+n), uint16(3000+choice)
	}
	return f
}

// TestConcurrent: writers race on the same tuples, readers look flows up both ways, one goroutine expires, removes and
// reclaims with real grace. No torn record, no flow lost or doubled, and losers get the winner's.
func TestConcurrent(tt *testing.T) {
	const clients = 64
	t := newTable(tt, 80, Timeouts{})
	ws := make([]worker, 4)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var found, exists, inserts atomic.Uint64

	whole := func(ref Ref, n uint32) bool {
		var f Flow
		t.Flow(ref.Record, &f)
		want := normal(twin(n, uint32(f.BackendPort)-2000))
		f.Generation, f.ForwardAdj, f.ReplyAdj = want.Generation, 0, 0
		return f == want
	}
	for i := range ws {
		wg.Add(1)
		go func() {
			defer wg.Done()
			w := &ws[i]
			defer w.sleep()
			rng := rand.New(rand.NewPCG(uint64(i), 9))
			var tuples [16]Tuple
			var ns [16]uint32
			var hashes [16]uint64
			var refs [16]Ref
			for now := Tick(0); !stop.Load(); now++ {
				for j := range tuples {
					ns[j] = uint32(rng.IntN(clients))
					f := twin(ns[j], uint32(rng.IntN(8)))
					if tuples[j] = f.forward(); rng.IntN(2) == 0 {
						tuples[j] = f.reply()
					}
				}
				t.LookupBatch(tuples[:], hashes[:], refs[:])
				for j, ref := range refs {
					if ref.Record == 0 {
						continue
					}
					found.Add(1)
					if !whole(ref, ns[j]) {
						tt.Errorf("torn or foreign record %+v for client %d", ref, ns[j])
						return
					}
					t.Touch(ref.Record, ref.Direction, now, ack)
					t.SetAdjacency(ref.Record, ref.Direction, 1)
					t.SetGeneration(ref.Record, 2)
				}
				if i < 2 { // a writer
					for j := range tuples {
						f := twin(ns[j], uint32(rng.IntN(8)))
						ref, res := t.Insert(&f, now)
						switch res {
						case Inserted:
							inserts.Add(1)
						case Exists:
							exists.Add(1)
						case Collision:
							tt.Errorf("collision for client %d", ns[j])
							return
						}
						if ref.Record != 0 && !whole(ref, ns[j]) {
							tt.Errorf("%v: record %d is not of client %d", res, ref.Record, ns[j])
							return
						}
						if res == Inserted && rng.IntN(4) == 0 {
							t.Remove(ref.Record)
						}
					}
				}
				w.boundary()
				runtime.Gosched() // more workers than CPUs: else each grace period costs time slices
			}
		}()
	}
	// All and Expire go by record numbers and need no grace: Reclaim waits for them.
	wg.Add(1)
	go func() {
		defer wg.Done()
		for !stop.Load() {
			for e := range t.All() {
				f := normal(twin(uint32(e.Flow.ClientPort)-1, uint32(e.Flow.BackendPort)-2000))
				e.Flow.Generation, e.Flow.ForwardAdj, e.Flow.ReplyAdj = f.Generation, 0, 0
				if e.Flow != f {
					tt.Errorf("torn entry %+v, want %+v", e.Flow, f)
					return
				}
			}
			t.Reconcile(16, func(e *Entry) bool { return e.Flow.ClientPort%8 != 0 })
			runtime.Gosched()
		}
	}()
	rng := newRand(3)
	turns := rounds(1_500)
	for range turns {
		t.Expire(Tick(1<<30+rng.IntN(2)<<30), 8)
		b := t.Limbo()
		grace(ws)
		t.Reclaim(b)
	}
	stop.Store(true)
	wg.Wait()
	settle(t)
	check(tt, t)
	s := t.Stats()
	if s.Inserted != inserts.Load() || s.Inserted-s.Removed != uint64(s.Flows) || s.Removed != s.Reclaimed || s.Stray != 0 {
		tt.Errorf("%+v, %d inserts returned", s, inserts.Load())
	}
	for n := range uint32(clients) {
		f := twin(n, 0)
		if ref := both(tt, t, f.forward()); ref.Record != 0 && !whole(ref, n) {
			tt.Errorf("client %d has another's flow", n)
		}
	}
	tt.Logf("%d turns: %d inserted, %d lost the race, %d found, %d reclaimed", turns, inserts.Load(), exists.Load(), found.Load(), s.Reclaimed)
	if found.Load() == 0 || exists.Load() == 0 || s.Reclaimed == 0 {
		tt.Error("nothing happened")
	}
}

// TestInsertRace: of all callers with one tuple one wins, and all come back with its backend.
func TestInsertRace(tt *testing.T) {
	const callers = 4
	t := newTable(tt, 4096, Timeouts{})
	for n := range uint32(rounds(4000)) {
		var recs [callers]uint32
		var winners atomic.Int32
		var wg sync.WaitGroup
		var start atomic.Bool
		for i := range callers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for !start.Load() {
					runtime.Gosched()
				}
				f := twin(n, uint32(i))
				ref, res := t.Insert(&f, 0)
				if res == Inserted {
					winners.Add(1)
				}
				recs[i] = ref.Record
			}()
		}
		start.Store(true)
		wg.Wait()
		if winners.Load() != 1 || recs[0] == 0 {
			tt.Fatalf("flow %d: %d winners, records %v", n, winners.Load(), recs)
		}
		for _, rec := range recs {
			if rec != recs[0] {
				tt.Fatalf("flow %d: records %v", n, recs)
			}
		}
	}
	check(tt, t)
}

// TestForwardImpliesReply: an insert publishes the reply cell first. The reader watches the very cells, since the moment
// between the two stores is short; Lookup would be too slow to see it.
func TestForwardImpliesReply(tt *testing.T) {
	n := uint32(rounds(15_000))
	t := newTable(tt, int(n), Timeouts{})
	var at atomic.Uint32 // the flow that the reader waits for
	stands := func(h, cell uint64) bool {
		b1, b2 := t.pair(h)
		for i := range bucketCells {
			if load(&t.buckets[b1][i]) == cell || load(&t.buckets[b2][i]) == cell {
				return true
			}
		}
		return false
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range n {
			for at.Load() != i+1 { // until the reader watches
				if tt.Failed() {
					return
				}
				runtime.Gosched()
			}
			f := flowN(i)
			if ref, res := t.Insert(&f, 0); res != Inserted || ref.Record != i+1 {
				tt.Errorf("flow %d: %v, record %d", i, res, ref.Record)
			}
		}
	}()
	for i := range n {
		f := flowN(i)
		fwd, rep := f.forward(), f.reply()
		fh, rh := t.Hash(&fwd), t.Hash(&rep)
		fc, rc := cellOf(fh, i+1, Forward), cellOf(rh, i+1, Reply)
		at.Store(i + 1)
		for spin := 0; !stands(fh, fc) && !tt.Failed(); spin++ {
			if spin%1000 == 999 {
				runtime.Gosched()
			}
		}
		if !stands(rh, rc) {
			tt.Errorf("flow %d: its forward cell was there before its reply cell", i)
			break
		}
		if got := both(tt, t, rep); got != (Ref{i + 1, Reply}) {
			tt.Errorf("flow %d: reply %+v", i, got)
			break
		}
	}
	<-done
}

// TestReclaimWaitsForWalkers: no record becomes free while somebody goes by record numbers.
func TestReclaimWaitsForWalkers(tt *testing.T) {
	t := newTable(tt, 1, Timeouts{})
	fill(tt, t, 1)
	t.Remove(1)
	b := t.Limbo()
	t.sweep.Lock()
	done := make(chan struct{})
	go func() {
		t.Reclaim(b)
		close(done)
	}()
	for range 1000 {
		runtime.Gosched()
		if atomic.LoadUint32(&t.records[1].life) != LifeRetired || t.Stats().Free != 0 {
			tt.Fatal("reclaimed under a walker")
		}
	}
	t.sweep.Unlock()
	<-done
	if t.Stats().Free != 1 {
		tt.Error("not reclaimed")
	}
}

// TestRemoveRace: of several callers one removes.
func TestRemoveRace(tt *testing.T) {
	t := newTable(tt, 1024, Timeouts{})
	fill(tt, t, 1024)
	var removed atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for rec := uint32(1); rec <= 1024; rec++ {
				if t.Remove(rec) {
					removed.Add(1)
				}
			}
		}()
	}
	wg.Wait()
	if removed.Load() != 1024 || t.Limbo().Len() != 1024 {
		tt.Errorf("%d removals", removed.Load())
	}
}

// TestTouchRace: no packet is lost of those that several workers count.
func TestTouchRace(tt *testing.T) {
	t := newTable(tt, 1, Timeouts{})
	f := flowN(0)
	ref, _ := t.Insert(&f, 0)
	n := rounds(20_000)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range n {
				t.Touch(ref.Record, Direction(i), Tick(j), []uint8{ack, fin, rst}[j%3])
			}
		}()
	}
	wg.Wait()
	for e := range t.All() {
		if e.ForwardPackets != uint64(2*n) || e.ReplyPackets != uint64(2*n) || e.State&(Replied|Established|FinForward|FinReply) != Replied|Established|FinForward|FinReply {
			tt.Errorf("%+v", e)
		}
	}
}

// A lookup takes no lock: it returns while every lock of the table is held.
func TestLookupTakesNoLock(tt *testing.T) {
	t := newTable(tt, 64, Timeouts{})
	fill(tt, t, 10)
	t.sweep.Lock()
	for i := range t.stripes {
		t.stripes[i].Lock()
	}
	t.mu.Lock()
	done := make(chan Ref)
	go func() {
		f := flowN(3)
		k := f.forward()
		ref := t.Lookup(&k)
		t.Touch(ref.Record, ref.Direction, 1, 0)
		done <- ref
	}()
	select {
	case ref := <-done:
		if ref.Record != 4 {
			tt.Errorf("%+v", ref)
		}
	case <-time.After(10 * time.Second):
		tt.Error("waits for a lock")
	}
}
