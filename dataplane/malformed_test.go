package dataplane

import (
	"bytes"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/sluice-net/sluice/internal/netlab"
)

// vector is a frame that the fast path must have no part in.
type vector struct {
	name  string
	frame []byte
}

// malformed makes the groups of bad input that a frame can have before its
// ports, and beyond them: truncation at every length, lengths that lie, odd
// EtherTypes, other protocols.
func malformed(t *testing.T, src, dst net.HardwareAddr, p *netlab.Pod) (vs []vector) {
	eth := func(typ layers.EthernetType) *layers.Ethernet {
		return &layers.Ethernet{SrcMAC: src, DstMAC: dst, EthernetType: typ}
	}
	vip4, vip6 := netlab.ClusterIP(netlab.IPv4, 1), netlab.ClusterIP(netlab.IPv6, 1)
	ip4 := func(proto layers.IPProtocol) *layers.IPv4 {
		return &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Id: 1, Protocol: proto, SrcIP: p.IP4.AsSlice(), DstIP: vip4.AsSlice()}
	}
	ip6 := func(proto layers.IPProtocol) *layers.IPv6 {
		return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: p.IP6.AsSlice(), DstIP: vip6.AsSlice()}
	}
	udp := func(l gopacket.NetworkLayer) *layers.UDP {
		u := &layers.UDP{SrcPort: 5000, DstPort: 80}
		u.SetNetworkLayerForChecksum(l)
		return u
	}
	tcp := func(l gopacket.NetworkLayer) *layers.TCP {
		s := &layers.TCP{SrcPort: 5001, DstPort: 80, SYN: true, Window: 1000}
		s.SetNetworkLayerForChecksum(l)
		return s
	}
	data := gopacket.Payload(bytes.Repeat([]byte{0xa5}, 40))
	u4, t4, u6, t6 := ip4(layers.IPProtocolUDP), ip4(layers.IPProtocolTCP), ip6(layers.IPProtocolUDP), ip6(layers.IPProtocolTCP)
	whole := []vector{
		{"udp4", serialize(t, eth(layers.EthernetTypeIPv4), u4, udp(u4), data)},
		{"tcp4", serialize(t, eth(layers.EthernetTypeIPv4), t4, tcp(t4), data)},
		{"udp6", serialize(t, eth(layers.EthernetTypeIPv6), u6, udp(u6), data)},
		{"tcp6", serialize(t, eth(layers.EthernetTypeIPv6), t6, tcp(t6), data)},
	}
	add := func(name string, base []byte, change func([]byte)) {
		f := bytes.Clone(base)
		change(f)
		vs = append(vs, vector{name, f})
	}
	for _, w := range whole {
		for n := 15; n < len(w.frame); n++ {
			vs = append(vs, vector{fmt.Sprintf("%s cut to %d", w.name, n), w.frame[:n]})
		}
	}
	udp4, tcp4, udp6, tcp6 := whole[0].frame, whole[1].frame, whole[2].frame, whole[3].frame
	for _, v := range []byte{0x05, 0x35, 0x65, 0xf5} {
		add(fmt.Sprintf("version byte %#x", v), udp4, func(f []byte) { f[14] = v })
	}
	for _, ihl := range []byte{0, 1, 2, 3, 4} {
		add(fmt.Sprintf("IHL %d", ihl), udp4, func(f []byte) { f[14] = 0x40 | ihl })
	}
	add("total length 0", udp4, func(f []byte) { f[16], f[17] = 0, 0 })
	add("total length below the header", udp4, func(f []byte) { f[16], f[17] = 0, 19 })
	add("total length past the frame", udp4, func(f []byte) { f[17]++ })
	add("total length that cuts the UDP header", udp4, func(f []byte) { f[16], f[17] = 0, 27 })
	add("UDP length 0", udp4, func(f []byte) { f[38], f[39] = 0, 0 })
	add("UDP length below its header", udp4, func(f []byte) { f[38], f[39] = 0, 7 })
	add("UDP length past the packet", udp4, func(f []byte) { f[39]++ })
	add("TCP data offset 4", tcp4, func(f []byte) { f[46] = 0x40 })
	add("TCP data offset past the packet", tcp4, func(f []byte) { f[46] = 0xf0; f[17] = 40 })
	add("protocol GRE", udp4, func(f []byte) { f[23] = 47 })
	add("protocol 255", udp4, func(f []byte) { f[23] = 255 })
	add("IPv6 version 5", udp6, func(f []byte) { f[14] = 0x50 })
	add("IPv6 length past the frame", udp6, func(f []byte) { f[19]++ })
	add("IPv6 length that cuts the TCP header", tcp6, func(f []byte) { f[18], f[19] = 0, 19 })
	add("IPv6 no next header", udp6, func(f []byte) { f[20] = 59 })
	add("IPv6 fragment header", udp6, func(f []byte) { f[20] = 44 })
	add("IPv6 ESP", udp6, func(f []byte) { f[20] = 50 })
	for _, typ := range []uint16{0x0000, 0x0026, 0x0801, 0x8847, 0x88cc, 0xffff} {
		add(fmt.Sprintf("EtherType %#04x", typ), udp4, func(f []byte) { f[12], f[13] = byte(typ>>8), byte(typ) })
	}
	return vs
}

// TestMalformedFramesPass: they reach the kernel byte for byte, and the fast path
// never sees one.
func TestMalformedFramesPass(t *testing.T) { eachKind(t, testMalformedFramesPass) }

func testMalformedFramesPass(t *testing.T, kind PortKind) {
	for _, mode := range []Mode{ModeFront, ModeAlone} {
		t.Run(mode.String(), func(t *testing.T) {
			b := newTestbed(t, netlab.ClusterOptions{}, of(kind, func(c *Config) { c.Mode = mode }))
			_, backends := b.echo(8080)
			b.publish(testService{name: "echo", number: 1, port: 80, backends: backends})
			client := b.Clients[0]
			src := net.HardwareAddr{2, 0xbb, 0xbb, 0xbb, 0xbb, 1}
			vs := malformed(t, src, b.Node.MAC(client.HostDevice), client)
			kernel := b.Node.Capture(client.HostDevice, netlab.CaptureOptions{Match: func(f *netlab.Frame) bool {
				return len(f.Data) >= 12 && bytes.Equal(f.Data[6:12], src)
			}})
			in := client.Inject(netlab.PodDevice)
			for i, v := range vs {
				if _, err := in.Send(v.frame); err != nil {
					t.Fatalf("%s: %v", v.name, err)
				}
				if i%32 == 31 {
					time.Sleep(time.Millisecond) // a veth's ring holds 256
				}
			}
			var got []netlab.Frame
			for range 50 {
				more, err := kernel.Drain()
				if err != nil {
					t.Fatal(err)
				}
				if got = append(got, more...); len(got) >= len(vs) {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if len(got) != len(vs) {
				t.Fatalf("the kernel got %d of %d frames", len(got), len(vs))
			}
			for i, v := range vs {
				if !bytes.Equal(got[i].Data, v.frame) {
					t.Errorf("%s: the kernel got\n%x, want\n%x", v.name, got[i].Data, v.frame)
				}
			}
			if s := b.settle(); s.Received != 0 || s.Flows.Flows != 0 {
				t.Errorf("the fast path received %d frames and has %d flows, want none", s.Received, s.Flows.Flows)
			}
		})
	}
}
