package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-net/sluice/internal/netlab"
)

// What happens to traffic when the daemon's process dies or hangs: with a real
// process, ordinary sockets, and a kernel DNAT rule behind it in kube-proxy's
// place.

const (
	crashPort  = 80
	crashRules = 8080
)

// crashLab is a cluster's node with the daemon as a process on it.
type crashLab struct {
	t *testing.T
	*netlab.Cluster
	config  string // file
	bpffs   string
	process *netlab.Process
	vip     netip.AddrPort
	extra   []string        // of the command line
	as      func(*exec.Cmd) // who runs it; nil: who runs the test
}

// newCrashLab builds the cluster, serves echo on every backend, writes manifests and
// configuration, and puts the kernel's rule in place. Nothing runs yet.
func newCrashLab(t *testing.T, o netlab.ClusterOptions) *crashLab {
	t.Helper()
	netlab.RequireRoot(t)
	n := &crashLab{t: t, bpffs: netlab.BPFFS(t), Cluster: netlab.New(t).Cluster(o)}
	n.vip = netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 1), crashPort)
	var backends []netip.AddrPort
	var endpoints string
	for _, p := range append(append([]*netlab.Pod{}, n.Backends...), n.RemoteBackend) {
		p.EchoOn(crashRules)
		backends = append(backends, p.AddrPort(netlab.IPv4, crashRules))
		endpoints += fmt.Sprintf("- addresses: [%q]\n", p.IP4)
	}
	n.Node.DNAT(n.vip, 6, backends, netlab.PickRandom)
	n.Node.DNAT(n.vip, 17, backends, netlab.PickRandom)
	dir := t.TempDir()
	manifests := filepath.Join(dir, "manifests")
	if err := os.Mkdir(manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	n.write(filepath.Join(manifests, "echo.yaml"), fmt.Sprintf(`apiVersion: v1
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
%[4]s`, n.vip.Addr(), crashPort, crashRules, endpoints))
	interfaces := "- name: " + netlab.UplinkDevice + "\n"
	for _, p := range append(append([]*netlab.Pod{}, n.Clients...), n.Backends...) {
		interfaces += "- name: " + p.HostDevice + "\n"
	}
	n.config = filepath.Join(dir, "config.yaml")
	n.write(n.config, fmt.Sprintf(`apiVersion: sluice.dev/v1alpha1
kind: SluiceConfiguration
interfaces:
%smanifests: %s
ringSize: 512
flowTable: {capacity: 4096}
workers: 1
onExit: keep
pinPath: %s/sluice
runDir: %s
logging: {level: warn, format: text}
`, interfaces, manifests, n.bpffs, filepath.Join(dir, "run")))
	return n
}

func (n *crashLab) write(file, content string) {
	n.t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// command is a command line of the daemon's binary, which is the test's own.
func (n *crashLab) command(args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	c := exec.Command(self, args...)
	c.Env = append(os.Environ(), "SLUICE_TEST_EXECUTE=1")
	if n.as != nil {
		n.as(c)
	}
	return c
}

// start runs the daemon and waits until it is ready.
func (n *crashLab) start() {
	n.t.Helper()
	n.process = n.Node.Start(n.command(append([]string{"run", "--config", n.config}, n.extra...)...))
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if status, _ := n.get("127.0.0.1:10356", "/readyz"); status == http.StatusOK {
			return
		}
		select {
		case <-n.process.Done():
			n.t.Fatalf("the daemon ended: %v\n%s", n.process.Wait(), n.process.Output())
		default:
		}
		if time.Now().After(deadline) {
			status, body := n.get("127.0.0.1:10356", "/readyz")
			n.t.Fatalf("the daemon is not ready: %d %s\n%s", status, body, n.process.Output())
		}
	}
}

