package stand

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"

	"github.com/sluice-net/sluice/internal/netlab"
)

// A peer that speaks as much SCTP (RFC 9260) as one association with one message each way needs, over raw sockets, so that it
// works on kernels that have none. Packets that are lost are not sent again: the lab loses none.

// Chunk types.
const (
	chunkData       = 0
	chunkInit       = 1
	chunkInitAck    = 2
	chunkSack       = 3
	chunkAbort      = 6
	chunkCookieEcho = 10
	chunkCookieAck  = 11
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type sctpPacket struct {
	from, to uint16
	tag      uint32
	chunks   []sctpChunk
}

type sctpChunk struct {
	kind, flags byte
	value       []byte
}

func (p *sctpPacket) marshal() []byte {
	b := binary.BigEndian.AppendUint16(nil, p.from)
	b = binary.BigEndian.AppendUint16(b, p.to)
	b = binary.BigEndian.AppendUint32(b, p.tag)
	b = append(b, 0, 0, 0, 0)
	for _, c := range p.chunks {
		b = append(b, c.kind, c.flags)
		b = binary.BigEndian.AppendUint16(b, uint16(4+len(c.value)))
		b = append(b, c.value...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

// parseSCTP refuses what a stack would: wrong checksums above all.
func parseSCTP(b []byte) (*sctpPacket, error) {
	if len(b) < 16 {
		return nil, errors.New("too short")
	}
	b = bytes.Clone(b)
	sum := binary.LittleEndian.Uint32(b[8:])
	clear(b[8:12])
	if got := crc32.Checksum(b, castagnoli); got != sum {
		return nil, fmt.Errorf("checksum %#x, want %#x", sum, got)
	}
	p := &sctpPacket{from: binary.BigEndian.Uint16(b), to: binary.BigEndian.Uint16(b[2:]), tag: binary.BigEndian.Uint32(b[4:])}
	for b = b[12:]; len(b) >= 4; {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if n < 4 || n > len(b) {
			return nil, fmt.Errorf("a chunk of %d bytes in %d", n, len(b))
		}
		p.chunks = append(p.chunks, sctpChunk{b[0], b[1], b[4:n]})
		b = b[min(len(b), (n+3)&^3):]
	}
	return p, nil
}

// find returns the first chunk of a kind that has at least size bytes.
func (p *sctpPacket) find(kind byte, size int) (sctpChunk, bool) {
	for _, c := range p.chunks {
		if c.kind == kind && len(c.value) >= size {
			return c, true
		}
	}
	return sctpChunk{}, false
}

// initValue is the fixed part of INIT and INIT ACK: tag, window, streams out and in, first TSN.
func initValue(tag, tsn uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, tag)
	b = binary.BigEndian.AppendUint32(b, 64<<10)
	b = binary.BigEndian.AppendUint16(b, 1)
	b = binary.BigEndian.AppendUint16(b, 1)
	return binary.BigEndian.AppendUint32(b, tsn)
}

const initSize = 16

// dataChunk is a whole message on stream 0.
func dataChunk(tsn uint32, text []byte) sctpChunk {
	b := binary.BigEndian.AppendUint32(nil, tsn)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	return sctpChunk{chunkData, 3, append(b, text...)}
}

const dataSize = 12

func sackChunk(tsn uint32) sctpChunk {
	b := binary.BigEndian.AppendUint32(nil, tsn)
	b = binary.BigEndian.AppendUint32(b, 64<<10)
	return sctpChunk{chunkSack, 0, append(b, 0, 0, 0, 0)}
}

func listenSCTP(n *netlab.Namespace, local netip.AddrPort) (c *net.IPConn, err error) {
	err = n.Do(func() error {
		c, err = net.ListenIP(ipNetwork(local.Addr()), &net.IPAddr{IP: local.Addr().AsSlice()})
		return err
	})
	return c, err
}

func ipNetwork(a netip.Addr) string {
	if a.Is4() {
		return "ip4:132"
	}
	return "ip6:132"
}

// sctp serves associations on a port. The cookie holds both tags and the client's next TSN, so nothing need be remembered.
func (s *Server) sctp(c *net.IPConn, port uint16) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromIP(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		p, err := parseSCTP(buf[:n])
		if err != nil || p.to != port {
			continue
		}
		reply := sctpPacket{from: port, to: p.from}
		const tsn = 1
		if i, ok := p.find(chunkInit, initSize); ok {
			tag := 1 + rand.Uint32N(1<<31)
			reply.tag = binary.BigEndian.Uint32(i.value)
			cookie := binary.BigEndian.AppendUint32(nil, tag)
			cookie = append(cookie, i.value[:4]...)
			value := initValue(tag, tsn)
			value = binary.BigEndian.AppendUint16(value, 7) // State Cookie
			value = binary.BigEndian.AppendUint16(value, uint16(4+len(cookie)))
			reply.chunks = []sctpChunk{{chunkInitAck, 0, append(value, cookie...)}}
		} else if cookie, ok := p.find(chunkCookieEcho, 8); ok && p.tag == binary.BigEndian.Uint32(cookie.value) {
			s.asked.Add(1)
			reply.tag = binary.BigEndian.Uint32(cookie.value[4:])
			reply.chunks = []sctpChunk{{chunkCookieAck, 0, nil}}
			if d, ok := p.find(chunkData, dataSize); ok {
				addr, _ := netip.AddrFromSlice(from.IP)
				text := s.line(netip.AddrPortFrom(addr.Unmap(), p.from).String())
				reply.chunks = append(reply.chunks, sackChunk(binary.BigEndian.Uint32(d.value)), dataChunk(tsn, []byte(text)))
			}
		} else {
			continue
		}
		c.WriteToIP(reply.marshal(), from)
	}
}

func askSCTP(ctx context.Context, q Question) ([]byte, error) {
	var conn *net.IPConn
	err := q.From.Do(func() (err error) {
		conn, err = net.DialIP(ipNetwork(q.To.Addr()), nil, &net.IPAddr{IP: q.To.Addr().AsSlice()})
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer wakeWithContext(ctx, conn)()
	var (
		port = q.Local.Port()
		mine = 1 + rand.Uint32N(1<<31)
		tsn  = uint32(1)
		buf  = make([]byte, 64<<10)
	)
	if port == 0 {
		port = uint16(32768 + rand.IntN(28000))
	}
	send := func(tag uint32, chunks ...sctpChunk) error {
		p := sctpPacket{from: port, to: q.To.Port(), tag: tag, chunks: chunks}
		_, err := conn.Write(p.marshal())
		return err
	}
	receive := func() (*sctpPacket, error) {
		for {
			n, _, err := conn.ReadFromIP(buf) // unlike Read it takes the IPv4 header off
			if err != nil {
				return nil, err
			}
			// Other sockets of the namespace see the packet too, each its own.
			if n < 4 || binary.BigEndian.Uint16(buf) != q.To.Port() || binary.BigEndian.Uint16(buf[2:]) != port {
				continue
			}
			p, err := parseSCTP(buf[:n])
			if err != nil {
				return nil, fmt.Errorf("what came is no SCTP: %w", err)
			}
			if p.tag != mine {
				return nil, fmt.Errorf("verification tag %#x, want %#x", p.tag, mine)
			}
			return p, nil
		}
	}

	if err := send(0, sctpChunk{chunkInit, 0, initValue(mine, tsn)}); err != nil {
		return nil, err
	}
	p, err := receive()
	if err != nil {
		return nil, err
	}
	ack, ok := p.find(chunkInitAck, initSize+4)
	if !ok {
		return nil, errors.New("no INIT ACK with a cookie came")
	}
	theirs := binary.BigEndian.Uint32(ack.value)
	cookie := ack.value[initSize+4:]
	if err := send(theirs, sctpChunk{chunkCookieEcho, 0, bytes.Clone(cookie)}, dataChunk(tsn, []byte("who"))); err != nil {
		return nil, err
	}
	if p, err = receive(); err != nil {
		return nil, err
	}
	data, ok := p.find(chunkData, dataSize)
	if !ok {
		return nil, errors.New("no DATA came")
	}
	text := bytes.Clone(data.value[dataSize:])
	return text, send(theirs, sackChunk(binary.BigEndian.Uint32(data.value)), sctpChunk{chunkAbort, 0, nil})
}
