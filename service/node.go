package service

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// around is what a Snapshot knows besides Services. It is immutable.
type around struct {
	policed map[[16]byte]struct{}
	ranges  []netip.Prefix
	pods    []netip.Prefix
}

// Policed says whether the address is that of a pod of this node that a NetworkPolicy selects: no flow of its may be ours.
func (s *Snapshot) Policed(addr *[16]byte) bool {
	if len(s.around.policed) == 0 {
		return false
	}
	_, ok := s.around.policed[*addr]
	return ok
}

// Ranges lists the ranges that ClusterIPs come from, as far as they are known. The caller must not change it.
func (s *Snapshot) Ranges() []netip.Prefix { return s.around.ranges }

// Outside says whether a client is known not to be a pod, so that its flows are to be masqueraded. If no range of its family
// is known to be the pods', nobody is outside.
func (s *Snapshot) Outside(client *[16]byte) bool {
	if len(s.around.pods) == 0 || contains(s.around.pods, client) {
		return false
	}
	v4 := netip.AddrFrom16(*client).Is4In6()
	for _, p := range s.around.pods {
		if p.Addr().Is4() == v4 {
			return true
		}
	}
	return false
}

func contains(list []netip.Prefix, addr *[16]byte) bool {
	if len(list) == 0 {
		return false
	}
	a := netip.AddrFrom16(*addr).Unmap()
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// SetNode tells of this node. Others do not count.
func (c *Catalog) SetNode(n *corev1.Node) {
	if n.Name == c.cfg.NodeName {
		c.setNode(n.Labels[corev1.LabelTopologyZone], parsePrefixes(n.Spec.PodCIDRs))
	}
}

// DeleteNode tells that a node is gone.
func (c *Catalog) DeleteNode(_, name string) {
	if name == c.cfg.NodeName {
		c.setNode("", nil)
	}
}

// ReplaceNodes tells of all nodes that are watched.
func (c *Catalog) ReplaceNodes(all []*corev1.Node) {
	for _, n := range all {
		if n.Name == c.cfg.NodeName {
			c.SetNode(n)
			return
		}
	}
	c.DeleteNode("", c.cfg.NodeName)
}

func (c *Catalog) setNode(zone string, pods []netip.Prefix) {
	if c.cfg.Zone != "" {
		zone = c.cfg.Zone
	}
	if zone != c.asm.zone {
		c.asm.zone, c.asm.known = zone, nil
		c.touchAll()
	}
	if c.cfg.NodePods && !slices.Equal(pods, c.around.pods) {
		c.around.pods, c.moved.around = pods, true
	}
}

func (c *Catalog) touchAll() {
	for _, e := range c.entries {
		c.touch(e)
	}
}

// SetRange tells of a ServiceCIDR.
func (c *Catalog) SetRange(s *networkingv1.ServiceCIDR) {
	c.ranges.objects[s.Name] = parsePrefixes(s.Spec.CIDRs)
	c.ranges.dirty = true
}

// DeleteRange tells that a ServiceCIDR is gone.
func (c *Catalog) DeleteRange(_, name string) {
	delete(c.ranges.objects, name)
	c.ranges.dirty = true
}

// ReplaceRanges tells of all ServiceCIDRs that there are.
func (c *Catalog) ReplaceRanges(all []*networkingv1.ServiceCIDR) {
	clear(c.ranges.objects)
	for _, s := range all {
		c.SetRange(s)
	}
	c.ranges.dirty = true
}

// rerange puts changed Service ranges in force: every claim is made again.
func (c *Catalog) rerange() {
	c.ranges.dirty = false
	if !c.ranges.refresh() {
		return
	}
	for _, e := range c.entries {
		if e.service != nil {
			c.release(e)
		}
	}
	for _, e := range c.entries {
		if e.service != nil {
			c.claim(e)
		}
		c.touch(e)
	}
	c.around.ranges, c.moved.around = c.ranges.all, true
}

// parsePrefixes reads what the API server has validated; what is wrong all the same is left out.
func parsePrefixes(texts []string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil {
			list = append(list, p.Masked())
		}
	}
	return list
}
