package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/sluice-net/sluice/internal/netlab"
)

// options are the flags.
type options struct {
	sluice                                        string
	conns, kills, hangs, restarts, changes, churn int
	seed                                          uint64
	slack                                         int
}

// result is what the closing line says.
type result struct {
	options
	maxGap, maxForward, maxHang, maxBack time.Duration
	connections, lost, leaks, failures   int
}

// fail notes and prints what was not as it should be.
func (r *result) fail(format string, args ...any) {
	r.failures++
	fmt.Printf("FAILURE "+format+"\n", args...)
}

func main() {
	var o options
	flag.StringVar(&o.sluice, "sluice", "bin/sluice", "the daemon's binary")
	flag.IntVar(&o.conns, "conns", 100, "connections before the install, and as many after it")
	flag.IntVar(&o.kills, "kills", 10, "times that the daemon is killed")
	flag.IntVar(&o.hangs, "hangs", 5, "times that it is stopped and goes on")
	flag.IntVar(&o.restarts, "restarts", 3, "times that it ends and starts again")
	flag.IntVar(&o.changes, "changes", 50, "changes of devices")
	flag.IntVar(&o.churn, "churn", 200, "pods that come and go")
	flag.IntVar(&o.slack, "slack", 1, "times that each bound of time may be exceeded, on a machine that has other things to do")
	flag.Uint64Var(&o.seed, "seed", 0, "seed of what is random; 0 chooses one")
	flag.Parse()
	if o.seed == 0 {
		o.seed = rand.Uint64()>>1 | 1
	}
	fmt.Printf("seed %d\n", o.seed)
	r := &result{options: o}
	s := netlab.NewStand("chaos", netlab.ToStderr)
	err := s.Run(func() error { return newNode(s, r).run() })
	if clear := s.Clear(); err == nil {
		err = clear
	}
	if err != nil {
		r.fail("%v", err)
	}
	fmt.Printf("chaos: kills=%d max_gap_ms=%d max_forward_ms=%d hangs=%d max_hang_ms=%d max_back_ms=%d restarts=%d changes=%d connections=%d tcp_lost=%d churn=%d leaks=%d failures=%d\n",
		o.kills, r.maxGap.Milliseconds(), r.maxForward.Milliseconds(), o.hangs, r.maxHang.Milliseconds(), r.maxBack.Milliseconds(),
		o.restarts, o.changes, r.connections, r.lost, o.churn, r.leaks, r.failures)
	if r.lost+r.leaks+r.failures != 0 {
		os.Exit(1)
	}
}
