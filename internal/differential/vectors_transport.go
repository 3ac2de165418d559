package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/sluice-net/sluice/internal/netlab"
)

func tcpVectors(t *table) {
	invalid := allow("kernel_calls_invalid", "invalid_reply_dropped")
	edit := func(title string, change func(*maker, *packet), os ...option) {
		t.both(title, protoTCP, change, os...)
	}
	for _, n := range []byte{0, 1, 3, 4} {
		edit(fmt.Sprintf("data offset %d", n), func(_ *maker, p *packet) { p.segment[12] = n << 4 })
	}
	edit("data offset past the segment", func(_ *maker, p *packet) { p.segment = p.segment[:24]; p.segment[12] = 0xf0 })
	for _, f := range []struct {
		name  string
		flags byte
	}{
		{"SYN and FIN", syn | fin}, {"SYN and RST", syn | rst}, {"SYN, FIN and ACK", syn | fin | ack}, {"no flags", 0}, {"FIN, PSH and URG (xmas)", fin | psh | urg},
		{"all flags", 0xff}, {"FIN alone", fin}, {"URG alone", urg}, {"PSH alone", psh}, {"RST and FIN", rst | fin}, {"RST, FIN and ACK", rst | fin | ack},
		{"SYN, RST and ACK", syn | rst | ack}, {"FIN, SYN, RST and PSH", fin | syn | rst | psh}, {"RST and PSH", rst | psh},
	} {
		change := func(_ *maker, p *packet) { p.segment[13] = f.flags }
		edit(f.name, change, invalid)
		edit(f.name+", in a reply", change, reply, invalid)
	}
	edit("SYN with data", func(_ *maker, p *packet) { p.segment[13] = syn; p.segment = append(p.segment, bytesUpTo(100)...) }, invalid)
	edit("SYN and URG", func(_ *maker, p *packet) { p.segment[13] = syn | urg }, invalid)
	edit("SYN with ECN", func(_ *maker, p *packet) { p.segment[13] = syn | 0xc0 }, invalid)
	edit("SYN and ACK", func(_ *maker, p *packet) { p.segment[13] = syn | ack }, invalid)
	edit("ACK", func(_ *maker, p *packet) { p.segment[13] = ack }, invalid)
	edit("FIN and ACK", func(_ *maker, p *packet) { p.segment[13] = fin | ack }, invalid)
	edit("RST", func(_ *maker, p *packet) { p.segment[13] = rst }, invalid)
	edit("RST and ACK", func(_ *maker, p *packet) { p.segment[13] = rst | ack }, invalid)
	edit("RST of a reply", func(_ *maker, p *packet) { p.segment[13] = rst }, reply, invalid)
	edit("RST out of the window", func(_ *maker, p *packet) { p.segment[13] = rst; p.segment[4] ^= 0x40 }, invalid)
	edit("RST of a reply, out of the window", func(_ *maker, p *packet) { p.segment[13] = rst; p.segment[4] ^= 0x40 }, reply, invalid)
	edit("FIN out of the window", func(_ *maker, p *packet) { p.segment[13] = fin | ack; p.segment[4] ^= 0x40 }, invalid)
	edit("a sequence number out of the window", func(_ *maker, p *packet) { p.segment[4] ^= 0x40 }, invalid)
	edit("a reply out of the window", func(_ *maker, p *packet) { p.segment[4] ^= 0x40 }, reply, invalid)
	edit("an acknowledgement of what was never sent", func(_ *maker, p *packet) { p.segment[8] ^= 0x40 }, invalid)
	edit("a reply that acknowledges what was never sent", func(_ *maker, p *packet) { p.segment[8] ^= 0x40 }, reply, invalid)
	edit("URG with a pointer past the data", func(_ *maker, p *packet) { p.segment[13] |= urg; p.segment[18] = 0xff }, invalid)
	edit("urgent pointer without URG", func(_ *maker, p *packet) { p.segment[19] = 9 })
	edit("reserved bits", func(_ *maker, p *packet) { p.segment[12] |= 0x0f })
	edit("window zero", func(_ *maker, p *packet) { p.segment[14], p.segment[15] = 0, 0 })
	edit("window probe", func(m *maker, p *packet) { p.segment = p.segment[:20]; p.segment[12] = 0x50; p.segment[7]-- }, invalid)
	edit("a SYN of the backend (simultaneous opening)", func(_ *maker, p *packet) { p.segment[13] = syn }, reply, invalid)
	options := func(title string, b ...byte) {
		edit("options: "+title, func(m *maker, p *packet) {
			rest := p.segment[int(p.segment[12]>>4)*4:]
			s := append(append([]byte{}, p.segment[:20]...), b...)
			s[12] = byte(5+len(b)/4) << 4
			p.segment = append(s, rest...)
		}, invalid)
	}
	options("length zero", 2, 0, 5, 0xb4)
	options("length one", 2, 1, 5, 0xb4)
	options("cut short", 1, 1, 2, 4)
	options("past the header", 8, 10, 1, 2)
	options("end, then garbage", 0, 0xde, 0xad, 0xbe)
	options("window scale 255", 3, 3, 255, 1)
	options("SACK of four blocks cut short", 5, 34, 0, 0)
	options("MSS zero", 2, 4, 0, 0)
	options("unknown", 254, 4, 1, 2)
	t.edit("options: forty bytes", v4, protoTCP, func(m *maker, p *packet) {
		rest := p.segment[int(p.segment[12]>>4)*4:]
		s := append(append([]byte{}, p.segment[:20]...), make([]byte, 40)...)
		s[12] = 0xf0
		p.segment = append(s, rest...)
	})
	edit("wrong checksum", func(_ *maker, p *packet) { p.sum = sumWrong }, invalid)
	edit("wrong checksum of a reply", func(_ *maker, p *packet) { p.sum = sumWrong }, reply, invalid)
	edit("checksum zero", func(_ *maker, p *packet) { p.sum = sumZero }, invalid)
	edit("checksum all ones", func(_ *maker, p *packet) { p.sum = sumAsIs; p.segment[16], p.segment[17] = 0xff, 0xff }, invalid)
	edit("source port zero", func(_ *maker, p *packet) { p.segment[0], p.segment[1] = 0, 0 }, invalid)
	edit("destination port zero", func(_ *maker, p *packet) { p.segment[2], p.segment[3] = 0, 0 }, allow("undefined_port"), invalid)
}