// get asks one of the daemon's listeners.
func (n *crashLab) get(address, path string) (status int, body string) {
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

var translatedFrames = regexp.MustCompile(`(?m)^sluice_frames_total\{[^}]*verdict="translated"[^}]*\} (\S+)$`)

// translated is the number of frames that the daemon has translated.
func (n *crashLab) translated() (sum float64) {
	_, body := n.get("127.0.0.1:10349", "/metrics")
	for _, m := range translatedFrames.FindAllStringSubmatch(body, -1) {
		v, _ := strconv.ParseFloat(m[1], 64)
		sum += v
	}
	return sum
}

// cleanup removes what is kept and checks that nothing is left.
func (n *crashLab) cleanup(before netlab.State) {
	n.t.Helper()
	out, err := runIn(n.Node, n.command("cleanup", "--config", n.config))
	if err != nil {
		n.t.Errorf("cleanup: %v\n%s", err, out)
	}
	if diff := netlab.Diff(before, n.Node.State()); diff != "" {
		n.t.Errorf("changed on the node after cleanup:\n%s", diff)
	}
	if _, err := os.Stat(filepath.Join(n.bpffs, "sluice")); !os.IsNotExist(err) {
		n.t.Errorf("pins after cleanup: %v", err)
	}
}

// runIn runs a command in a namespace to its end.
func runIn(ns *netlab.Namespace, c *exec.Cmd) (out string, err error) {
	p := ns.Start(c)
	err = p.Wait()
	return p.Output(), err
}

// talker is a connection that says something every few milliseconds and wants the
// answer, however long it takes.
type talker struct {
	net.Conn
	rounds int
	err    error
}

func (k *talker) talk(stop <-chan struct{}) {
	out, in := make([]byte, 64), make([]byte, 64)
	for {
		select {
		case <-stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
		k.rounds++
		for i := range out {
			out[i] = byte(k.rounds + i)
		}
		k.SetDeadline(time.Now().Add(20 * time.Second))
		if _, k.err = k.Write(out); k.err != nil {
			return
		}
		if _, k.err = io.ReadFull(k, in); k.err != nil {
			return
		}
		if !bytes.Equal(in, out) {
			k.err = fmt.Errorf("round %d: got %x, want %x", k.rounds, in[:4], out[:4])
			return
		}
	}
}

// talkers opens connections and lets them talk; end stops them and reports what
// went wrong.
func (n *crashLab) talkers(count int) (all []*talker, end func()) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range count {
		c, err := n.Clients[0].Dial(ctx, "tcp", n.vip)
		if err != nil {
			n.t.Fatalf("connection %d: %v", i, err)
		}
		k := &talker{Conn: c}
		all = append(all, k)
		wg.Go(func() { k.talk(stop) })
	}
	return all, func() {
		close(stop)
		wg.Wait()
		for i, k := range all {
			k.Close()
			if k.err != nil {
				n.t.Errorf("connection %d in round %d: %v", i, k.rounds, k.err)
			}
			if k.rounds < 5 {
				n.t.Errorf("connection %d: only %d rounds", i, k.rounds)
			}
		}
	}
}

// newConnection is a TCP and a UDP exchange of a new flow, which must need no
// retransmission: the first SYN's is sent after a second.
func (n *crashLab) newConnection() error {
	for _, network := range []string{"tcp", "udp"} {
		ctx, cancel := context.WithTimeout(context.Background(), 900*time.Millisecond)
		_, err := n.Clients[0].Exchange(ctx, network, n.vip, 500)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// TestKilledDaemon: kill -9 in the middle of traffic. The kernel has new flows at
// once; known TCP connections wait, and go on after the restart.
func TestKilledDaemon(t *testing.T) {
	n := newCrashLab(t, netlab.ClusterOptions{})
	before := n.Node.State()
	n.start()
	_, end := n.talkers(20)
	time.Sleep(200 * time.Millisecond)
	for round := range 3 {
		count := n.translated()
		if count == 0 {
			t.Fatalf("round %d: nothing was translated before the kill", round)
		}
		if err := n.process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-n.process.Done()
		for i := range 5 {
			if err := n.newConnection(); err != nil {
				t.Errorf("round %d: new connection %d while the daemon is dead: %v", round, i, err)
			}
		}
		n.start()
		if err := n.newConnection(); err != nil {
			t.Errorf("round %d: new connection after the restart: %v", round, err)
		}
		time.Sleep(500 * time.Millisecond)
	}
	end()
	if n.translated() == 0 {
		t.Error("nothing was translated after the last restart")
	}
	if err := n.process.Stop(); err != nil {
		t.Errorf("stopping: %v\n%s", err, n.process.Output())
	}
	n.cleanup(before)
}

// TestHungDaemon: SIGSTOP in the middle of traffic. Half a second later new flows
// reach the kernel; known connections wait; after SIGCONT all is as before.
func TestHungDaemon(t *testing.T) {
	n := newCrashLab(t, netlab.ClusterOptions{})
	before := n.Node.State()
	n.start()
	_, end := n.talkers(10)
	time.Sleep(200 * time.Millisecond)
	for round := range 2 {
		if err := n.process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		for i := range 5 {
			if err := n.newConnection(); err != nil {
				t.Errorf("round %d: new connection %d while the daemon hangs: %v", round, i, err)
			}
		}
		if err := n.process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		count := n.translated()
		if err := n.newConnection(); err != nil {
			t.Errorf("round %d: new connection after the daemon went on: %v", round, err)
		}
		time.Sleep(100 * time.Millisecond)
		if again := n.translated(); again <= count {
			t.Errorf("round %d: %v frames translated after the daemon went on, %v before", round, again, count)
		}
	}
	end()
	if err := n.process.Stop(); err != nil {
		t.Errorf("stopping: %v\n%s", err, n.process.Output())
	}
	n.cleanup(before)
}

// TestStoppedDaemonLeavesNothing: SIGTERM with onExit remove, and kill -9 without
// pins followed by cleanup.
func TestStoppedDaemonLeavesNothing(t *testing.T) {
	n := newCrashLab(t, netlab.ClusterOptions{})
	n.extra = []string{"--on-exit=remove"}
	before := n.Node.State()
	n.start()
	if err := n.newConnection(); err != nil {
		t.Error(err)
	}
	if err := n.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := n.process.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, n.process.Output())
	}
	if diff := netlab.Diff(before, n.Node.State()); diff != "" {
		t.Errorf("changed on the node after SIGTERM:\n%s", diff)
	}
	if err := n.newConnection(); err != nil {
		t.Errorf("the kernel's rule alone: %v", err)
	}
	n.start()
	if err := n.newConnection(); err != nil {
		t.Error(err)
	}
	if err := n.process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-n.process.Done()
	if err := n.newConnection(); err != nil {
		t.Errorf("after a kill without pins: %v", err)
	}
	n.cleanup(before)
}

// TestRefusesToStart: each of these refuses with one line that says what and how
// to mend it, an exit status that is not 0, and nothing half attached.
func TestRefusesToStart(t *testing.T) {
	n := newCrashLab(t, netlab.ClusterOptions{})
	before := n.Node.State()
	refused := func(t *testing.T, want ...string) {
		t.Helper()
		out, err := runIn(n.Node, n.command("run", "--config", n.config))
		line := strings.TrimSuffix(out, "\n")
		if err == nil || strings.Contains(line, "\n") || !strings.HasPrefix(line, "sluice: ") {
			t.Errorf("got %v and %q, want a refusal of one line", err, out)
		}
		for _, w := range want {
			if !strings.Contains(line, w) {
				t.Errorf("%q does not say %q", line, w)
			}
		}
	}
	t.Run("second instance", func(t *testing.T) {
		n.start()
		defer n.process.Stop()
		refused(t, strconv.Itoa(n.process.Pid()))
		if err := n.newConnection(); err != nil {
			t.Errorf("the first instance after the second was refused: %v", err)
		}
	})
	n.cleanup(before)
	t.Run("MTU", func(t *testing.T) {
		device := n.Backends[0].HostDevice
		n.Backends[0].MTU(netlab.PodDevice, 9000)
		n.Node.MTU(device, 9000)
		jumbo := n.Node.State()
		refused(t, device, "MTU")
		if diff := netlab.Diff(jumbo, n.Node.State()); diff != "" {
			t.Errorf("half attached:\n%s", diff)
		}
		n.Node.MTU(device, 1500)
		n.Backends[0].MTU(netlab.PodDevice, 1500)
	})
	if diff := netlab.Diff(before, n.Node.State()); diff != "" {
		t.Errorf("changed on the node:\n%s", diff)
	}
}
