package nat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Frames are built by gopacket, so that nothing here judges itself, and looked at
// with checks that compose: check(t, frame, IPv4(SrcAddr(client), TTL(64),
// TCP(DstPort(80), ChecksumOK))).

var (
	clientMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	nodeMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 2}

	client4   = addr("198.18.0.10")
	frontend4 = addr("198.19.0.7")
	backend4  = addr("198.18.1.20")
	node4     = addr("192.0.2.1")
	client6   = addr("2001:db8:1::10")
	frontend6 = addr("2001:db8:2::7")
	backend6  = addr("2001:db8:1:1::20")
	node6     = addr("2001:db8:3::1")
)

const (
	clientPort   = 40000
	frontendPort = 80
	backendPort  = 8080
)

func addr(s string) [16]byte { return netip.MustParseAddr(s).As16() }

// spec says what frame to build; the zero value is a plain TCP SYN over IPv4
// without payload. Fields that break a frame are applied to the finished bytes, with the
// header checksum made right again.
type spec struct {
	ipv6    bool
	udp     bool
	sctp    bool     // of which the payload is the chunks, an INIT if there are none
	tags    []uint16 // VLAN identifiers, outermost first
	options []byte   // IPv4 options, padded by the caller
	ext     []ext    // IPv6 extension headers
	payload []byte
	tcp     layers.TCP // flags and options; ports are set
	src     [16]byte
	dst     [16]byte
	sport   uint16
	dport   uint16
	ttl     uint8
	tos     uint8
	padding int // bytes behind the IP packet

	noChecksum bool // UDP checksum zero
	partial    bool // transport checksum as a local socket leaves it on veth
}

type ext struct {
	kind uint8
	body []byte // all behind the length byte: 6, 14, ... bytes
}

// proto is the transport protocol.
func (s spec) proto() uint8 {
	switch {
	case s.sctp:
		return protoSCTP
	case s.udp:
		return protoUDP
	}
	return protoTCP
}

func padExt(kind uint8) ext { return ext{kind, []byte{1, 4, 0, 0, 0, 0}} }

func (s spec) withDefaults() spec {
	var zero [16]byte
	if s.src == zero {
		s.src = client4
		if s.ipv6 {
			s.src = client6
		}
	}
	if s.dst == zero {
		s.dst = frontend4
		if s.ipv6 {
			s.dst = frontend6
		}
	}
	if s.sport == 0 {
		s.sport = clientPort
	}
	if s.dport == 0 {
		s.dport = frontendPort
	}
	if s.ttl == 0 {
		s.ttl = 64
	}
	if s.sctp && s.payload == nil {
		s.payload = chunk(1, 16)
	}
	return s
}

func ip(a [16]byte) net.IP { return netip.AddrFrom16(a).Unmap().AsSlice() }

