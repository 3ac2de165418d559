package main

import (
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
	"github.com/sluice-net/sluice/cmd/sluice/internal/control"
	"github.com/sluice-net/sluice/service"
)

// TestServices asks a daemon's socket, and prints what it answers.
func TestServices(t *testing.T) {
	dir := t.TempDir()
	answer := services{Mode: "front", Source: "here", Generation: 7, Services: []service.Description{
		{Namespace: "demo", Name: "web", Port: "http", Frontends: []string{"198.19.0.1:80/TCP"}, Action: "forward", Selection: "random", Affinity: "3h0m0s", Rule: "ready", Endpoints: []service.EndpointDescription{
			{Address: "198.18.0.1:8080", Node: "n1", Used: true}, {Address: "198.18.0.2:8080", Node: "n2", Why: "not ready"},
		}},
		{Namespace: "other", Name: "api", Frontends: []string{"198.19.0.2:443/TCP"}, Action: "reject", Selection: "consistent", Local: true, Rule: "local draining"},
	}}
	socket, err := control.Path(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := control.Serve(socket, map[string]control.Answer{"/services": func(url.Values) (any, error) { return answer, nil }}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	status, out, errOut := command("services", "--run-dir", dir)
	for _, want := range []string{"mode front, source here, generation 7\n", "demo/web:http", "1 of 2 (ready)", "n2 not used: not ready", "3h0m0s", "other/api", "Local"} {
		if status != 0 || !strings.Contains(out, want) {
			t.Errorf("%d, %q: no %q in\n%s", status, errOut, want, out)
		}
	}
	if _, out, _ = command("services", "demo/web", "--run-dir", dir, "-o", "json"); strings.Contains(out, "other") || !strings.Contains(out, `"why": "not ready"`) {
		t.Errorf("%s", out)
	}
	if status, _, errOut = command("services", "--run-dir", dir, "-o", "xml"); status == 0 || !strings.Contains(errOut, "table or json") {
		t.Errorf("%d, %q", status, errOut)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if status, _, errOut = command("services", "--run-dir", filepath.Join(dir, "none")); status == 0 || !strings.Contains(errOut, "no daemon answers") {
		t.Errorf("%d, %q", status, errOut)
	}
}

// TestServiceConfig: what the configuration's words mean to the source.
func TestServiceConfig(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(*config.Configuration)
		want func(service.Config) bool
	}{
		{"front", func(*config.Configuration) {}, func(s service.Config) bool { return s.Policed == service.Pass && s.ProxyName == "" && s.Pods == nil }},
		{"named", func(c *config.Configuration) { c.Mode, c.ServiceProxyName = "named", "mine" }, func(s service.Config) bool { return s.Policed == service.Refuse && s.ProxyName == "mine" }},
		{"alone", func(c *config.Configuration) { c.Mode, c.NetworkPolicy = "alone", "enforcedElsewhere" }, func(s service.Config) bool { return s.Policed == service.Forward && s.ProxyName == "" }},
		{"ranges", func(c *config.Configuration) {
			c.ServiceCIDR, c.ClusterCIDR = "198.19.0.0/16,2001:db8:2::/112", "198.18.0.0/16"
		}, func(s service.Config) bool { return len(s.ServiceCIDRs) == 2 && len(s.Pods) == 1 && !s.NodePods }},
		{"node", func(c *config.Configuration) { c.DetectLocalMode = "NodeCIDR" }, func(s service.Config) bool { return s.NodePods }},
	} {
		c := config.Default()
		tc.edit(c)
		if got, err := serviceConfig(c, "n1", service.Consistent); err != nil || !tc.want(got) || got.NodeName != "n1" {
			t.Errorf("%s: %+v, %v", tc.name, got, err)
		}
	}
}
