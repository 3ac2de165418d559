package main

// Operations of the scripts.
const (
	opLookup     = iota // arg: tuple
	opUse               // read the flow in hand again, as the translation of a frame does
	opInsert            // arg: flow
	opRemove            // the flow in hand
	opShed              // the table is crowded: remove a flow of the queue
	opTurn              // a batch boundary
	opSleep             //
	opWake              //
	opEnter             // the kernel program begins
	opExit              //
	opWalk              // a dump
	opExpire            // every flow is overdue
	opCut               // Limbo
	opGrace             // every worker passes a boundary, or sleeps
	opMembarrier        //
	opReclaim           //
)

var kinds = [...]string{
	"lookup", "use", "insert", "remove", "shed", "turn", "sleep", "wake", "enter", "exit", "walk", "expire", "cut", "grace",
	"membarrier", "reclaim",
}

type op struct{ kind, arg uint8 }

// step lets a process do the next thing that another one can see.
func (m *machine) step(s *state, p int) bool {
	q := &s.p[p]
	if int(q.op) == len(m.script[p]) {
		return false
	}
	o := m.script[p][q.op]
	switch o.kind {
	case opLookup:
		return m.lookup(s, p, o.arg)
	case opUse:
		return m.use(s, p)
	case opInsert:
		return m.insert(s, p, o.arg)
	case opRemove:
		if q.rec == 0 {
			return q.done()
		}
		if over, ok := m.remove(s, p); !over {
			return ok
		}
		q.pc = 0
		return q.done()
	case opShed:
		return m.shed(s, p)
	case opTurn, opSleep, opWake:
		return m.boundary(s, p, o.kind)
	case opEnter:
		s.section++
		return q.done()
	case opExit:
		s.section++
		q.drop()
		return q.done()
	case opWalk:
		return m.walk(s, p)
	case opExpire:
		return m.expire(s, p)
	case opCut:
		s.batch, s.limbo = s.limbo, 0
		return q.done()
	case opGrace:
		return m.grace(s, p)
	case opMembarrier:
		return m.membarrier(s, p)
	case opReclaim:
		return m.reclaim(s, p)
	}
	panic("unknown operation")
}

// done ends an operation. What is no longer needed is forgotten, so that equal states are equal.
func (q *process) done() bool {
	q.op++
	q.pc, q.i, q.a, q.b, q.must = 0, 0, 0, 0, false
	return true
}

func (q *process) drop() { q.rec, q.flow, q.hold = 0, 0, 0 }

// lookup as LookupBatch does it: the cells of a bucket first, then the records that they lead to.
func (m *machine) lookup(s *state, p int, tuple uint8) bool {
	q := &s.p[p]
	at := m.cellsOf(tuple)
	bucket := at[q.i : q.i+cells]
	next := func() {
		q.a, q.b, q.hold, q.pc = 0, 0, 0, 0
		if q.i += cells; int(q.i) == len(at) {
			if q.must {
				m.violate("tuple %d is in the table and was not found", tuple)
			}
			q.drop()
			q.done()
		}
	}
	switch q.pc {
	case 0:
		if q.i == 0 {
			q.drop()
			for f := range m.flows {
				if f := uint8(f); f != 0 && s.in&bit(f) != 0 && (m.matches(f, forward, tuple) || m.matches(f, reply, tuple)) {
					q.must = true
				}
			}
		}
		if q.a = s.load(p, bucket[0]); q.a != 0 {
			q.hold |= bit(q.a >> 1)
		}
		q.pc = 1
	case 1:
		if q.b = s.load(p, bucket[1]); q.b != 0 {
			q.hold |= bit(q.b >> 1)
		}
		switch {
		case q.a != 0:
			q.pc = 2
		case q.b != 0:
			q.pc = 3
		default:
			next()
		}
	case 2, 3:
		c := q.a
		if q.pc == 3 {
			c = q.b
		}
		rec, d := c>>1, c&1
		flow := s.load(p, word(rec, d))
		if m.matches(flow, d, tuple) {
			q.rec, q.flow, q.hold, q.a, q.b, q.pc = rec, flow, bit(rec), d, 0, 4
			return true
		}
		if q.pc == 3 || q.b == 0 {
			next()
			return true
		}
		q.a, q.hold, q.pc = 0, bit(q.b>>1), 3
	case 4:
		if got := s.load(p, word(q.rec, 1-q.a)); got != q.flow {
			m.violate("torn read: record %d has a word of flow %d and one of flow %d", q.rec, q.flow, got)
		}
		return q.done()
	}
	return true
}

