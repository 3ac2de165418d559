package main

import "testing"

// The smaller scenarios; `make model` explores all.
func TestProtocol(t *testing.T) {
	for _, name := range []string{"keep", "two-turns", "dump", "late"} {
		if raceEnabled && name != "keep" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := newMachine(scenarioByName(name), pso, mutant{}).explore(1_000_000)
			if err != nil || r.violation != "" || r.states < 10_000 {
				t.Errorf("%v %v", err, &r)
			}
		})
	}
}

// The checker has teeth: each mutant is found.
func TestMutants(t *testing.T) {
	for i, mt := range mutants {
		if raceEnabled && i%4 != 0 {
			continue
		}
		t.Run(mt.name, func(t *testing.T) {
			t.Parallel()
			r, err := newMachine(scenarioByName(mt.scenario), mt.memory, mt.mutant).explore(1_000_000)
			if err != nil || r.violation == "" {
				t.Fatalf("not found: %v %v", err, &r)
			}
			if len(r.trace) == 0 {
				t.Error("no trace")
			}
			t.Log(&r)
		})
	}
}

// A store that ought to be atomic is harmless while memory is sequentially consistent: it takes the store buffers to
// find it.
func TestStoreBuffersMatter(t *testing.T) {
	m := newMachine(scenarioByName("late"), sc, mutant{plainWake: true})
	if r, err := m.explore(1_000_000); err != nil || r.violation != "" {
		t.Errorf("%v %v", err, &r)
	}
}
