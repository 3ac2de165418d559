package dataplane

import (
	"runtime"
	"testing"

	"github.com/sluice-net/sluice/internal/netlab"
)

func TestAudit(t *testing.T) {
	b := newTestbed(t, netlab.ClusterOptions{}, nil)
	for !b.d.running.Load() {
		runtime.Gosched()
	}
	if _, err := b.d.Audit(); err == nil {
		t.Error("while the workers run: no error")
	}
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	b.stop = func() error { return nil }
	c, err := b.d.Audit()
	if err != nil {
		t.Error(err)
	}
	if n, want := c.Free+c.Worker+c.Fill+c.Tx+c.Completion+c.Lost, b.d.Stats().Frames.Total; n != want {
		t.Errorf("%+v are %d frames, want %d", c, n, want)
	}
	if c.Worker != 0 || c.Lost != 0 {
		t.Errorf("%+v: a worker that has ended holds frames, or some are lost", c)
	}
}
