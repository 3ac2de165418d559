package flowtable

import (
	"runtime"
	"syscall"
	"testing"
	"time"
)

// cpuClock is the processor time of the calling thread, from when it was made: less at the mercy of neighbours than wall time.
type cpuClock struct{ began, pauseBegan, paused time.Duration }

func threadCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_THREAD, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// startCPU binds the benchmark to its thread, too, until report.
func startCPU() cpuClock {
	runtime.LockOSThread()
	return cpuClock{began: threadCPU()}
}

func (c *cpuClock) pause()  { c.pauseBegan = threadCPU() }
func (c *cpuClock) resume() { c.paused += threadCPU() - c.pauseBegan }

// report reports the time for each of n units.
func (c *cpuClock) report(b *testing.B, n float64, unit string) {
	b.ReportMetric(float64(threadCPU()-c.began-c.paused)/n, "cpu-ns/"+unit)
	runtime.UnlockOSThread()
}
