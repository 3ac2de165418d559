//go:build linux

package bench

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of sendmmsg(2), which package unix does not have.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// messages is a batch for sendmmsg or recvmmsg. Everything that the headers point to
// belongs to it, so it must stay reachable while a call runs.
type messages struct {
	headers []mmsghdr
	iovs    []unix.Iovec
	data    [][]byte
	names   []unix.RawSockaddrInet4
	control [][]byte
}

// newMessages makes n messages with buffers of size bytes; each has an address, and
// control bytes for a source address if sending.
func newMessages(n, size int, sending bool) *messages {
	m := &messages{
		headers: make([]mmsghdr, n), iovs: make([]unix.Iovec, n), data: make([][]byte, n),
		names: make([]unix.RawSockaddrInet4, n), control: make([][]byte, n),
	}
	for i := range n {
		m.data[i] = make([]byte, size)
		m.iovs[i].Base = &m.data[i][0]
		m.iovs[i].SetLen(size)
		h := &m.headers[i].hdr
		h.Iov = &m.iovs[i]
		h.Iovlen = 1
		h.Name = (*byte)(unsafe.Pointer(&m.names[i]))
		h.Namelen = unix.SizeofSockaddrInet4
		if sending {
			c := make([]byte, unix.CmsgSpace(unix.SizeofInet4Pktinfo))
			ch := (*unix.Cmsghdr)(unsafe.Pointer(&c[0]))
			ch.Level, ch.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
			ch.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
			m.control[i] = c
			h.Control = &c[0]
			h.SetControllen(len(c))
		}
	}
	return m
}

// to sets where message i goes.
func (m *messages) to(i int, ap netip.AddrPort) {
	n := &m.names[i]
	n.Family = unix.AF_INET
	n.Addr = ap.Addr().As4()
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&n.Port))[:], ap.Port())
}

// from sets the source address of message i: ipi_spec_dst of struct in_pktinfo.
func (m *messages) from(i int, a [4]byte) { copy(m.control[i][unix.CmsgLen(0)+4:], a[:]) }

// source is where message i came from.
func (m *messages) source(i int) ([4]byte, uint16) {
	n := &m.names[i]
	return n.Addr, binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&n.Port))[:])
}

// send sends the first n messages and returns how many went.
func (m *messages) send(fd, n int) (int, error) { return m.call(unix.SYS_SENDMMSG, fd, n, 0) }

// receive receives what waits, without waiting. After it payload gives the messages.
func (m *messages) receive(fd int) (int, error) {
	for i := range m.headers {
		m.headers[i].hdr.Namelen = unix.SizeofSockaddrInet4
	}
	return m.call(unix.SYS_RECVMMSG, fd, len(m.headers), unix.MSG_DONTWAIT)
}

// payload is what message i received.
func (m *messages) payload(i int) []byte {
	return m.data[i][:min(int(m.headers[i].len), len(m.data[i]))]
}

func (m *messages) call(trap uintptr, fd, n, flags int) (int, error) {
	for {
		got, _, e := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&m.headers[0])), uintptr(n), uintptr(flags), 0, 0)
		switch e {
		case 0:
			return int(got), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// testRun is union bpf_attr of BPF_PROG_TEST_RUN (include/uapi/linux/bpf.h).
type testRun struct {
	fd, retval, dataSize, dataOutSize     uint32
	data, dataOut                         *byte
	repeat, duration, ctxSize, ctxOutSize uint32
	ctx, ctxOut                           *byte
	flags, cpu, batch, _                  uint32
}

// runLive runs an XDP program on live frames until it has run repeat times, or until the thread
// gets a signal (EINTR), which package ebpf would begin again after.
func runLive(fd int, frame, ctx []byte, repeat uint32) error {
	const bpfProgTestRun, liveFrames = 10, 1 << 1
	attr := testRun{
		fd: uint32(fd), dataSize: uint32(len(frame)), data: &frame[0], repeat: repeat,
		ctxSize: uint32(len(ctx)), ctx: &ctx[0], flags: liveFrames,
	}
	_, _, e := unix.Syscall(unix.SYS_BPF, bpfProgTestRun, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if e != 0 {
		return e
	}
	return nil
}

// datagram is a buffer with the address of its other end, for raw system calls.
type datagram struct {
	data []byte
	name unix.RawSockaddrInet4
	size uint32
}

func newDatagram(size int) *datagram { return &datagram{data: make([]byte, size)} }

func (d *datagram) run() uint32 {
	return uint32(d.data[0])<<24 | uint32(d.data[1])<<16 | uint32(d.data[2])<<8 | uint32(d.data[3])
}

// receive waits for one, as long as the socket lets it; receiveNow does not.
func (d *datagram) receive(fd int) (int, unix.Errno)    { return d.receiveWith(fd, 0) }
func (d *datagram) receiveNow(fd int) (int, unix.Errno) { return d.receiveWith(fd, unix.MSG_DONTWAIT) }

func (d *datagram) receiveWith(fd, flags int) (int, unix.Errno) {
	d.size = unix.SizeofSockaddrInet4
	n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&d.data[0])), uintptr(len(d.data)), uintptr(flags),
		uintptr(unsafe.Pointer(&d.name)), uintptr(unsafe.Pointer(&d.size)))
	return int(n), e
}

func (d *datagram) answer(fd, n int) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&d.data[0])), uintptr(n), 0,
		uintptr(unsafe.Pointer(&d.name)), uintptr(d.size))
	return e
}

func (d *datagram) from() netip.AddrPort {
	p := (*[2]byte)(unsafe.Pointer(&d.name.Port))
	return netip.AddrPortFrom(netip.AddrFrom4(d.name.Addr), uint16(p[0])<<8|uint16(p[1]))
}
