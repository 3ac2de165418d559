package config

import (
	"strings"
	"time"
)

// The identity of the configuration file.
const (
	APIVersion = "sluice.dev/v1alpha1"
	Kind       = "SluiceConfiguration"
)

// Duration is a time.Duration that is written as Go writes it, "250ms".
type Duration time.Duration

// String writes the duration as one types it: without the zero units of
// time.Duration and without its Greek letter.
func (d Duration) String() string {
	s := strings.Replace(time.Duration(d).String(), "µs", "us", 1)
	for _, zero := range []string{"m0s", "h0m"} {
		if n := len(s) - len(zero); n > 0 && s[n:] == zero {
			s = s[:n+1]
		}
	}
	return s
}

// Configuration is the daemon's configuration file. Where a field means what
// it means to kube-proxy, it has kube-proxy's name.
type Configuration struct {
	// APIVersion is the version of this file's form.
	APIVersion string `yaml:"apiVersion"`
	// Kind is the kind of this file.
	Kind string `yaml:"kind"`

	// Mode says which Services are served and who serves what is passed:
	// front (beside kube-proxy, which stays the fallback), named (only those
	// that carry serviceProxyName, which kube-proxy leaves alone) or alone (all
	// others, in kube-proxy's place).
	Mode string `yaml:"mode"`
	// ServiceProxyName is the value of the label
	// service.kubernetes.io/service-proxy-name that mode named serves.
	ServiceProxyName string `yaml:"serviceProxyName"`
	// HostnameOverride is this node's name in EndpointSlices, which decides
	// which endpoints are local. Empty: the host's name.
	HostnameOverride string `yaml:"hostnameOverride"`
	// Zone is this node's label topology.kubernetes.io/zone, which decides which
	// endpoints' zone hints are this node's. Empty: what the Node object says,
	// with source apiServer; otherwise none.
	Zone string `yaml:"zone"`
	// Interfaces choose the network devices to serve: of those that fit a device
	// the first decides. Devices are followed as they come, change and go. At least
	// one is needed, here or by --interface.
	Interfaces []Interface `yaml:"interfaces"`
	// Source is where Services come from: manifests or apiServer.
	Source string `yaml:"source"`
	// APIServer is the URL of the API server, in place of the one that
	// clientConnection.kubeconfig or the pod's environment names: a proxy of
	// ClusterIPs must not need one to start.
	APIServer string `yaml:"apiServer"`
	// ClientConnection says how the API server is talked to.
	ClientConnection ClientConnection `yaml:"clientConnection"`
	// MinSyncPeriod is the least time between two changes of what is programmed.
	// One that comes after a longer rest is programmed at once.
	MinSyncPeriod Duration `yaml:"minSyncPeriod"`
	// StateDir is the folder of the last known state of the API server, for a
	// start without it. Empty: none is kept.
	StateDir string `yaml:"stateDir"`
	// Manifests is the folder of Service and EndpointSlice manifests (YAML or
	// JSON), which is watched: an edit takes effect at once.
	Manifests string `yaml:"manifests"`
	// ServiceCIDR is the range that ClusterIPs come from, or one of each family,
	// separated by a comma, besides those of ServiceCIDR objects. A ClusterIP
	// outside is refused, and so is an endpoint inside. Empty: any address.
	ServiceCIDR string `yaml:"serviceCIDR"`
	// ClusterCIDR is the range of the pods' addresses, or one of each family,
	// separated by a comma.
	ClusterCIDR string `yaml:"clusterCIDR"`
	// DetectLocalMode says who is a pod: whose address is in the clusterCIDR
	// (ClusterCIDR) or in the Node's podCIDRs (NodeCIDR), who comes in by a port
	// of detectLocal.bridgeInterface (BridgeInterface) or by a device named with
	// detectLocal.interfaceNamePrefix (InterfaceNamePrefix). Flows of all others
	// are masqueraded: in front that is kube-proxy's, which gets them; in named
	// and alone the backend sees the node's address.
	DetectLocalMode string `yaml:"detectLocalMode"`
	// DetectLocal belongs to detectLocalMode.
	DetectLocal DetectLocal `yaml:"detectLocal"`
	// MasqueradeAll masquerades every flow.
	MasqueradeAll bool `yaml:"masqueradeAll"`
	// NetworkPolicy says what is done about pods that a NetworkPolicy selects:
	// honour (their flows, and Services with one of them on this node, are left
	// to kube-proxy in front and refused in named and alone) or enforcedElsewhere
	// (served like any other, because policy is enforced on the pod's own side).
	NetworkPolicy string `yaml:"networkPolicy"`
	// AffinityCapacity is how many clients of Services with sessionAffinity
	// ClientIP are remembered.
	AffinityCapacity int `yaml:"affinityCapacity"`
	// Selection is how a new flow's backend is chosen: consistent (a keyed hash
	// of the flow, the same after a restart), random or roundRobin.
	Selection string `yaml:"selection"`

	// Workers is the number of packet loops. 0: half the processors, at least
	// one.
	Workers int `yaml:"workers"`
	// WorkerMode is what a worker does while it has no packets: adaptive (it spins
	// for busySpin, then sleeps), busy (it spins for ever: the least latency, and a
	// processor for each worker) or interrupt (it sleeps at once).
	WorkerMode string `yaml:"workerMode"`
	// WorkerCPUs are the processors that the workers are pinned to, in turn, such
	// as 2,4-6. Empty: wherever the kernel wants them.
	WorkerCPUs string `yaml:"workerCPUs"`
	// BusySpin is how long an adaptive worker without traffic spins before it
	// sleeps: latency against processor time.
	BusySpin Duration `yaml:"busySpin"`
	// FragmentWait is how long the fragments of a datagram wait for the first of
	// it, which alone has the ports; then they are the kernel's. 0s: 1s, and 20ms
	// in mode front, where the first may have been the kernel's.
	FragmentWait Duration `yaml:"fragmentWait"`
	// Frames is the number of frames of packet memory, which is locked. 0:
	// enough for every queue of every interface.
	Frames int `yaml:"frames"`
	// FrameSize is the size of a frame in bytes: 2048 or 4096. A packet must
	// fit into one frame.
	FrameSize int `yaml:"frameSize"`
	// RingSize is the number of descriptors in each of a socket's four rings, a
	// power of two.
	RingSize int `yaml:"ringSize"`
	// FlowTable is the table of known flows.
	FlowTable FlowTable `yaml:"flowTable"`
	// Conntrack is how long a flow without traffic is remembered.
	Conntrack Conntrack `yaml:"conntrack"`
	// Heartbeat is what the kernel does when the daemon hangs or is away.
	Heartbeat Heartbeat `yaml:"heartbeat"`

	// OnExit is what is left when the daemon stops: remove (nothing) or keep
	// (programs, flow table and return port, which a restart adopts; connections
	// live through an update).
	OnExit string `yaml:"onExit"`
	// PinPath is the folder on a bpffs where onExit keep pins programs and the
	// flow table. With onExit remove nothing is pinned, and a daemon that is
	// killed takes its programs with it.
	PinPath string `yaml:"pinPath"`
	// RunDir is the folder of the lock that keeps a second instance out.
	RunDir string `yaml:"runDir"`
	// DropPrivileges takes all capabilities but BPF, NET_ADMIN and NET_RAW from the
	// daemon once it is set up.
	DropPrivileges bool `yaml:"dropPrivileges"`
	// ReturnPort is the first part of the names of the return port's two
	// devices, "-out" and "-in".
	ReturnPort string `yaml:"returnPort"`
	// ReplaceForeignXDP allows an XDP program that is not Sluice's to be thrown
	// off an interface.
	ReplaceForeignXDP bool `yaml:"replaceForeignXDP"`

	// HealthzBindAddress is where /livez, /readyz and /healthz answer. Empty:
	// nowhere. The port is not kube-proxy's 10256, for the two run side by side.
	HealthzBindAddress string `yaml:"healthzBindAddress"`
	// MetricsBindAddress is where /metrics answers. Empty: nowhere. The port is
	// not kube-proxy's 10249.
	MetricsBindAddress string `yaml:"metricsBindAddress"`
	// BindAddressHardFail makes an address that cannot be bound fatal. Otherwise
	// it is logged and tried again every five seconds.
	BindAddressHardFail bool `yaml:"bindAddressHardFail"`
	// EnableProfiling serves /debug/pprof/ beside /metrics, which must then be
	// on loopback.
	EnableProfiling bool `yaml:"enableProfiling"`
	// Logging is what is logged, and how.
	Logging Logging `yaml:"logging"`
	// Debug is for finding faults in Sluice itself.
	Debug Debug `yaml:"debug"`
}

