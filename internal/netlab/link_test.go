//go:build linux

package netlab

import (
	"bytes"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestVethOptions(t *testing.T) {
	macA, macB := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	a, b := wire(t, VethOptions{Queues: 2, MTU: 9000, AMAC: macA, BMAC: macB})
	for _, tt := range []struct {
		n   *Namespace
		mac net.HardwareAddr
	}{{a, macA}, {b, macB}} {
		attrs := tt.n.link("eth0").Attrs()
		if attrs.NumRxQueues != 2 || attrs.NumTxQueues != 2 || attrs.MTU != 9000 || attrs.OperState != netlink.OperUp {
			t.Errorf("%s: queues %d/%d, MTU %d, %v; want 2/2, 9000, up", tt.n.Name(), attrs.NumRxQueues, attrs.NumTxQueues, attrs.MTU, attrs.OperState)
		}
		if got := tt.n.MAC("eth0"); !bytes.Equal(got, tt.mac) {
			t.Errorf("%s: MAC %s, want %s", tt.n.Name(), got, tt.mac)
		}
	}
}

func TestVethWithinOneNamespace(t *testing.T) {
	RequireRoot(t)
	lab := New(t)
	n := lab.Namespace("a")
	lab.Veth(n, "left", n, "right", VethOptions{})
	if n.Index("left") == n.Index("right") {
		t.Error("one index for two devices")
	}
}

func TestVethRefusesLongName(t *testing.T) {
	RequireRoot(t)
	var tb fakeTB
	tb.run(func() {
		lab := New(&tb)
		lab.Veth(lab.Namespace("a"), "sixteen-letters-", lab.Namespace("b"), "eth0", VethOptions{})
	})
	if !strings.Contains(tb.fatal, "sixteen-letters-") {
		t.Errorf("fatal %q, want one that names the device", tb.fatal)
	}
}

func TestConfigure(t *testing.T) {
	a, b := addressed(t, VethOptions{})
	before := a.State()
	a.Route("198.19.0.0/16", "192.0.2.9", "eth0")
	a.Route("2001:db8:2::/112", "2001:db8:3::9", "eth0")
	a.Route("198.18.0.7/32", "", "eth0", "192.0.2.1")
	a.Neighbour("eth0", "192.0.2.9", b.MAC("eth0"))
	a.Neighbour("eth0", "2001:db8:3::9", b.MAC("eth0"))
	a.Sysctl("net.ipv4.conf.eth0.rp_filter", "2")
	a.MTU("eth0", 1400)
	diff := Diff(before, a.State())
	for _, want := range []string{
		"+ route table 254 type 1 to 198.19.0.0/16 via 192.0.2.9 dev eth0",
		"+ route table 254 type 1 to 2001:db8:2::/112 via 2001:db8:3::9 dev eth0",
		"+ route table 254 type 1 to 198.18.0.7/32 via <nil> dev eth0 source 192.0.2.1 scope link",
		"+ neighbour 192.0.2.9 dev eth0 mac " + b.MAC("eth0").String(),
		"+ neighbour 2001:db8:3::9 dev eth0",
		"+ sysctl net.ipv4.conf.eth0.rp_filter = 2",
		"- sysctl net.ipv4.conf.eth0.rp_filter = 0",
		"mtu 1400",
	} {
		if !strings.Contains(diff, want) {
			t.Errorf("difference lacks %q:\n%s", want, diff)
		}
	}
	a.Down("eth0")
	if a.link("eth0").Attrs().Flags&net.FlagUp != 0 {
		t.Error("eth0 is up after Down")
	}
	a.Up("eth0")
	a.Delete("eth0")
	if _, err := b.Handle().LinkByName("eth0"); err == nil {
		t.Error("the other end outlived its pair")
	}
}

func TestSysctlPath(t *testing.T) {
	for _, tt := range []struct{ key, want string }{
		{"net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"},
		{"net.ipv4.conf.eth0/100.rp_filter", "/proc/sys/net/ipv4/conf/eth0.100/rp_filter"},
	} {
		if got := sysctlPath(tt.key); got != tt.want {
			t.Errorf("path of %q is %q, want %q", tt.key, got, tt.want)
		}
		if got := "net." + sysctlKey(strings.TrimPrefix(tt.want, "/proc/sys/net/")); got != tt.key {
			t.Errorf("key of %q is %q, want %q", tt.want, got, tt.key)
		}
	}
}

// The host's own setting must not be touched by a namespace's.
func TestSysctlStaysInside(t *testing.T) {
	RequireRoot(t)
	read := func() string {
		value, err := os.ReadFile("/proc/sys/net/ipv4/conf/default/rp_filter")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(value))
	}
	before := read()
	other := "1"
	if before == other {
		other = "2"
	}
	n := New(t).Namespace("a")
	n.Sysctl("net.ipv4.conf.default.rp_filter", other)
	if got := read(); got != before {
		t.Errorf("the host's setting went from %s to %s", before, got)
	}
}