func build(tb testing.TB, s spec) []byte {
	tb.Helper()
	s = s.withDefaults()
	etherType := layers.EthernetTypeIPv4
	if s.ipv6 {
		etherType = layers.EthernetTypeIPv6
	}
	proto := layers.IPProtocol(s.proto())
	eth := &layers.Ethernet{SrcMAC: clientMAC, DstMAC: nodeMAC, EthernetType: etherType}
	stack := []gopacket.SerializableLayer{eth}
	for i, id := range s.tags {
		tag := &layers.Dot1Q{VLANIdentifier: id, Type: etherType}
		if i+1 < len(s.tags) {
			tag.Type = layers.EthernetTypeDot1Q
		}
		stack = append(stack, tag)
	}
	if len(s.tags) > 1 {
		eth.EthernetType = layers.EthernetTypeQinQ
	} else if len(s.tags) == 1 {
		eth.EthernetType = layers.EthernetTypeDot1Q
	}

	var network gopacket.NetworkLayer
	if s.ipv6 {
		v6 := &layers.IPv6{Version: 6, TrafficClass: s.tos, FlowLabel: 0x54321, NextHeader: proto, HopLimit: s.ttl, SrcIP: ip(s.src), DstIP: ip(s.dst)}
		network = v6
		chain := gopacket.Payload{}
		for i, e := range s.ext {
			next := uint8(proto)
			if i+1 < len(s.ext) {
				next = s.ext[i+1].kind
			}
			chain = append(chain, next, uint8((len(e.body)-6)/8))
			chain = append(chain, e.body...)
		}
		if len(s.ext) > 0 {
			v6.NextHeader = layers.IPProtocol(s.ext[0].kind)
		}
		stack = append(stack, v6, chain)
	} else {
		v4 := &layers.IPv4{Version: 4, IHL: 5, TOS: s.tos, Id: 0x1234, Flags: layers.IPv4DontFragment, TTL: s.ttl, Protocol: proto, SrcIP: ip(s.src), DstIP: ip(s.dst)}
		network = v4
		stack = append(stack, v4)
		if len(s.options) > 0 {
			stack = append(stack, gopacket.Payload(s.options))
		}
	}
	var transport gopacket.SerializableLayer
	if s.sctp {
		transport = &layers.SCTP{SrcPort: layers.SCTPPort(s.sport), DstPort: layers.SCTPPort(s.dport)}
	} else if s.udp {
		u := &layers.UDP{SrcPort: layers.UDPPort(s.sport), DstPort: layers.UDPPort(s.dport)}
		_ = u.SetNetworkLayerForChecksum(network)
		transport = u
	} else {
		t := s.tcp
		if !t.SYN && !t.ACK && !t.RST && !t.FIN && !t.PSH && !t.URG {
			t.SYN = true
		}
		t.SrcPort, t.DstPort, t.Seq, t.Window = layers.TCPPort(s.sport), layers.TCPPort(s.dport), 0x01020304, 64240
		_ = t.SetNetworkLayerForChecksum(network)
		transport = &t
	}
	stack = append(stack, transport, gopacket.Payload(s.payload))

	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		tb.Fatalf("building %+v: %v", s, err)
	}
	frame := bytes.Clone(buf.Bytes())
	// gopacket pads to 60 bytes by itself; padding is ours to say.
	l3 := etherLen + tagLen*len(s.tags)
	l4 := l3 + ipv4Len + len(s.options)
	if s.ipv6 {
		l4 = l3 + ipv6Len
		for _, e := range s.ext {
			l4 += 2 + len(e.body)
		}
	}
	end := l4 + udpLen + len(s.payload)
	if s.sctp {
		end = l4 + sctpLen + len(s.payload)
	} else if !s.udp {
		end = l4 + int(frame[l4+12]>>4)*4 + len(s.payload)
	}
	frame = frame[:end:end]
	if len(s.options) > 0 {
		// The options were serialised as payload: the header's own words follow.
		frame[l3] = 4<<4 | byte(ipv4Len+len(s.options))/4
		fixHeader(frame[l3:])
	}
	at := l4 + 16
	if s.udp {
		at = l4 + 6
	}
	if s.sctp {
		at = l4 + 8
	}
	check := frame[at : at+2]
	if s.noChecksum {
		clear(check)
	}
	if s.sctp {
		check = frame[l4+8 : l4+12]
		clear(check)
		if !s.partial {
			binary.LittleEndian.PutUint32(check, slowCRC(frame[l4:]))
		}
	} else if s.partial {
		binary.BigEndian.PutUint16(check, slowPseudo(s.src, s.dst, uint8(proto), end-l4))
	}
	for i := 0; i < s.padding; i++ {
		frame = append(frame, 0xa5)
	}
	return frame
}

// chunk is an SCTP chunk with so many bytes of value, padded.
func chunk(kind byte, n int) []byte {
	b := make([]byte, (4+n+3)&^3)
	b[0] = kind
	binary.BigEndian.PutUint16(b[2:], uint16(4+n))
	for i := range n {
		b[4+i] = byte(i + 1)
	}
	return b
}

// slowCRC is CRC32c bit by bit (RFC 9260 appendix A), the checksum field being zero.
func slowCRC(b []byte) uint32 {
	crc := ^uint32(0)
	for _, v := range b {
		crc ^= uint32(v)
		for range 8 {
			bit := crc & 1
			crc >>= 1
			if bit != 0 {
				crc ^= 0x82f63b78
			}
		}
	}
	return ^crc
}

// errorSpec says what ICMP or ICMPv6 error to build: the frame of base, whose
// transport is replaced by the message.
type errorSpec struct {
	base       spec
	kind, code uint8
	info       uint32 // the second word
	quoted     []byte
	broken     uint16 // added to the checksum
}

