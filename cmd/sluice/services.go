package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
	"github.com/sluice-net/sluice/cmd/sluice/internal/control"
	"github.com/sluice-net/sluice/service"
)

func newServices() *cobra.Command {
	var output, runDir string
	c := &cobra.Command{
		Use:   "services [NAMESPACE[/NAME]]",
		Short: "List what the daemon has programmed, and why an endpoint is not used",
		Example: `  sluice services
  sluice services default/web -o json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if output != "table" && output != "json" {
				return usageError{fmt.Errorf("--output: want table or json, got %q", output)}
			}
			socket, err := control.Path(runDir)
			if err != nil {
				return err
			}
			var s services
			if err := control.Ask(socket, "/services", &s); err != nil {
				return err
			}
			if len(args) == 1 {
				s.Services = only(s.Services, args[0])
			}
			if output == "json" {
				e := json.NewEncoder(c.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(s)
			}
			return s.print(c.OutOrStdout())
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "`form`: table or json")
	c.Flags().StringVar(&runDir, "run-dir", config.Default().RunDir, "`folder` of the daemon's socket (its runDir)")
	return c
}

// only keeps a namespace, or one Service of it.
func only(all []service.Description, want string) []service.Description {
	namespace, name, one := strings.Cut(want, "/")
	return slices.DeleteFunc(all, func(d service.Description) bool {
		return d.Namespace != namespace || one && d.Name != name
	})
}

// print writes a table: a line for each frontend, and below it one for each endpoint.
func (s *services) print(w io.Writer) error {
	fmt.Fprintf(w, "mode %s, source %s, generation %d", s.Mode, s.Source, s.Generation)
	if s.Err != "" {
		fmt.Fprintf(w, ", not known to be current for %s: %s", s.Age, s.Err)
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVICE\tFRONTEND\tACTION\tSELECTION\tAFFINITY\tPOLICY\tBACKENDS")
	for _, d := range s.Services {
		name := d.Namespace + "/" + d.Name
		if d.Port != "" {
			name += ":" + d.Port
		}
		used := 0
		for _, e := range d.Endpoints {
			if e.Used {
				used++
			}
		}
		affinity, policy := d.Affinity, "Cluster"
		if affinity == "" {
			affinity = "-"
		}
		if d.Local {
			policy = "Local"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d of %d (%s)\n", name, strings.Join(d.Frontends, ","), d.Action, d.Selection, affinity, policy, used, len(d.Endpoints), d.Rule)
		for _, e := range d.Endpoints {
			why := "used"
			if !e.Used {
				why = "not used: " + e.Why
			}
			fmt.Fprintf(t, "\t  %s\t%s\n", e.Address, strings.TrimSpace(e.Node+" "+why))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	said := map[string]bool{}
	for _, d := range s.Services {
		for _, p := range d.Problems {
			if !said[p] {
				said[p] = true
				fmt.Fprintln(w, p)
			}
		}
	}
	return nil
}
