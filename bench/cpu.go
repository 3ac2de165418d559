//go:build linux

package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CPUTime is time that all cores together spent. The kernel counts it in ticks of
// 4 ms here, so it means something over tenths of seconds.
type CPUTime struct {
	User    time.Duration `json:"user_ns"`
	System  time.Duration `json:"system_ns"`
	Softirq time.Duration `json:"softirq_ns"` // hard interrupts included
	Stolen  time.Duration `json:"stolen_ns"`  // by the host of a virtual machine
}

// Total is all that was spent here.
func (c CPUTime) Total() time.Duration { return c.User + c.System + c.Softirq }

func (c CPUTime) sub(o CPUTime) CPUTime {
	return CPUTime{c.User - o.User, c.System - o.System, c.Softirq - o.Softirq, c.Stolen - o.Stolen}
}

// userTick is the unit of /proc/stat (USER_HZ).
const userTick = 10 * time.Millisecond

// cpuTime reads the machine's.
func cpuTime() (CPUTime, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return CPUTime{}, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return CPUTime{}, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var ticks [9]time.Duration
	for i := 1; i < 9; i++ {
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return CPUTime{}, err
		}
		ticks[i] = time.Duration(n) * userTick
	}
	// cpu user nice system idle iowait irq softirq steal
	return CPUTime{User: ticks[1] + ticks[2], System: ticks[3], Softirq: ticks[6] + ticks[7], Stolen: ticks[8]}, nil
}

// threadTime is what the calling thread has used.
func threadTime() time.Duration {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano())
}
