package dataplane

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Which devices are ports. They are chosen by a list of PortConfig, of which the first
// that fits a device decides; a device that none fits is not served.

// Role is what a device is on its node.
type Role uint8

const (
	// RoleAny is every device.
	RoleAny Role = iota
	// RolePods is a device that leads to another network namespace (a veth, a
	// netkit), or to a guest (a tap), and is no uplink.
	RolePods
	// RoleUplinks is hardware, and whatever a route with a gateway leaves by.
	RoleUplinks
	// RoleTunnels carries Ethernet frames to other nodes: VXLAN, GENEVE, GRE.
	RoleTunnels
)

var roleWords = []string{"", "pods", "uplinks", "tunnels"}

// String gives the role's word in configuration, which is empty for RoleAny.
func (r Role) String() string {
	if int(r) < len(roleWords) {
		return roleWords[r]
	}
	return fmt.Sprintf("Role(%d)", uint8(r))
}

// ParseRole reads a role's word.
func ParseRole(s string) (Role, error) {
	if i := slices.Index(roleWords, s); i >= 0 {
		return Role(i), nil
	}
	return 0, fmt.Errorf("role %q is not one of %s", s, strings.Join(roleWords[1:], ", "))
}

// The kinds (IFLA_INFO_KIND) of devices that have a role of their own.
var (
	podKinds    = []string{"veth", "netkit", "tuntap", "tun", "macvtap"}
	tunnelKinds = []string{"vxlan", "geneve", "gretap", "ip6gretap", "erspan", "ip6erspan"}
)

// roleOf is the role of a device; gateway says that a route with a gateway leaves by
// it.
func roleOf(l netlink.Link, gateway bool) Role {
	at := l.Attrs()
	switch kind := l.Type(); {
	case slices.Contains(tunnelKinds, kind):
		return RoleTunnels
	case at.EncapType == "ether" && (gateway || kind == "device"):
		return RoleUplinks
	case kind == "veth" && at.NetNsID < 0:
		return RoleAny // both its ends are here
	case slices.Contains(podKinds, kind):
		return RolePods
	}
	return RoleAny
}

// isPattern reports whether the name is one of more than one device.
func (c *PortConfig) isPattern() bool { return c.Name == "" || strings.ContainsAny(c.Name, `*?[\`) }

// fits reports whether it chooses the device.
func (c *PortConfig) fits(l netlink.Link, driver string, role Role) bool {
	if c.Name != "" {
		if ok, err := filepath.Match(c.Name, l.Attrs().Name); !ok || err != nil {
			return false
		}
	}
	return (c.Driver == "" || c.Driver == driver) && (c.Role == RoleAny || c.Role == role)
}

// choose finds the first of the configuration's that fits a device; nil is a device
// that is not served.
func (d *Dataplane) choose(l netlink.Link, f *fib) *PortConfig {
	at := l.Attrs()
	if at.Name == "lo" || at.Name == d.cfg.ReturnPort+"-out" || at.Name == d.cfg.ReturnPort+"-in" {
		return nil
	}
	role := roleOf(l, f.gateways[at.Index])
	driver := ""
	for i := range d.cfg.Ports {
		c := &d.cfg.Ports[i]
		if c.Driver != "" && driver == "" {
			driver = d.driverOf(l)
		}
		if c.fits(l, driver, role) {
			if c.Kind == KindNone {
				return nil
			}
			return c
		}
	}
	return nil
}

// driverOf is the driver's name as ethtool -i has it, which of a device that the
// kernel makes is its kind.
func (d *Dataplane) driverOf(l netlink.Link) string {
	if driver, err := d.eth.DriverName(l.Attrs().Name); err == nil {
		return driver
	}
	return l.Type()
}
