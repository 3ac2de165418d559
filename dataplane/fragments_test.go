package dataplane

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/internal/netlab"
	"github.com/sluice-net/sluice/nat"
)

// datagramFrames is a UDP datagram of a client's flow, cut into fragments of at
// most size bytes of data, in order.
func datagramFrames(t *testing.T, flow, id int, payload []byte, size int) [][]byte {
	t.Helper()
	whole := udpFromTo(t, flowClient(flow), rigVIP)
	ip := bytes.Clone(whole[:34])
	// One datagram over payload, its checksum in full.
	udp := make([]byte, 8+len(payload))
	copy(udp, whole[34:38])
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	copy(udp[8:], payload)
	binary.BigEndian.PutUint16(udp[6:], udpSum(ip[26:34], udp))
	var frames [][]byte
	for at := 0; at < len(udp); at += size {
		data := udp[at:min(at+size, len(udp))]
		f := append(bytes.Clone(ip), data...)
		binary.BigEndian.PutUint16(f[16:], uint16(20+len(data)))
		binary.BigEndian.PutUint16(f[18:], uint16(id))
		bits := uint16(at / 8)
		if at+size < len(udp) {
			bits |= 0x2000
		}
		binary.BigEndian.PutUint16(f[20:], bits)
		f[24], f[25] = 0, 0
		binary.BigEndian.PutUint16(f[24:], ^slowSum(f[14:34], 0))
		frames = append(frames, f)
	}
	return frames
}

// slowSum is the Internet checksum's sum, the plain way.
func slowSum(b []byte, sum uint32) uint16 {
	for i, c := range b {
		if i%2 == 0 {
			sum += uint32(c) << 8
		} else {
			sum += uint32(c)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// udpSum is the checksum of a datagram between two addresses.
func udpSum(addresses, udp []byte) uint16 {
	pseudo := append(bytes.Clone(addresses), 0, 17, byte(len(udp)>>8), byte(len(udp)))
	return ^slowSum(udp, uint32(slowSum(pseudo, 0)))
}

// join puts a datagram together from the fragments that were sent, and fails if a
// byte is missing or doubled.
func join(t *testing.T, frames [][]byte) (src, dst netip.AddrPort, payload []byte) {
	t.Helper()
	slices.SortFunc(frames, func(a, b []byte) int {
		return int(binary.BigEndian.Uint16(a[20:])&0x1fff) - int(binary.BigEndian.Uint16(b[20:])&0x1fff)
	})
	var udp []byte
	for i, f := range frames {
		if slowSum(f[14:34], 0) != 0xffff {
			t.Errorf("fragment %d: bad IPv4 checksum", i)
		}
		if at := int(binary.BigEndian.Uint16(f[20:])&0x1fff) * 8; at != len(udp) {
			t.Fatalf("fragment %d is for byte %d, want %d", i, at, len(udp))
		}
		if f[22] != 63 {
			t.Errorf("fragment %d: TTL %d, want 63", i, f[22])
		}
		udp = append(udp, f[34:]...)
	}
	f := frames[0]
	sum := binary.BigEndian.Uint16(udp[6:])
	udp[6], udp[7] = 0, 0
	if want := udpSum(f[26:34], udp); sum != want {
		t.Errorf("UDP checksum %#x, want %#x", sum, want)
	}
	at := func(b []byte, port []byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), binary.BigEndian.Uint16(port))
	}
	return at(f[26:30], udp), at(f[30:34], udp[2:]), udp[8:]
}

// run puts frames through the loop in batches and gives what left by the
// backend's port. Frames are in the umem until then, each in a place of its own.
func (r *rig) run(frames [][]byte) (out [][]byte) {
	for i := 0; i < len(frames); i += 16 {
		batch := frames[i:min(i+16, len(frames))]
		b := &r.b
		b.n = len(batch)
		for j, f := range batch {
			addr, ok := r.cache.Get()
			if !ok {
				panic("no free frame")
			}
			addr = r.d.umem.Payload(addr)
			b.descs[j].Addr, b.descs[j].Len = addr, uint32(len(f))
			copy(r.d.umem.Frame(addr, uint32(len(f))), f)
		}
		r.process()
		out = append(out, r.collect()...)
	}
	return out
}

// collect copies what is in the backend's outbox and gives all sent frames back.
func (r *rig) collect() (out [][]byte) {
	for _, p := range r.touched {
		o := &p.out[r.id]
		for _, d := range o.descs[:o.n] {
			if p == r.backend {
				out = append(out, bytes.Clone(r.d.umem.Frame(d.Addr, d.Len)))
			}
			r.cache.Put(d.Addr)
		}
	}
	r.clear()
	return out
}

func TestFragmentsInAnyOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	shuffled := func(f [][]byte) { rng.Shuffle(len(f), func(i, j int) { f[i], f[j] = f[j], f[i] }) }
	for _, c := range []struct {
		name  string
		bytes int
		order func([][]byte)
	}{
		{"two in order", 2000, func([][]byte) {}},
		{"two reversed", 2000, slices.Reverse[[][]byte]},
		{"64 KiB in order", 65507, func([][]byte) {}},
		{"64 KiB reversed", 65507, slices.Reverse[[][]byte]},
		{"64 KiB shuffled", 65507, shuffled},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 64)
			for id := range 20 {
				payload := make([]byte, c.bytes)
				for i := range payload {
					payload[i] = byte(rng.Uint32())
				}
				frames := datagramFrames(t, id%3, id, payload, 1480)
				c.order(frames)
				src, dst, got := join(t, r.run(frames))
				if src != flowClient(id%3) || dst != netip.AddrPortFrom(rigBackend, 8080) || !bytes.Equal(got, payload) {
					t.Fatalf("datagram %d: %s > %s, %d bytes, same payload %v", id, src, dst, len(got), bytes.Equal(got, payload))
				}
			}
			if r.fragments.oldest != 0 {
				t.Error("a complete datagram is still remembered")
			}
			r.balanced(t)
		})
	}
}

