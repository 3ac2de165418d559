//go:build linux

package xsk

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

// TestSelftest says what the kernel's own AF_XDP test says; doc.go has the table.
func TestSelftest(t *testing.T) {
	for _, mode := range []struct {
		name  string
		flags link.XDPAttachFlags
	}{
		{"native", link.XDPDriverMode},
		{"generic", link.XDPGenericMode},
	} {
		t.Run(mode.name, func(t *testing.T) {
			for _, tt := range []struct {
				name string
				test func(t *testing.T, mode link.XDPAttachFlags)
			}{
				{"send_receive", testSendReceive},
				{"send_receive_2k_frame", testSendReceive2K},
				{"send_receive_single_packet", testSinglePacket},
				{"send_receive_9k", testSendReceive9K},
				{"poll_rx", testPollRx},
				{"poll_tx", testPollTx},
				{"poll_rx_timeout", testPollRxTimeout},
				{"poll_tx_timeout", testPollTxTimeout},
				{"invalid_descriptors", testInvalidDescriptors},
				{"invalid_descriptors_2k_frame", testInvalidDescriptors2K},
				{"invalid_descriptors_multi_buffer", testInvalidDescriptorsMultiBuffer},
				{"too_many_frags", testTooManyFrags},
				{"headroom", testHeadroom},
				{"bidirectional", testBidirectional},
				{"stats_rx_dropped", testStatsRxDropped},
				{"stats_tx_invalid", testStatsTxInvalid},
				{"stats_rx_full", testStatsRxFull},
				{"stats_fill_empty", testStatsFillEmpty},
				{"program_cleanup", testProgramCleanup},
				{"drop_half", testDropHalf},
				{"shared_umem", testSharedUmem},
				{"metadata_copy", testMetadataCopy},
				{"metadata_copy_multi_buffer", testMetadataCopyMultiBuffer},
				{"adjust_tail_shrink", testAdjustTailShrink},
				{"tx_queue_consumer", testTxQueueConsumer},
				{"ring_size_max", testRingSizeMax},
				{"ring_size_min", testRingSizeMin},
				{"teardown", testTeardown},
			} {
				t.Run(tt.name, func(t *testing.T) { tt.test(t, mode.flags) })
			}
		})
	}
}

// twoStations are both ends of a veth pair.
func twoStations(t *testing.T, mode link.XDPAttachFlags, tx, rx stationConfig) (*station, *station) {
	t.Helper()
	a, b := pair(t, netlab.VethOptions{})
	return newStation(t, a, "v0", mode, tx), newStation(t, b, "v1", mode, rx)
}

const packets = 1024

func testSendReceive(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := twoStations(t, mode, stationConfig{}, stationConfig{})
	exchange(tx, rx, 0, packets, minFrame)
	exchange(tx, rx, 0, 64, 1514)
	tx.check()
	rx.check()
	if g := rx.sock.Granted(); g.Mode != ModeCopy || !g.NeedWakeup || g.MultiBuffer || g.SharedUmem || g.TxBudget != 64 {
		t.Errorf("granted %+v, want copy mode with wakeup, a budget of 64, a umem of its own", g)
	}
	if st := rx.stats(); st.RxDropped != 0 || st.RxRingFull != 0 {
		t.Errorf("drops: %+v", st)
	}
}

func testSendReceive2K(t *testing.T, mode link.XDPAttachFlags) {
	mem := UmemConfig{FrameSize: 2048}
	tx, rx := twoStations(t, mode, stationConfig{mem: mem}, stationConfig{mem: mem})
	exchange(tx, rx, 0, packets, minFrame)
	exchange(tx, rx, 0, 64, 1514)
}

func testSinglePacket(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := twoStations(t, mode, stationConfig{}, stationConfig{})
	exchange(tx, rx, 7, 1, minFrame)
	rx.quiet()
}

