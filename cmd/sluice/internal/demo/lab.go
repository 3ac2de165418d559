package demo

import (
	"net/netip"

	"github.com/sluice-net/sluice/internal/netlab"
)

// proto is one of the two transport protocols, with its Service.
type proto struct {
	network     string // as package net names it
	number      uint8
	service     string
	clusterIP   int    // its number in the address plan
	port        uint16 // of the Service
	backendPort uint16
}

var protos = []proto{
	{network: "tcp", number: 6, service: "echo-tcp", clusterIP: 1, port: 80, backendPort: 8080},
	{network: "udp", number: 17, service: "echo-udp", clusterIP: 2, port: 53, backendPort: 5353},
}

// addr is the Service's ClusterIP.
func (p *proto) addr(f netlab.Family) netip.Addr { return netlab.ClusterIP(f, p.clusterIP) }

// frontend is the Service's ClusterIP and port.
func (p *proto) frontend(f netlab.Family) netip.AddrPort {
	return netip.AddrPortFrom(p.addr(f), p.port)
}

// kind is a family and a protocol: exchanges of a kind are counted together.
type kind struct {
	family netlab.Family
	*proto
}

// kinds are all four.
func kinds() []kind {
	var all []kind
	for i := range protos {
		for _, f := range netlab.Families {
			all = append(all, kind{f, &protos[i]})
		}
	}
	return all
}

func (k kind) String() string { return k.network + " " + k.family.String() }

// backend is a pod that serves every kind, on a socket of its own for each.
type backend struct {
	*netlab.Pod
	label   string
	remote  bool
	servers map[kind]*netlab.EchoServer
}

// lab is the node and its surroundings.
type lab struct {
	*netlab.Cluster
	client   *netlab.Pod
	backends []*backend
}

// newLab builds it: a client, three backends, and a fourth on another node.
func newLab(s *netlab.Stand) *lab {
	l := &lab{Cluster: netlab.New(s).Cluster(netlab.ClusterOptions{Clients: 1, Backends: 3})}
	l.client = l.Clients[0]
	for _, p := range l.Backends {
		l.backends = append(l.backends, &backend{Pod: p, label: p.HostDevice})
	}
	l.backends = append(l.backends, &backend{Pod: l.RemoteBackend, label: "backend3", remote: true})
	for _, b := range l.backends {
		b.servers = map[kind]*netlab.EchoServer{}
		for _, k := range kinds() {
			local := b.AddrPort(k.family, k.backendPort)
			if k.network == "tcp" {
				b.servers[k] = b.EchoTCP(local)
			} else {
				b.servers[k] = b.EchoUDP(local)
			}
		}
	}
	return l
}

// devices are the node's devices that Sluice is to serve.
func (l *lab) devices() []string {
	names := []string{netlab.UplinkDevice, l.client.HostDevice}
	for _, p := range l.Backends {
		names = append(names, p.HostDevice)
	}
	return names
}

// namespaces are all that the lab consists of, by name.
func (l *lab) namespaces() []*netlab.Namespace {
	all := []*netlab.Namespace{l.Node, l.Remote, l.client.Namespace}
	for _, b := range l.backends {
		all = append(all, b.Namespace)
	}
	return all
}

// draw prints the picture.
func (l *lab) draw(p *printer) {
	p.line("   client0              this node                                       another node")
	p.line("  +---------+     +---------------------------------------------+     +----------------+")
	p.line("  |    eth0 |-----| client0          S l u i c e         uplink |-----| uplink         |")
	p.line("  +---------+     |                                             |     |                |")
	p.line("                  |   backend0       backend1       backend2    |     |    backend3    |")
	p.line("                  +------|--------------|--------------|--------+     +-------|--------+")
	p.line("                         |              |              |                      |")
	p.line("                  +------|-----+ +------|-----+ +------|-----+         +------|-----+")
	p.line("                  |     eth0   | |     eth0   | |     eth0   |         |     eth0   |")
	p.line("                  +------------+ +------------+ +------------+         +------------+")
	p.line("                     backend0       backend1       backend2               backend3")
	p.blank()
	p.line("  %-10s %-12s %s", l.client.HostDevice, l.client.IP4, l.client.IP6)
	for _, b := range l.backends {
		p.line("  %-10s %-12s %s", b.label, b.IP4, b.IP6)
	}
	p.blank()
	for i := range protos {
		r := &protos[i]
		p.line("  Service %s  %s:%d, [%s]:%d  ->  port %d of the four", r.service, r.addr(netlab.IPv4), r.port, r.addr(netlab.IPv6), r.port, r.backendPort)
	}
}
