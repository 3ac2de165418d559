package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

// TestWithoutRoot: the daemon as a user of no importance with the documented capabilities
// serves, keeps what a restart adopts, follows devices that come later, has only what it
// needs in every thread once it is set up, and cleans up.
func TestWithoutRoot(t *testing.T) {
	const user = 65532
	n := newCrashLab(t, netlab.ClusterOptions{})
	n.write(n.config, strings.Replace(string(must(os.ReadFile(n.config))), "interfaces:\n", "interfaces:\n- name: late*\n", 1))
	// What a DaemonSet's init step does: a folder of pins, a run folder, and a binary
	// that the user may execute.
	dir := filepath.Dir(n.config)
	self := filepath.Join(dir, "sluice")
	for _, err := range []error{
		os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755), os.Chown(dir, user, user), os.Chown(n.bpffs, user, user),
		os.WriteFile(self, must(os.ReadFile("/proc/self/exe")), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	n.as = func(c *exec.Cmd) {
		c.Path = self
		c.SysProcAttr = &syscall.SysProcAttr{
			Credential:  &syscall.Credential{Uid: user, Gid: user},
			AmbientCaps: []uintptr{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_IPC_LOCK},
		}
	}
	before := n.Node.State()
	n.start()
	if err := n.newConnection(); err != nil {
		t.Error(err)
	}
	if n.translated() == 0 {
		t.Error("nothing was translated")
	}
	const want = 1<<unix.CAP_BPF | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", n.process.Pid()))
	if err != nil || len(tasks) < 3 {
		t.Fatalf("%d threads, %v", len(tasks), err)
	}
	for _, task := range tasks {
		status := string(must(os.ReadFile(task)))
		for line := range strings.Lines(status) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			switch name {
			case "CapEff", "CapPrm":
				if value != fmt.Sprintf("%016x", uint64(want)) {
					t.Errorf("%s: %s is %s, want %016x", task, name, value, uint64(want))
				}
			case "CapAmb", "CapInh":
				if strings.Trim(value, "0") != "" {
					t.Errorf("%s: %s is %s, want none", task, name, value)
				}
			}
		}
	}
	n.Lab.Veth(n.Node, "late0", n.Remote, "late0", netlab.VethOptions{})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, body := n.get("127.0.0.1:10349", "/metrics"); strings.Contains(body, `interface="late0"`) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a device that came later is not served\n%s", n.process.Output())
		}
	}
	if err := n.process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-n.process.Done()
	n.start()
	if err := n.newConnection(); err != nil {
		t.Error(err)
	}
	if err := n.process.Stop(); err != nil {
		t.Errorf("stopping: %v\n%s", err, n.process.Output())
	}
	n.Node.Delete("late0")
	n.cleanup(before)
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// TestDefaultListenersAreLoopback: a daemon that is told nothing listens on loopback only,
// and serves no profiles (CVE-2019-11248 was a debug handler on an open port).
func TestDefaultListenersAreLoopback(t *testing.T) {
	n := newNode(t)
	p := n.start()
	listening := 0
	for _, file := range []string{"tcp", "tcp6"} {
		for line := range strings.Lines(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", p.Pid(), file))))) {
			f := strings.Fields(line)
			if len(f) < 4 || f[3] != "0A" { // TCP_LISTEN
				continue
			}
			listening++
			address, _, _ := strings.Cut(f[1], ":")
			if address != "0100007F" && address != "00000000000000000000000001000000" {
				t.Errorf("listens on %s (%s)", f[1], file)
			}
		}
	}
	if listening < 2 {
		t.Errorf("%d listeners: health and metrics are two", listening)
	}
	for _, url := range []string{healthURL, metricsURL} {
		if status, _, err := n.get(url + "/debug/pprof/"); status != 404 {
			t.Errorf("%s serves profiles: %d, %v", url, status, err)
		}
	}
	n.stop(p)
}
