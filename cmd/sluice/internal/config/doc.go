// Package config is the daemon's configuration: a versioned file, its
// defaults, and the complaints about it.
//
// A Configuration starts as Default, a file is read over it, flags are set
// over that, and Check says what cannot be. Reading is strict: a field that
// the file names and this package does not know is an error, since a
// misspelt setting that is silently ignored is found weeks later. Every
// complaint says where the value came from (file and line, or flag), which
// field it is, and what is allowed.
//
// The package only reads and judges words. Whether the machine can do what
// they ask is the business of package preflight, and which service or
// dataplane type a word becomes is the business of the daemon.
package config
