package flowtable

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"
)

func ticksOf(d time.Duration) Tick { return Tick((d + 1<<tickShift - 1) >> tickShift) }

func TestTickOf(t *testing.T) {
	for nanos, want := range map[uint64]Tick{0: 0, 1<<20 - 1: 0, 1 << 20: 1, 1<<52 - 1: 1<<32 - 1, 1 << 52: 0, 1<<52 + 3<<20: 3} {
		if got := TickOf(nanos); got != want {
			t.Errorf("TickOf(%d) = %d, want %d", nanos, got, want)
		}
	}
}

// Every class, with default and own timeouts, a tick before its time and a tick after, and across the wrap of ticks.
func TestExpireInTime(tt *testing.T) {
	classesOf := []struct {
		class
		proto uint8
		steps []step
		apart Tick // the steps
		def   time.Duration
		set   Timeouts
	}{
		{tcpOpening, 6, handshake[:2], 50, 120 * time.Second, Timeouts{TCPOpening: time.Minute}},
		{tcpEstablished, 6, handshake, 50, 24 * time.Hour, Timeouts{TCPEstablished: time.Minute}},
		{tcpCloseWait, 6, after(step{Forward, fin}), 50, time.Hour, Timeouts{TCPCloseWait: time.Minute}},
		{tcpClosing, 6, after(step{Forward, rst}), 50, 4 * time.Minute, Timeouts{TCPClosing: time.Minute}},
		{unreplied, 17, []step{{Forward, 0}}, 50, 30 * time.Second, Timeouts{UDPUnreplied: time.Minute}},
		{unreplied, 17, []step{{Forward, 0}, {Forward, 0}}, 10_000, 30 * time.Second, Timeouts{UDPUnreplied: time.Minute}},
		{unreplied, 17, []step{{Forward, 0}, {Reply, 0}}, streamAfter / 2, 30 * time.Second, Timeouts{UDPUnreplied: time.Minute}},
		{stream, 17, []step{{Reply, 0}, {Forward, 0}}, streamAfter/2 + 1, 120 * time.Second, Timeouts{UDPStream: time.Minute}},
		{stream, 17, []step{{Forward, 0}, {Reply, 0}}, streamAfter/2 + 1, 120 * time.Second, Timeouts{UDPStream: time.Minute}},
		{stream, 132, []step{{Forward, 0}, {Reply, 0}}, 50, 120 * time.Second, Timeouts{UDPStream: time.Minute}},
	}
	for _, c := range classesOf {
		for _, start := range []Tick{0, 1 << 31, 1<<32 - 100} {
			for _, own := range []bool{false, true} {
				limit, timeouts := c.def, Timeouts{}
				if own {
					limit, timeouts = time.Minute, c.set
				}
				t := newTable(tt, 4, timeouts)
				f := flowN(0)
				f.Proto = c.proto
				ref, _ := t.Insert(&f, start)
				now := start
				for _, s := range c.steps {
					now += c.apart
					t.Touch(ref.Record, s.d, now, s.flags)
				}
				if n := t.Expire(now+ticksOf(limit), 100); n != 0 {
					tt.Errorf("%s from %d: gone at its timeout %v", classWords[c.class], start, limit)
				}
				if n := t.Expire(now+ticksOf(limit)+1, 100); n != 1 {
					tt.Errorf("%s from %d: still there after %v", classWords[c.class], start, limit)
				}
				check(tt, t)
				if s := t.Stats(); s.Expired != 1 || s.Removed != 1 {
					tt.Errorf("%+v", s)
				}
			}
		}
	}
}

// Packets of either direction keep a flow; a clock that is a little behind does not end it, a long absence does.
func TestExpireClock(tt *testing.T) {
	for _, c := range []struct {
		name  string
		touch Direction
		seen  Tick
		now   Tick
		gone  bool
	}{
		{"forward refreshes", Forward, 1 << 20, 1<<20 + 100, false},
		{"reply refreshes", Reply, 1 << 20, 1<<20 + 100, false},
		{"sweeper a little behind", Forward, 1000, 990, false},
		{"sweeper behind by the slack", Forward, slack, 0, false},
		{"a wait of 26 days", Forward, 0, 1 << 31, true},
		{"a wait of 50 days", Forward, 0, 1<<32 - 2<<20, true},
	} {
		tt.Run(c.name, func(tt *testing.T) {
			t := newTable(tt, 1, Timeouts{})
			f := flowN(1)
			ref, _ := t.Insert(&f, c.seen-1)
			t.Touch(ref.Record, c.touch, c.seen, 0)
			if got := t.Expire(c.now, 10) == 1; got != c.gone {
				tt.Errorf("gone: %v", got)
			}
		})
	}
}

func TestLongestTimeout(tt *testing.T) {
	t := newTable(tt, 1, Timeouts{UDPUnreplied: MaxTimeout})
	f := flowN(1)
	t.Insert(&f, 5)
	if t.Expire(5+1<<31, 1) != 0 {
		tt.Error("gone at the longest timeout")
	}
	if t.Expire(5+1<<31+1, 1) != 1 {
		tt.Error("there after the longest timeout")
	}
}

