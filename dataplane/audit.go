package dataplane

import (
	"errors"

	"github.com/sluice-net/sluice/dataplane/xsk"
)

// Audit counts the umem's frames by owner and returns what was wrong with their
// ownership since the last Audit, and what is wrong now. It needs Config.Debug.
//
// It is to be called between Run and Close, when no worker moves frames: what a
// worker still holds then (Worker) or the pool has given up (Lost) is leaked,
// and so is what never leaves a transmit ring (Tx).
func (d *Dataplane) Audit() (xsk.Census, error) {
	if d.running.Load() {
		return xsk.Census{}, errors.New("the workers are running: their frames cannot be counted")
	}
	c := d.umem.Checker()
	if c == nil {
		return xsk.Census{}, errors.New("frames have owners only with Config.Debug")
	}
	return c.Check()
}
