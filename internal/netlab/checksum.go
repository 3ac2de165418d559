package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// VerifyChecksums returns an error if a captured frame carries a wrong checksum: the IPv4 header's, and that of TCP,
// UDP, ICMP, ICMPv6 or SCTP over the whole packet. Of a partial frame, the transport checksum must be what a device
// needs to finish it: the sum of the pseudo header. What has no checksum, or not the whole of what it covers (a
// fragment), is not wrong. It is the plain way, not the fast one.
func VerifyChecksums(f *Frame) error {
	if f.Length > len(f.Data) {
		return fmt.Errorf("frame of %d bytes was captured only up to %d", f.Length, len(f.Data))
	}
	etherType, packet, err := network(f.Data)
	if err != nil {
		return err
	}
	switch etherType {
	case 0x0800:
		return verifyIPv4(packet, f.Partial)
	case 0x86dd:
		return verifyIPv6(packet, f.Partial)
	}
	return nil
}

var errShort = errors.New("frame is too short for its headers")

// network returns what follows the Ethernet header and up to two VLAN tags.
func network(frame []byte) (etherType uint16, packet []byte, err error) {
	if len(frame) < 14 {
		return 0, nil, errShort
	}
	etherType, packet = binary.BigEndian.Uint16(frame[12:]), frame[14:]
	for range 2 {
		if etherType != 0x8100 && etherType != 0x88a8 {
			break
		}
		if len(packet) < 4 {
			return 0, nil, errShort
		}
		etherType, packet = binary.BigEndian.Uint16(packet[2:]), packet[4:]
	}
	return etherType, packet, nil
}

func verifyIPv4(p []byte, partial bool) error {
	if len(p) < 20 {
		return errShort
	}
	header, total := int(p[0]&0x0f)*4, int(binary.BigEndian.Uint16(p[2:]))
	if header < 20 || total < header || len(p) < total {
		return errShort
	}
	if sum := fold(add(0, p[:header])); sum != 0xffff {
		return fmt.Errorf("IPv4 header checksum %#04x is wrong: header sums to %#04x", binary.BigEndian.Uint16(p[10:]), sum)
	}
	if binary.BigEndian.Uint16(p[6:])&0x3fff != 0 { // more fragments, or not the first
		return nil
	}
	return verifyTransport(p[9], p[12:20], p[header:total], partial, false)
}

func verifyIPv6(p []byte, partial bool) error {
	if len(p) < 40 {
		return errShort
	}
	end := 40 + int(binary.BigEndian.Uint16(p[4:]))
	if len(p) < end {
		return errShort
	}
	next, rest := p[6], p[40:end]
	for {
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if len(rest) < 8 {
				return errShort
			}
			if next == 43 && rest[3] != 0 {
				return nil // segments left: the destination that the checksum covers is not yet in the header
			}
			size := 8 + 8*int(rest[1])
			if len(rest) < size {
				return errShort
			}
			next, rest = rest[0], rest[size:]
		case 44: // fragment
			if len(rest) < 8 {
				return errShort
			}
			if binary.BigEndian.Uint16(rest[2:])&^0x6 != 0 {
				return nil
			}
			next, rest = rest[0], rest[8:]
		default:
			return verifyTransport(next, p[8:40], rest, partial, true)
		}
	}
}

// verifyTransport checks a segment; addresses is the pair from the IP header.
func verifyTransport(proto byte, addresses, segment []byte, partial, ipv6 bool) error {
	pseudo := add(0, addresses) + uint64(proto) + uint64(len(segment))
	var at int
	switch proto {
	case 6:
		at = 16
	case 17:
		at = 6
	case 1:
		at, pseudo = 2, 0
	case 58:
		at = 2
	case 132:
		return verifySCTP(segment, partial)
	default:
		return nil
	}
	if len(segment) < at+2 {
		return errShort
	}
	field := binary.BigEndian.Uint16(segment[at:])
	if partial {
		if want := fold(pseudo); field != want && (field+1 > 1 || want+1 > 1) { // 0 and 0xffff are the same sum
			return fmt.Errorf("protocol %d: partial checksum %#04x, but the pseudo header sums to %#04x", proto, field, want)
		}
		return nil
	}
	if proto == 17 {
		if length := int(binary.BigEndian.Uint16(segment[4:])); length != len(segment) {
			return fmt.Errorf("UDP length %d in a packet with room for %d", length, len(segment))
		}
		if field == 0 {
			if ipv6 {
				return errors.New("UDP over IPv6 without a checksum")
			}
			return nil
		}
	}
	if sum := fold(add(pseudo, segment)); sum != 0xffff {
		return fmt.Errorf("protocol %d: checksum %#04x is wrong: segment sums to %#04x", proto, field, sum)
	}
	return nil
}

func verifySCTP(segment []byte, partial bool) error {
	if len(segment) < 12 {
		return errShort
	}
	if partial {
		return nil // nothing is summed before the device does it
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	want := crc32.Update(crc32.Checksum(segment[:8], table), table, make([]byte, 4))
	want = crc32.Update(want, table, segment[12:])
	if got := binary.LittleEndian.Uint32(segment[8:]); got != want {
		return fmt.Errorf("SCTP checksum %#08x, want %#08x", got, want)
	}
	return nil
}

// add sums b as big-endian 16-bit words, an odd last byte padded with zero (RFC 1071).
func add(sum uint64, b []byte) uint64 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}

func fold(sum uint64) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
