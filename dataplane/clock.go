package dataplane

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// clock reads CLOCK_MONOTONIC in nanoseconds, the clock of
// bpf_ktime_get_coarse_ns, at the price of Go's own monotonic reading: 50 ns and
// no system call.
type clock struct {
	base  uint64
	start time.Time
}

func newClock() (*clock, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return nil, fmt.Errorf("reading CLOCK_MONOTONIC: %w", err)
	}
	return &clock{base: uint64(ts.Nano()), start: time.Now()}, nil
}

// now is the time in nanoseconds. Any thread.
func (c *clock) now() uint64 { return c.base + uint64(time.Since(c.start)) }
