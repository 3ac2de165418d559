// Package nat reads a frame into offsets, gives its packet new addresses and ports
// with right checksums, and builds the answer to a packet that nobody serves. It is
// pure: bytes in, bytes out, without system calls, clocks, state or allocation.
//
// # Model
//
// A frame goes through it in this order, each step optional but the first:
//
//	var p nat.Packet
//	reason := p.Parse(frame)          // not OK: the kernel's, unchanged
//	p.DetectPartial(frame)            // on ports whose peer can send unfinished checksums
//	p.DecrementTTL(frame)             // as a router does
//	p.Rewrite(frame, &endpoints)      // addresses, ports, checksums
//	p.ChecksumOffsets()               // for transmit metadata, if p.Partial
//
// What Parse names and leaves goes on, for a caller who wants it, with one more
// parser and the rewriting that belongs to it:
//
//	SCTP          p.ParseSCTP(frame)   then as above
//	ICMP, ICMPv6  q.Parse(frame, &p)   p.RewriteError(frame, &q, src, dst, &inner)
//	Fragment      f.Parse(frame, &p)   p.RewriteFragment(frame, &f, &endpoints)
//
// What goes no further is answered from the frame as it came: BuildUnreachable,
// BuildTimeExceeded, BuildTooBig, BuildReset.
//
// Packet holds offsets into one frame and belongs, with the frame, to the worker
// that received it. It stays true of the frame through Rewrite and DecrementTTL, so
// that rewriting back to the old endpoints restores every byte.
//
// Addresses are [16]byte with IPv4 mapped (::ffff:a.b.c.d), ports uint16 in host
// order.
//
// # What is never touched
//
// A malformed frame goes to the kernel byte for byte, and it alone decides. That
// holds because Parse writes nothing and accepts a frame only after all of these:
//
//   - the Ethernet header and at most two tags (0x8100, 0x88a8) are there, the
//     destination MAC is one host's, and the EtherType is IPv4's or IPv6's and agrees
//     with the version;
//   - IPv4: IHL of at least 5 and within the total length, total length within the
//     frame, a right header checksum, no fragment;
//   - IPv6: payload length within the frame, at most eight extension headers, each
//     within the packet, no hop-by-hop option that the kernel drops before it
//     translates, no security or unknown header;
//   - a source that a router forwards, and no IPv4-mapped address in an IPv6 packet,
//     which would pass for IPv4 further on;
//   - TCP: the header whole, the data offset within the packet, flags that connection
//     tracking takes for valid; UDP: a length within the IP payload; SCTP: chunks
//     within the packet, and in an order that connection tracking takes for valid;
//   - an ICMP error: a right checksum; in its quote a whole IP header, no later
//     fragment, no error, eight bytes with the ports; and the way back to the quoted
//     source;
//   - a fragment: a length that others can join, below 64 KiB; the first with the whole
//     transport header, and no later one over it.
//
// Bytes behind the IP packet are padding and legal. Verifying the IPv4 header
// checksum costs less than a nanosecond, since its words are loaded anyway, and an
// incremental update must not lend a broken header a second life.
//
// What a router must see though it can be translated, IPv4 options above all, is marked
// (Packet.Router).
//
// Not checked: the transport checksum (that is the receiver's, and an update leaves
// it as right or wrong as it was, SCTP's CRC too), TCP options, ports of zero, whether
// fragments overlap, and whether the destination MAC is the node's own, which this
// package cannot know.
//
// # Reasons
//
//	word                    the frame
//	ok                      is TCP or UDP, whole and right in every length
//	short_frame             ends inside the Ethernet header or a VLAN tag
//	group_mac               was sent to a multicast or broadcast MAC
//	third_vlan_tag          has more than two VLAN tags
//	not_ip                  has another EtherType, or an 802.3 length
//	bad_ip_version          has a version that its EtherType did not announce
//	bad_header_length       has an IHL below 5 or past the total length
//	truncated               ends before its IP packet does
//	oversize                has a packet that ends past byte 65535
//	bad_header_checksum     has a wrong IPv4 header checksum
//	bad_option              has a hop-by-hop option that the kernel drops or answers
//	bad_extension_header    has an extension header past the packet
//	long_extension_chain    has more than eight extension headers
//	martian_source          comes from a source that no router forwards
//	mapped_address          is IPv6 with an IPv4-mapped address
//	fragment                is a fragment, be it the only one (Piece.Parse)
//	icmp                    carries ICMP (Quote.Parse)
//	icmpv6                  carries ICMPv6 (Quote.Parse)
//	sctp                    carries SCTP (ParseSCTP)
//	other_protocol          carries something else, or hides it
//	short_transport_header  ends inside the transport header
//	bad_data_offset         has a TCP data offset below 5 or past the packet
//	bad_udp_length          has a UDP length below eight or past the IP payload
//	bad_tcp_flags           has TCP flags that connection tracking calls invalid
//	bad_sctp_chunk          has SCTP chunks that connection tracking calls invalid, or that lie
//	icmp_not_error          is ICMP, but no error about a packet
//	bad_icmp_checksum       is an ICMP error with a wrong checksum
//	icmp_redirect           is an ICMP error that tells its receiver another way
//	short_quote             quotes less than the ports
//	cut_quote               quotes less than eight bytes of the transport header
//	bad_quote               quotes an IP header whose lengths cannot be, or that we never let pass
//	quoted_fragment         quotes a fragment that is not the first
//	nested_error            is an error about an error
//	quoted_protocol         quotes a packet without ports
//	stray_error             does not go to whom the quoted packet came from
//	bad_fragment            has a wrong length, ends past 64 KiB, or is cut twice
//	tiny_fragment           is a first fragment without its transport header, or one inside it
//
// # Limits
//
// IPv6 home addresses and AH are never understood. The first of several fragments of
// SCTP cannot get another port (RewriteFragment). A quoted SCTP checksum stays as it is.
package nat
