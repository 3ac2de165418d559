package nat

import (
	"encoding/binary"
	"hash/crc32"
)

const (
	sctpLen        = 12
	sctpChecksumAt = 8
	chunkLen       = 4
)

// SCTP's checksum is the CRC32c of the packet with zero in its place (RFC 9260
// section 6.8, appendix A). There is no pseudo header in it: new addresses leave it
// as it is. A CRC is linear, so a wrong one stays wrong by the same bits when the
// right ones of before and after are known.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sctpChecksum is the checksum of a packet in which its field is zero, as a
// little-endian word of the frame (sctp_end_cksum in include/net/sctp/checksum.h).
func sctpChecksum(packet []byte) uint32 {
	return crc32.Update(0, castagnoli, packet)
}

// rewriteSCTP gives an SCTP packet new ports. An unfinished checksum, which no
// transmit metadata can ask a device for, is computed here, ports changed or not.
func (p *Packet) rewriteSCTP(packet []byte, to *Endpoints) {
	ports := portPair(to)
	p.SrcPort, p.DstPort = to.SrcPort, to.DstPort
	le := binary.LittleEndian
	field := packet[sctpChecksumAt:sctpLen]
	var wrong uint32
	if !p.Partial {
		if le.Uint32(packet) == ports {
			return
		}
		check := le.Uint32(field)
		clear(field)
		wrong = check ^ sctpChecksum(packet)
	}
	le.PutUint32(packet, ports)
	le.PutUint32(field, sctpChecksum(packet)^wrong)
	p.Partial = false
}

//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|          Source Port          |       Destination Port        |
//	|                       Verification Tag                        |
//	|                            Checksum                           |
//	|  Chunk Type   |  Chunk Flags  |         Chunk Length          |
//
// RFC 9260 section 3.

// ParseSCTP goes on where Parse answered SCTP for this frame and left p. If it
// answers OK, p is complete and as good for Rewrite as one of TCP or UDP. Otherwise
// p is as it was. What it refuses is what connection tracking does not translate
// (do_basic_checks and the tag of INIT, net/netfilter/nf_conntrack_proto_sctp.c), and
// chunks shorter than their header or longer than the packet. It does not compute
// the checksum.
func (p *Packet) ParseSCTP(frame []byte) Reason {
	const (
		chunkInit             = 1
		chunkInitAck          = 2
		chunkCookieEcho       = 10
		chunkCookieAck        = 11
		chunkShutdownComplete = 14
	)
	packet := frame[p.L4:p.End]
	if len(packet) < sctpLen {
		return ShortHeader
	}
	chunks := packet[sctpLen:]
	if len(chunks) < chunkLen {
		return BadChunk
	}
	first := chunks[0]
	for alone, count := false, 0; len(chunks) > 0; count++ {
		if len(chunks) < chunkLen {
			return BadChunk
		}
		kind := chunks[0]
		n := int(binary.BigEndian.Uint16(chunks[2:]))
		if n < chunkLen || n > len(chunks) {
			return BadChunk
		}
		switch kind {
		case chunkInit, chunkInitAck, chunkShutdownComplete:
			alone = true
		}
		if count > 0 && (alone || kind == chunkCookieEcho || kind == chunkCookieAck) {
			return BadChunk
		}
		// The last chunk's padding may be missing.
		chunks = chunks[min((n+3)&^3, len(chunks)):]
	}
	if first == chunkInit && binary.BigEndian.Uint32(packet[4:]) != 0 {
		return BadChunk
	}
	p.SrcPort = binary.BigEndian.Uint16(packet[0:])
	p.DstPort = binary.BigEndian.Uint16(packet[2:])
	p.Chunk = first
	return OK
}
