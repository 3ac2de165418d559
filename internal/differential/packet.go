package main

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"
	"slices"
)

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132

	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd

	etherLen = 14
	ipv4Len  = 20
	ipv6Len  = 40
)

// sum is the state of a packet's transport checksum.
type sum uint8

const (
	sumComplete sum = iota
	sumPartial      // the pseudo header's sum: a device is to finish it
	sumWrong        // off by some bits
	sumZero         // none
	sumAsIs         // what the segment holds already
)

func (s sum) String() string {
	return [...]string{"complete", "partial", "wrong", "zero", "as is"}[s]
}

// extension is an IPv6 extension header: its number, and all of it but the number of the next.
type extension struct {
	kind byte
	body []byte // from the length byte on
}

// packet is a packet with its Ethernet header, as fields.
type packet struct {
	dstMAC, srcMAC net.HardwareAddr
	tags           []byte // VLAN tags, four bytes each
	etherType      uint16 // 0: what the family has

	src, dst netip.Addr
	tos      byte
	ttl      byte
	id       uint16      // IPv4
	frag     uint16      // IPv4: flags and offset
	options  []byte      // IPv4: a multiple of four bytes
	label    uint32      // IPv6
	exts     []extension // IPv6

	proto   byte
	segment []byte // transport header and payload
	sum     sum
	padding []byte // behind the IP packet
}

func (p *packet) v6() bool { return p.src.Is6() }

// clone is a copy that shares nothing that bytes writes to.
func (p *packet) clone() *packet {
	c := *p
	c.segment = slices.Clone(p.segment)
	return &c
}

// headers is the length of all that stands before the segment.
func (p *packet) headers() int {
	n := etherLen + len(p.tags)
	if !p.v6() {
		return n + ipv4Len + len(p.options)
	}
	n += ipv6Len
	for _, e := range p.exts {
		n += 1 + len(e.body)
	}
	return n
}

// bytes is the frame.
func (p *packet) bytes() []byte {
	segment := slices.Clone(p.segment)
	p.seal(segment)
	f := make([]byte, 0, p.headers()+len(segment)+len(p.padding))
	f = append(f, p.dstMAC...)
	f = append(f, p.srcMAC...)
	f = append(f, p.tags...)
	etherType := p.etherType
	if etherType == 0 {
		etherType = etherIPv4
		if p.v6() {
			etherType = etherIPv6
		}
	}
	f = binary.BigEndian.AppendUint16(f, etherType)
	if p.v6() {
		length := len(segment)
		for _, e := range p.exts {
			length += 1 + len(e.body)
		}
		f = binary.BigEndian.AppendUint32(f, 6<<28|uint32(p.tos)<<20|p.label&0xfffff)
		f = binary.BigEndian.AppendUint16(f, uint16(length))
		first := p.proto
		if len(p.exts) > 0 {
			first = p.exts[0].kind
		}
		f = append(f, first, p.ttl)
		f = append(f, p.src.AsSlice()...)
		f = append(f, p.dst.AsSlice()...)
		for i, e := range p.exts {
			next := p.proto
			if i+1 < len(p.exts) {
				next = p.exts[i+1].kind
			}
			f = append(append(f, next), e.body...)
		}
	} else {
		at := len(f)
		f = append(f, 0x40|byte(5+len(p.options)/4), p.tos)
		f = binary.BigEndian.AppendUint16(f, uint16(ipv4Len+len(p.options)+len(segment)))
		f = binary.BigEndian.AppendUint16(f, p.id)
		f = binary.BigEndian.AppendUint16(f, p.frag)
		f = append(f, p.ttl, p.proto, 0, 0)
		f = append(f, p.src.AsSlice()...)
		f = append(f, p.dst.AsSlice()...)
		f = append(f, p.options...)
		binary.BigEndian.PutUint16(f[at+10:], ^fold(add(0, f[at:])))
	}
	return append(append(f, segment...), p.padding...)
}

