package bench

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

// Topology says where the backends are.
type Topology string

const (
	// Local: client and backends on one node, a veth pair each.
	Local Topology = "local"
	// Remote: the backend is on another node, behind a veth uplink.
	Remote Topology = "remote-veth"
	// RemoteVXLAN: the same, with a VXLAN tunnel between the nodes.
	RemoteVXLAN Topology = "remote-vxlan"
)

// vxlanDevice is the tunnel's device in both nodes' namespaces.
const vxlanDevice = "vxlan0"

// Flows differ in the client's address, up to 2^flowBits of them, and then in its
// port. The client owns all of clientRange without configuring each.
const (
	flowBits    = 15
	clientRange = "198.18.128.0/17"
	firstPort   = 20000
)

// Site is one peer's own lab, on which nobody else has traffic.
type Site struct {
	Topology Topology
	*netlab.Cluster
	Client *netlab.Pod
	World  *World
	// Sinks are the pods that the Services' endpoints are.
	Sinks []*netlab.Pod
	// Flows is how many flows the peers' tables must have room for at least.
	Flows int
	// API gives the API server that holds the world, and starts it if nobody has.
	API func(context.Context) (*API, error)
	// Dir is a folder for a peer's files.
	Dir string

	stand *netlab.Stand
}

// flowCapacity is what a peer that has to be told is told.
func (s *Site) flowCapacity() int { return max(sluiceFlows, 2*s.Flows) }

// backendMTU is what fits the way to the backends.
func (s *Site) backendMTU() int {
	if s.Topology == RemoteVXLAN {
		return 1450
	}
	return 1500
}

// newSite builds a lab for a world of n Services.
func newSite(name string, topology Topology, services int, log *slog.Logger) (_ *Site, err error) {
	s := &Site{Topology: topology, stand: netlab.NewStand(name, func(line string) { log.Warn(line) })}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.Dir, err = os.MkdirTemp("", "sluice-bench-"); err != nil {
		return nil, err
	}
	s.stand.Cleanup(func() { os.RemoveAll(s.Dir) })
	err = s.stand.Run(func() error {
		s.build(services)
		return nil
	})
	return s, err
}

func (s *Site) build(services int) {
	netlab.RequireRoot(s.stand)
	s.Cluster = netlab.New(s.stand).Cluster(netlab.ClusterOptions{Clients: 1, Backends: endpointsEach})
	s.Client = s.Clients[0]
	s.World = &World{Services: services, Node: "node"}
	if s.Topology == Local {
		s.Sinks = s.Backends
	} else {
		s.Sinks = []*netlab.Pod{s.RemoteBackend}
		s.World.Node = "remote"
	}
	for _, p := range s.Sinks {
		s.World.Backends = append(s.World.Backends, p.IP4)
	}
	if s.Topology == RemoteVXLAN {
		s.tunnel()
	}

	// The client's many addresses. Its node knows one neighbour for all of them.
	lo, err := s.Client.Handle().LinkByName("lo")
	s.must(err, "finding the client's lo")
	s.must(s.Client.Handle().RouteAdd(&netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: ipNet(clientRange), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
	}), "giving the client its addresses")
	s.Node.Route(clientRange, s.Client.IP4.String(), s.Client.HostDevice)
	back := netlab.UplinkDevice
	if s.Topology == RemoteVXLAN {
		back = vxlanDevice
	}
	s.Remote.Route(clientRange, nodeAddr(1), back)
	// Nobody's first packet is to wait for ARP.
	for _, p := range append(slices.Clone(s.Backends), s.Client, s.RemoteBackend) {
		p.Neighbour(netlab.PodDevice, netlab.Gateway4, p.Node.MAC(p.HostDevice))
		p.Node.Neighbour(p.HostDevice, p.IP4.String(), p.MAC(netlab.PodDevice))
	}
	s.Node.Neighbour(netlab.UplinkDevice, nodeAddr(2), s.Remote.MAC(netlab.UplinkDevice))
	s.Remote.Neighbour(netlab.UplinkDevice, nodeAddr(1), s.Node.MAC(netlab.UplinkDevice))
}

// tunnel puts a VXLAN between the nodes and sends the pods' packets through it.
func (s *Site) tunnel() {
	for i, n := range []*netlab.Namespace{s.Node, s.Remote} {
		self, other := i+1, 2-i
		uplink, err := n.Handle().LinkByName(netlab.UplinkDevice)
		s.must(err, "finding the uplink")
		la := netlink.NewLinkAttrs()
		la.Name, la.MTU = vxlanDevice, s.backendMTU()
		la.HardwareAddr = tunnelMAC(self)
		s.must(n.Handle().LinkAdd(&netlink.Vxlan{
			LinkAttrs: la, VxlanId: 1, VtepDevIndex: uplink.Attrs().Index, Port: 4789,
			SrcAddr: net.ParseIP(nodeAddr(self)), Group: net.ParseIP(nodeAddr(other)),
		}), "making the tunnel")
		n.Up(vxlanDevice)
		n.Neighbour(vxlanDevice, nodeAddr(other), tunnelMAC(other))
		n.Route(netlab.PodSubnet(netlab.IPv4, other).String(), nodeAddr(other), vxlanDevice)
	}
}

func tunnelMAC(node int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0x5e, 0, 2, byte(node)} }

func nodeAddr(node int) string { return netlab.NodeAddr(netlab.IPv4, node).String() }

// ServedDevices are the node's devices between client and backends.
func (s *Site) ServedDevices() []string {
	names := []string{s.Client.HostDevice}
	switch s.Topology {
	case Local:
		for _, p := range s.Backends {
			names = append(names, p.HostDevice)
		}
	case Remote:
		names = append(names, netlab.UplinkDevice)
	case RemoteVXLAN:
		names = append(names, vxlanDevice)
	}
	return names
}

// clientAddr and clientPort are the source of flow n.
func clientAddr(flow uint32) netip.Addr {
	base := clientBase
	base[2] |= byte(flow >> 8 & 0x7f)
	base[3] = byte(flow)
	return netip.AddrFrom4(base)
}

func clientPort(flow uint32) uint16 { return firstPort + uint16(flow>>flowBits) }

var clientBase = netip.MustParsePrefix(clientRange).Addr().As4()

// must ends the building on an error.
func (s *Site) must(err error, what string) {
	if err != nil {
		s.stand.Fatalf("%s: %v", what, err)
	}
}

// Run runs what builds in the lab and gives its error.
func (s *Site) Run(f func() error) error { return s.stand.Run(f) }

// Close takes the lab down.
func (s *Site) Close() error { return s.stand.Clear() }

func ipNet(cidr string) *net.IPNet {
	p := netip.MustParsePrefix(cidr)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
