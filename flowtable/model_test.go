package flowtable

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// model is the table as it should be: flows by number, in a Go map, with time.
type model struct {
	flows   map[uint32]*modelFlow
	tuples  map[Tuple]Ref
	limbo   []uint32
	batches map[int][]uint32
	records int
	inserts int // so far
}

type modelFlow struct {
	Flow
	order   int // of insertion
	began   Tick
	seen    [2]Tick
	state   State
	packets [2]uint64
}

func (m *model) insert(f Flow, ref Ref, now Tick) {
	f = normal(f)
	m.inserts++
	m.flows[ref.Record] = &modelFlow{Flow: f, order: m.inserts, began: now, seen: [2]Tick{now, now}}
	m.tuples[f.forward()] = Ref{ref.Record, Forward}
	m.tuples[f.reply()] = Ref{ref.Record, Reply}
}

func (m *model) remove(rec uint32) {
	f := m.flows[rec]
	delete(m.tuples, f.forward())
	delete(m.tuples, f.reply())
	delete(m.flows, rec)
	m.limbo = append(m.limbo, rec)
}

func (f *modelFlow) class() class {
	if f.Proto == protoUDP && f.seen[0]-f.began <= streamAfter && f.seen[1]-f.began <= streamAfter {
		return unreplied
	}
	return f.state.class(f.Proto, 1<<31)
}

func (f *modelFlow) standing() standing {
	switch {
	case f.state&Replied == 0:
		return unanswered
	case f.Proto == protoTCP && f.state&Established == 0:
		return halfOpen
	}
	return settled
}

// oldest returns the oldest flow of a standing, but for one record.
func (m *model) oldest(s standing, but uint32) (oldest uint32) {
	for rec, f := range m.flows {
		if rec != but && f.standing() == s && (oldest == 0 || f.order < m.flows[oldest].order) {
			oldest = rec
		}
	}
	return oldest
}

func (m *model) clients(f *Flow) (n int) {
	for _, g := range m.flows {
		if g.Client == f.Client {
			n++
		}
	}
	return n
}

func (m *model) waiting() int {
	n := len(m.limbo)
	for _, b := range m.batches {
		n += len(b)
	}
	return n
}

