package main

import "fmt"

// broken says what is wrong in a state, or "".
func (m *machine) broken(s *state) string {
	if m.blind {
		return ""
	}
	if s.free&s.limbo|s.free&s.batch|s.limbo&s.batch != 0 {
		return "a record is in two places"
	}
	// What lies in each cell: flow, direction.
	var standing [buckets * cells][2]uint8
	for i := range standing {
		c := s.mem[cellAt+i]
		if c == 0 {
			continue
		}
		rec, d := c>>1, c&1
		flow := s.mem[word(rec, 0)]
		if flow == 0 || flow != s.mem[word(rec, 1)] {
			return fmt.Sprintf("cell %d leads to record %d, which is not complete", i, rec)
		}
		if s.mem[life(rec)] == free {
			return fmt.Sprintf("cell %d leads to record %d, which is free", i, rec)
		}
		for j := range i {
			if f := standing[j][0]; f != 0 && m.flows[f].tuple[standing[j][1]] == m.flows[flow].tuple[d] {
				return fmt.Sprintf("cells %d and %d have the same tuple", j, i)
			}
		}
		standing[i] = [2]uint8{flow, d}
	}
	has := func(rec, d uint8) bool {
		for i := range standing {
			if s.mem[cellAt+i] == cellOf(rec, d) {
				return true
			}
		}
		return false
	}
	adoptable := uint8(0)
	for rec := uint8(1); rec <= m.records; rec++ {
		fwd, rep := has(rec, forward), has(rec, reply)
		if fwd && !rep {
			return fmt.Sprintf("record %d can be found by its forward tuple and not by its reply tuple", rec)
		}
		switch s.mem[life(rec)] {
		case live:
			if fwd && rep {
				adoptable |= bit(s.mem[word(rec, 0)])
			}
		case free:
			for p := range s.p {
				if s.p[p].hold&bit(rec) != 0 {
					return fmt.Sprintf("%s is on record %d, which is free", names[p], rec)
				}
			}
		}
	}
	if s.in&^adoptable != 0 {
		return fmt.Sprintf("flows %b are in the table and would not be adopted", s.in&^adoptable)
	}
	return ""
}

// final says what is wrong with a state in which nothing can happen any more, or "".
func (m *machine) final(s *state) string {
	for p := range s.p {
		if int(s.p[p].op) < len(m.script[p]) {
			return fmt.Sprintf("%s waits for ever", names[p])
		}
	}
	for rec := uint8(1); rec <= m.records; rec++ {
		b := bit(rec)
		want := [3]uint8{free: s.free, live: ^(s.free | s.limbo | s.batch), retired: s.limbo | s.batch}
		if want[s.mem[life(rec)]]&b == 0 {
			return fmt.Sprintf("record %d is lost", rec)
		}
	}
	return ""
}
