//go:build linux

package netlab

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCommandRunsInNamespace(t *testing.T) {
	RequireRoot(t)
	n := New(t).Namespace("a")
	var want string
	n.Do(func() error { want = threadNetNS(t); return nil })
	p := n.Command("readlink", "/proc/self/ns/net")
	if err := p.Wait(); err != nil {
		t.Fatalf("%v: %s", err, p.Output())
	}
	if got := strings.TrimSpace(p.Output()); got != want {
		t.Errorf("the process was in %s, want %s", got, want)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("stopping what has ended: %v", err)
	}
}

func TestCommandFails(t *testing.T) {
	RequireRoot(t)
	if p := New(t).Namespace("a").Command("false"); p.Wait() == nil {
		t.Error("no error from a process that failed")
	}
	var tb fakeTB
	tb.run(func() { New(&tb).Namespace("a").Command("/no/such/program") })
	if !strings.Contains(tb.fatal, "/no/such/program") {
		t.Errorf("fatal %q, want one that names the program", tb.fatal)
	}
}

func TestStartTakesPreparedCommand(t *testing.T) {
	RequireRoot(t)
	var out strings.Builder
	cmd := exec.Command("sh", "-c", `echo "$WORD"; echo aside >&2`)
	cmd.Env = append(os.Environ(), "WORD=hello")
	cmd.Stdout = &out
	p := New(t).Namespace("a").Start(cmd)
	if err := p.Wait(); err != nil || out.String() != "hello\n" || p.Output() != "aside\n" {
		t.Errorf("%v, output %q and %q", err, out.String(), p.Output())
	}
}

func TestStopEndsThatProcess(t *testing.T) {
	RequireRoot(t)
	n := New(t).Namespace("a")
	p, other := n.Command("sleep", "1000"), n.Command("sleep", "1000")
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err == nil || !strings.Contains(err.Error(), "terminated") {
		t.Errorf("process ended with %v, want SIGTERM", err)
	}
	select {
	case <-other.Done():
		t.Error("the other process ended, too")
	case <-time.After(20 * time.Millisecond):
	}
	if err := unix.Kill(p.Pid(), 0); err != unix.ESRCH {
		t.Errorf("process %d is still there: %v", p.Pid(), err)
	}
}

func TestStopKills(t *testing.T) {
	RequireRoot(t)
	old := stopGrace
	stopGrace = 100 * time.Millisecond
	defer func() { stopGrace = old }()
	p := New(t).Namespace("a").Command("sh", "-c", `trap "" TERM; echo ready; while :; do sleep 0.01; done`)
	for deadline := time.Now().Add(5 * time.Second); p.Output() == ""; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the process does not start")
		}
	}
	if err := p.Stop(); err == nil || !strings.Contains(err.Error(), "ignored SIGTERM") {
		t.Errorf("error %v, want one that says it had to be killed", err)
	}
	<-p.Done()
}

// TestProcessDiesWithUs starts a copy of this test which starts a process and is then killed.
func TestProcessDiesWithUs(t *testing.T) {
	RequireRoot(t)
	if os.Getenv("NETLAB_DIE") != "" {
		p := New(t).Namespace("a").Command("sleep", "1000")
		fmt.Printf("started %d\n", p.Pid())
		unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestProcessDiesWithUs$")
	cmd.Env = append(os.Environ(), "NETLAB_DIE=1")
	out, _ := cmd.Output()
	var pid int
	if _, err := fmt.Sscanf(string(out), "started %d", &pid); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for deadline := time.Now().Add(5 * time.Second); unix.Kill(pid, 0) != unix.ESRCH; time.Sleep(time.Millisecond) {
		if stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); strings.Contains(string(stat), ") Z ") {
			break // dead; whoever inherited it has not yet asked
		}
		if time.Now().After(deadline) {
			unix.Kill(pid, unix.SIGKILL)
			t.Fatalf("process %d outlived us", pid)
		}
	}
}

func TestTail(t *testing.T) {
	var tl tail
	for i := range 10000 {
		fmt.Fprintf(&tl, "line %08d\n", i)
	}
	if s := tl.String(); len(s) != tailBytes || !strings.HasSuffix(s, "line 00009999\n") {
		t.Errorf("%d bytes, ending in %q", len(s), s[len(s)-20:])
	}
}
