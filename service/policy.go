package service

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// NetworkPolicy is enforced by somebody else, with rules in the kernel that frames of ours do not meet. So a pod of this node
// that any policy selects is left to the kernel at both of its ends: as a client, and as a backend with its whole Service,
// since nobody knows which backend a flow will get. Pods on the host's network are not subject to policies.

// policies are the NetworkPolicies and the pods of this node.
type policies struct {
	pods      map[types.NamespacedName]podView
	selectors map[string]map[string]labels.Selector // by namespace and name of the policy
	dirty     bool
	selected  map[[16]byte]struct{} // addresses of pods that a policy selects; never changed, but replaced
}

type podView struct {
	addrs  string // 16 bytes each
	labels labels.Set
}

func (p *policies) init() {
	p.pods, p.selectors = make(map[types.NamespacedName]podView), make(map[string]map[string]labels.Selector)
}

// SetPod tells of a pod. Those of other nodes do not count.
func (c *Catalog) SetPod(p *corev1.Pod) {
	name := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
	if p.Spec.NodeName != c.cfg.NodeName || p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		c.DeletePod(p.Namespace, p.Name)
		return
	}
	var addrs strings.Builder
	for _, ip := range p.Status.PodIPs {
		if a, err := parseAddr(ip.IP); err == nil {
			b := a.As16()
			addrs.Write(b[:])
		}
	}
	v := podView{addrs.String(), p.Labels}
	if old, ok := c.policies.pods[name]; ok && old.addrs == v.addrs && labels.Equals(old.labels, v.labels) {
		return
	}
	c.policies.pods[name], c.policies.dirty = v, true
}

// DeletePod tells that a pod is gone.
func (c *Catalog) DeletePod(namespace, name string) {
	key := types.NamespacedName{Namespace: namespace, Name: name}
	if _, ok := c.policies.pods[key]; ok {
		delete(c.policies.pods, key)
		c.policies.dirty = true
	}
}

// ReplacePods tells of all pods of this node that there are.
func (c *Catalog) ReplacePods(all []*corev1.Pod) {
	seen := make(map[types.NamespacedName]struct{}, len(all))
	for _, p := range all {
		seen[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}] = struct{}{}
		c.SetPod(p)
	}
	for name := range c.policies.pods {
		if _, ok := seen[name]; !ok {
			c.DeletePod(name.Namespace, name.Name)
		}
	}
}

// SetPolicy tells of a NetworkPolicy. One whose selector cannot be read selects everything: too much is safe.
func (c *Catalog) SetPolicy(p *networkingv1.NetworkPolicy) {
	selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
	if err != nil {
		selector = labels.Everything()
	}
	in := c.policies.selectors[p.Namespace]
	if in == nil {
		in = make(map[string]labels.Selector)
		c.policies.selectors[p.Namespace] = in
	}
	if old, ok := in[p.Name]; !ok || old.String() != selector.String() {
		in[p.Name], c.policies.dirty = selector, true
	}
}

// DeletePolicy tells that a NetworkPolicy is gone.
func (c *Catalog) DeletePolicy(namespace, name string) {
	if _, ok := c.policies.selectors[namespace][name]; ok {
		delete(c.policies.selectors[namespace], name)
		c.policies.dirty = true
	}
}

// ReplacePolicies tells of all NetworkPolicies that there are.
func (c *Catalog) ReplacePolicies(all []*networkingv1.NetworkPolicy) {
	seen := make(map[types.NamespacedName]struct{}, len(all))
	for _, p := range all {
		seen[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}] = struct{}{}
		c.SetPolicy(p)
	}
	for namespace, in := range c.policies.selectors {
		for name := range in {
			if _, ok := seen[types.NamespacedName{Namespace: namespace, Name: name}]; !ok {
				c.DeletePolicy(namespace, name)
			}
		}
	}
}

// choose finds the addresses that are selected, and gives those for which that is new or over.
func (p *policies) choose() (moved map[[16]byte]struct{}) {
	p.dirty = false
	selected := make(map[[16]byte]struct{})
	for name, pod := range p.pods {
		for _, s := range p.selectors[name.Namespace] {
			if s.Matches(pod.labels) {
				for at := 0; at < len(pod.addrs); at += 16 {
					selected[[16]byte([]byte(pod.addrs[at:at+16]))] = struct{}{}
				}
				break
			}
		}
	}
	moved = make(map[[16]byte]struct{})
	for a := range selected {
		if _, was := p.selected[a]; !was {
			moved[a] = struct{}{}
		}
	}
	for a := range p.selected {
		if _, is := selected[a]; !is {
			moved[a] = struct{}{}
		}
	}
	if len(moved) != 0 {
		p.selected = selected
	}
	return moved
}

// policed gives a backend of e that a policy selects.
func (p *policies) policed(e *entry) (addr netip.Addr, yes bool) {
	if len(p.selected) == 0 {
		return addr, false
	}
	for _, v := range e.slices {
		for i := range v.endpoints {
			if _, ok := p.selected[v.endpoints[i].addr]; ok {
				return netip.AddrFrom16(v.endpoints[i].addr).Unmap(), true
			}
		}
	}
	return addr, false
}
