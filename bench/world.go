package bench

import (
	"bytes"
	"fmt"
	"net/netip"

	"github.com/sluice-net/sluice/internal/netlab"
)

// Ports of every Service, and of its endpoints.
const (
	tcpPort        = 80
	udpPort        = 53
	tcpBackendPort = 8080
	udpBackendPort = 5353
	endpointsEach  = 4
)

// World is the set of Services that the peers serve: n of them, each with a TCP and
// a UDP port and four endpoints, the pods of the site. They are numbered from 1.
type World struct {
	Services int
	// Backends are the endpoints' addresses, the same for every Service.
	Backends []netip.Addr
	// Node is where the endpoints are.
	Node string
}

// ClusterIP is the address of Service n. The first of the range is the API server's
// own Service's.
func (w *World) ClusterIP(n int) netip.Addr { return netlab.ClusterIP(netlab.IPv4, n+1) }

// UDP and TCP are the frontends of Service n.
func (w *World) UDP(n int) netip.AddrPort { return netip.AddrPortFrom(w.ClusterIP(n), udpPort) }

// TCP is UDP's sister.
func (w *World) TCP(n int) netip.AddrPort { return netip.AddrPortFrom(w.ClusterIP(n), tcpPort) }

// Spare is the Service whose endpoints change while others are measured: the last.
func (w *World) Spare() int { return w.Services }

// changes reports whether the endpoints of Service n change in some workload.
func (w *World) changes(n int) bool { return n == 1 || n == w.Spare() }

func serviceName(n int) string { return fmt.Sprintf("s%05d", n) }

const worldNamespace = "bench"

// serviceManifest is the manifest of Service n, in JSON.
func (w *World) serviceManifest(n int) []byte {
	ip := w.ClusterIP(n)
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Service","metadata":{"name":%q,"namespace":%q},"spec":{"type":"ClusterIP","clusterIP":%q,"clusterIPs":[%q],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","ports":[{"name":"tcp","protocol":"TCP","port":%d,"targetPort":%d},{"name":"udp","protocol":"UDP","port":%d,"targetPort":%d}]}}`,
		serviceName(n), worldNamespace, ip, ip, tcpPort, tcpBackendPort, udpPort, udpBackendPort)
}

// sliceManifest is the EndpointSlice of Service n with these of its backends.
func (w *World) sliceManifest(n int, backends []netip.Addr) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":%q,"namespace":%q,"labels":{"kubernetes.io/service-name":%q}},"addressType":"IPv4","ports":[{"name":"tcp","protocol":"TCP","port":%d},{"name":"udp","protocol":"UDP","port":%d}],"endpoints":[`,
		serviceName(n), worldNamespace, serviceName(n), tcpBackendPort, udpBackendPort)
	for i, a := range backends {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"addresses":[%q],"nodeName":%q,"conditions":{"ready":true}}`, a, w.Node)
	}
	b.WriteString("]}")
	return b.Bytes()
}
