package xdpprog

import "fmt"

// Reason is why a frame ended as it did in the classifier: the Go twin of enum
// reason in bpf/classifier.h, which a test pins to it.
type Reason uint8

const (
	// The frame is ours, and went to the daemon.

	ReasonForward          Reason = iota // in the flow table, client to frontend
	ReasonReply                          // in the flow table, backend to client
	ReasonNew                            // not in the flow table, to an address we serve, and ours to begin
	ReasonOverflow                       // from a backend, while there are flows that found no room in the flow table
	ReasonBeside                         // to a backend itself, from where a flow of its already comes
	ReasonFragmentForward                // a fragment to an address we serve, or of a flow
	ReasonFragmentReply                  // a fragment from a backend, or of a flow
	ReasonICMPErrorForward               // an error about a flow's reply: it goes to the backend
	ReasonICMPErrorReply                 // an error about a flow's forward frame: it goes to the client
	ReasonSteered                        // on the return port: another program of ours has found it ours

	// The frame would be ours, but the daemon is away.

	ReasonHeld      // in the flow table: dropped, its sender waits for the restart
	ReasonDeadKnown // in the flow table, the daemon away for longer than we hold
	ReasonDeadNew   // not in the flow table, or a fragment or error: these are never held
	ReasonNoMemory  // the daemon is there, but the kernel had no memory to send it the frame: dropped

	// The frame is the kernel's. On the return port's inner end it is dropped.

	ReasonNotOurs    // neither to an address we serve nor in the flow table
	ReasonKernelTCP  // to an address we serve, of a connection that we did not begin
	ReasonKernelUDP  // to an address we serve, known to the kernel's connection tracking
	ReasonKernelSCTP // to an address we serve, of an association that we did not begin
	ReasonNotUnicast
	ReasonNotIP
	ReasonVLANTags      // more than two in the frame
	ReasonVLANOffloaded // a tag beside the frame
	ReasonTruncated     // the frame ends inside a header
	ReasonBadHeader     // a version or header length that cannot be
	ReasonBadLength     // lengths that contradict each other or the frame
	ReasonMappedAddress // an IPv4-mapped address in an IPv6 header
	ReasonExtHeaders    // more IPv6 extension headers than the classifier walks
	ReasonFragment      // one that we do not take
	ReasonICMPError     // one that we do not take, or about no flow of ours
	ReasonOtherProto
	ReasonUnknownPort // a device that is not in the port map
	ReasonBadQueue    // a queue beyond those that a slot has room for

	NumReasons = iota
)

var reasonNames = [NumReasons]string{
	ReasonForward:          "forward",
	ReasonReply:            "reply",
	ReasonNew:              "new",
	ReasonOverflow:         "overflow",
	ReasonBeside:           "beside",
	ReasonFragmentForward:  "fragment_forward",
	ReasonFragmentReply:    "fragment_reply",
	ReasonICMPErrorForward: "icmp_error_forward",
	ReasonICMPErrorReply:   "icmp_error_reply",
	ReasonSteered:          "steered",
	ReasonHeld:             "held",
	ReasonDeadKnown:        "dead_known",
	ReasonDeadNew:          "dead_new",
	ReasonNoMemory:         "no_memory",
	ReasonNotOurs:          "not_ours",
	ReasonKernelTCP:        "kernel_tcp",
	ReasonKernelUDP:        "kernel_udp",
	ReasonKernelSCTP:       "kernel_sctp",
	ReasonNotUnicast:       "not_unicast",
	ReasonNotIP:            "not_ip",
	ReasonVLANTags:         "vlan_tags",
	ReasonVLANOffloaded:    "vlan_offloaded",
	ReasonTruncated:        "truncated",
	ReasonBadHeader:        "bad_header",
	ReasonBadLength:        "bad_length",
	ReasonMappedAddress:    "mapped_address",
	ReasonExtHeaders:       "ext_headers",
	ReasonFragment:         "fragment",
	ReasonICMPError:        "icmp_error",
	ReasonOtherProto:       "other_proto",
	ReasonUnknownPort:      "unknown_port",
	ReasonBadQueue:         "bad_queue",
}

func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// Counters counts frames by [Reason].
type Counters [NumReasons]uint64

// PortCounters are the frames of one port by hook, since its first attachment.
type PortCounters struct {
	Ingress Counters
	Egress  Counters
}
