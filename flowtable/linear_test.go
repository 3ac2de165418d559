package flowtable

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// Histories of the real code, recorded while goroutines race on a few tuples, are checked for linearizability: is
// there an order of the operations, each at one moment between its call and its return, that a sequential table would have
// answered alike?
//
// Insert and Remove are not one moment but several, and the table promises their order (insert.go, remove.go). So what
// was called once is in the history as its steps, all with the call's interval:
//
//	Insert, Inserted   the reply tuple appears; the forward tuple appears
//	Remove, true       the flow is no longer live; the forward tuple goes; the reply tuple goes
//
// Everything else is one step. The order of the steps is the specification's: a forward tuple is there only with its
// reply tuple.

// A stage of a flow. Every insert tried has a flow of its own.
type stage uint8

const (
	stageOut     stage = iota // not yet, or no longer
	stageReply                // its reply tuple is there
	stageIn                   // both are
	stageRetired              // both are, but Remove has begun
	stageLeaving              // only the reply tuple is left
)

type stepKind uint8

const (
	stepPutReply stepKind = iota
	stepPutForward
	stepRetire
	stepClearForward
	stepClearReply
	stepExists    // Insert gave way to flow
	stepCollision // Insert found its reply tuple, of any flow, taken
	stepGone      // Remove came too late
	stepLookup    // of tuple: flow, or 0
)

// A linStep is porcupine's input. There is no output: it is part of the step.
type linStep struct {
	kind    stepKind
	flow    uint8
	forward uint8 // number of the tuple: of the flow, or looked up
	reply   uint8
}

const (
	linGoroutines = 4
	linEach       = 6                       // operations of each in a history
	linFlows      = linGoroutines * linEach // inserts, numbered from 1
	linTuples     = 4                       // 0 and 1 are forward tuples, 2 and 3 reply tuples
)

// linState says where each flow is, and which flow each tuple finds.
type linState struct {
	stage [linFlows + 1]stage
	has   [linTuples]uint8
}

var tableModel = porcupine.Model{
	Init: func() any { return linState{} },
	Step: func(state, input, _ any) (bool, any) {
		s, in := state.(linState), input.(linStep)
		move := func(from, to stage) bool {
			ok := s.stage[in.flow] == from
			s.stage[in.flow] = to
			return ok
		}
		set := func(tuple, from, to uint8) bool {
			ok := s.has[tuple] == from
			s.has[tuple] = to
			return ok
		}
		ok := false
		switch in.kind {
		case stepPutReply:
			ok = move(stageOut, stageReply) && s.has[in.forward] == 0 && set(in.reply, 0, in.flow)
		case stepPutForward:
			ok = move(stageReply, stageIn) && set(in.forward, 0, in.flow)
		case stepRetire:
			ok = move(stageIn, stageRetired)
		case stepClearForward:
			ok = move(stageRetired, stageLeaving) && set(in.forward, in.flow, 0)
		case stepClearReply:
			ok = move(stageLeaving, stageOut) && set(in.reply, in.flow, 0)
		case stepExists:
			ok = s.has[in.forward] == in.flow && s.stage[in.flow] == stageIn
		case stepCollision:
			ok = s.has[in.forward] == 0 && s.has[in.reply] != 0 && s.stage[s.has[in.reply]] == stageIn
		case stepGone:
			ok = s.stage[in.flow] != stageIn && s.stage[in.flow] != stageReply
		case stepLookup:
			ok = s.has[in.forward] == in.flow
		}
		return ok, s
	},
	DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
}

// linFlow is the flow of an insert: forward tuple and reply tuple by number, and the insert's own number in a field that
// nobody compares.
func linFlow(n, forward, reply uint8) Flow {
	return Flow{
		Client: pod(uint32(forward)), Frontend: clusterIP(1), Backend: pod(100 + uint32(reply)),
		Source: clusterIP(7), ClientPort: 1000 + uint16(forward), FrontendPort: 80, BackendPort: 8080, SourcePort: 5000,
		Proto: 17, Generation: uint32(n),
	}
}