func udpVectors(t *table) {
	invalid := allow("kernel_calls_invalid")
	edit := func(title string, change func(*maker, *packet), os ...option) {
		t.both(title, protoUDP, change, os...)
	}
	for _, n := range []uint16{0, 1, 7, 8, 20, 47, 49, 1000, 65535} { // 48 is right
		length := func(_ *maker, p *packet) { binary.BigEndian.PutUint16(p.segment[4:], n) }
		edit(fmt.Sprintf("length %d", n), length, invalid)
		edit(fmt.Sprintf("length %d, without a checksum", n), func(m *maker, p *packet) { length(m, p); p.sum = sumZero }, invalid)
		edit(fmt.Sprintf("length %d of a reply", n), length, reply, invalid)
	}
	edit("without a checksum", func(_ *maker, p *packet) { p.sum = sumZero })
	edit("without a checksum, of a reply", func(_ *maker, p *packet) { p.sum = sumZero }, reply)
	edit("wrong checksum", func(_ *maker, p *packet) { p.sum = sumWrong }, invalid)
	edit("wrong checksum of a reply", func(_ *maker, p *packet) { p.sum = sumWrong }, reply, invalid)
	edit("checksum all ones", func(_ *maker, p *packet) { p.sum = sumAsIs; p.segment[6], p.segment[7] = 0xff, 0xff }, invalid)
	edit("empty", func(_ *maker, p *packet) { p.segment = p.segment[:8]; p.segment[5] = 8 })
	edit("one byte", func(_ *maker, p *packet) { p.segment = p.segment[:9]; p.segment[5] = 9 })
	edit("source port zero", func(_ *maker, p *packet) { p.segment[0], p.segment[1] = 0, 0 })
	edit("destination port zero", func(_ *maker, p *packet) { p.segment[2], p.segment[3] = 0, 0 }, allow("undefined_port"))
	edit("a checksum that translation makes zero", becomesZero)
	edit("a checksum that translation makes zero, of a reply", becomesZero, reply)
}

