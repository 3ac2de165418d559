package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/sluice-net/sluice/internal/netlab"
)

// vector is one bad, odd or hostile frame (or a few that belong together), and the flow that it is to meet. Each is played
// twice where that makes a difference: when nobody knows the flow, and when it is established. Then good frames show that
// it has left nothing behind.
type vector struct {
	group, title string
	family       netlab.Family
	proto        byte // of the flow
	reply        bool // the backend sends it, and always on an established flow
	far          bool // the backend is on the other node
	hairpin      bool // the backend is the client
	from         place
	by           place    // who sends it in place of its end; client0 is nobody
	allow        []string // classes that may explain a difference
	generated    bool     // one of a series
	make         func(*maker) []injected
}

func (v *vector) full() string {
	return fmt.Sprintf("%s: %s, %s %s", v.group, v.title, protoName(v.proto), v.family)
}

// maker is what a vector's frames are made of.
type maker struct {
	*vector
	x                         *side
	m                         *mapping
	client, frontend, backend netip.AddrPort
	source                    netip.AddrPort // what the backend sees of the client: the node, if it is a hairpin
	known                     bool           // the flow is established
}

// sender is the place that sends it.
func (m *maker) sender() place {
	if m.reply || m.hairpin {
		return m.m.backend
	}
	return m.from
}

// ends are the addresses of its direction.
func (m *maker) ends() (src, dst netip.AddrPort) {
	if m.reply {
		return m.backend, m.source
	}
	return m.client, m.frontend
}

// good is a packet of the flow without fault: what opens it, or data.
func (m *maker) good() *packet {
	src, dst := m.ends()
	p := m.packet(src.Addr(), dst.Addr())
	data := bytesUpTo(40)
	switch m.proto {
	case protoTCP:
		switch {
		case !m.known:
			p.segment = tcp(src.Port(), dst.Port(), clientSeq, 0, syn, 0xfaf0, []byte{2, 4, 5, 0xb4}, nil)
		case m.reply:
			p.segment = tcp(src.Port(), dst.Port(), backendSeq+1, clientSeq+1, ack|psh, 0xfaf0, nil, data)
		default:
			p.segment = tcp(src.Port(), dst.Port(), clientSeq+1, backendSeq+1, ack|psh, 0xfaf0, nil, data)
		}
	case protoUDP:
		p.segment = udp(src.Port(), dst.Port(), data)
	case protoSCTP:
		p.segment = sctp(src.Port(), dst.Port(), m.known, m.reply)
	}
	return p
}

// The initial sequence numbers of both ends.
const (
	clientSeq  = 0x10000000
	backendSeq = 0x20000000
)

// id is an identification that no other vector has.
func (m *maker) id() uint32 { return uint32(m.client.Port()) }

// packet is an empty packet of the flow's protocol between two addresses.
func (m *maker) packet(src, dst netip.Addr) *packet {
	return &packet{dstMAC: m.x.hostMAC[m.sender()], srcMAC: m.x.mac[m.sender()], src: src, dst: dst,
		ttl: 64, id: uint16(m.id()), proto: m.proto}
}

// bytesUpTo is a payload that shows where it was cut.
func bytesUpTo(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i + 1)
	}
	return b
}

// vectorScript plays a vector.
type vectorScript struct {
	*vector
	m     *maker
	steps []step
}

func newVectorScript(x *side, v *vector, number int) *vectorScript {
	s := &vectorScript{vector: v}
	m := &maker{vector: v, x: x}
	for i := range mappings {
		if c := &mappings[i]; c.proto == v.proto && (c.backend == remote) == v.far {
			m.m = c
			break
		}
	}
	m.client = netip.AddrPortFrom(x.ip[v.from][v.family], uint16(vectorPorts+number))
	m.frontend, m.backend = m.m.frontend(v.family), x.backend(m.m, v.family)
	m.source = m.client
	if v.hairpin {
		m.client = netip.AddrPortFrom(m.backend.Addr(), m.client.Port())
		m.source = netip.AddrPortFrom(netlab.NodeAddr(v.family, 1), m.client.Port())
	}
	s.m = m

	if !v.reply {
		s.bad("unknown flow")
	}
	s.open()
	m.known = true
	s.bad("established flow")
	s.goodStep("good frame of the client afterwards", false)
	s.goodStep("good frame of the backend afterwards", true)
	return s
}

