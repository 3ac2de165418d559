package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// processVariable in the environment makes the test's binary be something else
// than a test. Its value is a list of words:
//
//	1            run the command line
//	signals      wait for signals, as the daemon does
//	drop=N       without capability N
//	memlock=N    with N bytes of memory to lock
const processVariable = "SLUICE_TEST_EXECUTE"

// processMain is main for it.
func processMain() int {
	runtime.LockOSThread() // capabilities are a thread's
	for word := range strings.FieldsSeq(os.Getenv(processVariable)) {
		name, value, _ := strings.Cut(word, "=")
		number, _ := strconv.ParseUint(value, 10, 64)
		var err error
		switch name {
		case "1":
			return execute(os.Args[1:], os.Stdout, os.Stderr)
		case "signals":
			waitForSignals()
		case "drop":
			err = dropCapability(int(number))
		case "memlock":
			err = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: number, Max: number})
		}
		if err != nil {
			fmt.Println(word, err)
			return 99
		}
	}
	return 99
}

// process prepares a process of the test's binary.
func process(words string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), processVariable+"="+words)
	return cmd
}

// waitForSignals never returns.
func waitForSignals() {
	ctx, _ := untilSignal(context.Background(), slog.New(slog.DiscardHandler))
	fmt.Println("waiting")
	<-ctx.Done()
	fmt.Println("stopping")
	select {}
}

// dropCapability takes a capability from this thread.
func dropCapability(c int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return err
	}
	sets[c/32].Effective &^= 1 << (c % 32)
	return unix.Capset(&header, &sets[0])
}
