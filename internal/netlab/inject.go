//go:build linux

package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Injector sends whole frames out of a device, through a packet socket.
type Injector struct {
	addr unix.SockaddrLinklayer
	open func(vnetHeader bool) (*packetSocket, error)

	mu     sync.Mutex
	plain  *packetSocket
	vnet   *packetSocket // opened by the first SendPartial
	closed bool
}

// Inject opens an injector on a device. What it sends leaves by that device: on one end of a veth pair, it
// arrives at the other.
func (n *Namespace) Inject(dev string) *Injector {
	n.tb.Helper()
	index := n.Index(dev)
	i := &Injector{addr: unix.SockaddrLinklayer{Ifindex: index, Halen: 6}}
	i.open = func(vnetHeader bool) (s *packetSocket, err error) {
		err = n.Do(func() error {
			s, err = openPacketSocket(0) // protocol 0: it receives nothing
			return err
		})
		if err == nil && vnetHeader {
			if err = s.setInt(unix.PACKET_VNET_HDR, 1); err != nil {
				s.Close()
			}
		}
		return s, err
	}
	var err error
	if i.plain, err = i.open(false); err != nil {
		n.tb.Fatalf("opening an injector on %q in namespace %q: %v", dev, n.name, err)
	}
	n.tb.Cleanup(func() { i.Close() })
	return i
}

// Send sends frames in order and returns how many went out; it stops at the first error. The kernel answers ENOBUFS
// for a frame that the device had no room for.
func (i *Injector) Send(frames ...[]byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return 0, net.ErrClosed
	}
	for sent, frame := range frames {
		if err := i.plain.send(&i.addr, frame); err != nil {
			return sent, fmt.Errorf("sending frame of %d bytes: %w", len(frame), err)
		}
	}
	return len(frames), nil
}

// SendPartial sends a frame as a local socket would hand it to a device with checksum offload: its checksum, at
// start+offset, covers the pseudo header only and is for the device to finish from start on.
func (i *Injector) SendPartial(frame []byte, start, offset uint16) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return net.ErrClosed
	}
	if i.vnet == nil {
		s, err := i.open(true)
		if err != nil {
			return fmt.Errorf("opening a packet socket: %w", err)
		}
		i.vnet = s
	}
	// struct virtio_net_hdr, include/uapi/linux/virtio_net.h.
	var header [10]byte
	header[0] = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.NativeEndian.PutUint16(header[6:], start)
	binary.NativeEndian.PutUint16(header[8:], offset)
	if err := i.vnet.send(&i.addr, header[:], frame); err != nil {
		return fmt.Errorf("sending partial frame of %d bytes: %w", len(frame), err)
	}
	return nil
}

// Close closes the injector's sockets.
func (i *Injector) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil
	}
	i.closed = true
	err := i.plain.Close()
	if i.vnet != nil {
		err = errors.Join(err, i.vnet.Close())
	}
	return err
}

// packetSocket is an AF_PACKET socket that waits in the runtime's poller.
type packetSocket struct {
	*os.File
	raw syscall.RawConn
}

// openPacketSocket is called inside the namespace.
func openPacketSocket(protocolBE uint16) (*packetSocket, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(protocolBE))
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "packet socket")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &packetSocket{File: f, raw: raw}, nil
}

func (s *packetSocket) setInt(option, value int) error {
	var err error
	if cerr := s.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, option, value)
	}); cerr != nil {
		return cerr
	}
	return err
}

func (s *packetSocket) send(to *unix.SockaddrLinklayer, parts ...[]byte) error {
	var err error
	if werr := s.raw.Write(func(fd uintptr) bool {
		for {
			_, err = unix.SendmsgBuffers(int(fd), parts, nil, to, 0)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	}); werr != nil {
		return werr
	}
	return err
}
