package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/sluice-net/sluice/internal/netlab"
)

// injected is a frame to be sent, and whether as a local socket would send it, its checksum for the device to finish.
type injected struct {
	data    []byte
	partial bool
}

// step is what one flow sends at once: mostly one frame, or the fragments of one datagram.
type step struct {
	what   string
	at     place
	frames []injected
	valid  bool // well formed, and such as a kernel's NAT must translate

	// What a right translation makes of it, and where it then arrives; zero if it is not to be translated.
	to   endpoints
	hops byte
	goes place
	// Where it arrives untranslated, after this many hops.
	strays    place
	straysFar byte

	allow []string // classes that may explain a difference
}

// script is a source of steps, one flow's.
type script interface {
	name() string
	repro() string // flags that play it again
	// next is the next step, false at the end.
	next() (step, bool)
	// took tells what came out on the kernel's side.
	took([]output)
}

// conversation is a random flow. All of it is decided by the seed and its number, so that it can be played alone.
type conversation struct {
	seed, number uint64
	family       netlab.Family
	m            *mapping
	x            *side // addresses only
	from         place
	client       netip.AddrPort
	frontend     netip.AddrPort
	backend      netip.AddrPort

	moves []move
	at    int
	skip  func(int) bool // steps that are not sent; nil: none

	seen *parsed // last frame that the backend got

	seq, acked [2]uint32 // of each end: next to send, highest that the other end has acknowledged
	scale      [2]byte
	scaled     bool
	last       [2]struct { // for retransmission
		seq     uint32
		payload []byte
	}
}

// move is a kind of step, and which end makes it.
type move struct {
	kind string
	end  int // 0 the client, 1 the backend
}

const (
	theClient  = 0
	theBackend = 1
)

// flowPorts bounds the client ports of conversations; beyond are those of vectors and markers.
const (
	flowPorts   = 61000
	vectorPorts = 61001
	markerPort  = 65001
)

// newConversation decides all that is decided before the first step.
func newConversation(x *side, seed, number uint64) *conversation {
	r := rand.New(rand.NewPCG(seed, number))
	c := &conversation{seed: seed, number: number, x: x}
	c.family = netlab.Families[r.IntN(2)]
	c.from = place(r.IntN(2))
	c.m = &mappings[r.IntN(len(mappings))]
	// Numbers that are close have different ports, so that those of one run share none.
	port := uint16(1 + number*40507%flowPorts)
	c.client = netip.AddrPortFrom(x.ip[c.from][c.family], port)
	c.frontend, c.backend = c.m.frontend(c.family), x.backend(c.m, c.family)
	switch c.m.proto {
	case protoTCP:
		c.tcpMoves(r)
	case protoSCTP:
		c.sctpMoves(r)
	default:
		c.udpMoves(r)
	}
	return c
}

func (c *conversation) name() string {
	return fmt.Sprintf("flow %d (%s %s %s -> %s -> %s)", c.number, c.family, protoName(c.m.proto), c.client, c.frontend, c.backend)
}

func (c *conversation) repro() string { return fmt.Sprintf("-flow %d", c.number) }

func protoName(p byte) string {
	switch p {
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	case protoSCTP:
		return "sctp"
	}
	return fmt.Sprintf("protocol %d", p)
}

func (c *conversation) udpMoves(r *rand.Rand) {
	c.moves = append(c.moves, move{"data", theClient})
	for range 3 + r.IntN(14) {
		kind := "data"
		switch n := r.IntN(100); {
		case n < 3:
			kind = "bad checksum"
		case n < 13:
			kind = "fragments"
		case n < 18:
			kind = "icmp error"
		}
		c.moves = append(c.moves, move{kind, r.IntN(2)})
	}
}

func (c *conversation) sctpMoves(r *rand.Rand) {
	c.moves = append(c.moves, move{"init", theClient}, move{"init ack", theBackend}, move{"cookie echo", theClient}, move{"cookie ack", theBackend})
	for range 2 + r.IntN(8) {
		kind := "data"
		switch n := r.IntN(100); {
		case n < 15:
			kind = "bad checksum"
		case n < 30:
			kind = "heartbeat"
		}
		c.moves = append(c.moves, move{kind, r.IntN(2)})
	}
}

