package dataplane

import (
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/sluice-net/sluice/flowtable"
)

// Mode says which Services are served and who serves what Sluice passes.
type Mode uint8

const (
	// ModeFront serves the Services that kube-proxy serves too. Connections
	// that the kernel already owns stay the kernel's, and everything is the
	// kernel's while Sluice is away.
	ModeFront Mode = iota
	// ModeAlone serves every Service in kube-proxy's place.
	ModeAlone
	// ModeNamed serves Services that kube-proxy leaves to it. Nobody else serves
	// those, so it treats what it serves as ModeAlone does.
	ModeNamed
)

// String gives the mode's word in configuration.
func (m Mode) String() string {
	switch m {
	case ModeFront:
		return "front"
	case ModeAlone:
		return "alone"
	case ModeNamed:
		return "named"
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// ParseMode reads a mode's word.
func ParseMode(s string) (Mode, error) {
	switch s {
	case "front":
		return ModeFront, nil
	case "alone":
		return ModeAlone, nil
	case "named":
		return ModeNamed, nil
	}
	return 0, fmt.Errorf("mode %q is not one of front, alone, named", s)
}

// PortKind is how a device is served.
type PortKind uint8

const (
	// KindAuto is native for a device with hardware of its own, and steered
	// for what the kernel makes: veth, bridge, tunnel.
	KindAuto PortKind = iota
	// KindSteered runs the classifier as a tc program, which sends what it
	// picks to the return port. The device keeps its offloads.
	KindSteered
	// KindNative runs it as XDP in the driver, with a socket for each queue.
	KindNative
	// KindGeneric runs it as XDP on the skb, likewise, for a driver without XDP.
	KindGeneric
	// KindNone is not served.
	KindNone
)

var kindWords = []string{"auto", "steered", "native", "generic", "none"}

// String gives the kind's word in configuration.
func (k PortKind) String() string {
	if int(k) < len(kindWords) {
		return kindWords[k]
	}
	return fmt.Sprintf("PortKind(%d)", uint8(k))
}

// ParsePortKind reads a kind's word; the empty string is auto.
func ParsePortKind(s string) (PortKind, error) {
	if s == "" {
		return KindAuto, nil
	}
	if i := slices.Index(kindWords, s); i >= 0 {
		return PortKind(i), nil
	}
	return 0, fmt.Errorf("kind %q is not one of %s", s, strings.Join(kindWords, ", "))
}

// WorkerMode is what a worker does while it has no frames.
type WorkerMode uint8

const (
	// WorkerAdaptive spins for a while (BusySpin), then sleeps.
	WorkerAdaptive WorkerMode = iota
	// WorkerBusy spins for ever: the least latency, a processor for each worker.
	WorkerBusy
	// WorkerInterrupt sleeps at once.
	WorkerInterrupt
)

var workerWords = []string{"adaptive", "busy", "interrupt"}

// String gives the mode's word in configuration.
func (m WorkerMode) String() string {
	if int(m) < len(workerWords) {
		return workerWords[m]
	}
	return fmt.Sprintf("WorkerMode(%d)", uint8(m))
}

// ParseWorkerMode reads a mode's word.
func ParseWorkerMode(s string) (WorkerMode, error) {
	if i := slices.Index(workerWords, s); i >= 0 {
		return WorkerMode(i), nil
	}
	return 0, fmt.Errorf("worker mode %q is not one of %s", s, strings.Join(workerWords, ", "))
}

// OnExit says what Close leaves behind.
type OnExit uint8

const (
	// OnExitRemove leaves nothing: no program, pin, device, rule or route.
	OnExitRemove OnExit = iota
	// OnExitKeep leaves what a restart adopts: programs, maps and the flow
	// table pinned in PinDir, and the return port.
	OnExitKeep
)

// String gives the word in configuration.
func (o OnExit) String() string {
	if o == OnExitKeep {
		return "keep"
	}
	return "remove"
}

// ParseOnExit reads the word.
func ParseOnExit(s string) (OnExit, error) {
	switch s {
	case "remove":
		return OnExitRemove, nil
	case "keep":
		return OnExitKeep, nil
	}
	return 0, fmt.Errorf("onExit %q is not one of remove, keep", s)
}

// PortConfig chooses devices to be served, and says how. What is left empty fits any.
type PortConfig struct {
	// Name is a device's, or a pattern of names as filepath.Match has it. A device
	// named without a pattern must be there when Open is called, and servable;
	// of the others one that cannot be served is reported and left alone.
	Name   string
	Driver string // as ethtool -i has it
	Role   Role
	Kind   PortKind
}

// Config is what Open needs. The zero value of every field but Ports has a
// documented default.
type Config struct {
	Mode Mode
	// Ports choose the devices to be served: of those that fit one, the first
	// decides. Devices are followed while they come, change and go.
	Ports []PortConfig

	// Workers is the number of packet loops; 0 is half the processors, at
	// least one.
	Workers int
	// Frames is the number of umem frames; 0 is enough for the fill ring of
	// every receive queue that there is when Open is called and, if direct
	// ports may come later, for four more, and for every worker's caches.
	Frames int
	// FrameSize is the size of a umem frame in bytes: 4096, or 2048.
	FrameSize int
	// RingSize is the number of descriptors of each of a socket's rings, a
	// power of two. 0 is 2048: three milliseconds at 0.7 million frames a
	// second, which is what a preempted worker costs.
	RingSize int
	// FlowCapacity is the number of flows the table holds; 0 is 65536.
	FlowCapacity int
	// PinDir is the folder on a bpffs where maps and links are pinned. Only
	// OnExitKeep needs it; empty pins nothing, and then a process that dies
	// takes its programs with it.
	PinDir string
	OnExit OnExit
	// ReturnPort is the first part of the names of the return port's two
	// ends, "-out" and "-in"; empty is "sluice".
	ReturnPort string
	// HeartbeatStale is the age at which a worker's heartbeat means that the
	// daemon hangs and new flows are the kernel's; 0 is 250 ms.
	HeartbeatStale time.Duration
	// HoldKnown is how long after the last heartbeat the frames of known
	// flows are held back for a restart before they too pass; 0 is 3 s.
	HoldKnown time.Duration
	// FragmentWait is how long a fragment waits for the first of its datagram, which
	// alone has the ports; 0 is a second, and 20 ms in ModeFront, where the first may
	// have been the kernel's.
	FragmentWait time.Duration
	// MaxFlowsPerClient is how many flows one client address may have; 0 is no
	// limit.
	MaxFlowsPerClient int
	// ResetGoneBackends answers the next packet of a TCP connection whose
	// backend no longer serves with a reset. Otherwise the connection is kept
	// to its end, as the kernel's own rules would.
	ResetGoneBackends bool
	// AffinityCapacity is how many clients of Services with ClientIP affinity
	// are remembered; 0 is 65536.
	AffinityCapacity int
	// Masquerade says whose flows get the node's own address as their source.
	Masquerade Masquerade
	// Timeouts of flows; zero values are the flow table's defaults.
	Timeouts flowtable.Timeouts
	// ReplaceForeignXDP allows a program that is not ours to be replaced.
	ReplaceForeignXDP bool
	WorkerMode        WorkerMode
	// BusySpin is how long an adaptive worker without traffic spins before it
	// sleeps; 0 is 50 µs, negative is not at all.
	BusySpin time.Duration
	// CPUs are the processors that the workers are pinned to, in turn. Empty:
	// wherever the kernel wants them.
	CPUs []int
	// Debug follows every frame from owner to owner; Audit says what came of it.
	Debug bool
}

// withDefaults fills what is zero.
func (c Config) withDefaults() Config {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.Workers, max(1, runtime.NumCPU()/2))
	def(&c.FrameSize, 4096)
	def(&c.RingSize, 2048)
	def(&c.FlowCapacity, 65536)
	def(&c.AffinityCapacity, 65536)
	if c.ReturnPort == "" {
		c.ReturnPort = "sluice"
	}
	if c.HeartbeatStale == 0 {
		c.HeartbeatStale = 250 * time.Millisecond
	}
	if c.HoldKnown == 0 {
		c.HoldKnown = 3 * time.Second
	}
	if c.FragmentWait == 0 {
		c.FragmentWait = waitForFirst
		if c.Mode == ModeFront {
			c.FragmentWait = waitForFirstFront
		}
	}
	if c.BusySpin == 0 {
		c.BusySpin = 50 * time.Microsecond
	}
	return c
}

// validate refuses what cannot work, naming the field.
func (c Config) validate() error {
	if len(c.Ports) == 0 {
		return fmt.Errorf("no ports: name at least one interface to serve")
	}
	if len(c.Ports) > maxPorts-1 {
		return fmt.Errorf("%d interfaces: at most %d can be served", len(c.Ports), maxPorts-1)
	}
	seen := map[PortConfig]bool{}
	for _, p := range c.Ports {
		if p.Name == "" && p.Driver == "" && p.Role == RoleAny {
			return fmt.Errorf("an interface without a name, a driver or a role")
		}
		if _, err := filepath.Match(p.Name, ""); err != nil {
			return fmt.Errorf("interface %q: not a pattern of names: %w", p.Name, err)
		}
		kind := p.Kind
		if p.Kind = KindAuto; seen[p] {
			return fmt.Errorf("interface %s is named twice", p.Name)
		}
		seen[p] = true
		if kind > KindNone {
			return fmt.Errorf("interface %s: unknown kind %d", p.Name, kind)
		}
	}
	if c.Workers < 1 || c.Workers > maxWorkers {
		return fmt.Errorf("workers %d: must be 1 to %d", c.Workers, maxWorkers)
	}
	if c.WorkerMode > WorkerInterrupt {
		return fmt.Errorf("unknown worker mode %d", c.WorkerMode)
	}
	for _, cpu := range c.CPUs {
		if cpu < 0 || cpu >= 1024 {
			return fmt.Errorf("cpu %d: must be 0 to 1023", cpu)
		}
	}
	if c.FrameSize != 2048 && c.FrameSize != 4096 {
		return fmt.Errorf("frameSize %d: must be 2048 or 4096", c.FrameSize)
	}
	if c.RingSize < batchSize || c.RingSize > 32768 || c.RingSize&(c.RingSize-1) != 0 {
		return fmt.Errorf("ringSize %d: must be a power of two from %d to 32768", c.RingSize, batchSize)
	}
	if c.FlowCapacity < 1 || c.FlowCapacity > 1<<26 {
		return fmt.Errorf("flow capacity %d: must be 1 to %d", c.FlowCapacity, 1<<26)
	}
	if c.MaxFlowsPerClient < 0 {
		return fmt.Errorf("flows per client %d: must be 0, for no limit, or more", c.MaxFlowsPerClient)
	}
	if c.OnExit == OnExitKeep && c.PinDir == "" {
		return fmt.Errorf("onExit keep needs a pin folder on a bpffs")
	}
	if len(c.ReturnPort) > 11 {
		return fmt.Errorf("return port name %q: at most 11 characters, for a device name has 15", c.ReturnPort)
	}
	if c.HeartbeatStale < 100*time.Millisecond {
		return fmt.Errorf("heartbeat staleAfter %v: must be at least 100ms, two and a half times a sleeping worker's beat", c.HeartbeatStale)
	}
	if c.FragmentWait < 0 || c.FragmentWait > datagramTime {
		return fmt.Errorf("fragmentWait %v: must be 0 to %v", c.FragmentWait, datagramTime)
	}
	if c.HoldKnown < 0 || c.HoldKnown > time.Minute {
		return fmt.Errorf("heartbeat holdKnown %v: must be 0 to 1m", c.HoldKnown)
	}
	return nil
}
