package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-net/sluice/e2e/stand"
)

// Waits of the tries: a difference that goes away when one asks again, and more slowly, was the machine's.
var waits = []time.Duration{300 * time.Millisecond, time.Second, 3 * time.Second}

// waitTCP is the least that a connection is given. The kernel's refusal of a SYN can come back while connect still holds the
// socket; then only the one that follows the next SYN, a second later, is heard.
const waitTCP = 1300 * time.Millisecond

// compare asks one pair on all sides and returns what differs and nothing explains.
func (r *run) compare(ctx context.Context, p pair, flows *flows) (texts []string) {
	at := p.at
	service, port, kind := r.world.lookup(at.to, at.proto)
	at.kind = kind
	sticky := service != nil && service.Spec.SessionAffinity == corev1.ServiceAffinityClientIP
	var (
		all, use []modelEndpoint
		double   twins
		model    outcome
	)
	if service != nil {
		all, double = r.world.endpoints(service, port, at.to.Addr().Is6())
		use, model = usable(service, all), expected(service, all)
	}
	subject := len(r.sides) - 1
	who := r.sides[0].clients[p.client].kind

	r.mu.Lock()
	r.probes += len(r.sides)
	r.mu.Unlock()
	var results []outcome
	for i, wait := range waits {
		if ctx.Err() != nil {
			return nil
		}
		if i == 1 { // one at a time: Sluice answers no more than fifty refusals at once
			r.again.Lock()
			defer r.again.Unlock()
		}
		texts = texts[:0]
		results = observe(ctx, r.sides, p.client, at, sticky, patience(at, wait))
		for i := range subject {
			if text := differs(results[i], results[subject], sticky, use); text != "" {
				if class := explain(r.sides[i].mode, who, at, results[i], results[subject], double, model); class != "" {
					if wait == waits[0] {
						r.count(class)
					}
					continue
				}
				texts = append(texts, fmt.Sprintf("%s asks %s: %s says %s, %s says %s%s (endpoints %s, usable %s)", who, at,
					r.sides[i].mode, results[i], r.sides[subject].mode, results[subject], text, names(all), names(use)))
			}
		}
		if len(texts) == 0 {
			break
		}
		if r.o.verbose {
			fmt.Printf("  try %d: %s\n", i, strings.Join(texts, "; "))
		}
	}
	if len(texts) == 0 {
		texts = flows.ask(ctx, p, at, results, all, use)
	}
	return texts
}

func patience(at frontend, wait time.Duration) time.Duration {
	if at.proto == "tcp" {
		return max(wait, waitTCP)
	}
	return wait
}

func (r *run) count(class string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.explained[class]++
}

func names(all []modelEndpoint) string {
	var out []string
	for _, e := range all {
		out = append(out, e.name)
	}
	return "[" + strings.Join(out, " ") + "]"
}

// differs says how, or nothing. With affinity the two may have chosen differently, but each has to have chosen one, and one of
// the usable.
func differs(judge, subject outcome, sticky bool, use []modelEndpoint) string {
	if strings.HasPrefix(judge.verdict, "mixed") || strings.HasPrefix(subject.verdict, "mixed") {
		return ", and it should be one" // even where both say the same, the machine had no time for one of the questions
	}
	if !sticky || judge.verdict != "answered" || subject.verdict != "answered" {
		if judge.equal(subject) {
			return ""
		}
		return " "
	}
	if len(subject.backends) != 1 {
		return ", which is no affinity"
	}
	if !slices.ContainsFunc(use, func(e modelEndpoint) bool { return e.name == subject.backends[0] }) {
		return ", which is not usable"
	}
	return ""
}

// flows are what outlives the steps: for each side and pair a UDP socket and a TCP connection.
type flows struct {
	r    *run
	mu   sync.Mutex
	kept map[flowKey]*held
}

type flowKey struct {
	side int
	pair pair
}

// keptAtMost bounds the flows of a side.
const keptAtMost = 60

func newFlows(r *run) *flows { return &flows{r: r, kept: map[flowKey]*held{}} }

func (f *flows) close() {
	for _, h := range f.kept {
		h.conn.Close()
	}
}

// ask asks over the flow that a pair has had for some steps, or opens one.
func (f *flows) ask(ctx context.Context, p pair, at frontend, results []outcome, all, use []modelEndpoint) (texts []string) {
	if p.at.proto == "sctp" {
		return nil
	}
	p.at.kind = ""
	for i, s := range f.r.sides {
		key := flowKey{i, p}
		f.mu.Lock()
		h, n := f.kept[key], len(f.kept)
		f.mu.Unlock()
		if h == nil {
			if n >= keptAtMost*len(f.r.sides) || p.at.proto == "tcp" && results[i].verdict != "answered" {
				continue
			}
			opened, err := hold(ctx, s.clients[p.client], at, waits[1])
			if err != nil {
				continue // the new connections have just been compared
			}
			f.mu.Lock()
			f.kept[key] = opened
			f.mu.Unlock()
			h = opened
		}
		var problem string
		for _, wait := range waits {
			if p.at.proto == "udp" {
				problem = askHeldUDP(h, wait, results[i], all)
			} else {
				problem = askHeldTCP(h, wait)
			}
			if problem == "" {
				break
			}
		}
		if problem == "" {
			continue
		}
		// One that is wrong once is wrong for long: the next asks over a new one.
		h.conn.Close()
		f.mu.Lock()
		delete(f.kept, key)
		f.mu.Unlock()
		if class := explainHeld(s.mode, s.clients[p.client].kind, p.at.proto); class != "" {
			f.r.count(class)
			continue
		}
		texts = append(texts, fmt.Sprintf("%s's %s flow to %s that was there before: on %s %s (new ones: %s, endpoints %s, usable %s)",
			s.clients[p.client].kind, p.at.proto, at, s.mode, problem, results[i], names(all), names(use)))
	}
	return texts
}

// askHeldUDP: a UDP flow goes where a new one would go, or stays with a backend that still serves; and it is
// refused where a new one would be.
func askHeldUDP(h *held, wait time.Duration, fresh outcome, all []modelEndpoint) string {
	name, err := h.askUDP(wait)
	switch {
	case err == nil:
		serves := slices.ContainsFunc(all, func(e modelEndpoint) bool { return e.name == name && (e.serving || e.ready) })
		if slices.Contains(fresh.backends, name) || serves {
			return ""
		}
		return name + " answers"
	case errors.Is(err, stand.ErrRefused) && fresh.verdict == refused, errors.Is(err, stand.ErrSilent) && fresh.verdict == silent:
		return ""
	}
	return err.Error()
}

// askHeldTCP: an established connection goes on, whatever becomes of its Service, as long as its server lives.
func askHeldTCP(h *held, wait time.Duration) string {
	name, err := h.askTCP(wait)
	switch {
	case err != nil:
		return err.Error()
	case h.backend == "":
		h.backend = name
	case h.backend != name:
		return name + " answers after " + h.backend
	}
	return ""
}