// TestModel runs random histories of every operation, a restart included, against the model. The addresses are so few
// that tuples meet often, and the table is so small that it is often full.
func TestModel(tt *testing.T) {
	rapid.Check(tt, func(rt *rapid.T) {
		capacity := rapid.IntRange(1, 60).Draw(rt, "capacity")
		index, records := newImage(tt, capacity)
		options := Options{MaxPerClient: rapid.SampledFrom([]int{0, 0, 1, 3, 10}).Draw(rt, "most per client")}
		t, _, err := OpenWith(index, records, options)
		if err != nil {
			rt.Fatal(err)
		}
		m := &model{flows: map[uint32]*modelFlow{}, tuples: map[Tuple]Ref{}, batches: map[int][]uint32{}, records: len(t.records) - 1}
		restarted := false
		batches := map[int]Batch{}
		cuts := 0
		now := Tick(rapid.Uint32().Draw(rt, "start"))

		flow := rapid.Custom(func(rt *rapid.T) Flow {
			small := func(name string, n int) int { return rapid.IntRange(0, n-1).Draw(rt, name) }
			f := Flow{
				Client: pod(uint32(small("client", 3))), Frontend: clusterIP(uint32(small("frontend", 2))),
				Backend: pod(uint32(small("backend", 3))), ClientPort: uint16(1 + small("port", 6)),
				FrontendPort: 80, BackendPort: uint16(80 + small("backend port", 2)), Proto: []uint8{6, 17}[small("proto", 2)],
			}
			if small("v6", 4) == 0 {
				f.Client, f.Frontend, f.Backend = pod6(1), clusterIP6(1), pod6(2)
			}
			if small("hairpin", 4) == 0 {
				f.Source = clusterIP(9)
			}
			if small("ported", 4) == 0 {
				f.SourcePort = uint16(1 + small("source port", 6))
			}
			return f
		})
		live := func(rt *rapid.T) uint32 {
			if len(m.flows) == 0 {
				rt.Skip("no flow")
			}
			var recs []uint32
			for rec := range m.flows {
				recs = append(recs, rec)
			}
			slices.Sort(recs)
			return rapid.SampledFrom(recs).Draw(rt, "record")
		}

		rt.Repeat(map[string]func(*rapid.T){
			"insert": func(rt *rapid.T) {
				f := flow.Draw(rt, "flow")
				ref, res := t.Insert(&f, now)
				fwd, fwdIn := m.tuples[f.forward()]
				_, repIn := m.tuples[f.reply()]
				switch {
				case fwdIn:
					if res != Exists || ref != fwd {
						rt.Fatalf("%v %+v, want the flow there is, %+v", res, ref, fwd)
					}
				case repIn || f.forward() == f.reply():
					if res != Collision {
						rt.Fatalf("%v, want a collision", res)
					}
				case len(m.flows)+m.waiting() == m.records:
					if res != Full {
						rt.Fatalf("%v, want full", res)
					}
				case options.MaxPerClient > 0 && m.clients(&f) >= options.MaxPerClient:
					if res != OverCap {
						rt.Fatalf("%v, want over cap", res)
					}
				case res == Inserted:
					if m.flows[ref.Record] != nil {
						rt.Fatalf("record %d is in use", ref.Record)
					}
					m.insert(f, ref, now)
					// Whoever is gone now was shed for it.
					gone := 0
					for s := unanswered; s <= halfOpen; s++ {
						for rec := m.oldest(s, ref.Record); rec != 0 && t.records[rec].life != LifeLive; rec = m.oldest(s, ref.Record) {
							m.remove(rec)
							gone++
						}
					}
					if restarted { // flows of one tick are in no order then
						for rec, f := range m.flows {
							if t.records[rec].life != LifeLive && f.standing() != settled {
								m.remove(rec)
								gone++
							}
						}
					}
					if gone > shedMost || gone > 0 && len(m.flows)+gone <= t.limit {
						rt.Fatalf("%d shed of %d flows, %d fit", gone, len(m.flows)+gone, t.limit)
					}
					if others := m.oldest(unanswered, ref.Record); gone == 0 && len(m.flows) > t.limit && others != 0 && len(m.flows) <= shedLook {
						if t.queued[unanswered]+t.queued[halfOpen] > t.reserve/2 {
							rt.Fatalf("%d flows, %d fit, and record %d was not shed", len(m.flows), t.limit, others)
						}
					}
				default:
					rt.Fatalf("%v, with %d flows of %d", res, len(m.flows), m.records)
				}
			},
			"lookup": func(rt *rapid.T) {
				f := flow.Draw(rt, "flow")
				for _, k := range []Tuple{f.forward(), f.reply()} {
					if got, want := both(tt, t, k), m.tuples[k]; got != want {
						rt.Fatalf("%+v: %+v, want %+v", k, got, want)
					}
				}
			},
			"touch": func(rt *rapid.T) {
				rec, d := live(rt), Direction(rapid.IntRange(0, 1).Draw(rt, "direction"))
				f := m.flows[rec]
				flags := uint8(0)
				if f.Proto == protoTCP {
					flags = rapid.SampledFrom([]uint8{syn, synAck, ack, fin, rst, 0}).Draw(rt, "flags")
				}
				t.Touch(rec, d, now, flags)
				was := f.state
				f.state = was.after(d, flags)
				f.packets[d]++
				if d == Forward && flags == syn {
					// Insert has noted it
				} else if flags&tcpRST == 0 || f.state != was {
					f.seen[d] = now
				}
			},
			"remove": func(rt *rapid.T) {
				rec := live(rt)
				if !t.Remove(rec) || t.Remove(rec) {
					rt.Fatal("a live flow is removed once")
				}
				m.remove(rec)
			},
			"limbo": func(rt *rapid.T) {
				b := t.Limbo()
				if b.Len() != len(m.limbo) {
					rt.Fatalf("%d in the batch, want %d", b.Len(), len(m.limbo))
				}
				batches[cuts], m.batches[cuts], m.limbo = b, m.limbo, nil
				cuts++
			},
			"reclaim": func(rt *rapid.T) {
				for i, b := range batches {
					t.Reclaim(b)
					delete(batches, i)
					delete(m.batches, i)
				}
			},
			"wait": func(rt *rapid.T) {
				now += Tick(rapid.SampledFrom([]uint32{1, 1000, 30_000, 100_000, 4_000_000}).Draw(rt, "ticks"))
			},
			"expire": func(rt *rapid.T) {
				want := 0
				crowd := len(m.flows) >= t.limit-t.limit/8
				for rec, f := range m.flows {
					limit := t.idle[f.class()]
					if crowd && f.Proto == protoTCP && f.state&(FinForward|FinReply) == FinForward|FinReply {
						limit = ticksOf(10 * time.Second)
					}
					if min(now-f.seen[0], now-f.seen[1]) > limit {
						m.remove(rec)
						want++
					}
				}
				if got := t.Expire(now, m.records); got != want {
					rt.Fatalf("%d expired, want %d", got, want)
				}
			},
			"reconcile": func(rt *rapid.T) {
				gone := pod(uint32(rapid.IntRange(0, 2).Draw(rt, "backend")))
				want := 0
				for rec, f := range m.flows {
					if f.Backend == gone {
						m.remove(rec)
						want++
					}
				}
				if got := t.Reconcile(m.records, func(e *Entry) bool { return e.Flow.Backend != gone }); got != want {
					rt.Fatalf("%d reconciled, want %d", got, want)
				}
			},
			"restart": func(rt *rapid.T) {
				waiting := m.waiting()
				m.limbo = nil
				for rec := 1; rec <= m.records; rec++ {
					if t.records[rec].life == LifeRetired {
						m.limbo = append(m.limbo, uint32(rec))
					}
				}
				if len(m.limbo) != waiting {
					rt.Fatalf("%d records retired, want %d", len(m.limbo), waiting)
				}
				clear(batches)
				clear(m.batches)
				var rep AdoptReport
				var err error
				restarted = true
				if t, rep, err = OpenWith(index, records, options); err != nil || rep != (AdoptReport{Flows: len(m.flows)}) {
					rt.Fatalf("%v, %v, want %d flows", rep, err, len(m.flows))
				}
			},
			"": func(rt *rapid.T) {
				check(tt, t)
				n := 0
				for e := range t.All() {
					f := m.flows[e.Record]
					if f == nil {
						rt.Fatalf("a flow that is not: %+v", e)
					}
					if e.Flow != f.Flow || e.State != f.state || e.Began != f.began || e.Class() != classWords[f.class()] || [2]Tick{e.ForwardSeen, e.ReplySeen} != f.seen ||
						[2]uint64{e.ForwardPackets, e.ReplyPackets} != f.packets {
						rt.Fatalf("%+v, want %+v", e, f)
					}
					n++
				}
				s := t.Stats()
				if n != len(m.flows) || s.Flows != n || s.Limbo != m.waiting() || s.Free != m.records-n-s.Limbo || s.Stray != 0 {
					rt.Fatalf("%+v with %d flows, want %d, %d waiting", s, n, len(m.flows), m.waiting())
				}
			},
		})
	})
}

