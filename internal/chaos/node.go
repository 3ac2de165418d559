package main

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
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

const (
	frontendPort = 80
	backendPort  = 8080
)

// node is the node with the daemon on it, and the clients.
type node struct {
	*netlab.Cluster
	s      *netlab.Stand
	r      *result
	config string // file
	bpffs  string
	vip    netip.AddrPort
	daemon *netlab.Process
	conns  *talkers
	pulse  *pulse
}

// newNode builds the cluster and all that the daemon needs.
func newNode(s *netlab.Stand, r *result) *node {
	n := &node{s: s, r: r, bpffs: netlab.BPFFS(s)}
	n.Cluster = netlab.New(s).Cluster(netlab.ClusterOptions{Clients: 2, Backends: 3})
	n.vip = netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 1), frontendPort)
	dir, err := os.MkdirTemp("", "sluice-chaos-")
	if err != nil {
		s.Fatalf("%v", err)
	}
	s.Cleanup(func() { os.RemoveAll(dir) })
	var backends []netip.AddrPort
	endpoints := ""
	for _, p := range append(append([]*netlab.Pod{}, n.Backends...), n.RemoteBackend) {
		p.EchoOn(backendPort)
		backends = append(backends, p.AddrPort(netlab.IPv4, backendPort))
		endpoints += fmt.Sprintf("- addresses: [%q]\n", p.IP4)
	}
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		n.Node.DNAT(n.vip, proto, backends, netlab.PickRandom)
	}
	manifests := filepath.Join(dir, "manifests")
	n.config = filepath.Join(dir, "config.yaml")
	err = errors.Join(os.Mkdir(manifests, 0o755),
		os.WriteFile(filepath.Join(manifests, "echo.yaml"), fmt.Appendf(nil, `apiVersion: v1
kind: Service
metadata: {name: echo, namespace: default}
spec:
  clusterIP: %[1]s
  clusterIPs: [%[1]s]
  ports:
  - {name: tcp, protocol: TCP, port: %[2]d}
  - {name: udp, protocol: UDP, port: %[2]d}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: echo-1, namespace: default, labels: {kubernetes.io/service-name: echo}}
addressType: IPv4
ports:
- {name: tcp, protocol: TCP, port: %[3]d}
- {name: udp, protocol: UDP, port: %[3]d}
endpoints:
%[4]s`, n.vip.Addr(), frontendPort, backendPort, endpoints), 0o644),
		os.WriteFile(n.config, fmt.Appendf(nil, `apiVersion: sluice.dev/v1alpha1
kind: SluiceConfiguration
interfaces:
- {role: uplinks, kind: native}
- {name: backend0, kind: native}
- {role: pods}
manifests: %s
flowTable: {capacity: 16384}
onExit: keep
pinPath: %s/sluice
runDir: %s
logging: {level: warn, format: text}
`, manifests, n.bpffs, filepath.Join(dir, "run")), 0o644))
	if err != nil {
		s.Fatalf("%v", err)
	}
	return n
}

// exec starts the daemon's binary on the node.
func (n *node) exec(args ...string) *netlab.Process {
	return n.Node.Start(exec.Command(n.r.sluice, args...))
}

// start starts the daemon, and gives the time when it did.
func (n *node) start() time.Time {
	at := time.Now()
	n.daemon = n.exec("run", "--config", n.config)
	return at
}

// ready waits until the daemon says that it is.
func (n *node) ready() error {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if status, _ := n.get("127.0.0.1:10356", "/readyz"); status == http.StatusOK {
			return nil
		}
		select {
		case <-n.daemon.Done():
			return fmt.Errorf("the daemon ended: %w\n%s", n.daemon.Wait(), n.daemon.Output())
		default:
		}
	}
	return fmt.Errorf("the daemon is not ready after 20 s\n%s", n.daemon.Output())
}

// get asks one of the daemon's listeners.
func (n *node) get(address, path string) (status int, body string) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return n.Node.Dial(ctx, "tcp", netip.MustParseAddrPort(addr))
		},
	}}
	r, err := client.Get("http://" + address + path)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	return r.StatusCode, string(b)
}

// resources is what the daemon's process has.
func (n *node) resources() (map[string]int, error) {
	all := map[string]int{}
	dir := fmt.Sprintf("/proc/%d/", n.daemon.Pid())
	fds, err := os.ReadDir(dir + "fd")
	if err != nil {
		return nil, err
	}
	for _, fd := range fds {
		if to, err := os.Readlink(dir + "fd/" + fd.Name()); err == nil {
			what, _, _ := strings.Cut(to, ":[")
			all[what]++
		}
	}
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); f[0] == "VmLck:" || f[0] == "VmPin:" {
			all[f[0]], _ = strconv.Atoi(f[1])
		}
	}
	_, metrics := n.get("127.0.0.1:10349", "/metrics")
	for line := range strings.Lines(metrics) {
		if v, ok := strings.CutPrefix(line, "go_goroutines "); ok {
			all["goroutines"], _ = strconv.Atoi(strings.TrimSpace(v))
		}
		for _, of := range []string{`sluice_frames_lost `, `sluice_umem_lost_frames `} {
			if v, ok := strings.CutPrefix(line, of); ok {
				all["lost frames"], _ = strconv.Atoi(strings.TrimSpace(v))
			}
		}
	}
	return all, nil
}
