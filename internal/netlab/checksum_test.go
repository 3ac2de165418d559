package netlab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

var (
	macA = []byte{2, 0, 0, 0, 0, 1}
	macB = []byte{2, 0, 0, 0, 0, 2}
)

func etherTypeOf(f Family) layers.EthernetType {
	if f == IPv4 {
		return layers.EthernetTypeIPv4
	}
	return layers.EthernetTypeIPv6
}

func ipLayer(f Family, src, dst netip.Addr, proto layers.IPProtocol) gopacket.NetworkLayer {
	if f == IPv4 {
		return &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

// serialize lets gopacket compute lengths and checksums: an implementation that is not ours.
func serialize(t testing.TB, stack ...any) []byte {
	t.Helper()
	var network gopacket.NetworkLayer
	var all []gopacket.SerializableLayer
	for _, l := range stack {
		if n, ok := l.(gopacket.NetworkLayer); ok {
			network = n
		}
		if c, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := c.SetNetworkLayerForChecksum(network); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, l.(gopacket.SerializableLayer))
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	return unpadded(t, slices.Clone(buf.Bytes()))
}

// unpadded cuts off what gopacket adds to make a frame 60 bytes long.
func unpadded(t testing.TB, frame []byte) []byte {
	t.Helper()
	etherType, packet, err := network(frame)
	if err != nil {
		t.Fatal(err)
	}
	size := len(packet)
	switch etherType {
	case 0x0800:
		size = int(binary.BigEndian.Uint16(packet[2:]))
	case 0x86dd:
		size = 40 + int(binary.BigEndian.Uint16(packet[4:]))
	}
	return frame[:len(frame)-len(packet)+size]
}

func whole(frame []byte) *Frame { return &Frame{Data: frame, Length: len(frame)} }

func TestVerifyChecksumsAgreesWithGopacket(t *testing.T) {
	for _, f := range Families {
		src, dst := PodAddr(f, 1, 1), ClusterIP(f, 1)
		for _, size := range []int{0, 1, 7, 64, 1399} {
			payload := gopacket.Payload(strings.Repeat("\xa5\x03", size)[:size])
			stacks := map[string][]any{
				"udp":  {ipLayer(f, src, dst, layers.IPProtocolUDP), &layers.UDP{SrcPort: 4000, DstPort: 53}},
				"tcp":  {ipLayer(f, src, dst, layers.IPProtocolTCP), &layers.TCP{SrcPort: 4000, DstPort: 80, SYN: true}},
				"sctp": {ipLayer(f, src, dst, layers.IPProtocolSCTP), &layers.SCTP{SrcPort: 4000, DstPort: 80}},
			}
			if f == IPv4 {
				stacks["icmp"] = []any{ipLayer(f, src, dst, layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: 0x0800}}
			} else {
				stacks["icmpv6"] = []any{ipLayer(f, src, dst, layers.IPProtocolICMPv6), &layers.ICMPv6{TypeCode: 0x8000}}
			}
			for name, stack := range stacks {
				for tags := range 3 {
					t.Run(fmt.Sprintf("%v %s %d bytes %d tags", f, name, size, tags), func(t *testing.T) {
						link := []any{&layers.Ethernet{SrcMAC: macA, DstMAC: macB, EthernetType: etherTypeOf(f)}}
						for range tags {
							link[len(link)-1] = setType(link[len(link)-1])
							link = append(link, &layers.Dot1Q{VLANIdentifier: 5, Type: etherTypeOf(f)})
						}
						frame := serialize(t, append(append(link, stack...), payload)...)
						if err := VerifyChecksums(whole(frame)); err != nil {
							t.Fatalf("%v: %x", err, frame)
						}
						if err := VerifyChecksums(whole(append(slices.Clone(frame), 0, 0, 0, 0))); err != nil {
							t.Errorf("with padding: %v", err)
						}
						// Every bit that a checksum covers counts: addresses, ports, payload.
						transport := 14 + 4*tags + map[Family]int{IPv4: 20, IPv6: 40}[f]
						for _, at := range []int{transport - 1, transport, transport + 3, len(frame) - 1} {
							if at == transport-1 && (name == "sctp" || name == "icmp") && f == IPv6 {
								continue // their checksum does not cover the addresses
							}
							bad := slices.Clone(frame)
							bad[at] ^= 0x10
							if VerifyChecksums(whole(bad)) == nil {
								t.Errorf("changed byte %d goes unnoticed: %x", at, bad)
							}
						}
					})
				}
			}
		}
	}
}

func setType(l any) any {
	switch l := l.(type) {
	case *layers.Ethernet:
		l.EthernetType = layers.EthernetTypeDot1Q
	case *layers.Dot1Q:
		l.Type = layers.EthernetTypeDot1Q
	}
	return l
}

func TestVerifyChecksumsSpecialCases(t *testing.T) {
	udp := func(f Family) []byte {
		return serialize(t, &layers.Ethernet{SrcMAC: macA, DstMAC: macB, EthernetType: etherTypeOf(f)},
			ipLayer(f, PodAddr(f, 1, 1), ClusterIP(f, 1), layers.IPProtocolUDP), &layers.UDP{SrcPort: 1, DstPort: 2}, gopacket.Payload("odd"))
	}
	change := func(frame []byte, edit func([]byte)) *Frame {
		edit(frame)
		return whole(frame)
	}
	fixIPv4 := func(b []byte) {
		b[24], b[25] = 0, 0
		sum := ^fold(add(0, b[14:34]))
		b[24], b[25] = byte(sum>>8), byte(sum)
	}
	const v4, v6 = 14 + 20, 14 + 40
	for _, tt := range []struct {
		name  string
		frame *Frame
		want  string // in the error; empty: none
	}{
		{"UDP over IPv4 without a checksum", change(udp(IPv4), func(b []byte) { b[v4+6], b[v4+7] = 0, 0 }), ""},
		{"UDP over IPv6 without a checksum", change(udp(IPv6), func(b []byte) { b[v6+6], b[v6+7] = 0, 0 }), "without a checksum"},
		{"UDP length that lies", change(udp(IPv4), func(b []byte) { b[v4+5]++ }), "UDP length"},
		{"IPv4 header", change(udp(IPv4), func(b []byte) { b[22]-- }), "IPv4 header"},
		{"first fragment", change(udp(IPv4), func(b []byte) { b[20] = 0x20; b[v4+6] ^= 1; fixIPv4(b) }), ""},
		{"later fragment", change(udp(IPv4), func(b []byte) { b[21] = 1; b[v4+6] ^= 1; fixIPv4(b) }), ""},
		{"IPv4 total length past the frame", change(udp(IPv4), func(b []byte) { b[17]++ }), "too short"},
		{"IPv6 payload length past the frame", change(udp(IPv6), func(b []byte) { b[19]++ }), "too short"},
		{"partial with a finished checksum", &Frame{Data: udp(IPv4), Length: len(udp(IPv4)), Partial: true}, "partial"},
		{"cut off", &Frame{Data: udp(IPv4), Length: 9000}, "captured only"},
		{"ARP", whole(append(append(append([]byte{}, macA...), macB...), 0x08, 0x06, 1, 2, 3)), ""},
		{"no Ethernet header", whole(make([]byte, 13)), "too short"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := VerifyChecksums(tt.frame)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q: %x", err, tt.want, tt.frame.Data)
			}
		})
	}
}

