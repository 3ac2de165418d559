package demo

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/sluice-net/sluice/internal/netlab"
)

// belongings are what this process holds of the kernel, and what of the machine
// the demo could have changed, in lines that are the same if it has not.
func belongings() []string {
	var list []string
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		list = append(list, "descriptors: "+err.Error())
	}
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err != nil {
			continue // that of the listing
		}
		// Programs, maps, links; namespaces.
		if strings.HasPrefix(to, "anon_inode:bpf") || strings.HasPrefix(to, "net:") {
			list = append(list, "descriptor "+to)
		}
	}
	children, _ := filepath.Glob("/proc/self/task/*/children")
	for _, c := range children {
		pids, _ := os.ReadFile(c) // a thread may be gone
		for _, pid := range strings.Fields(string(pids)) {
			list = append(list, "process "+pid)
		}
	}
	// The process is in the machine's namespace all the time; the lab is not.
	for _, name := range []string{"sluice-out", "sluice-in", netlab.UplinkDevice, "client0", "backend0", "backend1", "backend2"} {
		if i, err := net.InterfaceByName(name); err == nil {
			list = append(list, fmt.Sprintf("interface %s index %d", name, i.Index))
		}
	}
	pins, _ := filepath.Glob("/sys/fs/bpf/*sluice*")
	for _, p := range pins {
		list = append(list, "pin "+p)
	}
	return list
}
