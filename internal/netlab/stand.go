package netlab

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// Stand is the owner of a lab in a command, as testing.T is in a test: what it is fatal to ends Run instead of a test.
// Safe for concurrent use.
type Stand struct {
	name string
	say  func(string)

	mu       sync.Mutex
	cleanups []func()
}

// NewStand returns an owner with nothing to clean up. say is told, in a line each, what went wrong at the side.
func NewStand(name string, say func(line string)) *Stand { return &Stand{name: name, say: say} }

// ToStderr is a NewStand's say for commands that have no log.
func ToStderr(line string) { fmt.Fprintln(os.Stderr, line) }

// fatal is what Fatalf panics with; Run turns it into an error.
type fatal struct{ error }

// Helper is part of TB.
func (*Stand) Helper() {}

// Name is part of TB.
func (s *Stand) Name() string { return s.name }

// Fatalf ends what Run runs.
func (s *Stand) Fatalf(format string, args ...any) { panic(fatal{fmt.Errorf(format, args...)}) }

// Logf tells of what went wrong at the side.
func (s *Stand) Logf(format string, args ...any) { s.say(fmt.Sprintf(format, args...)) }

// Cleanup remembers what is to be done at the end, the last thing first.
func (s *Stand) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

// Run runs f and gives its error, or Fatalf's.
func (s *Stand) Run(f func() error) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case fatal:
			err = r.error
		default:
			panic(r)
		}
	}()
	return f()
}

// Clear does the cleanups, all of them even if one is fatal.
func (s *Stand) Clear() error {
	var errs []error
	for {
		s.mu.Lock()
		n := len(s.cleanups)
		if n == 0 {
			s.mu.Unlock()
			return errors.Join(errs...)
		}
		last := s.cleanups[n-1]
		s.cleanups = s.cleanups[:n-1]
		s.mu.Unlock()
		errs = append(errs, s.Run(func() error { last(); return nil }))
	}
}