func TestExpireIsBounded(tt *testing.T) {
	t := newTable(tt, 100, Timeouts{})
	fill(tt, t, 100)
	late := ticksOf(48 * time.Hour)
	if n := t.Expire(late, 0); n != 0 {
		tt.Errorf("budget 0: %d", n)
	}
	for left := 100; left > 0; left -= 30 {
		if n := t.Expire(late, 30); n != min(left, 30) {
			tt.Errorf("%d left, budget 30: %d removed", left, n)
		}
	}
	// 20 records were looked at for the second time: the sweep goes around from where it was.
	settle(t)
	fill(tt, t, 100)
	if n := t.Expire(late, 1<<30); n != 100 {
		tt.Errorf("a round: %d", n)
	}
	check(tt, t)
}

// What the kernel's programs write counts as if Touch had: times of either direction, and a count of replies as an answer.
func TestKernelWrites(tt *testing.T) {
	le := binary.LittleEndian
	for _, c := range []struct {
		name   string
		proto  uint8
		off    int
		seen   Tick
		counts bool // replies, too
		now    Tick
		gone   bool
	}{
		{"nothing", 17, 0, 0, false, ticksOf(30*time.Second) + 1, true},
		{"forward", 17, OffsetForwardSeen, 5000, false, ticksOf(30*time.Second) + 5000, false},
		{"forward, long ago", 17, OffsetForwardSeen, 5000, false, ticksOf(30*time.Second) + 5001, true},
		{"reply", 17, OffsetReplySeen, 5000, true, ticksOf(120*time.Second) + 5000, false},
		{"reply, long ago", 17, OffsetReplySeen, 5000, true, ticksOf(120*time.Second) + 5001, true},
		{"TCP in the middle of its handshake", 6, OffsetReplySeen, 5000, true, ticksOf(120*time.Second) + 5000, false},
		{"TCP in the middle of its handshake, long ago", 6, OffsetReplySeen, 5000, true, ticksOf(120*time.Second) + 5001, true},
	} {
		tt.Run(c.name, func(tt *testing.T) {
			index, records := newImage(tt, 1)
			t := open(tt, index, records, Timeouts{})
			f := flowN(0)
			f.Proto = c.proto
			ref, _ := t.Insert(&f, 0)
			r := records[ref.Record*RecordSize:]
			if c.off != 0 {
				le.PutUint32(r[c.off:], uint32(c.seen))
			}
			if c.counts {
				le.PutUint64(r[OffsetReplyPackets:], 3)
			}
			for e := range t.All() {
				if got := e.State&Replied != 0; got != c.counts {
					tt.Errorf("replied: %v", got)
				}
			}
			if got := t.records[ref.Record].standing() != unanswered; got != c.counts {
				tt.Errorf("standing %d", t.records[ref.Record].standing())
			}
			if got := t.Expire(c.now, 10) == 1; got != c.gone {
				tt.Errorf("gone: %v", got)
			}
		})
	}
}

func TestReconcile(tt *testing.T) {
	t := newTable(tt, 1000, Timeouts{})
	fill(tt, t, 1000)
	asked := map[uint32]int{}
	odd := func(e *Entry) bool {
		asked[e.Record]++
		if want := flowN(e.Record - 1); e.Flow != normal(want) {
			tt.Fatalf("record %d: %+v", e.Record, e.Flow)
		}
		t.SetGeneration(e.Record, 0)
		return e.Record%2 == 1
	}
	if n := t.Reconcile(0, odd); n != 0 || len(asked) != 0 {
		tt.Errorf("budget 0: %d removed, %d asked", n, len(asked))
	}
	// 1125 records, the last of them free: in four steps each flow is asked for once.
	removed := 0
	for range 4 {
		removed += t.Reconcile(280, odd)
	}
	if removed != 500 || len(asked) != 1000 {
		tt.Errorf("%d removed, %d asked", removed, len(asked))
	}
	for rec, n := range asked {
		if n != 1 {
			tt.Errorf("record %d was asked for %d times", rec, n)
		}
	}
	check(tt, t)
	// Once around, wherever it stands, and no further.
	clear(asked)
	if n := t.Reconcile(1<<30, odd); n != 0 || len(asked) != 500 {
		tt.Errorf("a round: %d removed, %d asked", n, len(asked))
	}
	if s := t.Stats(); s.Reconciled != 500 || s.Removed != 500 || s.Flows != 500 {
		tt.Errorf("%+v", s)
	}
	// A round of its own: Expire does not move it.
	settle(t)
	t.Expire(0, 77)
	clear(asked)
	t.Reconcile(10, odd)
	if len(asked) > 10 {
		tt.Errorf("%d asked", len(asked))
	}
	// keep may remove by itself.
	if n := t.Reconcile(1<<30, func(e *Entry) bool { t.Remove(e.Record); return false }); n != 0 || t.Stats().Flows != 0 {
		tt.Errorf("%d removed twice", n)
	}
	check(tt, t)
}

func TestTimeoutsValidated(t *testing.T) {
	index, records := newImage(t, 1)
	for _, c := range []struct {
		to   Timeouts
		want string
	}{
		{Timeouts{TCPOpening: -1}, "TCPOpening"},
		{Timeouts{TCPEstablished: MaxTimeout + 1}, "TCPEstablished"},
		{Timeouts{TCPCloseWait: -time.Hour}, "TCPCloseWait"},
		{Timeouts{TCPClosing: 1 << 62}, "TCPClosing"},
		{Timeouts{UDPUnreplied: -1}, "UDPUnreplied"},
		{Timeouts{UDPStream: MaxTimeout + 1}, "UDPStream"},
	} {
		if _, _, err := Open(index, records, c.to); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.to, err)
		}
	}
}
