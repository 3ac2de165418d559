package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/sluice-net/sluice/dataplane"
	"github.com/sluice-net/sluice/internal/netlab"
)

const (
	// atOnce is how many flows take a step together, batchFrames how many frames that may be: a veth ring holds 256.
	atOnce      = 48
	batchFrames = 128
	// arrival bounds the wait for markers, grace that for frames which are behind them.
	arrival = 10 * time.Second
	settle  = 2 * time.Millisecond
	// lull is how long nothing more has come before what did not come counts: a frame
	// that the scheduler held up must not be taken for one that was dropped.
	lull  = 8 * time.Millisecond
	grace = 300 * time.Millisecond
	haste = 5 * time.Millisecond // for what is played again if it is not equal
)

// duel is the two sides under one setting.
type duel struct {
	setting
	on             features
	classes        []class
	kernel, sluice *side
	round          uint32
	loners         int // fragments that came out of Sluice in this batch, long after their own
	givenUp        int // all of them
}

// newDuel builds both sides.
func newDuel(tb netlab.TB, s setting, on features) (*duel, error) {
	d := &duel{setting: s, on: on}
	d.classes = append(append(d.classes, classes...), notYet(on)...)
	d.kernel, d.sluice = newSide(tb, "kernel", s, on), newSide(tb, "sluice", s, on)
	d.kernel.translateInKernel()
	if s.mode == dataplane.ModeFront {
		d.sluice.translateInKernel() // as kube-proxy does behind it
	}
	if err := d.sluice.translateInSluice(tb, s.mode, s.kind); err != nil {
		return nil, err
	}
	// Markers open their flows before the markers of the way back need them.
	for range 2 {
		if _, err := d.play(nil, grace, nil); err != nil {
			return nil, errors.Join(fmt.Errorf("markers: %w", err), d.sluice.stop())
		}
	}
	return d, nil
}

// close stops Sluice, and says what was wrong with the run as a whole.
func (d *duel) close() error {
	err := d.sluice.stop()
	s := d.sluice.stats
	if n := s.Unaccounted(); n != 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d frames that Sluice received have no verdict", n, s.Received))
	}
	for _, x := range []*side{d.kernel, d.sluice} {
		if n := x.lost(); n > 0 {
			err = errors.Join(err, fmt.Errorf("captures of the %s's side lost %d frames", x.name, n))
		}
	}
	return err
}

// pending is a step and whose it is.
type pending struct {
	step
	script
	key clientKey
}

// judged is a pending step with its end.
type judged struct {
	outcome
	script
	unsent error  // neither side could send it
	class  string // of the difference; "" for none
	differ bool
}

// strays are frames that no step of the batch can have sent.
type strays struct{ side, frames string }

func (s strays) Error() string {
	return "on the " + s.side + "'s side came out what nobody sent in this batch:\n" + s.frames
}

// play sends steps of different flows on both sides and judges what comes out. It waits no longer than patience for what
// may be late. If the frames may be such that nobody can say whose they are, loose tells of them: they are compared for
// themselves, or are the step's if it is the only one.
func (d *duel) play(steps []pending, patience time.Duration, loose *looseEnds) ([]judged, error) {
	all := make([]judged, len(steps))
	for i, p := range steps {
		all[i].outcome, all[i].script = outcome{setting: d.setting, step: p.step}, p.script
		for _, f := range p.frames {
			a, b := d.kernel.send(p.at, f), d.sluice.send(p.at, f)
			if (a == nil) != (b == nil) {
				return nil, fmt.Errorf("%s, %s: sending on one side only: %w", p.name(), p.what, errors.Join(a, b))
			}
			all[i].unsent = a
		}
	}
	d.round++
	defer func() { d.givenUp += d.loners }()
	d.loners = 0
	var arrived [2][]output
	var marks [2]int
	sides := [2]*side{d.kernel, d.sluice}
	for _, x := range sides {
		if err := x.mark(d.round); err != nil {
			return nil, err
		}
	}
	gather := func() error {
		for i, x := range sides {
			outs, n, err := x.gather(d.round)
			if err != nil {
				return err
			}
			arrived[i], marks[i] = append(arrived[i], outs...), marks[i]+n
		}
		return nil
	}
	want := marksEach
	if d.round == 1 {
		want = marksOut // the ways back are not known yet
	}
	for start := time.Now(); marks[0] < want || marks[1] < want; time.Sleep(100 * time.Microsecond) {
		if err := gather(); err != nil {
			return nil, err
		}
		if time.Since(start) > arrival {
			return nil, fmt.Errorf("after %v %d of %d markers had arrived on the kernel's side, %d on Sluice's", arrival, marks[0], want, marks[1])
		}
	}
	wait := settle
	for start := time.Now(); ; {
		end, err := d.judge(steps, all, arrived, loose)
		if end == allEqual && err == nil || end == allExplained && wait > lull || time.Since(start) > patience {
			return all, err
		}
		time.Sleep(wait)
		wait *= 2
		if err := gather(); err != nil {
			return nil, err
		}
	}
}

