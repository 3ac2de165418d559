package dataplane

import (
	"fmt"

	"github.com/sluice-net/sluice/nat"
)

// Verdict is how a frame that reached the fast path ended.
type Verdict uint8

// The verdicts. What the classifier passes never becomes a frame of ours: it is
// counted there.
const (
	Translated Verdict = iota // rewritten and sent
	Returned                  // given to the node's kernel unchanged
	Rejected                  // answered with an ICMP error
	Dropped                   // neither
	numVerdicts
)

var verdictWords = [numVerdicts]string{"translated", "returned", "rejected", "dropped"}

// String gives the word of metrics, CLI and trace.
func (v Verdict) String() string {
	if int(v) < len(verdictWords) {
		return verdictWords[v]
	}
	return fmt.Sprintf("Verdict(%d)", uint8(v))
}

// Reason says why a frame got its verdict. Each belongs to one verdict only.
type Reason uint8

// The reasons of our own; those of a frame that could not be parsed follow
// them, one for each nat.Reason.
const (
	ForwardDirect   Reason = iota // to the backend, by a direct port
	ForwardReturn                 // to the backend, by the return port
	ReplyDirect                   // to the client, by a direct port
	ReplyReturn                   // to the client, by the return port
	ErrorDirect                   // an ICMP error about a flow, by a direct port
	ErrorReturn                   // an ICMP error about a flow, by the return port
	StatelessDirect               // of a flow that found no room, by a direct port
	StatelessReturn               // of a flow that found no room, by the return port

	NoSnapshot      // nothing is programmed yet
	MidStream       // of a connection that the kernel began, or that nobody has
	NotServed       // neither a frontend's address nor a flow's tuple (any more)
	UnservedPath    // the backend's replies would not come back through a port
	HairpinToSelf   // the backend is the client, and the node has no address to show it
	TableFull       // no room for the flow
	ClientOverCap   // its client has as many flows as one may have
	FragmentExpired // the first fragment of its datagram did not come
	RouteFirst      // a reply with options for a router: it comes again when the kernel has routed it
	Masqueraded     // its client is outside, and the kernel is to show the backend another
	PolicyReturned  // a NetworkPolicy selects its client or a backend of its Service
	NoFreePort      // every source port tried collides at the backend
	NoEndpoints     // rejected: no usable endpoint anywhere
	BackendGone     // rejected with a reset: the connection's backend no longer serves
	TTLExceeded     // rejected with time exceeded: the node is as far as it goes
	TooBig          // rejected with the MTU of the way on: too long, and not to be cut
	UnknownPort     // rejected: the address is a frontend's, the port is not
	PolicyRefused   // rejected: the same, and nobody else serves it
	NoLocal         // dropped: policy Local, and no endpoint on this node
	SpoofedSource   // dropped: the source does not live behind this port
	RejectLimited   // dropped: too many answers, of the node or to this client
	RejectRefused   // dropped: an answer to this frame may not be sent
	FragmentOverlap // dropped: of a datagram whose fragments overlap
	FragmentAgain   // dropped: this fragment came before
	PortGone        // dropped: the port that it came in by is no more
	OtherHost       // dropped: flooded to us, but sent to another station
	NoRoomYet       // dropped: no room for the flow, and forwarding without state is being prepared
	InvalidReply    // dropped: a reply that the kernel's own NAT would let out untranslated
	InvalidError    // dropped: an ICMP error about a flow that redirects, or quotes too little
	ReturnLoop      // dropped: came from the node's kernel and would go back to it
	TxFull          // dropped: no room in the ring of transmission
	BadDescriptor   // dropped: the kernel named a frame outside the umem
	NoFrame         // dropped: no free frame for the answer
	firstNatReason  // returned: nat.Reason(1) and so on
)

// numReasons counts ours and nat's.
const numReasons = int(firstNatReason) + int(nat.NumReasons) - 1

var reasonWords = [firstNatReason]struct {
	word    string
	verdict Verdict
}{
	ForwardDirect:   {"forward_direct", Translated},
	ForwardReturn:   {"forward_return", Translated},
	ReplyDirect:     {"reply_direct", Translated},
	ReplyReturn:     {"reply_return", Translated},
	ErrorDirect:     {"error_direct", Translated},
	ErrorReturn:     {"error_return", Translated},
	StatelessDirect: {"stateless_direct", Translated},
	StatelessReturn: {"stateless_return", Translated},
	NoSnapshot:      {"no_snapshot", Returned},
	MidStream:       {"mid_stream", Returned},
	NotServed:       {"not_served", Returned},
	TTLExceeded:     {"ttl_exceeded", Rejected},
	TooBig:          {"too_big", Rejected},
	UnservedPath:    {"unserved_path", Returned},
	HairpinToSelf:   {"hairpin", Returned},
	ClientOverCap:   {"client_over_cap", Returned},
	TableFull:       {"table_full", Returned},
	FragmentExpired: {"fragment_expired", Returned},
	RouteFirst:      {"route_first", Returned},
	Masqueraded:     {"masqueraded", Returned},
	PolicyReturned:  {"policy_returned", Returned},
	NoFreePort:      {"no_free_port", Returned},
	NoEndpoints:     {"no_endpoints", Rejected},
	BackendGone:     {"backend_gone", Rejected},
	UnknownPort:     {"unknown_port", Rejected},
	PolicyRefused:   {"policy_refused", Rejected},
	NoLocal:         {"no_local_endpoints", Dropped},
	SpoofedSource:   {"spoofed_source", Dropped},
	RejectLimited:   {"reject_limited", Dropped},
	RejectRefused:   {"reject_refused", Dropped},
	FragmentOverlap: {"fragment_overlap", Dropped},
	FragmentAgain:   {"fragment_again", Dropped},
	PortGone:        {"port_gone", Dropped},
	OtherHost:       {"other_host", Dropped},
	NoRoomYet:       {"no_room_yet", Dropped},
	InvalidReply:    {"invalid_reply", Dropped},
	InvalidError:    {"invalid_error", Dropped},
	ReturnLoop:      {"return_loop", Dropped},
	TxFull:          {"tx_full", Dropped},
	BadDescriptor:   {"bad_descriptor", Dropped},
	NoFrame:         {"no_frame", Dropped},
}

// unparsed is the reason of a frame that nat would not parse.
func unparsed(r nat.Reason) Reason { return firstNatReason + Reason(r) - 1 }

// Verdict is the one that r belongs to.
func (r Reason) Verdict() Verdict {
	if r < firstNatReason {
		return reasonWords[r].verdict
	}
	return Returned
}

// String gives the word of metrics, CLI and trace.
func (r Reason) String() string {
	switch {
	case r < firstNatReason:
		return reasonWords[r].word
	case int(r) < numReasons:
		return nat.Reason(r - firstNatReason + 1).String()
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}