// ClientConnection says how the API server is talked to.
type ClientConnection struct {
	// Kubeconfig is a file with address and credentials. Empty: the service
	// account of the pod.
	Kubeconfig string `yaml:"kubeconfig"`
	// ContentType is how objects are sent: application/vnd.kubernetes.protobuf or
	// application/json.
	ContentType string `yaml:"contentType"`
	// QPS is how many requests a second are sent at most in the long run. -1: no
	// limit.
	QPS int `yaml:"qps"`
	// Burst is how many requests may be sent at once.
	Burst int `yaml:"burst"`
}

// DetectLocal names devices of pods.
type DetectLocal struct {
	// BridgeInterface is the bridge of the pods.
	BridgeInterface string `yaml:"bridgeInterface"`
	// InterfaceNamePrefix is what the names of the pods' devices begin with.
	InterfaceNamePrefix string `yaml:"interfaceNamePrefix"`
}

// Interface chooses network devices to serve.
type Interface struct {
	// Name is the device's name, or a pattern of names such as veth*. Empty: any.
	// A device named without a pattern must be there at the start.
	Name string `yaml:"name"`
	// Driver is the device's driver, as ethtool -i has it. Empty: any.
	Driver string `yaml:"driver"`
	// Role is what the device is on its node: pods (it leads into a pod or a
	// guest), uplinks (hardware, and what a route with a gateway leaves by) or
	// tunnels (VXLAN, GENEVE, GRE). Empty: any.
	Role string `yaml:"role"`
	// Kind is how it is served: auto (native for hardware, steered for what the
	// kernel makes), steered (a tc program; pods keep their offloads), native (XDP
	// in the driver; fewer hops, but it takes segmentation offload from a pod),
	// generic (XDP without the driver) or none (not at all, whatever comes after).
	Kind string `yaml:"kind"`
}

