//go:build linux

package bench

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sampler looks, on every core and many times a second, at what is running: the kernel's clock of CPU
// time, which needs no hardware counters. See perf_event_open(2).
type sampler struct {
	period time.Duration
	fds    []int
	rings  [][]byte
}

// samplePeriod: 5000 looks a second. Finer costs more than it tells.
const samplePeriod = 200 * time.Microsecond

const (
	ringPages = 1024          // of data, a power of two, beside the first
	attrSize  = 128           // PERF_ATTR_SIZE_VER7
	dataHead  = 1024          // in the first page: where the kernel writes next
	fromHere  = ^uint64(4095) // addresses above are markers (PERF_CONTEXT_*)
)

// sample is one look: a call chain from the innermost function out.
type sample struct {
	pid    int
	kernel []uint64
	user   []uint64
}

func startSampler() (_ *sampler, err error) {
	s := &sampler{period: samplePeriod}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for cpu := range runtime.NumCPU() {
		attr := unix.PerfEventAttr{
			Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Size: attrSize,
			Sample: uint64(s.period), Sample_type: unix.PERF_SAMPLE_IP | unix.PERF_SAMPLE_TID | unix.PERF_SAMPLE_CALLCHAIN,
		}
		fd, err := unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err != nil {
			return s, fmt.Errorf("sampling core %d: %w", cpu, err)
		}
		s.fds = append(s.fds, fd)
		ring, err := unix.Mmap(fd, 0, (1+ringPages)*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return s, fmt.Errorf("mapping the samples of core %d: %w", cpu, err)
		}
		s.rings = append(s.rings, ring)
	}
	return s, nil
}

// stop ends the sampling and gives what was seen. A full ring keeps the oldest.
func (s *sampler) stop() (all []sample, err error) {
	for _, fd := range s.fds {
		err = errors.Join(err, unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_DISABLE, 0))
	}
	for _, ring := range s.rings {
		all = append(all, readSamples(ring[os.Getpagesize():], binary.NativeEndian.Uint64(ring[dataHead:]))...)
	}
	s.close()
	return all, err
}

func (s *sampler) close() {
	for _, r := range s.rings {
		unix.Munmap(r)
	}
	for _, fd := range s.fds {
		unix.Close(fd)
	}
	s.rings, s.fds = nil, nil
}

// readSamples parses the records of a ring that was never emptied, so that it begins at its first byte.
func readSamples(data []byte, head uint64) (all []sample) {
	data = data[:min(head, uint64(len(data)))]
	for len(data) >= 8 {
		kind, size := binary.NativeEndian.Uint32(data), int(binary.NativeEndian.Uint16(data[6:]))
		if size < 8 || size > len(data) {
			return all
		}
		body := data[8:size]
		data = data[size:]
		const ip, pid, count = 0, 8, 16
		if kind != unix.PERF_RECORD_SAMPLE || len(body) < count+8 {
			continue
		}
		x := sample{pid: int(binary.NativeEndian.Uint32(body[pid:]))}
		n := int(binary.NativeEndian.Uint64(body[count:]))
		user := false
		for i := range min(n, (len(body)-count-8)/8) {
			a := binary.NativeEndian.Uint64(body[count+8+8*i:])
			switch {
			case a >= fromHere:
				user = int64(a) == unix.PERF_CONTEXT_USER
			case user:
				x.user = append(x.user, a)
			default:
				x.kernel = append(x.kernel, a)
			}
		}
		all = append(all, x)
	}
	return all
}

// kernelSymbols are the kernel's functions and its BPF programs, by address.
type kernelSymbols struct {
	addrs []uint64
	names []string
}

func readKernelSymbols() (*kernelSymbols, error) {
	b, err := os.ReadFile("/proc/kallsyms")
	if err != nil {
		return nil, err
	}
	type symbol struct {
		addr uint64
		name string
	}
	var all []symbol
	for line := range strings.SplitSeq(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 3 || !strings.ContainsAny(f[1], "tTwW") {
			continue
		}
		if addr, err := strconv.ParseUint(f[0], 16, 64); err == nil && addr != 0 {
			all = append(all, symbol{addr, f[2]})
		}
	}
	if len(all) == 0 {
		return nil, errors.New("/proc/kallsyms shows no addresses (kernel.kptr_restrict)")
	}
	slices.SortFunc(all, func(a, b symbol) int { return cmp.Compare(a.addr, b.addr) })
	k := &kernelSymbols{}
	for _, s := range all {
		k.addrs, k.names = append(k.addrs, s.addr), append(k.names, s.name)
	}
	return k, nil
}

func (k *kernelSymbols) name(addr uint64) string {
	i, found := slices.BinarySearch(k.addrs, addr)
	if !found {
		i--
	}
	if i < 0 {
		return "?"
	}
	return k.names[i]
}

// goNames are the functions at an address of this very program, inlined ones first.
func goNames(addr uint64, innermost bool) (names []string) {
	if innermost {
		addr++ // the others are return addresses
	}
	frames := runtime.CallersFrames([]uintptr{uintptr(addr)})
	for {
		f, more := frames.Next()
		if f.Function != "" {
			names = append(names, f.Function)
		}
		if !more {
			return names
		}
	}
}