// use reads both words of the flow in hand: the frame is rewritten, or the loser of a race adopts the winner's backend.
func (m *machine) use(s *state, p int) bool {
	q := &s.p[p]
	if q.rec == 0 {
		return q.done()
	}
	if got := s.load(p, word(q.rec, q.pc)); got != q.flow {
		m.violate("record %d changed under a reader: flow %d, then %d", q.rec, q.flow, got)
	}
	if q.pc == 1 {
		return q.done()
	}
	q.pc++
	return true
}

// The last steps of an insert.
const (
	fillFirst  = iota // a word of the record
	fillSecond        //
	setLive           //
	putReply          //
	putForward        //
)

// insert, see insert.go.
func (m *machine) insert(s *state, p int, flow uint8) bool {
	q := &s.p[p]
	const (
		locking = iota
		loadForward
		compareForward
		loadReply
		compareReply
		choose
		alloc
		exists
		refused
		publish // and the steps after it
	)
	switch q.pc {
	case locking:
		q.drop()
		ok, done := m.lock(s, p, flow)
		if done {
			q.pc = loadForward
		}
		return ok
	case loadForward, loadReply:
		tuple := m.flows[flow].tuple[(q.pc-loadForward)/2]
		if q.pc == loadReply && m.mutant.noReplySearch {
			q.pc = choose
			return true
		}
		if q.a = s.load(p, m.cellsOf(tuple)[q.i]); q.a != 0 {
			q.hold = bit(q.a >> 1)
			q.pc++
			return true
		}
		m.searchNext(q, tuple)
	case compareForward, compareReply:
		tuple := m.flows[flow].tuple[(q.pc-loadForward)/2]
		rec, d := q.a>>1, q.a&1
		found := s.load(p, word(rec, d))
		q.a, q.hold = 0, 0
		if !m.matches(found, d, tuple) {
			q.pc--
			m.searchNext(q, tuple)
			return true
		}
		if s.in&bit(found) == 0 {
			m.violate("insert of flow %d gives way to flow %d, which is not in the table", flow, found)
		}
		q.i = 0
		if q.pc == compareReply {
			q.pc = refused
			return true
		}
		q.rec, q.flow, q.hold, q.pc = rec, found, bit(rec), exists
	case choose:
		fc, ok1 := m.vacant(s, m.flows[flow].tuple[forward], none)
		rc, ok2 := m.vacant(s, m.flows[flow].tuple[reply], fc)
		if q.a, q.b, q.pc = fc, rc, alloc; !ok1 || !ok2 {
			q.a, q.b, q.pc = 0, 0, refused
		}
	case alloc:
		if !s.fenced(p) {
			return false
		}
		if s.free == 0 {
			q.a, q.b, q.pc = 0, 0, refused
			return true
		}
		for q.rec = 1; s.free&bit(q.rec) == 0; {
			q.rec++
		}
		s.free &^= bit(q.rec)
		s.queue |= bit(q.rec)
		q.flow, q.pc = flow, publish
	case exists, refused:
		if !m.unlock(s, p, flow) {
			return false
		}
		return q.done()
	default:
		if int(q.pc-publish) == len(m.publish) {
			if !m.unlock(s, p, flow) {
				return false
			}
			return q.done()
		}
		if !m.publishStep(s, p, m.publish[q.pc-publish]) {
			return false
		}
		q.pc++
	}
	return true
}

func (m *machine) searchNext(q *process, tuple uint8) {
	if q.i++; int(q.i) == len(m.cellsOf(tuple)) {
		q.i = 0
		q.pc += 2 // from loadForward to loadReply, from there to choose
	}
}

