package main

import (
	"fmt"
	"strings"
)

// A result is what an exploration found.
type result struct {
	states, transitions, depth int
	violation                  string   // "" if there is none
	trace                      []string // the steps that lead there
}

func (r *result) String() string {
	if r.violation == "" {
		return fmt.Sprintf("states=%d transitions=%d depth=%d", r.states, r.transitions, r.depth)
	}
	return fmt.Sprintf("%s\n  after: %s", r.violation, strings.Join(r.trace, "\n         "))
}

// explore visits every state that can be reached, depth first, until a violation or the end. States are kept whole,
// not by a digest: a state counted as seen has been seen. More than limit states is an error, not an end.
func (m *machine) explore(limit int) (result, error) {
	var r result
	type frame struct {
		state
		next  int // the action to try next
		moved bool
	}
	first := m.initial()
	seen := map[state]struct{}{first: {}}
	path := []frame{{state: first}}
	// The steps that led here are the last ones tried of each state on the path.
	fail := func(why string) (result, error) {
		r.states, r.violation = len(seen), why
		for i := range path {
			if at := &path[i]; at.next <= actions {
				r.trace = append(r.trace, m.describe(&at.state, at.next-1))
			}
		}
		return r, nil
	}
	if why := m.broken(&first); why != "" {
		return fail(why)
	}
	for len(path) > 0 {
		at := &path[len(path)-1]
		if at.next == actions {
			if !at.moved {
				if why := m.final(&at.state); why != "" {
					path[len(path)-1].next = actions + 1 // no step of its own
					return fail(why)
				}
			}
			path = path[:len(path)-1]
			continue
		}
		s := at.state
		action := at.next
		at.next++
		m.why = ""
		if !m.act(&s, action) {
			continue
		}
		at.moved = true
		r.transitions++
		if m.why == "" {
			m.why = m.broken(&s)
		}
		if m.why != "" {
			return fail(m.why)
		}
		if _, ok := seen[s]; ok {
			continue
		}
		if seen[s] = struct{}{}; len(seen) > limit {
			return r, fmt.Errorf("more than %d states", limit)
		}
		path = append(path, frame{state: s})
		r.depth = max(r.depth, len(path)-1)
	}
	r.states = len(seen)
	return r, nil
}