// sctpPacket is the packet of a move: one chunk, or two of data. The tag is the other end's.
func (c *conversation) sctpPacket(m move, sport, dport uint16, room int, r *rand.Rand) []byte {
	tag := [2]uint32{uint32(c.number)*2 + 1, uint32(c.number)*2 + 2}
	to := tag[1-m.end]
	chunk := func(kind byte, body []byte) []byte {
		b := binary.BigEndian.AppendUint16([]byte{kind, 0}, uint16(4+len(body)))
		b = append(b, body...)
		return append(b, make([]byte, -len(b)&3)...)
	}
	opening := func(body ...byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, tag[m.end]), append([]byte{0, 0, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 1}, body...)...)
	}
	room -= 12
	var chunks []byte
	switch m.kind {
	case "init":
		to = 0
		chunks = chunk(1, opening())
	case "init ack":
		chunks = chunk(2, opening(0, 7, 0, 8, 1, 2, 3, 4))
	case "cookie echo":
		chunks = chunk(10, []byte{1, 2, 3, 4})
	case "cookie ack":
		chunks = chunk(11, nil)
	case "heartbeat":
		chunks = chunk(4, append([]byte{0, 1, 0, 12}, randomBytes(r, 8)...))
	default:
		for range 1 + r.IntN(2) {
			data := randomBytes(r, 1+randomSize(r, min(1400, room/2-32)))
			chunks = append(chunks, chunk(0, append(make([]byte, 12), data...))...)
		}
	}
	s := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, sport), dport)
	s = append(binary.BigEndian.AppendUint32(s, to), 0, 0, 0, 0)
	s = append(s, chunks...)
	copy(s[8:], sctpSum(s))
	if m.kind == "bad checksum" {
		s[8+r.IntN(4)] ^= byte(1 + r.IntN(255))
	}
	return s
}

func (c *conversation) tcpMoves(r *rand.Rand) {
	for again := true; again; again = r.IntN(8) == 0 {
		first := len(c.moves)
		if first > 0 || r.IntN(20) > 0 { // else found in mid-stream
			c.moves = append(c.moves, move{"syn", theClient})
			if r.IntN(8) == 0 {
				c.moves = append(c.moves, move{"syn again", theClient})
			}
			c.moves = append(c.moves, move{"syn", theBackend}, move{"ack", theClient})
		} else {
			// Begun by the backend it would be a connection of its own, and no Service's.
			c.moves = append(c.moves, move{"data", theClient})
		}
		for range 2 + r.IntN(12) {
			kind := "data"
			switch n := r.IntN(100); {
			case n < 15:
				kind = "ack"
			case n < 22:
				kind = "again"
			case n < 26:
				kind = "probe"
			case n < 30:
				kind = "urgent"
			case n < 33:
				kind = "bad checksum"
			case n < 36:
				kind = "out of window"
			}
			c.moves = append(c.moves, move{kind, r.IntN(2)})
		}
		one := r.IntN(2)
		switch r.IntN(4) {
		case 0: // goes on for ever
			return
		case 1:
			c.moves = append(c.moves, move{"rst", one})
		default:
			c.moves = append(c.moves, move{"fin", one}, move{"ack", 1 - one})
			if r.IntN(2) == 0 {
				c.moves = append(c.moves, move{"data", 1 - one})
			}
			c.moves = append(c.moves, move{"fin", 1 - one}, move{"ack", one})
			if r.IntN(3) == 0 {
				c.moves = append(c.moves, move{"again", 1 - one})
			}
		}
	}
}

// took remembers what the backend got: its answers are to that.
func (c *conversation) took(outs []output) {
	for _, o := range outs {
		if p, ok := parse(o.data); ok && o.at == c.m.backend && p.ports {
			c.seen = &p
		}
	}
}

func (c *conversation) next() (step, bool) {
	for c.at < len(c.moves) {
		i := c.at
		c.at++
		s := c.play(c.moves[i], rand.New(rand.NewPCG(c.seed^0x9e3779b97f4a7c15, c.number<<16|uint64(i))))
		s.what = fmt.Sprintf("step %d: %s", i, s.what)
		if c.skip == nil || !c.skip(i) {
			return s, true
		}
	}
	return step{}, false
}

