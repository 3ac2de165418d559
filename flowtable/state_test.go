package flowtable

import (
	"testing"
	"time"
)

// A step is one packet: a direction, TCP flags, and how long after the one before it comes.
type step struct {
	d     Direction
	flags uint8
}

const (
	syn    = tcpSYN
	synAck = tcpSYN | tcpACK
	ack    = tcpACK
	fin    = tcpFIN | tcpACK
	rst    = tcpRST
	rstAck = tcpRST | tcpACK
)

var handshake = []step{{Forward, syn}, {Reply, synAck}, {Forward, ack}}

func after(more ...step) []step { return append(handshake[:3:3], more...) }

func TestStates(t *testing.T) {
	for _, c := range []struct {
		name  string
		proto uint8
		steps []step
		class class
	}{
		{"no packet", 6, nil, tcpOpening},
		{"SYN", 6, []step{{Forward, syn}}, tcpOpening},
		{"SYN again", 6, []step{{Forward, syn}, {Forward, syn}}, tcpOpening},
		{"SYN-ACK", 6, handshake[:2], tcpOpening},
		{"handshake", 6, handshake, tcpEstablished},
		{"ACKs of one side only", 6, []step{{Forward, ack}, {Forward, ack}}, tcpOpening},
		{"picked up in mid-stream", 6, []step{{Forward, ack}, {Reply, ack}, {Forward, ack}}, tcpEstablished},
		{"picked up, and answered", 6, []step{{Forward, ack}, {Reply, ack}}, tcpEstablished},
		{"picked up at its end", 6, []step{{Forward, fin}}, tcpOpening},
		{"picked up at its end, and answered", 6, []step{{Forward, fin}, {Reply, fin}}, tcpClosing},
		{"refused", 6, []step{{Forward, syn}, {Reply, rstAck}}, tcpClosing},
		{"client closes", 6, after(step{Forward, fin}), tcpCloseWait},
		{"backend closes", 6, after(step{Reply, fin}), tcpCloseWait},
		{"half closed, data the other way", 6, after(step{Forward, fin}, step{Reply, ack}), tcpCloseWait},
		{"both close", 6, after(step{Forward, fin}, step{Reply, fin}), tcpClosing},
		{"last ACK", 6, after(step{Forward, fin}, step{Reply, fin}, step{Forward, ack}), tcpClosing},
		{"FIN on an unanswered SYN", 6, []step{{Forward, syn}, {Forward, fin}, {Reply, synAck}, {Forward, ack}}, tcpEstablished},
		{"the backend closes before the client's ACK", 6, []step{{Forward, syn}, {Reply, synAck}, {Reply, fin}}, tcpCloseWait},
		{"FIN without ACK", 6, []step{{Forward, syn}, {Reply, synAck}, {Forward, tcpFIN}}, tcpCloseWait},
		{"SYN and FIN in one: a SYN", 6, []step{{Forward, syn | fin}, {Reply, synAck}}, tcpOpening},
		{"simultaneous open", 6, []step{{Forward, syn}, {Reply, syn}, {Forward, synAck}, {Reply, synAck}, {Forward, ack}}, tcpEstablished},
		{"answered by an ACK, as of an older connection", 6, []step{{Forward, syn}, {Reply, ack}, {Forward, rst}}, tcpClosing},
		{"client resets", 6, after(step{Forward, rst}), tcpClosing},
		{"backend resets", 6, after(step{Reply, rst}), tcpClosing},
		{"backend resets, client had data in flight", 6, after(step{Reply, rst}, step{Forward, ack}), tcpClosing},
		{"a forged reset: its sender goes on", 6, after(step{Forward, rst}, step{Forward, ack}), tcpEstablished},
		{"a forged reset of the backend", 6, after(step{Reply, rst}, step{Reply, ack}), tcpEstablished},
		{"a reset, then a new SYN", 6, after(step{Forward, rst}, step{Forward, syn}), tcpClosing},
		{"two resets, one taken back", 6, after(step{Forward, rst}, step{Reply, rst}, step{Forward, ack}), tcpClosing},
		{"SYN on an established flow", 6, after(step{Forward, syn}, step{Reply, ack}), tcpEstablished},
		{"UDP", 17, []step{{Forward, 0}, {Forward, 0}}, unreplied},
		{"UDP answered", 17, []step{{Forward, 0}, {Reply, 0}}, unreplied},
		{"SCTP answered", 132, []step{{Forward, 0}, {Reply, 0}}, stream},
	} {
		t.Run(c.name, func(tt *testing.T) {
			t := newTable(tt, 1, Timeouts{})
			f := flowN(0)
			f.Proto = c.proto
			ref, _ := t.Insert(&f, 0)
			var packets [2]uint64
			for _, s := range c.steps {
				t.Touch(ref.Record, s.d, 1, s.flags)
				packets[s.d]++
			}
			for e := range t.All() {
				if got := e.State.class(c.proto, 1); got != c.class || e.Class() != classWords[c.class] {
					tt.Errorf("%s (state %#x), want %s", classWords[got], e.State, classWords[c.class])
				}
				if e.ForwardPackets != packets[Forward] || e.ReplyPackets != packets[Reply] {
					tt.Errorf("%d and %d packets, want %v", e.ForwardPackets, e.ReplyPackets, packets)
				}
			}
			if got, want := t.Closing(ref.Record), c.class == tcpClosing; got != want {
				tt.Errorf("Closing is %v", got)
			}
		})
	}
}

