package preflight

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/cmd/sluice/internal/nearest"
)

// The oldest kernel that has all that is needed: tcx (6.6), AF_XDP
// multi-buffer (6.6) and AF_XDP transmit metadata (6.8).
const (
	KernelMajor = 6
	KernelMinor = 8
)

// Needs is what the configuration wants of the machine.
type Needs struct {
	// Interfaces are those that are named, AnyInterface says that some are chosen.
	Interfaces   []string
	AnyInterface bool
	Manifests    string
	// Pins is the folder to pin in; empty: none.
	Pins string
	// LockedBytes is the least packet memory that will be locked.
	LockedBytes uint64
}

// Item is one thing that was looked at.
type Item struct {
	About string
	Err   error // nil is as it should be
}

// Check says what is missing first, or nil. It must run in the network
// namespace to be served.
func Check(n Needs) error {
	for _, item := range Items(n) {
		if item.Err != nil {
			return item.Err
		}
	}
	return nil
}

// Items looks at everything, in the order of Check.
func Items(n Needs) []Item {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return []Item{{"kernel", fmt.Errorf("asking for the kernel's version: %w", err)}}
	}
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return []Item{{"capabilities", fmt.Errorf("asking for the process's capabilities: %w", err)}}
	}
	caps, err := effective(string(status))
	if err != nil {
		return []Item{{"capabilities", err}}
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return []Item{{"locked memory", fmt.Errorf("asking for the limit of locked memory: %w", err)}}
	}
	return []Item{
		{"kernel", kernel(unix.ByteSliceToString(uts.Release[:]))},
		{"capabilities", caps.check()},
		{"locked memory", lockedMemory(caps, limit.Cur, n.LockedBytes)},
		{"interfaces", interfaces(n.Interfaces, n.AnyInterface)},
		{"manifests", folder(n.Manifests)},
		{"pins", pins(n.Pins)},
	}
}

// kernel checks a release such as 6.18.44-generic.
func kernel(release string) error {
	major, rest, _ := strings.Cut(release, ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		rest = rest[:end]
	}
	maj, err1 := strconv.Atoi(major)
	mnr, err2 := strconv.Atoi(rest)
	if err1 != nil || err2 != nil {
		return fmt.Errorf("kernel release %q has no version in it", release)
	}
	if maj < KernelMajor || maj == KernelMajor && mnr < KernelMinor {
		return fmt.Errorf("this kernel is %s; %d.%d or newer is needed (for tcx and AF_XDP transmit metadata)", release, KernelMajor, KernelMinor)
	}
	return nil
}

// capability is the number of a capability, as in linux/capability.h.
type capability uint

const (
	capNetAdmin capability = unix.CAP_NET_ADMIN
	capNetRaw   capability = unix.CAP_NET_RAW
	capIPCLock  capability = unix.CAP_IPC_LOCK
	capSysAdmin capability = unix.CAP_SYS_ADMIN
	capPerfmon  capability = unix.CAP_PERFMON
	capBPF      capability = unix.CAP_BPF
)

// capabilities is a set of them, by bit.
type capabilities uint64

func (s capabilities) has(c capability) bool { return s>>c&1 == 1 }

// effective reads the effective set out of /proc/PID/status.
func effective(status string) (capabilities, error) {
	for line := range strings.Lines(status) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return capabilities(set), err
		}
	}
	return 0, fmt.Errorf("asking for the process's capabilities: no CapEff in /proc/thread-self/status")
}

// check names what is missing. Locked memory has two ways and a check of its
// own. CAP_SYS_ADMIN stands for BPF and PERFMON, as in the kernel's
// bpf_capable and perfmon_capable.
func (s capabilities) check() error {
	var missing []string
	for _, c := range []struct {
		capability
		name  string
		admin bool
	}{
		{capBPF, "CAP_BPF", true},
		{capPerfmon, "CAP_PERFMON", true},
		{capNetAdmin, "CAP_NET_ADMIN", false},
		{capNetRaw, "CAP_NET_RAW", false},
	} {
		if !s.has(c.capability) && !(c.admin && s.has(capSysAdmin)) {
			missing = append(missing, c.name)
		}
	}
	if missing == nil {
		return nil
	}
	return fmt.Errorf("missing %s; run as root, or grant CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_NET_RAW and CAP_IPC_LOCK", strings.Join(missing, ", "))
}

// lockedMemory checks that the packet memory may be locked: with CAP_IPC_LOCK
// any amount (xdp_umem_account_pages in net/xdp/xdp_umem.c).
func lockedMemory(caps capabilities, limit, need uint64) error {
	if caps.has(capIPCLock) || limit >= need {
		return nil
	}
	return fmt.Errorf("locked memory is limited to %d KiB and %d KiB are needed; grant CAP_IPC_LOCK, or raise the limit (ulimit -l, LimitMEMLOCK=)", limit>>10, (need+1023)>>10)
}

// interfaces checks that all exist.
func interfaces(names []string, some bool) error {
	if len(names) == 0 && !some {
		return fmt.Errorf("no interface to serve; name one with --interface, or under interfaces in the configuration")
	}
	devices, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("listing the interfaces: %w", err)
	}
	existing := make([]string, len(devices))
	for i, d := range devices {
		existing[i] = d.Name
	}
	slices.Sort(existing)
	for _, name := range names {
		if !slices.Contains(existing, name) {
			return missingInterface(name, existing)
		}
	}
	return nil
}

// missingInterface names a few that do exist: the like ones, or the first.
func missingInterface(name string, existing []string) error {
	const few = 6
	if near := nearest.Words(name, existing, few); near != nil {
		return fmt.Errorf("interface %q does not exist here; there is %s", name, strings.Join(near, ", "))
	}
	shown := slices.DeleteFunc(slices.Clone(existing), func(s string) bool { return s == "lo" })
	switch {
	case len(shown) == 0:
		return fmt.Errorf("interface %q does not exist here, nor does any other; is this the network namespace to serve?", name)
	case len(shown) > few:
		shown = append(shown[:few], "...")
	}
	return fmt.Errorf("interface %q does not exist here; there is %s", name, strings.Join(shown, ", "))
}

// folder checks that the manifests can be listed, if there are to be any.
func folder(path string) error {
	if path == "" {
		return nil
	}
	info, err := os.Stat(path)
	switch {
	case os.IsNotExist(err):
		return fmt.Errorf("manifests folder %s does not exist; make it, or name another with --manifests", path)
	case err != nil:
		return fmt.Errorf("manifests folder: %w", err)
	case !info.IsDir():
		return fmt.Errorf("manifests folder %s is a file; name the folder it is in", path)
	}
	return nil
}

// usualBPFFS is where a bpffs is mounted, if one is.
const usualBPFFS = "/sys/fs/bpf"

// pins checks that the folder, or the nearest one above it that exists, lies
// on a bpffs.
func pins(path string) error {
	if path == "" {
		return nil
	}
	for at := path; ; at = filepath.Dir(at) {
		var fs unix.Statfs_t
		err := unix.Statfs(at, &fs)
		if err == unix.ENOENT && at != "/" {
			continue
		}
		if err != nil {
			return fmt.Errorf("pinPath %s: %w", at, err)
		}
		if fs.Type == unix.BPF_FS_MAGIC {
			return nil
		}
		mend := "mount -t bpf bpf " + usualBPFFS
		if path != usualBPFFS && !strings.HasPrefix(path, usualBPFFS+"/") {
			mend = fmt.Sprintf("mkdir -p %s && mount -t bpf bpf %s", path, path)
		}
		return fmt.Errorf("pinPath %s is not on a bpffs; mount one first: %s", path, mend)
	}
}
