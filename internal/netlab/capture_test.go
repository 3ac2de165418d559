//go:build linux

package netlab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

// experimental is a frame of the EtherType for local experiments (IEEE 802.1), which no kernel answers.
func experimental(from, to *Namespace, tags []byte, payload []byte) []byte {
	frame := append(append([]byte{}, to.MAC("eth0")...), from.MAC("eth0")...)
	return append(append(append(frame, tags...), 0x88, 0xb5), payload...)
}

func isExperimental(f *Frame) bool {
	etherType, _, err := network(f.Data)
	return err == nil && etherType == 0x88b5
}

func TestCaptureSeesBothEnds(t *testing.T) {
	a, b := wire(t, VethOptions{MTU: 9000})
	ctx := testContext(t)
	for _, tt := range []struct {
		name  string
		frame []byte
	}{
		{"short", experimental(a, b, nil, bytes.Repeat([]byte{0xa5}, 46))},
		{"full", experimental(a, b, nil, bytes.Repeat([]byte{0x5a}, 1500))},
		{"jumbo", experimental(a, b, nil, bytes.Repeat([]byte{0x5a}, 9000))},
		{"one tag", experimental(a, b, []byte{0x81, 0, 0x20, 100}, bytes.Repeat([]byte{1}, 50))},
		{"two tags", experimental(a, b, []byte{0x88, 0xa8, 0, 5, 0x81, 0, 0, 6}, bytes.Repeat([]byte{1}, 50))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := b.Capture("eth0", CaptureOptions{Match: isExperimental})
			out := a.Capture("eth0", CaptureOptions{Match: isExperimental})
			start := time.Now()
			if n, err := a.Inject("eth0").Send(tt.frame, tt.frame, tt.frame); n != 3 || err != nil {
				t.Fatalf("sent %d of 3: %v", n, err)
			}
			for _, end := range []struct {
				c    *Capture
				want Direction
			}{{in, In}, {out, Out}} {
				f, err := end.c.Next(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(f.Data, tt.frame) || f.Direction != end.want || f.Length != len(tt.frame) || f.Partial || f.GSO {
					t.Errorf("captured %+v, want %x going %v", f, tt.frame, end.want)
				}
				if age := f.Time.Sub(start); age < -time.Second || age > 5*time.Second {
					t.Errorf("captured %v after it was sent", age)
				}
				rest, err := end.c.Drain()
				if len(rest) != 2 || err != nil {
					t.Errorf("drained %d frames, %v; want 2", len(rest), err)
				}
			}
		})
	}
}

func TestCaptureCountsLost(t *testing.T) {
	a, b := wire(t, VethOptions{})
	for _, n := range []*Namespace{a, b} {
		n.Sysctl("net.ipv6.conf.eth0.disable_ipv6", "1") // else multicast reports are counted, too
	}
	c := b.Capture("eth0", CaptureOptions{Buffer: 64 << 10})
	const sent = 1000
	injector, frame := a.Inject("eth0"), experimental(a, b, nil, make([]byte, 1000))
	for range sent {
		if _, err := injector.Send(frame); err != nil {
			t.Fatal(err)
		}
	}
	first := c.Lost()
	frames, err := c.Drain()
	if err != nil {
		t.Fatal(err)
	}
	if first == 0 || len(frames) == 0 || uint64(len(frames))+c.Lost() != sent {
		t.Errorf("captured %d, lost %d: want some of each, and %d together", len(frames), c.Lost(), sent)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if got := c.Lost(); got != first {
		t.Errorf("lost %d after Close, want %d", got, first)
	}
}

func TestCaptureWaiting(t *testing.T) {
	a, b := wire(t, VethOptions{})
	c := b.Capture("eth0", CaptureOptions{Match: isExperimental})

	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	if _, err := c.Next(ctx); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}

	// A cancelled wait leaves the capture usable.
	if _, err := a.Inject("eth0").Send(experimental(a, b, nil, make([]byte, 50))); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Next(testContext(t)); err != nil {
		t.Error(err)
	}

	// As does a device that went down and came back.
	b.Down("eth0")
	b.Up("eth0")
	n := a.Inject("eth0")
	if err := a.settle("eth0", true); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Send(experimental(a, b, nil, make([]byte, 50))); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Next(testContext(t)); err != nil {
		t.Error(err)
	}

	done := make(chan error, 1)
	go func() {
		_, err := c.Next(context.Background())
		done <- err
	}()
	c.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v after Close, want %v", err, net.ErrClosed)
	}
	if _, err := c.Drain(); err == nil {
		t.Error("Drain of a closed capture gives no error")
	}
}

