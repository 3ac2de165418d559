//go:build linux

package netlab

import (
	"net"
	"net/netip"
	"strconv"
)

// ClusterOptions size a [Cluster]. The zero value is one client, two backends and the remote one.
type ClusterOptions struct {
	Clients  int  // client pods; 0: 1
	Backends int  // backend pods on the node; 0: 2
	Queues   int  // of each device; 0: 1
	MTU      int  // of each device; 0: 1500
	Outside  bool // a host outside of the cluster, to which the node has its default route
}

func (o ClusterOptions) withDefaults() ClusterOptions {
	if o.Clients == 0 {
		o.Clients = 1
	}
	if o.Backends == 0 {
		o.Backends = 2
	}
	return o
}

// Cluster is the standard topology:
//
//	client0 .. clientN   backend0 .. backendM               remote backend
//	   eth0                 eth0                                eth0
//	     |                    |                                   |
//	  client0 ..           backend0 ..                         backend0
//	  +----------- node (router) -----------+ uplink   uplink +-- remote (router) --+
//	                   |                      192.0.2.1 .2
//	                outside, if asked for: 203.0.113.1; the host beyond is .2
//
// Pods have one address of each family (/32, /128) and a default route to the node, through a link-local gateway
// address that every host end has. The node has a route to each pod over its device, and over the uplink to the remote
// node's pods. ClusterIPs are routed nowhere: a pod sends them to the node, which has no answer of its own; with an
// outside host the node's default route leads them out there, where a capture sees what should never get that far.
// Offloads are what the kernel makes them.
type Cluster struct {
	Lab *Lab

	Node    *Namespace
	Remote  *Namespace // the other node
	Outside *Namespace // nil unless asked for

	Clients       []*Pod
	Backends      []*Pod
	RemoteBackend *Pod

	wire VethOptions
	made [remoteNode + 1]int // pods of each node
}

// Names of devices in the nodes' namespaces.
const (
	UplinkDevice  = "uplink"
	OutsideDevice = "outside"
	PodDevice     = "eth0" // in each pod
)

// The two nodes' numbers in the address plan.
const (
	localNode  = 1
	remoteNode = 2
)

// Pod is a pod's namespace and its place on its node.
type Pod struct {
	*Namespace
	Node       *Namespace
	HostDevice string // the node's end of its wire
	IP4, IP6   netip.Addr
}

// IP returns the pod's address.
func (p *Pod) IP(f Family) netip.Addr {
	if f == IPv4 {
		return p.IP4
	}
	return p.IP6
}

// AddrPort returns the pod's address with a port.
func (p *Pod) AddrPort(f Family, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(p.IP(f), port)
}

// EchoOn serves UDP and TCP echo on a port of both addresses.
func (p *Pod) EchoOn(port uint16) (tcp, udp *EchoServer) {
	p.tb.Helper()
	any := netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	return p.EchoTCP(any), p.EchoUDP(any)
}

