package flowtable

import "sync/atomic"

// State of a flow: what its packets have shown so far. Protocols other than TCP have only Replied.
//
// For TCP it is a projection of the kernel's machine (net/netfilter/nf_conntrack_proto_tcp.c), without sequence
// numbers: nothing is ever out of window, every segment of a known flow is translated, and a RST shortens a timer
// and never ends a flow. The kernel's states fall into our classes, each with its timer, so:
//
//	SYN_SENT, SYN_SENT2, SYN_RECV   opening
//	ESTABLISHED                     established; opening until the other side of a flow picked up in mid-stream answers
//	FIN_WAIT, CLOSE_WAIT            close_wait
//	LAST_ACK, TIME_WAIT, CLOSE      closing; a SYN of the client begins a new flow
//
// conntrack_test.go decides each of the kernel's 120 transitions and gives a reason for every difference.
type State uint32

const (
	Replied     State = 1 << iota // a packet in the reply direction
	Established                   // TCP: and after it an ACK of the client, who is therefore no forged source
	FinForward                    // TCP: the client has closed its side
	FinReply                      // TCP: the backend has
	RstForward                    // TCP: the client has reset, and not spoken since
	RstReply                      // TCP: the backend has
	Opened                        // TCP: the client's SYN; a flow without it was picked up in mid-stream
)

// The flags of a TCP header that matter here.
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

// Start is what a TCP segment that belongs to no flow may do.
type Start uint8

const (
	NoStart Start = iota // begin nothing: there is no connection that it could be a segment of
	Opens                // begin a connection
	PicksUp              // continue one whose history is lost, if the caller's mode has that
)

// StartOf tells by a segment's flags. A RST or a SYN-ACK without a flow begins nothing. A FIN does, other than with the kernel:
// the connection's last segments are worth their way to the backend that the hash names.
func StartOf(tcpFlags uint8) Start {
	switch tcpFlags & (tcpSYN | tcpRST | tcpACK) {
	case tcpSYN:
		return Opens
	case tcpACK:
		return PicksUp
	}
	return NoStart
}

// closing says that both sides are done with the flow: its tuple may be used again.
func (s State) closing() bool {
	return s&(RstForward|RstReply) != 0 || s.finished()
}

// finished says that both sides have closed, which no third party can have done for them by one forged RST.
func (s State) finished() bool { return s&(FinForward|FinReply) == FinForward|FinReply }

// after returns the state after one more packet. flags are TCP's, and 0 for other protocols.
func (s State) after(d Direction, flags uint8) State {
	d &= 1
	if flags&(tcpSYN|tcpFIN|tcpRST) != 0 {
		return s.signal(d, flags)
	}
	if s |= Replied * State(d); flags&tcpACK != 0 {
		s = s.acked(d)
	}
	return s
}

// steady says that a packet with these flags cannot change the state: nearly every packet is of that kind.
func (s State) steady(flags uint8) bool {
	return flags&(tcpSYN|tcpFIN|tcpRST) == 0 && s&Replied != 0 &&
		(flags&tcpACK == 0 || s&(Established|RstForward|RstReply) == Established)
}

// acked is after an ACK. Who has really sent a RST never sends another segment of the connection: the RST was forged, or
// refused as out of window. (RFC 6146, 3.5.2.2, TRANS, takes it back for a segment of either side; but what the other
// side had in flight says nothing.)
func (s State) acked(d Direction) State {
	s &^= RstForward << d
	if s&Replied != 0 && (d == Forward || s&Opened == 0) {
		s |= Established
	}
	return s
}

// signal is after a segment with SYN, FIN or RST, in the kernel's order of precedence.
func (s State) signal(d Direction, flags uint8) State {
	was := s
	s |= Replied * State(d)
	switch {
	case flags&tcpRST != 0:
		return s | RstForward<<d
	case flags&tcpSYN != 0:
		if d == Forward && flags&tcpACK == 0 && was&Replied == 0 {
			s |= Opened
		}
		return s
	case was&(Opened|Replied) == Opened:
		return s // a FIN while a SYN is unanswered is of no connection that we know
	}
	return s.acked(d) | FinForward<<d
}

// Touch notes a packet of a flow: last seen, count, state. tcpFlags is 0 for protocols other than TCP. It is called for
// each packet that is translated, by several workers at once for one flow if it comes to that: then a count is never
// lost, and the time may go back by the distance of their ticks.
//
// A RST does not refresh (RFC 7857, section 2), but the first one of a side does: the flow is kept for the closing timeout after
// it. A client's SYN does not either: Insert has noted the first, and who repeats it must not keep the choice of a backend
// that does not answer (the kernel has the same rule). ICMP errors are not packets of the flow and do not come here.
func (t *Table) Touch(rec uint32, d Direction, now Tick, tcpFlags uint8) {
	r := &t.records[rec]
	d &= 1
	// Store only what is new: a line that is only read stays shared between cores, and a store costs as much as an add.
	s := State(atomic.LoadUint32(&r.state))
	n := s
	if !s.steady(tcpFlags) {
		n = s.after(d, tcpFlags)
	}
	if n != s {
		for !atomic.CompareAndSwapUint32(&r.state, uint32(s), uint32(n)) {
			s = State(atomic.LoadUint32(&r.state))
			n = s.after(d, tcpFlags)
		}
	}
	if (tcpFlags&(tcpRST|tcpSYN) == 0 || refreshes(d, tcpFlags, n != s)) && atomic.LoadUint32(&r.seen[d]) != uint32(now) {
		atomic.StoreUint32(&r.seen[d], uint32(now))
	}
	atomic.AddUint64(&r.packets[d], 1)
}

// refreshes is for segments with SYN or RST.
func refreshes(d Direction, flags uint8, news bool) bool {
	if flags&tcpRST != 0 {
		return news
	}
	return d == Reply || flags&tcpACK != 0
}

// Closing reports whether a TCP flow has been closed by both sides or reset by one: a SYN on it is a new connection.
func (t *Table) Closing(rec uint32) bool {
	return State(atomic.LoadUint32(&t.records[rec].state)).closing()
}
