package main

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
	"github.com/sluice-net/sluice/dataplane"
)

func newRun() *cobra.Command {
	var o overrides
	c := &cobra.Command{
		Use:   "run",
		Short: "Serve ClusterIPs on this node until told to stop",
		Long: `Serve the ClusterIPs of the Services in a folder of manifests or of an API
server, on the interfaces named, until SIGTERM or SIGINT. Everything can be set in
a configuration file; flags override only what they name.`,
		Example: `  sluice run --interface eth0 --interface vethweb=native --manifests ./services
  sluice run --interface eth0 --kubeconfig /etc/sluice/kubeconfig
  sluice run --config /etc/sluice/config.yaml --on-exit keep`,
		RunE: func(c *cobra.Command, _ []string) error {
			draft, err := o.draft(c.Flags())
			if err != nil {
				return err
			}
			log := newLogger(c.ErrOrStderr(), draft.Logging)
			ctx, stop := untilSignal(context.Background(), log)
			defer stop()
			var failed error
			opened := func(*dataplane.Dataplane) {
				if draft.DropPrivileges {
					if failed = dropPrivileges(); failed != nil {
						stop()
					}
				}
			}
			err = serve(ctx, draft.Configuration, log, opened, func(*dataplane.Dataplane) {})
			return errors.Join(failed, err)
		},
	}
	o.bind(c.Flags())
	return c
}

// overrides are the flags that stand for a field of the configuration.
type overrides struct {
	file       string
	interfaces []string
	values     config.Configuration // only what flags set
}

// bind declares the flags of run. Their defaults are the configuration's, and
// are only for show: what counts is whether a flag was given.
func (o *overrides) bind(fs *pflag.FlagSet) {
	d := config.Default()
	v := &o.values
	o.bindFile(fs)
	fs.StringArrayVar(&o.interfaces, "interface", nil, "`name[=kind]` of an interface to serve, or a pattern of names; may be given again. kind: "+strings.Join(config.Kinds, ", "))
	fs.StringVar(&v.Manifests, "manifests", d.Manifests, "`folder` of Service and EndpointSlice manifests")
	fs.StringVar(&v.ClientConnection.Kubeconfig, "kubeconfig", "", "take Services from an API server, as this `file` says")
	fs.StringVar(&v.APIServer, "apiserver", "", "take Services from the API server at this `URL`, with the credentials of --kubeconfig or the pod")
	fs.StringVar(&v.Mode, "mode", d.Mode, "`mode`: front (beside kube-proxy), named (only Services with our label) or alone (in its place)")
	fs.StringVar(&v.OnExit, "on-exit", d.OnExit, "what is left at the `end`: remove (nothing) or keep (what a restart adopts)")
	o.bindPinPath(fs)
	fs.StringVar(&v.MetricsBindAddress, "metrics-address", d.MetricsBindAddress, "`address` of /metrics; empty for none")
	fs.StringVar(&v.HealthzBindAddress, "healthz-address", d.HealthzBindAddress, "`address` of /livez, /readyz and /healthz; empty for none")
	fs.BoolVar(&v.EnableProfiling, "enable-profiling", d.EnableProfiling, "serve /debug/pprof/ beside /metrics, on loopback")
	fs.StringVar(&v.Logging.Level, "log-level", d.Logging.Level, "`level`: "+strings.Join(config.LogLevels, ", "))
	fs.StringVar(&v.Logging.Format, "log-format", d.Logging.Format, "`format`: "+strings.Join(config.LogFormats, ", "))
	fs.SortFlags = false
}

// bindFile and bindPinPath declare the flags that other verbs have too.
func (o *overrides) bindFile(fs *pflag.FlagSet) {
	fs.StringVar(&o.file, "config", "", "configuration `file`, YAML or JSON (see 'sluice config print-default')")
}

func (o *overrides) bindPinPath(fs *pflag.FlagSet) {
	fs.StringVar(&o.values.PinPath, "pin-path", config.Default().PinPath, "`folder` on a bpffs where --on-exit keep pins")
}

// draft gives the configuration: defaults, the file over them, the flags over
// that, and all of it checked.
func (o *overrides) draft(fs *pflag.FlagSet) (*config.Draft, error) {
	d := config.New()
	if o.file != "" {
		if err := d.ReadFile(o.file); err != nil {
			return nil, err
		}
	}
	v := &o.values
	for _, f := range []struct {
		flag, field string
		set         func()
	}{
		{"interface", "interfaces", func() { d.Interfaces = parseInterfaces(o.interfaces) }},
		{"manifests", "manifests", func() { d.Manifests = absolute(v.Manifests) }},
		{"kubeconfig", "clientConnection.kubeconfig", func() {
			d.ClientConnection.Kubeconfig, d.Source = absolute(v.ClientConnection.Kubeconfig), "apiServer"
		}},
		{"apiserver", "apiServer", func() { d.APIServer, d.Source = v.APIServer, "apiServer" }},
		{"mode", "mode", func() { d.Mode = v.Mode }},
		{"on-exit", "onExit", func() { d.OnExit = v.OnExit }},
		{"pin-path", "pinPath", func() { d.PinPath = v.PinPath }},
		{"metrics-address", "metricsBindAddress", func() { d.MetricsBindAddress = v.MetricsBindAddress }},
		{"healthz-address", "healthzBindAddress", func() { d.HealthzBindAddress = v.HealthzBindAddress }},
		{"enable-profiling", "enableProfiling", func() { d.EnableProfiling = v.EnableProfiling }},
		{"log-level", "logging.level", func() { d.Logging.Level = v.Logging.Level }},
		{"log-format", "logging.format", func() { d.Logging.Format = v.Logging.Format }},
	} {
		if fs.Changed(f.flag) {
			f.set()
			d.From(f.field, "--"+f.flag)
		}
	}
	if err := d.Check(); err != nil {
		return nil, err
	}
	return d, nil
}

// parseInterfaces reads name or name=kind. What is wrong with either is found
// by the check of the configuration.
func parseInterfaces(args []string) []config.Interface {
	list := make([]config.Interface, len(args))
	for i, arg := range args {
		list[i].Name, list[i].Kind, _ = strings.Cut(arg, "=")
	}
	return list
}

// absolute takes a folder on the command line as one stands in it.
func absolute(path string) string {
	if path == "" {
		return ""
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return path // there is no working directory: the check says so
	}
	return abs
}