func linTuple(n uint8) Tuple {
	if f := linFlow(0, n&1, n); n >= 2 {
		return f.reply()
	}
	f := linFlow(0, n, 2)
	return f.forward()
}

type linHistory struct {
	ops                         []porcupine.Operation
	inserted, lost, refused, in int
}

// overlaps counts the steps during which another goroutine called.
func (h *linHistory) overlaps() (n int) {
	for i := range h.ops {
		for j := range h.ops {
			if a, b := &h.ops[i], &h.ops[j]; a.ClientId != b.ClientId && a.Call <= b.Call && b.Call <= a.Return {
				n++
				break
			}
		}
	}
	return n
}

// A recorder keeps its goroutines from history to history: a new one would be late for a race of microseconds.
type recorder struct {
	tt    *testing.T
	t     *Table
	ws    []worker
	seed  uint64
	began time.Time
	parts [linGoroutines]linHistory

	round    atomic.Int32 // of the history under way, negative to stop
	at, done atomic.Int32
	stopped  sync.WaitGroup
}

func newRecorder(tt *testing.T) *recorder {
	r := &recorder{tt: tt, began: time.Now()}
	for g := 1; g < linGoroutines; g++ {
		r.stopped.Add(1)
		go func() {
			defer r.stopped.Done()
			for round := int32(1); ; round++ {
				for r.round.Load() >= 0 && r.round.Load() < round {
					runtime.Gosched()
				}
				if r.round.Load() < 0 {
					return
				}
				r.run(g)
				r.done.Add(1)
			}
		}()
	}
	tt.Cleanup(func() {
		r.round.Store(-1)
		r.stopped.Wait()
	})
	return r
}

// record lets the goroutines race for a few operations each in a new table and returns what they saw.
func (r *recorder) record(seed uint64) (h linHistory) {
	r.t, r.ws, r.seed = newTable(r.tt, 32, Timeouts{}), make([]worker, linGoroutines), seed
	r.at.Store(0)
	r.done.Store(1)
	r.round.Add(1)
	r.run(0)
	for r.done.Load() < linGoroutines {
		runtime.Gosched()
	}
	for i := range r.parts {
		part := &r.parts[i]
		h.ops = append(h.ops, part.ops...)
		h.inserted += part.inserted
		h.lost += part.lost
		h.refused += part.refused
		h.in += part.in
	}
	return h
}

// run is one goroutine's part. The first one is the housekeeper too, but never waits: it looks whether the others have
// passed. So the flows of one history use each other's records.
func (r *recorder) run(g int) {
	var (
		t       = r.t
		w       = &r.ws[g]
		rng     = rand.New(rand.NewPCG(r.seed, uint64(g)))
		mine    linHistory
		held    Ref
		waiting Batch
		seen    [linGoroutines]uint64
	)
	now := func() int64 { return int64(time.Since(r.began)) }
	note := func(call int64, steps ...linStep) {
		ret := now()
		for _, s := range steps {
			mine.ops = append(mine.ops, porcupine.Operation{ClientId: g, Input: s, Call: call, Return: ret})
		}
	}
	// owner reads which insert a record is of, while it may.
	owner := func(rec uint32) uint8 { return uint8(t.Generation(rec)) }
	for i := range linEach {
		// All at once, each time: left alone, they would mostly run one after the other.
		r.at.Add(1)
		for spin := 1; r.at.Load() < int32(linGoroutines*(i+1)); spin++ {
			if spin%100 == 0 {
				runtime.Gosched()
			}
		}
		switch kind := rng.IntN(8); {
		case kind < 3:
			n := uint8(g*linEach + i + 1)
			s := linStep{flow: n, forward: uint8(rng.IntN(2)), reply: uint8(2 + rng.IntN(2))}
			f := linFlow(n, s.forward, s.reply)
			call := now()
			ref, res := t.Insert(&f, 0)
			switch res {
			case Inserted:
				put, show := s, s
				put.kind, show.kind = stepPutReply, stepPutForward
				note(call, put, show)
				mine.inserted++
			case Exists:
				s.kind, s.flow = stepExists, owner(ref.Record)
				note(call, s)
				mine.lost++
			case Collision:
				s.kind = stepCollision
				note(call, s)
				mine.refused++
			default:
				r.tt.Errorf("insert: %v", res)
			}
			held = ref
		case kind < 6:
			s := linStep{kind: stepLookup, forward: uint8(rng.IntN(linTuples))}
			k := linTuple(s.forward)
			call := now()
			ref := t.Lookup(&k)
			if ref.Record != 0 {
				s.flow = owner(ref.Record)
				mine.in++
			}
			note(call, s)
			held = ref
		case held.Record != 0:
			var f Flow
			t.Flow(held.Record, &f)
			n, forward, reply := uint8(f.Generation), uint8(f.ClientPort-1000), f.Backend[15]-100
			call := now()
			if t.Remove(held.Record) {
				note(call, linStep{stepRetire, n, forward, reply}, linStep{stepClearForward, n, forward, reply}, linStep{stepClearReply, n, forward, reply})
			} else {
				note(call, linStep{stepGone, n, forward, reply})
			}
		}
		if rng.IntN(3) != 0 {
			continue
		}
		held = Ref{}
		w.boundary()
		if g != 0 || !passed(r.ws, &seen) {
			continue
		}
		t.Reclaim(waiting)
		waiting = t.Limbo()
		for i := range r.ws {
			seen[i] = r.ws[i].passed.Load()
		}
	}
	w.sleep()
	r.parts[g] = mine
}

