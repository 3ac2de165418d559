//go:build linux

package netlab

import "testing"

func TestStateX(t *testing.T) {
	a, _ := wire(t, VethOptions{Queues: 2})
	for _, l := range a.State() {
		t.Log(l)
	}
}