func buildError(tb testing.TB, e errorSpec) []byte {
	tb.Helper()
	e.base.udp, e.base.sctp = true, false
	e.base.payload = e.quoted
	e.base = e.base.withDefaults()
	frame := build(tb, e.base)
	var p Packet
	if r := p.Parse(frame); r != OK {
		tb.Fatalf("building %+v: %v", e, r)
	}
	message := frame[p.L4:p.End]
	message[0], message[1] = e.kind, e.code
	clear(message[2:4])
	binary.BigEndian.PutUint32(message[4:], e.info)
	check := ^slowSum(message)
	if e.base.ipv6 {
		check = ^slowTransport(e.base.src, e.base.dst, protoICMPv6, message)
		at := int(p.L3) + 6
		if n := len(e.base.ext); n > 0 {
			at = int(p.L4) - 2 - len(e.base.ext[n-1].body)
		}
		frame[at] = protoICMPv6
	} else {
		frame[p.L3+9] = protoICMP
		fixHeader(frame[p.L3:])
	}
	binary.BigEndian.PutUint16(message[2:], check+e.broken)
	return frame
}

// fragments cuts a frame's packet into pieces of at most so many bytes of data, a
// multiple of 8. In IPv6 the fragment header stands behind so many of the
// extension headers.
func fragments(tb testing.TB, frame []byte, size int, id uint32, behind int) [][]byte {
	tb.Helper()
	var p Packet
	if p.Parse(frame) == SCTP {
		p.ParseSCTP(frame)
	}
	l3, data := int(p.L3), int(p.L4)
	nextAt := l3 + 6
	if p.IPv6 {
		data = l3 + ipv6Len
		for range behind {
			nextAt = data
			data += (int(frame[data+1]) + 1) * 8
		}
	}
	var all [][]byte
	for offset := 0; data+offset < int(p.End); offset += size {
		n := min(size, int(p.End)-data-offset)
		more := data+offset+n < int(p.End)
		f := bytes.Clone(frame[:data])
		if p.IPv6 {
			bits := uint16(offset)
			if more {
				bits |= 1
			}
			f = append(f, frame[nextAt], 0)
			f = binary.BigEndian.AppendUint16(f, bits)
			f = binary.BigEndian.AppendUint32(f, id)
			f[nextAt] = headerFragment
		} else {
			bits := uint16(offset / 8)
			if more {
				bits |= 0x2000
			}
			binary.BigEndian.PutUint16(f[l3+4:], uint16(id))
			binary.BigEndian.PutUint16(f[l3+6:], bits)
		}
		f = append(f, frame[data+offset:data+offset+n]...)
		fixLengths(f)
		all = append(all, f)
	}
	return all
}

// fixHeader makes an IPv4 header's checksum right again.
func fixHeader(header []byte) {
	n := min(max(int(header[0]&15)*4, ipv4Len), len(header))
	clear(header[10:12])
	binary.BigEndian.PutUint16(header[10:], ^slowSum(header[:n]))
}

// repaired is a copy of frame in which the checksums are right that a parser demands,
// so that a fuzzer need not guess them: the IPv4 header's, and those of an ICMP error
// and of the header that it quotes.
func repaired(frame []byte) []byte {
	frame = bytes.Clone(frame)
	var p Packet
	r := p.Parse(frame)
	if r == BadHeaderChecksum {
		l3 := etherLen
		for binary.BigEndian.Uint16(frame[l3-2:]) != etherIPv4 {
			l3 += tagLen
		}
		fixHeader(frame[l3:])
		r = p.Parse(frame)
	}
	if r != ICMP && r != ICMPv6 || p.End-p.L4 < icmpLen {
		return frame
	}
	message := frame[p.L4:p.End]
	if quote := message[8:]; r == ICMP && len(quote) >= ipv4Len {
		fixHeader(quote)
	}
	clear(message[2:4])
	check := ^slowSum(message)
	if r == ICMPv6 {
		check = ^slowTransport(p.Src, p.Dst, protoICMPv6, message)
	}
	binary.BigEndian.PutUint16(message[2:], check)
	return frame
}

