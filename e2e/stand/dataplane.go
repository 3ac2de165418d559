package stand

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/e2e/kube"
	"github.com/sluice-net/sluice/internal/netlab"
)

// The cluster as every suite has it.
const (
	Node1    = "node1" // the one whose dataplane is tested
	Node2    = "node2"
	Pods     = netlab.PodPrefix4 + "," + netlab.PodPrefix6
	ProxyTag = "sluice" // the value of the label service.kubernetes.io/service-proxy-name that is Sluice's in mode named
)

// UnlimitedICMP lets a node's kernel answer every packet that is refused. Otherwise a client that asks more than once a second
// takes most refusals for silence.
func UnlimitedICMP(n *netlab.Namespace) {
	n.Sysctl("net.ipv4.icmp_ratelimit", "0")
	n.Sysctl("net.ipv6.icmp.ratelimit", "0")
	// The bound for all of them together, both families.
	n.Sysctl("net.ipv4.icmp_msgs_per_sec", "100000")
	n.Sysctl("net.ipv4.icmp_msgs_burst", "10000")
}

// Modes are the dataplanes that can be tested: kube-proxy's own modes, and Sluice's.
var Modes = []string{"nftables", "iptables", "front", "alone", "named"}

// Place says where a dataplane is to run and what it needs.
type Place struct {
	Bin        string // the folder with sluice, and below it kube
	Dir        string // an empty folder, for configurations and logs
	PinDir     string // on a bpffs, for Sluice
	Node       *netlab.Namespace
	Interfaces []string // for Sluice: the devices of the node that it serves
	Kubeconfig string
}

// Dataplane is what serves the ClusterIPs of a node.
type Dataplane struct {
	Mode  string
	place Place

	proxy  *kube.Proxy
	sluice *netlab.Process
}

// StartDataplane starts a node's dataplane in one of Modes and waits until it serves.
func StartDataplane(ctx context.Context, mode string, p Place) (*Dataplane, error) {
	if !slices.Contains(Modes, mode) {
		return nil, fmt.Errorf("dataplane %q is none of %s", mode, strings.Join(Modes, ", "))
	}
	d := &Dataplane{Mode: mode, place: p}
	if kind := d.proxyMode(); kind != "" {
		var err error
		d.proxy, err = kube.StartProxy(ctx, kube.ProxyOptions{
			Bin: filepath.Join(p.Bin, "kube"), Dir: p.Dir, Namespace: p.Node,
			Kubeconfig: p.Kubeconfig, Node: Node1, Mode: kind, Pods: Pods,
		})
		if err != nil {
			return nil, err
		}
	}
	if d.IsSluice() {
		if err := d.configure(); err != nil {
			return nil, err
		}
		return d, d.startSluice(ctx)
	}
	return d, nil
}

// IsSluice says whether Sluice is what is tested, and not kube-proxy.
func (d *Dataplane) IsSluice() bool {
	return d.Mode == "front" || d.Mode == "alone" || d.Mode == "named"
}

// proxyMode is the mode of the kube-proxy that runs, or empty.
func (d *Dataplane) proxyMode() string {
	switch d.Mode {
	case "alone":
		return ""
	case "iptables":
		return "iptables"
	}
	return "nftables"
}

// Healthz is the URL of the health of what is tested, inside the node's namespace.
func (d *Dataplane) Healthz() string {
	if d.IsSluice() {
		return "http://127.0.0.1:10356/healthz"
	}
	return "http://" + kube.ProxyHealthz + "/healthz"
}

// Metrics is where what is tested serves its metrics.
func (d *Dataplane) Metrics() string {
	if d.IsSluice() {
		return "http://127.0.0.1:10349/metrics"
	}
	return "http://" + kube.ProxyMetrics + "/metrics"
}

func (d *Dataplane) configure() error {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: sluice.dev/v1alpha1
kind: SluiceConfiguration
mode: %s
serviceProxyName: %s
hostnameOverride: %s
clusterCIDR: %q
clientConnection: {qps: 1000, burst: 2000}
minSyncPeriod: 10ms
`, d.Mode, ProxyTag, Node1, Pods)
	fmt.Fprintf(&b, "interfaces:\n")
	for _, name := range d.place.Interfaces {
		fmt.Fprintf(&b, "- name: %s\n", name)
	}
	// Small rings: some fifty devices share the machine's memory.
	fmt.Fprintf(&b, "ringSize: 512\nonExit: keep\npinPath: %s\nrunDir: %s\nstateDir: %s\n", d.place.PinDir, d.place.Dir, d.place.Dir)
	return os.WriteFile(filepath.Join(d.place.Dir, "sluice.yaml"), []byte(b.String()), 0o600)
}

func (d *Dataplane) startSluice(ctx context.Context) error {
	logName := filepath.Join(d.place.Dir, "sluice.log")
	cmd := exec.Command(filepath.Join(d.place.Bin, "sluice"), "run",
		"--config", filepath.Join(d.place.Dir, "sluice.yaml"), "--kubeconfig", d.place.Kubeconfig)
	if f, err := os.OpenFile(logName, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
		defer f.Close() // the process has its own
		cmd.Stdout, cmd.Stderr = f, f
	}
	d.sluice = d.place.Node.Start(cmd)
	for {
		status, err := kube.Get(ctx, d.place.Node, "http://127.0.0.1:10356/readyz")
		if err == nil && status == http.StatusOK {
			return nil
		}
		select {
		case <-d.sluice.Done():
			b, _ := os.ReadFile(logName)
			return fmt.Errorf("sluice ended: %w\n%s", d.sluice.Wait(), b)
		case <-ctx.Done():
			b, _ := os.ReadFile(logName)
			return fmt.Errorf("sluice is not ready: status %d, %w\n%s", status, err, b)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Kill ends what is tested as a crash would.
func (d *Dataplane) Kill() {
	if d.IsSluice() {
		d.sluice.Signal(unix.SIGKILL)
		d.sluice.Wait()
		return
	}
	d.proxy.Kill()
}

// Restart starts it again after Kill and waits until it serves.
func (d *Dataplane) Restart(ctx context.Context) error {
	if d.IsSluice() {
		return d.startSluice(ctx)
	}
	return d.proxy.Start(ctx)
}

// Ended says why what ought to run does not, or nil.
func (d *Dataplane) Ended() error {
	if d.proxy != nil {
		select {
		case <-d.proxy.Done():
			return fmt.Errorf("kube-proxy has ended; its log is in %s", d.place.Dir)
		default:
		}
	}
	if d.sluice != nil {
		select {
		case <-d.sluice.Done():
			return fmt.Errorf("sluice has ended: %w; its log is in %s", d.sluice.Wait(), d.place.Dir)
		default:
		}
	}
	return nil
}

// Close ends all of it; it must be called before the lab is taken down.
func (d *Dataplane) Close() {
	if d.sluice != nil {
		d.sluice.Signal(unix.SIGKILL)
		d.sluice.Wait()
	}
	if d.proxy != nil {
		d.proxy.Kill()
	}
}