// checksumAt is where a protocol has its checksum, -1 if it is none that we set.
func checksumAt(proto byte) int {
	switch proto {
	case protoTCP:
		return 16
	case protoUDP:
		return 6
	case protoICMP, protoICMPv6:
		return 2
	}
	return -1
}

// seal writes the checksum into a segment.
func (p *packet) seal(segment []byte) {
	at := checksumAt(p.proto)
	if p.sum == sumAsIs || at < 0 || len(segment) < at+2 {
		return
	}
	binary.BigEndian.PutUint16(segment[at:], 0)
	pseudo := pseudoSum(p.src, p.dst, p.proto, len(segment))
	v := uint16(0)
	switch p.sum {
	case sumPartial:
		v = fold(pseudo)
	case sumComplete, sumWrong:
		v = ^fold(add(pseudo, segment))
		if v == 0 && p.proto == protoUDP {
			v = 0xffff
		}
		if p.sum == sumWrong {
			v ^= 0x1234
		}
	}
	binary.BigEndian.PutUint16(segment[at:], v)
}

// pseudoSum is the unfolded sum of the pseudo header.
func pseudoSum(src, dst netip.Addr, proto byte, length int) uint64 {
	if proto == protoICMP {
		return 0
	}
	return add(add(0, src.AsSlice()), dst.AsSlice()) + uint64(proto) + uint64(length)
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

// TCP flags.
const (
	fin = 1 << iota
	syn
	rst
	psh
	ack
	urg
)

// tcp is a segment without its checksum. The options are a multiple of four bytes.
func tcp(sport, dport uint16, seq, ackn uint32, flags byte, window uint16, options, payload []byte) []byte {
	s := make([]byte, 20, 20+len(options)+len(payload))
	binary.BigEndian.PutUint16(s[0:], sport)
	binary.BigEndian.PutUint16(s[2:], dport)
	binary.BigEndian.PutUint32(s[4:], seq)
	binary.BigEndian.PutUint32(s[8:], ackn)
	s[12] = byte(5+len(options)/4) << 4
	s[13] = flags
	binary.BigEndian.PutUint16(s[14:], window)
	return append(append(s, options...), payload...)
}

// udp is a datagram without its checksum.
func udp(sport, dport uint16, payload []byte) []byte {
	s := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(s[0:], sport)
	binary.BigEndian.PutUint16(s[2:], dport)
	binary.BigEndian.PutUint16(s[4:], uint16(8+len(payload)))
	return append(s, payload...)
}

// parsed is what the harness needs of a frame that it has built or captured. It is a parser of its own, plain and slow, so
// that nothing is judged by the code under test.
type parsed struct {
	v6       bool
	src, dst netip.Addr
	l3, l4   int
	end      int // just past the IP packet
	ttl      byte
	proto    byte
	fragment bool // any but the first
	part     bool // any fragment
	sport    uint16
	dport    uint16
	ports    bool
}

// parse reads a frame as far as it goes; ok says whether it has a whole IP header and lies in the frame.
func parse(f []byte) (p parsed, ok bool) {
	if len(f) < etherLen {
		return p, false
	}
	l3, etherType := etherLen, binary.BigEndian.Uint16(f[12:])
	for (etherType == 0x8100 || etherType == 0x88a8) && len(f) >= l3+4 {
		etherType = binary.BigEndian.Uint16(f[l3+2:])
		l3 += 4
	}
	return parseIP(f, l3, etherType, false)
}

// parseIP reads the packet at l3. A quoted one may be cut off.
func parseIP(f []byte, l3 int, etherType uint16, quoted bool) (p parsed, ok bool) {
	b := f[l3:]
	p.l3 = l3
	switch {
	case etherType == etherIPv4 && len(b) >= ipv4Len && b[0]>>4 == 4:
		n := int(b[0]&15) * 4
		total := int(binary.BigEndian.Uint16(b[2:]))
		if n < ipv4Len || total < n || len(b) < n || total > len(b) && !quoted {
			return p, false
		}
		p.src, _ = netip.AddrFromSlice(b[12:16])
		p.dst, _ = netip.AddrFromSlice(b[16:20])
		p.ttl, p.proto = b[8], b[9]
		p.fragment = binary.BigEndian.Uint16(b[6:])&0x1fff != 0
		p.part = binary.BigEndian.Uint16(b[6:])&0x3fff != 0
		p.l4, p.end = l3+n, l3+min(total, len(b))
	case etherType == etherIPv6 && len(b) >= ipv6Len && b[0]>>4 == 6:
		total := ipv6Len + int(binary.BigEndian.Uint16(b[4:]))
		if total > len(b) && !quoted {
			return p, false
		}
		p.v6 = true
		p.src, _ = netip.AddrFromSlice(b[8:24])
		p.dst, _ = netip.AddrFromSlice(b[24:40])
		p.ttl, p.proto = b[7], b[6]
		p.l4, p.end = l3+ipv6Len, l3+min(total, len(b))
		for {
			h := f[p.l4:p.end]
			if p.proto == 44 && len(h) >= 8 {
				p.fragment = p.fragment || binary.BigEndian.Uint16(h[2:])>>3 != 0
				p.part = true
				p.proto, p.l4 = h[0], p.l4+8
				continue
			}
			if p.proto != 0 && p.proto != 43 && p.proto != 60 || len(h) < 8 || len(h) < 8+8*int(h[1]) {
				break
			}
			p.proto, p.l4 = h[0], p.l4+8+8*int(h[1])
		}
	default:
		return p, false
	}
	if (p.proto == protoTCP || p.proto == protoUDP || p.proto == protoSCTP) && !p.fragment && p.end-p.l4 >= 4 {
		p.sport, p.dport = binary.BigEndian.Uint16(f[p.l4:]), binary.BigEndian.Uint16(f[p.l4+2:])
		p.ports = true
	}
	return p, true
}

// quote is the packet that an ICMP error quotes.
func (p *parsed) quote(f []byte) (q parsed, ok bool) {
	b := f[p.l4:p.end]
	if len(b) < 8 {
		return q, false
	}
	switch {
	case !p.v6 && p.proto == protoICMP && slices.Contains([]byte{3, 4, 5, 11, 12}, b[0]):
		return parseIP(f[:p.end], p.l4+8, etherIPv4, true)
	case p.v6 && p.proto == protoICMPv6 && b[0] < 128:
		return parseIP(f[:p.end], p.l4+8, etherIPv6, true)
	}
	return q, false
}

// sctpSum is the CRC32c that an SCTP packet is to have.
func sctpSum(packet []byte) []byte {
	b := slices.Clone(packet)
	clear(b[8:12])
	return binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// finish writes the complete transport checksum into a frame that carries a partial one.
func finish(f []byte) {
	p, ok := parse(f)
	at := checksumAt(p.proto)
	if ok && !p.part && p.proto == protoSCTP && p.end-p.l4 >= 12 {
		copy(f[p.l4+8:], sctpSum(f[p.l4:p.end]))
	}
	if !ok || p.fragment || at < 0 || p.end-p.l4 < at+2 {
		return
	}
	s := f[p.l4:p.end]
	binary.BigEndian.PutUint16(s[at:], 0)
	v := ^fold(add(pseudoSum(p.src, p.dst, p.proto, len(s)), s))
	if v == 0 && p.proto == protoUDP {
		v = 0xffff
	}
	binary.BigEndian.PutUint16(s[at:], v)
}

// endpoints are what a translation gives a packet.
type endpoints struct{ src, dst netip.AddrPort }

// moved is rewritten for a fragment other than the first, which has but addresses.
func moved(f []byte, to endpoints, hops byte) []byte {
	p, ok := parse(f)
	f = forwarded(f, hops)
	if !ok || !p.fragment || f == nil {
		return nil
	}
	if p.v6 {
		copy(f[p.l3+8:], to.src.Addr().AsSlice())
		copy(f[p.l3+24:], to.dst.Addr().AsSlice())
		return f
	}
	header := f[p.l3:p.l4]
	copy(header[12:], to.src.Addr().AsSlice())
	copy(header[16:], to.dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(header[10:], 0)
	binary.BigEndian.PutUint16(header[10:], ^fold(add(0, header)))
	return f
}

// rewritten is a frame as a NAT that is right in every byte would send it on: with other endpoints and fewer hops to go.
// Like parse it is plain and of its own. It is nil for what has no ports.
func rewritten(f []byte, to endpoints, hops byte) []byte {
	p, ok := parse(f)
	if !ok || !p.ports || p.ttl <= hops {
		return nil
	}
	f = slices.Clone(f[:p.end])
	before := fold(add(add(0, p.src.AsSlice()), p.dst.AsSlice()) + uint64(p.sport) + uint64(p.dport))
	after := fold(add(add(0, to.src.Addr().AsSlice()), to.dst.Addr().AsSlice()) + uint64(to.src.Port()) + uint64(to.dst.Port()))
	if p.v6 {
		f[p.l3+7] -= hops
		copy(f[p.l3+8:], to.src.Addr().AsSlice())
		copy(f[p.l3+24:], to.dst.Addr().AsSlice())
	} else {
		f[p.l3+8] -= hops
		copy(f[p.l3+12:], to.src.Addr().AsSlice())
		copy(f[p.l3+16:], to.dst.Addr().AsSlice())
		header := f[p.l3:p.l4]
		binary.BigEndian.PutUint16(header[10:], 0)
		binary.BigEndian.PutUint16(header[10:], ^fold(add(0, header)))
	}
	var wrong []byte // bits of the SCTP checksum
	sctp := p.proto == protoSCTP && p.end-p.l4 >= 12 && !p.part
	if sctp {
		wrong = slices.Clone(f[p.l4+8 : p.l4+12])
		for i, b := range sctpSum(f[p.l4:]) {
			wrong[i] ^= b
		}
	}
	binary.BigEndian.PutUint16(f[p.l4:], to.src.Port())
	binary.BigEndian.PutUint16(f[p.l4+2:], to.dst.Port())
	if sctp {
		copy(f[p.l4+8:], sctpSum(f[p.l4:]))
		for i, b := range wrong {
			f[p.l4+8+i] ^= b
		}
	}
	at := checksumAt(p.proto)
	if at < 0 || p.end-p.l4 < at+2 {
		return f
	}
	field := f[p.l4+at : p.l4+at+2]
	check := binary.BigEndian.Uint16(field)
	if check == 0 && p.proto == protoUDP {
		return f
	}
	check = ^fold(uint64(^check) + uint64(^before) + uint64(after)) // RFC 1624, equation 3
	if check == 0 && p.proto == protoUDP {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(field, check)
	return f
}

// forwarded is a frame as a router sends it on, with its padding left behind.
func forwarded(f []byte, hops byte) []byte {
	p, ok := parse(f)
	if !ok || p.ttl <= hops {
		return nil
	}
	f = slices.Clone(f[:p.end])
	if p.v6 {
		f[p.l3+7] -= hops
		return f
	}
	f[p.l3+8] -= hops
	header := f[p.l3 : p.l3+int(f[p.l3]&15)*4]
	binary.BigEndian.PutUint16(header[10:], 0)
	binary.BigEndian.PutUint16(header[10:], ^fold(add(0, header)))
	return f
}

// finished is a frame with its checksum finished, if it was not.
func finished(f injected) []byte {
	if !f.partial {
		return f.data
	}
	b := slices.Clone(f.data)
	finish(b)
	return b
}
