//go:build linux

package xsk

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file holds what golang.org/x/sys/unix has no function for.

// setUmemReg registers mem with the socket (XDP_UMEM_REG).
func setUmemReg(fd int, mem []byte, reg *unix.XDPUmemReg) error {
	reg.Addr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_UMEM_REG,
		uintptr(unsafe.Pointer(reg)), unsafe.Sizeof(*reg), 0)
	runtime.KeepAlive(mem)
	if errno != 0 {
		return errno
	}
	return nil
}

// getsockopt fills *v from a SOL_XDP option. A kernel that knows a shorter struct answers with
// that, which is EINVAL here.
func getsockopt[T any](fd, option int, v *T) error {
	n := uint32(unsafe.Sizeof(*v))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(option),
		uintptr(unsafe.Pointer(v)), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return errno
	}
	if n != uint32(unsafe.Sizeof(*v)) {
		return unix.EINVAL
	}
	return nil
}

// sendKick is sendto without data: look at the tx ring. Raw, because it does not block, and the
// scheduler's bookkeeping around a Syscall costs as much as a small batch saves.
func sendKick(fd int) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	return errno
}

// receiveKick is recvfrom without a buffer: look at the fill ring.
func receiveKick(fd int) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	return errno
}

// word is the ring word at offset off of a mapping.
func word(mem []byte, off uint64) *uint32 { return (*uint32)(unsafe.Pointer(&mem[off])) }

// entries is the ring's array of n entries at offset off of a mapping.
func entries[T uint64 | Desc](mem []byte, off uint64, n uint32) []T {
	_ = mem[off+uint64(n)*uint64(unsafe.Sizeof(*new(T)))-1]
	return unsafe.Slice((*T)(unsafe.Pointer(&mem[off])), n)
}

// mappingSize is what must be mapped of a ring of n entries of type T.
func mappingSize[T uint64 | Desc](off unix.XDPRingOffset, n uint32) int {
	return int(off.Desc) + int(n)*int(unsafe.Sizeof(*new(T)))
}

// newProducer makes the index arithmetic over a mapping.
func newProducer(mem []byte, off unix.XDPRingOffset, size uint32) Producer {
	p := Producer{
		producer: word(mem, off.Producer),
		consumer: word(mem, off.Consumer),
		flags:    word(mem, off.Flags),
		mask:     size - 1,
		size:     size,
	}
	p.submitted = *p.producer
	p.cachedProd = p.submitted
	p.cachedCons = *p.consumer + size
	return p
}

// newConsumer makes the index arithmetic over a mapping.
func newConsumer(mem []byte, off unix.XDPRingOffset, size uint32) Consumer {
	c := Consumer{
		producer: word(mem, off.Producer),
		consumer: word(mem, off.Consumer),
		mask:     size - 1,
		size:     size,
	}
	c.released = *c.consumer
	c.cachedCons = c.released
	c.cachedProd = c.released
	return c
}

// ethtoolChannels is struct ethtool_channels (include/uapi/linux/ethtool.h).
type ethtoolChannels struct {
	cmd                                         uint32
	maxRx, maxTx, maxOther, maxCombined         uint32
	rxCount, txCount, otherCount, combinedCount uint32
}

// deviceQueues returns how many queues a socket can be bound to. Not all drivers say.
func deviceQueues(name string) (n int, ok bool) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	ch := ethtoolChannels{cmd: unix.ETHTOOL_GCHANNELS}
	req := struct { // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&ch)}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	runtime.KeepAlive(&ch)
	if errno != 0 {
		return 0, false
	}
	return int(ch.combinedCount + max(ch.rxCount, ch.txCount)), true
}

// deviceName returns the name of the device with this index in the thread's network namespace.
func deviceName(ifindex int) (string, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	req.SetUint32(uint32(ifindex))
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, req); err != nil {
		return "", err
	}
	return req.Name(), nil
}

// deviceMTU returns the device's MTU.
func deviceMTU(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFMTU, req); err != nil {
		return 0, err
	}
	return int(req.Uint32()), nil
}
