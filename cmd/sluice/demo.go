package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
	"github.com/sluice-net/sluice/cmd/sluice/internal/demo"
)

// demoExchanges is how many exchanges there are of TCP and of UDP, over each
// family.
const demoExchanges = 300

func newDemo() *cobra.Command {
	var verbose, hold bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show all of it on this machine, in network namespaces of its own",
		Long: `Make a node with pods out of network namespaces, serve a TCP and a UDP Service on
it, let ordinary clients use them over IPv4 and IPv6, take a backend away while
they do, and check everything that comes of it. Nothing of this machine is
changed, and nothing is left. It needs root, and takes a few seconds.

The last line says what was counted. The exit status is 0 only if all is well.`,
		RunE: func(c *cobra.Command, _ []string) error {
			logging := config.Logging{Level: "warn", Format: "text"}
			if verbose {
				logging.Level = "debug"
			}
			log := newLogger(c.ErrOrStderr(), logging)
			ctx, stop := untilSignal(context.Background(), log)
			defer stop()
			return demo.Run(ctx, demo.Options{
				Serve:     serve,
				Exchanges: demoExchanges,
				Hold:      hold,
				Out:       c.OutOrStdout(),
				Colour:    isTerminal(c.OutOrStdout()),
				Log:       log,
			})
		},
	}
	c.Flags().BoolVar(&verbose, "verbose", false, "show what the daemon logs")
	c.Flags().BoolVar(&hold, "hold", false, "keep everything up until Ctrl-C, and tell how to look into it")
	return c
}