// FlowTable is the table of known flows.
type FlowTable struct {
	// Capacity is the number of flows the table holds, both directions of each.
	Capacity int `yaml:"capacity"`
	// MaxPerClient is the number of flows that one client address may have. 0:
	// no limit.
	MaxPerClient int `yaml:"maxPerClient"`
	// ResetGoneBackends answers the next packet of an established TCP connection
	// whose backend no longer serves with a reset. Otherwise such a connection is
	// kept to its end.
	ResetGoneBackends bool `yaml:"resetGoneBackends"`
}

// Conntrack is how long a flow without traffic is remembered.
type Conntrack struct {
	// TCPOpeningTimeout is the time for a TCP connection's handshake, which
	// kube-proxy leaves to the kernel.
	TCPOpeningTimeout Duration `yaml:"tcpOpeningTimeout"`
	// TCPEstablishedTimeout is the time for an established TCP connection.
	TCPEstablishedTimeout Duration `yaml:"tcpEstablishedTimeout"`
	// TCPCloseWaitTimeout is the time for a TCP connection that one side has
	// closed.
	TCPCloseWaitTimeout Duration `yaml:"tcpCloseWaitTimeout"`
	// TCPClosingTimeout is the time for a TCP connection that both sides have
	// closed or one has reset.
	TCPClosingTimeout Duration `yaml:"tcpClosingTimeout"`
	// UDPTimeout is the time for a UDP flow that nobody has answered, or that was
	// over within two seconds, as questions to a resolver are.
	UDPTimeout Duration `yaml:"udpTimeout"`
	// UDPStreamTimeout is the time for a UDP flow that was answered and is still
	// going two seconds after its first packet.
	UDPStreamTimeout Duration `yaml:"udpStreamTimeout"`
}