// becomesZero chooses two bytes of the payload such that the sum of the translated datagram is all ones: its checksum, zero,
// has to be written as 0xffff.
func becomesZero(m *maker, p *packet) {
	to := endpoints{m.client, m.backend}
	if m.reply {
		to = endpoints{m.frontend, m.client}
	}
	for w := range 1 << 16 {
		binary.BigEndian.PutUint16(p.segment[8:], uint16(w))
		f := rewritten(p.bytes(), to, 1)
		if q, ok := parse(f); ok && binary.BigEndian.Uint16(f[q.l4+6:]) == 0xffff {
			return
		}
	}
	panic("differential: no payload has that checksum")
}

// quoteOf is the first n bytes of the packet that the sender of a vector has last received: of the other direction, and as
// translation has made it.
func quoteOf(m *maker, n int) []byte {
	q := *m
	v := *m.vector
	v.reply = !v.reply
	q.vector = &v
	q.known = true
	p := q.good()
	if m.reply {
		p.src, p.dst = m.source.Addr(), m.backend.Addr()
		setPorts(p, m.source.Port(), m.backend.Port())
	} else {
		p.src, p.dst = m.frontend.Addr(), m.client.Addr()
		setPorts(p, m.frontend.Port(), m.client.Port())
	}
	p.ttl = 63
	return p.bytes()[etherLen:][:min(n, len(p.bytes())-etherLen)]
}

func setPorts(p *packet, src, dst uint16) {
	binary.BigEndian.PutUint16(p.segment[0:], src)
	binary.BigEndian.PutUint16(p.segment[2:], dst)
}

// icmpError is an error of the sender about a quoted packet: of type and code as the family has them.
func icmpError(m *maker, type4, code4, type6, code6 byte, rest uint32, quote []byte) *packet {
	src, dst := m.ends()
	p := m.packet(src.Addr(), dst.Addr())
	kind, code := type4, code4
	p.proto = protoICMP
	if p.v6() {
		kind, code = type6, code6
		p.proto = protoICMPv6
	}
	p.segment = append(binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, rest), quote...)
	return p
}

