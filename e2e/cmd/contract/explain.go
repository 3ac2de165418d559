package main

import (
	"slices"

	"github.com/sluice-net/sluice/e2e/stand"
)

// explain names the class of a difference that is understood and meant to be, or gives nothing. docs/contract.md has the
// reasons.
func explain(judge string, at frontend, j, s outcome, double twins, model outcome) string {
	switch {
	case judge == "iptables" && at.kind == unknownPort && j.verdict == silent && s.verdict == refused:
		return "iptables_ignores_unknown_ports"
	case judge == "iptables" && at.kind == noService && j.verdict == silent:
		return "iptables_ignores_unallocated_addresses"
	case double == oneOfThem && s.verdict == model.verdict && slices.Equal(s.backends, model.backends):
		return "kube_proxy_believes_either_twin"
	case double == contradict:
		return "contradictory_twins"
	}
	return ""
}

// explainHeld names what kube-proxy does to flows that outlive a change.
func explainHeld(d *stand.Dataplane, proto string) string {
	if !d.IsSluice() && proto == "udp" {
		return "kube_proxy_keeps_stale_udp"
	}
	return ""
}
