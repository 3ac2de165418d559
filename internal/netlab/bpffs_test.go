//go:build linux

package netlab

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestBPFFSIsThereAndGoes(t *testing.T) {
	RequireRoot(t)
	var dir string
	t.Run("mounted", func(t *testing.T) {
		dir = BPFFS(t)
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.BPF_FS_MAGIC {
			t.Errorf("statfs %s: type %#x, %v; want a bpf filesystem", dir, st.Type, err)
		}
	})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("after the test: %v, want %s gone", err, dir)
	}
}
