package dataplane

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/sluice-net/sluice/xdpprog"
)

// Cleanup removes what a dataplane with this configuration left behind, whether it
// was told to keep it or did not live to remove it: pinned links and maps, the rule
// that keeps translated frames untracked, the return port. What is not there is no
// error. It is to be called on a thread in the node's network namespace, with no
// dataplane running there.
func Cleanup(cfg Config) error {
	cfg = cfg.withDefaults()
	var errs []error
	if cfg.PinDir != "" {
		errs = append(errs, xdpprog.Cleanup(cfg.PinDir))
	}
	nl, err := netlink.NewHandle()
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("netlink: %w", err))...)
	}
	defer nl.Close()
	ns, err := netns.Get()
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("network namespace of this thread: %w", err))...)
	}
	defer ns.Close()
	errs = append(errs, removeHostRoutes(nl, func(*netlink.Route) bool { return false }))
	outer := cfg.ReturnPort + "-out"
	errs = append(errs, removeUntrack(int(ns), outer))
	l, err := nl.LinkByName(outer)
	switch {
	case errors.As(err, &netlink.LinkNotFoundError{}):
	case err != nil:
		errs = append(errs, fmt.Errorf("looking for the return port %s: %w", outer, err))
	case l.Attrs().Alias != returnAlias:
		errs = append(errs, fmt.Errorf("interface %s is not ours: left alone", outer))
	default:
		errs = append(errs, (&returnPort{outer: l}).remove(nl))
	}
	return errors.Join(errs...)
}
