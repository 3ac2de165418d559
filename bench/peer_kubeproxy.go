//go:build linux

package bench

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

// kubeProxy is kube-proxy itself, against a real API server.
type kubeProxy struct {
	mode     string // iptables or nftables
	binaries string
}

func (p *kubeProxy) Name() string     { return p.mode }
func (p *kubeProxy) About() string    { return "kube-proxy in mode " + p.mode }
func (p *kubeProxy) Translates() bool { return true }

// tool is the program that kube-proxy needs for a mode.
func (p *kubeProxy) tool() string {
	if p.mode == "nftables" {
		return "nft"
	}
	return "iptables-restore"
}

func (p *kubeProxy) binary() string { return filepath.Join(p.binaries, "kube-proxy") }

func (p *kubeProxy) Prepare(ctx context.Context, s *Site) error {
	if err := binariesIn(p.binaries); err != nil {
		return err
	}
	if _, err := exec.LookPath(p.tool()); err != nil {
		return &Unavailable{p.tool() + " is not installed, which kube-proxy runs"}
	}
	api, err := s.API(ctx)
	if err != nil {
		return err
	}
	_, err = api.offer(s)
	return err
}

func (p *kubeProxy) Start(ctx context.Context, s *Site) (Instance, error) {
	api, err := s.API(ctx)
	if err != nil {
		return nil, err
	}
	i := &kubeProxyInstance{site: s, api: api, peer: p}
	err = s.Run(func() error {
		i.process = s.Node.Command(p.binary(), "--kubeconfig", filepath.Join(s.Dir, "kubeconfig"), "--proxy-mode", p.mode,
			"--hostname-override", "node", "--cluster-cidr", netlab.PodPrefix4,
			// The node's limits are the machine's: they are left alone.
			"--conntrack-max-per-core", "0", "--conntrack-min", "0")
		return nil
	})
	if err != nil {
		return nil, err
	}
	return i, nil
}

// kubeProxyInstance is one at work.
type kubeProxyInstance struct {
	site    *Site
	api     *API
	peer    *kubeProxy
	process *netlab.Process
}

// Granted asks for versions: not in Start, whose time is measured.
func (i *kubeProxyInstance) Granted() (granted []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, binary := range []string{i.peer.binary(), i.peer.tool()} {
		if version, err := exec.CommandContext(ctx, binary, "--version").Output(); err == nil {
			granted = append(granted, strings.TrimSpace(string(version)))
		}
	}
	return granted
}

func (i *kubeProxyInstance) Pids() []int { return []int{i.process.Pid()} }

// Stop ends the process. Its rules go with the site.
func (i *kubeProxyInstance) Stop() error {
	i.Pause(false)
	return i.process.Stop()
}

func (i *kubeProxyInstance) SetBackends(n int, backends []netip.Addr) error {
	return i.api.setBackends(i.site.World, n, backends)
}

// Pause keeps it from following changes that are meant for another peer: they share
// an API server.
func (i *kubeProxyInstance) Pause(on bool) error {
	if on {
		return i.process.Signal(unix.SIGSTOP)
	}
	return i.process.Signal(unix.SIGCONT)
}

// Alive says what it last wrote if it has ended.
func (i *kubeProxyInstance) Alive() error {
	select {
	case <-i.process.Done():
		return fmt.Errorf("kube-proxy ended: %s", lastLine(i.process.Output()))
	default:
		return nil
	}
}
