package main

import (
	"errors"
	"fmt"
	"os"
)

// stand owns the lab, as testing.T does in a test.
type stand struct {
	cleanups []func()
}

// fatal is what Fatalf panics with; run turns it into an error.
type fatal struct{ error }

// Helper is part of netlab.TB.
func (*stand) Helper() {}

// Name is part of netlab.TB.
func (*stand) Name() string { return "chaos" }

// Fatalf ends what run runs.
func (*stand) Fatalf(format string, args ...any) { panic(fatal{fmt.Errorf(format, args...)}) }

// Logf tells of what went wrong at the side.
func (*stand) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// Cleanup remembers what is to be done at the end, the last thing first.
func (s *stand) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

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
	for len(s.cleanups) > 0 {
		last := s.cleanups[len(s.cleanups)-1]
		s.cleanups = s.cleanups[:len(s.cleanups)-1]
		errs = append(errs, s.run(func() error { last(); return nil }))
	}
	return errors.Join(errs...)
}
