package dataplane

import (
	"fmt"
	"os"
	"strings"

	"github.com/sluice-net/sluice/service"
)

// Masquerade says which clients' flows get the node's own address as their source, so
// that replies come back to this node whatever route the backend has to the client. It
// is kube-proxy's detectLocal: who is not known to be a pod is masqueraded. Ranges of
// pods come with the snapshot; what is here is judged by the port that a frame came in
// by. The zero value masquerades nobody.
//
// In ModeFront a flow that is to be masqueraded is the kernel's, where kube-proxy's own
// rules do it as they are configured.
type Masquerade struct {
	// All masquerades every flow.
	All bool
	// Bridge: what does not come in by a port of this bridge is masqueraded.
	Bridge string
	// Prefix: what does not come in by a device whose name begins so is.
	Prefix string
}

// masquerades reports whether the flow that frame i begins is to be masqueraded. What
// comes from the node itself has its address already.
func (w *worker) masquerades(i int, s *service.Snapshot) bool {
	m, in := &w.d.cfg.Masquerade, w.b.in[i]
	if in.returns {
		return false
	}
	switch {
	case m.All:
		return true
	case m.Bridge != "":
		devices := w.d.egress.fib.Load().devices
		at := devices[in.ifindex].master
		return at == 0 || devices[at].name != m.Bridge
	case m.Prefix != "":
		return !strings.HasPrefix(w.d.egress.fib.Load().devices[in.ifindex].name, m.Prefix)
	}
	return s.Outside(&w.b.packets[i].Src)
}

// nodePort is an unpredictable source port that the node's own processes are not
// given: the kernel cannot know which ports we use.
func (w *worker) nodePort() uint16 {
	low, high := int(w.d.localPorts[0]), int(w.d.localPorts[1])
	below := max(0, low-1024)
	n := below + 65535 - high
	if n <= 0 {
		return w.randomPort(1024)
	}
	at := int(w.random() % uint64(n))
	if at < below {
		return uint16(1024 + at)
	}
	return uint16(high + 1 + at - below)
}

// localPorts reads which ports the kernel gives to processes that ask for any.
func localPorts() [2]uint16 {
	low, high := uint16(32768), uint16(60999) // the kernel's default
	if data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		var l, h uint16
		if n, _ := fmt.Sscan(string(data), &l, &h); n == 2 && l < h {
			low, high = l, h
		}
	}
	return [2]uint16{low, high}
}
