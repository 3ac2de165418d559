package netlab

import (
	"slices"
	"testing"
)

// TestStand has a cleanup that fails between others, and a fatal error.
func TestStand(t *testing.T) {
	s := NewStand("test", func(string) {})
	var done []int
	s.Cleanup(func() { done = append(done, 1) })
	s.Cleanup(func() { s.Fatalf("cleanup %d", 2) })
	s.Cleanup(func() { done = append(done, 3) })
	if err := s.Run(func() error { s.Fatalf("fatal %d", 7); return nil }); err == nil || err.Error() != "fatal 7" {
		t.Errorf("Run: %v, want what was fatal", err)
	}
	if err := s.Clear(); err == nil || err.Error() != "cleanup 2" {
		t.Errorf("Clear: %v, want the error of the second", err)
	}
	if !slices.Equal(done, []int{3, 1}) {
		t.Errorf("cleanups done: %v, want 3 and 1", done)
	}
}
