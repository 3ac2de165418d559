package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/dataplane"
	"github.com/sluice-net/sluice/internal/netlab"
	"github.com/sluice-net/sluice/service"
)

// place is where frames are injected and captured: a pod's device, or the outside host's.
type place int

const (
	client0 place = iota
	client1       // with a larger MTU than everything else
	backend0
	backend1
	remote // the backend on the other node
	outside
	places
)

var placeWords = [places]string{"client0", "client1", "backend0", "backend1", "remote", "outside"}

func (p place) String() string { return placeWords[p] }

// jumboMTU is client1's, as large as native XDP without multi-buffer allows for.
const jumboMTU = 3498

// mapping is one ServicePort, with one backend: the choice is the same on both sides.
type mapping struct {
	number  int // of the ClusterIP
	proto   byte
	port    uint16
	backend place
	target  uint16
}

// mappings: with and without a change of port, on this node and beyond it.
var mappings = []mapping{
	{number: 1, proto: protoTCP, port: 80, backend: backend0, target: 8080},
	{number: 1, proto: protoUDP, port: 53, backend: backend0, target: 5353},
	{number: 2, proto: protoTCP, port: 8080, backend: backend1, target: 8080},
	{number: 2, proto: protoUDP, port: 8080, backend: backend1, target: 8080},
	{number: 3, proto: protoTCP, port: 443, backend: remote, target: 6443},
	{number: 3, proto: protoUDP, port: 4433, backend: remote, target: 6443},
	{number: 1, proto: protoSCTP, port: 132, backend: backend0, target: 1320},
	{number: 3, proto: protoSCTP, port: 132, backend: remote, target: 1320},
}

// hops is how many routers stand between a client and the backend.
func (m *mapping) hops() byte {
	if m.backend == remote {
		return 2
	}
	return 1
}

// side is one cluster and what translates in it.
type side struct {
	name     string
	c        *netlab.Cluster
	inject   [places]*netlab.Injector
	captures [places]*netlab.Capture
	hostMAC  [places]net.HardwareAddr // of the node's end: where a pod sends to
	mac      [places]net.HardwareAddr
	ip       [places]map[netlab.Family]netip.Addr
	d        *dataplane.Dataplane // nil: the kernel translates
	end      func() error         // ends the packet loop
	stats    dataplane.Stats      // as of then
}

// setting is how two sides are to be compared.
type setting struct {
	mode   dataplane.Mode
	strict bool               // connection tracking as it comes: it judges sequence numbers and checksums, and translates only what it likes
	kind   dataplane.PortKind // of the node's ports
}

func (s setting) String() string {
	if s.strict {
		return s.mode.String() + "/strict"
	}
	return s.mode.String() + "/liberal"
}

var settings = []setting{
	{mode: dataplane.ModeFront, strict: true}, {mode: dataplane.ModeAlone, strict: true}, {mode: dataplane.ModeFront}, {mode: dataplane.ModeAlone},
}

