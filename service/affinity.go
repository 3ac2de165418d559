package service

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// Affinities remembers which backend each client of a ServicePort with ClientIP affinity has. As with kube-proxy, the key is
// the client's address and the ServicePort, whichever of its frontends was used, and the clock slides with each new connection,
// not with each packet: Choose is for the first packet of a flow. At the very instant of its timeout an affinity is over.
//
// A backend that takes no new flows any more loses its clients: the next connection chooses again. A Service that is switched
// to sessionAffinity None forgets, and begins anew when it is switched back.
//
// The memory is fixed: sets of eight entries. A set that is full forgets the client that has not come for the longest time.
// Choose does not allocate; of two workers that ask at once for one client, one waits some tens of nanoseconds for the other.
type Affinities struct {
	seed    uint64
	sets    [][affinitySet]affinity
	locks   [256]paddedMutex
	evicted atomic.Uint64
}

const affinitySet = 8

// affinity is one entry; used 0 is none.
type affinity struct {
	client  [16]byte
	port    uint64 // ServicePort.affinity
	backend uint64 // hashBackend
	used    uint64 // when the client's last connection began
}

type paddedMutex struct {
	sync.Mutex
	_ [56]byte
}

// NewAffinities makes room for about n clients.
func NewAffinities(n int) *Affinities {
	sets := 1
	for sets*affinitySet < n {
		sets *= 2
	}
	return &Affinities{seed: rand.Uint64(), sets: make([][affinitySet]affinity, sets)}
}

// Choose gives the backend for a new connection of the client: the one that it has, or fresh, which it then has. now is any
// monotonic time in nanoseconds, above 0. p has an affinity and at least one backend, of which fresh is one.
func (a *Affinities) Choose(p *ServicePort, client *[16]byte, fresh *Backend, now uint64) *Backend {
	set, lock := a.set(p, client)
	lock.Lock()
	e, known := find(set, p, client)
	if known && now-e.used < uint64(p.Affinity) {
		for i, h := range p.hashes {
			if h == e.backend {
				e.used = now
				lock.Unlock()
				return &p.Backends[i]
			}
		}
	}
	if !known && e.used != 0 {
		a.evicted.Add(1)
	}
	*e = affinity{client: *client, port: p.affinity, backend: hashBackend(fresh), used: now}
	lock.Unlock()
	return fresh
}

// Remember says that a client has a backend, as of a flow that was there before. It does not replace what is known.
func (a *Affinities) Remember(p *ServicePort, client *[16]byte, b *Backend, used uint64) {
	set, lock := a.set(p, client)
	lock.Lock()
	defer lock.Unlock()
	if e, known := find(set, p, client); !known && e.used == 0 {
		*e = affinity{client: *client, port: p.affinity, backend: hashBackend(b), used: used}
	}
}

// Evicted counts entries that were forgotten for want of room, be it that they were over anyway.
func (a *Affinities) Evicted() uint64 { return a.evicted.Load() }

func (a *Affinities) set(p *ServicePort, client *[16]byte) (*[affinitySet]affinity, *paddedMutex) {
	h := mix(hashClient(client)^a.seed, p.affinity|1)
	return &a.sets[h&uint64(len(a.sets)-1)], &a.locks[h&uint64(len(a.locks)-1)]
}

// find gives the client's entry, or else the one to use for it: an empty one, or the one unused for the longest time.
func find(set *[affinitySet]affinity, p *ServicePort, client *[16]byte) (e *affinity, known bool) {
	e = &set[0]
	for i := range set {
		c := &set[i]
		if c.used != 0 && c.port == p.affinity && c.client == *client {
			return c, true
		}
		if c.used < e.used {
			e = c
		}
	}
	return e, false
}

// identify gives p what tells its affinities from others': its former self's, as long as it had one; and one that was never
// used before, if it has just been switched on.
func (p *ServicePort) identify(old *ServicePort) {
	switch {
	case p.Affinity == 0:
	case old == nil || old.Affinity == 0:
		p.affinity = rand.Uint64()
	default:
		p.affinity = old.affinity
	}
}
