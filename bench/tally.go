package bench

import "fmt"

// Tally is what became of the datagrams of a run.
type Tally struct {
	Sent        uint64 `json:"sent"`
	Received    uint64 `json:"received"` // good ones, duplicates included
	Lost        uint64 `json:"lost"`
	Duplicated  uint64 `json:"duplicated"`
	Reordered   uint64 `json:"reordered"` // behind a later one of the same flow
	Corrupted   uint64 `json:"corrupted"`
	WrongSource uint64 `json:"wrong_source"`
}

// LossRate is the share that did not arrive whole.
func (t Tally) LossRate() float64 {
	if t.Sent == 0 {
		return 0
	}
	return float64(t.Lost+t.Corrupted) / float64(t.Sent)
}

func (t Tally) String() string {
	return fmt.Sprintf("sent=%d received=%d lost=%d duplicated=%d reordered=%d corrupted=%d wrong_source=%d",
		t.Sent, t.Received, t.Lost, t.Duplicated, t.Reordered, t.Corrupted, t.WrongSource)
}

// add sums two tallies of different runs.
func (t *Tally) add(o Tally) {
	t.Sent += o.Sent
	t.Received += o.Received
	t.Lost += o.Lost
	t.Duplicated += o.Duplicated
	t.Reordered += o.Reordered
	t.Corrupted += o.Corrupted
	t.WrongSource += o.WrongSource
}

// close settles what is lost: what was sent and came neither whole nor corrupted.
func (t *Tally) close(sent uint64) {
	t.Sent = sent
	t.Lost = 0
	if came := t.Received - t.Duplicated + t.Corrupted; came < sent {
		t.Lost = sent - came
	}
}

// ledger counts by number. For one goroutine.
type ledger struct {
	Tally
	seen   []uint64
	latest []uint32
}

func newLedger(flows int) *ledger {
	return &ledger{latest: make([]uint32, flows)}
}

// note takes down a whole datagram.
func (l *ledger) note(s stamp, rightSource bool) {
	l.Received++
	if !rightSource {
		l.WrongSource++
	}
	word := int(s.seq / 64)
	if word >= len(l.seen) {
		l.seen = append(l.seen, make([]uint64, max(word+1-len(l.seen), 1<<12))...)
	}
	bit := uint64(1) << (s.seq % 64)
	if l.seen[word]&bit != 0 {
		l.Duplicated++
		return
	}
	l.seen[word] |= bit
	if int(s.flow) >= len(l.latest) {
		return
	}
	if s.seq+1 < l.latest[s.flow] {
		l.Reordered++
		return
	}
	l.latest[s.flow] = s.seq + 1
}
