package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"

	"github.com/sluice-net/sluice/xdpprog"
)

// Grade says how good or bad a [Finding] is.
type Grade uint8

const (
	// Good is as it should be.
	Good Grade = iota
	// Doubtful works, but perhaps not as wanted.
	Doubtful
	// Bad does not work.
	Bad
)

// Finding is one thing that Examine looked at.
type Finding struct {
	Grade Grade
	About string // a device, or what else it is about
	Text  string
	Cure  string // of what is not Good
}

// Examine looks at the node as Open would, without changing anything: at the devices that
// cfg chooses, and at settings and rules that get in the way. On a thread in the node's
// network namespace.
func Examine(cfg Config) ([]Finding, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	d := &Dataplane{cfg: cfg, log: slog.New(slog.DiscardHandler)}
	d.ports.Store(newPortSet(nil))
	var err error
	if d.nl, err = netlink.NewHandle(); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer d.nl.Close()
	if d.eth, err = ethtool.NewEthtool(); err != nil {
		return nil, fmt.Errorf("ethtool: %w", err)
	}
	defer d.eth.Close()
	if d.egress, err = newEgress(d.nl, &d.ports, d.log); err != nil {
		return nil, err
	}
	defer d.egress.close()
	links, err := retryDump(d.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	findings := d.examineDevices(links)
	findings = append(findings, examineReturnPort(links, cfg.ReturnPort), d.examineRules())
	findings = append(findings, examineSettings()...)
	return append(findings, examineFilters()...), nil
}

// examineDevices looks at each device that is chosen, and for those that are named.
func (d *Dataplane) examineDevices(links []netlink.Link) (all []Finding) {
	f := d.egress.fib.Load()
	named := d.named()
	slices.SortFunc(links, func(a, b netlink.Link) int { return strings.Compare(a.Attrs().Name, b.Attrs().Name) })
	for _, l := range links {
		delete(named, l.Attrs().Name)
		c := d.choose(l, f)
		if c == nil {
			continue
		}
		finding := Finding{About: "interface " + l.Attrs().Name}
		p, err := d.inspect(l, c)
		foreign, tcx := xdpprog.Foreign(l)
		switch {
		case err != nil:
			finding.Grade, finding.Text, finding.Cure = Bad, err.Error(), "choose another kind, or kind none"
		case p.mtu > d.room():
			finding.Grade, finding.Text, finding.Cure = Bad, fmt.Sprintf("its MTU is %d, a frame of packet memory holds %d", p.mtu, d.room()), "lower the MTU, or kind none"
		case !p.steered && foreign != nil:
			finding.Grade, finding.Text = Bad, fmt.Sprintf("a foreign XDP program is attached (id %d, name %q)", foreign.ID, foreign.Name)
			finding.Cure = "ip link set dev " + p.name + " xdp off, kind steered, or replaceForeignXDP: true"
		default:
			finding.Text = fmt.Sprintf("served as %s (driver %s, MTU %d, role %q)", p.granted, p.driver, p.mtu, roleOf(l, f.gateways[p.ifindex]).String())
			if tcx > 0 {
				finding.Grade, finding.Text = Doubtful, finding.Text+fmt.Sprintf("; %d foreign tc programs are attached", tcx)
				finding.Cure = "nothing, if they are the CNI's: they run after ours, and see what we leave"
			}
		}
		all = append(all, finding)
	}
	for name := range named {
		all = append(all, Finding{Bad, "interface " + name, "there is no such device", "correct the name, or use a pattern"})
	}
	if len(all) == 0 {
		all = append(all, Finding{Doubtful, "interfaces", "nothing here is chosen", "look at the names, drivers and roles under interfaces; ip -d link lists what there is"})
	}
	return all
}

func examineReturnPort(links []netlink.Link, name string) Finding {
	f := Finding{About: "return port", Text: name + "-out and " + name + "-in will be made"}
	for _, l := range links {
		switch at := l.Attrs(); {
		case at.Name != name+"-out":
		case at.Alias == returnAlias:
			f.Text = at.Name + " is there already, and ours"
		default:
			f.Grade, f.Text, f.Cure = Bad, at.Name+" is there already, and not ours", "delete it, or choose another returnPort"
		}
	}
	return f
}

// examineRules looks for policy routing.
func (d *Dataplane) examineRules() Finding {
	f := Finding{About: "routing rules", Text: "the default ones"}
	if r := foreignRule(d.nl); r != nil {
		f.Grade, f.Text = Doubtful, "there is one that is not followed: "+r.String()
		f.Cure = "nothing, if it is not about pods and Services: packets leave as the tables local and main have it"
	}
	return f
}

// examineSettings looks at what the node must do for pods.
func examineSettings() (all []Finding) {
	for _, s := range []struct{ about, path, key string }{
		{"forwarding IPv4", "ipv4/ip_forward", "net.ipv4.ip_forward"},
		{"forwarding IPv6", "ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"},
	} {
		value, err := os.ReadFile("/proc/sys/net/" + s.path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			all = append(all, Finding{Good, s.about, "this kernel has no such protocol", ""})
		case err != nil || strings.TrimSpace(string(value)) == "0":
			all = append(all, Finding{Doubtful, s.about, "it is off: what leaves by the return port is not routed", "sysctl -w " + s.key + "=1"})
		default:
			all = append(all, Finding{Good, s.about, "on", ""})
		}
	}
	return all
}

// examineFilters looks for chains that drop what no rule of theirs accepts: translated
// packets are not tracked, so a rule that accepts what is established accepts none.
func examineFilters() (all []Finding) {
	c, err := nftables.New()
	if err != nil {
		return []Finding{{Doubtful, "filters", "nftables cannot be asked: " + err.Error(), "look at the policy of forward chains yourself"}}
	}
	chains, err := c.ListChains()
	if err != nil {
		return []Finding{{Doubtful, "filters", "nftables cannot be asked: " + err.Error(), "look at the policy of forward chains yourself"}}
	}
	for _, ch := range chains {
		if ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
			all = append(all, Finding{Doubtful, "filters", fmt.Sprintf("chain %s of table %s drops what no rule accepts, and translated packets are not tracked", ch.Name, ch.Table.Name),
				"accept untracked packets of pods there (ct state untracked)"})
		}
	}
	if all == nil {
		all = append(all, Finding{Good, "filters", "no forward chain of nftables drops by default", ""})
	}
	return all
}
