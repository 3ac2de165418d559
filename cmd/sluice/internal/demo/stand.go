package demo

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// stand is the owner of a lab in a command, as testing.T is in a test.
type stand struct {
	log *slog.Logger

	mu       sync.Mutex
	cleanups []func()
}

// fatal is what Fatalf panics with; run turns it into an error.
type fatal struct{ error }

// Helper is part of netlab.TB.
func (*stand) Helper() {}

// Name is part of netlab.TB.
func (*stand) Name() string { return "demo" }

// Fatalf ends what run runs.
func (s *stand) Fatalf(format string, args ...any) { panic(fatal{fmt.Errorf(format, args...)}) }

// Logf tells of what went wrong at the side.
func (s *stand) Logf(format string, args ...any) { s.log.Warn(fmt.Sprintf(format, args...)) }

// Cleanup remembers what is to be done at the end, the last thing first.
func (s *stand) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

// run runs f and gives its error, or Fatalf's.
func (s *stand) run(f func() error) (err error) {
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

// clear does the cleanups, all of them even if one is fatal.
func (s *stand) clear() error {
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
		errs = append(errs, s.run(func() error { last(); return nil }))
	}
}
