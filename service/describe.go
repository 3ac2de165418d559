package service

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// Description says of one ServicePort what is programmed, and of each of its endpoints why it is used or not.
type Description struct {
	Namespace string                `json:"namespace"`
	Name      string                `json:"name"`
	Port      string                `json:"port,omitempty"`
	Protocol  string                `json:"protocol"`
	Frontends []string              `json:"frontends"`
	Action    string                `json:"action"`
	Selection string                `json:"selection"`
	Affinity  string                `json:"affinity,omitempty"` // the timeout of sessionAffinity ClientIP
	Local     bool                  `json:"local,omitempty"`    // internalTrafficPolicy Local
	Rule      string                `json:"rule"`               // which endpoints are usable
	Endpoints []EndpointDescription `json:"endpoints"`
	Problems  []string              `json:"problems,omitempty"` // of the whole Service
}

// EndpointDescription says what becomes of an endpoint.
type EndpointDescription struct {
	Address string `json:"address"` // with its port
	Node    string `json:"node,omitempty"`
	Used    bool   `json:"used"`
	Why     string `json:"why,omitempty"` // it is not used
}

// Describe describes what was programmed at the last Commit, sorted as ServicePorts are.
func (c *Catalog) Describe() []Description {
	names := make([]types.NamespacedName, 0, len(c.entries))
	for name, e := range c.entries {
		if len(e.ports) != 0 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, compareNames)
	var all []Description
	for _, name := range names {
		e := c.entries[name]
		if e.service == nil {
			continue // deleted, and that is not committed yet
		}
		var problems []string
		for i := range e.report.Problems {
			problems = append(problems, e.report.Problems[i].Error())
		}
		for _, p := range e.ports {
			d := c.asm.describe(p, e)
			d.Problems = problems
			all = append(all, d)
		}
	}
	return all
}

func (a *assembler) describe(p *ServicePort, e *entry) Description {
	d := Description{
		Namespace: p.Namespace, Name: p.Name, Port: p.PortName, Protocol: protoName(p.Proto), Action: p.Action.String(),
		Selection: p.Selection.String(), Local: e.service.local, Endpoints: []EndpointDescription{},
	}
	for _, f := range p.Frontends {
		d.Frontends = append(d.Frontends, f.String())
	}
	if p.Affinity != 0 {
		d.Affinity = p.Affinity.String()
	}
	a.gather(p, e.slices)
	a.choose(e.service.local)
	d.Rule = a.rule
	for i := range a.candidates {
		at := &a.candidates[i]
		x := EndpointDescription{Address: at.Backend.String(), Node: at.node, Used: slices.Contains(p.Backends, at.Backend)}
		switch {
		case x.Used:
		case e.policed:
			x.Why = "a NetworkPolicy selects a backend of the Service on this node"
		case !at.serving && at.terminating:
			x.Why = "terminating, and no longer serving"
		case !at.ready && !at.serving:
			x.Why = "not ready"
		case !at.ready && !at.terminating:
			x.Why = "not ready, though it serves"
		case e.service.local && !at.local:
			x.Why = "on another node, and internalTrafficPolicy is Local"
		case !at.ready:
			x.Why = "terminating, and others are ready"
		default:
			x.Why = "its hints are for other " + a.rule + "s"
		}
		d.Endpoints = append(d.Endpoints, x)
	}
	for _, v := range e.slices {
		if v.ipv6 != p.IPv6 {
			continue
		}
		for i := range v.endpoints {
			if why := a.refuses(v.endpoints[i].addr); why != "" {
				d.Endpoints = append(d.Endpoints, EndpointDescription{
					Address: netip.AddrFrom16(v.endpoints[i].addr).Unmap().String(), Node: v.endpoints[i].node.Value(), Why: "refused: " + why,
				})
			}
		}
	}
	return d
}