// ending is how a batch stands.
type ending uint8

const (
	someDiffer   ending = iota
	allExplained        // or equal in that nothing came out where something should have: it may be late
	allEqual
)

// judge gives each step what came of it until now.
func (d *duel) judge(steps []pending, all []judged, arrived [2][]output, loose *looseEnds) (end ending, err error) {
	if loose != nil {
		*loose = looseEnds{}
	}
	parts, loners := false, 0 // fragments are sent in this batch; came out although they are not
	for _, s := range steps {
		for _, f := range s.frames {
			p, _ := parse(f.data)
			parts = parts || p.part
		}
	}
	byKey := map[clientKey]*judged{}
	for i := range all {
		j := &all[i]
		j.kernel, j.sluice = nil, nil
		byKey[steps[i].key] = j
	}
	for i, x := range []*side{d.kernel, d.sluice} {
		for _, o := range arrived[i] {
			key, _ := x.belongs(o.data)
			j := byKey[key]
			if p, ok := parse(o.data); ok && p.part && x == d.sluice && !parts {
				loners++
				continue
			}
			if len(all) == 1 && loose != nil {
				j = &all[0]
			}
			if j == nil && loose != nil {
				loose.outs[i] = append(loose.outs[i], o)
				continue
			}
			if j == nil {
				if err == nil {
					err = strays{x.name, dump(o.at, o.data)}
				}
				continue
			}
			if i == 0 {
				j.kernel = append(j.kernel, o)
			} else {
				j.sluice = append(j.sluice, o)
			}
		}
	}
	d.loners = loners
	end = allEqual
	for i := range all {
		j := &all[i]
		j.class, j.differ = "", false
		if equal(j.kernel, j.sluice) {
			if j.valid && len(j.kernel) == 0 {
				end = min(end, allExplained)
			}
			continue
		}
		end = min(end, allExplained)
		if j.class = explained(&j.outcome, d.classes); j.class == "" {
			j.differ, end = true, someDiffer
		}
	}
	if loose != nil && !equal(loose.outs[0], loose.outs[1]) {
		loose.differ, end = true, someDiffer
		for i := range all {
			if len(steps[i].frames) > 1 { // one of those whose fragments they are
				j := &all[i]
				j.kernel, j.sluice = append(j.kernel, loose.outs[0]...), append(j.sluice, loose.outs[1]...)
				j.differ = true
			}
		}
	}
	return end, err
}

// looseEnds are frames of a batch of which nobody knows whose they are.
type looseEnds struct {
	outs   [2][]output
	differ bool
}

// Markers are datagrams of flows of their own on every way that a frame can take, sent behind each batch. When all have come
// through, so has what was sent before them.

var markWord = []byte("marker")

const (
	marksOut  = 2*3 + 2   // of both clients, to each backend and outside
	marksEach = 2*3*2 + 2 // and back

	marksTranslated = 2 * 3 * 2
)

// mark sends a round of markers.
func (x *side) mark(round uint32) error {
	payload := binary.BigEndian.AppendUint32(bytes.Clone(markWord), round)
	say := func(at place, src, dst netip.AddrPort) error {
		p := packet{dstMAC: x.hostMAC[at], srcMAC: x.mac[at], src: src.Addr(), dst: dst.Addr(), ttl: 64, proto: protoUDP,
			segment: udp(src.Port(), dst.Port(), payload)}
		return x.send(at, injected{data: p.bytes()})
	}
	for c := client0; c <= client1; c++ {
		client := netip.AddrPortFrom(x.ip[c][netlab.IPv4], markerPort)
		for i := range mappings {
			m := &mappings[i]
			if m.proto != protoUDP {
				continue
			}
			err := say(c, client, m.frontend(netlab.IPv4))
			if round > 1 {
				err = errors.Join(err, say(m.backend, x.backend(m, netlab.IPv4), client))
			}
			if err != nil {
				return err
			}
		}
		if err := say(c, client, netip.AddrPortFrom(x.ip[outside][netlab.IPv4], markerPort)); err != nil {
			return err
		}
	}
	return nil
}

