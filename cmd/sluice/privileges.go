package main

import (
	"fmt"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// kept are the capabilities that serving takes once everything is set up: devices come and
// go, so programs are attached (BPF, NET_ADMIN) and sockets opened (NET_RAW). Loading the
// programs took PERFMON besides, and locking the packet memory IPC_LOCK.
var kept = []cap.Value{cap.BPF, cap.NET_ADMIN, cap.NET_RAW}

// dropPrivileges takes all other capabilities from every thread of the process, for good,
// and the way to new ones by what it might execute.
func dropPrivileges() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	has := cap.GetProc()
	want := cap.NewSet()
	for _, c := range kept {
		for _, flag := range []cap.Flag{cap.Permitted, cap.Effective} {
			on, err := has.GetFlag(flag, c)
			if err == nil && on {
				err = want.SetFlag(flag, true, c)
			}
			if err != nil {
				return fmt.Errorf("capability %v: %w", c, err)
			}
		}
	}
	if err := cap.ResetAmbient(); err != nil {
		return fmt.Errorf("ambient capabilities: %w", err)
	}
	if err := want.SetProc(); err != nil {
		return fmt.Errorf("dropping capabilities: %w", err)
	}
	return nil
}