func testPollRx(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := twoStations(t, mode, stationConfig{}, stationConfig{})
	for i := range uint32(20) {
		tx.send(i, 1, minFrame)
		n, err := rx.poll.Wait(patience)
		if err != nil || n != 1 {
			t.Fatalf("frame %d: poll finds %d sockets, %v, want 1", i, n, err)
		}
		if readable, writable := rx.poll.Ready(rx.sock); !readable || writable {
			t.Fatalf("frame %d: readable %t, writable %t", i, readable, writable)
		}
		rx.expect(i, 1, minFrame)
	}
}

// testPollTx: to poll sends, without any kick.
func testPollTx(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := twoStations(t, mode, stationConfig{}, stationConfig{})
	tx.poll.WaitWritable(tx.sock, true)
	for i := range uint32(20) {
		tx.step()
		tx.sock.Transmit([]Desc{tx.frame(i, minFrame)})
		if _, err := tx.poll.Wait(patience); err != nil {
			t.Fatal(err)
		}
		if _, writable := tx.poll.Ready(tx.sock); !writable {
			t.Fatalf("frame %d: not writable", i)
		}
		rx.expect(i, 1, minFrame)
	}
	if tx.sock.Kicks.Calls != 0 {
		t.Errorf("%d kicks", tx.sock.Kicks.Calls)
	}
}

func testPollRxTimeout(t *testing.T, mode link.XDPAttachFlags) {
	_, rx := twoStations(t, mode, stationConfig{}, stationConfig{})
	const timeout = 20 * time.Millisecond
	start := time.Now()
	n, err := rx.poll.Wait(timeout)
	if err != nil || n != 0 || time.Since(start) < timeout {
		t.Errorf("poll finds %d sockets after %v, %v, want none after %v", n, time.Since(start), err, timeout)
	}
}

// testPollTxTimeout: with the completion ring full the tx ring stays full.
func testPollTxTimeout(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := twoStations(t, mode, stationConfig{sock: Config{TxSize: 64, CompletionSize: 64}}, stationConfig{})
	tx.poll.WaitWritable(tx.sock, true)
	batch := func(first uint32) {
		for i := range uint32(64) {
			if tx.sock.Transmit([]Desc{tx.frame(first+i, minFrame)}) != 1 {
				t.Fatalf("no room for frame %d", first+i)
			}
		}
	}
	batch(0)
	if k := tx.sock.Kick(); k != KickDone {
		t.Fatalf("first kick: %v", k)
	}
	batch(64)
	if k := tx.sock.Kick(); k != KickAgain {
		t.Fatalf("kick with the completion ring full: %v, want %v", k, KickAgain)
	}
	const timeout = 20 * time.Millisecond
	start := time.Now()
	if n, err := tx.poll.Wait(timeout); err != nil || n != 0 || time.Since(start) < timeout {
		t.Errorf("poll finds %d sockets after %v, %v, want none after %v", n, time.Since(start), err, timeout)
	}
	if n := tx.sock.Complete(tx.cache); n != 64 {
		t.Errorf("completed %d, want 64", n)
	}
	if _, err := tx.poll.Wait(patience); err != nil {
		t.Fatal(err)
	}
	if _, writable := tx.poll.Ready(tx.sock); !writable {
		t.Error("not writable after completions were drained")
	}
	rx.expect(0, 128, minFrame)
}

// packet is an entry of the kernel's packet lists: a raw tx descriptor and whether the kernel is to
// send it.
type packet struct {
	desc  Desc
	valid bool
}

