package config

import _ "embed"

// DefaultFile is a configuration file that holds every field with its default
// and its meaning. A test writes it from the comments in types.go and the
// values of Default, and fails while it is not what they say.
//
//go:embed default.yaml
var DefaultFile []byte
