package dataplane

import "github.com/sluice-net/sluice/xdpprog"

// portSet is the ports of one moment, immutable. The workers load it once a batch,
// so a port that leaves the set is out of use once each of them has passed a batch
// boundary.
type portSet struct {
	all     []*port // the return port first
	bySlot  [maxPorts]*port
	byIndex map[int]*port // by ifindex, without the return port
}

// newPortSet makes a set of ports that have their slots.
func newPortSet(all []*port) *portSet {
	s := &portSet{all: all, byIndex: make(map[int]*port, len(all))}
	for _, p := range all {
		s.bySlot[p.slot] = p
		if !p.returns {
			s.byIndex[p.ifindex] = p
		}
	}
	return s
}

// cameBy is the port that a frame came in by: the socket's, or, on the return port,
// the one that its mark names. nil is a port that is no more.
func (s *portSet) cameBy(socket *port, frame []byte) *port {
	if !socket.returns || len(frame) < etherLen {
		return socket
	}
	slot, marked := xdpprog.MarkedSlot([6]byte(frame[6:12]))
	if !marked {
		return socket // from the node, by a route
	}
	if slot >= maxPorts {
		return nil
	}
	return s.bySlot[slot]
}