// sendRaw puts descriptors in the tx ring as they are, numbers the valid ones, and expects to
// receive these and no others.
func sendRaw(t *testing.T, tx, rx *station, list []packet) {
	t.Helper()
	seq, invalid := uint32(0), uint64(0)
	before := tx.stats().TxInvalidDescs
	idx, ok := tx.sock.Tx.Reserve(uint32(len(list)))
	if !ok {
		t.Fatal("no room")
	}
	for i, p := range list {
		if got := tx.umem.Sendable(p.desc); got != p.valid {
			t.Errorf("descriptor %d, %+v: Sendable is %t, want %t", i, p.desc, got, p.valid)
		}
		if p.valid {
			pattern(tx.umem.Frame(p.desc.Addr, p.desc.Len), seq)
			seq++
		} else {
			invalid++
		}
		*tx.sock.Tx.Desc(idx + uint32(i)) = p.desc
		// One by one, since the list may use a frame twice.
		tx.sock.Tx.Submit(1)
		if k := tx.sock.Kick(); k != KickDone {
			t.Fatalf("descriptor %d, %+v: kick: %v", i, p.desc, k)
		}
	}
	rx.expect(0, seq, minFrame)
	rx.quiet()
	if got := tx.stats().TxInvalidDescs - before; got != invalid {
		t.Errorf("the kernel counts %d invalid descriptors, want %d", got, invalid)
	}
}

func testInvalidDescriptors(t *testing.T, mode link.XDPAttachFlags) {
	invalidDescriptors(t, mode, 4096)
}

func testInvalidDescriptors2K(t *testing.T, mode link.XDPAttachFlags) {
	invalidDescriptors(t, mode, 2048)
}

func invalidDescriptors(t *testing.T, mode link.XDPAttachFlags, frameSize uint64) {
	const frames, n = 512, minFrame
	size := frames * frameSize
	for _, metadata := range []bool{true, false} {
		t.Run(fmt.Sprintf("metadata=%t", metadata), func(t *testing.T) {
			mem := UmemConfig{Frames: frames, FrameSize: int(frameSize), noMetadata: !metadata}
			tx, rx := twoStations(t, mode, stationConfig{mem: mem, lax: true}, stationConfig{})
			// front is the first address of a chunk that the kernel takes.
			front := uint64(0)
			if metadata {
				front = metadataLen
			}
			sendRaw(t, tx, rx, []packet{
				// The kernel's list.
				{Desc{Addr: front, Len: n}, true},                    // the first address of the umem
				{Desc{Addr: front, Len: n}, true},                    // and again
				{Desc{Addr: ^uint64(1), Len: n}, false},              // straddling the umem's start
				{Desc{Addr: front, Len: 4097}, false},                // longer than any chunk
				{Desc{Addr: size - n, Len: n}, true},                 // up to the umem's end
				{Desc{Addr: size, Len: n}, false},                    // past it
				{Desc{Addr: size + front, Len: n}, false},            // past it, with room for metadata
				{Desc{Addr: size - n/2, Len: n}, false},              // straddling it
				{Desc{Addr: 0x1000 - n/2, Len: n}, false},            // straddling a 4K boundary
				{Desc{Addr: 0x800 - n/2, Len: n}, frameSize == 4096}, // straddling a 2K boundary
				// And more.
				{Desc{Addr: front, Len: 0}, false},                           // no bytes
				{Desc{Addr: 2*frameSize - n, Len: n}, true},                  // up to a chunk's end
				{Desc{Addr: 2*frameSize - n + 1, Len: n}, false},             // one byte beyond
				{Desc{Addr: frameSize, Len: n}, !metadata},                   // no room for metadata in front
				{Desc{Addr: frameSize + metadataLen - 1, Len: n}, !metadata}, // one byte short of it
				{Desc{Addr: frameSize + metadataLen, Len: n}, true},          // just room
				{Desc{Addr: front, Len: n, Options: 1 << 7}, false},          // an unknown option
				{Desc{Addr: front, Len: ^uint32(0)}, false},                  // length that wraps
				{Desc{Addr: 1 << 63, Len: n}, false},                         // far away
				{Desc{Addr: front, Len: n}, true},                            // the stream goes on
			})
			// All at once: an invalid one ends the kernel's walk, and Kick goes on behind it.
			idx, _ := tx.sock.Tx.Reserve(9)
			for i := range uint32(9) {
				d := Desc{Addr: uint64(i)*frameSize + 256, Len: n}
				pattern(tx.umem.Frame(d.Addr, d.Len), i/2)
				if i%2 == 1 {
					d.Len = 0
				}
				*tx.sock.Tx.Desc(idx + i) = d
			}
			tx.sock.Tx.Submit(9)
			if k := tx.sock.Kick(); k != KickDone {
				t.Errorf("kick: %v", k)
			}
			rx.expect(0, 5, n)
		})
	}
}

