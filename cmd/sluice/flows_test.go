package main

import (
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/sluice-net/sluice/cmd/sluice/internal/control"
	"github.com/sluice-net/sluice/dataplane"
)

// TestFlows asks a socket as a daemon's, and prints what it answers.
func TestFlows(t *testing.T) {
	dir := t.TempDir()
	socket, err := control.Path(dir)
	if err != nil {
		t.Fatal(err)
	}
	var asked url.Values
	answer := []*dataplane.FlowInfo{
		{Service: "demo/web:http", Protocol: "TCP", Client: addrPort("198.18.1.2:40001"), Frontend: addrPort("198.19.0.1:80"), Backend: addrPort("198.18.2.1:8080"),
			Source: addrPort("192.0.2.1:40001"), State: "established", AgeSeconds: 4000.4, IdleSeconds: 0.0123, ForwardPackets: 7, ReplyPackets: 5},
		{Protocol: "UDP", Client: addrPort("[2001:db8:1::2]:53"), Frontend: addrPort("[2001:db8:2::1]:53"), Backend: addrPort("[2001:db8:1::3]:53"),
			Source: addrPort("[2001:db8:1::2]:53"), State: "unreplied", ForwardPackets: 1},
	}
	s, err := control.Serve(socket, map[string]control.Answer{"/flows": func(q url.Values) (any, error) {
		asked = q
		return control.Lines(func(yield func(any) bool) {
			for _, f := range answer {
				if !yield(f) {
					return
				}
			}
		}), nil
	}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	status, out, errOut := command("flows", "--run-dir", dir, "--client", "198.18.1.0/24", "--service", "demo/web")
	want := []string{
		"SERVICE PROTOCOL CLIENT FRONTEND BACKEND SEEN AS STATE AGE IDLE FORWARD REPLY",
		"- UDP [2001:db8:1::2]:53 [2001:db8:2::1]:53 [2001:db8:1::3]:53 - unreplied 0s 0s 1 0",
		"demo/web:http TCP 198.18.1.2:40001 198.19.0.1:80 198.18.2.1:8080 192.0.2.1:40001 established 1h6m40s 12ms 7 5",
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if status != 0 || len(lines) != len(want) {
		t.Fatalf("%d, %q, %s", status, errOut, out)
	}
	for i, line := range lines {
		if got := strings.Join(strings.Fields(line), " "); got != want[i] {
			t.Errorf("%q, want %q", got, want[i])
		}
	}
	if asked.Get("client") != "198.18.1.0/24" || asked.Get("service") != "demo/web" {
		t.Errorf("asked for %v", asked)
	}
	answer = nil
	if status, out, errOut := command("flows", "--run-dir", dir, "-o", "json"); status != 0 || out != "[]\n" {
		t.Errorf("%d, %q, %q", status, errOut, out)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"--client", "web"}, `--client: want an address or a range like 198.18.1.0/24, got "web"`},
		{[]string{"--backend", "198.18.1.0/40"}, `--backend: want an address or a range`},
		{[]string{"--state", "open"}, `--state: want one of opening, established, close_wait, closing, unreplied, stream, got "open"`},
		{[]string{"-o", "xml"}, "want table or json"},
		{nil, "no daemon answers"},
	} {
		if status, _, errOut := command(append([]string{"flows", "--run-dir", dir}, tc.args...)...); status == 0 || !strings.Contains(errOut, tc.want) {
			t.Errorf("%q: %d, %q, want %q", tc.args, status, errOut, tc.want)
		}
	}
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