// newSide builds a cluster whose pods are wires without a mind of their own.
func newSide(tb netlab.TB, name string, s setting) *side {
	c := netlab.New(tb).Cluster(netlab.ClusterOptions{Clients: 2, Backends: 2, Outside: true})
	x := &side{name: name, c: c}
	pods := [places]*netlab.Pod{c.Clients[0], c.Clients[1], c.Backends[0], c.Backends[1], c.RemoteBackend}
	pods[client1].Node.MTU(pods[client1].HostDevice, jumboMTU)
	pods[client1].MTU(netlab.PodDevice, jumboMTU)

	for _, n := range []*netlab.Namespace{c.Node, c.Remote} {
		// Each error that a node answers is to be seen.
		n.Sysctl("net.ipv4.icmp_ratelimit", "0")
		n.Sysctl("net.ipv6.icmp.ratelimit", "0")
		n.Sysctl("net.ipv6.auto_flowlabels", "0") // keyed anew in each namespace
	}
	c.Node.Sysctl("net.ipv4.conf.all.rp_filter", "1") // as Sluice does by itself
	if !s.strict {
		c.Node.Sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", "1")
		c.Node.Sysctl("net.netfilter.nf_conntrack_checksum", "0")
	}

	for p, pod := range pods {
		if place(p) == outside {
			break
		}
		x.ip[p] = map[netlab.Family]netip.Addr{netlab.IPv4: pod.IP4, netlab.IPv6: pod.IP6}
		x.hostMAC[p], x.mac[p] = pod.Node.MAC(pod.HostDevice), pod.MAC(netlab.PodDevice)
		for _, f := range netlab.Families {
			pod.Node.Neighbour(pod.HostDevice, pod.IP(f).String(), x.mac[p])
		}
		// Masquerading prefers an address of the device that it leaves by, Sluice knows but one of the node.
		if pod.Node == c.Node {
			readdress(tb, pod.Node, pod.HostDevice, unix.AF_INET, netlab.NodeAddr(netlab.IPv4, 1).String()+"/32")
		}
		x.wire(tb, place(p), pod.Namespace)
	}
	x.hostMAC[outside], x.mac[outside] = c.Node.MAC(netlab.OutsideDevice), c.Outside.MAC(netlab.PodDevice)
	x.ip[outside] = map[netlab.Family]netip.Addr{}
	for _, f := range netlab.Families {
		x.ip[outside][f] = netlab.OutsideAddr(f, 2)
		c.Node.Neighbour(netlab.OutsideDevice, x.ip[outside][f].String(), x.mac[outside])
		c.Node.Neighbour(netlab.UplinkDevice, netlab.NodeAddr(f, 2).String(), c.Remote.MAC(netlab.UplinkDevice))
		c.Remote.Neighbour(netlab.UplinkDevice, netlab.NodeAddr(f, 1).String(), c.Node.MAC(netlab.UplinkDevice))
	}
	x.wire(tb, outside, c.Outside)
	// What is not translated is to be seen outside on both sides. Alone, Sluice leads it to itself, for the node's own processes.
	for _, f := range netlab.Families {
		for number := 1; number <= 3; number++ {
			a := netlab.ClusterIP(f, number)
			c.Node.RouteFirst(netip.PrefixFrom(a, a.BitLen()).String(), x.ip[outside][f].String(), netlab.OutsideDevice)
		}
	}
	return x
}

// wire takes a namespace's addresses away and opens its two ends for us.
func (x *side) wire(tb netlab.TB, p place, n *netlab.Namespace) {
	n.Sysctl("net.ipv6.conf."+netlab.PodDevice+".disable_ipv6", "1")
	readdress(tb, n, netlab.PodDevice, unix.AF_UNSPEC)
	x.inject[p] = n.Inject(netlab.PodDevice)
	x.captures[p] = n.Capture(netlab.PodDevice, netlab.CaptureOptions{Match: relevant})
}

// readdress gives a device other addresses of a family.
func readdress(tb netlab.TB, n *netlab.Namespace, dev string, family int, cidrs ...string) {
	link, err := n.Handle().LinkByName(dev)
	if err != nil {
		tb.Fatalf("finding %s: %v", dev, err)
	}
	had, err := n.Handle().AddrList(link, family)
	if err != nil {
		tb.Fatalf("listing addresses of %s: %v", dev, err)
	}
	for _, cidr := range cidrs {
		n.Addr(dev, cidr)
	}
	for i := range had {
		if err := n.Handle().AddrDel(link, &had[i]); err != nil {
			tb.Fatalf("taking an address from %s: %v", dev, err)
		}
	}
}

// relevant leaves out what was sent from here, and what the nodes say to all by themselves: neighbour and listener discovery.
func relevant(f *netlab.Frame) bool {
	if f.Direction != netlab.In || len(f.Data) < etherLen {
		return false
	}
	etherType := binary.BigEndian.Uint16(f.Data[12:])
	return f.Data[0]&1 == 0 || etherType != etherIPv6 && etherType != 0x0806
}

// translateInKernel installs the kernel's rules.
func (x *side) translateInKernel() {
	for _, m := range mappings {
		for _, f := range netlab.Families {
			x.c.Node.DNAT(m.frontend(f), m.proto, []netip.AddrPort{x.backend(&m, f)}, netlab.PickFirst)
		}
	}
}

func (m *mapping) frontend(f netlab.Family) netip.AddrPort {
	return netip.AddrPortFrom(netlab.ClusterIP(f, m.number), m.port)
}