// slowSum is RFC 1071 as it is told: 16-bit words, carries at the end.
func slowSum(b []byte) uint16 {
	var s uint64
	for i := 0; i < len(b); i += 2 {
		w := uint64(b[i]) << 8
		if i+1 < len(b) {
			w |= uint64(b[i+1])
		}
		s += w
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// slowPseudo is the pseudo header written out and summed.
func slowPseudo(src, dst [16]byte, proto uint8, length int) uint16 {
	var b []byte
	b = append(b, ip(src)...)
	b = append(b, ip(dst)...)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	b = append(b, 0, 0, 0, proto)
	return slowSum(b)
}

// slowTransport is the sum that a receiver makes of a transport packet: 0xffff if
// its checksum is right.
func slowTransport(src, dst [16]byte, proto uint8, packet []byte) uint16 {
	s := uint32(slowPseudo(src, dst, proto, len(packet))) + uint32(slowSum(packet))
	return uint16(s>>16 + s&0xffff)
}

func mustParse(tb testing.TB, frame []byte) *Packet {
	tb.Helper()
	p := new(Packet)
	if r := p.Parse(frame); r != OK {
		tb.Fatalf("Parse(%x) = %v, want ok", frame, r)
	}
	return p
}

// found is a frame as gopacket sees it.
type found struct {
	packet  gopacket.Packet
	network []byte // the IP packet
	l4      []byte // its transport part
	src     [16]byte
	dst     [16]byte
	ttl     uint8
	proto   uint8
}

// A checker says what is wrong with a frame, or nothing.
type checker func(f *found) error

func check(tb testing.TB, frame []byte, checks ...checker) {
	tb.Helper()
	f := &found{packet: gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)}
	for _, c := range checks {
		if err := c(f); err != nil {
			tb.Fatalf("%v\nframe %x\n%v", err, frame, f.packet)
		}
	}
}

func all(f *found, checks []checker) error {
	for _, c := range checks {
		if err := c(f); err != nil {
			return err
		}
	}
	return nil
}

// Ether wants these Ethernet addresses and tags.
func Ether(src, dst net.HardwareAddr, tags ...uint16) checker {
	return func(f *found) error {
		eth, ok := f.packet.LinkLayer().(*layers.Ethernet)
		if !ok || !bytes.Equal(eth.SrcMAC, src) || !bytes.Equal(eth.DstMAC, dst) {
			return fmt.Errorf("ethernet %+v, want %v to %v", eth, src, dst)
		}
		var ids []uint16
		for _, l := range f.packet.Layers() {
			if tag, ok := l.(*layers.Dot1Q); ok {
				ids = append(ids, tag.VLANIdentifier)
			}
		}
		if fmt.Sprint(ids) != fmt.Sprint(tags) {
			return fmt.Errorf("tags %v, want %v", ids, tags)
		}
		return nil
	}
}

// IPv4 wants an IPv4 packet with a right header checksum, of which the checks hold.
func IPv4(checks ...checker) checker {
	return func(f *found) error {
		v4, ok := f.packet.NetworkLayer().(*layers.IPv4)
		if !ok {
			return fmt.Errorf("no IPv4 layer")
		}
		if s := slowSum(v4.Contents); s != 0xffff {
			return fmt.Errorf("IPv4 header sums to %#04x", s)
		}
		f.src, f.dst = netip.AddrFrom4([4]byte(v4.SrcIP)).As16(), netip.AddrFrom4([4]byte(v4.DstIP)).As16()
		f.ttl, f.proto, f.l4 = v4.TTL, uint8(v4.Protocol), v4.Payload
		f.network = append(bytes.Clone(v4.Contents), v4.Payload...)
		if len(f.network) != int(v4.Length) {
			return fmt.Errorf("IPv4 packet of %d bytes says %d", len(f.network), v4.Length)
		}
		return all(f, checks)
	}
}

// IPv6 is the same for IPv6.
func IPv6(checks ...checker) checker {
	return func(f *found) error {
		v6, ok := f.packet.NetworkLayer().(*layers.IPv6)
		if !ok {
			return fmt.Errorf("no IPv6 layer")
		}
		f.src, f.dst = [16]byte(v6.SrcIP), [16]byte(v6.DstIP)
		f.ttl, f.proto = v6.HopLimit, uint8(v6.NextHeader)
		f.network = append(bytes.Clone(v6.Contents), v6.Payload...)
		f.l4 = v6.Payload
		for _, l := range f.packet.Layers() {
			switch l.LayerType() {
			case layers.LayerTypeTCP:
				f.proto = protoTCP
			case layers.LayerTypeUDP:
				f.proto = protoUDP
			case layers.LayerTypeSCTP:
				f.proto = protoSCTP
			case layers.LayerTypeICMPv6:
				f.proto = protoICMPv6
			default:
				continue
			}
			f.l4 = append(bytes.Clone(l.LayerContents()), l.LayerPayload()...)
			break
		}
		return all(f, checks)
	}
}

func SrcAddr(a [16]byte) checker {
	return func(f *found) error { return same("source", ip(f.src).String(), ip(a).String()) }
}

func DstAddr(a [16]byte) checker {
	return func(f *found) error { return same("destination", ip(f.dst).String(), ip(a).String()) }
}

func TTL(n uint8) checker { return func(f *found) error { return same("ttl", f.ttl, n) } }

// Length wants an IP packet of n bytes.
func Length(n int) checker {
	return func(f *found) error { return same("packet length", len(f.network), n) }
}

// TOS wants this byte as type of service or traffic class.
func TOS(n uint8) checker {
	return func(f *found) error {
		got := f.network[1]
		if f.network[0]>>4 == 6 {
			got = uint8(binary.BigEndian.Uint16(f.network) >> 4)
		}
		return same("tos", got, n)
	}
}

// TCP, UDP and WithSCTP want that transport, of which the checks hold.
func TCP(checks ...checker) checker { return transport(protoTCP, layers.LayerTypeTCP, checks) }
func UDP(checks ...checker) checker { return transport(protoUDP, layers.LayerTypeUDP, checks) }
func WithSCTP(checks ...checker) checker {
	return transport(protoSCTP, layers.LayerTypeSCTP, checks)
}

func transport(proto uint8, kind gopacket.LayerType, checks []checker) checker {
	return func(f *found) error {
		if f.proto != proto || f.packet.Layer(kind) == nil {
			return fmt.Errorf("no %v layer", kind)
		}
		return all(f, checks)
	}
}

func SrcPort(n uint16) checker {
	return func(f *found) error { return same("source port", binary.BigEndian.Uint16(f.l4), n) }
}

func DstPort(n uint16) checker {
	return func(f *found) error { return same("destination port", binary.BigEndian.Uint16(f.l4[2:]), n) }
}

// ChecksumOK wants a transport checksum that a receiver accepts.
func ChecksumOK(f *found) error {
	if f.proto == protoSCTP {
		b := bytes.Clone(f.l4)
		clear(b[8:12])
		return same("CRC", binary.LittleEndian.Uint32(f.l4[8:]), slowCRC(b))
	}
	return same("transport sum", slowTransport(f.src, f.dst, f.proto, f.l4), 0xffff)
}

// Checksum wants just these bits in the transport checksum field.
func Checksum(want uint16) checker {
	return func(f *found) error { return same("checksum", checksumField(f), want) }
}

// ChecksumPartial wants the pseudo header's sum in the transport checksum field, and
// that finishing it as a device does gives a checksum that is right.
func ChecksumPartial(f *found) error {
	if err := same("partial checksum", checksumField(f), slowPseudo(f.src, f.dst, f.proto, len(f.l4))); err != nil {
		return err
	}
	done := bytes.Clone(f.l4)
	at := 16
	if f.proto == protoUDP {
		at = 6
	}
	binary.BigEndian.PutUint16(done[at:], ^slowSum(f.l4))
	return same("finished transport sum", slowTransport(f.src, f.dst, f.proto, done), 0xffff)
}

func checksumField(f *found) uint16 {
	if f.proto == protoUDP {
		return binary.BigEndian.Uint16(f.l4[6:])
	}
	return binary.BigEndian.Uint16(f.l4[16:])
}

// ICMPError wants an ICMP or ICMPv6 error with a right checksum that quotes this.
func ICMPError(kind, code uint8, quote []byte) checker { return ICMPErrorMTU(kind, code, 0, quote) }

// ICMPErrorMTU is the same with this MTU in the second word.
func ICMPErrorMTU(kind, code uint8, mtu uint32, quote []byte) checker {
	return func(f *found) error {
		got := slowSum(f.l4)
		if f.proto == protoICMPv6 {
			got = slowTransport(f.src, f.dst, protoICMPv6, f.l4)
		} else if f.proto != protoICMP {
			return fmt.Errorf("protocol %d", f.proto)
		}
		if err := same("ICMP sum", got, 0xffff); err != nil {
			return err
		}
		if err := same("ICMP head", fmt.Sprintf("%x", f.l4[:2])+fmt.Sprintf("%x", f.l4[4:8]), fmt.Sprintf("%02x%02x%08x", kind, code, mtu)); err != nil {
			return err
		}
		return same("quote", fmt.Sprintf("%x", f.l4[8:]), fmt.Sprintf("%x", quote))
	}
}

func same[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s: got %v, want %v", what, got, want)
	}
	return nil
}
