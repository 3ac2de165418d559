//go:build linux

package netlab

import (
	"os"

	"golang.org/x/sys/unix"
)

// BPFFS mounts a bpf filesystem of the test's own in a temporary folder and returns the folder. Pins in it live until the
// TB's Cleanup, in whatever process they were made.
func BPFFS(tb TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "sluice-bpffs-")
	if err != nil {
		tb.Fatalf("making a mount point: %v", err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		os.Remove(dir)
		tb.Fatalf("mounting a bpf filesystem: %v", err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			tb.Logf("unmounting %s: %v", dir, err)
			return
		}
		os.Remove(dir)
	})
	return dir
}