// passed is grace without waiting.
func passed(ws []worker, seen *[linGoroutines]uint64) bool {
	for i := range ws {
		if now := ws[i].passed.Load(); now&1 == 0 && now == seen[i] {
			return false
		}
	}
	return true
}

// TestLinearizable checks ten thousand histories, a tenth of that under the race detector, or SLUICE_HISTORIES.
func TestLinearizable(tt *testing.T) {
	n := rounds(10_000)
	if s := os.Getenv("SLUICE_HISTORIES"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			tt.Fatal(err)
		}
	}
	var sum linHistory
	steps, overlaps := 0, 0
	r := newRecorder(tt)
	for i := range n {
		h := r.record(uint64(i))
		if tt.Failed() {
			return
		}
		if !porcupine.CheckOperations(tableModel, h.ops) {
			for _, op := range h.ops {
				tt.Logf("%2d: %6d to %6d: %+v", op.ClientId, op.Call, op.Return, op.Input)
			}
			tt.Fatalf("history %d is not linearizable", i)
		}
		check(tt, r.t)
		steps += len(h.ops)
		overlaps += h.overlaps()
		sum.inserted += h.inserted
		sum.lost += h.lost
		sum.refused += h.refused
		sum.in += h.in
	}
	tt.Logf("%d histories, %d steps, %d overlap: %d inserted, %d gave way, %d refused, %d found",
		n, steps, overlaps, sum.inserted, sum.lost, sum.refused, sum.in)
	if overlaps == 0 || sum.inserted == 0 || sum.lost == 0 || sum.refused == 0 || sum.in == 0 {
		tt.Error("too easy")
	}
}