// balanced checks that every frame is back and every piece free.
func (r *rig) balanced(t *testing.T) {
	t.Helper()
	free := 0
	for n := r.fragments.freePiece; n != 0; n = r.fragments.pool[n].next {
		free++
	}
	known := 0
	for n := r.fragments.freeDatagram; n != 0; n = r.fragments.datagrams[n].next {
		known++
	}
	listed := 0
	for n := r.fragments.oldest; n != 0; n = r.fragments.datagrams[n].newer {
		listed++
	}
	if free != maxWaiting || known+listed != maxDatagrams {
		t.Errorf("%d of %d pieces free, %d datagrams free and %d listed of %d", free, maxWaiting, known, listed, maxDatagrams)
	}
	if got, want := r.cache.Len()+r.d.umem.Pool().Free(), r.d.umem.Frames(); got != want {
		t.Errorf("%d of %d frames free", got, want)
	}
}

func TestFragmentsOverlapping(t *testing.T) {
	r := newRig(t, 64)
	frames := datagramFrames(t, 0, 7, make([]byte, 4000), 800)
	teardrop := bytes.Clone(frames[2])
	bits := binary.BigEndian.Uint16(teardrop[20:]) - 10
	binary.BigEndian.PutUint16(teardrop[20:], bits)
	teardrop[24], teardrop[25] = 0, 0
	binary.BigEndian.PutUint16(teardrop[24:], ^slowSum(teardrop[14:34], 0))
	out := r.run([][]byte{frames[0], frames[1], frames[1], teardrop, frames[2], frames[3], frames[4], frames[5]})
	if len(out) != 2 {
		t.Errorf("%d fragments left, want the two before the overlap", len(out))
	}
	if r.counts[FragmentAgain] != 1 || r.counts[FragmentOverlap] != 5 {
		t.Errorf("again %d, overlap %d; want 1 and 5", r.counts[FragmentAgain], r.counts[FragmentOverlap])
	}
	r.balanced(t)
}

