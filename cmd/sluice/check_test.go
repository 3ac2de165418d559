package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/sluice-net/sluice/internal/netlab"
)

// TestCheck looks at a node that can be served, and at one where much is wrong: each
// wrong thing is a line with its cure, and nothing is changed by looking.
func TestCheck(t *testing.T) {
	n := newNode(t)
	before := n.Node.State()
	status, output := n.command("1", "check", "--config", n.config)
	for _, want := range []string{"ok   kernel: ", "ok   capabilities: ", "ok   instance: no daemon", "ok   interface backend0: served as steered (driver veth, MTU 1500, role \"pods\")\n",
		"ok   return port: sluice-out and sluice-in will be made\n", "ok   forwarding IPv4: on\n"} {
		if !strings.Contains(output, want) {
			t.Errorf("no %q in\n%s", want, output)
		}
	}
	if status != 0 || !regexp.MustCompile(`\ncheck: ok=\d+ look=\d+ bad=0\n$`).MatchString(output) {
		t.Errorf("status %d of a node that can be served\n%s", status, output)
	}
	n.unchanged(before)

	n.Lab.Veth(n.Node, "big", n.Remote, "big", netlab.VethOptions{MTU: 9000})
	n.Lab.Veth(n.Node, "foreign", n.Remote, "foreign", netlab.VethOptions{})
	attachForeign(t, n.Node, "foreign")
	n.Node.Sysctl("net.ipv4.ip_forward", "0")
	if err := n.Node.Do(func() error {
		at := netlink.NewLinkAttrs()
		at.Name = "headless"
		return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: at, Mode: netlink.TUNTAP_MODE_TUN})
	}); err != nil {
		t.Fatal(err)
	}
	before = n.Node.State()
	status, output = n.command("1", "check", "--config", n.config, "--interface", "big", "--interface", "foreign=native", "--interface", "headless", "--interface", "gone", "--interface", netlab.UplinkDevice+"=generic")
	for _, want := range []string{
		"bad  interface big: its MTU is 9000, a frame of packet memory holds 3818 -> lower the MTU, or kind none\n",
		"bad  interface foreign: a foreign XDP program is attached (id ",
		"bad  interface headless: a device of type none has no Ethernet header: it cannot be served -> ",
		"bad  interface gone: there is no such device -> correct the name, or use a pattern\n",
		"bad  interface uplink: generic XDP on a device of kind veth would lose what comes merged from the other side: ask for steered -> ",
		"look forwarding IPv4: it is off: what leaves by the return port is not routed -> sysctl -w net.ipv4.ip_forward=1\n",
	} {
		if !strings.Contains(output, want) {
			t.Errorf("no %q in\n%s", want, output)
		}
	}
	if status != 1 {
		t.Errorf("status %d of a node that cannot be served", status)
	}
	n.unchanged(before)
}
