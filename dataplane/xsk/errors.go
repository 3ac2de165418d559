//go:build linux

package xsk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What a caller of Open may branch on. An OpenError matches one of them and the system's errno.
var (
	// ErrUnsupported: the kernel has no AF_XDP, or is older than 6.8 (TX metadata).
	ErrUnsupported = errors.New("AF_XDP is not supported by this kernel")
	// ErrPermission: the process lacks CAP_NET_RAW.
	ErrPermission = errors.New("missing capability")
	// ErrMemlock: the umem is larger than the memory that the process may lock.
	ErrMemlock = errors.New("locked memory exceeded")
	// ErrNoDevice: there is no such device in this network namespace (any more).
	ErrNoDevice = errors.New("no such device")
	// ErrNoQueue: the device has no such queue.
	ErrNoQueue = errors.New("no such queue")
	// ErrBusy: another socket is bound to the queue.
	ErrBusy = errors.New("queue is busy")
	// ErrMTU: the device's frames are longer than what a chunk receives.
	ErrMTU = errors.New("MTU does not fit a frame")
	// ErrZeroCopy: zero copy was asked for and the driver, or the shared umem, has none.
	ErrZeroCopy = errors.New("zero copy is not supported")
	// ErrMultiBuffer: multi-buffer was asked for on a umem whose first socket had none.
	ErrMultiBuffer = errors.New("multi-buffer is not set for this umem")
)

// OpenError is why a socket did not open.
type OpenError struct {
	Interface string // name, or "ifindex 7" if it has none
	Queue     int
	Option    string // the system call or socket option that failed
	Kind      error  // one of the sentinels, or nil
	Err       error  // the system's error, or nil
	Mend      string // what to do about it, in words
}

func (e *OpenError) Error() string {
	msg := fmt.Sprintf("af_xdp socket on %s queue %d: %s", e.Interface, e.Queue, e.Option)
	if e.Kind != nil {
		msg += ": " + e.Kind.Error()
	}
	if e.Err != nil {
		msg += ": " + e.Err.Error()
	}
	if e.Mend != "" {
		msg += " (" + e.Mend + ")"
	}
	return msg
}

// Unwrap lets errors.Is match the sentinel as well as the errno.
func (e *OpenError) Unwrap() []error {
	var errs []error
	if e.Kind != nil {
		errs = append(errs, e.Kind)
	}
	if e.Err != nil {
		errs = append(errs, e.Err)
	}
	return errs
}

// explainSocket finds the reason of a failed socket(AF_XDP).
func explainSocket(e *OpenError) *OpenError {
	switch {
	case errors.Is(e.Err, unix.EPERM):
		e.Kind = ErrPermission
		e.Mend = "CAP_NET_RAW is needed in the user namespace that owns the network namespace"
	case errors.Is(e.Err, unix.EAFNOSUPPORT):
		e.Kind = ErrUnsupported
		e.Mend = "the kernel needs CONFIG_XDP_SOCKETS"
	}
	return e
}

// explainRegister finds the reason of a failed XDP_UMEM_REG of size bytes.
func explainRegister(e *OpenError, size uint64) *OpenError {
	switch {
	case errors.Is(e.Err, unix.ENOBUFS): // net/xdp/xdp_umem.c: xdp_umem_account_pages
		e.Kind = ErrMemlock
		e.Mend = fmt.Sprintf("the umem wants %d bytes; RLIMIT_MEMLOCK is %s; CAP_IPC_LOCK, which lifts the limit, is %s: raise the limit (ulimit -l, LimitMEMLOCK=), grant the capability, or take fewer frames",
			size, memlockLimit(), ipcLock())
	case errors.Is(e.Err, unix.EINVAL):
		e.Mend = "the kernel must be 6.8 or later for TX metadata, and the headroom must leave it room"
	}
	return e
}

func memlockLimit() string {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		return "unknown"
	}
	if l.Cur == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return fmt.Sprintf("%d bytes", l.Cur)
}

func ipcLock() string {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // version 3 writes two
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return "unknown"
	}
	if data[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0 {
		return "present"
	}
	return "absent"
}

// explainBind finds the reason of a failed bind.
func explainBind(e *OpenError, cfg Config, shared bool) *OpenError {
	switch {
	case errors.Is(e.Err, unix.EBUSY):
		e.Kind = ErrBusy
		e.Mend = fmt.Sprintf("still bound after %v by another AF_XDP socket, of this or of another process: `ss --xdp --processes` names it", cfg.BusyTimeout)
	case errors.Is(e.Err, unix.ENODEV):
		e.Kind = ErrNoDevice
		e.Mend = "it is looked up in the network namespace of the calling thread"
	case errors.Is(e.Err, unix.EOPNOTSUPP):
		e.Kind = ErrZeroCopy
		e.Mend = "the driver of this device has no AF_XDP zero copy; use copy mode"
	case errors.Is(e.Err, unix.EINVAL):
		if n, ok := deviceQueues(cfg.Interface); ok && cfg.Queue >= n {
			e.Kind = ErrNoQueue
			e.Mend = fmt.Sprintf("the device has %d, numbered from 0", n)
		} else if shared {
			e.Kind = ErrNoQueue
			e.Mend = "the device has no such queue, or a socket of this umem is on it already"
		} else if !ok {
			e.Kind = ErrNoQueue
		}
	}
	return e
}
