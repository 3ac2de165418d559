//go:build linux

package xdpprog

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// No test leaves a map, a program or a link behind.
func TestMain(m *testing.M) {
	code := m.Run()
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		what, err := os.Readlink(fd)
		if err != nil || !strings.Contains(what, "bpf-map") && !strings.Contains(what, "bpf-prog") && !strings.Contains(what, "bpf_link") {
			continue
		}
		info, _ := os.ReadFile(strings.Replace(fd, "/fd/", "/fdinfo/", 1))
		fmt.Printf("leaked %s:\n%s\n", what, info)
		code = 99
	}
	os.Exit(code)
}
