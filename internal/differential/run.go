package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-net/sluice/dataplane"
	"github.com/sluice-net/sluice/internal/netlab"
)

const (
	// atOnce is how many flows take a step together, batchFrames how many frames that may be: a veth ring holds 256.
	atOnce      = 48
	batchFrames = 128
	// arrival bounds the wait for markers: the machine may be busy.
	arrival = time.Minute
	// waves is how many rounds of markers are sent behind what has not come out equal, each when the one before has come
	// through. A frame that the kernel answers passes Sluice twice, and is behind the markers of two rounds at the most.
	waves = 4
)

// duel is the two sides under one setting.
type duel struct {
	setting
	kernel, sluice *side
	round          uint32
	waiting        waiting // fragments that Sluice may still give up
	lately         int     // those that it has given up in this batch
	givenUp        int     // in all
}

// newDuel builds both sides.
func newDuel(tb netlab.TB, s setting) (*duel, error) {
	d := &duel{setting: s, waiting: waiting{}}
	d.kernel, d.sluice = newSide(tb, "kernel", s), newSide(tb, "sluice", s)
	d.kernel.translateInKernel()
	if s.mode == dataplane.ModeFront {
		d.sluice.translateInKernel() // as kube-proxy does behind it
	}
	if err := d.sluice.translateInSluice(tb, s.mode, s.kind); err != nil {
		return nil, err
	}
	// Markers open their flows before the markers of the way back need them.
	for range 2 {
		if _, err := d.play(nil, 1, nil); err != nil {
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

// play sends steps of different flows on both sides and judges what comes out. Behind them go markers on every way; when all
// have come through, so has what was before them, and only what is not equal then is given more waves of them. If the frames
// may be such that nobody can say whose they are, loose tells of them: they are compared for themselves, or are the step's
// if it is the only one.
func (d *duel) play(steps []pending, waves int, loose *looseEnds) ([]judged, error) {
	all := make([]judged, len(steps))
	for i, p := range steps {
		all[i].outcome, all[i].script = outcome{setting: d.setting, step: p.step}, p.script
		d.waiting.sent(&p.step)
		for _, f := range p.frames {
			a, b := d.kernel.send(p.at, f), d.sluice.send(p.at, f)
			if (a == nil) != (b == nil) {
				return nil, fmt.Errorf("%s, %s: sending on one side only: %w", p.name(), p.what, errors.Join(a, b))
			}
			all[i].unsent = a
		}
	}
	var arrived [2][]output
	for wave := 1; ; wave++ {
		if err := d.markers(&arrived); err != nil {
			return nil, err
		}
		end, err := d.judge(steps, all, arrived, loose)
		if err == nil && (end == allEqual || end == allSilent && wave > 1) || wave >= waves {
			d.givenUp += d.lately
			return all, err
		}
	}
}

// markers sends a round of them, and gathers what comes until they all have.
func (d *duel) markers(arrived *[2][]output) error {
	d.round++
	sides := [2]*side{d.kernel, d.sluice}
	for _, x := range sides {
		if err := x.mark(d.round); err != nil {
			return err
		}
	}
	want := marksEach
	if d.round == 1 {
		want = marksOut // the ways back are not known yet
	}
	var marks [2]int
	for start := time.Now(); ; time.Sleep(50 * time.Microsecond) {
		for i, x := range sides {
			outs, n, err := x.gather(d.round)
			if err != nil {
				return err
			}
			marks[i] += n
			arrived[i] = append(arrived[i], outs...)
		}
		if marks[0] >= want && marks[1] >= want {
			return nil
		}
		if time.Since(start) > arrival {
			return fmt.Errorf("after %v %d of %d markers had arrived on the kernel's side, %d on Sluice's", arrival, marks[0], want, marks[1])
		}
	}
}

// ending is how a batch stands.
type ending uint8

const (
	someDiffer ending = iota // or are explained, or came out nowhere where they should have: they may be late
	allSilent                // some came out nowhere on both sides
	allEqual
)

// judge gives each step what came of it until now.
func (d *duel) judge(steps []pending, all []judged, arrived [2][]output, loose *looseEnds) (end ending, err error) {
	if loose != nil {
		*loose = looseEnds{}
	}
	d.lately = 0
	byKey := map[clientKey]*judged{}
	for i := range all {
		j := &all[i]
		j.kernel, j.sluice = nil, nil
		byKey[steps[i].key] = j
	}
	for i, x := range []*side{d.kernel, d.sluice} {
		for _, o := range join(arrived[i]) {
			key, _ := x.belongs(o.data)
			j := byKey[key]
			if len(all) == 1 && loose != nil {
				j = &all[0]
			}
			if j == nil && x == d.sluice && d.waiting.gaveUp(o) {
				d.lately++
				continue
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
	end = allEqual
	for i := range all {
		j := &all[i]
		j.class, j.differ = "", false
		if !equal(j.kernel, j.sluice) {
			n := len(j.sluice)
			j.sluice = slices.DeleteFunc(j.sluice, d.waiting.gaveUp)
			d.lately += n - len(j.sluice)
		}
		if equal(j.kernel, j.sluice) {
			if len(j.kernel) == 0 {
				end = min(end, allSilent)
				if j.valid {
					end = someDiffer
				}
			}
			continue
		}
		end = someDiffer
		j.class = explained(&j.outcome, classes)
		j.differ = j.class == ""
	}
	if loose != nil && !equal(loose.outs[0], loose.outs[1]) {
		loose.differ, end = true, someDiffer
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
	marksOut  = 2*3*2 + 2   // of both clients, to each backend with and without an option, and outside
	marksEach = 2*3*2*2 + 2 // and back

	marksTranslated = 2 * 3 * 2 * 2
)

// routerAlert has a marker take the longest way, by way of the node's kernel.
var routerAlert = []byte{148, 4, 0, 0}

// mark sends a round of markers.
func (x *side) mark(round uint32) error {
	payload := binary.BigEndian.AppendUint32(bytes.Clone(markWord), round)
	say := func(at place, src, dst netip.AddrPort, options []byte) error {
		p := packet{dstMAC: x.hostMAC[at], srcMAC: x.mac[at], src: src.Addr(), dst: dst.Addr(), ttl: 64, proto: protoUDP,
			options: options, segment: udp(src.Port(), dst.Port(), payload)}
		return x.send(at, injected{data: p.bytes()})
	}
	for c := client0; c <= client1; c++ {
		client := netip.AddrPortFrom(x.ip[c][netlab.IPv4], markerPort)
		for i := range mappings {
			m := &mappings[i]
			if m.proto != protoUDP {
				continue
			}
			for _, options := range [][]byte{nil, routerAlert} {
				err := say(c, client, m.frontend(netlab.IPv4), options)
				if round > 1 {
					err = errors.Join(err, say(m.backend, x.backend(m, netlab.IPv4), client, options))
				}
				if err != nil {
					return err
				}
			}
		}
		if err := say(c, client, netip.AddrPortFrom(x.ip[outside][netlab.IPv4], markerPort), nil); err != nil {
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
			active = append(active, newConversation(d.kernel, seed, number))
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
		ends, err := d.play(batch, waves, nil)
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
		ends, err := d.play([]pending{{step: st, script: s}}, waves, &loose)
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
			ends, err := d.play(batch, waves, &loose)
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