func icmpVectors(t *table) {
	// What each end may say of the other's packets, over each protocol of the flow.
	for _, e := range []struct {
		name                       string
		type4, code4, type6, code6 byte
		rest                       uint32
	}{
		{"port unreachable", 3, 3, 1, 4, 0},
		{"host unreachable", 3, 1, 1, 3, 0},
		{"network unreachable", 3, 0, 1, 0, 0},
		{"protocol unreachable", 3, 2, 4, 1, 6},
		{"prohibited", 3, 13, 1, 1, 0},
		{"too big", 3, 4, 2, 0, 1280},
		{"too big, MTU zero", 3, 4, 2, 0, 0},
		{"time exceeded", 11, 0, 3, 0, 0},
		{"reassembly time exceeded", 11, 1, 3, 1, 0},
		{"parameter problem", 12, 0, 4, 0, 8},
		{"source quench", 4, 0, 100, 0, 0},
		{"redirect", 5, 1, 127, 0, 0xc0000209},
	} {
		for _, f := range netlab.Families {
			for _, proto := range []byte{protoTCP, protoUDP} {
				make := func(m *maker) []injected {
					return []injected{{data: icmpError(m, e.type4, e.code4, e.type6, e.code6, e.rest, quoteOf(m, 1000)).bytes()}}
				}
				t.add(e.name+" from the backend", f, proto, make, reply)
				t.add(e.name+" from the client", f, proto, make)
			}
		}
	}
	for _, f := range netlab.Families {
		ip := ipv4Len
		if f == v6 {
			ip = ipv6Len
		}
		quoting := func(title string, change func(*maker, []byte) []byte, os ...option) {
			for _, o := range [][]option{{}, {reply}} {
				by := ""
				if len(o) > 0 {
					by = ", from the backend"
				}
				t.add("quoting "+title+by, f, protoUDP, func(m *maker) []injected {
					q := change(m, quoteOf(m, 1000))
					return []injected{{data: icmpError(m, 3, 3, 1, 4, 0, q).bytes()}}
				}, append(slices.Clone(o), os...)...)
			}
		}
		for _, n := range []int{0, 4, 8, 12, ip - 1, ip, ip + 4, ip + 7, ip + 8} {
			quoting(fmt.Sprintf("%d bytes", n), func(_ *maker, q []byte) []byte { return q[:n] })
		}
		quoting("another protocol", func(_ *maker, q []byte) []byte { q[map[netlab.Family]int{v4: 9, v6: 6}[f]] = 47; return q })
		quoting("another version", func(_ *maker, q []byte) []byte { q[0] ^= 0x20; return q })
		quoting("other ports", func(_ *maker, q []byte) []byte { q[ip] ^= 0x55; return q })
		quoting("other addresses", func(_ *maker, q []byte) []byte { q[ip-1] ^= 0x55; return q })
		quoting("a wrong transport checksum", func(_ *maker, q []byte) []byte { q[ip+6] ^= 0x55; return q })
		quoting("no transport checksum", func(_ *maker, q []byte) []byte { q[ip+6], q[ip+7] = 0, 0; return q })
		quoting("an ICMP error", func(m *maker, q []byte) []byte {
			p := icmpError(m, 3, 3, 1, 4, 0, q)
			p.src, p.dst = p.dst, p.src
			return p.bytes()[etherLen:]
		})
		quoting("an echo request", func(m *maker, q []byte) []byte {
			p := icmpError(m, 8, 0, 128, 0, uint32(m.client.Port())<<16|1, nil)
			p.src, p.dst = p.dst, p.src
			return p.bytes()[etherLen:]
		})
		t.add("wrong checksum", f, protoUDP, func(m *maker) []injected {
			p := icmpError(m, 3, 3, 1, 4, 0, quoteOf(m, 1000))
			p.sum = sumWrong
			return []injected{{data: p.bytes()}}
		}, allow("broken_error"), reply)
		t.add("with extensions (RFC 4884)", f, protoUDP, func(m *maker) []injected {
			q := append(quoteOf(m, 128), make([]byte, 128)...)[:128]
			length := uint32(32) << 16 // in words
			if f == v6 {
				length = 16 << 24
			}
			q = append(q, 0x20, 0, 0, 0, 0, 8, 1, 1, 0, 1, 0x11, 0)
			return []injected{{data: icmpError(m, 11, 0, 3, 0, length, q).bytes()}}
		}, reply)
		echo := func(title string, type4, type6 byte, os ...option) {
			t.add(title, f, protoUDP, func(m *maker) []injected {
				return []injected{{data: icmpError(m, type4, 0, type6, 0, uint32(m.client.Port())<<16|1, bytesUpTo(56)).bytes()}}
			}, os...)
		}
		echo("echo request to a ClusterIP", 8, 128)
		echo("echo reply to a ClusterIP", 0, 129)
		echo("echo request from the backend", 8, 128, reply)
		echo("unknown query", 42, 200)
	}
	t.add("quoting options", v4, protoUDP, func(m *maker) []injected {
		q := quoteOf(m, 1000)
		q = append(append(append([]byte{}, q[:20]...), 1, 1, 1, 1), q[20:]...)
		q[0] = 0x46
		return []injected{{data: icmpError(m, 3, 3, 1, 4, 0, q).bytes()}}
	}, reply)
	t.add("quoting a later fragment", v4, protoUDP, func(m *maker) []injected {
		q := quoteOf(m, 1000)
		q[7] = 9
		return []injected{{data: icmpError(m, 3, 3, 1, 4, 0, q).bytes()}}
	}, reply)
	t.add("quoting a header with a wrong checksum", v4, protoUDP, func(m *maker) []injected {
		q := quoteOf(m, 1000)
		q[10] ^= 0xff
		return []injected{{data: icmpError(m, 3, 3, 1, 4, 0, q).bytes()}}
	}, reply)
	t.add("timestamp request to a ClusterIP", v4, protoUDP, func(m *maker) []injected {
		return []injected{{data: icmpError(m, 13, 0, 1, 4, 0, bytesUpTo(12)).bytes()}}
	})
}