// Cluster builds the standard topology.
func (l *Lab) Cluster(o ClusterOptions) *Cluster {
	l.tb.Helper()
	o = o.withDefaults()
	if pods := o.Clients + o.Backends; pods > maxHost {
		l.tb.Fatalf("making a cluster: %d pods on a node, want at most %d", pods, maxHost)
	}
	c := &Cluster{Lab: l, Node: l.Namespace("node"), Remote: l.Namespace("remote")}
	wire := VethOptions{Queues: o.Queues, MTU: o.MTU}

	for _, node := range []*Namespace{c.Node, c.Remote} {
		node.Sysctl("net.ipv4.ip_forward", "1")
		node.Sysctl("net.ipv6.conf.all.forwarding", "1")
	}
	l.Veth(c.Node, UplinkDevice, c.Remote, UplinkDevice, wire)
	for _, f := range Families {
		local, remote := NodeAddr(f, localNode), NodeAddr(f, remoteNode)
		bits := netip.MustParsePrefix(nodePrefix(f)).Bits()
		c.Node.Addr(UplinkDevice, cidr(local, bits))
		c.Remote.Addr(UplinkDevice, cidr(remote, bits))
		c.Node.Route(PodSubnet(f, remoteNode).String(), remote.String(), UplinkDevice)
		c.Remote.Route(PodSubnet(f, localNode).String(), local.String(), UplinkDevice)
	}

	c.wire = wire
	for i := range o.Clients {
		c.Clients = append(c.Clients, c.AddPod("client"+strconv.Itoa(i), localNode))
	}
	for i := range o.Backends {
		c.Backends = append(c.Backends, c.AddPod("backend"+strconv.Itoa(i), localNode))
	}
	c.RemoteBackend = c.AddPod("backend0", remoteNode)

	if o.Outside {
		c.Outside = l.Namespace("outside")
		l.Veth(c.Node, OutsideDevice, c.Outside, PodDevice, wire)
		for _, f := range Families {
			bits := netip.MustParsePrefix(outsidePrefix(f)).Bits()
			c.Node.Addr(OutsideDevice, cidr(OutsideAddr(f, 1), bits))
			c.Outside.Addr(PodDevice, cidr(OutsideAddr(f, 2), bits))
			c.Node.Route(everything(f), OutsideAddr(f, 2).String(), OutsideDevice)
			c.Outside.Route(everything(f), OutsideAddr(f, 1).String(), PodDevice)
		}
	}
	return c
}

// AddPod makes another pod on a node: 1 is the node, 2 the remote one. Its name is also that of the host end of its wire. Not
// for concurrent use.
func (c *Cluster) AddPod(name string, node int) *Pod {
	c.Lab.tb.Helper()
	mustFit("node", node, localNode, remoteNode)
	c.made[node]++
	mac := net.HardwareAddr{0x02, 0x00, 0x5e, byte(node), 0x00, byte(c.made[node])}
	on := c.Node
	if node == remoteNode {
		on = c.Remote
	}
	return c.Lab.pod(name, on, node, c.made[node], c.wire, mac)
}

// pod makes the n-th pod of a node. The host end's name is the pod's.
func (l *Lab) pod(name string, node *Namespace, number, n int, wire VethOptions, mac net.HardwareAddr) *Pod {
	l.tb.Helper()
	p := &Pod{
		Namespace:  l.Namespace(name),
		Node:       node,
		HostDevice: name,
		IP4:        PodAddr(IPv4, number, n),
		IP6:        PodAddr(IPv6, number, n),
	}
	wire.AMAC = append(net.HardwareAddr(nil), mac...)
	wire.AMAC[4] = 0x01 // the host end
	wire.BMAC = mac
	l.Veth(node, p.HostDevice, p.Namespace, PodDevice, wire)
	for _, f := range Families {
		ip := p.IP(f)
		gateway, hostBits := gateway(f), ip.BitLen()
		node.Addr(p.HostDevice, cidr(gateway, gatewayBits(f)))
		// The node speaks to its pods from its own address, not from the gateway's.
		node.Route(cidr(ip, hostBits), "", p.HostDevice, NodeAddr(f, number).String())
		p.Addr(PodDevice, cidr(ip, hostBits))
		p.Route(everything(f), gateway.String(), PodDevice)
	}
	return p
}

func cidr(a netip.Addr, bits int) string { return netip.PrefixFrom(a, bits).String() }

func everything(f Family) string {
	if f == IPv4 {
		return "0.0.0.0/0"
	}
	return "::/0"
}

func gateway(f Family) netip.Addr {
	if f == IPv4 {
		return netip.MustParseAddr(Gateway4)
	}
	return netip.MustParseAddr(Gateway6)
}

// gatewayBits: an IPv6 link-local address keeps its /64, without which the pods' own link-local ones were unreachable.
func gatewayBits(f Family) int {
	if f == IPv4 {
		return 32
	}
	return 64
}

func nodePrefix(f Family) string {
	if f == IPv4 {
		return NodePrefix4
	}
	return NodePrefix6
}

func outsidePrefix(f Family) string {
	if f == IPv4 {
		return OutsidePrefix4
	}
	return OutsidePrefix6
}
