package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
)

// TestSignals: the first signal ends the context, the second the process.
func TestSignals(t *testing.T) {
	// Under nohup SIGHUP is ignored, and so it would be in the processes that
	// this test starts. What a process catches is the default in its children.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP)
	defer signal.Stop(caught)
	for _, c := range []struct {
		first, second syscall.Signal
		status        int
	}{
		{syscall.SIGTERM, syscall.SIGTERM, 128 + 15},
		{syscall.SIGTERM, syscall.SIGINT, 128 + 2},
		{syscall.SIGINT, syscall.SIGTERM, 128 + 15},
		{syscall.SIGHUP, syscall.SIGINT, 128 + 2},
	} {
		cmd := process("signals")
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stdout)
		expect := func(want string) {
			t.Helper()
			if !lines.Scan() || lines.Text() != want {
				_ = cmd.Process.Kill()
				t.Fatalf("%v, then %v: the process says %q, want %q", c.first, c.second, lines.Text(), want)
			}
		}
		expect("waiting")
		_ = cmd.Process.Signal(c.first)
		expect("stopping")
		_ = cmd.Process.Signal(c.second)
		err = cmd.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != c.status {
			t.Errorf("%v, then %v: %v, want status %d", c.first, c.second, err, c.status)
		}
	}
}
