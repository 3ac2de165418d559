package dataplane

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-net/sluice/internal/netlab"
	"github.com/sluice-net/sluice/service"
)

// A testbed is a cluster of namespaces with the dataplane on its node, in this
// process.
type testbed struct {
	t *testing.T
	*netlab.Cluster
	d        *Dataplane
	snapshot *service.Snapshot
	stop     func() error // ends Run and waits
}

// newTestbed builds the cluster and opens the dataplane on every port of the
// node. cfg's ports are filled in; change may alter the rest.
func newTestbed(t *testing.T, o netlab.ClusterOptions, change func(*Config)) *testbed {
	t.Helper()
	netlab.RequireRoot(t)
	b := &testbed{t: t, Cluster: netlab.New(t).Cluster(o)}
	before := b.Node.State()
	b.open(change)
	t.Cleanup(func() {
		b.close()
		if diff := netlab.Diff(before, b.Node.State()); diff != "" {
			t.Errorf("changed on the node:\n%s", diff)
		}
	})
	return b
}

// ports are the node's devices.
func (b *testbed) devices() []PortConfig {
	ports := []PortConfig{{Name: netlab.UplinkDevice, Kind: KindNative}}
	for _, p := range append(append([]*netlab.Pod{}, b.Clients...), b.Backends...) {
		ports = append(ports, PortConfig{Name: p.HostDevice, Kind: KindNative})
	}
	return ports
}

// eachKind runs a test with direct ports and with steered ones.
func eachKind(t *testing.T, test func(*testing.T, PortKind)) {
	for _, kind := range []PortKind{KindNative, KindSteered} {
		t.Run(kind.String(), func(t *testing.T) { test(t, kind) })
	}
}

// of makes every port one of this kind, and changes what else there is to change.
func of(kind PortKind, changes ...func(*Config)) func(*Config) {
	return func(c *Config) {
		for i := range c.Ports {
			c.Ports[i].Kind = kind
		}
		for _, change := range changes {
			change(c)
		}
	}
}

// open opens and runs the dataplane.
func (b *testbed) open(change func(*Config)) {
	b.t.Helper()
	// A busy machine may hold a worker up for longer than a node's would be.
	cfg := Config{Ports: b.devices(), RingSize: 512, FlowCapacity: 65536, Workers: 1, Debug: true, HeartbeatStale: 2 * time.Second}
	if change != nil {
		change(&cfg)
	}
	log := slog.New(slog.NewTextHandler(testWriter{b.t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	err := b.Node.Do(func() (err error) {
		b.d, err = Open(cfg, log)
		return err
	})
	if err != nil {
		b.t.Fatalf("opening the dataplane: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.d.Run(ctx) }()
	b.stop = func() error { cancel(); return <-ended }
}

// close stops the dataplane, once everything that it received has its verdict
// and every frame its owner.
func (b *testbed) close() {
	b.t.Helper()
	if b.stop == nil {
		return
	}
	if err := b.stop(); err != nil {
		b.t.Errorf("running: %v", err)
	}
	b.stop = nil
	s := b.d.Stats()
	if n := s.Unaccounted(); n != 0 {
		b.t.Errorf("%d of %d frames have no verdict", n, s.Received)
	}
	census, err := b.d.Audit()
	if err != nil {
		b.t.Errorf("frame ownership: %v", err)
	}
	if census.Worker+census.Tx+census.Lost != 0 {
		b.t.Errorf("frames leaked: %+v", census)
	}
	if err := b.d.Close(); err != nil {
		b.t.Errorf("closing: %v", err)
	}
	if b.t.Failed() {
		for _, v := range s.Verdicts {
			if v.Frames > 0 {
				b.t.Logf("%s %s: %d", v.Verdict, v.Reason, v.Frames)
			}
		}
		for _, p := range s.Ports {
			b.t.Logf("%s: rx %d tx %d %+v %+v", p.Name, p.RxFrames, p.TxFrames, p.XSK, p.Kicks)
			for r, n := range p.Classifier {
				if n > 0 {
					b.t.Logf("  classifier %s: %d", r, n)
				}
			}
			for r, n := range p.Egress {
				if n > 0 {
					b.t.Logf("  egress %s: %d", r, n)
				}
			}
		}
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

// testService is a Service with one port of each protocol and these backends.
type testService struct {
	name     string
	number   int // of its ClusterIP
	port     int
	backends []netip.AddrPort
}

// publish programs exactly these Services.
func (b *testbed) publish(services ...testService) {
	b.t.Helper()
	var svcs []*corev1.Service
	var slices []*discoveryv1.EndpointSlice
	for _, s := range services {
		svc, eps := s.objects()
		svcs = append(svcs, svc)
		slices = append(slices, eps...)
	}
	next, report := service.Build(&service.Config{}, b.snapshot, svcs, slices)
	if len(report.Problems) > 0 {
		b.t.Fatalf("building the snapshot: %v", report.Problems)
	}
	b.snapshot = next
	if err := b.d.Publish(next); err != nil {
		b.t.Fatalf("publishing: %v", err)
	}
}

func (s testService) objects() (*corev1.Service, []*discoveryv1.EndpointSlice) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: s.name}}
	for _, f := range netlab.Families {
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, netlab.ClusterIP(f, s.number).String())
	}
	svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
	for _, proto := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: strings.ToLower(string(proto)), Protocol: proto, Port: int32(s.port)})
	}
	bySlice := map[string]*discoveryv1.EndpointSlice{}
	var all []*discoveryv1.EndpointSlice
	for _, be := range s.backends {
		family := discoveryv1.AddressTypeIPv4
		if be.Addr().Is6() {
			family = discoveryv1.AddressTypeIPv6
		}
		key := fmt.Sprintf("%s-%s-%d", s.name, strings.ToLower(string(family)), be.Port())
		eps := bySlice[key]
		if eps == nil {
			eps = &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: key, Labels: map[string]string{discoveryv1.LabelServiceName: s.name}}, AddressType: family}
			for _, p := range svc.Spec.Ports {
				port := int32(be.Port())
				eps.Ports = append(eps.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &port})
			}
			bySlice[key] = eps
			all = append(all, eps)
		}
		eps.Endpoints = append(eps.Endpoints, discoveryv1.Endpoint{Addresses: []string{be.Addr().String()}})
	}
	return svc, all
}