// sctp is an INIT, or a DATA chunk of an established association.
func sctp(sport, dport uint16, known, reply bool) []byte {
	s := binary.BigEndian.AppendUint16(nil, sport)
	s = binary.BigEndian.AppendUint16(s, dport)
	chunk := append([]byte{1, 0, 0, 20}, 0, 0, 0, 1, 0, 0, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 1)
	tag := []byte{0, 0, 0, 0}
	if reply {
		chunk[0] = 2 // the answer to INIT
		chunk = append(chunk, 0, 7, 0, 8, 1, 2, 3, 4)
		chunk[3] = byte(len(chunk))
		tag = []byte{0, 0, 0, 1}
	} else if known {
		chunk = append([]byte{0, 3, 0, 24, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, bytesUpTo(8)...)
		tag = []byte{0, 0, 0, 1}
	}
	s = append(append(append(s, tag...), 0, 0, 0, 0), chunk...)
	binary.LittleEndian.PutUint32(s[8:], crc32.Checksum(s, crc32.MakeTable(crc32.Castagnoli)))
	return s
}

func protocolVectors(t *table) {
	wrong := allow("kernel_calls_invalid", "sctp_repaired")
	for _, f := range netlab.Families {
		t.edit("INIT", f, protoSCTP, func(*maker, *packet) {})
		t.edit("answer to INIT", f, protoSCTP, func(*maker, *packet) {}, reply)
		t.edit("wrong checksum", f, protoSCTP, func(_ *maker, p *packet) { p.segment[8] ^= 0xff }, wrong)
		t.edit("checksum zero", f, protoSCTP, func(_ *maker, p *packet) { copy(p.segment[8:12], []byte{0, 0, 0, 0}) }, allow("looks_unfinished"))
		t.edit("wrong checksum of a reply", f, protoSCTP, func(_ *maker, p *packet) { p.segment[8] ^= 0xff }, wrong, reply)
		t.edit("common header only", f, protoSCTP, func(_ *maker, p *packet) { p.segment = p.segment[:12] })
		t.edit("cut inside the common header", f, protoSCTP, func(_ *maker, p *packet) { p.segment = p.segment[:9] })
		t.edit("chunk of length zero", f, protoSCTP, func(_ *maker, p *packet) { p.segment[14], p.segment[15] = 0, 0 })
		for _, p := range []struct {
			name  string
			proto byte
		}{{"GRE", 47}, {"IP in IP", 4}, {"IPv6 in IP", 41}, {"UDP-Lite", 136}, {"ESP", 50}, {"AH", 51}, {"DCCP", 33}, {"IGMP", 2}, {"OSPF", 89}, {"L2TP", 115}, {"number 255", 255}} {
			t.edit(p.name, f, protoUDP, func(_ *maker, q *packet) { q.proto = p.proto; q.sum = sumAsIs })
		}
	}
}

func sizeVectors(t *table) {

	for _, f := range netlab.Families {
		for _, proto := range []byte{protoUDP, protoTCP} {
			for _, n := range []int{1499, 1500, 1501, 1502, 1518, 2034, 2048, 3000, 3497, 3498} {
				for _, df := range []bool{false, true} {
					if f == v6 && df {
						continue
					}
					title := fmt.Sprintf("packet of %d bytes", n)
					if df {
						title += ", not to be fragmented"
					}
					t.edit(title, f, proto, func(m *maker, p *packet) {
						if df {
							p.frag = 0x4000
						}
						grow(p, n)
					}, jumbo)
				}
			}
		}
		for _, n := range []int{46, 47, 64, 65, 576, 1280, 1500} {
			if n < 68 && f == v6 {
				continue
			}
			t.edit(fmt.Sprintf("packet of %d bytes, within every MTU", n), f, protoUDP, func(m *maker, p *packet) { grow(p, n) })
			t.edit(fmt.Sprintf("packet of %d bytes, in a reply", n), f, protoUDP, func(m *maker, p *packet) { grow(p, n) }, reply)
		}
	}
}

// grow gives a packet a size.
func grow(p *packet, n int) {
	n -= p.headers() - etherLen
	if n > len(p.segment) {
		p.segment = append(p.segment, make([]byte, n-len(p.segment))...)
	}
	if n >= 8 {
		p.segment = p.segment[:n]
	}
	if p.proto == protoUDP {
		binary.BigEndian.PutUint16(p.segment[4:], uint16(len(p.segment)))
	}
}

func offloadVectors(t *table) {
	for _, proto := range []byte{protoTCP, protoUDP} {
		t.both("unfinished checksum", proto, func(_ *maker, p *packet) { p.sum = sumPartial })
		t.both("unfinished checksum of a reply", proto, func(_ *maker, p *packet) { p.sum = sumPartial }, reply)
		t.both("unfinished checksum, to the other node", proto, func(_ *maker, p *packet) { p.sum = sumPartial }, far)
		t.both("unfinished checksum from the other node", proto, func(_ *maker, p *packet) { p.sum = sumPartial }, far, reply)
		t.both("unfinished checksum at the end of the TTL", proto, func(_ *maker, p *packet) { p.sum = sumPartial; p.ttl = 1 }, allow("node_answers"))
		t.both("a wrong checksum that looks unfinished", proto, func(m *maker, p *packet) {
			at := checksumAt(proto)
			binary.BigEndian.PutUint16(p.segment[at:], fold(pseudoSum(p.src, p.dst, proto, len(p.segment))))
			p.sum = sumAsIs
		}, allow("looks_unfinished"))
	}
	t.edit("unfinished checksum behind options", v4, protoTCP, func(_ *maker, p *packet) { p.sum, p.options = sumPartial, []byte{1, 1, 1, 1} })
	t.edit("unfinished checksum behind extension headers", v6, protoTCP, func(_ *maker, p *packet) {
		p.sum, p.exts = sumPartial, []extension{{60, []byte{0, 1, 4, 0, 0, 0, 0}}}
	})
	t.edit("unfinished checksum that the kernel has to send on", v4, protoUDP, func(_ *maker, p *packet) {
		p.sum, p.options = sumPartial, []byte{148, 4, 0, 0}
	})
	t.edit("unfinished checksum of a full packet", v4, protoUDP, func(_ *maker, p *packet) { p.sum = sumPartial; grow(p, 1500) })
}

// hairpinVectors: a pod that is its own backend, which sees the node in its place.
func hairpinVectors(t *table) {
	for _, proto := range []byte{protoTCP, protoUDP, protoSCTP} {
		t.both("to itself", proto, func(*maker, *packet) {}, hairpin)
		t.both("from itself", proto, func(*maker, *packet) {}, hairpin, reply)
		if proto == protoSCTP {
			continue
		}
		t.both("unfinished checksum", proto, func(_ *maker, p *packet) { p.sum = sumPartial }, hairpin)
		t.both("unfinished checksum of a reply", proto, func(_ *maker, p *packet) { p.sum = sumPartial }, hairpin, reply)
		for _, f := range netlab.Families {
			for _, o := range [][]option{{hairpin}, {hairpin, reply}} {
				by := "of the client"
				if len(o) > 1 {
					by = "of the backend"
				}
				t.add("port unreachable "+by, f, proto, func(m *maker) []injected {
					return []injected{{data: icmpError(m, 3, 3, 1, 4, 0, quoteOf(m, 1000)).bytes()}}
				}, o...)
				t.add("too big "+by, f, proto, func(m *maker) []injected {
					return []injected{{data: icmpError(m, 3, 4, 2, 0, 1280, quoteOf(m, 1000)).bytes()}}
				}, o...)
				t.add("two fragments "+by, f, proto, func(m *maker) []injected {
					p := m.good()
					p.segment = append(p.segment, bytesUpTo(160)...)
					if proto == protoUDP {
						binary.BigEndian.PutUint16(p.segment[4:], uint16(len(p.segment)))
					}
					fs := cutAt(p, []int{104}, m.id())
					return []injected{fs[1], fs[0]}
				}, o...)
			}
		}
	}
	for _, ttl := range []byte{2, 255} {
		t.both(fmt.Sprintf("TTL %d", ttl), protoUDP, func(_ *maker, p *packet) { p.ttl = ttl }, hairpin)
	}
	t.both("full packet", protoUDP, func(_ *maker, p *packet) { grow(p, 1500) }, hairpin)
	t.both("full packet of a reply", protoUDP, func(_ *maker, p *packet) { grow(p, 1500) }, hairpin, reply)
}
