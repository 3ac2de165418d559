//go:build linux

package xsk

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

// Test frames: Ethernet header with an experimental type, a sequence number at 14, a pattern.
const (
	testEtherType = 0x88b5 // IEEE 802 local experimental
	minFrame      = 64
	seqOffset     = 14
)

// pattern fills a test frame.
func pattern(frame []byte, seq uint32) {
	copy(frame, "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01")
	binary.BigEndian.PutUint16(frame[12:], testEtherType)
	binary.BigEndian.PutUint32(frame[seqOffset:], seq)
	for i := seqOffset + 4; i < len(frame); i++ {
		frame[i] = byte(uint32(i) + seq)
	}
}

// checkPattern returns the frame's sequence number, or what is wrong with it.
func checkPattern(frame []byte) (uint32, error) {
	if len(frame) < seqOffset+4 {
		return 0, fmt.Errorf("frame of %d bytes", len(frame))
	}
	seq := binary.BigEndian.Uint32(frame[seqOffset:])
	for i := seqOffset + 4; i < len(frame); i++ {
		if frame[i] != byte(uint32(i)+seq) {
			return seq, fmt.Errorf("frame %d: byte %d is %#x, want %#x", seq, i, frame[i], byte(uint32(i)+seq))
		}
	}
	return seq, nil
}

// program is a variant of the XDP program of the tests. All redirect test frames to the socket of
// their queue and pass what else there is.
type program int

const (
	redirect     program = iota
	redirectEven         // drop frames with an odd sequence number
	redirectMeta         // write the sequence number as metadata in front of the frame
	shrinkTail           // cut 4 bytes off
	growTail             // add 4 bytes
)

func (p program) instructions(xsks *ebpf.Map) asm.Instructions {
	const (
		data, dataEnd, dataMeta, queue = 0, 4, 8, 16 // struct xdp_md
		drop, pass                     = 1, 2
	)
	ctx, from, to, tmp := asm.R6, asm.R2, asm.R3, asm.R4
	bounds := asm.Instructions{
		asm.LoadMem(from, ctx, data, asm.Word),
		asm.LoadMem(to, ctx, dataEnd, asm.Word),
		asm.Mov.Reg(tmp, from),
		asm.Add.Imm(tmp, seqOffset+4),
		asm.JGT.Reg(tmp, to, "pass"),
	}
	insns := asm.Instructions{asm.Mov.Reg(ctx, asm.R1)}
	insns = append(insns, bounds...)
	insns = append(insns,
		asm.LoadMem(tmp, from, 12, asm.Half),
		asm.JNE.Imm(tmp, testEtherType>>8|testEtherType&0xff<<8, "pass"),
	)
	switch p {
	case redirectEven:
		insns = append(insns,
			asm.LoadMem(tmp, from, seqOffset+3, asm.Byte),
			asm.And.Imm(tmp, 1),
			asm.JNE.Imm(tmp, 0, "drop"),
		)
	case redirectMeta:
		insns = append(insns,
			asm.Mov.Reg(asm.R1, ctx),
			asm.Mov.Imm(asm.R2, -4),
			asm.FnXdpAdjustMeta.Call(),
			asm.JNE.Imm(asm.R0, 0, "pass"),
		)
		insns = append(insns, bounds...)
		insns = append(insns,
			asm.LoadMem(asm.R7, from, seqOffset, asm.Word),
			asm.LoadMem(asm.R1, ctx, dataMeta, asm.Word),
			asm.Mov.Reg(tmp, asm.R1),
			asm.Add.Imm(tmp, 4),
			asm.JGT.Reg(tmp, from, "pass"),
			asm.StoreMem(asm.R1, 0, asm.R7, asm.Word),
		)
	case shrinkTail:
		insns = append(insns,
			asm.Mov.Reg(asm.R1, ctx),
			asm.Mov.Imm(asm.R2, -4),
			asm.FnXdpAdjustTail.Call(),
			asm.JNE.Imm(asm.R0, 0, "pass"),
		)
	}
	insns = append(insns,
		asm.LoadMapPtr(asm.R1, xsks.FD()),
		asm.LoadMem(asm.R2, ctx, queue, asm.Word),
		asm.Mov.Imm(asm.R3, pass),
		asm.FnRedirectMap.Call(),
		asm.Return(),
	)
	if p == redirectEven { // code that nothing leads to does not load
		insns = append(insns, asm.Mov.Imm(asm.R0, drop).WithSymbol("drop"), asm.Return())
	}
	return append(insns,
		asm.Mov.Imm(asm.R0, pass).WithSymbol("pass"),
		asm.Return(),
	)
}