// TestFragmentFlood: pieces whose first never comes wait in bounded number, cost no
// other datagram its way once there is one, and end with the kernel.
func TestFragmentFlood(t *testing.T) {
	r := newRig(t, 64)
	r.fragments.wait = uint64(time.Second)
	var flood [][]byte
	for id := range 3000 {
		flood = append(flood, datagramFrames(t, 1, id, make([]byte, 1000), 504)[1])
	}
	r.run(flood)
	if n := r.counts[FragmentExpired]; n < 3000-maxDatagrams || n > 3000 {
		t.Errorf("%d pieces given back, want all but the %d that wait", n, maxDatagrams)
	}
	payload := bytes.Repeat([]byte{7}, 3000)
	frames := datagramFrames(t, 0, 9000, payload, 1480)
	slices.Reverse(frames)
	if _, _, got := join(t, r.run(frames)); !bytes.Equal(got, payload) {
		t.Error("an honest datagram did not get through")
	}
	r.now += uint64(2 * time.Second)
	for range 2 * maxDatagrams / batchSize {
		r.expireFragments()
		r.collect()
	}
	if n := r.counts[FragmentExpired]; n != 3000 {
		t.Errorf("%d pieces given back after their time, want all 3000", n)
	}
	r.now += uint64(datagramTime)
	for range 2 * maxDatagrams / batchSize {
		r.expireFragments()
		r.collect()
	}
	if r.fragments.oldest != 0 {
		t.Error("datagrams are remembered past their time")
	}
	r.balanced(t)
}

// TestFragmentsOfEndedFirst: the rest shares what became of the first.
func TestFragmentsOfEndedFirst(t *testing.T) {
	r := newRig(t, 64)
	r.snapshot = nil
	frames := datagramFrames(t, 0, 3, make([]byte, 4000), 1480)
	slices.Reverse(frames)
	if out := r.run(frames); len(out) != 0 {
		t.Errorf("%d fragments were forwarded without a snapshot", len(out))
	}
	if n := r.counts[NoSnapshot]; n != uint64(len(frames)) {
		t.Errorf("%d fragments given back, want %d", n, len(frames))
	}
	r.balanced(t)
}

// TestFragmentsOutliveAPort: the port that a datagram's first piece left by is closed
// before the others come. Its sockets are gone then, and nothing may be sent by it.
func TestFragmentsOutliveAPort(t *testing.T) {
	r := newRig(t, 64)
	frames := datagramFrames(t, 0, 3, make([]byte, 4000), 1480)
	if out := r.run(frames[:1]); len(out) != 1 {
		t.Fatalf("%d pieces left by the backend's port, want 1", len(out))
	}
	left := newPortSet([]*port{r.d.returnPort, r.client})
	r.d.egress.ports.Store(left)
	r.d.egress.adj.refresh(r.d.egress.resolve)
	if out := r.run(frames[1:]); len(out) != 0 {
		t.Errorf("%d pieces left by a port that is closed", len(out))
	}
	if n := r.counts[ForwardReturn]; n != uint64(len(frames)-1) {
		t.Errorf("%d pieces left by the return port, want %d", n, len(frames)-1)
	}
	r.balanced(t)
}

// TestFragmentsOfInvalidReply: a first fragment whose flags no connection has, but whose
// ports are a known flow's, is a reply that the client must not see from the backend's
// address. So it is with a whole packet, and with the IPv6 kind of fragment that is one
// (TestAtomicInvalidReply).
func TestFragmentsOfInvalidReply(t *testing.T) {
	const synFin = 3
	for _, c := range []struct {
		name    string
		pieces  int
		reverse bool
		from    netip.AddrPort
		want    Reason
	}{
		{"whole", 1, false, netip.AddrPortFrom(rigBackend, 8080), InvalidReply},
		{"in order", 3, false, netip.AddrPortFrom(rigBackend, 8080), InvalidReply},
		{"reversed", 3, true, netip.AddrPortFrom(rigBackend, 8080), InvalidReply},
		{"of no flow", 3, true, netip.AddrPortFrom(rigBackend, 8081), unparsed(nat.BadTCPFlags)},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 64)
			r.run([][]byte{tcpPieces(flowClient(0), rigVIP, 1<<1, 0, 1)[0]})
			if r.counts[ForwardDirect] != 1 {
				t.Fatalf("the flow did not begin: %v", r.counts)
			}
			r.in.port = r.backend
			frames := tcpPieces(c.from, flowClient(0), synFin, 3000, c.pieces)
			if c.reverse {
				slices.Reverse(frames)
			}
			r.run(frames)
			if n := r.counts[c.want]; n != uint64(c.pieces) {
				t.Errorf("%d of %d pieces ended as %s; counts %v", n, c.pieces, c.want, r.counts)
			}
			r.balanced(t)
		})
	}
}

