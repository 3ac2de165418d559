//go:build linux

package netlab

import (
	"strings"
	"testing"
)

func TestOffload(t *testing.T) {
	a, _ := wire(t, VethOptions{})
	for _, tt := range []struct{ feature, kernel string }{
		{"tx", "tx-checksum-ip-generic"},
		{"tso", "tx-tcp-segmentation"},
		{"gro", "rx-gro"},
		{"tx-udp-segmentation", "tx-udp-segmentation"},
	} {
		for _, on := range []bool{false, true} {
			a.Offload("eth0", "tx", true) // the others depend on it
			a.Offload("eth0", tt.feature, on)
			if got := a.Features("eth0")[tt.kernel]; got != on {
				t.Errorf("%s after setting %s: %t, want %t", tt.kernel, tt.feature, got, on)
			}
		}
	}
}

func TestOffloadRefused(t *testing.T) {
	RequireRoot(t)
	for _, feature := range []string{"no-such-feature", "loopback"} {
		var tb fakeTB
		tb.run(func() {
			lab := New(&tb)
			a := lab.Namespace("a")
			lab.Veth(a, "eth0", lab.Namespace("b"), "eth0", VethOptions{})
			a.Offload("eth0", feature, true)
		})
		if !strings.Contains(tb.fatal, feature) {
			t.Errorf("setting %s: fatal %q, want one that names it", feature, tb.fatal)
		}
	}
}

func TestChannels(t *testing.T) {
	a, _ := wire(t, VethOptions{Queues: 2})
	before := a.State()
	a.Channels("eth0", 1, 2)
	diff := Diff(before, a.State())
	if !strings.Contains(diff, "- channels eth0 rx 2 tx 2") || !strings.Contains(diff, "+ channels eth0 rx 1 tx 2") {
		t.Errorf("difference:\n%s", diff)
	}
}