// echo serves TCP and UDP echo on every backend pod, the remote one included, and
// gives their addresses in both families.
func (b *testbed) echo(port uint16) (servers []*netlab.EchoServer, backends []netip.AddrPort) {
	for _, p := range append(append([]*netlab.Pod{}, b.Backends...), b.RemoteBackend) {
		tcp, udp := p.EchoOn(port)
		servers = append(servers, tcp, udp)
		for _, f := range netlab.Families {
			backends = append(backends, p.AddrPort(f, port))
		}
	}
	return servers, backends
}

// settle waits until the published counters stand still.
func (b *testbed) settle() Stats {
	last := b.d.Stats()
	for range 100 {
		time.Sleep(60 * time.Millisecond)
		s := b.d.Stats()
		if s.Received == last.Received && s.Unaccounted() == 0 {
			return s
		}
		last = s
	}
	return last
}

func TestClusterIPEndToEnd(t *testing.T) { eachKind(t, testClusterIPEndToEnd) }

func testClusterIPEndToEnd(t *testing.T, kind PortKind) {
	b := newTestbed(t, netlab.ClusterOptions{}, of(kind))
	servers, backends := b.echo(8080)
	b.publish(testService{name: "echo", number: 1, port: 80, backends: backends})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := b.Clients[0]
	for _, f := range netlab.Families {
		vip := netip.AddrPortFrom(netlab.ClusterIP(f, 1), 80)
		for _, network := range []string{"tcp", "udp"} {
			for i := range 20 {
				size := 1 + i*65
				if network == "tcp" {
					size = 1 + i*3000
				}
				if _, err := client.Exchange(ctx, network, vip, size); err != nil {
					t.Fatalf("%s %v: %v", f, network, err)
				}
			}
		}
	}
	for _, s := range servers {
		for _, p := range s.Peers() {
			if p.Addr().Unmap() != client.IP4 && p.Addr() != client.IP6 {
				t.Errorf("server %s saw %s, want the client's own address", s.Addr(), p)
			}
		}
	}
	s := b.settle()
	if got := s.Verdict(Translated); got == 0 || s.Verdict(Dropped) != 0 || s.Verdict(Returned) != 0 {
		t.Errorf("translated %d, returned %d, dropped %d: want some, 0, 0", got, s.Verdict(Returned), s.Verdict(Dropped))
	}
}

// stream is a connection to an echo server.
type stream struct {
	net.Conn
	n byte
}

// ping sends a few bytes and waits for them.
func (s *stream) ping() error {
	s.n++
	out := bytes.Repeat([]byte{s.n}, 100)
	in := make([]byte, len(out))
	s.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := s.Write(out); err != nil {
		return err
	}
	if _, err := io.ReadFull(s, in); err != nil {
		return err
	}
	if !bytes.Equal(in, out) {
		return fmt.Errorf("got %x back, want %x", in[:4], out[:4])
	}
	return nil
}
