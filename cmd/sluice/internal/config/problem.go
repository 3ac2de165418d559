package config

import "fmt"

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	Origin string // "sluice.yaml:12", "--mode", or "" for a default
	Field  string // path of the field, "" if it is the file itself
	Text   string // what is wrong and what is allowed
}

// String says it in one line.
func (p Problem) String() string {
	s := p.Text
	if p.Field != "" {
		s = p.Field + ": " + s
	}
	if p.Origin != "" {
		s = p.Origin + ": " + s
	}
	return s
}

// Problems is all that is wrong, never empty, as an error of one line.
type Problems []Problem

// Error implements error.
func (p Problems) Error() string {
	s := p[0].String()
	if n := len(p) - 1; n > 0 {
		s += fmt.Sprintf(" (and %d more: `sluice config validate` lists them all)", n)
	}
	return s
}

// orNil keeps an empty list from becoming a non-nil error.
func (p Problems) orNil() error {
	if len(p) == 0 {
		return nil
	}
	return p
}