func testHeadroom(t *testing.T, mode link.XDPAttachFlags) {
	const headroom = 128
	tx, rx := twoStations(t, mode, stationConfig{}, stationConfig{mem: UmemConfig{Headroom: headroom}})
	tx.send(0, 100, minFrame)
	rx.receive(100, func(d Desc, _ []byte) {
		if got := d.Addr % 4096; got != rxHeadroom+headroom || d.Addr != rx.umem.Payload(d.Addr) {
			t.Fatalf("frame at %d in its chunk, want %d", got, rxHeadroom+headroom)
		}
	})
	// The longest frame that fits, and no longer.
	if got, want := rx.umem.MaxReceive(), 4096-256-headroom; got != want {
		t.Errorf("MaxReceive is %d, want %d", got, want)
	}
}

func testBidirectional(t *testing.T, mode link.XDPAttachFlags) {
	a, b := twoStations(t, mode, stationConfig{}, stationConfig{})
	for round := range uint32(4) {
		exchange(a, b, round*100, 100, minFrame)
		exchange(b, a, round*100, 100, minFrame)
	}
	// Both at once.
	a.send(0, 64, minFrame)
	b.send(0, 64, minFrame)
	a.expect(0, 64, minFrame)
	b.expect(0, 64, minFrame)
	a.check()
	b.check()
}

// testStatsRxDropped: frames longer than a chunk holds are dropped, counted, and cost no frame.
func testStatsRxDropped(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := twoStations(t, mode, stationConfig{}, stationConfig{mem: UmemConfig{FrameSize: 2048}})
	// As when somebody raises the MTU under an open socket: Open itself refuses.
	tx.ns.MTU("v0", 3000)
	rx.ns.MTU("v1", 3000)
	most := rx.umem.MaxReceive()
	for i := range uint32(50) {
		tx.send(2*i, 1, most)
		tx.send(2*i+1, 1, most+1)
		rx.expect(2*i, 1, most)
	}
	rx.quiet()
	if got := rx.stats().RxDropped; got != 50 {
		t.Errorf("the kernel counts %d dropped, want 50", got)
	}
}

func testStatsTxInvalid(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := twoStations(t, mode, stationConfig{lax: true}, stationConfig{})
	var list []packet
	for i := range uint64(100) {
		list = append(list, packet{Desc{Addr: i*4096 + 256, Len: minFrame}, true},
			packet{Desc{Addr: i*4096 + 256, Len: 4097}, false})
	}
	sendRaw(t, tx, rx, list)
}

// testStatsRxFull: past the package's own limit the rx ring overflows; within it, it cannot.
func testStatsRxFull(t *testing.T, mode link.XDPAttachFlags) {
	sizes := Config{FillSize: 256, RxSize: 64}
	t.Run("limited", func(t *testing.T) {
		tx, rx := twoStations(t, mode, stationConfig{}, stationConfig{sock: sizes})
		tx.send(0, 96, minFrame)
		rx.step()
		rx.expect(0, 64, minFrame)
		if st := rx.stats(); st.RxRingFull != 0 || st.RxDropped != 32 {
			t.Errorf("%+v, want 32 dropped for want of a frame, and the rx ring never full", st)
		}
	})
	t.Run("unlimited", func(t *testing.T) {
		tx, rx := twoStations(t, mode, stationConfig{}, stationConfig{sock: sizes, lax: true})
		rx.sock.Fill.limit = rx.sock.Fill.size
		rx.step()
		tx.send(0, 96, minFrame)
		rx.expect(0, 64, minFrame)
		if st := rx.stats(); st.RxRingFull != 32 {
			t.Errorf("%+v, want the rx ring full 32 times", st)
		}
	})
}

