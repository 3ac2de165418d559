// Command e2e runs the upstream end-to-end tests that concern ClusterIPs, re-expressed without kubelet and containers, against
// a real control plane and a dataplane of choice. See docs/e2e.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/e2e/stand"
	"github.com/sluice-net/sluice/internal/netlab"
)

// scenario is one upstream test.
type scenario struct {
	name    string // upstream's: the group in brackets, then what It says
	run     func(*T)
	serial  bool     // nothing else may run beside it: it restarts something that all share
	longest bool     // it waits for a long time by itself and is started early
	modes   []string // the dataplanes that it says something about; nil: all
}

// budget bounds one scenario.
const budget = 90 * time.Second

func main() {
	var (
		run      = flag.String("run", "", "run only the scenarios that this regular `expression` matches")
		mode     = flag.String("dataplane", "front", "what serves ClusterIPs: "+strings.Join(stand.Modes, ", "))
		parallel = flag.Int("parallel", 4, "`scenarios` that run at once")
		bin      = flag.String("bin", "../bin", "`folder` with sluice, and with kube/ below it")
		list     = flag.Bool("list", false, "list the scenarios and end")
		keep     = flag.Bool("keep-logs", false, "leave the folder of logs behind, and name it")
	)
	flag.Parse()
	filter, err := regexp.Compile(*run)
	if err != nil {
		fatal(err)
	}
	var chosen []scenario
	for _, s := range scenarios() {
		if filter.MatchString(s.name) && (s.modes == nil || slices.Contains(s.modes, *mode)) {
			chosen = append(chosen, s)
		}
	}
	if *list {
		for _, s := range chosen {
			fmt.Println(s.name)
		}
		return
	}
	if len(chosen) == 0 {
		fatal(fmt.Errorf("no scenario matches %q", *run))
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	failed, err := runAll(ctx, chosen, *mode, *bin, *parallel, *keep)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
	}
	fmt.Printf("e2e: dataplane=%s scenarios=%d passed=%d failed=%d skipped=0\n", *mode, len(chosen), len(chosen)-failed, failed)
	if err != nil || failed > 0 {
		os.Exit(1)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "e2e:", err)
	os.Exit(2)
}

// runAll gives the number of scenarios that failed or were not run.
func runAll(ctx context.Context, chosen []scenario, mode, bin string, parallel int, keep bool) (failed int, err error) {
	owner := netlab.NewStand("e2e", netlab.ToStderr)
	failed = len(chosen)
	err = owner.Run(func() error {
		netlab.RequireRoot(owner)
		started := time.Now()
		c := new(cluster)
		defer c.close()
		if err := c.start(ctx, owner, mode, bin, keep); err != nil {
			return err
		}
		fmt.Printf("control plane, %d pods and dataplane %s are up in %.1f s\n", localPods+remotePods, mode, time.Since(started).Seconds())
		var mu sync.Mutex
		one := func(s scenario) {
			began := time.Now()
			problem := c.runScenario(ctx, s)
			mu.Lock()
			defer mu.Unlock()
			if problem == nil {
				failed--
				fmt.Printf("ok    %5.1fs  %s\n", time.Since(began).Seconds(), s.name)
			} else {
				fmt.Printf("FAIL  %5.1fs  %s\n              %s\n", time.Since(began).Seconds(), s.name, strings.ReplaceAll(problem.Error(), "\n", "\n              "))
			}
		}
		// Those that take long go first, those that want to be alone last.
		slices.SortStableFunc(chosen, func(a, b scenario) int { return rank(a) - rank(b) })
		slots := make(chan struct{}, parallel)
		var wg sync.WaitGroup
		for _, s := range chosen {
			if s.serial {
				wg.Wait()
				one(s)
				continue
			}
			slots <- struct{}{}
			wg.Go(func() {
				one(s)
				<-slots
			})
		}
		wg.Wait()
		return c.dataplane.Ended()
	})
	if cerr := owner.Clear(); err == nil {
		err = cerr
	}
	return failed, err
}

func rank(s scenario) int {
	switch {
	case s.serial:
		return 2
	case s.longest:
		return 0
	}
	return 1
}