func (m *machine) publishStep(s *state, p int, what uint8) bool {
	q := &s.p[p]
	atomic := func(at, v uint8) bool {
		if m.mutant.plainPublish {
			m.plain(s, p, at, v)
			return true
		}
		if !s.fenced(p) {
			return false
		}
		s.mem[at] = v
		return true
	}
	switch what {
	case fillFirst, fillSecond:
		if s.holds(p, q.rec) {
			m.violate("record %d is filled while it is being read", q.rec)
		}
		m.plain(s, p, word(q.rec, what-fillFirst), q.flow)
	case setLive:
		return atomic(life(q.rec), live)
	case putReply:
		return atomic(q.b, cellOf(q.rec, reply))
	case putForward:
		if !atomic(q.a, cellOf(q.rec, forward)) {
			return false
		}
		for f := range m.flows {
			f := uint8(f)
			for _, t := range m.flows[q.flow].tuple {
				if f != 0 && s.in&bit(f) != 0 && (m.matches(f, forward, t) || m.matches(f, reply, t)) {
					m.violate("flow %d is inserted beside flow %d, which has one of its tuples", q.flow, f)
				}
			}
		}
		s.in |= bit(q.flow)
		q.hold = bit(q.rec)
	}
	return true
}

// remove, see remove.go, of the flow in hand. It uses the upper steps, so that expire can have the lower ones.
func (m *machine) remove(s *state, p int) (over, ok bool) {
	q := &s.p[p]
	const (
		look = iota
		key
		locking
		lookAgain
		retire
		clearFirst
		clearSecond
		unlock
		limbo
		leave
		base = 16
	)
	flow := q.flow
	if q.pc < base {
		q.pc = base
	}
	order := [2]uint8{forward, reply}
	if m.mutant.clearReplyFirst {
		order = [2]uint8{reply, forward}
	}
	switch q.pc - base {
	case look:
		if s.load(p, life(q.rec)) != live {
			return true, true
		}
	case key:
		if got := s.load(p, word(q.rec, forward)); got != flow {
			m.violate("record %d changed under its remover: flow %d, then %d", q.rec, flow, got)
		}
		q.b, q.i = q.i, 0 // the locks count in i
	case locking:
		ok, done := m.lock(s, p, flow)
		if !done {
			return false, ok
		}
	case lookAgain:
		if !m.mutant.noSecondLook && s.load(p, life(q.rec)) != live {
			q.pc = base + leave
			return false, true
		}
	case retire:
		if !s.fenced(p) {
			return false, false
		}
		m.retire(s, flow)
		s.mem[life(q.rec)] = retired
	case clearFirst, clearSecond:
		if !s.fenced(p) {
			return false, false
		}
		d := order[q.pc-base-clearFirst]
		found := false
		for _, at := range m.cellsOf(m.flows[flow].tuple[d]) {
			if s.mem[at] == cellOf(q.rec, d) {
				s.mem[at], found = 0, true
				break
			}
		}
		if !found {
			m.violate("the cell of flow %d that is to be cleared is not there", flow)
		}
	case unlock:
		if !m.unlock(s, p, flow) {
			return false, false
		}
	case limbo:
		if (s.limbo|s.batch|s.free)&bit(q.rec) != 0 {
			m.violate("record %d is removed twice", q.rec)
		}
		s.limbo |= bit(q.rec)
		s.queue &^= bit(q.rec)
		q.i, q.b = q.b, 0
		return true, true
	case leave:
		if !m.unlock(s, p, flow) {
			return false, false
		}
		q.i, q.b = q.b, 0
		return true, true
	}
	q.pc++
	return false, true
}

// shed, see pressure.go: a victim is taken off the queue by its number, not through a cell, while it is live.
func (m *machine) shed(s *state, p int) bool {
	q := &s.p[p]
	switch q.pc {
	case 0:
		if !s.fenced(p) {
			return false
		}
		own := q.rec
		q.drop()
		for rec := uint8(1); rec <= m.records; rec++ {
			if s.queue&bit(rec) != 0 && rec != own && s.mem[life(rec)] == live {
				s.queue &^= bit(rec)
				q.rec, q.hold, q.pc = rec, bit(rec), 1
				return true
			}
		}
		return q.done()
	case 1:
		q.flow, q.pc = s.load(p, word(q.rec, reply)), 2
		return true
	}
	over, ok := m.remove(s, p)
	if !over {
		return ok
	}
	q.drop()
	return q.done()
}

