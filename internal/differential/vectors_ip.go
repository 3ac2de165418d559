package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/sluice-net/sluice/internal/netlab"
)

const (
	v4 = netlab.IPv4
	v6 = netlab.IPv6
)

func ipv4Vectors(t *table) {
	for _, version := range []byte{0, 5, 6, 15} {
		t.raw(fmt.Sprintf("version %d", version), v4, protoUDP, set8(0, version<<4|5))
	}
	for _, ihl := range []byte{0, 1, 2, 3, 4} {
		t.raw(fmt.Sprintf("header length %d words", ihl), v4, protoUDP, set8(0, 0x40|ihl))
	}
	for _, ihl := range []byte{6, 7, 8, 15} {
		t.raw(fmt.Sprintf("header length %d words without options", ihl), v4, protoTCP, set8(0, 0x40|ihl))
	}
	for _, n := range []uint16{0, 1, 19, 20, 21, 24, 27, 28} {
		t.raw(fmt.Sprintf("total length %d", n), v4, protoUDP, set16(2, n))
	}
	t.raw("total length one past the frame", v4, protoUDP, set16(2, 69))
	t.raw("total length far past the frame", v4, protoUDP, set16(2, 1500))
	t.raw("total length 65535", v4, protoTCP, set16(2, 65535))
	for _, n := range []int{1, 6, 46, 1000} {
		t.edit(fmt.Sprintf("%d bytes of padding", n), v4, protoUDP, func(_ *maker, p *packet) { p.padding = bytesUpTo(n) })
		t.edit(fmt.Sprintf("%d bytes of padding", n), v4, protoTCP, func(_ *maker, p *packet) { p.padding = bytesUpTo(n) })
	}
	checksum := func(title string, change func(uint16) uint16) {
		t.raw(title, v4, protoUDP, func(f []byte) []byte {
			binary.BigEndian.PutUint16(f[24:], change(binary.BigEndian.Uint16(f[24:])))
			return f
		})
	}
	checksum("header checksum off by one", func(v uint16) uint16 { return v + 1 })
	checksum("header checksum zero", func(uint16) uint16 { return 0 })
	checksum("header checksum all ones", func(uint16) uint16 { return 0xffff })
	checksum("header checksum with its bytes swapped", func(v uint16) uint16 { return v<<8 | v>>8 })
	for _, ttl := range []byte{0, 1} {
		for _, proto := range []byte{protoTCP, protoUDP} {
			t.both(fmt.Sprintf("TTL %d", ttl), proto, func(_ *maker, p *packet) { p.ttl = ttl }, allow("node_answers"))
			t.both(fmt.Sprintf("TTL %d of a reply", ttl), proto, func(_ *maker, p *packet) { p.ttl = ttl }, reply)
		}
	}
	t.edit("TTL 255", v4, protoUDP, func(_ *maker, p *packet) { p.ttl = 255 })
	t.both("TTL that ends at the next router", protoUDP, func(_ *maker, p *packet) { p.ttl = 2 }, far, allow())
	t.edit("the reserved bit", v4, protoUDP, func(_ *maker, p *packet) { p.frag = 0x8000 })
	t.edit("identification zero without DF", v4, protoUDP, func(_ *maker, p *packet) { p.id = 0 })
	t.edit("identification with DF", v4, protoUDP, func(_ *maker, p *packet) { p.frag = 0x4000 })
	t.edit("all bits of TOS", v4, protoTCP, func(_ *maker, p *packet) { p.tos = 0xff })
}

