package flowtable

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Timeouts say how long a flow stays without packets. Zero means the default. Where kube-proxy has a setting
// (KubeProxyConfiguration.conntrack) it is named.
type Timeouts struct {
	TCPOpening     time.Duration // 120 s: no handshake seen yet; the kernel's syn_sent
	TCPEstablished time.Duration // 24 h: tcpEstablishedTimeout
	TCPCloseWait   time.Duration // 1 h: tcpCloseWaitTimeout; one side has closed
	TCPClosing     time.Duration // 4 min: both sides have closed, or one has reset; RFC 7857, section 2
	UDPUnreplied   time.Duration // 30 s: udpTimeout, which leaves the kernel's; also SCTP and the rest
	UDPStream      time.Duration // 120 s: udpStreamTimeout, likewise; answered, and still going after two seconds
}

// MaxTimeout is the longest that a timeout may be: half of the time in which a tick wraps, about 26 days. The other half
// (less the slack) is what the sweep, or a daemon that was away, may take until it looks at a flow whose time is up.
const MaxTimeout = (1 << 31) * (1 << tickShift) * time.Nanosecond

// slack is how far ahead of the sweeper's clock a last-seen may be, about 18 minutes: it is a worker's tick, or the
// kernel's, against a tick that the sweeper took before it lost its CPU. What is further ahead is long ago.
const slack Tick = 1 << 20

// A class is what decides a flow's timeout.
type class uint8

const (
	tcpOpening class = iota
	tcpEstablished
	tcpCloseWait
	tcpClosing
	unreplied
	stream
	classes
)

var classWords = [classes]string{"opening", "established", "close_wait", "closing", "unreplied", "stream"}

// Classes lists the words that Entry.Class says.
func Classes() []string { return classWords[:] }

const (
	protoTCP = 6
	protoUDP = 17
)

// streamAfter is how long a UDP flow goes on before an answer makes it a stream: most that are answered, those to a resolver
// above all, are over by then. (stream_ts of net/netfilter/nf_conntrack_proto_udp.c.)
const streamAfter Tick = (2e9 + 1<<tickShift - 1) >> tickShift

// lasted returns the time between a flow's first and last packets. It begins again when ticks wrap: a flow that fell silent within
// two seconds of that, 52 days old, is given the shorter time once.
func lasted(began, forwardSeen, replySeen Tick) Tick {
	return max(idleFor(forwardSeen, began), idleFor(replySeen, began))
}

// class takes the time that the flow lasted, too.
func (s State) class(proto uint8, lasted Tick) class {
	switch {
	case proto != protoTCP && s&Replied == 0, proto == protoUDP && lasted <= streamAfter:
		return unreplied
	case proto != protoTCP:
		return stream
	case s.closing():
		return tcpClosing
	case s&(FinForward|FinReply) != 0 && s&Replied != 0:
		return tcpCloseWait
	case s&Established != 0:
		return tcpEstablished
	}
	return tcpOpening
}

// ticks validates the timeouts and returns them by class.
func (to Timeouts) ticks() (idle [classes]Tick, err error) {
	for _, c := range []struct {
		class
		name     string
		set, def time.Duration
	}{
		{tcpOpening, "TCPOpening", to.TCPOpening, 120 * time.Second},
		{tcpEstablished, "TCPEstablished", to.TCPEstablished, 24 * time.Hour},
		{tcpCloseWait, "TCPCloseWait", to.TCPCloseWait, time.Hour},
		{tcpClosing, "TCPClosing", to.TCPClosing, 4 * time.Minute},
		{unreplied, "UDPUnreplied", to.UDPUnreplied, 30 * time.Second},
		{stream, "UDPStream", to.UDPStream, 120 * time.Second},
	} {
		if c.set < 0 || c.set > MaxTimeout {
			return idle, fmt.Errorf("flow table: timeout %s is %v, want 0 (default) to %v", c.name, c.set, MaxTimeout)
		}
		if c.set == 0 {
			c.set = c.def
		}
		idle[c.class] = Tick((c.set + 1<<tickShift - 1) >> tickShift)
	}
	return idle, nil
}

// idleFor returns the time since a tick, 0 if that is a little ahead of now.
func idleFor(now, seen Tick) Tick {
	d := now - seen
	if d+slack < slack {
		return 0
	}
	return d
}

// overdue reports whether the flow had no packet, in either direction, for longer than its class may. The kernel's programs
// may have written the times: they are ticks of the same clock. In a crowd, flows that both sides have closed go soon.
func (t *Table) overdue(r *record, now Tick, crowd bool) bool {
	forward, reply := Tick(atomic.LoadUint32(&r.seen[Forward])), Tick(atomic.LoadUint32(&r.seen[Reply]))
	s := r.known()
	limit := t.idle[s.class(r.proto, lasted(Tick(r.began), forward, reply))]
	if crowd && r.proto == protoTCP && s.finished() {
		limit = min(limit, finishedTimeout)
	}
	return min(idleFor(now, forward), idleFor(now, reply)) > limit
}

// Expire looks at the next budget records, in order of their numbers and around, and removes the flows whose time is
// up. A caller that ticks every so often chooses the budget so that a round takes a few seconds at most. A packet
// that arrives in the same moment does not save the flow; its own translation is not affected.
func (t *Table) Expire(now Tick, budget int) (removed int) {
	t.sweep.Lock()
	defer t.sweep.Unlock()
	t.mu.Lock()
	crowd := t.liveCount >= t.limit-t.limit/8
	t.mu.Unlock()
	for n := min(budget, len(t.records)-1); n > 0; n-- {
		t.cursor++
		if int(t.cursor) >= len(t.records) {
			t.cursor = 1
		}
		// Once it is live the record is complete, and while sweep is held it is not reused.
		r := &t.records[t.cursor]
		if atomic.LoadUint32(&r.life) == LifeLive && t.overdue(r, now, crowd) && t.Remove(t.cursor) {
			removed++
		}
	}
	t.settle(budget / 4)
	t.mu.Lock()
	t.expired += uint64(removed)
	t.mu.Unlock()
	return removed
}

// Reconcile looks at the next budget records, in rounds of its own, and removes the flows that keep does not want: those
// whose Service or backend is gone even if no packet comes to tell. keep may use the record as a worker does (SetGeneration, Remove
// of others), but must not call what waits for a sweep: Expire, Reconcile, Reclaim, All. The entry is good for the call
// only. Packets never wait for it.
func (t *Table) Reconcile(budget int, keep func(e *Entry) bool) (removed int) {
	for left := min(budget, len(t.records)-1); left > 0; left -= reconcileStep {
		removed += t.reconcile(min(left, reconcileStep), keep)
	}
	return removed
}

// reconcileStep is how many records Reconcile looks at before others may sweep.
const reconcileStep = 256

func (t *Table) reconcile(n int, keep func(e *Entry) bool) (removed int) {
	t.sweep.Lock()
	defer t.sweep.Unlock()
	for ; n > 0; n-- {
		t.second++
		if int(t.second) >= len(t.records) {
			t.second = 1
		}
		r := &t.records[t.second]
		if atomic.LoadUint32(&r.life) != LifeLive {
			continue
		}
		t.entry.copy(t.second, r)
		if !keep(&t.entry) && t.Remove(t.second) {
			removed++
		}
	}
	t.mu.Lock()
	t.reconciled += uint64(removed)
	t.mu.Unlock()
	return removed
}
