package dataplane

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-net/sluice/internal/netlab"
)

// TestWorkerModes: what a worker does without frames is all that differs.
func TestWorkerModes(t *testing.T) {
	for _, mode := range []WorkerMode{WorkerAdaptive, WorkerBusy, WorkerInterrupt} {
		t.Run(mode.String(), func(t *testing.T) {
			b := newTestbed(t, netlab.ClusterOptions{}, of(KindSteered, func(c *Config) {
				c.WorkerMode = mode
				c.CPUs = []int{1}
			}))
			_, backends := b.echo(8080)
			b.publish(testService{name: "echo", number: 32, port: 80, backends: backends})
			b.exchanges(32, 80, 5)
			s := b.settle()
			if slept := s.Workers[0].Sleeps > 0; slept == (mode == WorkerBusy) {
				t.Errorf("slept %d times", s.Workers[0].Sleeps)
			}
			if s.Verdict(Translated) == 0 {
				t.Error("nothing was translated")
			}
			pinned := 0
			tasks, _ := filepath.Glob("/proc/self/task/*/status")
			for _, task := range tasks {
				if status, err := os.ReadFile(task); err == nil && strings.Contains(string(status), "\nCpus_allowed_list:\t1\n") {
					pinned++
				}
			}
			if pinned != 1 {
				t.Errorf("%d threads pinned to cpu 1, want the worker's", pinned)
			}
		})
	}
}
