package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
	"github.com/sluice-net/sluice/cmd/sluice/internal/instance"
	"github.com/sluice-net/sluice/cmd/sluice/internal/preflight"
	"github.com/sluice-net/sluice/dataplane"
)

func newCheck() *cobra.Command {
	var o overrides
	c := &cobra.Command{
		Use:   "check",
		Short: "Say whether this node can be served as the configuration wants, and what to mend",
		Long: `Look at the kernel, capabilities, limits, the folder of pins, every interface
that the configuration chooses, and settings and rules that get in the way. Each
is a line; what is not as it should be names its cure. Nothing is changed, and a
daemon that runs is not disturbed. The exit status is 1 if something is bad.`,
		Example: `  sluice check --config /etc/sluice/config.yaml
  sluice check --interface eth0 --interface 'veth*'`,
		RunE: func(c *cobra.Command, _ []string) error {
			draft, err := o.draft(c.Flags())
			if err != nil {
				return err
			}
			return check(draft.Configuration, c.OutOrStdout())
		},
	}
	o.bind(c.Flags())
	return c
}

// grades are the words before a line.
var grades = map[dataplane.Grade]string{dataplane.Good: "ok", dataplane.Doubtful: "look", dataplane.Bad: "bad"}

// check looks at everything and writes what it finds.
func check(cfg *config.Configuration, w io.Writer) error {
	dc, err := dataplaneConfig(cfg)
	if err != nil {
		return err
	}
	var all []dataplane.Finding
	for _, item := range preflight.Items(needs(cfg)) {
		f := dataplane.Finding{About: item.About, Text: "as it should be"}
		if item.Err != nil {
			f.Grade = dataplane.Bad
			f.Text, f.Cure, _ = strings.Cut(item.Err.Error(), "; ")
		}
		all = append(all, f)
	}
	all = append(all, lookForDaemon(cfg), lookForPins(cfg))
	findings, err := dataplane.Examine(dc)
	if err != nil {
		return fmt.Errorf("looking at the node: %w", err)
	}
	all = append(all, findings...)
	for _, warning := range cfg.Warnings() {
		all = append(all, dataplane.Finding{Grade: dataplane.Doubtful, About: "listeners", Text: warning, Cure: "an address on 127.0.0.1 or [::1]"})
	}
	count := map[dataplane.Grade]int{}
	for _, f := range all {
		count[f.Grade]++
		line := fmt.Sprintf("%-5s%s: %s", grades[f.Grade], f.About, f.Text)
		if f.Cure != "" {
			line += " -> " + f.Cure
		}
		fmt.Fprintln(w, line)
	}
	fmt.Fprintf(w, "check: ok=%d look=%d bad=%d\n", count[dataplane.Good], count[dataplane.Doubtful], count[dataplane.Bad])
	if n := count[dataplane.Bad]; n > 0 {
		return fmt.Errorf("%d of %d things are bad", n, len(all))
	}
	return nil
}

// lookForDaemon says whether one runs here.
func lookForDaemon(cfg *config.Configuration) dataplane.Finding {
	f := dataplane.Finding{About: "instance", Text: "no daemon serves this network namespace"}
	lock, err := instance.Acquire(cfg.RunDir, cfg.Pins())
	if err != nil {
		f.Grade, f.Text, f.Cure = dataplane.Doubtful, err.Error(), "nothing, if that is the one you want"
		return f
	}
	if err := lock.Release(); err != nil {
		f.Grade, f.Text = dataplane.Doubtful, err.Error()
	}
	return f
}

// lookForPins says whether what is pinned here outlives the process: not if it has a
// mount namespace of its own.
func lookForPins(cfg *config.Configuration) dataplane.Finding {
	f := dataplane.Finding{About: "pins", Text: "nothing is to be pinned (onExit: remove)"}
	if cfg.Pins() == "" {
		return f
	}
	f.Text = "in " + cfg.Pins()
	mine, err1 := os.Readlink("/proc/self/ns/mnt")
	first, err2 := os.Readlink("/proc/1/ns/mnt")
	if err1 == nil && err2 == nil && mine != first {
		f.Grade, f.Text = dataplane.Doubtful, f.Text+", in a mount namespace of this process's own: pins in a mount made here are gone with it"
		f.Cure = "mount the host's bpffs here (hostPath /sys/fs/bpf)"
	}
	return f
}
