package netlab

import (
	"net/netip"
	"testing"
)

func TestPlan(t *testing.T) {
	for _, tt := range []struct {
		name   string
		got    netip.Addr
		want   string
		prefix string
	}{
		{"first pod", PodAddr(IPv4, 1, 1), "198.18.1.1", PodPrefix4},
		{"first pod", PodAddr(IPv6, 1, 1), "2001:db8:1:1::1", PodPrefix6},
		{"last pod", PodAddr(IPv4, 255, 254), "198.18.255.254", PodPrefix4},
		{"last pod", PodAddr(IPv6, 255, 254), "2001:db8:1:ff::fe", PodPrefix6},
		{"first ClusterIP", ClusterIP(IPv4, 1), "198.19.0.1", ClusterIPPrefix4},
		{"first ClusterIP", ClusterIP(IPv6, 1), "2001:db8:2::1", ClusterIPPrefix6},
		{"last ClusterIP", ClusterIP(IPv4, 65534), "198.19.255.254", ClusterIPPrefix4},
		{"last ClusterIP", ClusterIP(IPv6, 65534), "2001:db8:2::fffe", ClusterIPPrefix6},
		{"node", NodeAddr(IPv4, 2), "192.0.2.2", NodePrefix4},
		{"node", NodeAddr(IPv6, 2), "2001:db8:3::2", NodePrefix6},
		{"outside", OutsideAddr(IPv4, 2), "203.0.113.2", OutsidePrefix4},
		{"outside", OutsideAddr(IPv6, 2), "2001:db8:4::2", OutsidePrefix6},
	} {
		if want := netip.MustParseAddr(tt.want); tt.got != want || !netip.MustParsePrefix(tt.prefix).Contains(tt.got) {
			t.Errorf("%s is %s, want %s within %s", tt.name, tt.got, want, tt.prefix)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	for name, f := range map[string]func(){
		"pod 0":           func() { PodAddr(IPv4, 1, 0) },
		"pod 255":         func() { PodAddr(IPv6, 1, 255) },
		"node 256":        func() { PodSubnet(IPv4, 256) },
		"ClusterIP 0":     func() { ClusterIP(IPv6, 0) },
		"ClusterIP 65535": func() { ClusterIP(IPv4, 65535) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s is in the plan", name)
				}
			}()
			f()
		}()
	}
}
