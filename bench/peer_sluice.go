package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/sluice-net/sluice/internal/netlab"
)

// sluice is the daemon as it is shipped, a process of its own.
type sluice struct {
	variant string
	about   string
	// command starts the program with arguments of `sluice`.
	command func(args ...string) *exec.Cmd
	// configure writes a variant's part of the configuration: at least the
	// interfaces.
	configure func(s *Site) string
	// unsuited says why the variant is not for a site; empty: it is.
	unsuited func(s *Site) string
}

// sluiceFlows is the capacity of its flow table: as many flows as nf_conntrack holds
// by default here; for more flows it must be told.
const sluiceFlows = 1 << 18

func (p *sluice) Name() string   { return "sluice-" + p.variant }
func (p *sluice) About() string  { return p.about }
func (*sluice) Translates() bool { return true }

// Addresses in the node's own namespace.
const (
	sluiceHealth  = "127.0.0.1:10356"
	sluiceMetrics = "127.0.0.1:10349"
)

// Where an instance's files are.
func sluiceManifests(s *Site) string { return filepath.Join(s.Dir, "manifests") }
func sluiceConfig(s *Site) string    { return filepath.Join(s.Dir, "sluice.yaml") }

// Prepare writes manifests and configuration.
func (p *sluice) Prepare(ctx context.Context, s *Site) error {
	if p.unsuited != nil {
		if why := p.unsuited(s); why != "" {
			return &Unsuited{why}
		}
	}
	source, err := p.source(ctx, s)
	if err != nil {
		return err
	}
	text := fmt.Sprintf(`apiVersion: sluice.dev/v1alpha1
kind: SluiceConfiguration
mode: front
hostnameOverride: node
%s
runDir: %s
stateDir: "" # a start is from nothing, and leaves nothing on the machine
flowTable:
  capacity: %d
heartbeat:
  staleAfter: 2s # nobody else serves these addresses
healthzBindAddress: %s
metricsBindAddress: %s
enableProfiling: true
logging: {level: warn, format: text}
%s`, source, filepath.Join(s.Dir, "run"), s.flowCapacity(), sluiceHealth, sluiceMetrics, p.configure(s))
	return os.WriteFile(sluiceConfig(s), []byte(text), 0o644)
}

// source is where Services come from: the API server that kube-proxy has too, if there is one, or
// else a folder.
func (p *sluice) source(ctx context.Context, s *Site) (string, error) {
	api, err := s.API(ctx)
	if _, missing := errors.AsType[*Unavailable](err); missing {
		return "source: manifests\nmanifests: " + sluiceManifests(s), writeWorld(s.World, sluiceManifests(s))
	}
	if err != nil {
		return "", err
	}
	kubeconfig, err := api.offer(s)
	return "source: apiServer\nclientConnection: {kubeconfig: " + kubeconfig + "}", err
}