// station is a device with an XDP program, a socket and a worker's loop.
type station struct {
	t     testing.TB
	ns    *netlab.Namespace
	dev   string
	umem  *Umem
	sock  *Socket
	cache *Cache
	poll  *Poller

	mode link.XDPAttachFlags
	xsks *ebpf.Map
	xdp  link.Link
}

// stationConfig: the zero value is a checked Umem of its own with 512 frames, rings of 256.
type stationConfig struct {
	umem    *Umem
	mem     UmemConfig
	sock    Config
	program program
	lax     bool // the test breaks the ownership rule on purpose
}

// newStation opens a socket on a device and steers test frames into it.
func newStation(t testing.TB, ns *netlab.Namespace, dev string, mode link.XDPAttachFlags, cfg stationConfig) *station {
	t.Helper()
	s := &station{t: t, ns: ns, dev: dev, mode: mode, umem: cfg.umem}
	if s.umem == nil {
		cfg.mem.CheckFrames = !cfg.lax
		if cfg.mem.Frames == 0 {
			cfg.mem.Frames = 512
		}
		var err error
		if s.umem, err = NewUmem(cfg.mem); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.umem.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	s.cache = s.umem.Pool().NewCache()
	s.open(cfg.sock)
	t.Cleanup(func() {
		s.detach()
		s.close(cfg.lax)
		s.cache.Close()
		if s.umem.Checker() != nil && cfg.umem == nil {
			if _, err := s.umem.Checker().Check(); err != nil {
				t.Errorf("%s: %v", dev, err)
			}
			if free, lost := s.umem.Pool().Free(), s.umem.Pool().Lost(); free != s.umem.Frames() || lost != 0 {
				t.Errorf("%s: %d of %d frames are free in the end, %d lost", dev, free, s.umem.Frames(), lost)
			}
		}
	})
	s.attach(cfg.program, cfg.sock.MultiBuffer)
	var err error
	if s.poll, err = NewPoller(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.poll.Close() })
	s.poll.Add(s.sock)
	s.step()
	return s
}

// smallRings are good for most tests.
func smallRings(c Config) Config {
	for _, size := range []*int{&c.FillSize, &c.RxSize, &c.TxSize, &c.CompletionSize} {
		if *size == 0 {
			*size = 256
		}
	}
	return c
}

// openOn is Open in a namespace.
func openOn(ns *netlab.Namespace, dev string, u *Umem, cfg Config) (s *Socket, err error) {
	cfg.Ifindex = ns.Index(dev)
	err = ns.Do(func() (err error) {
		s, err = Open(u, smallRings(cfg))
		return err
	})
	return s, err
}

func (s *station) open(cfg Config) {
	s.t.Helper()
	var err error
	if s.sock, err = openOn(s.ns, s.dev, s.umem, cfg); err != nil {
		s.t.Fatal(err)
	}
}

func (s *station) close(lax bool) {
	if err := s.sock.Close(); err != nil {
		s.t.Error(err)
	}
	if err := s.sock.Close(); err != nil {
		s.t.Errorf("second close: %v", err)
	}
	if lost := s.umem.Pool().Lost(); lost != 0 && !lax {
		s.t.Errorf("%s: %d frames lost", s.dev, lost)
	}
}

func (s *station) attach(p program, frags bool) {
	s.t.Helper()
	var err error
	s.xsks, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: 4})
	if err != nil {
		s.t.Fatalf("xsk map: %v", err)
	}
	if err := s.xsks.Put(uint32(s.sock.queue), uint32(s.sock.FD())); err != nil {
		s.t.Fatalf("xsk map: %v", err)
	}
	spec := &ebpf.ProgramSpec{Type: ebpf.XDP, License: "Apache-2.0", Instructions: p.instructions(s.xsks)}
	if frags {
		spec.Flags = unix.BPF_F_XDP_HAS_FRAGS
	}
	prog, err := ebpf.NewProgram(spec)
	if err != nil {
		s.t.Fatalf("program: %+v", err)
	}
	defer prog.Close()
	err = s.ns.Do(func() (err error) {
		s.xdp, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: s.ns.Index(s.dev), Flags: s.mode})
		return err
	})
	if err != nil {
		s.t.Fatalf("attach to %s: %v", s.dev, err)
	}
}

