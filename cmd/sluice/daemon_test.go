package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
	"github.com/sluice-net/sluice/dataplane"
	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/internal/netlab"
	"github.com/sluice-net/sluice/service"
)

// node is a lab's node for a daemon to serve, with a configuration file and a
// folder of manifests.
type node struct {
	*netlab.Cluster
	t         *testing.T
	dir       string
	config    string
	manifests string
	run       string
}

const (
	healthURL  = "http://127.0.0.1:10356"
	metricsURL = "http://127.0.0.1:10349"
)

func newNode(t *testing.T) *node {
	netlab.RequireRoot(t)
	n := &node{t: t, Cluster: netlab.New(t).Cluster(netlab.ClusterOptions{}), dir: t.TempDir()}
	n.config, n.manifests, n.run = filepath.Join(n.dir, "sluice.yaml"), filepath.Join(n.dir, "manifests"), filepath.Join(n.dir, "run")
	if err := os.Mkdir(n.manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	var c strings.Builder
	fmt.Fprintf(&c, "apiVersion: %s\nkind: %s\nmanifests: %s\nrunDir: %s\n", config.APIVersion, config.Kind, n.manifests, n.run)
	// A busy machine may hold a worker up for longer than a node's would be.
	c.WriteString("heartbeat: {staleAfter: 2s}\nringSize: 512\nflowTable: {capacity: 4096}\nhostnameOverride: node\ndebug: {frameOwnership: true}\ninterfaces:\n")
	for _, dev := range n.devices() {
		fmt.Fprintf(&c, "- name: %s\n", dev)
	}
	n.write(n.config, c.String())
	for _, p := range n.Backends {
		p.EchoOn(8080)
	}
	n.publish(n.Backends...)
	return n
}

// devices are the node's.
func (n *node) devices() []string {
	devices := []string{netlab.UplinkDevice}
	for _, p := range append(append([]*netlab.Pod{}, n.Clients...), n.Backends...) {
		devices = append(devices, p.HostDevice)
	}
	return devices
}

func (n *node) write(path, content string) {
	n.t.Helper()
	hidden := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(hidden, []byte(content), 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(hidden, path); err != nil {
		n.t.Fatal(err)
	}
}

// publish writes a Service with these backends into the folder.
func (n *node) publish(backends ...*netlab.Pod) {
	n.t.Helper()
	v4, v6 := netlab.ClusterIP(netlab.IPv4, 1), netlab.ClusterIP(netlab.IPv6, 1)
	var m strings.Builder
	fmt.Fprintf(&m, `apiVersion: v1
kind: Service
metadata: {name: echo, namespace: default}
spec:
  clusterIP: %q
  clusterIPs: [%q, %q]
  ports:
  - {name: tcp, protocol: TCP, port: 80, targetPort: 8080}
  - {name: udp, protocol: UDP, port: 80, targetPort: 8080}
`, v4, v4, v6)
	for _, f := range netlab.Families {
		fmt.Fprintf(&m, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: echo-%s, namespace: default, labels: {kubernetes.io/service-name: echo}}
addressType: %s
ports:
- {name: tcp, protocol: TCP, port: 8080}
- {name: udp, protocol: UDP, port: 8080}
endpoints:
`, f, strings.Replace(f.String(), "ipv", "IPv", 1))
		for _, p := range backends {
			fmt.Fprintf(&m, "- addresses: [%q]\n", p.IP(f))
		}
	}
	n.write(filepath.Join(n.manifests, "echo.yaml"), m.String())
}

// start runs the daemon and waits until it is ready.
func (n *node) start(args ...string) *netlab.Process {
	n.t.Helper()
	p := n.Node.Start(process("1", append([]string{"run", "--config", n.config}, args...)...))
	n.eventually("the daemon to be ready", func() error {
		select {
		case <-p.Done():
			n.t.Fatalf("the daemon ended: %s", p.Output())
		default:
		}
		status, body, err := n.get(healthURL + "/readyz")
		if err != nil || status != 200 {
			return fmt.Errorf("status %d, %v, %s", status, err, body)
		}
		return nil
	})
	return p
}

// stop ends the daemon, which must end well.
func (n *node) stop(p *netlab.Process) {
	n.t.Helper()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		n.t.Fatal(err)
	}
	if err := p.Wait(); err != nil || strings.Contains(p.Output(), "sluice: ") {
		n.t.Errorf("the daemon ended with %v: %s", err, p.Output())
	}
}

// command runs a command line on the node to its end.
func (n *node) command(words string, args ...string) (status int, output string) {
	n.t.Helper()
	p := n.Node.Start(process(words, args...))
	var exit *exec.ExitError
	if err := p.Wait(); errors.As(err, &exit) {
		status = exit.ExitCode()
	} else if err != nil {
		n.t.Fatal(err)
	}
	return status, p.Output()
}

// get asks one of the daemon's listeners.
func (n *node) get(url string) (status int, body string, err error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return n.Node.Dial(ctx, network, netip.MustParseAddrPort(addr))
		},
	}
	r, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get(url)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return r.StatusCode, string(b), err
}

// eventually waits for something that takes a while.
func (n *node) eventually(what string, f func() error) {
	n.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("waiting for %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// exchange makes a client use the Service, in every way.
func (n *node) exchange() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	defer cancel()
	for _, f := range netlab.Families {
		for _, network := range []string{"tcp", "udp"} {
			frontend := netip.AddrPortFrom(netlab.ClusterIP(f, 1), 80)
			if _, err := n.Clients[0].Exchange(ctx, network, frontend, 1000); err != nil {
				n.t.Errorf("%s %v: %v", network, f, err)
			}
		}
	}
}

// unchanged compares the node with what it was.
func (n *node) unchanged(before netlab.State) {
	n.t.Helper()
	if diff := netlab.Diff(before, n.Node.State()); diff != "" {
		n.t.Errorf("left behind:\n%s", diff)
	}
	if _, err := os.Stat(n.run); !errors.Is(err, os.ErrNotExist) {
		n.t.Errorf("the run folder is still there: %v", err)
	}
}

// TestDaemon serves a Service from its start to its end.
func TestDaemon(t *testing.T) {
	n := newNode(t)
	before := n.Node.State()
	p := n.start("--log-format", "text")
	n.exchange()

	for url, want := range map[string]int{
		healthURL + "/livez": 200, healthURL + "/healthz": 200, healthURL + "/metrics": 404,
		metricsURL + "/debug/pprof/": 404, metricsURL + "/livez": 404,
	} {
		if status, body, err := n.get(url); status != want {
			t.Errorf("%s: %d, %v, want %d\n%s", url, status, err, want, body)
		}
	}
	// The counters are published at each beat.
	n.eventually("the metrics to show the exchanges", func() error {
		_, body, err := n.get(metricsURL + "/metrics")
		for _, want := range []string{
			"sluice_snapshot_generation 1\n", "sluice_service_ports 4\n", "sluice_backends 8\n", "sluice_flows 4\n", "sluice_flow_created_total 4\n",
			`sluice_interface_info{asked="auto",driver="veth",granted="steered",interface="uplink",kind="steered",socket="none"} 1` + "\n",
			`sluice_frames_total{reason="tx_full",verdict="dropped"} 0` + "\n",
		} {
			if !strings.Contains(body, want) {
				return fmt.Errorf("no %q in %v\n%s", want, err, body)
			}
		}
		return nil
	})

	n.listFlows()

	status, output := n.command("1", "run", "--config", n.config)
	if want := fmt.Sprintf("sluice: another sluice (pid %d) serves this network namespace (lock %s/netns-", p.Pid(), n.run); status != 1 || !strings.HasPrefix(output, want) || strings.Count(output, "\n") != 1 {
		t.Errorf("a second instance: status %d, %q, want %q", status, output, want)
	}
	status, output = n.command("1", "cleanup", "--config", n.config)
	if want := fmt.Sprintf("sluice: another sluice (pid %d) serves ", p.Pid()); status != 1 || !strings.HasPrefix(output, want) {
		t.Errorf("cleanup while it runs: status %d, %q, want %q", status, output, want)
	}

	// A live edit.
	n.publish(n.Backends[0])
	n.eventually("the edit to take effect", func() error {
		_, body, err := n.get(metricsURL + "/metrics")
		if !strings.Contains(body, "sluice_snapshot_generation 2\n") || !strings.Contains(body, "sluice_backends 4\n") {
			return fmt.Errorf("%v\n%s", err, body)
		}
		return nil
	})
	n.exchange()

	n.stop(p)
	n.unchanged(before)
}

// listFlows asks the daemon for the flows of exchange.
func (n *node) listFlows() {
	n.t.Helper()
	ask := func(args ...string) (flows []dataplane.FlowInfo) {
		n.t.Helper()
		status, out := n.command("1", append([]string{"flows", "--run-dir", n.run, "-o", "json"}, args...)...)
		if err := json.Unmarshal([]byte(out), &flows); status != 0 || err != nil {
			n.t.Fatalf("flows %q: %d, %v, %s", args, status, err, out)
		}
		return flows
	}
	all := ask("--service", "default/echo")
	if len(all) != 4 {
		n.t.Errorf("%d flows, want 4", len(all))
	}
	for _, f := range all {
		family := netlab.IPv4
		if f.Client.Addr().Is6() {
			family = netlab.IPv6
		}
		if f.Service != "default/echo:"+strings.ToLower(f.Protocol) || f.Client.Addr() != n.Clients[0].IP(family) || f.Source != f.Client ||
			f.Frontend != netip.AddrPortFrom(netlab.ClusterIP(family, 1), 80) || f.Backend.Port() != 8080 ||
			f.ForwardPackets == 0 || f.ReplyPackets == 0 || f.AgeSeconds < f.IdleSeconds || f.State == "opening" {
			n.t.Errorf("%+v", f)
		}
		one := ask("--backend", f.Backend.Addr().String(), "--client", f.Client.Addr().String(), "--state", f.State)
		if !slices.ContainsFunc(one, func(o dataplane.FlowInfo) bool { return o.Client == f.Client && o.Protocol == f.Protocol }) {
			n.t.Errorf("%v is not among %v", f, one)
		}
	}
	for _, none := range [][]string{{"--service", "other"}, {"--service", "default/ech"}, {"--client", "203.0.113.0/24"}, {"--state", "opening"}} {
		if flows := ask(none...); len(flows) != 0 {
			n.t.Errorf("flows %q: %v", none, flows)
		}
	}
}

// TestKeep stops a daemon that leaves its things, starts another that takes
// them over, and cleans up.
func TestKeep(t *testing.T) {
	n := newNode(t)
	pins := netlab.BPFFS(t) + "/sluice"
	before := n.Node.State()
	keep := []string{"--on-exit", "keep", "--pin-path", pins}
	n.stop(n.start(keep...))
	kept := n.Node.State()
	if netlab.Diff(before, kept) == "" {
		t.Error("nothing was kept")
	}

	p := n.start(append(keep, "--enable-profiling")...)
	n.exchange()
	if status, _, err := n.get(metricsURL + "/debug/pprof/cmdline"); status != 200 {
		t.Errorf("pprof: %d, %v", status, err)
	}
	n.stop(p)
	if diff := netlab.Diff(withoutPrograms(kept), withoutPrograms(n.Node.State())); diff != "" {
		t.Errorf("the second left other things than the first:\n%s", diff)
	}

	if status, output := n.command("1", "cleanup", "--config", n.config, "--pin-path", pins); status != 0 || output != "" {
		t.Errorf("cleanup: status %d, %q", status, output)
	}
	n.unchanged(before)
	if _, err := os.Stat(pins); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pins are still there: %v", err)
	}
	if status, output := n.command("1", "cleanup", "--config", n.config, "--pin-path", pins); status != 0 || output != "" {
		t.Errorf("a second cleanup: status %d, %q", status, output)
	}
}

// withoutPrograms takes the programs' numbers out of a listing: a restart puts
// new ones into the links it takes over.
func withoutPrograms(s netlab.State) netlab.State {
	masked := make(netlab.State, len(s))
	for i, line := range s {
		masked[i] = regexp.MustCompile(`program \d+`).ReplaceAllString(line, "program N")
	}
	return masked
}

// TestKilled leaves no program behind where nothing is pinned, and the rest to
// cleanup.
func TestKilled(t *testing.T) {
	n := newNode(t)
	before := n.Node.State()
	p := n.start()
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = p.Wait()
	if status, output := n.command("1", "cleanup", "--config", n.config); status != 0 || output != "" {
		t.Errorf("cleanup: status %d, %q", status, output)
	}
	n.unchanged(before)
}

// TestTwoNodes runs two nodes' daemons beside one another with one run folder.
func TestTwoNodes(t *testing.T) {
	n := newNode(t)
	first := n.start()
	second := n.Remote.Start(process("1", "run", "--config", n.config, "--interface", netlab.UplinkDevice, "--healthz-address=", "--metrics-address=", "--log-format", "text"))
	n.eventually("the second node's daemon", func() error {
		if out := second.Output(); !strings.Contains(out, "msg=started") {
			return errors.New(out)
		}
		return nil
	})
	n.stop(second)
	n.exchange()
	n.stop(first)
}

// TestNodeRefusals has the one line of what the machine refuses, and nothing
// half done.
func TestNodeRefusals(t *testing.T) {
	n := newNode(t)
	const big, foreign = "big", "foreign"
	n.Lab.Veth(n.Node, big, n.Remote, big, netlab.VethOptions{MTU: 9000})
	n.Lab.Veth(n.Node, foreign, n.Remote, foreign, netlab.VethOptions{})
	attachForeign(t, n.Node, foreign)
	before := n.Node.State()

	taken, err := n.Node.Listen(netip.MustParseAddrPort("127.0.0.1:10349"))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	hard := filepath.Join(n.dir, "hard.yaml")
	content, err := os.ReadFile(n.config)
	if err != nil {
		t.Fatal(err)
	}
	n.write(hard, string(content)+"bindAddressHardFail: true\n")
	// The others are not to meet the taken address.
	n.write(n.config, string(content)+"metricsBindAddress: ''\n")
	broken := filepath.Join(n.dir, "broken")
	if err := os.Mkdir(broken, 0o755); err != nil {
		t.Fatal(err)
	}
	n.write(filepath.Join(broken, "web.yaml"), "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: not-an-address}\n")

	for _, c := range []struct {
		name, words string
		args        []string
		contains    []string
	}{
		{"no such interface", "1", []string{"--interface", "uplnik"}, []string{`interface "uplnik" does not exist here; there is uplink`}},
		{"no such manifests", "1", []string{"--manifests", n.dir + "/none"}, []string{"manifests folder " + n.dir + "/none does not exist; make it, or name another with --manifests"}},
		{"bad manifests", "1", []string{"--manifests", broken}, []string{broken + "/web.yaml", "clusterIP"}},
		{"no bpffs", "1", []string{"--on-exit", "keep", "--pin-path", n.dir}, []string{"pinPath " + n.dir + " is not on a bpffs; mount one first: "}},
		{"taken address", "1", []string{"--config", hard}, []string{"metricsBindAddress 127.0.0.1:10349: address already in use"}},
		{"MTU", "1", []string{"--interface", big}, []string{"interface ", "MTU 9000 is above "}},
		{"foreign program", "1", []string{"--interface", foreign + "=native"}, []string{"interface foreign", `"theirs"`, "replaceForeignXDP"}},
		{"foreign program on the second", "1", []string{"--interface", netlab.UplinkDevice, "--interface", foreign + "=native"}, []string{"interface foreign", `"theirs"`, "replaceForeignXDP"}},
		{"no CAP_NET_RAW", fmt.Sprintf("drop=%d 1", unix.CAP_NET_RAW), nil, []string{"missing CAP_NET_RAW; run as root, or grant "}},
		{"no CAP_BPF", fmt.Sprintf("drop=%d drop=%d 1", unix.CAP_BPF, unix.CAP_SYS_ADMIN), nil, []string{"missing CAP_BPF; run as root, or grant "}},
		{"memlock", fmt.Sprintf("memlock=65536 drop=%d 1", unix.CAP_IPC_LOCK), nil, []string{"locked memory is limited to 64 KiB and ", "CAP_IPC_LOCK"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, output := n.command(c.words, append([]string{"run", "--config", n.config}, c.args...)...)
			if status != 1 || !strings.HasPrefix(output, "sluice: ") || strings.Count(output, "\n") != 1 {
				t.Errorf("status %d, output %q, want status 1 and one line", status, output)
			}
			for _, want := range c.contains {
				if !strings.Contains(output, want) {
					t.Errorf("no %q in %q", want, output)
				}
			}
			n.unchanged(before)
		})
	}
}

// attachForeign puts somebody else's XDP program on a device.
func attachForeign(t *testing.T, ns *netlab.Namespace, dev string) {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "theirs", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // XDP_PASS
	})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	var l link.Link
	index := ns.Index(dev)
	if err := ns.Do(func() (err error) {
		l, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: index})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// TestDataplaneConfig looks for every word of the configuration in the
// dataplane's types.
func TestDataplaneConfig(t *testing.T) {
	c := config.Default()
	c.Mode, c.OnExit, c.PinPath, c.ReturnPort = "alone", "keep", "/sys/fs/bpf/a", "tap"
	c.Interfaces = []config.Interface{{Name: "eth0", Kind: "native"}, {Name: "eth1", Kind: "generic"}, {Name: "eth2", Kind: "auto"}}
	c.Workers, c.Frames, c.FrameSize, c.RingSize, c.FlowTable.Capacity = 3, 4096, 2048, 1024, 77
	second := func(n int) config.Duration { return config.Duration(time.Duration(n) * time.Second) }
	c.BusySpin, c.Heartbeat = second(1), config.Heartbeat{StaleAfter: second(2), HoldKnown: second(3)}
	c.Conntrack = config.Conntrack{
		TCPOpeningTimeout: second(4), TCPEstablishedTimeout: second(5), TCPCloseWaitTimeout: second(6),
		TCPClosingTimeout: second(7), UDPTimeout: second(8), UDPStreamTimeout: second(9),
	}
	c.FragmentWait = config.Duration(300 * time.Millisecond)
	c.ReplaceForeignXDP, c.Debug.FrameOwnership = true, true
	c.WorkerMode, c.WorkerCPUs = "busy", "1,3-4"
	c.Interfaces = append(c.Interfaces, config.Interface{Name: "x*", Driver: "veth", Role: "pods", Kind: "none"})
	got, err := dataplaneConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	want := dataplane.Config{
		Mode: dataplane.ModeAlone, OnExit: dataplane.OnExitKeep, PinDir: "/sys/fs/bpf/a", ReturnPort: "tap",
		Ports:   []dataplane.PortConfig{{Name: "eth0", Kind: dataplane.KindNative}, {Name: "eth1", Kind: dataplane.KindGeneric}, {Name: "eth2", Kind: dataplane.KindAuto}, {Name: "x*", Driver: "veth", Role: dataplane.RolePods, Kind: dataplane.KindNone}},
		Workers: 3, WorkerMode: dataplane.WorkerBusy, CPUs: []int{1, 3, 4}, Frames: 4096, FrameSize: 2048, RingSize: 1024, FlowCapacity: 77,
		BusySpin: time.Second, HeartbeatStale: 2 * time.Second, HoldKnown: 3 * time.Second,
		FragmentWait: 300 * time.Millisecond,
		Timeouts: flowtable.Timeouts{
			TCPOpening: 4 * time.Second, TCPEstablished: 5 * time.Second, TCPCloseWait: 6 * time.Second,
			TCPClosing: 7 * time.Second, UDPUnreplied: 8 * time.Second, UDPStream: 9 * time.Second,
		},
		ReplaceForeignXDP: true, Debug: true, AffinityCapacity: 65536,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	c.BusySpin, c.OnExit = 0, "remove"
	if got, err = dataplaneConfig(c); err != nil || got.BusySpin >= 0 || got.PinDir != "" || got.OnExit != dataplane.OnExitRemove {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestAllowedWords holds the words that a configuration may use to those that
// the rooms below know.
func TestAllowedWords(t *testing.T) {
	for _, w := range config.Modes {
		if _, err := dataplane.ParseMode(w); err != nil {
			t.Error(err)
		}
	}
	for _, w := range config.Kinds {
		if _, err := dataplane.ParsePortKind(w); err != nil {
			t.Error(err)
		}
	}
	for _, w := range config.Roles {
		if _, err := dataplane.ParseRole(w); err != nil {
			t.Error(err)
		}
	}
	for _, w := range config.Workers {
		if _, err := dataplane.ParseWorkerMode(w); err != nil {
			t.Error(err)
		}
	}
	for _, w := range config.OnExits {
		if _, err := dataplane.ParseOnExit(w); err != nil {
			t.Error(err)
		}
	}
	for _, w := range config.Selections {
		if _, err := service.ParseSelection(w); err != nil {
			t.Error(err)
		}
	}
}

// TestPublisher: what comes before the dataplane waits for it, the latest of it.
func TestPublisher(t *testing.T) {
	var got []uint32
	refuse := errors.New("no room")
	to := func(s *service.Snapshot) error {
		got = append(got, s.Generation)
		if s.Generation == 3 {
			return refuse
		}
		return nil
	}
	var p publisher
	publish := func(generation uint32) error { return p.publish(&service.Snapshot{Generation: generation}) }
	if err := p.attach(to); err != nil || got != nil {
		t.Errorf("with nothing published: %v, %v", got, err)
	}
	p = publisher{}
	if err := errors.Join(publish(1), publish(2), p.attach(to)); err != nil {
		t.Error(err)
	}
	if err := publish(3); !errors.Is(err, refuse) {
		t.Errorf("a refused one: %v", err)
	}
	if err := publish(4); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]uint32{2, 3, 4}, got); diff != "" {
		t.Error(diff)
	}
	p = publisher{}
	if err := errors.Join(publish(3), p.attach(to)); !errors.Is(err, refuse) {
		t.Errorf("the first is refused: %v", err)
	}
}

func TestNodeName(t *testing.T) {
	if name, err := nodeName(" Node-A\n"); err != nil || name != "node-a" {
		t.Errorf("%q, %v", name, err)
	}
	if name, err := nodeName(""); err != nil || name == "" || name != strings.ToLower(name) {
		t.Errorf("%q, %v", name, err)
	}
}