// play makes a step of a move.
func (c *conversation) play(m move, r *rand.Rand) step {
	end := m.end
	s := step{at: c.from, valid: true, hops: c.m.hops()}
	src, dst := c.client, c.frontend
	if end == theClient {
		s.to, s.goes = endpoints{c.client, c.backend}, c.m.backend
		s.strays, s.straysFar = outside, 1
	} else {
		src, dst = c.backend, c.client
		if c.seen != nil { // the answer to what came, whatever it was made into
			src, dst = netip.AddrPortFrom(c.seen.dst, c.seen.dport), netip.AddrPortFrom(c.seen.src, c.seen.sport)
		}
		s.at = c.m.backend
		s.to, s.goes = endpoints{c.frontend, c.client}, c.from
		s.strays, s.straysFar = c.from, c.m.hops()
	}
	p := c.dress(s.at, src.Addr(), dst.Addr(), r)
	s.what = [2]string{"client ", "backend "}[end] + m.kind
	if m.kind == "bad checksum" || m.kind == "out of window" {
		s.allow = append(s.allow, "kernel_calls_invalid")
	}
	room := 1500 - (p.headers() - etherLen)
	switch c.m.proto {
	case protoTCP:
		c.tcpSegment(m, p, src.Port(), dst.Port(), room, r)
		if end == theClient && (m.kind == "fin" || m.kind == "rst") || end == theBackend {
			s.allow = append(s.allow, "kernel_calls_invalid")
		}
	case protoSCTP:
		p.segment, p.sum = c.sctpPacket(m, src.Port(), dst.Port(), room, r), sumAsIs
		s.allow = append(s.allow, "sctp_repaired")
	case protoUDP:
		if m.kind == "fragments" {
			room = 8 + 200 + r.IntN(6000)
			if r.IntN(10) == 0 {
				room = 50000
			}
		}
		p.segment = udp(src.Port(), dst.Port(), randomBytes(r, randomSize(r, room-8)))
		if !p.v6() && r.IntN(6) == 0 {
			p.sum = sumZero
		}
	}
	if m.kind == "bad checksum" && p.sum != sumAsIs {
		p.sum = sumWrong
	} else if p.sum == sumComplete && r.IntN(2) == 0 {
		p.sum = sumPartial
	}
	switch m.kind {
	case "fragments":
		p.sum = sumComplete
		s.frames = fragments(p, uint32(c.client.Port()), r)
		return s
	case "icmp error":
		p.sum = sumComplete
		c.icmpError(p, end, r)
	}
	frame := p.bytes()
	partial := p.sum == sumPartial
	if free := 1500 + etherLen - len(frame); !partial && free > 0 && r.IntN(5) == 0 {
		frame = append(frame, randomBytes(r, 1+r.IntN(min(free, 46)))...)
		s.what += ", padded"
	}
	s.what += fmt.Sprintf(", checksum %s", p.sum)
	s.frames = []injected{{frame, partial}}
	return s
}

// icmpError makes p an error about a packet that the end has got: of the other end's, as translation has made it.
func (c *conversation) icmpError(p *packet, end int, r *rand.Rand) {
	src, dst := c.client, c.backend
	if end == theClient {
		src, dst = c.frontend, c.client
	}
	q := packet{src: src.Addr(), dst: dst.Addr(), ttl: byte(1 + r.IntN(255)), tos: byte(r.Uint32()), id: uint16(r.Uint32()), proto: c.m.proto,
		segment: udp(src.Port(), dst.Port(), randomBytes(r, r.IntN(400)))}
	quote := q.bytes()[2:] // without addresses there is but the EtherType
	least := q.headers() - etherLen + 8
	quote = quote[:least+r.IntN(len(quote)-least+1)]
	kind, rest := [][2]byte{{3, 3}, {3, 1}, {3, 13}, {3, 4}, {11, 0}, {12, 0}}[r.IntN(6)], r.Uint32()&0xffff
	p.proto = protoICMP
	if p.v6() {
		kind = [][2]byte{{1, 4}, {1, 3}, {1, 1}, {2, 0}, {3, 0}, {4, 0}}[r.IntN(6)]
		p.proto = protoICMPv6
	} else if kind != [2]byte{3, 4} {
		rest = 0 // else it would be the length of the quote (RFC 4884)
	}
	if p.tos == internetControl {
		p.tos = 0
	}
	p.segment = append(binary.BigEndian.AppendUint32([]byte{kind[0], kind[1], 0, 0}, rest), quote...)
}

