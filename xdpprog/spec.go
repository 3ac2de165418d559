package xdpprog

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Mode says which frames to a served address are ours. The values are those of
// enum mode in bpf/classifier.h.
type Mode uint8

const (
	// ModeFront leaves to the kernel what the kernel began: kube-proxy's rules
	// serve the same Services.
	ModeFront Mode = iota
	// ModeAlone takes every TCP and UDP frame to an address we serve, and what
	// [Spec] says beside them.
	ModeAlone
)

func (m Mode) String() string {
	switch m {
	case ModeFront:
		return "front"
	case ModeAlone:
		return "alone"
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// Conntrack says whether [ModeFront] asks the kernel's connection tracking about
// UDP that is not in the flow table.
type Conntrack uint8

const (
	// ConntrackAuto asks if the kernel can be asked.
	ConntrackAuto Conntrack = iota
	// ConntrackOff never asks: UDP flows that the kernel began become ours.
	ConntrackOff
	// ConntrackRequired makes [Load] fail where the kernel cannot be asked.
	ConntrackRequired
)

// Defaults of a [Spec].
const (
	DefaultSlots        = 256
	DefaultQueues       = 1
	DefaultMaxAddresses = 262144
	DefaultStaleAfter   = 250 * time.Millisecond
	DefaultHoldFor      = 3 * time.Second
)

// Spec says what to load. Its zero values are defaults, save for the flow
// table's geometry, which has none.
type Spec struct {
	Mode Mode
	// Slots is how many ports there may be, Queues how many queues each of
	// them may have.
	Slots  int
	Queues int
	// FlowBuckets and FlowRecords are the flow table's.
	FlowBuckets int
	FlowRecords int
	// MaxAddresses is how many addresses may be served, and how many backends
	// may have.
	MaxAddresses int
	// Fragments makes those to a served address, and those from a backend's
	// address, ours. Without it they pass.
	Fragments bool
	// ICMPErrors makes those ours that speak of a flow in the table. Without it
	// they pass.
	ICMPErrors bool
	// SCTP is taken like TCP. Without it, it passes.
	SCTP bool
	// StaleAfter is the age of a beat at which its worker counts as gone.
	StaleAfter time.Duration
	// HoldFor is how long after the last beat the frames of known flows wait
	// (by being dropped) for a restart before they pass. Negative: not at all.
	HoldFor time.Duration
	// OuterIfindex is the return port's outer end, ReturnSlot the slot of its
	// inner end, ReturnQueues how many queues that has (0: one). Without the first no tc program can be attached.
	OuterIfindex int
	ReturnSlot   int
	ReturnQueues int
	Conntrack    Conntrack
	// PinDir is a directory on a bpf filesystem below which maps and links
	// are pinned; it need not exist yet. Empty: nothing is pinned, and all of
	// it goes with the process.
	PinDir string
}

func (s Spec) withDefaults() Spec {
	if s.Slots == 0 {
		s.Slots = DefaultSlots
	}
	if s.Queues == 0 {
		s.Queues = DefaultQueues
	}
	if s.ReturnQueues == 0 {
		s.ReturnQueues = 1
	}
	if s.MaxAddresses == 0 {
		s.MaxAddresses = DefaultMaxAddresses
	}
	if s.StaleAfter == 0 {
		s.StaleAfter = DefaultStaleAfter
	}
	if s.HoldFor == 0 {
		s.HoldFor = DefaultHoldFor
	}
	return s
}

// validate expects defaults to be set.
func (s *Spec) validate() error {
	// Socket indices are 32 bits wide, so are record numbers and bucket numbers.
	const limit = 1 << 24
	switch {
	case s.Mode > ModeAlone:
		return fmt.Errorf("unknown mode %d", s.Mode)
	case s.Conntrack > ConntrackRequired:
		return fmt.Errorf("unknown conntrack setting %d", s.Conntrack)
	case s.Slots > 1<<16:
		return fmt.Errorf("%d slots: a frame's mark has room for %d", s.Slots, 1<<16)
	case s.Slots < 1 || s.Queues < 1 || s.Slots > limit || s.Queues > limit || s.Slots*s.Queues > limit:
		return fmt.Errorf("%d slots of %d queues: each must be positive, and the product at most %d", s.Slots, s.Queues, limit)
	case s.FlowBuckets < 2 || s.FlowBuckets > math.MaxInt32:
		return fmt.Errorf("%d flow buckets: want 2 or more", s.FlowBuckets)
	case s.FlowRecords < 2 || s.FlowRecords > math.MaxInt32:
		return fmt.Errorf("%d flow records: at least 2", s.FlowRecords)
	case s.MaxAddresses < 1 || s.MaxAddresses > math.MaxInt32:
		return fmt.Errorf("at most %d addresses: not a usable limit", s.MaxAddresses)
	case s.StaleAfter < 0:
		return errors.New("a beat cannot be stale before it is made")
	case s.OuterIfindex < 0:
		return fmt.Errorf("return port: ifindex %d", s.OuterIfindex)
	case s.ReturnSlot < 0 || s.ReturnSlot >= s.Slots:
		return fmt.Errorf("return port: slot %d of %d", s.ReturnSlot, s.Slots)
	case s.ReturnQueues < 1 || s.ReturnQueues > s.Queues:
		return fmt.Errorf("return port: %d queues of %d", s.ReturnQueues, s.Queues)
	}
	return nil
}