func optionVectors(t *table) {
	for _, o := range []struct {
		name  string
		bytes []byte
	}{
		{"loose source route", []byte{131, 7, 4, 198, 18, 1, 9, 0}},
		{"loose source route at its end", []byte{131, 7, 8, 198, 18, 1, 9, 0}},
		{"strict source route", []byte{137, 7, 4, 198, 18, 1, 9, 0}},
		{"record route", []byte{7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		{"record route, full", []byte{7, 7, 8, 198, 18, 1, 1, 0}},
		{"record route with a bad pointer", []byte{7, 7, 3, 0, 0, 0, 0, 0}},
		{"timestamp", []byte{68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		{"timestamp with addresses", []byte{68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0}},
		{"timestamp, overflown", []byte{68, 8, 9, 0xf0, 1, 2, 3, 4}},
		{"router alert", []byte{148, 4, 0, 0}},
		{"CIPSO", []byte{134, 6, 0, 0, 0, 1, 0, 0}},
		{"end, then garbage", []byte{0, 0xde, 0xad, 0xbe}},
		{"end, then an option", []byte{0, 7, 3, 4}},
		{"length zero", []byte{30, 0, 0, 0}},
		{"length one", []byte{30, 1, 0, 0}},
		{"length past the header", []byte{30, 5, 0, 0}},
		{"length missing", []byte{1, 1, 1, 30}},
		{"forty times nothing", bytes.Repeat([]byte{1}, 40)},
		{"forty times the end", make([]byte, 40)},
		{"security", []byte{130, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0}},
		{"stream", []byte{136, 4, 1, 2}},
		{"quick start", []byte{25, 8, 1, 2, 3, 4, 5, 6}},
		{"unknown", []byte{158, 4, 1, 2}},
		{"unknown, forty bytes", append([]byte{158, 40}, make([]byte, 38)...)},
	} {
		change := func(_ *maker, p *packet) { p.options = o.bytes }
		t.edit(o.name, v4, protoUDP, change)
		t.edit(o.name, v4, protoTCP, change)
		t.edit(o.name+", in a reply", v4, protoUDP, change, reply)
	}
}

func addressVectors(t *table) {
	from := func(title, addr string, os ...option) {
		a := netip.MustParseAddr(addr)
		f := v4
		if a.Is6() {
			f = v6
		}
		for _, proto := range []byte{protoTCP, protoUDP} {
			t.edit("from "+title, f, proto, func(_ *maker, p *packet) { p.src = a }, os...)
		}
	}
	to := func(title, addr string, os ...option) {
		a := netip.MustParseAddr(addr)
		f := v4
		if a.Is6() {
			f = v6
		}
		t.edit("to "+title, f, protoUDP, func(_ *maker, p *packet) { p.dst = a }, os...)
	}
	spoofed := allow("spoofed_source", "kernel_calls_invalid")
	from("nobody", "0.0.0.0")
	from("this network", "0.1.2.3")
	from("loopback", "127.0.0.1")
	from("a link-local address", "169.254.9.9")
	from("multicast", "224.0.0.1")
	from("class E", "240.0.0.1", spoofed)
	from("broadcast", "255.255.255.255")
	from("outside", "203.0.113.77", spoofed)
	from("the node", "192.0.2.1", spoofed)
	from("the gateway", netlab.Gateway4, spoofed)
	from("another client", netlab.PodAddr(v4, 1, 2).String(), spoofed)
	from("a ClusterIP", netlab.ClusterIP(v4, 2).String(), spoofed)
	from("nobody", "::")
	from("loopback", "::1")
	from("a link-local address", "fe80::99")
	from("multicast", "ff02::1")
	from("outside", "2001:db8:4::77", spoofed)
	from("another client", netlab.PodAddr(v6, 1, 2).String(), spoofed)
	from("a ClusterIP", netlab.ClusterIP(v6, 2).String(), spoofed)
	from("the node", "2001:db8:3::1", spoofed)
	from("an IPv4-mapped address", "::ffff:198.18.1.1", allow("given_to_kernel"))
	for _, f := range netlab.Families {
		t.edit("land: from where it goes to", f, protoTCP, func(_ *maker, p *packet) { p.src = p.dst }, spoofed)
		t.edit("from the backend", f, protoUDP, func(m *maker, p *packet) { p.src = m.backend.Addr() }, spoofed)
		t.edit("to a ClusterIP without a Service", f, protoUDP, func(_ *maker, p *packet) { p.dst = netlab.ClusterIP(f, 99) })
		t.edit("to the backend itself", f, protoUDP, func(m *maker, p *packet) {
			// From a port of its own: a connection of the same ports would be a collision.
			p.dst = m.backend.Addr()
			p.segment = udp(m.client.Port()-20000, m.backend.Port(), bytesUpTo(9))
		})
		t.edit("to a port that the Service does not have", f, protoUDP, func(m *maker, p *packet) {
			p.segment = udp(m.client.Port(), 54321, bytesUpTo(9))
		}, allow("undefined_port"))
		t.edit("to the TCP port over UDP", f, protoUDP, func(m *maker, p *packet) {
			p.segment = udp(m.client.Port(), 80, bytesUpTo(9))
		}, allow("undefined_port"))
	}
	for _, proto := range []byte{protoTCP, protoUDP} {
		unknown := func(title string, change func(*packet)) {
			t.edit("from outside, "+title, v4, proto, func(_ *maker, p *packet) {
				p.src = netlab.OutsideAddr(v4, 77)
				change(p)
			}, spoofed)
		}
		unknown("with a router alert", func(p *packet) { p.options = []byte{148, 4, 0, 0} })
		unknown("with a record route", func(p *packet) { p.options = []byte{7, 7, 4, 0, 0, 0, 0, 0} })
		unknown("at the end of the TTL", func(p *packet) { p.ttl = 1 })
	}
	for _, f := range netlab.Families {
		t.add("the client's frame from another pod", f, protoUDP, func(m *maker) []injected {
			p := m.good()
			p.segment = udp(m.client.Port(), m.frontend.Port(), bytesUpTo(3))
			p.dstMAC, p.srcMAC = m.x.hostMAC[backend1], m.x.mac[backend1]
			return []injected{{data: p.bytes()}}
		}, sentBy(backend1), spoofed)
	}
	to("loopback", "127.0.0.1")
	to("nobody", "0.0.0.0")
	to("broadcast", "255.255.255.255")
	to("multicast", "224.0.0.1")
	to("class E", "240.0.0.1")
	to("loopback", "::1")
	to("nobody", "::")
	to("all nodes", "ff02::1")
	to("an IPv4-mapped ClusterIP", "::ffff:198.19.0.1")
	// To a link-local address would be answered only when nobody has been found there, seconds later.
	t.edit("a reply from another port", v4, protoUDP, func(m *maker, p *packet) { p.segment = udp(9999, m.client.Port(), bytesUpTo(9)) }, reply)
	t.edit("a reply from another backend's address", v4, protoUDP, func(m *maker, p *packet) { p.src = m.x.ip[backend1][v4] }, reply)
}

func fragmentVectors(t *table) {
	partly := allow("incomplete_datagram")
	for _, f := range netlab.Families {
		for _, proto := range []byte{protoUDP, protoTCP} {
			cut := func(title string, sizes []int, order []int, os ...option) {
				t.add(title, f, proto, func(m *maker) []injected {
					p := m.good()
					src, dst := m.ends()
					if proto == protoUDP {
						p.segment = udp(src.Port(), dst.Port(), bytesUpTo(200))
					} else if m.known {
						p.segment = append(p.segment, bytesUpTo(160)...)
					} else {
						p.segment = tcp(src.Port(), dst.Port(), clientSeq, 0, syn, 0xfaf0, nil, bytesUpTo(200))
					}
					fs := cutAt(p, sizes, m.id())
					var out []injected
					for _, i := range order {
						out = append(out, fs[i])
					}
					return out
				}, os...)
			}
			cut("two in order", []int{104}, []int{0, 1})
			cut("two in reverse", []int{104}, []int{1, 0})
			cut("three, the last one first", []int{64, 128}, []int{2, 0, 1})
			cut("first alone", []int{104}, []int{0}, partly)
			cut("last alone", []int{104}, []int{1})
			cut("middle alone", []int{64, 128}, []int{1})
			cut("one twice", []int{104}, []int{0, 0, 1})
			cut("tiny first: eight bytes", []int{8}, []int{0, 1}, allow("given_to_kernel", "headless_fragment"))
			cut("many", []int{16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, allow("given_to_kernel", "headless_fragment"))
			cut("two of a reply, in order", []int{104}, []int{0, 1}, reply)
			cut("two of a reply, in reverse", []int{104}, []int{1, 0}, reply)
		}
		t.add("overlapping (teardrop)", f, protoUDP, func(m *maker) []injected {
			p := m.good()
			fs := cutAt(p, []int{24}, m.id())
			q := p.clone()
			p.seal(q.segment)
			late := fragmentOf(q, q.segment[16:40], 16, false, m.id())
			return []injected{fs[0], late}
		}, partly)
		t.add("past 65535", f, protoUDP, func(m *maker) []injected {
			p := m.good()
			return []injected{fragmentOf(p, bytesUpTo(40), 65528, false, m.id())}
		})
		t.add("a length that is not a multiple of eight", f, protoUDP, func(m *maker) []injected {
			p := m.good()
			return []injected{fragmentOf(p, bytesUpTo(13), 0, true, m.id())}
		})
	}
	t.add("at offset one (RFC 3128)", v4, protoTCP, func(m *maker) []injected {
		p := m.good()
		return []injected{fragmentOf(p, bytesUpTo(16), 8, false, m.id())}
	})
	for _, proto := range []byte{protoUDP, protoTCP} {
		atomic := func(m *maker, p *packet) {
			p.exts = append(p.exts, extension{44, []byte{0, 0, 0, 0, 0, 0, 99}})
		}
		t.edit("atomic", v6, proto, atomic)
		t.edit("atomic, of a reply", v6, proto, atomic, reply)
	}
}

// cutAt makes fragments of a packet, cut at these offsets of its segment.
func cutAt(p *packet, at []int, id uint32) (fs []injected) {
	segment := slices.Clone(p.segment)
	p.seal(segment)
	ends := append(slices.Clone(at), len(segment))
	from := 0
	for i, end := range ends {
		end = min(end, len(segment))
		fs = append(fs, fragmentOf(p, segment[from:end], from, i+1 < len(ends), id))
		from = end
	}
	return fs
}

// fragmentOf is one fragment.
func fragmentOf(p *packet, data []byte, at int, more bool, id uint32) injected {
	f := p.clone()
	f.sum, f.segment = sumAsIs, data
	bit := uint16(0)
	if more {
		bit = 1
	}
	if f.v6() {
		offset := uint16(at)&^7 | bit
		f.exts = append(slices.Clone(f.exts), extension{44, []byte{0, byte(offset >> 8), byte(offset), byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}})
	} else {
		f.id, f.frag = uint16(id), bit<<13|uint16(at/8)
	}
	return injected{data: f.bytes()}
}

func ipv6Vectors(t *table) {
	passes := []option{allow("given_to_kernel")}
	header := func(title string, os []option, es ...extension) {
		for _, proto := range []byte{protoTCP, protoUDP} {
			t.edit(title, v6, proto, func(_ *maker, p *packet) { p.exts = es }, os...)
		}
		t.edit(title+", in a reply", v6, protoUDP, func(_ *maker, p *packet) { p.exts = es }, append(slices.Clone(os), reply)...)
	}
	pad := []byte{0, 1, 4, 0, 0, 0, 0}
	hop, dest := extension{0, pad}, extension{60, pad}
	routing := func(kind, left byte) extension {
		return extension{43, append([]byte{2, kind, left}, make([]byte, 20)...)}
	}
	header("hop-by-hop with padding", nil, hop)
	header("hop-by-hop with a router alert", nil, extension{0, []byte{0, 5, 2, 0, 0, 1, 0}})
	header("hop-by-hop, unknown option, skip", nil, extension{0, []byte{0, 0x1e, 4, 1, 2, 3, 4}})
	header("hop-by-hop, unknown option, drop", nil, extension{0, []byte{0, 0x5e, 4, 1, 2, 3, 4}})
	header("hop-by-hop, unknown option, drop and tell", nil, extension{0, []byte{0, 0x9e, 4, 1, 2, 3, 4}})
	header("hop-by-hop, unknown option, tell unless multicast", nil, extension{0, []byte{0, 0xde, 4, 1, 2, 3, 4}})
	header("hop-by-hop, padding that is not zero", nil, extension{0, []byte{0, 1, 4, 1, 0, 0, 0}})
	header("hop-by-hop, padding of eight", nil, extension{0, []byte{1, 1, 6, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0}})
	header("hop-by-hop, option past its end", nil, extension{0, []byte{0, 0x1e, 9, 1, 2, 3, 4}})
	header("hop-by-hop, longer than the packet", nil, extension{0, []byte{200, 1, 4, 0, 0, 0, 0}})
	header("hop-by-hop twice", nil, hop, hop)
	header("hop-by-hop behind another", nil, dest, hop)
	header("jumbo payload option", nil, extension{0, []byte{0, 0xc2, 4, 0, 1, 0, 0}})
	header("destination options", nil, dest)
	header("destination options, home address", nil, extension{60, append([]byte{2, 1, 2, 0, 0, 201, 16}, make([]byte, 16)...)})
	header("destination options, unknown option, drop and tell", nil, extension{60, []byte{0, 0x9e, 4, 1, 2, 3, 4}})
	for _, kind := range []byte{0, 2, 3, 4, 253} {
		header(fmt.Sprintf("routing header of type %d at its end", kind), nil, routing(kind, 0))
		header(fmt.Sprintf("routing header of type %d that goes on", kind), nil, routing(kind, 1))
	}
	for _, n := range []int{4, 5, 8} {
		header(fmt.Sprintf("%d headers", n), nil, slices.Repeat([]extension{dest}, n)...)
	}
	for _, n := range []int{9, 12} {
		header(fmt.Sprintf("%d headers", n), passes, slices.Repeat([]extension{dest}, n)...)
	}
	header("authentication", passes, extension{51, append([]byte{4, 0, 0}, make([]byte, 20)...)})
	next := func(title string, n byte) {
		t.raw(title, v6, protoUDP, set8(6, n))
	}
	next("no next header", 59)
	next("ESP", 50)
	next("mobility", 135)
	next("HIP", 139)
	next("shim6", 140)
	for _, n := range []uint16{0, 1, 7, 8, 47, 49, 1400, 65535} { // 48 is right
		t.raw(fmt.Sprintf("payload length %d", n), v6, protoUDP, set16(4, n))
	}
	for _, version := range []byte{0, 4, 5, 7} {
		t.raw(fmt.Sprintf("version %d", version), v6, protoUDP, set8(0, version<<4))
	}
	t.edit("flow label", v6, protoTCP, func(_ *maker, p *packet) { p.label = 0xfffff })
	t.edit("all bits of traffic class", v6, protoTCP, func(_ *maker, p *packet) { p.tos = 0xff })
	t.edit("padding", v6, protoUDP, func(_ *maker, p *packet) { p.padding = bytesUpTo(46) })
	t.edit("padding", v6, protoTCP, func(_ *maker, p *packet) { p.padding = bytesUpTo(7) })
}

func etherVectors(t *table) {
	vlan := allow("vlan")
	for _, f := range netlab.Families {
		ether := func(title string, etherType uint16) {
			t.edit(title, f, protoUDP, func(_ *maker, p *packet) { p.etherType = etherType })
		}
		ether("802.3 length", 0x0044)
		ether("EtherType zero", 0)
		ether("EtherType of the other family", map[netlab.Family]uint16{v4: etherIPv6, v6: etherIPv4}[f])
		ether("MPLS", 0x8847)
		ether("LLDP", 0x88cc)
		ether("EtherType all ones", 0xffff)
		ether("PPPoE", 0x8864)
		t.add("LLC and SNAP", f, protoUDP, func(m *maker) []injected {
			w := m.good().bytes()
			out := slices.Clone(w[:12])
			out = binary.BigEndian.AppendUint16(out, uint16(len(w)-12-2+8))
			out = append(out, 0xaa, 0xaa, 3, 0, 0, 0)
			return []injected{{data: append(out, w[12:]...)}}
		})
		tags := func(title string, b ...byte) {
			t.edit(title, f, protoUDP, func(_ *maker, p *packet) { p.tags = b }, vlan)
		}
		tags("VLAN 0", 0x81, 0, 0, 0)
		tags("VLAN 0 with a priority", 0x81, 0, 0xe0, 0)
		tags("VLAN 5", 0x81, 0, 0, 5)
		tags("VLAN 4095", 0x81, 0, 0x0f, 0xff)
		tags("two tags", 0x88, 0xa8, 0, 7, 0x81, 0, 0, 5)
		tags("two tags of VLAN 0", 0x81, 0, 0, 0, 0x81, 0, 0, 0)
		tags("three tags", 0x88, 0xa8, 0, 7, 0x81, 0, 0, 6, 0x81, 0, 0, 5)
		t.add("VLAN tag at the end of the frame", f, protoUDP, func(m *maker) []injected {
			return []injected{{data: append(m.good().bytes()[:12], 0x81, 0, 0, 5)}}
		})
		mac := func(title string, dst ...byte) {
			t.edit(title, f, protoUDP, func(_ *maker, p *packet) { p.dstMAC = net.HardwareAddr(dst) })
		}
		mac("to another station", 2, 1, 2, 3, 4, 5)
		mac("to a multicast address", 1, 0, 0x5e, 0, 0, 1)
		mac("to broadcast", 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
		mac("to no station", 0, 0, 0, 0, 0, 0)
		t.edit("from a multicast address", f, protoUDP, func(_ *maker, p *packet) { p.srcMAC = net.HardwareAddr{1, 0, 0x5e, 0, 0, 9} })
		t.edit("from the station it goes to", f, protoUDP, func(_ *maker, p *packet) { p.srcMAC = p.dstMAC })
		t.edit("from another station", f, protoUDP, func(_ *maker, p *packet) { p.srcMAC = net.HardwareAddr{2, 9, 9, 9, 9, 9} })
	}
	t.add("ARP for a ClusterIP", v4, protoUDP, func(m *maker) []injected {
		f := slices.Concat(m.x.hostMAC[m.from], m.x.mac[m.from], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, m.x.mac[m.from], m.client.Addr().AsSlice(),
			make([]byte, 6), m.frontend.Addr().AsSlice())
		return []injected{{data: f}}
	})
	t.add("neighbour solicitation for a ClusterIP", v6, protoUDP, func(m *maker) []injected {
		p := m.packet(m.client.Addr(), m.frontend.Addr())
		p.proto, p.ttl = protoICMPv6, 255
		p.segment = slices.Concat([]byte{135, 0, 0, 0, 0, 0, 0, 0}, m.frontend.Addr().AsSlice(), []byte{1, 1}, m.x.mac[m.from])
		return []injected{{data: p.bytes()}}
	})
}