func testStatsFillEmpty(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := twoStations(t, mode, stationConfig{}, stationConfig{sock: Config{FillSize: 64, RxSize: 64}})
	tx.send(0, 100, minFrame) // rx is not refilling meanwhile
	if st := rx.stats(); st.RxFillRingEmpty == 0 || st.RxDropped != 36 {
		t.Errorf("%+v, want 36 dropped, and the fill ring found empty", st)
	}
	rx.expect(0, 64, minFrame)
	exchange(tx, rx, 0, 100, minFrame) // and it goes on
}

func testProgramCleanup(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := twoStations(t, mode, stationConfig{}, stationConfig{})
	exchange(tx, rx, 0, 64, minFrame)
	rx.detach()
	tx.send(0, 64, minFrame)
	rx.quiet()
	rx.attach(redirect, false)
	exchange(tx, rx, 0, 64, minFrame)
	// Out of the map, frames pass.
	if err := rx.xsks.Delete(uint32(0)); err != nil {
		t.Fatal(err)
	}
	tx.send(0, 64, minFrame)
	rx.quiet()
}

func testDropHalf(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := twoStations(t, mode, stationConfig{}, stationConfig{program: redirectEven})
	tx.send(0, 200, minFrame)
	want := uint32(0)
	rx.receive(100, func(_ Desc, frame []byte) {
		if seq, err := checkPattern(frame); err != nil || seq != want {
			t.Fatalf("frame %d, %v, want %d", seq, err, want)
		}
		want += 2
	})
	rx.quiet()
}