// TestCapturePartial asks for the trap of veth: sockets leave the checksum to a device that never does it.
func TestCapturePartial(t *testing.T) {
	a, b := addressed(t, VethOptions{})
	ctx := testContext(t)
	server := b.EchoUDP(netip.AddrPortFrom(netip.IPv6Unspecified(), echoPort))
	tcp := b.EchoTCP(server.Addr())
	for _, offload := range []bool{true, false} {
		a.Offload("eth0", "tx", offload)
		for _, f := range Families {
			to := netip.AddrPortFrom(NodeAddr(f, 2), echoPort)
			for _, network := range []string{"udp", "tcp"} {
				c := b.Capture("eth0", CaptureOptions{Match: func(f *Frame) bool {
					p := parse(f.Data)
					return f.Direction == In && (p.Layer(layers.LayerTypeUDP) != nil || p.Layer(layers.LayerTypeTCP) != nil)
				}})
				if _, err := a.Exchange(ctx, network, to, 1001); err != nil {
					t.Fatal(err)
				}
				frames, err := c.Drain()
				if err != nil || len(frames) == 0 {
					t.Fatalf("captured %d frames, %v", len(frames), err)
				}
				for _, frame := range frames {
					if frame.Partial != offload {
						t.Errorf("%v %s: partial %t, want %t: %v", f, network, frame.Partial, offload, parse(frame.Data))
					}
					if err := VerifyChecksums(&frame); err != nil {
						t.Errorf("%v %s, offload %t: %v", f, network, offload, err)
					}
					// The same bytes taken for finished, or the other way round, must not pass.
					frame.Partial = !frame.Partial
					if VerifyChecksums(&frame) == nil {
						t.Errorf("%v %s, offload %t: checksum passes both as partial and as finished", f, network, offload)
					}
				}
				c.Close()
			}
		}
	}
	if tcp.Requests() == 0 {
		t.Error("the TCP server was not asked")
	}
}

func TestCaptureGSO(t *testing.T) {
	a, b := addressed(t, VethOptions{})
	b.EchoTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), echoPort))
	c := b.Capture("eth0", CaptureOptions{Match: func(f *Frame) bool { return f.Direction == In && f.GSO }})
	if _, err := a.Exchange(testContext(t), "tcp", netip.AddrPortFrom(NodeAddr(IPv4, 2), echoPort), 1<<20); err != nil {
		t.Fatal(err)
	}
	frames, err := c.Drain()
	if err != nil || len(frames) == 0 {
		t.Fatalf("captured %d segments above the MTU, %v", len(frames), err)
	}
	for _, f := range frames {
		if len(f.Data) <= 1514 {
			t.Errorf("segment of %d bytes is not above the MTU", len(f.Data))
		}
		if err := VerifyChecksums(&f); err != nil {
			t.Error(err)
		}
	}
}

func TestSendPartial(t *testing.T) {
	a, b := addressed(t, VethOptions{})
	ctx := testContext(t)
	conn, err := b.ListenPacket(netip.AddrPortFrom(NodeAddr(IPv4, 2), 4000))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	frame := udpFrame(t, a, b, IPv4, []byte("partial"))
	const start, offset = 14 + 20, 6
	binary.BigEndian.PutUint16(frame[start+offset:], fold(add(0, frame[26:34])+17+uint64(len(frame)-start)))
	c := b.Capture("eth0", CaptureOptions{Match: func(f *Frame) bool { return f.Direction == In && bytes.Equal(f.Data, frame) }})
	if err := a.Inject("eth0").SendPartial(frame, start, offset); err != nil {
		t.Fatal(err)
	}
	f, err := c.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !f.Partial {
		t.Error("the frame arrived as finished")
	}
	if err := VerifyChecksums(&f); err != nil {
		t.Error(err)
	}
	got := make([]byte, 100)
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, _, err := conn.ReadFromUDPAddrPort(got); err != nil || string(got[:n]) != "partial" {
		t.Errorf("the socket got %q, %v", got[:n], err)
	}
}

func TestInjectErrors(t *testing.T) {
	a, b := wire(t, VethOptions{})
	i := a.Inject("eth0")
	good, tooLong := experimental(a, b, nil, make([]byte, 50)), experimental(a, b, nil, make([]byte, 3000))
	if n, err := i.Send(good, tooLong, good); n != 1 || !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("sent %d, %v; want 1, EMSGSIZE", n, err)
	}
	i.Close()
	if _, err := i.Send(good); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v after Close, want %v", err, net.ErrClosed)
	}
	if err := i.SendPartial(good, 14, 0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v after Close, want %v", err, net.ErrClosed)
	}
	if err := i.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func parse(frame []byte) gopacket.Packet {
	return gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
}

// udpFrame is a datagram from node 1 at a to node 2 at b, to port 4000.
func udpFrame(t *testing.T, a, b *Namespace, f Family, payload []byte) []byte {
	t.Helper()
	return serialize(t,
		&layers.Ethernet{SrcMAC: a.MAC("eth0"), DstMAC: b.MAC("eth0"), EthernetType: etherTypeOf(f)},
		ipLayer(f, NodeAddr(f, 1), NodeAddr(f, 2), layers.IPProtocolUDP),
		&layers.UDP{SrcPort: 4001, DstPort: 4000}, gopacket.Payload(payload))
}
