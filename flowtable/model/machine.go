package main

import (
	"fmt"
	"math/bits"
)

// The processes.
const (
	writer1 = iota // worker
	writer2        // worker
	reader         // worker
	kernel         // BPF program, or in one scenario a dump
	housekeeper
	processes

	workers = 3
)

// An action is a step of one process, or one entry of its store buffer reaching memory.
const (
	depth   = 5 // of a store buffer
	actions = processes + processes*depth
)

// Memory that readers share: records, cells, lives, turns. A store buffer's entry is address<<4 | value.
const (
	records = 2
	buckets = 2
	cells   = 2 // in a bucket

	wordAt = 0 // two words a record
	cellAt = wordAt + 2*records
	lifeAt = cellAt + buckets*cells
	turnAt = lifeAt + records
	size   = turnAt + workers
)

const (
	free    = 0
	live    = 1
	retired = 2
)

const (
	sweepLock = 1 << buckets // above the stripes

	forward = 0
	reply   = 1
)

type process struct {
	op, pc uint8 // where in its script, where in that operation
	i      uint8 // what it is looking at: a cell, a record, a worker
	a, b   uint8 // cells it loaded, or has chosen
	rec    uint8 // the flow it has hold of
	flow   uint8
	hold   uint8 // records it may still read
	must   bool  // the lookup under way must find its tuple
}

// A state is everything, and comparable.
type state struct {
	mem   [size]uint8
	store [processes][depth]uint8 // not yet in memory, oldest first
	p     [processes]process
	locks uint8

	free, limbo, batch uint8 // sets of records
	queue              uint8 // of records that may be shed
	section            uint8 // of the kernel's reader: odd inside
	in                 uint8 // flows whose insert is decided and whose removal is not
}

// A machine is one scenario under one memory model, with what is wrong in it.
type machine struct {
	scenario
	memory  memory
	mutant  mutant
	publish []uint8 // the last steps of an insert, in order
	blind   bool    // do not look at states as a whole, only at what the processes notice
	why     string  // what the step just done has violated
}

type memory uint8

const (
	sc  memory = iota // stores are seen at once
	tso               // stores wait in a queue
	pso               // stores wait, and overtake each other
)

func (m memory) String() string { return [...]string{"SC", "TSO", "PSO"}[m] }

func (m *machine) violate(format string, args ...any) {
	if m.why == "" {
		m.why = fmt.Sprintf(format, args...)
	}
}

func word(rec, half uint8) uint8 { return wordAt + 2*(rec-1) + half }
func life(rec uint8) uint8       { return lifeAt + rec - 1 }
func bit(rec uint8) uint8        { return 1 << rec }
func cellOf(rec, d uint8) uint8  { return rec<<1 | d }

// load is a load of one thread: its own stores first.
func (s *state) load(p int, at uint8) uint8 {
	for i := depth - 1; i >= 0; i-- {
		if e := s.store[p][i]; e != 0 && e>>4 == at {
			return e & 15
		}
	}
	return s.mem[at]
}

// fenced: an atomic store, a lock or a system call of the thread waits until its stores are in memory.
func (s *state) fenced(p int) bool { return s.store[p] == [depth]uint8{} }

// plain is a store that may linger.
func (m *machine) plain(s *state, p int, at, v uint8) {
	if m.memory == sc {
		s.mem[at] = v
		return
	}
	for i := range s.store[p] {
		if s.store[p][i] == 0 {
			s.store[p][i] = at<<4 | v
			return
		}
	}
	panic("store buffer too small")
}

// drain lets one entry of a buffer reach memory: the oldest, or with PSO any that has no older one of its address.
func (m *machine) drain(s *state, p, i int) bool {
	e := s.store[p][i]
	if e == 0 || m.memory == tso && i > 0 {
		return false
	}
	for _, older := range s.store[p][:i] {
		if older>>4 == e>>4 {
			return false
		}
	}
	s.mem[e>>4] = e & 15
	copy(s.store[p][i:], s.store[p][i+1:])
	s.store[p][depth-1] = 0
	return true
}

// act does one action, and reports false if it cannot be done in this state.
func (m *machine) act(s *state, action int) bool {
	if action >= processes {
		action -= processes
		return m.drain(s, action/depth, action%depth)
	}
	return m.step(s, action)
}

var names = [processes]string{"writer 1", "writer 2", "reader", "kernel", "housekeeper"}