// boundary is a worker's turn, going to sleep, or waking up: an atomic store of its turn.
func (m *machine) boundary(s *state, p int, kind uint8) bool {
	q := &s.p[p]
	at := uint8(turnAt + p)
	turn := s.load(p, at)
	if kind == opWake && m.mutant.plainWake {
		m.plain(s, p, at, turn+1)
		return q.done()
	}
	if !s.fenced(p) {
		return false
	}
	switch kind {
	case opTurn:
		s.mem[at] = turn + 2
	case opSleep:
		s.mem[at] = turn | 1
	case opWake:
		s.mem[at] = turn + 1
	}
	if !m.mutant.keepRef {
		q.drop()
	}
	return q.done()
}

// walk copies the live records by number, as All does.
func (m *machine) walk(s *state, p int) bool {
	q := &s.p[p]
	switch q.pc {
	case 0:
		if !m.sweep(s, p) {
			return false
		}
		q.i, q.pc = 1, 1
	case 1:
		if q.i > m.records {
			m.unsweep(s)
			return q.done()
		}
		if s.load(p, life(q.i)) != live {
			q.i++
			return true
		}
		q.hold, q.pc = bit(q.i), 2
	case 2:
		q.flow, q.pc = s.load(p, word(q.i, 0)), 3
	case 3:
		if got := s.load(p, word(q.i, 1)); got != q.flow {
			m.violate("torn entry: record %d has a word of flow %d and one of flow %d", q.i, q.flow, got)
		}
		q.drop()
		q.i, q.pc = q.i+1, 1
	}
	return true
}

// expire removes every live record, by number.
func (m *machine) expire(s *state, p int) bool {
	q := &s.p[p]
	switch q.pc {
	case 0:
		if !m.sweep(s, p) {
			return false
		}
		q.i, q.pc = 1, 1
	case 1:
		if q.i > m.records {
			m.unsweep(s)
			return q.done()
		}
		if s.load(p, life(q.i)) != live {
			q.i++
			return true
		}
		q.rec, q.hold, q.pc = q.i, bit(q.i), 2
	case 2:
		q.flow, q.pc = s.load(p, word(q.rec, reply)), 3
	default:
		over, ok := m.remove(s, p)
		if !over {
			return ok
		}
		q.drop()
		q.i, q.pc = q.i+1, 1
	}
	return true
}

// grace waits for every worker. i is the worker, pc 1 waits for the turn in a to pass.
func (m *machine) grace(s *state, p int) bool {
	q := &s.p[p]
	if m.mutant.noGrace || s.batch == 0 && !m.mutant.cutLate {
		return q.done()
	}
	turn := s.load(p, turnAt+q.i)
	if q.pc == 0 && turn&1 == 0 {
		q.a, q.pc = turn, 1
		return true
	}
	if q.pc == 1 && turn&1 == 0 && turn == q.a {
		return false
	}
	q.a, q.pc = 0, 0
	if q.i++; q.i == workers {
		return q.done()
	}
	return true
}

// membarrier waits for the kernel program if one runs now.
func (m *machine) membarrier(s *state, p int) bool {
	q := &s.p[p]
	if m.mutant.noMembarrier || s.batch == 0 && !m.mutant.cutLate {
		return q.done()
	}
	if q.pc == 0 && s.section&1 == 1 {
		q.a, q.pc = s.section, 1
		return true
	}
	if q.pc == 1 && s.section == q.a {
		return false
	}
	return q.done()
}

func (m *machine) reclaim(s *state, p int) bool {
	q := &s.p[p]
	if q.pc == 0 {
		if s.batch == 0 {
			return q.done()
		}
		if !m.sweep(s, p) {
			return false
		}
		q.pc = 1
		return true
	}
	if s.batch == 0 {
		m.unsweep(s)
		return q.done()
	}
	rec := uint8(1)
	for s.batch&bit(rec) == 0 {
		rec++
	}
	if q.pc == 1 {
		if s.mem[life(rec)] != retired {
			s.batch &^= bit(rec)
			return true
		}
		s.mem[life(rec)] = free
		q.pc = 2
		return true
	}
	s.batch &^= bit(rec)
	s.free |= bit(rec)
	q.pc = 1
	return true
}