// FuzzOps replays operations from bytes: three a step.
func FuzzOps(f *testing.F) {
	f.Add([]byte{0, 1, 2, 0, 1, 2, 1, 0, 0, 2, 0, 0, 3, 0, 0, 0, 9, 9})
	f.Fuzz(func(tt *testing.T, ops []byte) {
		index, records := newImage(tt, 12)
		t := open(tt, index, records, Timeouts{})
		has := map[Tuple]uint32{}
		flows := map[uint32]Flow{}
		replied := map[uint32]bool{}
		drop := func(rec uint32) {
			delete(replied, rec)
			g := flows[rec]
			delete(has, g.forward())
			delete(has, g.reply())
			delete(flows, rec)
		}
		now := Tick(0)
		for ; len(ops) >= 3; ops = ops[3:] {
			a, b := ops[1], ops[2]
			switch ops[0] % 6 {
			case 0:
				g := Flow{
					Client: pod(uint32(a % 4)), Frontend: clusterIP(uint32(a / 4 % 4)), Backend: pod(uint32(a / 16 % 4)),
					ClientPort: uint16(1 + b%4), FrontendPort: 1 + uint16(b/4%2), BackendPort: 1 + uint16(b/8%2), SourcePort: uint16(b / 16 % 4), Proto: 17,
				}
				ref, res := t.Insert(&g, now)
				_, fwd := has[g.forward()]
				_, rep := has[g.reply()]
				if (res == Exists) != fwd || (res == Collision) != (!fwd && (rep || g.forward() == g.reply())) {
					tt.Fatalf("%v, forward there %v, reply there %v", res, fwd, rep)
				}
				if res == Inserted {
					has[g.forward()], has[g.reply()], flows[ref.Record] = ref.Record, ref.Record, g
				}
				for rec := range flows {
					if t.records[rec].life != LifeLive && !replied[rec] { // shed
						drop(rec)
					}
				}
			case 1:
				if t.Remove(uint32(a)) {
					drop(uint32(a))
				}
			case 2:
				settle(t)
			case 3:
				now += Tick(a) << (b % 16)
				t.Expire(now, 12)
				for rec := range flows {
					if t.records[rec].life != LifeLive {
						drop(rec)
					}
				}
			case 4:
				rec := uint32(a) % 13
				t.Touch(rec, Direction(b), now, 0)
				if _, live := flows[rec]; live && b%2 == 1 {
					replied[rec] = true
				}
			case 5:
				t = open(tt, index, records, Timeouts{})
			}
			check(tt, t)
			for k, rec := range has {
				if both(tt, t, k).Record != rec {
					tt.Fatalf("%+v is lost", k)
				}
			}
			if t.Stats().Flows != len(flows) {
				tt.Fatalf("%d flows, want %d", t.Stats().Flows, len(flows))
			}
		}
	})
}
