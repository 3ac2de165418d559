package nat

// Reason says why a frame was refused: why it is not ours to translate and goes to
// the kernel as it came. The zero value means that nothing was refused.
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
	BadOption         // a hop-by-hop option that the kernel drops or answers
	BadExtension      // an extension header that runs past the packet
	LongChain         // more extension headers than we walk
	MartianSource     // a source that no router forwards
	MappedAddress     // an IPv6 packet with IPv4-mapped addresses
	Fragment          // any fragment, an atomic one included: Piece.Parse

	// Transport.
	ICMP          // over IPv4: Quote.Parse
	ICMPv6        // over IPv6: Quote.Parse
	SCTP          // over either: ParseSCTP
	OtherProtocol // no ports that we know of
	ShortHeader   // the packet ends inside the transport header
	BadDataOffset // TCP data offset below 5 or past the packet
	BadUDPLength  // UDP length below the header's or past the IP payload
	BadTCPFlags   // a set of flags that connection tracking calls invalid

	// What goes into the headers that Parse only names.
	BadChunk        // SCTP chunks that connection tracking calls invalid, or that lie about their length
	NotError        // ICMP, but no error about a packet: a query or an unknown type
	BadICMPChecksum // of an error
	Redirect        // an ICMP error that tells its receiver another way
	ShortQuote      // the quote ends before the ports
	CutQuote        // the quote ends behind the ports, before the eighth byte of the transport header
	BadQuote        // a quoted IP header with lengths that cannot be, or of a packet that we never let pass
	QuotedFragment  // a quoted fragment that is not the first
	NestedError     // an error about an error
	QuotedProtocol  // an error about a packet without ports that we know of
	StrayError      // an error that does not go to whom its quoted packet came from
	BadFragment     // a fragment of a wrong length, past 64 KiB, or within another
	TinyFragment    // a first fragment without its transport header, or a later one inside it

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
	BadExtension:      "bad_extension_header",
	LongChain:         "long_extension_chain",
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
	BadChunk:          "bad_sctp_chunk",
	NotError:          "icmp_not_error",
	BadICMPChecksum:   "bad_icmp_checksum",
	Redirect:          "icmp_redirect",
	ShortQuote:        "short_quote",
	CutQuote:          "cut_quote",
	BadQuote:          "bad_quote",
	QuotedFragment:    "quoted_fragment",
	NestedError:       "nested_error",
	QuotedProtocol:    "quoted_protocol",
	StrayError:        "stray_error",
	BadFragment:       "bad_fragment",
	TinyFragment:      "tiny_fragment",
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
