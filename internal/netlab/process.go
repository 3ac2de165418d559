//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopGrace is how long a process has after SIGTERM before SIGKILL. Shorter in a test.
var stopGrace = 5 * time.Second

// Process is a process in a namespace. It ends with the lab, and with this process, whatever way that dies.
type Process struct {
	cmd    *exec.Cmd
	done   chan struct{} // closed after the process was waited for
	err    error         // of Wait; read after done
	output *tail
}

// Command starts a program in the namespace; see [Process.Output] for what it writes.
func (n *Namespace) Command(name string, args ...string) *Process {
	n.tb.Helper()
	return n.Start(exec.Command(name, args...))
}

// Start starts a prepared command in the namespace. Its standard output and error, if not set, are kept for Output.
func (n *Namespace) Start(cmd *exec.Cmd) *Process {
	n.tb.Helper()
	p := &Process{cmd: cmd, done: make(chan struct{}), output: new(tail)}
	if cmd.Stdout == nil {
		cmd.Stdout = p.output
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.output
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = time.Second // a grandchild that keeps the pipe must not keep us
	}
	started := make(chan error, 1)
	go func() {
		// The death signal is tied to the thread that forked, so Do keeps it until the process has ended.
		defer close(p.done)
		err := n.Do(func() error {
			err := cmd.Start()
			started <- err
			if err == nil {
				p.err = cmd.Wait()
			}
			return nil
		})
		if err != nil {
			started <- err
		}
	}()
	if err := <-started; err != nil {
		n.tb.Fatalf("starting %s in namespace %q: %v", cmd, n.name, err)
	}
	n.tb.Cleanup(func() {
		if err := p.Stop(); err != nil {
			n.tb.Logf("stopping %s in namespace %q: %v\n%s", cmd, n.name, err, p.Output())
		}
	})
	return p
}

// Pid returns the process's number.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Signal sends a signal; the error is os.ErrProcessDone after the process has ended.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the process to end; the error is that of exec.Cmd's Wait.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Output returns the last 64 KiB of what the process has written.
func (p *Process) Output() string { return p.output.String() }

// Stop ends the process, if it still runs, with SIGTERM and after five seconds with SIGKILL, and waits for it. It is an
// error only if SIGKILL was needed.
func (p *Process) Stop() error {
	if err := p.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(stopGrace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
	}
	if err := p.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return fmt.Errorf("process %d ignored SIGTERM for %v", p.Pid(), stopGrace)
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailBytes = 64 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if extra := len(t.buf) - tailBytes; extra > 0 {
		t.buf = append(t.buf[:0], t.buf[extra:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
