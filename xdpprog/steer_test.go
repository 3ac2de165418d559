//go:build linux

package xdpprog

import (
	"testing"
	"time"
)

// What another program has sent to the return port is not asked twice there, and
// without a live daemon it ends there. Elsewhere the address means nothing.
func TestSteeredFramesAreOursAtTheReturnPort(t *testing.T) {
	r := newRig(t, nil)
	r.alive(t, directSlot)
	r.alive(t, returnSlot)
	frame := packet{dst: backend4}.frame(t) // ours to nobody but who marked it
	copy(frame[6:], []byte{0x02, 's', 'l', 'o', 0, directSlot})
	for _, tt := range []struct {
		name    string
		ifindex int
		ago     time.Duration
		want    outcome
	}{
		{"return port", r.inner, 0, outcome{"redirect", returnSlot, ReasonSteered}},
		{"return port, daemon hung", r.inner, 2 * rigStale, outcome{"drop", returnSlot, ReasonDeadNew}},
		{"direct port", r.direct, 0, outcome{"pass", directSlot, ReasonNotOurs}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.beat(r.Index(returnSlot, 0), tt.ago)
			if got := r.ingress(t, frame, tt.ifindex, 0); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	r.beat(r.Index(returnSlot, 0), 0)
	if got, want := r.steer(t, frame, r.direct), (outcome{"next", directSlot, ReasonNotOurs}); got != want {
		t.Errorf("steered port: got %v, want %v", got, want)
	}
	if got, want := r.steer(t, packet{}.frame(t), r.stranger), (outcome{"next", rigSlots, ReasonUnknownPort}); got != want {
		t.Errorf("unknown port: got %v, want %v", got, want)
	}
	for at := range 4 {
		other := append([]byte(nil), frame...)
		other[6+at] ^= 1
		if got, want := r.ingress(t, other, r.inner, 0), (outcome{"drop", returnSlot, ReasonNotOurs}); got != want {
			t.Errorf("byte %d is another: got %v, want %v", at, got, want)
		}
	}
}

func TestMarkedSlot(t *testing.T) {
	if slot, ok := MarkedSlot([6]byte{0x02, 's', 'l', 'o', 0x12, 0x34}); !ok || slot != 0x1234 {
		t.Errorf("got %#x, %t", slot, ok)
	}
	if slot, ok := MarkedSlot([6]byte{0x02, 's', 'l', 'u', 'i', 0}); ok {
		t.Errorf("the daemon's own address is slot %d", slot)
	}
}