func (p *sluice) Start(ctx context.Context, s *Site) (Instance, error) {
	i := &sluiceInstance{site: s, peer: p}
	err := s.Run(func() error {
		i.process = s.Node.Start(p.command("run", "--config", sluiceConfig(s)))
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := i.ready(ctx); err != nil {
		i.Stop()
		return nil, err
	}
	return i, nil
}

// interfaces lists the served devices as ports of a kind.
func interfaces(kind string) func(*Site) string {
	return func(s *Site) string {
		var b strings.Builder
		b.WriteString("interfaces:\n")
		for _, name := range s.ServedDevices() {
			fmt.Fprintf(&b, "- {name: %s, kind: %s}\n", name, kind)
		}
		return b.String()
	}
}

// sluicePeers are the variants of one build.
func sluicePeers(command func(args ...string) *exec.Cmd, suffix string) (peers []Peer) {
	for _, p := range []*sluice{
		{
			variant: "native", about: "Sluice, direct ports, native XDP", configure: interfaces("native"),
			unsuited: func(s *Site) string {
				if s.Topology == RemoteVXLAN {
					return "a tunnel has no native XDP"
				}
				return ""
			},
		},
		{
			variant: "generic", about: "Sluice, direct ports, generic XDP", configure: interfaces("generic"),
		},
		{variant: "steered", about: "Sluice, steered ports (tc)", configure: interfaces("steered")},
	} {
		p.variant += suffix
		p.command = command
		if suffix != "" {
			p.about += ", another build"
		}
		peers = append(peers, p)
	}
	return peers
}

// sluiceInstance is one at work.
type sluiceInstance struct {
	site    *Site
	peer    *sluice
	process *netlab.Process
}

func (i *sluiceInstance) Pids() []int { return []int{i.process.Pid()} }
func (i *sluiceInstance) Stop() error { return i.process.Stop() }

// SetBackends changes the API server's object, or rewrites the Service's file.
func (i *sluiceInstance) SetBackends(n int, backends []netip.Addr) error {
	if api, err := i.site.API(context.Background()); err == nil {
		return api.setBackends(i.site.World, n, backends)
	}
	return writeSlice(i.site.World, sluiceManifests(i.site), n, backends)
}

// ready waits for /readyz.
func (i *sluiceInstance) ready(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := i.get(ctx, sluiceHealth, "/readyz"); err == nil {
			return nil
		}
		select {
		case <-i.process.Done():
			return fmt.Errorf("%s ended: %s", i.peer.Name(), strings.TrimSpace(i.process.Output()))
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", i.peer.Name(), ErrNotProgrammed, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// Granted reads what the ports were granted.
func (i *sluiceInstance) Granted() []string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	text, err := i.get(ctx, sluiceMetrics, "/metrics")
	if err != nil {
		return []string{err.Error()}
	}
	granted := []string{"Services from " + i.from()}
	for line := range strings.SplitSeq(string(text), "\n") {
		if labels, ok := strings.CutPrefix(line, "sluice_interface_info{"); ok {
			labels, _, _ = strings.Cut(labels, "}")
			granted = append(granted, strings.ReplaceAll(labels, `"`, ""))
		}
	}
	return granted
}

func (i *sluiceInstance) from() string {
	if _, err := i.site.API(context.Background()); err == nil {
		return "the API server"
	}
	return "a folder of manifests"
}

// Alive says what it last wrote if it has ended.
func (i *sluiceInstance) Alive() error {
	select {
	case <-i.process.Done():
		return fmt.Errorf("%s ended: %s", i.peer.Name(), lastLine(i.process.Output()))
	default:
		return nil
	}
}

// CPUProfile asks the daemon for one.
func (i *sluiceInstance) CPUProfile(ctx context.Context, d time.Duration) ([]byte, error) {
	return i.get(ctx, sluiceMetrics, fmt.Sprintf("/debug/pprof/profile?seconds=%d", max(1, int(d.Round(time.Second).Seconds()))))
}

// get asks one of the daemon's servers, which listen in the node's namespace.
func (i *sluiceInstance) get(ctx context.Context, addr, path string) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return i.site.Node.Dial(ctx, "tcp", netip.MustParseAddrPort(addr))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, resp.Status)
	}
	return body, err
}

// writeWorld writes a folder of manifests: a file for all Services but the first and
// the last, whose endpoints change in some workloads and have files of their own.
func writeWorld(w *World, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var services, slices strings.Builder
	for n := 1; n <= w.Services; n++ {
		services.WriteString("---\n")
		services.Write(w.serviceManifest(n))
		services.WriteString("\n")
		if w.changes(n) {
			if err := writeSlice(w, dir, n, w.Backends); err != nil {
				return err
			}
			continue
		}
		slices.WriteString("---\n")
		slices.Write(w.sliceManifest(n, w.Backends))
		slices.WriteString("\n")
	}
	err := replaceFile(dir, "services.yaml", []byte(services.String()))
	if slices.Len() > 0 { // an empty file would be a mistake
		err = errors.Join(err, replaceFile(dir, "slices.yaml", []byte(slices.String())))
	}
	return err
}

func writeSlice(w *World, dir string, n int, backends []netip.Addr) error {
	return replaceFile(dir, "slice-"+serviceName(n)+".json", w.sliceManifest(n, backends))
}

// replaceFile puts a file in place at once.
func replaceFile(dir, name string, data []byte) error {
	hidden := filepath.Join(dir, "."+name) // which the daemon does not read
	if err := os.WriteFile(hidden, data, 0o644); err != nil {
		return err
	}
	return os.Rename(hidden, filepath.Join(dir, name))
}