// tcpSegment is the segment of a move, and what it does to the state of both ends.
func (c *conversation) tcpSegment(m move, p *packet, sport, dport uint16, room int, r *rand.Rand) {
	e, o := m.end, 1-m.end
	window := uint16(0x8000 + r.IntN(0x8000))
	flags := byte(ack)
	var options []byte
	seq, acks := c.seq[e], c.seq[o]
	var payload []byte
	data := func(most int) { payload = randomBytes(r, max(1, randomSize(r, min(most, room-20-len(options))))) }
	if m.kind != "syn" && m.kind != "syn again" {
		options = segmentOptions(r)
	}
	switch m.kind {
	case "syn":
		flags = syn
		if e == theBackend {
			flags |= ack
		} else {
			c.scaled = true
			acks = 0
			c.seq[o] = r.Uint32() // the answer's
			c.seq[e] = r.Uint32()
			seq = c.seq[e]
			c.acked[e], c.acked[o] = seq+1, c.seq[o]+1
		}
		if r.IntN(4) == 0 {
			flags |= 0xc0 // ECN is asked for, or granted
		}
		options, c.scale[e] = synOptions(r)
		c.scaled = c.scaled && c.scale[e] < 0xff
		c.seq[e]++
		c.last[e].seq, c.last[e].payload = seq, nil
	case "syn again":
		flags = syn
		seq, acks = c.last[e].seq, 0
		options, c.scale[e] = synOptions(r)
		c.scaled = c.scale[e] < 0xff
	case "fin":
		flags |= fin
		c.seq[e]++
	case "rst":
		flags = rst
		if r.IntN(2) == 0 {
			flags |= ack
		} else {
			acks = 0
		}
	case "ack":
	case "again":
		if c.last[e].payload != nil {
			seq, payload = c.last[e].seq, c.last[e].payload
			payload = payload[:min(len(payload), room-20-len(options))]
		}
	case "probe":
		seq--
	case "out of window":
		seq += 0x30000000 + r.Uint32()&0x0fffffff
		data(1400)
	default:
		// What the other end has not acknowledged stays well within its window.
		if c.seq[e]-c.acked[e] > 16000 {
			break
		}
		data(1460)
		if r.IntN(3) == 0 {
			flags |= psh
		}
		if m.kind == "bad checksum" {
			break
		}
		c.last[e].seq, c.last[e].payload = seq, payload
		c.seq[e] += uint32(len(payload))
	}
	if m.kind != "out of window" && flags&ack != 0 && m.kind != "bad checksum" {
		c.acked[o] = acks
	}
	if m.kind == "urgent" {
		flags |= urg
	}
	p.proto = protoTCP
	p.segment = tcp(sport, dport, seq, acks, flags, window, options, payload)
	if m.kind == "urgent" {
		p.segment[19] = byte(r.IntN(256))
	}
	if flags&syn == 0 && r.IntN(10) == 0 {
		p.segment[13] |= byte(r.IntN(4)) << 6 // CWR, ECE
		p.segment[12] |= byte(r.IntN(16))     // reserved bits and accurate ECN
	}
}

// synOptions are those of an opening segment, and the window scale among them, 0xff if there is none.
func synOptions(r *rand.Rand) (b []byte, scale byte) {
	scale = 0xff
	if r.IntN(8) > 0 {
		b = append(b, 2, 4, 0x05, 0xb4)
	}
	if r.IntN(3) > 0 {
		b = append(b, 4, 2)
	}
	if r.IntN(2) > 0 {
		b = append(append(b, 8, 10), randomBytes(r, 8)...)
	}
	if r.IntN(3) > 0 {
		scale = byte(r.IntN(9))
		b = append(b, 3, 3, scale)
	}
	if r.IntN(6) == 0 {
		b = append(append(b, 34, 10), randomBytes(r, 8)...) // a fast open cookie
	}
	for len(b)%4 != 0 {
		b = append(b, 1)
	}
	return b, scale
}

// segmentOptions are those of any other.
func segmentOptions(r *rand.Rand) (b []byte) {
	switch r.IntN(6) {
	case 0, 1:
		b = append(append(b, 1, 1, 8, 10), randomBytes(r, 8)...)
	case 2:
		b = append(append(b, 253, 6), randomBytes(r, 4)...) // an experiment
	case 3:
		b = append(append(b, 19, 18), randomBytes(r, 16)...) // a signature: would not survive a NAT, but passes
	case 4:
		b = append(b, 0) // end, and what follows it
		b = append(b, randomBytes(r, 3)...)
	}
	for len(b)%4 != 0 {
		b = append(b, 1)
	}
	return b
}