// The checker has teeth: histories that a wrong table would write are rejected, and their right twins are not.
func TestLinearizableRejects(t *testing.T) {
	at := func(call, ret int64, steps ...linStep) (ops []porcupine.Operation) {
		for _, s := range steps {
			ops = append(ops, porcupine.Operation{Input: s, Call: call, Return: ret})
		}
		return ops
	}
	insert := func(n, forward, reply uint8) []linStep {
		return []linStep{{stepPutReply, n, forward, reply}, {stepPutForward, n, forward, reply}}
	}
	remove := func(n, forward, reply uint8) []linStep {
		return []linStep{{stepRetire, n, forward, reply}, {stepClearForward, n, forward, reply}, {stepClearReply, n, forward, reply}}
	}
	look := func(tuple, n uint8) linStep { return linStep{kind: stepLookup, forward: tuple, flow: n} }
	join := func(parts ...[]porcupine.Operation) (ops []porcupine.Operation) {
		for _, p := range parts {
			ops = append(ops, p...)
		}
		return ops
	}
	for _, c := range []struct {
		name string
		ops  []porcupine.Operation
		want bool
	}{
		{"found after the insert", join(at(0, 1, insert(1, 0, 2)...), at(2, 3, look(0, 1)), at(4, 5, look(2, 1))), true},
		{"lost after the insert", join(at(0, 1, insert(1, 0, 2)...), at(2, 3, look(0, 0))), false},
		{"reply lost after the insert", join(at(0, 1, insert(1, 0, 2)...), at(2, 3, look(2, 0))), false},
		{"reply first", join(at(0, 9, insert(1, 0, 2)...), at(2, 3, look(2, 1)), at(4, 5, look(0, 0))), true},
		{"forward first", join(at(0, 9, insert(1, 0, 2)...), at(2, 3, look(0, 1)), at(4, 5, look(2, 0))), false},
		{"seen, then not, while being inserted", join(at(0, 9, insert(1, 0, 2)...), at(2, 3, look(0, 1)), at(4, 5, look(0, 0))), false},
		{"doubled", join(at(0, 9, insert(1, 0, 2)...), at(0, 9, insert(2, 0, 3)...)), false},
		{"doubled reply", join(at(0, 9, insert(1, 0, 2)...), at(0, 9, insert(2, 1, 2)...)), false},
		{"one after the other", join(at(0, 3, insert(1, 0, 2)...), at(2, 5, remove(1, 0, 2)...), at(4, 9, insert(2, 0, 2)...)), true},
		{"loser gets the winner", join(at(0, 9, insert(1, 0, 2)...), at(0, 9, linStep{stepExists, 1, 0, 3})), true},
		{"loser gets a stranger", join(at(0, 9, insert(1, 0, 2)...), at(0, 9, linStep{stepExists, 2, 0, 3})), false},
		{"found after the removal", join(at(0, 1, insert(1, 0, 2)...), at(2, 3, remove(1, 0, 2)...), at(4, 5, look(0, 1))), false},
		{"forward goes first", join(at(0, 1, insert(1, 0, 2)...), at(2, 9, remove(1, 0, 2)...), at(4, 5, look(0, 0)), at(6, 7, look(2, 1))), true},
		{"reply goes first", join(at(0, 1, insert(1, 0, 2)...), at(2, 9, remove(1, 0, 2)...), at(4, 5, look(2, 0)), at(6, 7, look(0, 1))), false},
		{"removed twice", join(at(0, 1, insert(1, 0, 2)...), at(2, 9, remove(1, 0, 2)...), at(2, 9, remove(1, 0, 2)...)), false},
		{"removed once", join(at(0, 1, insert(1, 0, 2)...), at(2, 9, remove(1, 0, 2)...), at(2, 9, linStep{stepGone, 1, 0, 2})), true},
		{"refused by nobody", at(0, 1, linStep{stepCollision, 2, 0, 2}), false},
	} {
		if got := porcupine.CheckOperations(tableModel, c.ops); got != c.want {
			t.Errorf("%s: linearizable is %v, want %v", c.name, got, c.want)
		}
	}
}

// The recorder has teeth too: one answer of a recorded history changed, and it is rejected.
func TestLinearizableNoticesAChangedAnswer(tt *testing.T) {
	changed, rejected := 0, 0
	r := newRecorder(tt)
	for i := range 200 {
		h := r.record(uint64(i))
		for j := range h.ops {
			if s := h.ops[j].Input.(linStep); s.kind == stepLookup && s.flow != 0 {
				s.flow = s.flow%linFlows + 1
				h.ops[j].Input = s
				changed++
				if !porcupine.CheckOperations(tableModel, h.ops) {
					rejected++
				}
				break
			}
		}
	}
	if changed < 100 || rejected != changed {
		tt.Errorf("%d of %d changed histories rejected", rejected, changed)
	}
}
