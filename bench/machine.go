//go:build linux

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is what a result depends on beside the programs.
type Machine struct {
	Kernel        string `json:"kernel"`
	CPU           string `json:"cpu"`
	Cores         int    `json:"cores"`
	Virtual       bool   `json:"virtual"` // a hypervisor shows itself to the CPU
	MemoryBytes   uint64 `json:"memory_bytes"`
	Clocksource   string `json:"clocksource"`
	Go            string `json:"go"`
	ConntrackMax  string `json:"conntrack_max,omitempty"`
	LoadAtStart   string `json:"load_at_start"`
	RPS           string `json:"rps,omitempty"`
	TransparentHP string `json:"transparent_hugepages,omitempty"`
}

// thisMachine looks.
func thisMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version() + " " + runtime.GOARCH}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	for line := range strings.SplitSeq(firstLine("/proc/cpuinfo", -1), "\n") {
		key, value, _ := strings.Cut(line, ":")
		switch key, value = strings.TrimSpace(key), strings.TrimSpace(value); {
		case key == "model name" && m.CPU == "":
			m.CPU = value
		case key == "flags" && strings.Contains(" "+value+" ", " hypervisor "):
			m.Virtual = true
		}
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.MemoryBytes = uint64(info.Totalram) * uint64(info.Unit)
	}
	m.Clocksource = firstLine("/sys/devices/system/clocksource/clocksource0/current_clocksource", 1)
	m.ConntrackMax = firstLine("/proc/sys/net/netfilter/nf_conntrack_max", 1)
	m.TransparentHP = firstLine("/sys/kernel/mm/transparent_hugepage/enabled", 1)
	m.LoadAtStart = firstLine("/proc/loadavg", 1)
	return m
}

// firstLine is the first line of a file, or all of it; empty if there is none.
func firstLine(name string, lines int) string {
	b, err := os.ReadFile(filepath.Clean(name))
	if err != nil {
		return ""
	}
	if lines == 1 {
		line, _, _ := strings.Cut(string(b), "\n")
		return line
	}
	return string(b)
}

// comparable says why results of two machines cannot be compared; empty: they can.
func (m Machine) comparable(o Machine) string {
	for _, f := range []struct{ what, a, b string }{
		{"kernel", m.Kernel, o.Kernel},
		{"CPU", m.CPU, o.CPU},
		{"number of cores", fmt.Sprint(m.Cores), fmt.Sprint(o.Cores)},
	} {
		if f.a != f.b {
			return fmt.Sprintf("another %s: %s and %s", f.what, f.a, f.b)
		}
	}
	return ""
}
