package service

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Selection is how a Backend is chosen for a new flow.
type Selection uint8

const (
	// Consistent is rendezvous hashing (highest random weight) over client address and port and the frontend: the backend
	// with the highest hash of (flow, backend) is chosen. The choice depends on nothing but the flow and the set of
	// backends, so lost state, a restart or another node chooses the same again. A backend that leaves moves its own flows
	// and no others; one that comes takes an equal share from each.
	//
	// The key is fixed and public: any two processes must agree. A client can therefore pick its backend by picking its
	// source port. It gains nothing by that which retrying would not give it.
	//
	// Why not Maglev: it needs a table of some hundred entries a backend to be even to 1%, filled again for each change of an
	// endpoint, and a change also moves flows of backends that stayed. That buys a choice in constant time; ours costs one
	// multiplication a backend, on the first packet of a flow only, and Services of more than 100 endpoints are rare.
	Consistent Selection = iota
	// Random is what kube-proxy does: uniform, from a random number that the caller brings.
	Random
	// RoundRobin takes the backends in turn, over all workers.
	RoundRobin
)

// SelectionAnnotation sets the Selection of one Service.
const SelectionAnnotation = "sluice.dev/selection"

func (s Selection) String() string {
	switch s {
	case Consistent:
		return "consistent"
	case Random:
		return "random"
	case RoundRobin:
		return "roundRobin"
	}
	return "unknown"
}

// ParseSelection is the reverse of String.
func ParseSelection(s string) (Selection, error) {
	for _, v := range []Selection{Consistent, Random, RoundRobin} {
		if v.String() == s {
			return v, nil
		}
	}
	return 0, fmt.Errorf("selection %q is none of consistent, random, roundRobin", s)
}

// MarshalText and UnmarshalText make Selection a flag and a configuration value.
func (s Selection) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Selection) UnmarshalText(text []byte) error {
	v, err := ParseSelection(string(text))
	if err == nil {
		*s = v
	}
	return err
}

// Select chooses a backend for a new flow from client to the frontend f; nil if there is none. rnd is a random number,
// used by Random alone. Select does not allocate, and may be called by any number of workers at once.
// For a ServicePort with an affinity it is what Affinities.Choose asks for.
func (p *ServicePort) Select(client [16]byte, clientPort uint16, f *Frontend, rnd uint64) *Backend {
	n := len(p.Backends)
	switch {
	case n == 0:
		return nil
	case n == 1:
		return &p.Backends[0]
	case p.Selection == Random:
		// The high word of rnd * n is rnd scaled down to 0..n-1, without a division.
		i, _ := bits.Mul64(rnd, uint64(n))
		return &p.Backends[i]
	case p.Selection == RoundRobin:
		return &p.Backends[(p.turn.Add(1)-1)%uint64(n)]
	}
	return p.highest(hashFlow(&client, clientPort, f))
}

// highest returns the backend whose hash together with the flow's is the highest. Of equals, one in 2^64, the first wins,
// which is the same everywhere because backends are sorted.
func (p *ServicePort) highest(flow uint64) *Backend {
	at, best := 0, uint64(0)
	for i, h := range p.hashes {
		if w := mix(flow^h, key7); w > best {
			at, best = i, w
		}
	}
	return &p.Backends[at]
}

// The fixed key: the fractional digits of pi. Changing it, or anything below, moves the flows of every node that is
// upgraded later than another, so golden values in the tests pin it.
const (
	key0 = 0x243f6a8885a308d3
	key1 = 0x13198a2e03707344
	key2 = 0xa4093822299f31d0
	key3 = 0x082efa98ec4e6c89
	key4 = 0x452821e638d01377
	key5 = 0xbe5466cf34e90c6c
	key6 = 0xc0ac29b7c97c50dd
	key7 = 0x3f84d5b5b5470917
)

// mix multiplies to 128 bits and folds: every bit of both factors reaches the whole result.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

func hashFlow(client *[16]byte, clientPort uint16, f *Frontend) uint64 {
	h := hashClient(client)
	h = mix(h^binary.LittleEndian.Uint64(f.Addr[:8]), binary.LittleEndian.Uint64(f.Addr[8:])^key2)
	return mix(h^(uint64(clientPort)|uint64(f.Port)<<16|uint64(f.Proto)<<32), key3)
}

func hashClient(client *[16]byte) uint64 {
	return mix(binary.LittleEndian.Uint64(client[:8])^key0, binary.LittleEndian.Uint64(client[8:])^key1)
}

func hashBackend(b *Backend) uint64 {
	h := mix(binary.LittleEndian.Uint64(b.Addr[:8])^key4, binary.LittleEndian.Uint64(b.Addr[8:])^key5)
	return mix(h^uint64(b.Port), key6)
}
