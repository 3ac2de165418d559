//go:build linux

package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// CaptureOptions choose what a capture keeps. The zero value keeps everything, both ways.
type CaptureOptions struct {
	Match  func(*Frame) bool // nil: every frame. Must not keep or change the frame
	Buffer int               // bytes the kernel may hold for us, its overhead of about 1 KiB a frame included; 0: 16 MiB
}

// Capture sees the frames that pass a device, through a packet socket: those received after a native XDP program of the
// device let them pass, and those which the kernel's stack sends. Frames that AF_XDP sends bypass the taps of the sending device
// (net/core/dev.c:__dev_direct_xmit) and are seen where they arrive.
//
// The frames wait in the socket's own bounded queue. What did not fit is counted: see [Capture.Lost].
type Capture struct {
	dev   string
	index int
	match func(*Frame) bool

	socket *packetSocket

	mu      sync.Mutex // one reader at a time
	scratch []byte
	oob     []byte

	stateMu sync.Mutex
	lost    uint64
	closed  bool
}

// captureBytes is the longest frame that is kept whole: a full TSO segment with its headers.
const captureBytes = 68 << 10

// Capture opens a capture on a device. It has begun when Capture returns.
func (n *Namespace) Capture(dev string, o CaptureOptions) *Capture {
	n.tb.Helper()
	c := &Capture{
		dev:     dev,
		index:   n.Index(dev),
		match:   o.Match,
		scratch: make([]byte, captureBytes),
		oob:     make([]byte, 256),
	}
	if o.Buffer == 0 {
		o.Buffer = 16 << 20
	}
	err := n.Do(func() error {
		s, err := openPacketSocket(0) // deaf until bound to the device
		if err != nil {
			return err
		}
		c.socket = s
		if err := c.setUp(o.Buffer); err != nil {
			s.Close()
			return err
		}
		return nil
	})
	if err != nil {
		n.tb.Fatalf("capturing on %q in namespace %q: %v", dev, n.name, err)
	}
	n.tb.Cleanup(func() {
		if lost := c.Lost(); lost > 0 {
			n.tb.Logf("capture on %q in namespace %q lost %d frames", dev, n.name, lost)
		}
		c.Close()
	})
	return c
}

func (c *Capture) setUp(buffer int) error {
	var err error
	if cerr := c.socket.raw.Control(func(fd uintptr) {
		s := int(fd)
		err = errors.Join(
			// The kernel doubles it.
			unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer/2),
			unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptInt(s, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
			unix.Bind(s, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: c.index}),
		)
	}); cerr != nil {
		return cerr
	}
	return err
}

// Next returns the oldest frame that matches and waits for one until ctx ends.
func (c *Capture) Next(ctx context.Context) (Frame, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.socket.SetReadDeadline(time.Time{}); err != nil {
		return Frame{}, c.failure(err)
	}
	// A deadline in the past wakes the reader.
	stop := context.AfterFunc(ctx, func() { c.socket.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		f, err := c.read(true)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
			return Frame{}, fmt.Errorf("waiting for a frame on %q: %w", c.dev, context.Cause(ctx))
		case errors.Is(err, unix.ENETDOWN): // reported once; the socket goes on when the device comes back
		case err != nil:
			return Frame{}, err
		case c.match == nil || c.match(&f):
			return f, nil
		}
	}
}

// Drain returns the frames that wait, without waiting for more. All frames that passed the device before the call are
// among them, unless they were lost.
func (c *Capture) Drain() ([]Frame, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.socket.SetReadDeadline(time.Time{}); err != nil {
		return nil, c.failure(err)
	}
	var frames []Frame
	for {
		f, err := c.read(false)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return frames, nil
		case errors.Is(err, unix.ENETDOWN):
		case err != nil:
			return frames, err
		case c.match == nil || c.match(&f):
			frames = append(frames, f)
		}
	}
}

// read receives one frame; if there is none, it waits or returns EAGAIN.
func (c *Capture) read(wait bool) (Frame, error) {
	var (
		n, oobn int
		from    unix.Sockaddr
		err     error
	)
	if rerr := c.socket.raw.Read(func(fd uintptr) bool {
		for {
			// MSG_TRUNC as an argument: n is the frame's length even if it did not fit.
			n, oobn, _, from, err = unix.Recvmsg(int(fd), c.scratch, c.oob, unix.MSG_TRUNC)
			if err != unix.EINTR {
				return !wait || err != unix.EAGAIN
			}
		}
	}); rerr != nil {
		return Frame{}, c.failure(rerr)
	}
	if err != nil {
		return Frame{}, err
	}
	f := Frame{Length: n, Data: c.scratch[:min(n, len(c.scratch))]}
	if sa, ok := from.(*unix.SockaddrLinklayer); ok && sa.Pkttype == unix.PACKET_OUTGOING {
		f.Direction = Out
	}
	messages, err := unix.ParseSocketControlMessage(c.oob[:oobn])
	if err != nil {
		return Frame{}, fmt.Errorf("parsing control messages: %w", err)
	}
	var tag []byte
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS:
			f.Time = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		case m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA:
			// struct tpacket_auxdata, include/uapi/linux/if_packet.h.
			status := binary.NativeEndian.Uint32(m.Data)
			f.Partial = status&unix.TP_STATUS_CSUMNOTREADY != 0
			f.GSO = status&unix.TP_STATUS_GSO_TCP != 0
			if status&unix.TP_STATUS_VLAN_VALID != 0 {
				tpid := uint16(unix.ETH_P_8021Q)
				if status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
					tpid = binary.NativeEndian.Uint16(m.Data[18:])
				}
				tag = binary.BigEndian.AppendUint16(nil, tpid)
				tag = binary.BigEndian.AppendUint16(tag, binary.NativeEndian.Uint16(m.Data[16:]))
			}
		}
	}
	const addresses = 12 // the tag stands behind the two Ethernet addresses
	data := make([]byte, 0, len(f.Data)+len(tag))
	if tag != nil && len(f.Data) >= addresses {
		data = append(data, f.Data[:addresses]...)
		data = append(data, tag...)
		data = append(data, f.Data[addresses:]...)
		f.Length += len(tag)
	} else {
		data = append(data, f.Data...)
	}
	f.Data = data
	return f, nil
}

// failure names an error of the poller, whose word for a closed file is not exported.
func (c *Capture) failure(err error) error {
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	if c.closed {
		return fmt.Errorf("capturing on %q: %w", c.dev, net.ErrClosed)
	}
	return err
}

// Lost returns how many frames the capture lost since it was opened because its buffer was full, and those that a
// closed one had lost.
func (c *Capture) Lost() uint64 {
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	if !c.closed {
		c.socket.raw.Control(func(fd uintptr) {
			// Reading resets the kernel's counters (net/packet/af_packet.c:packet_getsockopt).
			if stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
				c.lost += uint64(stats.Drops)
			}
		})
	}
	return c.lost
}

// Close ends the capture; a waiting Next returns net.ErrClosed.
func (c *Capture) Close() error {
	c.Lost()
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return c.socket.Close()
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
