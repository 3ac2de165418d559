package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
	"github.com/sluice-net/sluice/cmd/sluice/internal/control"
	"github.com/sluice-net/sluice/cmd/sluice/internal/instance"
	"github.com/sluice-net/sluice/dataplane"
)

func newCleanup() *cobra.Command {
	var o overrides
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove what a daemon with --on-exit keep, or one that was killed, left on this node",
		Long: `Remove what a daemon with --on-exit keep, or one that was killed, left on this
node: attached programs and their pins, the flow table, the return port, the
rules. It refuses while a daemon runs, and what is not there is no error.`,
		RunE: func(c *cobra.Command, _ []string) error {
			draft, err := o.draft(c.Flags())
			if err != nil {
				return err
			}
			return cleanup(draft.Configuration)
		},
	}
	o.bindFile(c.Flags())
	o.bindPinPath(c.Flags())
	return c
}

// cleanup removes what is left of the daemon with this configuration, whatever
// it was told to leave.
func cleanup(cfg *config.Configuration) (err error) {
	lock, err := instance.Acquire(cfg.RunDir, cfg.PinPath)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	dc, err := dataplaneConfig(cfg)
	if err != nil {
		return err
	}
	dc.PinDir = cfg.PinPath
	if err := dataplane.Cleanup(dc); err != nil {
		return fmt.Errorf("cleaning up: %w", err)
	}
	// A daemon that was killed has left its socket; the lock is ours, so it is nobody's.
	socket, err := control.Path(cfg.RunDir)
	if err == nil {
		err = os.Remove(socket)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cleaning up: %w", err)
	}
	return nil
}
