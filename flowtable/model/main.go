package main

import (
	"flag"
	"fmt"
	"os"
	"sync"
)

func main() {
	limit := flag.Int("limit", 60_000_000, "states of one exploration after which it is given up")
	parallel := flag.Int("parallel", 2, "explorations at a time")
	only := flag.String("scenario", "", "explore this one only")
	all := flag.Bool("all", false, "explore the stronger memory models too, for shorter traces")
	flag.Parse()
	models := []memory{pso}
	if *all {
		models = []memory{sc, tso, pso}
	}
	if !run(*only, models, *limit, *parallel) {
		os.Exit(1)
	}
}

// run explores every scenario under the memory models, then every mutant. It reports whether all went as it must.
func run(only string, models []memory, limit, parallel int) bool {
	var mu sync.Mutex
	var wg sync.WaitGroup
	room := make(chan struct{}, parallel)
	states, violations, caught, failed := 0, 0, 0, 0
	do := func(f func()) {
		wg.Add(1)
		room <- struct{}{}
		go func() {
			defer wg.Done()
			f()
			<-room
		}()
	}
	for _, s := range scenarios {
		if only != "" && s.name != only {
			continue
		}
		// What SC and TSO allow, PSO allows too: a buffer may always drain at once, and in order.
		for _, memory := range models {
			do(func() {
				r, err := newMachine(s, memory, mutant{}).explore(limit)
				mu.Lock()
				defer mu.Unlock()
				fmt.Printf("%-14s %-4v %v\n", s.name, memory, &r)
				states += r.states
				if r.violation != "" {
					violations++
				}
				if err != nil {
					fmt.Println("  not explored:", err)
					failed++
				}
			})
		}
	}
	for _, mt := range mutants {
		if only != "" && mt.scenario != only {
			continue
		}
		do(func() {
			r, err := newMachine(scenarioByName(mt.scenario), mt.memory, mt.mutant).explore(limit)
			blind := newMachine(scenarioByName(mt.scenario), mt.memory, mt.mutant)
			blind.blind = true
			noticed, _ := blind.explore(limit)
			mu.Lock()
			defer mu.Unlock()
			if r.violation == "" {
				fmt.Printf("mutant %q is not found: %v %v\n", mt.name, &r, err)
				failed++
				return
			}
			caught++
			fmt.Printf("mutant %-45q %-14s %-4v found after %d states: %s\n", mt.name, mt.scenario, mt.memory, r.states, r.violation)
			if noticed.violation != "" {
				fmt.Printf("       %-45s noticed by a process after %d: %s\n", "", noticed.states, noticed.violation)
			}
		})
	}
	wg.Wait()
	fmt.Printf("mutants: found=%d of %d\n", caught, caught+failed)
	fmt.Printf("model: states=%d violations=%d\n", states, violations)
	return violations == 0 && failed == 0
}
