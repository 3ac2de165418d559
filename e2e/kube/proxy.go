package kube

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/sluice-net/sluice/internal/netlab"
)

// ProxyOptions say how kube-proxy is to run.
type ProxyOptions struct {
	Bin, Dir   string            // as in Options; Dir is for its configuration and log
	Namespace  *netlab.Namespace // of the node that it serves
	Kubeconfig string
	Node       string // the node's name
	Mode       string // nftables or iptables
	Pods       string // the pods' ranges, separated by a comma: who is not in them is masqueraded
}

// Where kube-proxy answers in its namespace.
const (
	ProxyHealthz = "127.0.0.1:10256"
	ProxyMetrics = "127.0.0.1:10249"
)

// Proxy is a running kube-proxy.
type Proxy struct {
	o    ProxyOptions
	proc *netlab.Process
}

// StartProxy starts kube-proxy and waits until it is healthy: its first sync is done.
func StartProxy(ctx context.Context, o ProxyOptions) (*Proxy, error) {
	if _, err := os.Stat(filepath.Join(o.Bin, "kube-proxy")); err != nil {
		return nil, fmt.Errorf("%w (make kube builds it)", err)
	}
	// Conntrack's limits are the host's, and are left alone. A sync follows a change at once, as far as kube-proxy allows.
	config := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
hostnameOverride: %s
clusterCIDR: %q
detectLocalMode: ClusterCIDR
clientConnection: {kubeconfig: %q, qps: 1000, burst: 2000}
healthzBindAddress: %q
metricsBindAddress: %q
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
iptables: {minSyncPeriod: 10ms, syncPeriod: 30s}
nftables: {minSyncPeriod: 10ms, syncPeriod: 30s}
`, o.Mode, o.Node, o.Pods, o.Kubeconfig, ProxyHealthz, ProxyMetrics)
	if err := os.WriteFile(filepath.Join(o.Dir, "kube-proxy.yaml"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	p := &Proxy{o: o}
	return p, p.Start(ctx)
}

// Start starts it again after Kill.
func (p *Proxy) Start(ctx context.Context) error {
	p.proc = startLogged(p.o.Namespace, p.o.Bin, p.o.Dir, "kube-proxy", "--config="+filepath.Join(p.o.Dir, "kube-proxy.yaml"), "--v=2")
	for {
		status, err := Get(ctx, p.o.Namespace, "http://"+ProxyHealthz+"/healthz")
		if err == nil && status == http.StatusOK {
			return nil
		}
		select {
		case <-p.proc.Done():
			return fmt.Errorf("kube-proxy ended: %w\n%s", p.proc.Wait(), lastLines(filepath.Join(p.o.Dir, "kube-proxy.log")))
		case <-ctx.Done():
			return fmt.Errorf("kube-proxy is not healthy: status %d, %w\n%s", status, err, lastLines(filepath.Join(p.o.Dir, "kube-proxy.log")))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Kill ends it as a crash would. Its rules stay.
func (p *Proxy) Kill() { kill(p.proc) }

// Done is closed when it has ended.
func (p *Proxy) Done() <-chan struct{} { return p.proc.Done() }

// Get asks an HTTP server inside a namespace, by a literal address, and returns the status.
func Get(ctx context.Context, n *netlab.Namespace, url string) (int, error) {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: Dialer(n)}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	return response.StatusCode, nil
}

// Dialer is a DialContext for literal addresses, inside a namespace.
func Dialer(n *netlab.Namespace) func(ctx context.Context, network, addr string) (c net.Conn, err error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, err
		}
		return n.Dial(ctx, network, to)
	}
}

// Pid is the number of its process.
func (p *Proxy) Pid() int { return p.proc.Pid() }
