package flowtable

import "testing"

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
		{"picked up from the backend", 6, []step{{Reply, ack}}, tcpOpening},
		{"refused", 6, []step{{Forward, syn}, {Reply, rstAck}}, tcpClosing},
		{"client closes", 6, after(step{Forward, fin}), tcpCloseWait},
		{"backend closes", 6, after(step{Reply, fin}), tcpCloseWait},
		{"half closed, data the other way", 6, after(step{Forward, fin}, step{Reply, ack}), tcpCloseWait},
		{"both close", 6, after(step{Forward, fin}, step{Reply, fin}), tcpClosing},
		{"last ACK", 6, after(step{Forward, fin}, step{Reply, fin}, step{Forward, ack}), tcpClosing},
		{"closed before established", 6, []step{{Forward, syn}, {Forward, fin}}, tcpOpening},
		{"client resets", 6, after(step{Forward, rst}), tcpClosing},
		{"backend resets", 6, after(step{Reply, rst}), tcpClosing},
		{"backend resets, client had data in flight", 6, after(step{Reply, rst}, step{Forward, ack}), tcpClosing},
		{"a forged reset: its sender goes on", 6, after(step{Forward, rst}, step{Forward, ack}), tcpEstablished},
		{"a forged reset of the backend", 6, after(step{Reply, rst}, step{Reply, ack}), tcpEstablished},
		{"a reset, then a new SYN", 6, after(step{Forward, rst}, step{Forward, syn}), tcpClosing},
		{"two resets, one taken back", 6, after(step{Forward, rst}, step{Reply, rst}, step{Forward, ack}), tcpClosing},
		{"SYN on an established flow", 6, after(step{Forward, syn}, step{Reply, ack}), tcpEstablished},
		{"UDP", 17, []step{{Forward, 0}, {Forward, 0}}, unreplied},
		{"UDP answered", 17, []step{{Forward, 0}, {Reply, 0}}, stream},
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
				if got := e.State.class(c.proto); got != c.class || e.Class() != classWords[c.class] {
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
		}{{10, ack, 10}, {20, rst, 20}, {30, rst, 20}, {40, rstAck, 20}, {50, syn, 50}, {60, rst, 50}, {70, ack, 70}, {80, rst, 80}, {90, rst, 80}} {
			if t.Touch(ref.Record, d, c.now, c.flags); seen() != c.want {
				tt.Errorf("%v, flags %#x at %d: last seen %d, want %d", d, c.flags, c.now, seen(), c.want)
			}
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
