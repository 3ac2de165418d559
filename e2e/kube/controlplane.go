package kube

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/sluice-net/sluice/internal/netlab"
)

// Options say what control plane to start, and where.
type Options struct {
	Bin       string            // the folder that `make kube` filled
	Dir       string            // an empty folder for keys, tokens and data
	Namespace *netlab.Namespace // that it lives in
	Advertise netip.Addr        // the API server's address there, which the Service default/kubernetes leads to
	Services4 string            // the Services' ranges
	Services6 string
	Bare      bool // without kube-controller-manager: who wants EndpointSlices writes them
}

// Ports of the control plane's namespace that are taken.
const (
	APIPort  = 6443
	etcdPort = 2379
	peerPort = 2380
)

// ControlPlane is an etcd, a kube-apiserver and a kube-controller-manager.
type ControlPlane struct {
	o     Options
	ca    []byte
	token string

	etcd, apiserver, controllers *netlab.Process
}

// controllersToRun are those whose work Services depend on.
const controllersToRun = "endpointslice-controller,endpointslice-mirroring-controller,endpoints-controller,garbage-collector-controller,service-cidr-controller"

// Start starts a control plane and waits until it is ready.
func Start(ctx context.Context, o Options) (c *ControlPlane, err error) {
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager"} {
		if _, err := os.Stat(filepath.Join(o.Bin, name)); err != nil {
			return nil, fmt.Errorf("%w (make kube builds it)", err)
		}
	}
	c = &ControlPlane{o: o}
	defer func() {
		if err != nil {
			c.Close()
			c = nil
		}
	}()
	addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"), o.Advertise}
	for _, r := range []string{o.Services4, o.Services6} {
		p, err := netip.ParsePrefix(r)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, p.Masked().Addr().Next())
	}
	if c.token, err = secrets(o.Dir, addrs); err != nil {
		return nil, err
	}
	if c.ca, err = os.ReadFile(filepath.Join(o.Dir, caFile)); err != nil {
		return nil, err
	}
	kubeconfig, err := c.Kubeconfig("controllers", "https://127.0.0.1:6443")
	if err != nil {
		return nil, err
	}

	client, peer := loopback(etcdPort), loopback(peerPort)
	c.etcd = c.start("etcd",
		"--data-dir="+filepath.Join(o.Dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer)
	if err := c.StartAPIServer(ctx); err != nil {
		return nil, err
	}
	if o.Bare {
		return c, nil
	}
	c.controllers = c.start("kube-controller-manager",
		"--kubeconfig="+kubeconfig, "--leader-elect=false", "--controllers="+controllersToRun,
		"--kube-api-qps=1000", "--kube-api-burst=2000", "--concurrent-service-endpoint-syncs=10",
		"--secure-port=0", "--node-monitor-period=1h")
	return c, nil
}

func loopback(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }

// start starts one of the binaries; what it writes goes into a file of its name.
func (c *ControlPlane) start(name string, args ...string) *netlab.Process {
	return startLogged(c.o.Namespace, c.o.Bin, c.o.Dir, name, args...)
}

func startLogged(n *netlab.Namespace, bin, dir, name string, args ...string) *netlab.Process {
	cmd := exec.Command(filepath.Join(bin, name), args...)
	if f, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
		defer f.Close() // the process has its own
		cmd.Stdout, cmd.Stderr = f, f
	}
	return n.Start(cmd)
}

// StartAPIServer starts the API server, again after StopAPIServer, and waits until it is ready.
func (c *ControlPlane) StartAPIServer(ctx context.Context) error {
	in := func(name string) string { return filepath.Join(c.o.Dir, name) }
	c.apiserver = c.start("kube-apiserver",
		"--etcd-servers="+loopback(etcdPort), "--bind-address=::", fmt.Sprintf("--secure-port=%d", APIPort),
		"--advertise-address="+c.o.Advertise.String(),
		"--service-cluster-ip-range="+c.o.Services4+","+c.o.Services6,
		"--tls-cert-file="+in(certFile), "--tls-private-key-file="+in(keyFile), "--token-auth-file="+in(tokensFile),
		"--anonymous-auth=false", "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+in(signFile), "--service-account-signing-key-file="+in(signFile),
		"--disable-admission-plugins=ServiceAccount", "--allow-privileged",
		"--profiling=false", "--event-ttl=5m")
	return c.waitReady(ctx)
}

// StopAPIServer ends the API server as a crash would.
func (c *ControlPlane) StopAPIServer() { kill(c.apiserver) }

func kill(p *netlab.Process) {
	p.Signal(unix.SIGKILL)
	p.Wait()
}

// Close ends all of it; it must be called before the lab is taken down. The data is not worth a farewell.
func (c *ControlPlane) Close() {
	for _, p := range []*netlab.Process{c.controllers, c.apiserver, c.etcd} {
		if p != nil {
			kill(p)
		}
	}
}

func (c *ControlPlane) waitReady(ctx context.Context) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	for {
		err := client.CoreV1().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		if err == nil {
			return nil
		}
		select {
		case <-c.apiserver.Done():
			return fmt.Errorf("kube-apiserver ended: %w\n%s", c.apiserver.Wait(), lastLines(filepath.Join(c.o.Dir, "kube-apiserver.log")))
		case <-ctx.Done():
			return fmt.Errorf("kube-apiserver is not ready: %w\n%s", err, lastLines(filepath.Join(c.o.Dir, "kube-apiserver.log")))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// lastLines returns the end of a file.
func lastLines(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4096):])
}

// Config leads from this process to the API server, whatever namespace the caller is in.
func (c *ControlPlane) Config() *rest.Config {
	return &rest.Config{
		Host:            fmt.Sprintf("https://127.0.0.1:%d", APIPort),
		BearerToken:     c.token,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.ca},
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return c.o.Namespace.Dial(ctx, network, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), APIPort))
		},
		QPS:            -1,
		Timeout:        30 * time.Second,
		WarningHandler: rest.NoWarnings{}, // what is deprecated is tested all the same
	}
}

// Client returns a client of the API server.
func (c *ControlPlane) Client() (kubernetes.Interface, error) {
	return kubernetes.NewForConfig(c.Config())
}

// Kubeconfig writes a kubeconfig for a server's URL, as it is seen from where it will be used, and returns its path. It may
// do everything.
func (c *ControlPlane) Kubeconfig(name, server string) (string, error) {
	path := filepath.Join(c.o.Dir, name+".kubeconfig")
	return path, os.WriteFile(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster: {server: %q, certificate-authority-data: %s}
users:
- name: lab
  user: {token: %s}
contexts:
- name: lab
  context: {cluster: lab, user: lab}
current-context: lab
`, server, base64.StdEncoding.EncodeToString(c.ca), c.token), 0o600)
}

// Forward makes 127.0.0.1:6443 of another namespace a door to the API server. It closes with the lab.
func (c *ControlPlane) Forward(from *netlab.Namespace, closing func(func())) error {
	l, err := from.Listen(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), APIPort))
	if err != nil {
		return err
	}
	closing(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			go func() {
				defer in.Close()
				out, err := c.Config().Dial(context.Background(), "tcp", "")
				if err != nil {
					return
				}
				defer out.Close()
				go func() {
					io.Copy(out, in)
					out.Close()
				}()
				io.Copy(in, out)
			}()
		}
	}()
	return nil
}