// gather takes what the captures have: how many markers of this round, and the rest.
func (x *side) gather(round uint32) (outs []output, marks int, err error) {
	for at, c := range x.captures {
		frames, err := c.Drain()
		if err != nil {
			return nil, 0, err
		}
		for _, f := range frames {
			if p, ok := parse(f.Data); ok && p.ports && p.proto == protoUDP && (p.sport == markerPort || p.dport == markerPort) && p.end-p.l4 == 18 &&
				bytes.Equal(f.Data[p.l4+8:p.end-4], markWord) {
				if binary.BigEndian.Uint32(f.Data[p.end-4:]) == round {
					marks++
				}
				continue
			}
			outs = append(outs, x.normal(place(at), f))
		}
	}
	return outs, marks, nil
}

// tally counts how steps ended.
type tally struct {
	flows, valid, delivered, vectors, unsent int
	sent, most                               int
	explained                                map[string]int
	differences                              []judged
}

// random plays conversations until so many frames are sent.
func (d *duel) random(seed uint64, first uint64, frames int, t *tally) error {
	var active []*conversation
	number := first
	for frames > 0 || len(active) > 0 {
		for frames > 0 && len(active) < atOnce {
			active = append(active, newConversation(d.kernel, seed, number, d.on))
			number++
			t.flows++
		}
		var batch []pending
		live, sent := active[:0], 0
		for _, c := range active {
			if sent >= batchFrames {
				live = append(live, c)
				continue
			}
			s, ok := c.next()
			if !ok || frames <= 0 {
				continue
			}
			live = append(live, c)
			batch = append(batch, pending{step: s, script: c, key: clientKey{c.client.Addr(), c.client.Port()}})
			sent += len(s.frames)
			frames -= len(s.frames)
		}
		active = live
		var loose *looseEnds
		if d.on["fragments"] {
			loose = new(looseEnds)
		}
		ends, err := d.play(batch, grace, loose)
		if err != nil {
			return err
		}
		t.add(ends)
		for i, j := range ends {
			batch[i].script.took(j.kernel)
		}
		if t.enough() {
			return nil
		}
	}
	return nil
}

// one plays a script alone.
func (d *duel) one(s script, t *tally) error {
	for {
		st, ok := s.next()
		if !ok {
			return nil
		}
		var loose looseEnds
		ends, err := d.play([]pending{{step: st, script: s}}, grace, &loose)
		if err != nil {
			return err
		}
		t.add(ends)
		s.took(ends[0].kernel)
	}
}

// vectors plays the vectors with these numbers, many at a time. Those in which something differs, or in whose company
// something does that could be anyone's, are played again alone: only that counts.
func (d *duel) vectors(numbers []int, t *tally) error {
	all := allVectors()
	for len(numbers) > 0 {
		n := min(len(numbers), atOnce)
		var scripts []*vectorScript
		suspect := make([]bool, n)
		for _, number := range numbers[:n] {
			scripts = append(scripts, newVectorScript(d.kernel, all[number], number))
		}
		sent := make([][]judged, n)
		for live := true; live; {
			live = false
			var batch []pending
			var whose []int
			for i, s := range scripts {
				if st, ok := s.next(); ok {
					batch = append(batch, pending{step: st, script: s, key: clientKey{s.m.client.Addr(), s.m.client.Port()}})
					whose = append(whose, i)
					live = true
				}
			}
			var loose looseEnds
			ends, err := d.play(batch, haste, &loose)
			if err != nil {
				return err
			}
			for k, j := range ends {
				suspect[whose[k]] = suspect[whose[k]] || j.differ || j.class != "" || loose.differ
				sent[whose[k]] = append(sent[whose[k]], j)
			}
		}
		for i, number := range numbers[:n] {
			if !suspect[i] {
				t.add(sent[i])
			} else if err := d.one(newVectorScript(d.kernel, all[number], number+len(all)), t); err != nil {
				return fmt.Errorf("vector %s: %w", all[number].full(), err)
			}
			t.vectors++
			if t.enough() {
				return nil
			}
		}
		numbers = numbers[n:]
	}
	return nil
}

// enough says that so many differences need no more.
func (t *tally) enough() bool { return len(t.differences) >= t.most }

func (t *tally) add(ends []judged) {
	if t.explained == nil {
		t.explained = map[string]int{}
	}
	for _, j := range ends {
		t.sent += len(j.frames)
		if j.valid {
			t.valid += len(j.frames)
			if len(j.kernel) > 0 && j.kernel[0].at == j.goes {
				t.delivered += len(j.frames)
			}
		}
		if j.unsent != nil {
			t.unsent++
		}
		if j.class != "" {
			t.explained[j.class]++
		}
		if j.differ {
			t.differences = append(t.differences, j)
		}
	}
}
