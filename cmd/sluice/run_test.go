package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
)

// parseRun gives the configuration of a command line of run.
func parseRun(t *testing.T, args ...string) *config.Configuration {
	t.Helper()
	var o overrides
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	o.bind(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	d, err := o.draft(fs)
	if err != nil {
		t.Fatal(err)
	}
	return d.Configuration
}

// TestFlags sets each flag alone and looks for its one effect.
func TestFlags(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	tested := map[string]bool{"config": true} // below
	for _, c := range []struct {
		flag, value string
		change      func(*config.Configuration)
	}{
		{"interface", "eth0", func(c *config.Configuration) { c.Interfaces = []config.Interface{{Name: "eth0", Kind: "auto"}} }},
		{"interface", "eth0=generic", func(c *config.Configuration) { c.Interfaces = []config.Interface{{Name: "eth0", Kind: "generic"}} }},
		{"manifests", "/srv/m", func(c *config.Configuration) { c.Manifests = "/srv/m" }},
		{"manifests", "m", func(c *config.Configuration) { c.Manifests = filepath.Join(here, "m") }},
		{"kubeconfig", "/srv/k", func(c *config.Configuration) { c.ClientConnection.Kubeconfig, c.Source = "/srv/k", "apiServer" }},
		{"apiserver", "https://192.0.2.9:6443", func(c *config.Configuration) { c.APIServer, c.Source = "https://192.0.2.9:6443", "apiServer" }},
		{"mode", "alone", func(c *config.Configuration) { c.Mode = "alone" }},
		{"on-exit", "keep", func(c *config.Configuration) { c.OnExit = "keep" }},
		{"pin-path", "/sys/fs/bpf/x", func(c *config.Configuration) { c.PinPath = "/sys/fs/bpf/x" }},
		{"metrics-address", "[::1]:1", func(c *config.Configuration) { c.MetricsBindAddress = "[::1]:1" }},
		{"healthz-address", "", func(c *config.Configuration) { c.HealthzBindAddress = "" }},
		{"enable-profiling", "true", func(c *config.Configuration) { c.EnableProfiling = true }},
		{"log-level", "debug", func(c *config.Configuration) { c.Logging.Level = "debug" }},
		{"log-format", "text", func(c *config.Configuration) { c.Logging.Format = "text" }},
	} {
		tested[c.flag] = true
		want := config.Default()
		c.change(want)
		if diff := cmp.Diff(want, parseRun(t, "--"+c.flag+"="+c.value)); diff != "" {
			t.Errorf("--%s=%s\n%s", c.flag, c.value, diff)
		}
	}
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	new(overrides).bind(fs)
	fs.VisitAll(func(f *pflag.Flag) {
		if !tested[f.Name] {
			t.Errorf("--%s is not tested", f.Name)
		}
	})
}

// TestFlagsOverFile: a flag overrides what it names and nothing else, even with
// the default's own value.
func TestFlagsOverFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.json")
	file := `{"apiVersion": "sluice.dev/v1alpha1", "kind": "SluiceConfiguration", "mode": "alone", "workers": 3,
		"interfaces": [{"name": "eth0"}, {"name": "eth1"}], "logging": {"level": "warn", "format": "text"}}`
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.Mode, want.Workers, want.Logging = "alone", 3, config.Logging{Level: "warn", Format: "text"}
	want.Interfaces = []config.Interface{{Name: "eth0", Kind: "auto"}, {Name: "eth1", Kind: "auto"}}
	if diff := cmp.Diff(want, parseRun(t, "--config", path)); diff != "" {
		t.Errorf("the file alone\n%s", diff)
	}
	want.Mode, want.Logging.Level = "front", "info"
	want.Interfaces = []config.Interface{{Name: "eth2", Kind: "native"}, {Name: "eth3", Kind: "auto"}}
	got := parseRun(t, "--mode", "front", "--log-level", "info", "--interface", "eth2=native", "--interface", "eth3", "--config", path)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("flags over the file\n%s", diff)
	}
}