func (m *machine) describe(s *state, action int) string {
	if action >= processes {
		action -= processes
		e := s.store[action/depth][action%depth]
		return fmt.Sprintf("%s: store of %d reaches %s", names[action/depth], e&15, place(e>>4))
	}
	p := s.p[action]
	o := m.script[action][p.op]
	return fmt.Sprintf("%s: %s %d, step %d (i=%d rec=%d flow=%d)", names[action], kinds[o.kind], o.arg, p.pc, p.i, p.rec, p.flow)
}

func place(at uint8) string {
	switch {
	case at < cellAt:
		return fmt.Sprintf("record %d word %d", at/2+1, at%2)
	case at < lifeAt:
		return fmt.Sprintf("cell %d", at-cellAt)
	case at < turnAt:
		return fmt.Sprintf("life of %d", at-lifeAt+1)
	}
	return fmt.Sprintf("turn of %d", at-turnAt)
}

func (m *machine) initial() state {
	var s state
	s.free = (1<<m.records - 1) << 1
	for i, f := range m.before {
		rec := uint8(i + 1)
		s.free &^= bit(rec)
		s.queue |= bit(rec)
		s.mem[life(rec)] = live
		s.mem[word(rec, 0)], s.mem[word(rec, 1)] = f, f
		s.in |= bit(f)
		for d := range uint8(2) {
			at, _ := m.vacant(&s, m.flows[f].tuple[d], none)
			s.mem[at] = cellOf(rec, d)
		}
	}
	return s
}

const none = 255

// cellsOf returns the addresses of a tuple's cells in the order of a lookup.
func (m *machine) cellsOf(tuple uint8) []uint8 { return m.places[tuple] }

func (m *machine) vacant(s *state, tuple, taken uint8) (uint8, bool) {
	for _, at := range m.cellsOf(tuple) {
		if at != taken && s.mem[at] == 0 {
			return at, true
		}
	}
	return none, false
}

// stripes returns the set of a flow's locks.
func (m *machine) stripes(flow uint8) (set uint8) {
	for d, tuple := range m.flows[flow].tuple {
		if d == reply && m.mutant.lockForwardOnly {
			break
		}
		for _, at := range m.cellsOf(tuple) {
			set |= 1 << ((at - cellAt) / cells)
		}
	}
	return set
}

// lock takes the next stripe of the flow that the process does not have yet; i counts them. It reports done after
// the last one.
func (m *machine) lock(s *state, p int, flow uint8) (ok, done bool) {
	q := &s.p[p]
	set := m.stripes(flow)
	if m.mutant.noStripes {
		return true, true
	}
	pick := set
	if m.mutant.lockAnyOrder && p == writer2 {
		pick = bits.Reverse8(set)
	}
	for range q.i {
		pick &= pick - 1
	}
	one := pick & -pick
	if m.mutant.lockAnyOrder && p == writer2 {
		one = bits.Reverse8(one)
	}
	if s.locks&one != 0 || !s.fenced(p) {
		return false, false
	}
	s.locks |= one
	q.i++
	if int(q.i) == bits.OnesCount8(set) {
		q.i = 0
		return true, true
	}
	return true, false
}

func (m *machine) unlock(s *state, p int, flow uint8) bool {
	if m.mutant.noStripes {
		return true
	}
	if !s.fenced(p) {
		return false
	}
	s.locks &^= m.stripes(flow)
	return true
}

func (m *machine) sweep(s *state, p int) bool {
	if m.mutant.noSweepLock {
		return true
	}
	if s.locks&sweepLock != 0 || !s.fenced(p) {
		return false
	}
	s.locks |= sweepLock
	return true
}

func (m *machine) unsweep(s *state) {
	if !m.mutant.noSweepLock {
		s.locks &^= sweepLock
	}
}

// matches reports whether a flow's tuple in a direction is the one looked for.
func (m *machine) matches(flow, d, tuple uint8) bool {
	return flow != 0 && m.flows[flow].tuple[d] == tuple
}

// retire is the moment of a removal: lookups that are under way may miss the flow from now on.
func (m *machine) retire(s *state, flow uint8) {
	if s.in&bit(flow) == 0 {
		m.violate("flow %d is removed, but is not in the table", flow)
	}
	s.in &^= bit(flow)
	for p := range s.p {
		if q := &s.p[p]; q.must {
			if t := m.script[p][q.op].arg; m.matches(flow, forward, t) || m.matches(flow, reply, t) {
				q.must = false
			}
		}
	}
}

// holds reports whether a process other than p may read the record.
func (s *state) holds(p int, rec uint8) bool {
	for i := range s.p {
		if i != p && s.p[i].hold&bit(rec) != 0 {
			return true
		}
	}
	return false
}
