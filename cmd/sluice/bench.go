package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-net/sluice/bench"
	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
)

// kubernetesVariable in the environment names the folder of Kubernetes's binaries.
const kubernetesVariable = "SLUICE_KUBERNETES"

func newBench() *cobra.Command {
	var (
		o       bench.Options
		verbose bool
		other   string
		html    string
		md      string
	)
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure Sluice beside kernel routing, kube-proxy and eBPF on this machine",
		Long: `Measure ways to serve ClusterIPs beside each other, in network namespaces of its
own: kernel routing, kube-proxy in both its modes, NAT on tc and in XDP, and
Sluice. All of them take turns, round by round. It needs root and a machine with
nothing else to do; nothing of the machine is changed, and nothing is left.

kube-proxy and its API server are taken from --kubernetes (or ` + kubernetesVariable + `), a
folder with etcd, kube-apiserver and kube-proxy. Without it these two are absent.

The last line is made of ratios of medians of this run to those of the peers;
n/a stands for what could not be measured, and the reasons are above it.`,
		Example: `  sluice bench --quick
  sluice bench --output results.json --resume --html report.html
  sluice bench --peers sluice-native,plain --workloads crr --repeats 6
  sluice bench --other ./sluice-before --peers sluice-native,sluice-native-other --workloads pps-injected --repeats 8
  sluice bench compare before.json after.json`,
		RunE: func(c *cobra.Command, _ []string) error {
			logging := config.Logging{Level: "error", Format: "text"}
			if verbose {
				logging.Level = "info"
			}
			o.Log = newLogger(c.ErrOrStderr(), logging)
			ctx, stop := untilSignal(context.Background(), o.Log)
			defer stop()
			o.Sluice = program("/proc/self/exe")
			if other != "" {
				if _, err := os.Stat(other); err != nil {
					return err
				}
				o.Other = program(other)
			}
			o.CommandLine = strings.Join(append([]string{"sluice"}, os.Args[1:]...), " ")
			b := thisBuild()
			o.Version = b.Version + " " + b.Revision
			if isTerminal(c.ErrOrStderr()) {
				o.Progress = c.ErrOrStderr()
			}
			r, err := bench.Run(ctx, o)
			if r == nil {
				return err
			}
			out := c.OutOrStdout()
			r.WriteTable(out)
			err = errors.Join(err, writeReports(r, html, md))
			line, reasons := r.Summary()
			fmt.Fprintln(out)
			for _, reason := range reasons {
				fmt.Fprintln(out, "  n/a: "+reason)
			}
			if err == nil {
				err = r.Sane()
			}
			fmt.Fprintln(out, line)
			return err
		},
	}
	f := c.Flags()
	f.BoolVar(&o.Quick, "quick", false, "measure little, in under three minutes")
	f.IntVar(&o.Repeats, "repeats", 3, "`rounds` of all peers")
	f.DurationVar(&o.Duration, "duration", 0, "`time` of one measurement (default 2s, with --quick 200ms)")
	f.StringSliceVar(&o.Peers, "peers", nil, "`names` of peers, beside the baseline: "+strings.Join(bench.PeerNames(), ", "))
	f.StringSliceVar(&o.Workloads, "workloads", nil, "`names` of workloads: "+strings.Join(bench.WorkloadNames(), ", "))
	f.IntSliceVar(&o.Services, "services", nil, "`numbers` of Services of a full run (default 1,1000,10000)")
	f.StringVar(&o.Baseline, "baseline", "nftables", "`peer` that ratios are to")
	f.StringVar(&o.Kubernetes, "kubernetes", os.Getenv(kubernetesVariable), "`folder` of etcd, kube-apiserver and kube-proxy")
	f.StringVar(&other, "other", "", "`file` of another build of sluice, to be measured beside this one")
	f.StringVar(&o.Output, "output", "", "`file` of the result in JSON, written after each measurement")
	f.BoolVar(&o.Resume, "resume", false, "go on with what --output holds")
	f.StringVar(&html, "html", "", "`file` of a report with plots")
	f.StringVar(&md, "markdown", "", "`file` of a report in Markdown")
	f.StringVar(&o.PProf, "pprof", "", "`folder` of profiles, and of where a frame's time goes")
	f.BoolVar(&verbose, "verbose", false, "show what is logged")
	f.SortFlags = false
	c.AddCommand(newBenchCompare(), newBenchReport())
	return c
}

// program starts a build of sluice.
func program(name string) func(args ...string) *exec.Cmd {
	return func(args ...string) *exec.Cmd { return exec.Command(name, args...) }
}

func newBenchCompare() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "compare FIRST SECOND",
		Short: "Say what differs between two results, and whether it could be chance",
		Long: `Compare two result files, series by series, by a rank test (Mann-Whitney, exact).
What was measured on another machine, kernel or kind of run is refused.`,
		Args: takes(2, "takes two result files"),
		RunE: func(c *cobra.Command, args []string) error {
			first, err := bench.ReadResult(args[0])
			if err != nil {
				return err
			}
			second, err := bench.ReadResult(args[1])
			if err != nil {
				return err
			}
			compared, err := bench.Compare(first, second)
			if err != nil {
				return err
			}
			compared.Write(c.OutOrStdout(), all)
			fmt.Fprintln(c.OutOrStdout(), compared.Line())
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all metrics, not only the one that each workload is about")
	return c
}

func newBenchReport() *cobra.Command {
	var html, md string
	c := &cobra.Command{
		Use:   "report RESULT",
		Short: "Write the report of a result again",
		Args:  takes(1, "takes one result file"),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := bench.ReadResult(args[0])
			if err != nil {
				return err
			}
			if html == "" && md == "" {
				r.WriteTable(c.OutOrStdout())
				return nil
			}
			return writeReports(r, html, md)
		},
	}
	c.Flags().StringVar(&html, "html", "", "`file` of a report with plots")
	c.Flags().StringVar(&md, "markdown", "", "`file` of a report in Markdown")
	return c
}

// writeReports writes those that have a file.
func writeReports(r *bench.Result, html, md string) error {
	for _, report := range []struct {
		file  string
		write func(io.Writer) error
	}{{html, r.WriteHTML}, {md, r.WriteMarkdown}} {
		if report.file == "" {
			continue
		}
		f, err := os.Create(report.file)
		if err != nil {
			return err
		}
		if err := errors.Join(report.write(f), f.Close()); err != nil {
			return err
		}
	}
	return nil
}
