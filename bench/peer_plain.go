package bench

import "context"

// plain is the kernel routing packets to the backend, without any translation, rule
// or connection tracking: the floor of what forwarding costs.
type plain struct{}

func (plain) Name() string     { return "plain" }
func (plain) About() string    { return "kernel routing, no translation (the floor)" }
func (plain) Translates() bool { return false }

func (plain) Prepare(context.Context, *Site) error { return nil }

func (plain) Start(context.Context, *Site) (Instance, error) { return nothing{}, nil }
