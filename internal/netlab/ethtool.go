//go:build linux

package netlab

import (
	"fmt"
	"strings"

	"github.com/safchain/ethtool"
)

// featureAliases are ethtool -K's short names for groups of the kernel's features.
var featureAliases = map[string][]string{
	"rx":  {"rx-checksum"},
	"tx":  {"tx-checksum-ipv4", "tx-checksum-ip-generic", "tx-checksum-ipv6", "tx-checksum-fcoe-crc", "tx-checksum-sctp"},
	"sg":  {"tx-scatter-gather", "tx-scatter-gather-fraglist"},
	"tso": {"tx-tcp-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation", "tx-tcp6-segmentation"},
	"gso": {"tx-generic-segmentation"},
	"gro": {"rx-gro"},
}

// Offload switches a feature of a device on or off: by the kernel's name ("tx-udp-segmentation", see ethtool -k) or by
// one of ethtool's short ones: rx, tx, sg, tso, gso, gro. What the device has not, it cannot be given.
func (n *Namespace) Offload(dev, feature string, on bool) {
	n.tb.Helper()
	n.do(fmt.Sprintf("setting %s of %q to %t", feature, dev, on), func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		state, err := e.FeaturesWithState(dev)
		if err != nil {
			return err
		}
		names, alias := featureAliases[feature]
		if !alias {
			names = []string{feature}
		}
		want := make(map[string]bool)
		for _, name := range names {
			// Of a group, only what the device can change is meant.
			if s, ok := state[name]; alias && (!ok || !s.Available || s.NeverChanged) && s.Active != on {
				continue
			}
			want[name] = on
		}
		if len(want) == 0 {
			return fmt.Errorf("device cannot change any of %s", strings.Join(names, ", "))
		}
		if err := e.Change(dev, want); err != nil {
			return err
		}
		// The kernel ignores what it cannot change, and says so only in a flag of the answer.
		granted, err := e.Features(dev)
		if err != nil {
			return err
		}
		for name := range want {
			if granted[name] != on {
				return fmt.Errorf("device did not take %s=%t", name, on)
			}
		}
		return nil
	})
}

// Features returns the names of a device's active features.
func (n *Namespace) Features(dev string) map[string]bool {
	n.tb.Helper()
	var features map[string]bool
	n.do(fmt.Sprintf("reading the features of %q", dev), func() (err error) {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		features, err = e.Features(dev)
		return err
	})
	return features
}

// Channels sets how many receive and transmit queues of a device are in use, as ethtool -L does.
func (n *Namespace) Channels(dev string, rx, tx int) {
	n.tb.Helper()
	n.do(fmt.Sprintf("setting the channels of %q to %d receive, %d transmit", dev, rx, tx), func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		c, err := e.GetChannels(dev)
		if err != nil {
			return err
		}
		c.RxCount, c.TxCount = uint32(rx), uint32(tx)
		_, err = e.SetChannels(dev, c)
		return err
	})
}
