package stand

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// Owner owns labs in a command, as testing.T does in a test. It is a netlab.TB.
type Owner struct {
	mu       sync.Mutex
	cleanups []func()
}

// fatal is what Fatalf panics with; Run turns it into an error.
type fatal struct{ error }

// Helper is part of netlab.TB.
func (*Owner) Helper() {}

// Name is part of netlab.TB.
func (*Owner) Name() string { return "e2e" }

// Fatalf ends what Run runs.
func (*Owner) Fatalf(format string, args ...any) { panic(fatal{fmt.Errorf(format, args...)}) }

// Logf tells of what went wrong at the side.
func (*Owner) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// Cleanup remembers what is to be done at the end, the last thing first.
func (o *Owner) Cleanup(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cleanups = append(o.cleanups, f)
}

// Run runs f and gives its error, or Fatalf's.
func (*Owner) Run(f func() error) (err error) {
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
func (o *Owner) Clear() error {
	var errs []error
	for {
		o.mu.Lock()
		n := len(o.cleanups)
		if n == 0 {
			o.mu.Unlock()
			return errors.Join(errs...)
		}
		last := o.cleanups[n-1]
		o.cleanups = o.cleanups[:n-1]
		o.mu.Unlock()
		errs = append(errs, o.Run(func() error { last(); return nil }))
	}
}