func TestVerifyChecksumsIPv6Extensions(t *testing.T) {
	segment := serialize(t, &layers.Ethernet{SrcMAC: macA, DstMAC: macB, EthernetType: layers.EthernetTypeIPv6},
		ipLayer(IPv6, PodAddr(IPv6, 1, 1), ClusterIP(IPv6, 1), layers.IPProtocolUDP), &layers.UDP{SrcPort: 1, DstPort: 2}, gopacket.Payload("x"))
	with := func(next byte, extension ...byte) *Frame {
		b := slices.Concat(segment[:54], extension, segment[54:])
		b[14+6] = next
		b[14+5] += byte(len(extension))
		return whole(b)
	}
	options := []byte{17, 0, 1, 4, 0, 0, 0, 0}
	for _, tt := range []struct {
		name    string
		frame   *Frame
		checked bool
	}{
		{"none", whole(slices.Clone(segment)), true},
		{"hop by hop", with(0, options...), true},
		{"destination options", with(60, options...), true},
		{"two", with(0, append([]byte{60, 0, 1, 4, 0, 0, 0, 0}, options...)...), true},
		{"atomic fragment", with(44, 17, 0, 0, 0, 0, 0, 0, 9), true},
		{"first fragment", with(44, 17, 0, 0, 1, 0, 0, 0, 9), false},
		{"later fragment", with(44, 17, 0, 0, 8, 0, 0, 0, 9), false},
		{"routing, segments left", with(43, 17, 0, 2, 1, 0, 0, 0, 0), false},
		{"routing, done", with(43, 17, 0, 2, 0, 0, 0, 0, 0), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := VerifyChecksums(tt.frame); err != nil {
				t.Error(err)
			}
			tt.frame.Data[len(tt.frame.Data)-1] ^= 1
			if got := VerifyChecksums(tt.frame) != nil; got != tt.checked {
				t.Errorf("a changed payload is noticed: %t, want %t", got, tt.checked)
			}
		})
	}
}

func FuzzVerifyChecksums(f *testing.F) {
	f.Add([]byte("short"), false)
	for _, family := range Families {
		f.Add(serialize(f, &layers.Ethernet{SrcMAC: macA, DstMAC: macB, EthernetType: etherTypeOf(family)},
			ipLayer(family, PodAddr(family, 1, 1), ClusterIP(family, 1), layers.IPProtocolTCP), &layers.TCP{SrcPort: 1, DstPort: 2}), true)
	}
	f.Fuzz(func(t *testing.T, frame []byte, partial bool) {
		VerifyChecksums(&Frame{Data: frame, Length: len(frame), Partial: partial}) // must not panic or hang
	})
}
