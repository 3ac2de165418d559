//go:build linux

package bench

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sluice-net/sluice/internal/netlab"
)

// API is a Kubernetes API server of the suite's own, in a namespace without any wire,
// for the peers that read Services from one. It holds one world. The binaries are
// those that the module e2e builds.
type API struct {
	stand  *netlab.Stand
	ns     *netlab.Namespace
	client http.Client
	dir    string
	world  World // that it holds
}

const (
	apiServer = "127.0.0.1:6443"
	apiToken  = "bench"
	etcdURL   = "http://127.0.0.1:2379"
	peerURL   = "http://127.0.0.1:2380"
)

// Binaries of a control plane, in one folder.
func binariesIn(dir string) error {
	for _, name := range []string{"etcd", "kube-apiserver", "kube-proxy"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return &Unavailable{fmt.Sprintf("no %s in %q (--kubernetes names the folder of etcd, kube-apiserver and kube-proxy; see docs/bench.md)", name, dir)}
		}
	}
	return nil
}

// newAPI starts etcd and the API server, and gives it a node and a world.
func newAPI(ctx context.Context, binaries string, w *World, log *slog.Logger) (_ *API, err error) {
	if err := binariesIn(binaries); err != nil {
		return nil, err
	}
	a := &API{stand: netlab.NewStand("api", func(line string) { log.Warn(line) })}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	if a.dir, err = os.MkdirTemp("", "sluice-bench-api-"); err != nil {
		return nil, err
	}
	a.stand.Cleanup(func() { os.RemoveAll(a.dir) })
	if err := a.secrets(); err != nil {
		return nil, err
	}
	err = a.stand.Run(func() error {
		netlab.RequireRoot(a.stand)
		a.ns = netlab.New(a.stand).Namespace("api")
		bin := func(name string) string { return filepath.Join(binaries, name) }
		a.ns.Command(bin("etcd"), "--data-dir", filepath.Join(a.dir, "etcd"), "--log-level", "error", "--unsafe-no-fsync",
			"--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL, "--listen-peer-urls", peerURL,
			"--initial-advertise-peer-urls", peerURL, "--initial-cluster", "default="+peerURL)
		api := a.ns.Command(bin("kube-apiserver"), "--etcd-servers", etcdURL, "--secure-port", "6443", "--bind-address", "127.0.0.1",
			"--advertise-address", nodeAddr(1), "--cert-dir", filepath.Join(a.dir, "certs"),
			"--service-cluster-ip-range", netlab.ClusterIPPrefix4,
			"--service-account-issuer", "https://bench", "--service-account-signing-key-file", a.keyFile(), "--service-account-key-file", a.keyFile(),
			"--token-auth-file", a.tokenFile(), "--authorization-mode", "AlwaysAllow", "--endpoint-reconciler-type", "none",
			"--disable-admission-plugins", "ServiceAccount", "--max-requests-inflight", "0", "--max-mutating-requests-inflight", "0", "--enable-priority-and-fairness=false")
		a.client.Transport = &http.Transport{
			TLSClientConfig:     &tls.Config{InsecureSkipVerify: true}, // made by the server itself a moment ago
			MaxIdleConnsPerHost: writers,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return a.ns.Dial(ctx, "tcp", netip.MustParseAddrPort(apiServer))
			},
		}
		for {
			err := a.call(ctx, http.MethodGet, "/readyz", nil)
			if err == nil {
				return nil
			}
			select {
			case <-api.Done():
				return fmt.Errorf("the API server ended: %s", lastLine(api.Output()))
			case <-ctx.Done():
				return fmt.Errorf("the API server is not ready: %w", err)
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		a.call(ctx, http.MethodPost, "/api/v1/namespaces", fmt.Appendf(nil, `{"metadata":{"name":%q}}`, worldNamespace)),
		a.call(ctx, http.MethodPost, "/api/v1/nodes", fmt.Appendf(nil, `{"metadata":{"name":"node"},"status":{"addresses":[{"type":"InternalIP","address":%q}]}}`, nodeAddr(1))),
		a.grow(ctx, w))
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (a *API) keyFile() string   { return filepath.Join(a.dir, "service-account.key") }
func (a *API) tokenFile() string { return filepath.Join(a.dir, "tokens.csv") }

func (a *API) secrets() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(a.keyFile(), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600),
		os.WriteFile(a.tokenFile(), []byte(apiToken+",bench,bench,system:masters\n"), 0o600))
}

// writers is how many requests are under way at once.
const writers = 16

// grow creates those Services of a world that are not there yet.
func (a *API) grow(ctx context.Context, w *World) (err error) {
	numbers := make(chan int)
	var (
		work sync.WaitGroup
		once sync.Once
	)
	for range writers {
		work.Go(func() {
			for n := range numbers {
				e := errors.Join(
					a.call(ctx, http.MethodPost, "/api/v1/namespaces/"+worldNamespace+"/services", w.serviceManifest(n)),
					a.call(ctx, http.MethodPost, slicesPath, w.sliceManifest(n, w.Backends)))
				if e != nil {
					once.Do(func() { err = e })
				}
			}
		})
	}
	for n := a.world.Services + 1; n <= w.Services; n++ {
		numbers <- n
	}
	close(numbers)
	work.Wait()
	if err == nil {
		a.world = *w
	}
	return err
}

const slicesPath = "/apis/discovery.k8s.io/v1/namespaces/" + worldNamespace + "/endpointslices"

// setBackends replaces the EndpointSlice of Service n.
func (a *API) setBackends(w *World, n int, backends []netip.Addr) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return a.call(ctx, http.MethodPut, slicesPath+"/"+serviceName(n), w.sliceManifest(n, backends))
}

func (a *API) call(ctx context.Context, method, path string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+apiServer+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+apiToken)
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(answer))
	}
	return err
}

// offer makes the API server reachable at the same address inside a site's node, and
// writes a kubeconfig for it.
func (a *API) offer(s *Site) (kubeconfig string, err error) {
	l, err := s.Node.Listen(netip.MustParseAddrPort(apiServer))
	if err != nil {
		return "", err
	}
	s.stand.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go a.relay(c)
		}
	}()
	kubeconfig = filepath.Join(s.Dir, "kubeconfig")
	return kubeconfig, os.WriteFile(kubeconfig, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: bench, cluster: {server: "https://%s", insecure-skip-tls-verify: true}}]
users: [{name: bench, user: {token: %s}}]
contexts: [{name: bench, context: {cluster: bench, user: bench}}]
current-context: bench
`, apiServer, apiToken), 0o600)
}

// relay carries one connection across the namespaces.
func (a *API) relay(c net.Conn) {
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	to, err := a.ns.Dial(ctx, "tcp", netip.MustParseAddrPort(apiServer))
	if err != nil {
		return
	}
	defer to.Close()
	go func() {
		io.Copy(to, c)
		to.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(c, to)
}

// Close ends the server.
func (a *API) Close() error { return a.stand.Clear() }

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