func (x *side) backend(m *mapping, f netlab.Family) netip.AddrPort {
	return netip.AddrPortFrom(x.ip[m.backend][f], m.target)
}

// translateInSluice opens the dataplane on the node, and programs it.
func (x *side) translateInSluice(tb netlab.TB, mode dataplane.Mode, kind dataplane.PortKind) error {
	cfg := dataplane.Config{
		Mode: mode, Workers: 1, FlowCapacity: 1 << 17,
		// A busy machine must not look like a hanging daemon, nor the first fragment like one that never comes.
		HeartbeatStale: 10 * time.Second,
		FragmentWait:   5 * time.Second,
		Ports:          []dataplane.PortConfig{{Name: netlab.UplinkDevice, Kind: kind}},
	}
	for _, p := range slices.Concat(x.c.Clients, x.c.Backends) {
		cfg.Ports = append(cfg.Ports, dataplane.PortConfig{Name: p.HostDevice, Kind: kind})
	}
	log := slog.New(slog.NewTextHandler(logWriter{tb}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	dir, err := os.MkdirTemp("", "differential-")
	if err != nil {
		return err
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "services.yaml"), []byte(x.manifests()), 0o644); err != nil {
		return err
	}
	if err := x.c.Node.Do(func() (err error) {
		x.d, err = dataplane.Open(cfg, log)
		return err
	}); err != nil {
		return fmt.Errorf("opening the dataplane: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- x.d.Run(ctx) }()
	x.end = func() error { cancel(); return <-ended }
	var failed error
	folder, err := service.OpenFolder(dir, service.Config{}, log, func(s *service.Snapshot) { failed = x.d.Publish(s) })
	if err != nil {
		return errors.Join(err, x.stop())
	}
	if err := errors.Join(failed, folder.Close()); err != nil {
		return errors.Join(err, x.stop())
	}
	return nil
}

type logWriter struct{ netlab.TB }

func (w logWriter) Write(b []byte) (int, error) {
	w.Logf("%s", strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

// stop ends the packet loop, takes stock, and closes the dataplane.
func (x *side) stop() error {
	err := x.end()
	x.stats = x.d.Stats()
	return errors.Join(err, x.d.Close())
}

// manifests are the Services, one for each ClusterIP, and their endpoints.
func (x *side) manifests() string {
	var b strings.Builder
	words := map[byte]string{protoTCP: "TCP", protoUDP: "UDP", protoSCTP: "SCTP"}
	for number := 1; number <= 3; number++ {
		var ports, targets strings.Builder
		var at place
		for _, m := range mappings {
			if m.number == number {
				w := words[m.proto]
				fmt.Fprintf(&ports, "  - {name: %s, protocol: %s, port: %d, targetPort: %d}\n", strings.ToLower(w), w, m.port, m.target)
				fmt.Fprintf(&targets, "- {name: %s, protocol: %s, port: %d}\n", strings.ToLower(w), w, m.target)
				at = m.backend
			}
		}
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata: {name: s%d, namespace: default}
spec:
  clusterIP: %q
  clusterIPs: [%q, %q]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  ports:
%s`, number, netlab.ClusterIP(netlab.IPv4, number), netlab.ClusterIP(netlab.IPv4, number), netlab.ClusterIP(netlab.IPv6, number), ports.String())
		for _, f := range netlab.Families {
			fmt.Fprintf(&b, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s%d-%s, namespace: default, labels: {kubernetes.io/service-name: s%d}}
addressType: IPv%d
ports:
%sendpoints:
- addresses: [%q]
  conditions: {ready: true}
`, number, f, number, f, targets.String(), x.ip[at][f])
		}
	}
	return b.String()
}

// send injects a frame.
func (x *side) send(at place, f injected) error {
	if f.partial {
		p, ok := parse(f.data)
		if !ok {
			return errors.New("a partial frame that cannot be parsed")
		}
		return x.inject[at].SendPartial(f.data, uint16(p.l4), uint16(checksumAt(p.proto)))
	}
	_, err := x.inject[at].Send(f.data)
	return err
}

// lost is how many frames the captures lost.
func (x *side) lost() (n uint64) {
	for _, c := range x.captures {
		n += c.Lost()
	}
	return n
}