// testSharedUmem: what is received on one device is sent on another without a copy.
func testSharedUmem(t *testing.T, mode link.XDPAttachFlags) {
	netlab.RequireRoot(t)
	l := netlab.New(t)
	client, host, server := l.Namespace("client"), l.Namespace("host"), l.Namespace("server")
	l.Veth(client, "c0", host, "h0", netlab.VethOptions{})
	l.Veth(host, "h1", server, "s0", netlab.VethOptions{})
	u, err := NewUmem(UmemConfig{Frames: 1024, CheckFrames: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	}()
	t.Run("forward", func(t *testing.T) {
		c := newStation(t, client, "c0", mode, stationConfig{})
		h0 := newStation(t, host, "h0", mode, stationConfig{umem: u})
		h1 := newStation(t, host, "h1", mode, stationConfig{umem: u})
		s := newStation(t, server, "s0", mode, stationConfig{})
		if g := h1.sock.Granted(); !g.SharedUmem || g.Mode != ModeCopy || !g.NeedWakeup {
			t.Errorf("granted %+v, want a shared umem in copy mode with wakeup", g)
		}
		if err := u.Close(); err == nil || !strings.Contains(err.Error(), "2 sockets are open") {
			t.Errorf("closing the umem under its sockets: %v", err)
		}
		for round := range uint32(8) {
			c.send(round*64, 64, minFrame)
			for moved, deadline := 0, time.Now().Add(patience); moved < 64; {
				h0.step()
				h1.step()
				var descs [64]Desc
				n := h0.sock.Receive(descs[:])
				if n == 0 && time.Now().After(deadline) {
					t.Fatalf("round %d: %d frames moved", round, moved)
				}
				if got := h1.sock.Transmit(descs[:n]); got != n {
					t.Fatalf("room for %d of %d", got, n)
				}
				h1.sock.Kick()
				moved += n
			}
			s.expect(round*64, 64, minFrame)
			h1.step()
			h0.check()
		}
	})
	if free := u.Pool().Free(); free != u.Frames() {
		t.Errorf("%d of %d frames are free in the end", free, u.Frames())
	}
	t.Run("the first socket closes first", func(t *testing.T) {
		h0 := newStation(t, host, "h0", mode, stationConfig{umem: u})
		h1 := newStation(t, host, "h1", mode, stationConfig{umem: u})
		h0.close(false)
		h0.open(Config{}) // shares from h1 now
		if g := h0.sock.Granted(); !g.SharedUmem {
			t.Errorf("granted %+v, want a shared umem", g)
		}
		h1.step()
		h0.step()
		h1.check()
	})
}

// testMetadataCopy: what the XDP program writes in front of the frame is there in the umem.
func testMetadataCopy(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := twoStations(t, mode, stationConfig{}, stationConfig{program: redirectMeta})
	tx.send(1000, 100, minFrame)
	checkMetadata(t, rx, 1000, 100)
}

func checkMetadata(t *testing.T, rx *station, first, n uint32) {
	t.Helper()
	want := first
	rx.receive(int(n), func(d Desc, _ []byte) {
		meta := rx.umem.Frame(d.Addr-4, 4)
		if got := binary.BigEndian.Uint32(meta); got != want {
			t.Fatalf("metadata says frame %d, want %d", got, want)
		}
		want++
	})
}

func testAdjustTailShrink(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := twoStations(t, mode, stationConfig{}, stationConfig{program: shrinkTail})
	tx.send(0, 64, 2*minFrame)
	rx.expect(0, 64, 2*minFrame-4)
}

// testTxQueueConsumer: a call sends its budget, says so, and leaves the rest.
func testTxQueueConsumer(t *testing.T, mode link.XDPAttachFlags) {
	const budget = minTxBudget
	tx, rx := twoStations(t, mode, stationConfig{sock: Config{TxBudget: budget}}, stationConfig{})
	if got := tx.sock.Granted().TxBudget; got != budget {
		t.Errorf("granted a budget of %d, want %d", got, budget)
	}
	start := *tx.sock.Tx.consumer
	for i := range uint32(budget + 1) {
		tx.sock.Transmit([]Desc{tx.frame(i, minFrame)})
	}
	if errno := sendKick(tx.sock.FD()); errno != unix.EAGAIN {
		t.Errorf("first call: %v, want %v", errno, unix.EAGAIN)
	}
	if got := atomic.LoadUint32(tx.sock.Tx.consumer) - start; got != budget {
		t.Errorf("first call consumed %d, want %d", got, budget)
	}
	if k := tx.sock.Kick(); k != KickDone {
		t.Errorf("kick: %v", k)
	}
	if got := tx.sock.Tx.pending(); got != 0 {
		t.Errorf("%d pending after the kick", got)
	}
	rx.expect(0, budget+1, minFrame)

	// Kick makes as many calls as the budget asks for.
	tx.step()
	for i := range uint32(3*budget + 1) {
		tx.sock.Transmit([]Desc{tx.frame(i, minFrame)})
	}
	tx.sock.Kicks = KickCounters{}
	if k := tx.sock.Kick(); k != KickDone {
		t.Errorf("kick: %v", k)
	}
	if got, want := tx.sock.Kicks, (KickCounters{Calls: 4, Again: 3}); got != want {
		t.Errorf("kick counts %+v, want %+v", got, want)
	}
	rx.expect(0, 3*budget+1, minFrame)
}

func testRingSizeMax(t *testing.T, mode link.XDPAttachFlags) {
	const size = 4 * 2048
	sizes := Config{FillSize: size, RxSize: size, TxSize: size, CompletionSize: size, TxBudget: size}
	cfg := stationConfig{mem: UmemConfig{Frames: size + 256, FrameSize: 2048}, sock: sizes}
	tx, rx := twoStations(t, mode, cfg, cfg)
	if n := rx.sock.Fill.Free(); n != 0 {
		t.Errorf("the fill ring has room for %d more", n)
	}
	exchange(tx, rx, 0, packets, minFrame)
	exchange(rx, tx, 0, packets, minFrame)
	tx.check()
}

// testRingSizeMin: rings of one entry, and just the budget.
func testRingSizeMin(t *testing.T, mode link.XDPAttachFlags) {
	sizes := Config{FillSize: 1, RxSize: 1, TxSize: 1, CompletionSize: 1}
	tx, rx := twoStations(t, mode, stationConfig{sock: sizes}, stationConfig{sock: sizes})
	for i := range uint32(50) {
		exchange(tx, rx, i, 1, minFrame)
	}
	tx.check()
	rx.check()
}

// testTeardown: close under traffic and open again at once; no frame is lost on the way.
func testTeardown(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := twoStations(t, mode, stationConfig{}, stationConfig{})
	for range 10 {
		exchange(tx, rx, 0, 64, minFrame)
		tx.send(0, 100, minFrame) // 100 in the rx ring, unread
		var d [3]Desc
		for _, d := range d[:rx.sock.Receive(d[:])] {
			rx.cache.Put(d.Addr)
		}
		// And some in the tx ring, unsent.
		rx.sock.Transmit([]Desc{rx.frame(0, minFrame), rx.frame(1, minFrame)})
		rx.check()
		rx.detach()
		rx.poll.Remove(rx.sock)
		rx.close(false)
		census, err := rx.umem.Checker().Check()
		if want := rx.umem.Frames(); err != nil || census.Free != want {
			t.Fatalf("%d of %d frames are free after the close, %v", census.Free, want, err)
		}
		rx.open(Config{})
		rx.attach(redirect, false)
		rx.poll.Add(rx.sock)
		rx.step()
	}
	exchange(tx, rx, 0, 64, minFrame)
}

// Multi-buffer

const jumbo = 9000

// jumboStations are both ends of a veth pair of jumbo frames.
func jumboStations(t *testing.T, mode link.XDPAttachFlags, tx, rx stationConfig) (*station, *station) {
	t.Helper()
	a, b := pair(t, netlab.VethOptions{MTU: jumbo})
	tx.sock.MultiBuffer, rx.sock.MultiBuffer = true, true
	return newStation(t, a, "v0", mode, tx), newStation(t, b, "v1", mode, rx)
}

// chain makes descriptors of one packet of n bytes, at most part bytes each.
func (s *station) chain(seq uint32, n, part int) []Desc {
	s.t.Helper()
	packet := make([]byte, n)
	pattern(packet, seq)
	var descs []Desc
	for len(packet) > 0 {
		chunk, ok := s.cache.Get()
		if !ok {
			s.t.Fatal("no frame")
		}
		d := Desc{Addr: s.umem.Payload(chunk), Len: uint32(min(part, len(packet)))}
		copy(s.umem.Frame(d.Addr, d.Len), packet)
		packet = packet[d.Len:]
		if len(packet) > 0 {
			d.Options = OptionContinued
		}
		descs = append(descs, d)
	}
	return descs
}

// receiveChain receives one packet and returns it and the number of its descriptors.
func (s *station) receiveChain() (packet []byte, n int) {
	s.t.Helper()
	for more := true; more; n++ {
		s.receive(1, func(d Desc, frame []byte) {
			packet = append(packet, frame...)
			more = d.Continued()
		})
	}
	return packet, n
}

func testSendReceive9K(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := jumboStations(t, mode, stationConfig{}, stationConfig{})
	if !tx.sock.Granted().MultiBuffer {
		t.Error("multi-buffer is not granted")
	}
	for i, size := range []int{minFrame, 3840, 3841, 7680, 7681, jumbo} {
		tx.step()
		descs := tx.chain(uint32(i), size, 3840)
		if tx.sock.Transmit(descs) != len(descs) || tx.sock.Kick() != KickDone {
			t.Fatalf("%d bytes: not sent", size)
		}
		packet, n := rx.receiveChain()
		seq, err := checkPattern(packet)
		if err != nil || seq != uint32(i) || len(packet) != size {
			t.Errorf("packet %d of %d bytes, %v, want %d of %d", seq, len(packet), err, i, size)
		}
		if want := (size + 3839) / 3840; n != want {
			t.Errorf("%d bytes: %d descriptors, want %d", size, n, want)
		}
	}
	tx.step()
	tx.check()
	rx.check()
}

func testMetadataCopyMultiBuffer(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := jumboStations(t, mode, stationConfig{}, stationConfig{program: redirectMeta})
	for i := range uint32(10) {
		tx.step()
		descs := tx.chain(i, jumbo, 3840)
		if tx.sock.Transmit(descs) != len(descs) || tx.sock.Kick() != KickDone {
			t.Fatal("not sent")
		}
		checkMetadata(t, rx, i, 1)
		rx.receiveChain() // the rest
	}
}

// testInvalidDescriptorsMultiBuffer: a packet with a bad part is dropped as a whole, and the next
// good one arrives.
func testInvalidDescriptorsMultiBuffer(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := jumboStations(t, mode, stationConfig{lax: true}, stationConfig{})
	const large = 3072
	size := tx.umem.size
	for _, tt := range []struct {
		name string
		bad  func(*Desc) // of the second of three
	}{
		{"no bytes", func(d *Desc) { d.Len = 0 }},
		{"address past the umem", func(d *Desc) { d.Addr = size }},
		{"length beyond the chunk", func(d *Desc) { d.Len = 4097 }},
		{"unknown option", func(d *Desc) { d.Options |= 1 << 7 }},
		{"across the chunk's end", func(d *Desc) { d.Addr = 4096 - minFrame/2; d.Len = minFrame }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			descs := tx.chain(1, 3*large, large)
			tt.bad(&descs[1])
			descs[1].Options &^= OptionContinued
			// The packet ends with its bad part; what follows is a new one.
			tx.sock.Transmit(descs[:2])
			tx.sock.Transmit(tx.chain(2, minFrame, large))
			if k := tx.sock.Kick(); k != KickDone {
				t.Fatalf("kick: %v", k)
			}
			packet, n := rx.receiveChain()
			if seq, err := checkPattern(packet); err != nil || seq != 2 || n != 1 {
				t.Errorf("packet %d of %d parts, %v, want the good one", seq, n, err)
			}
			rx.quiet()
			tx.step()
		})
	}
}

