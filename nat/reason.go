package nat

// Reason says why Parse refused a frame: why it is not ours to translate and goes
// to the kernel as it came. The zero value means that nothing was refused.
type Reason uint8

const (
	OK Reason = iota

	// Ethernet.
	ShortFrame // ends inside the Ethernet header or a VLAN tag
	GroupMAC   // sent to a multicast or broadcast MAC: a router never forwards it
	ThirdTag   // more than two VLAN tags
	NotIP      // another EtherType, an 802.3 length included

	// IPv4 and IPv6.
	BadVersion        // the version is not the one the EtherType announced
	BadHeaderLength   // IHL below 5, or past the total length
	Truncated         // the frame ends before the IP packet does
	Oversize          // the packet ends beyond what a 16-bit offset can name
	BadHeaderChecksum // IPv4 header checksum
	BadOption         // an IPv4 or hop-by-hop option that the kernel drops or repairs
	RouterOption      // an option that asks a router to act, or may ask it to
	BadExtension      // an extension header that runs past the packet or stands in the wrong place
	LongChain         // more extension headers than we walk
	RoutingHeader     // a source route that is not at its end
	MartianSource     // a source that no router forwards
	MappedAddress     // an IPv6 packet with IPv4-mapped addresses
	Fragment          // any fragment, an atomic one included

	// Transport.
	ICMP          // over IPv4
	ICMPv6        // over IPv6
	SCTP          // over either
	OtherProtocol // no ports that we know of
	ShortHeader   // the packet ends inside the TCP or UDP header
	BadDataOffset // TCP data offset below 5 or past the packet
	BadUDPLength  // UDP length that is not exactly the IP payload's
	BadTCPFlags   // a set of flags that connection tracking calls invalid

	// NumReasons sizes an array that is indexed by Reason.
	NumReasons
)

// The words are labels of metrics and of the CLI: they never change.
var reasonWords = [NumReasons]string{
	OK:                "ok",
	ShortFrame:        "short_frame",
	GroupMAC:          "group_mac",
	ThirdTag:          "third_vlan_tag",
	NotIP:             "not_ip",
	BadVersion:        "bad_ip_version",
	BadHeaderLength:   "bad_header_length",
	Truncated:         "truncated",
	Oversize:          "oversize",
	BadHeaderChecksum: "bad_header_checksum",
	BadOption:         "bad_option",
	RouterOption:      "router_option",
	BadExtension:      "bad_extension_header",
	LongChain:         "long_extension_chain",
	RoutingHeader:     "routing_header",
	MartianSource:     "martian_source",
	MappedAddress:     "mapped_address",
	Fragment:          "fragment",
	ICMP:              "icmp",
	ICMPv6:            "icmpv6",
	SCTP:              "sctp",
	OtherProtocol:     "other_protocol",
	ShortHeader:       "short_transport_header",
	BadDataOffset:     "bad_data_offset",
	BadUDPLength:      "bad_udp_length",
	BadTCPFlags:       "bad_tcp_flags",
}

// String gives the reason's stable word.
func (r Reason) String() string {
	if r < NumReasons {
		return reasonWords[r]
	}
	return "unknown"
}

// Reasons lists every reason, OK first, in the order of their numbers.
func Reasons() []Reason {
	all := make([]Reason, NumReasons)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}
