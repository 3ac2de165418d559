package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
	"github.com/sluice-net/sluice/cmd/sluice/internal/control"
	"github.com/sluice-net/sluice/dataplane"
	"github.com/sluice-net/sluice/flowtable"
)

func newFlows() *cobra.Command {
	var output, runDir string
	question := url.Values{}
	c := &cobra.Command{
		Use:   "flows",
		Short: "List the flows that the daemon knows",
		Long: `List the flows that the daemon knows: who speaks to which Service, to which of its
backends, and how it goes. Workers do not wait for the listing, so a flow that begins or
ends meanwhile may be in it or not.`,
		Example: `  sluice flows --service default/web
  sluice flows --client 198.18.1.0/24 --state opening -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return usageError{fmt.Errorf("--output: want table or json, got %q", output)}
			}
			if _, err := flowFilter(question); err != nil {
				return usageError{err}
			}
			socket, err := control.Path(runDir)
			if err != nil {
				return err
			}
			flows := []dataplane.FlowInfo{}
			if err := control.AskLines(socket, "/flows", question, func(f dataplane.FlowInfo) { flows = append(flows, f) }); err != nil {
				return err
			}
			slices.SortFunc(flows, func(a, b dataplane.FlowInfo) int {
				return cmp.Or(cmp.Compare(a.Service, b.Service), a.Frontend.Compare(b.Frontend), a.Client.Compare(b.Client))
			})
			if output == "json" {
				e := json.NewEncoder(c.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(flows)
			}
			return printFlows(c.OutOrStdout(), flows)
		},
	}
	for _, f := range []struct{ name, usage string }{
		{"service", "only of this `service`: NAMESPACE or NAMESPACE/NAME"},
		{"client", "only of clients with this `address`, or in this range"},
		{"backend", "only to backends with this `address`, or in this range"},
		{"state", "only in this `state`: " + strings.Join(flowtable.Classes(), ", ")},
	} {
		c.Flags().Var(valueOf{question, f.name}, f.name, f.usage)
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "`form`: table or json")
	c.Flags().StringVar(&runDir, "run-dir", config.Default().RunDir, "`folder` of the daemon's socket (its runDir)")
	return c
}

// valueOf is a flag that is a word of a question.
type valueOf struct {
	question url.Values
	name     string
}

func (v valueOf) String() string     { return v.question.Get(v.name) }
func (v valueOf) Set(s string) error { v.question.Set(v.name, s); return nil }
func (v valueOf) Type() string       { return "string" }

// flowFilter reads a question for flows.
func flowFilter(q url.Values) (*dataplane.FlowFilter, error) {
	f := &dataplane.FlowFilter{State: q.Get("state")}
	f.Namespace, f.Name, _ = strings.Cut(q.Get("service"), "/")
	var errs [2]error
	f.Client, errs[0] = prefix("client", q.Get("client"))
	f.Backend, errs[1] = prefix("backend", q.Get("backend"))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if f.State != "" && !slices.Contains(flowtable.Classes(), f.State) {
		return nil, fmt.Errorf("--state: want one of %s, got %q", strings.Join(flowtable.Classes(), ", "), f.State)
	}
	return f, nil
}

// prefix reads an address or a range, if there is one.
func prefix(flag, s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("--%s: want an address or a range like 198.18.1.0/24, got %q", flag, s)
	}
	return p, nil
}

// printFlows writes a line for each flow.
func printFlows(w io.Writer, flows []dataplane.FlowInfo) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVICE\tPROTOCOL\tCLIENT\tFRONTEND\tBACKEND\tSEEN AS\tSTATE\tAGE\tIDLE\tFORWARD\tREPLY")
	for i := range flows {
		f := &flows[i]
		service, seen := cmp.Or(f.Service, "-"), "-"
		if f.Source != f.Client {
			seen = f.Source.String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\n", service, f.Protocol, f.Client, f.Frontend, f.Backend, seen, f.State,
			span(f.AgeSeconds), span(f.IdleSeconds), f.ForwardPackets, f.ReplyPackets)
	}
	return t.Flush()
}

// span is a time for people.
func span(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
