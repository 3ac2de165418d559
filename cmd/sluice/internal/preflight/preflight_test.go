package preflight

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// expect compares an error's text; "" is none.
func expect(t *testing.T, what string, err error, want string) {
	t.Helper()
	got := ""
	if err != nil {
		got = err.Error()
	}
	if got != want {
		t.Errorf("%s\n got %q\nwant %q", what, got, want)
	}
}

func TestKernel(t *testing.T) {
	old := "; 6.8 or newer is needed (for tcx and AF_XDP transmit metadata)"
	for _, c := range []struct{ release, want string }{
		{"6.8.0", ""},
		{"6.8", ""},
		{"6.8-rc1", ""},
		{"6.18.44-fc-v657", ""},
		{"7.0.0", ""},
		{"6.7.12", "this kernel is 6.7.12" + old},
		{"5.15.0-91-generic", "this kernel is 5.15.0-91-generic" + old},
		{"linux", `kernel release "linux" has no version in it`},
		{"6.x", `kernel release "6.x" has no version in it`},
		{"", `kernel release "" has no version in it`},
	} {
		expect(t, c.release, kernel(c.release), c.want)
	}
}

func TestCapabilities(t *testing.T) {
	const mend = "; run as root, or grant CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_NET_RAW and CAP_IPC_LOCK"
	for _, c := range []struct{ name, eff, want string }{
		{"root", "000001ffffffffff", ""},
		{"exactly those", "000000c000003000", ""},
		{"SYS_ADMIN for BPF and PERFMON", "0000000000203000", ""},
		{"nobody", "0000000000000000", "missing CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_NET_RAW" + mend},
		{"no PERFMON", "0000008000003000", "missing CAP_PERFMON" + mend},
		{"SYS_ADMIN is not NET_RAW", "0000000000201000", "missing CAP_NET_RAW" + mend},
		{"a container's", "00000000a80425fb", "missing CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN" + mend},
	} {
		caps, err := effective("Name:\tsluice\nCapPrm:\t0000000000000000\nCapEff:\t" + c.eff + "\nCapBnd:\tffff\n")
		if err != nil {
			t.Fatal(err)
		}
		expect(t, c.name, caps.check(), c.want)
	}
	if _, err := effective("Name:\tsluice\n"); err == nil {
		t.Error("no CapEff, and no error")
	}
	if _, err := effective("CapEff:\tzz\n"); err == nil {
		t.Error("a CapEff that is no number, and no error")
	}
}

func TestLockedMemory(t *testing.T) {
	const unlimited = ^uint64(0)
	all := capabilities(1 << capIPCLock)
	expect(t, "capability", lockedMemory(all, 0, 1<<30), "")
	expect(t, "unlimited", lockedMemory(0, unlimited, 1<<30), "")
	expect(t, "enough", lockedMemory(0, 8<<20, 8<<20), "")
	expect(t, "too little", lockedMemory(0, 64<<10, 32<<20),
		"locked memory is limited to 64 KiB and 32768 KiB are needed; grant CAP_IPC_LOCK, or raise the limit (ulimit -l, LimitMEMLOCK=)")
}

func TestInterfaces(t *testing.T) {
	expect(t, "none", interfaces(nil, false), "no interface to serve; name one with --interface, or under interfaces in the configuration")
	expect(t, "lo", interfaces([]string{"lo"}, true), "")
	expect(t, "chosen ones", interfaces(nil, true), "")
	err := interfaces([]string{"lo", "no-such-device"}, true)
	if err == nil || !strings.HasPrefix(err.Error(), `interface "no-such-device" does not exist here`) {
		t.Errorf("%v", err)
	}
	for _, c := range []struct {
		existing []string
		want     string
	}{
		{[]string{"eth0", "eth1", "lo"}, `interface "eth7" does not exist here; there is eth0, eth1`},
		{[]string{"lo", "wlan0", "wlan1"}, `interface "eth7" does not exist here; there is wlan0, wlan1`},
		{[]string{"a", "b", "c", "d", "e", "f", "g", "lo"}, `interface "eth7" does not exist here; there is a, b, c, d, e, f, ...`},
		{[]string{"lo"}, `interface "eth7" does not exist here, nor does any other; is this the network namespace to serve?`},
	} {
		expect(t, "eth7", missingInterface("eth7", c.existing), c.want)
	}
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "web.yaml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, "there", folder(dir), "")
	expect(t, "missing", folder(dir+"/x"), "manifests folder "+dir+"/x does not exist; make it, or name another with --manifests")
	expect(t, "a file", folder(file), "manifests folder "+file+" is a file; name the folder it is in")
	expect(t, "below a file", folder(file+"/x"), "manifests folder: stat "+file+"/x: not a directory")
}

func TestPins(t *testing.T) {
	dir := t.TempDir()
	mend := func(path string) string {
		return "pinPath " + path + " is not on a bpffs; mount one first: mkdir -p " + path + " && mount -t bpf bpf " + path
	}
	expect(t, "none", pins(""), "")
	for _, path := range []string{dir, dir + "/yet/to/be/made", "/no-such-folder/sluice"} {
		expect(t, path, pins(path), mend(path))
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(usualBPFFS, &fs); err != nil {
		t.Fatal(err)
	}
	want := "pinPath /sys/fs/bpf/sluice is not on a bpffs; mount one first: mount -t bpf bpf /sys/fs/bpf"
	if fs.Type == unix.BPF_FS_MAGIC {
		want = ""
	}
	expect(t, "the usual place", pins(usualBPFFS+"/sluice"), want)
}

// TestCheck puts them together; what it finds first depends on who runs it.
func TestCheck(t *testing.T) {
	n := Needs{Interfaces: []string{"lo"}, Manifests: t.TempDir()}
	if os.Geteuid() == 0 {
		expect(t, "good", Check(n), "")
	}
	n.Interfaces = nil
	if err := Check(n); err == nil {
		t.Error("no interface, and no error")
	}
}
