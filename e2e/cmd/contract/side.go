package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/sluice-net/sluice/e2e/kube"
	"github.com/sluice-net/sluice/e2e/stand"
	"github.com/sluice-net/sluice/internal/netlab"
)

// backend is a place that endpoints can name: the same on every side.
type backend struct {
	name string
	node string
	host bool // on its node's own network
	n    int  // which of its node's pods
}

// backends: four on the node, two on the other, and one on each node's own network.
var backends = []backend{
	{"local0", stand.Node1, false, 0}, {"local1", stand.Node1, false, 1}, {"local2", stand.Node1, false, 2}, {"local3", stand.Node1, false, 3},
	{"remote0", stand.Node2, false, 0}, {"remote1", stand.Node2, false, 1},
	{"host1", stand.Node1, true, 0}, {"host2", stand.Node2, true, 0},
}

// backendPorts are served by every backend, over every protocol.
var backendPorts = []int32{8080, 8081}

const clients = 2 // client pods

// addr is a backend's address.
func (b backend) addr(f netlab.Family) netip.Addr {
	number := 1
	if b.node == stand.Node2 {
		number = 2
	}
	switch {
	case b.host:
		return netlab.NodeAddr(f, number)
	case number == 1:
		return netlab.PodAddr(f, 1, clients+1+b.n)
	}
	return netlab.PodAddr(f, 2, 1+b.n)
}

// client is one that asks.
type client struct {
	kind string
	ns   *netlab.Namespace
	own  func(netip.Addr) bool // is this its own address? nil: not compared
	port atomic.Uint32
}

// nextPort is a local port that the client has not used for as long as the kernel remembers UDP flows.
func (c *client) nextPort() uint16 {
	const low, high = 10000, 60000
	return uint16(low + c.port.Add(1)%(high-low))
}

// side is one dataplane with a cluster of its own. All have the same addresses.
type side struct {
	mode      string
	lab       *netlab.Cluster
	remote    []*netlab.Pod // backends on the other node
	dataplane *stand.Dataplane
	clients   []*client
}

// start builds a side; close is to be called whatever comes of it.
func (s *side) start(ctx context.Context, owner *netlab.Stand, control *kube.ControlPlane, bin, dir string) error {
	dir = filepath.Join(dir, s.mode)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	s.lab = netlab.New(owner).Cluster(netlab.ClusterOptions{Clients: clients, Backends: 4, Outside: true})
	s.remote = []*netlab.Pod{s.lab.RemoteBackend, s.lab.AddPod("backend1", 2)}
	stand.UnlimitedICMP(s.lab.Node)
	for i := range backends {
		if err := s.serve(&backends[i]); err != nil {
			return err
		}
	}
	for i, pod := range s.lab.Clients {
		s.clients = append(s.clients, &client{kind: fmt.Sprintf("pod%d", i), ns: pod.Namespace, own: isOf(pod)})
	}
	local := s.lab.Backends[0]
	s.clients = append(s.clients,
		&client{kind: "backend", ns: local.Namespace, own: isOf(local)},
		&client{kind: "node", ns: s.lab.Node},
		&client{kind: "outside", ns: s.lab.Outside, own: func(a netip.Addr) bool {
			return a == netlab.OutsideAddr(netlab.IPv4, 2) || a == netlab.OutsideAddr(netlab.IPv6, 2)
		}})

	door := fmt.Sprintf("https://127.0.0.1:%d", kube.APIPort)
	if err := control.Forward(s.lab.Node, owner.Cleanup); err != nil {
		return err
	}
	kubeconfig, err := control.Kubeconfig(s.mode, door)
	if err != nil {
		return err
	}
	interfaces := []string{netlab.UplinkDevice, netlab.OutsideDevice}
	for _, p := range append(s.lab.Clients, s.lab.Backends...) {
		interfaces = append(interfaces, p.HostDevice)
	}
	s.dataplane, err = stand.StartDataplane(ctx, s.mode, stand.Place{
		Bin: bin, Dir: dir, PinDir: filepath.Join(netlab.BPFFS(owner), "sluice"), Node: s.lab.Node, Interfaces: interfaces, Kubeconfig: kubeconfig,
	})
	return err
}

func isOf(p *netlab.Pod) func(netip.Addr) bool {
	return func(a netip.Addr) bool { return a == p.IP4 || a == p.IP6 }
}

// serve starts a backend's servers; their names are the backend's and the port.
func (s *side) serve(b *backend) error {
	var ns *netlab.Namespace
	switch {
	case b.host && b.node == stand.Node1:
		ns = s.lab.Node
	case b.host:
		ns = s.lab.Remote
	case b.node == stand.Node1:
		ns = s.lab.Backends[b.n].Namespace
	default:
		ns = s.remote[b.n].Namespace
	}
	var errs []error
	for _, port := range backendPorts {
		for _, proto := range []string{"tcp", "udp", "sctp"} {
			for _, f := range netlab.Families {
				_, err := stand.Serve(ns, fmt.Sprintf("%s:%d", b.name, port), proto, netip.AddrPortFrom(b.addr(f), uint16(port)))
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func (s *side) close() {
	if s.dataplane != nil {
		s.dataplane.Close()
	}
}
