package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

// natFlows is the capacity of the two eBPF peers' table of flows, both directions
// counted: as many flows as nf_conntrack holds by default here.
const natFlows = 1 << 19

// natTables are the maps of bpf/nat.h.
type natTables struct{ services, backends, pods, flows *ebpf.Map }

type natServiceKey struct {
	Addr  [4]byte
	Port  [2]byte
	Proto uint8
	_     uint8
}

type natService struct{ First, Count uint32 }

type natBackend struct {
	Addr [4]byte
	Port [2]byte
	_    uint16
}

type natPod struct {
	Ifindex uint32
	PodMAC  [6]byte
	HostMAC [6]byte
}

// sizeNAT gives the maps of a collection their sizes for a world.
func sizeNAT(spec *ebpf.CollectionSpec, w *World) {
	spec.Maps["services"].MaxEntries = uint32(2 * w.Services)
	spec.Maps["backends"].MaxEntries = uint32(2 * w.Services * endpointsEach)
	spec.Maps["flows"].MaxEntries = natFlows
}

// fill writes a world and the pods of its node.
func (t natTables) fill(s *Site) error {
	for n := 1; n <= s.World.Services; n++ {
		if err := t.setBackends(s.World, n, s.World.Backends); err != nil {
			return err
		}
	}
	pods := append([]*netlab.Pod{s.Client}, s.Backends...)
	for _, p := range pods {
		if err := t.addPod(s, p, p.IP4); err != nil {
			return err
		}
	}
	return t.addPod(s, s.Client, clientAddr(0))
}

func (t natTables) addPod(s *Site, p *netlab.Pod, addr netip.Addr) error {
	pod := natPod{Ifindex: uint32(s.Node.Index(p.HostDevice))}
	copy(pod.PodMAC[:], p.MAC(netlab.PodDevice))
	copy(pod.HostMAC[:], s.Node.MAC(p.HostDevice))
	return t.pods.Put(addr.As4(), pod)
}

// setBackends gives both ports of Service n these backends.
func (t natTables) setBackends(w *World, n int, backends []netip.Addr) error {
	for i, port := range []struct {
		proto         uint8
		port, backend uint16
	}{{unix.IPPROTO_TCP, tcpPort, tcpBackendPort}, {unix.IPPROTO_UDP, udpPort, udpBackendPort}} {
		key := natServiceKey{Addr: w.ClusterIP(n).As4(), Proto: port.proto}
		binary.BigEndian.PutUint16(key.Port[:], port.port)
		service := natService{First: uint32((2*(n-1) + i) * endpointsEach), Count: uint32(len(backends))}
		for j, b := range backends {
			backend := natBackend{Addr: b.As4()}
			binary.BigEndian.PutUint16(backend.Port[:], port.backend)
			if err := t.backends.Put(service.First+uint32(j), backend); err != nil {
				return err
			}
		}
		if err := t.services.Put(key, service); err != nil {
			return err
		}
	}
	return nil
}

// natInstance is either of the two at work.
type natInstance struct {
	natTables
	site    *Site
	granted []string
	undo    []func() error
}

func (i *natInstance) Granted() []string { return i.granted }

func (i *natInstance) SetBackends(n int, backends []netip.Addr) error {
	return i.setBackends(i.site.World, n, backends)
}

func (i *natInstance) Stop() error {
	var errs []error
	for j := len(i.undo) - 1; j >= 0; j-- {
		errs = append(errs, i.undo[j]())
	}
	i.undo = nil
	return errors.Join(errs...)
}

// tcNAT is the NAT of bpf/tcnat.c.
type tcNAT struct {
	faults *natFaults // only for the suite's own test
}

// natFaults break one in so many datagrams, by their numbers. 0 is none.
type natFaults struct{ Drop, Duplicate, Corrupt, WrongSource uint32 }

func (p tcNAT) Name() string {
	if p.faults != nil {
		return "faulty"
	}
	return "tc-ebpf"
}
func (tcNAT) About() string    { return "eBPF NAT on tc ingress with bpf_redirect_peer (Cilium-like)" }
func (tcNAT) Translates() bool { return true }

func (tcNAT) Prepare(context.Context, *Site) error { return nil }

func (p tcNAT) Start(_ context.Context, s *Site) (Instance, error) {
	spec, err := loadTcNAT()
	if err != nil {
		return nil, err
	}
	sizeNAT(spec, s.World)
	if p.faults != nil {
		if err := spec.Variables["faulty"].Set(true); err != nil {
			return nil, err
		}
	}
	var objs tcNATObjects
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		return nil, err
	}
	i := &natInstance{natTables: natTables{objs.Services, objs.Backends, objs.Pods, objs.Flows}, site: s}
	i.undo = append(i.undo, objs.Close)
	if p.faults != nil {
		err = objs.Faults.Put(uint32(0), p.faults)
	}
	err = errors.Join(err, i.start(func(ifindex int) (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: objs.TcNat, Attach: ebpf.AttachTCXIngress})
	}))
	if err != nil {
		i.Stop()
		return nil, err
	}
	i.granted = append(i.granted, "tcx ingress on every served device", "bpf_redirect_peer to pods of the node")
	return i, nil
}

// start fills the tables and attaches to every device.
func (i *natInstance) start(attach func(ifindex int) (link.Link, error)) error {
	return i.site.Run(func() error {
		if err := i.fill(i.site); err != nil {
			return err
		}
		return i.site.Node.Do(func() error {
			for _, name := range i.site.ServedDevices() {
				dev, err := i.site.Node.Handle().LinkByName(name)
				if err != nil {
					return err
				}
				l, err := attach(dev.Attrs().Index)
				if err != nil {
					return err
				}
				i.undo = append(i.undo, l.Close)
			}
			return nil
		})
	})
}

// xdpNAT is the NAT of bpf/xdpnat.c.
type xdpNAT struct{}

func (xdpNAT) Name() string     { return "xdp-redirect" }
func (xdpNAT) About() string    { return "eBPF NAT in native XDP with bpf_redirect" }
func (xdpNAT) Translates() bool { return true }

func (xdpNAT) Prepare(_ context.Context, s *Site) error {
	if s.Topology != Local {
		return &Unsuited{"a frame redirected to an uplink would need the other host's NAPI"}
	}
	return nil
}

func (xdpNAT) Start(_ context.Context, s *Site) (Instance, error) {
	spec, err := loadXdpNAT()
	if err != nil {
		return nil, err
	}
	sizeNAT(spec, s.World)
	var objs xdpNATObjects
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		return nil, err
	}
	i := &natInstance{natTables: natTables{objs.Services, objs.Backends, objs.Pods, objs.Flows}, site: s}
	i.undo = append(i.undo, objs.Close)
	err = s.Run(func() error {
		for _, p := range append([]*netlab.Pod{s.Client}, s.Backends...) {
			p.Offload(netlab.PodDevice, "tx", false)
			p.Offload(netlab.PodDevice, "gro", true)
		}
		return nil
	})
	if err == nil {
		err = i.start(func(ifindex int) (link.Link, error) {
			return link.AttachXDP(link.XDPOptions{Interface: ifindex, Program: objs.XdpNat, Flags: link.XDPDriverMode})
		})
	}
	if err != nil {
		i.Stop()
		return nil, err
	}
	i.granted = append(i.granted, "native XDP on every served device", "tx off in all pods (a redirected frame cannot ask for its checksum)", "GRO on in all pods (NAPI)")
	return i, nil
}