func (s *station) detach() {
	if s.xdp != nil {
		if err := s.xdp.Close(); err != nil {
			s.t.Errorf("detach from %s: %v", s.dev, err)
		}
		s.xsks.Close()
		s.xdp, s.xsks = nil, nil
	}
}

// step is what a worker does at the top of its loop.
func (s *station) step() {
	s.sock.Complete(s.cache)
	s.sock.Refill(s.cache)
}

// check proves the ownership of all frames.
func (s *station) check() {
	s.t.Helper()
	if _, err := s.umem.Checker().Check(); err != nil {
		s.t.Fatalf("%s: %v", s.dev, err)
	}
}

// frame makes a test frame in a frame of the umem.
func (s *station) frame(seq uint32, size int) Desc {
	s.t.Helper()
	chunk, ok := s.cache.Get()
	if !ok {
		s.t.Fatalf("%s: no frame to send", s.dev)
	}
	d := Desc{Addr: s.umem.Payload(chunk), Len: uint32(size)}
	pattern(s.umem.Frame(d.Addr, d.Len), seq)
	return d
}

// send sends test frames, in batches, and waits for none.
func (s *station) send(first, n uint32, size int) {
	s.t.Helper()
	for sent := uint32(0); sent < n; {
		s.step()
		var batch [64]Desc
		m := min(uint32(len(batch)), n-sent)
		for i := range m {
			batch[i] = s.frame(first+sent+i, size)
		}
		if got := s.sock.Transmit(batch[:m]); got != int(m) {
			s.t.Fatalf("%s: room for %d of %d", s.dev, got, m)
		}
		if k := s.sock.Kick(); k != KickDone {
			s.t.Fatalf("%s: kick: %v (%+v)", s.dev, k, s.sock.Kicks)
		}
		sent += m
	}
}

const patience = 2 * time.Second

// receive waits for n frames and hands each to see, which may keep nothing.
func (s *station) receive(n int, see func(d Desc, frame []byte)) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); n > 0; {
		var descs [64]Desc
		got := s.sock.Receive(descs[:min(n, len(descs))])
		for _, d := range descs[:got] {
			frame := s.umem.Frame(d.Addr, d.Len)
			if frame == nil {
				s.t.Fatalf("%s: received %+v, which is no frame", s.dev, d)
			}
			see(d, frame)
			s.cache.Put(d.Addr)
		}
		n -= got
		s.step()
		if got > 0 {
			continue
		}
		if time.Now().After(deadline) {
			st, _ := s.sock.Statistics()
			s.t.Fatalf("%s: %d frames are missing; %+v", s.dev, n, st)
		}
		if _, err := s.poll.Wait(10 * time.Millisecond); err != nil {
			s.t.Fatal(err)
		}
	}
}

// expect receives frames with these sequence numbers and length, in order.
func (s *station) expect(first, n uint32, size int) {
	s.t.Helper()
	want := first
	s.receive(int(n), func(_ Desc, frame []byte) {
		seq, err := checkPattern(frame)
		if err != nil || seq != want || len(frame) != size {
			s.t.Fatalf("%s: frame %d of %d bytes, %v, want %d of %d", s.dev, seq, len(frame), err, want, size)
		}
		want++
	})
}

// quiet asserts that nothing is received for a moment.
func (s *station) quiet() {
	s.t.Helper()
	for range 2 {
		var d [1]Desc
		if s.sock.Receive(d[:]) != 0 {
			s.t.Fatalf("%s: received %d bytes that nobody should have sent", s.dev, d[0].Len)
		}
		if _, err := s.poll.Wait(10 * time.Millisecond); err != nil {
			s.t.Fatal(err)
		}
	}
}

// stats returns the kernel's counters.
func (s *station) stats() Statistics {
	s.t.Helper()
	st, err := s.sock.Statistics()
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

// exchange sends batches from one station to another until n frames have arrived.
func exchange(from, to *station, first, n uint32, size int) {
	from.t.Helper()
	for sent := uint32(0); sent < n; {
		m := min(64, n-sent)
		from.send(first+sent, m, size)
		to.expect(first+sent, m, size)
		sent += m
	}
}

// pair makes two namespaces with a veth pair between them.
func pair(t testing.TB, o netlab.VethOptions) (a, b *netlab.Namespace) {
	t.Helper()
	netlab.RequireRoot(t)
	l := netlab.New(t)
	a, b = l.Namespace("a"), l.Namespace("b")
	l.Veth(a, "v0", b, "v1", o)
	return a, b
}
