package flowtable

import "sync/atomic"

// State of a flow: what its packets have shown so far. For TCP it is a small projection of the kernel's machine
// (net/netfilter/nf_conntrack_proto_tcp.c): no sequence numbers, so nothing is ever out of window, and so a RST shortens
// a timer and never ends a flow. Other protocols have only Replied.
type State uint32

const (
	Replied     State = 1 << iota // a packet in the reply direction
	Established                   // TCP: and after it an ACK in the forward direction
	FinForward                    // TCP: the client has closed its side
	FinReply                      // TCP: the backend has
	RstForward                    // TCP: the client has reset, and not spoken since
	RstReply                      // TCP: the backend has
)

// The flags of a TCP header that matter here.
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

// closing says that both sides are done with the flow: its tuple may be used again.
func (s State) closing() bool {
	return s&(RstForward|RstReply) != 0 || s&(FinForward|FinReply) == FinForward|FinReply
}

// after returns the state after one more packet. flags are TCP's, and 0 for other protocols.
func (s State) after(d Direction, flags uint8) State {
	d &= 1
	s |= Replied * State(d)
	if flags&tcpRST != 0 {
		return s | RstForward<<d
	}
	if flags&tcpFIN != 0 {
		s |= FinForward << d
	}
	if flags&(tcpSYN|tcpACK) == tcpACK {
		// Who has really sent a RST never sends another segment of the connection: the RST was forged, or refused as
		// out of window. (RFC 6146, 3.5.2.2, TRANS, takes it back for a segment of either side; but what the other side
		// had in flight says nothing.)
		s &^= RstForward << d
		if d == Forward && s&Replied != 0 {
			s |= Established
		}
	}
	return s
}

// Touch notes a packet of a flow: last seen, count, state. tcpFlags is 0 for protocols other than TCP. It is called for
// each packet that is translated, by several workers at once for one flow if it comes to that: then a count is never
// lost, and the time may go back by the distance of their ticks.
//
// A RST does not refresh (RFC 7857, section 2), but the first one of a side does: the flow is kept for the closing timeout after
// it. ICMP errors are not packets of the flow and do not come here.
func (t *Table) Touch(rec uint32, d Direction, now Tick, tcpFlags uint8) {
	r := &t.records[rec]
	d &= 1
	// Store only what is new: a line that is only read stays shared between cores, and a store costs as much as an add.
	s := State(atomic.LoadUint32(&r.state))
	n := s.after(d, tcpFlags)
	if n != s {
		for !atomic.CompareAndSwapUint32(&r.state, uint32(s), uint32(n)) {
			s = State(atomic.LoadUint32(&r.state))
			n = s.after(d, tcpFlags)
		}
	}
	if (tcpFlags&tcpRST == 0 || n != s) && atomic.LoadUint32(&r.seen[d]) != uint32(now) {
		atomic.StoreUint32(&r.seen[d], uint32(now))
	}
	atomic.AddUint64(&r.packets[d], 1)
}

// Closing reports whether a TCP flow has been closed by both sides or reset by one: a SYN on it is a new connection.
func (t *Table) Closing(rec uint32) bool {
	return State(atomic.LoadUint32(&t.records[rec].state)).closing()
}