// Heartbeat is what the kernel does when the daemon hangs or is away.
type Heartbeat struct {
	// StaleAfter is the age of the last heartbeat at which new flows pass to the
	// kernel.
	StaleAfter Duration `yaml:"staleAfter"`
	// HoldKnown is how long after the last heartbeat the packets of known flows
	// are held back for a restart before they too pass.
	HoldKnown Duration `yaml:"holdKnown"`
}

// Logging is what is logged, and how.
type Logging struct {
	// Level is the least important level that is logged: debug, info, warn or
	// error.
	Level string `yaml:"level"`
	// Format is text, json, or auto: text on a terminal, json elsewhere.
	Format string `yaml:"format"`
}

// Debug is for finding faults in Sluice itself.
type Debug struct {
	// FrameOwnership verifies after every batch that each frame of packet memory
	// has exactly one owner. Slow.
	FrameOwnership bool `yaml:"frameOwnership"`
}

// Default is the configuration of a daemon that is told nothing. It is the
// only place where defaults are written.
func Default() *Configuration {
	return &Configuration{
		APIVersion: APIVersion,
		Kind:       Kind,
		Mode:       "front",

		ServiceProxyName: "sluice",
		Source:           "manifests",
		ClientConnection: ClientConnection{ContentType: "application/vnd.kubernetes.protobuf", QPS: 5, Burst: 10},
		MinSyncPeriod:    Duration(100 * time.Millisecond),
		StateDir:         "/var/lib/sluice",
		DetectLocalMode:  "ClusterCIDR",
		NetworkPolicy:    "honour",
		AffinityCapacity: 65536,
		Manifests:        "/etc/sluice/manifests",
		Selection:        "consistent",
		WorkerMode:       "adaptive",
		BusySpin:         Duration(50 * time.Microsecond),
		FrameSize:        4096,
		RingSize:         2048,
		FlowTable:        FlowTable{Capacity: 65536},
		Conntrack: Conntrack{
			TCPOpeningTimeout:     Duration(2 * time.Minute),
			TCPEstablishedTimeout: Duration(24 * time.Hour),
			TCPCloseWaitTimeout:   Duration(time.Hour),
			TCPClosingTimeout:     Duration(4 * time.Minute),
			UDPTimeout:            Duration(30 * time.Second),
			UDPStreamTimeout:      Duration(2 * time.Minute),
		},
		Heartbeat: Heartbeat{
			StaleAfter: Duration(250 * time.Millisecond),
			HoldKnown:  Duration(3 * time.Second),
		},
		OnExit:             "remove",
		PinPath:            "/sys/fs/bpf/sluice",
		RunDir:             "/run/sluice",
		DropPrivileges:     true,
		ReturnPort:         "sluice",
		HealthzBindAddress: "127.0.0.1:10356",
		MetricsBindAddress: "127.0.0.1:10349",
		Logging:            Logging{Level: "info", Format: "auto"},
	}
}

// defaultKind is the kind of an interface that names none.
const defaultKind = "auto"

// Pins is the folder to pin in, "" for no pins.
func (c *Configuration) Pins() string {
	if c.OnExit == "keep" {
		return c.PinPath
	}
	return ""
}