// What steady lets pass changes nothing, and what it does not let pass mostly does.
func TestSteady(t *testing.T) {
	steady := 0
	for s := range Opened << 1 {
		for flags := range uint8(32) {
			for _, d := range []Direction{Forward, Reply} {
				if s.steady(flags) {
					if steady++; s.after(d, flags) != s {
						t.Errorf("state %#x, %v flags %#x: becomes %#x", s, d, flags, s.after(d, flags))
					}
				}
			}
		}
	}
	if s := Replied | Established | Opened; steady == 0 || !s.steady(ack) || !Replied.steady(0) {
		t.Error("the usual packet is not steady")
	}
}

// Only the first reset of a side counts as a sign of life.
func TestResetsDoNotRefresh(tt *testing.T) {
	for _, d := range []Direction{Forward, Reply} {
		t := newTable(tt, 1, Timeouts{})
		f := flowN(0)
		ref, _ := t.Insert(&f, 0)
		seen := func() Tick { return Tick(t.records[ref.Record].seen[d]) }
		for _, c := range []struct {
			now   Tick
			flags uint8
			want  Tick
		}{{10, ack, 10}, {20, rst, 20}, {30, rst, 20}, {40, rstAck, 20}, {50, synAck, 50}, {60, rst, 50}, {70, ack, 70}, {80, rst, 80}, {90, rst, 80}} {
			if t.Touch(ref.Record, d, c.now, c.flags); seen() != c.want {
				tt.Errorf("%v, flags %#x at %d: last seen %d, want %d", d, c.flags, c.now, seen(), c.want)
			}
		}
	}
}

// A client that repeats its SYN for ever does not keep the flow; the backend's answer does.
func TestSYNDoesNotRefresh(tt *testing.T) {
	t := newTable(tt, 1, Timeouts{})
	f := flowN(0)
	ref, _ := t.Insert(&f, 10)
	seen := func(d Direction) Tick { return Tick(t.records[ref.Record].seen[d]) }
	for now := Tick(10); now < 50; now += 10 {
		if t.Touch(ref.Record, Forward, now, syn); seen(Forward) != 10 {
			tt.Fatalf("SYN at %d: last seen %d", now, seen(Forward))
		}
	}
	if t.Touch(ref.Record, Reply, 60, synAck); seen(Reply) != 60 {
		tt.Errorf("SYN-ACK at 60: last seen %d", seen(Reply))
	}
	if t.Touch(ref.Record, Forward, 70, ack); seen(Forward) != 70 {
		tt.Errorf("ACK at 70: last seen %d", seen(Forward))
	}
}

// The challenge of RFC 5961: a SYN on a live connection is answered by an ACK, and a RST by the client clears it. A SYN
// repeated on the closing flow is a new connection: the caller asks Closing.
func TestChallengeACK(tt *testing.T) {
	t := newTable(tt, 1, Timeouts{})
	f := flowN(0)
	ref, _ := t.Insert(&f, 0)
	for i, s := range after(step{Forward, syn}, step{Reply, ack}, step{Forward, rst}) {
		t.Touch(ref.Record, s.d, 1, s.flags)
		if got, want := t.Closing(ref.Record), i == 5; got != want {
			tt.Errorf("step %d: Closing is %v", i, got)
		}
	}
}

// A flood of forged resets ends no flow: not of those whose sides go on speaking, and none before the closing timeout.
func TestResetFlood(tt *testing.T) {
	const flows = 1000
	t := newTable(tt, flows, Timeouts{})
	for i := range uint32(flows) {
		f := flowN(2 * i) // TCP
		ref, _ := t.Insert(&f, 0)
		for _, s := range handshake {
			t.Touch(ref.Record, s.d, 0, s.flags)
		}
	}
	now := Tick(0)
	for round := range 10 {
		now += 100
		for rec := uint32(1); rec <= flows; rec++ {
			t.Touch(rec, Direction(round), now, rst)
		}
	}
	if n := t.Expire(100+ticksOf(4*time.Minute), 2*flows); n != 0 {
		tt.Errorf("%d flows gone within four minutes of their first reset", n)
	}
	for rec := uint32(1); rec <= flows/2; rec++ { // these go on
		t.Touch(rec, Forward, now, ack)
		t.Touch(rec, Reply, now, ack)
	}
	if n := t.Expire(now+ticksOf(time.Hour), 2*flows); n != flows/2 || t.Stats().Flows != flows/2 {
		tt.Errorf("%d of %d silent flows gone, %+v", n, flows/2, t.Stats())
	}
}

func TestStartOf(t *testing.T) {
	for flags, want := range map[uint8]Start{
		syn: Opens, syn | 0xc0: Opens, ack: PicksUp, ack | 0x08: PicksUp, fin: PicksUp,
		synAck: NoStart, rst: NoStart, rstAck: NoStart, tcpFIN: NoStart, 0: NoStart, syn | rst: NoStart,
	} {
		if got := StartOf(flags); got != want {
			t.Errorf("StartOf(%#x) = %d, want %d", flags, got, want)
		}
	}
}

// Whatever the header holds, a slip of the caller's touches nothing that counts.
func TestTouchRecordZero(tt *testing.T) {
	index, records := newImage(tt, 4)
	t := open(tt, index, records, Timeouts{})
	t.Touch(0, Reply, 77, rst)
	t.SetAdjacency(0, Reply, 7)
	t.SetGeneration(0, 7)
	if _, _, err := Open(index, records, Timeouts{}); err != nil {
		tt.Error(err)
	}
}