func TestAtomicInvalidReply(t *testing.T) {
	r := newRig(t, 64)
	client, backend := netlab.PodAddr(netlab.IPv6, 1, 1).As16(), netlab.PodAddr(netlab.IPv6, 1, 2).As16()
	f := flowtable.Flow{
		Client: client, ClientPort: 1024, Frontend: netlab.ClusterIP(netlab.IPv6, 1).As16(), FrontendPort: 80,
		Backend: backend, BackendPort: 8080, Source: client, SourcePort: 1024, Proto: protoTCP,
	}
	if _, result := r.d.table.Insert(&f, r.tick); result != flowtable.Inserted {
		t.Fatal(result)
	}
	frame := []byte{2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 28, 44, 64}
	frame = append(append(frame, backend[:]...), client[:]...)
	frame = append(frame, protoTCP, 0, 0, 0, 0, 0, 0, 7) // neither offset nor more
	frame = append(frame, 8080>>8, 8080&0xff, 1024>>8, 1024&0xff, 0, 0, 0, 1, 0, 0, 0, 1, 5<<4, 3, 0, 0, 0, 0, 0, 0)
	r.run([][]byte{frame})
	if r.counts[InvalidReply] != 1 {
		t.Errorf("counts %v, want one %s", r.counts, InvalidReply)
	}
	r.balanced(t)
}

// tcpPieces is a TCP packet with n bytes of data, cut into so many pieces.
func tcpPieces(src, dst netip.AddrPort, flags byte, n, pieces int) (frames [][]byte) {
	tcp := make([]byte, 20+n)
	binary.BigEndian.PutUint16(tcp, src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	tcp[12], tcp[13] = 5<<4, flags
	size := (len(tcp)/pieces + 7) &^ 7
	for at := 0; at < len(tcp); at += size {
		data := tcp[at:min(at+size, len(tcp))]
		f := append([]byte{2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 8, 0, 0x45, 0, 0, 0, 0, 7, 0, 0, 64, protoTCP, 0, 0}, src.Addr().AsSlice()...)
		f = append(append(f, dst.Addr().AsSlice()...), data...)
		binary.BigEndian.PutUint16(f[16:], uint16(20+len(data)))
		bits := uint16(at / 8)
		if at+size < len(tcp) {
			bits |= 0x2000
		}
		binary.BigEndian.PutUint16(f[20:], bits)
		binary.BigEndian.PutUint16(f[24:], ^slowSum(f[14:34], 0))
		frames = append(frames, f)
	}
	return frames
}

func TestFragmentsAllocateNothing(t *testing.T) {
	r := newRig(t, 64)
	frames := datagramFrames(t, 0, 1, make([]byte, 20000), 1480)
	slices.Reverse(frames)
	b := &r.b
	got := testing.AllocsPerRun(100, func() {
		b.n = len(frames)
		for j, f := range frames {
			addr, _ := r.cache.Get()
			addr = r.d.umem.Payload(addr)
			b.descs[j].Addr, b.descs[j].Len = addr, uint32(len(f))
			copy(r.d.umem.Frame(addr, uint32(len(f))), f)
		}
		r.process()
		for _, p := range r.touched {
			for _, d := range p.out[r.id].descs[:p.out[r.id].n] {
				r.cache.Put(d.Addr)
			}
		}
		r.clear()
	})
	if got != 0 || r.counts[ForwardDirect] < 100*uint64(len(frames)) {
		t.Errorf("%v allocations for a datagram, %d fragments forwarded", got, r.counts[ForwardDirect])
	}
}