// dress is a packet with random headers.
func (c *conversation) dress(at place, src, dst netip.Addr, r *rand.Rand) *packet {
	p := &packet{dstMAC: c.x.hostMAC[at], srcMAC: c.x.mac[at], src: src, dst: dst, proto: c.m.proto}
	p.tos = byte(r.IntN(256))
	p.ttl = byte(2 + r.IntN(254))
	if r.IntN(10) == 0 {
		p.ttl = 2
	}
	if p.ttl <= c.m.hops() { // dying on the way is the vectors' part
		p.ttl = c.m.hops() + 1
	}
	if src.Is6() {
		p.label = r.Uint32() & 0xfffff
		p.exts = randomExtensions(r)
		return p
	}
	p.id = uint16(r.Uint32())
	p.frag = uint16(r.IntN(2)) << 14 // do not fragment
	if r.IntN(50) == 0 {
		p.frag |= 1 << 15 // the reserved bit
	}
	p.options = randomOptions(r)
	return p
}

// randomOptions are IPv4 options which a router hands on as they are.
func randomOptions(r *rand.Rand) (b []byte) {
	if r.IntN(5) > 0 {
		return nil
	}
	for range 1 + r.IntN(3) {
		switch r.IntN(4) {
		case 0:
			b = append(b, 1)
		case 1:
			b = append(append(b, 130, 11), randomBytes(r, 9)...) // security
		case 2:
			b = append(append(b, 136, 4), randomBytes(r, 2)...) // stream
		case 3:
			n := 2 + r.IntN(6)
			b = append(append(b, byte(0x1e|r.IntN(2)<<7), byte(n)), randomBytes(r, n-2)...) // an experiment
		}
	}
	b = b[:min(len(b), 40)]
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// randomExtensions are IPv6 extension headers which a router hands on as they are.
func randomExtensions(r *rand.Rand) (es []extension) {
	if r.IntN(4) > 0 {
		return nil
	}
	if r.IntN(2) == 0 {
		es = append(es, extension{0, options6(r, true)})
	}
	for range r.IntN(3) {
		switch r.IntN(2) {
		case 0:
			es = append(es, extension{60, options6(r, false)})
		case 1: // a routing header at its end
			b := append([]byte{2, []byte{0, 2, 4, 253}[r.IntN(4)], 0}, make([]byte, 20)...)
			es = append(es, extension{43, b})
		}
	}
	return es
}

// options6 is the body of a hop-by-hop or destination options header.
func options6(r *rand.Rand, hopByHop bool) []byte {
	b := []byte{0}
	for range r.IntN(3) {
		n := r.IntN(8)
		kind := byte(0x1e) // skip it if you do not know it
		if !hopByHop {
			kind |= byte(r.IntN(4)) << 6 // only the destination asks what else to do
		}
		b = append(append(b, kind, byte(n)), randomBytes(r, n)...)
	}
	switch pad := (8 - (len(b)+1)%8) % 8; pad {
	case 0:
	case 1:
		b = append(b, 0)
	default:
		b = append(append(b, 1, byte(pad-2)), make([]byte, pad-2)...)
	}
	b[0] = byte((len(b)+1)/8 - 1)
	return b
}

// randomSize is a size of a payload: often small, often as large as it gets.
func randomSize(r *rand.Rand, most int) int {
	switch r.IntN(8) {
	case 0:
		return 0
	case 1, 2:
		return r.IntN(min(most, 64) + 1)
	case 3:
		return most
	case 4:
		return most - r.IntN(min(most, 4)+1)
	}
	return r.IntN(most + 1)
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// fragments are those of a datagram, in any order.
func fragments(p *packet, id uint32, r *rand.Rand) (fs []injected) {
	whole := p.clone()
	whole.frag = 0 // who joins them forgets the reserved bit
	whole.options, whole.exts = nil, nil
	segment := slices.Clone(p.segment)
	p.seal(segment)
	size := max(64+r.IntN(1380), len(segment)/40+8) &^ 7 // more pieces than 64 are nobody's
	for at := 0; at < len(segment); at += size {
		f := whole.clone()
		f.sum = sumAsIs
		more := uint16(0)
		if at+size < len(segment) {
			more = 1
		}
		f.segment = segment[at:min(at+size, len(segment))]
		if f.v6() {
			offset := uint16(at) | more
			f.exts = []extension{{44, []byte{0, byte(offset >> 8), byte(offset), byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}}}
		} else {
			f.id, f.frag = uint16(id), more<<13|uint16(at/8)
		}
		fs = append(fs, injected{data: f.bytes()})
	}
	r.Shuffle(len(fs), func(i, j int) { fs[i], fs[j] = fs[j], fs[i] })
	return fs
}
