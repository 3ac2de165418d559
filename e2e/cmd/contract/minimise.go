package main

import (
	"context"
	"fmt"
	"time"
)

// minimiseFor bounds the search for a shorter history.
const minimiseFor = 90 * time.Second

// minimise plays shorter and shorter parts of a history and prints the shortest that still shows a difference for the same
// client and frontend.
func (r *run) minimise(ctx context.Context, h history, d difference) error {
	deadline := time.Now().Add(minimiseFor)
	steps := h.steps[:d.step+1]
	// What is counted belongs to the histories themselves.
	steps0, probes0, explained0 := r.steps, r.probes, r.explained
	r.explained = map[string]int{}
	defer func() { r.steps, r.probes, r.explained = steps0, probes0, explained0 }()
	shows := func(steps []step) (difference, bool, error) {
		found, err := r.history(ctx, history{seed: h.seed, steps: steps}, &d)
		if err != nil || len(found) == 0 {
			return d, false, err
		}
		return found[0], true, nil
	}
	last, ok, err := shows(steps)
	if err != nil {
		return err
	}
	if !ok {
		fmt.Printf("the difference of seed %d did not show itself again\n", h.seed)
		return nil
	}
	for size := max(1, len(steps)/2); size > 0; size /= 2 {
		for i := 0; i+size < len(steps) && time.Now().Before(deadline); {
			shorter := append(append([]step{}, steps[:i]...), steps[i+size:]...)
			again, ok, err := shows(shorter)
			if err != nil {
				return err
			}
			if ok {
				steps, last = shorter, again
			} else {
				i += size
			}
		}
	}
	for i := range steps { // single ops of the steps that are left
		for j := 0; j < len(steps[i]) && len(steps[i]) > 1 && time.Now().Before(deadline); {
			shorter := append([]step{}, steps...)
			shorter[i] = append(append(step{}, steps[i][:j]...), steps[i][j+1:]...)
			again, ok, err := shows(shorter)
			if err != nil {
				return err
			}
			if ok {
				steps, last = shorter, again
			} else {
				j++
			}
		}
	}
	fmt.Printf("shortest history of seed %d that shows it:\n", h.seed)
	for i, s := range steps {
		for _, o := range s {
			fmt.Printf("  step %d: %s\n", i, o)
		}
	}
	fmt.Println(" ", last)
	return nil
}