func testTooManyFrags(t *testing.T, mode link.XDPAttachFlags) {
	tx, rx := jumboStations(t, mode, stationConfig{lax: true}, stationConfig{})
	frags := 17
	if b, err := os.ReadFile("/proc/sys/net/core/max_skb_frags"); err == nil {
		frags, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	// The head of the packet is no frag.
	most := tx.chain(1, (frags+1)*minFrame, minFrame)
	if tx.sock.Transmit(most) != frags+1 || tx.sock.Kick() != KickDone {
		t.Fatal("not sent")
	}
	packet, _ := rx.receiveChain()
	if seq, err := checkPattern(packet); err != nil || seq != 1 || len(packet) != (frags+1)*minFrame {
		t.Errorf("packet %d of %d bytes, %v, want one of %d", seq, len(packet), err, (frags+1)*minFrame)
	}
	// One more, and the packet after it, which is good.
	before := tx.stats().TxInvalidDescs
	tx.sock.Transmit(tx.chain(2, (frags+2)*minFrame, minFrame))
	tx.sock.Transmit(tx.chain(3, minFrame, minFrame))
	if k := tx.sock.Kick(); k != KickDone {
		t.Fatalf("kick: %v", k)
	}
	packet, _ = rx.receiveChain()
	if seq, err := checkPattern(packet); err != nil || seq != 3 {
		t.Errorf("packet %d, %v, want the one after that with too many frags", seq, err)
	}
	// Kernels differ in whether the packet's last descriptor is drained with the others.
	if got := tx.stats().TxInvalidDescs - before; got < uint64(frags+1) || got > uint64(frags+2) {
		t.Errorf("the kernel counts %d invalid descriptors, want %d or one more", got, frags+1)
	}
}