// bad adds the vector itself.
func (s *vectorScript) bad(when string) {
	st := s.step(when)
	st.frames, st.allow = s.vector.make(s.m), s.allow
	if s.by != 0 {
		st.at = s.by
	}
	s.steps = append(s.steps, st)
}

// step is a step of the sender's direction without frames.
func (s *vectorScript) step(what string) step {
	m := s.m
	st := step{what: what, at: m.sender(), hops: m.m.hops()}
	if m.reply {
		st.to, st.goes, st.strays, st.straysFar = endpoints{m.frontend, m.client}, m.from, m.from, m.m.hops()
		if m.hairpin {
			st.goes, st.strays = m.m.backend, nowhere
		}
	} else {
		st.to, st.goes, st.strays, st.straysFar = endpoints{m.source, m.backend}, m.m.backend, outside, 1
	}
	return st
}

// goodStep adds a good frame of one direction. What the vector has done to the kernel's idea of the connection may show
// in it.
func (s *vectorScript) goodStep(what string, reply bool) {
	v := *s.vector
	v.reply = reply
	m := *s.m
	m.vector = &v
	st := (&vectorScript{vector: &v, m: &m}).step(what)
	st.frames = []injected{{data: m.good().bytes()}}
	st.allow = append(slices.Clone(s.allow), "kernel_calls_invalid")
	s.steps = append(s.steps, st)
}

// open adds what establishes the flow.
func (s *vectorScript) open() {
	m := s.m
	s.goodStep("opening", false)
	switch s.proto {
	case protoTCP:
		say := func(what string, reply bool, flags byte, seq, ackn uint32) {
			v := *s.vector
			v.reply = reply
			n := *m
			n.vector = &v
			src, dst := n.ends()
			p := n.packet(src.Addr(), dst.Addr())
			p.segment = tcp(src.Port(), dst.Port(), seq, ackn, flags, 0xfaf0, nil, nil)
			st := (&vectorScript{vector: &v, m: &n}).step(what)
			st.frames = []injected{{data: p.bytes()}}
			st.allow = append(slices.Clone(s.allow), "kernel_calls_invalid")
			s.steps = append(s.steps, st)
		}
		say("answer to the opening", true, syn|ack, backendSeq, clientSeq+1)
		say("end of the opening", false, ack, clientSeq+1, backendSeq+1)
	default:
		s.goodStep("answer to the opening", true)
	}
}

func (s *vectorScript) name() string  { return "vector " + s.full() }
func (s *vectorScript) repro() string { return "" }
func (s *vectorScript) took([]output) {}

func (s *vectorScript) next() (step, bool) {
	if len(s.steps) == 0 {
		return step{}, false
	}
	st := s.steps[0]
	s.steps = s.steps[1:]
	return st, true
}

// table collects the vectors.
type table struct {
	all   []*vector
	group string
}

// option changes a vector of the table.
type option func(*vector)

func allow(classes ...string) option {
	return func(v *vector) { v.allow = append(v.allow, classes...) }
}
func reply(v *vector)       { v.reply = true }
func far(v *vector)         { v.far = true }
func hairpin(v *vector)     { v.hairpin = true }
func jumbo(v *vector)       { v.from = client1 }
func generated(v *vector)   { v.generated = true }
func sentBy(p place) option { return func(v *vector) { v.by = p } }

// add is the plain way in: the frames as they are.
func (t *table) add(title string, f netlab.Family, proto byte, make func(*maker) []injected, os ...option) {
	v := &vector{group: t.group, title: title, family: f, proto: proto, make: make}
	for _, o := range os {
		o(v)
	}
	t.all = append(t.all, v)
}

// edit adds a good packet with something changed.
func (t *table) edit(title string, f netlab.Family, proto byte, change func(*maker, *packet), os ...option) {
	t.add(title, f, proto, func(m *maker) []injected {
		p := m.good()
		change(m, p)
		return []injected{{p.bytes(), p.sum == sumPartial}}
	}, os...)
}

// raw adds the bytes of a good frame with something changed.
func (t *table) raw(title string, f netlab.Family, proto byte, change func([]byte) []byte, os ...option) {
	t.add(title, f, proto, func(m *maker) []injected { return []injected{{data: change(m.good().bytes())}} }, os...)
}

// both adds an edit in both families.
func (t *table) both(title string, proto byte, change func(*maker, *packet), os ...option) {
	for _, f := range netlab.Families {
		t.edit(title, f, proto, change, os...)
	}
}

// allVectors is the whole table, in an order that never changes.
var allVectors = sync.OnceValue(func() []*vector {
	t := &table{}
	for _, g := range []struct {
		name string
		add  func(*table)
	}{
		{"ipv4", ipv4Vectors}, {"ipv4 options", optionVectors}, {"addresses", addressVectors}, {"fragments", fragmentVectors},
		{"tcp", tcpVectors}, {"udp", udpVectors}, {"icmp", icmpVectors}, {"ipv6", ipv6Vectors}, {"ethernet", etherVectors},
		{"other protocols", protocolVectors}, {"size", sizeVectors}, {"offload", offloadVectors}, {"hairpin", hairpinVectors}, {"truncation", truncationVectors},
	} {
		t.group = g.name
		g.add(t)
	}
	return t.all
})

// fix4 makes the IPv4 header checksum right again, as far as the header goes that the packet claims.
func fix4(f []byte) []byte {
	n := max(ipv4Len, int(f[etherLen]&15)*4)
	header := f[etherLen:min(etherLen+n, len(f))]
	if len(header) >= 12 {
		binary.BigEndian.PutUint16(header[10:], 0)
		binary.BigEndian.PutUint16(header[10:], ^fold(add(0, header)))
	}
	return f
}

// set16 is a change of two bytes at an offset of the IPv4 or IPv6 packet, with the header's checksum put right.
func set16(at int, v uint16) func([]byte) []byte {
	return func(f []byte) []byte {
		binary.BigEndian.PutUint16(f[etherLen+at:], v)
		if f[etherLen]>>4 == 4 {
			fix4(f)
		}
		return f
	}
}

// set8 is the same for a byte.
func set8(at int, v byte) func([]byte) []byte {
	return func(f []byte) []byte {
		f[etherLen+at] = v
		if f[12] == 8 {
			fix4(f)
		}
		return f
	}
}

// truncationVectors are generated: each protocol at every length up to its header and a little payload, once with lengths that
// say what was there, once with lengths that agree with what is left.
func truncationVectors(t *table) {
	for _, f := range netlab.Families {
		ip := ipv4Len
		if f == netlab.IPv6 {
			ip = ipv6Len
		}
		for _, k := range []struct {
			name   string
			proto  byte
			header int
		}{{"tcp", protoTCP, 20}, {"udp", protoUDP, 8}, {"icmp", protoUDP, 8}} {
			whole := func(m *maker) []byte {
				if k.name == "icmp" {
					return icmpError(m, 3, 3, 1, 4, 0, quoteOf(m, 28)).bytes()
				}
				return m.good().bytes()
			}
			// A frame that ends with the Ethernet header cannot be sent (net/packet/af_packet.c).
			for n := etherLen + 1; n <= etherLen+ip+k.header+4; n++ {
				t.add(fmt.Sprintf("%s frame cut to %d bytes", k.name, n), f, k.proto, func(m *maker) []injected {
					w := whole(m)
					return []injected{{data: w[:min(n, len(w))]}}
				}, generated)
			}
			for n := ip; n <= ip+k.header+4; n++ {
				t.add(fmt.Sprintf("%s packet cut to %d bytes, lengths agree", k.name, n), f, k.proto, func(m *maker) []injected {
					w := whole(m)
					w = w[:min(etherLen+n, len(w))]
					if f == netlab.IPv4 {
						binary.BigEndian.PutUint16(w[16:], uint16(len(w)-etherLen))
						fix4(w)
					} else {
						binary.BigEndian.PutUint16(w[18:], uint16(len(w)-etherLen-ipv6Len))
					}
					return []injected{{data: w}}
				}, generated, allow("kernel_calls_invalid"))
			}
		}
	}
}
