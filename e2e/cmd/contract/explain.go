package main

import "slices"

// explain names the class of a difference that is understood and meant to be, or gives nothing. docs/contract.md has the
// reasons.
func explain(judge, client string, at frontend, j, s outcome, double twins, model outcome) string {
	switch {
	case judge == "iptables" && at.kind == unknownPort && j.verdict == silent && s.verdict == refused:
		return "iptables_ignores_unknown_ports"
	case client == "node" && at.proto != "tcp" && at.kind == noService && j.verdict == refused && s.verdict == silent:
		return "drop_in_own_output_is_an_error" // EPERM of sendmsg, which a rejection gives as well
	case judge == "iptables" && at.kind == noService && j.verdict == silent:
		return "iptables_ignores_unallocated_addresses"
	case double == oneOfThem && s.verdict == model.verdict && slices.Equal(s.backends, model.backends):
		return "kube_proxy_believes_either_twin"
	case double == contradict:
		return "contradictory_twins"
	}
	return ""
}

// explainHeld names what kube-proxy does to flows that outlive a change: its own, and those that Sluice leaves to it in front.
func explainHeld(mode, client, proto string) string {
	switch {
	case proto != "udp":
		return ""
	case mode == "nftables" || mode == "iptables":
		return "kube_proxy_keeps_stale_udp"
	case mode == "front" && (client == "node" || client == "outside"):
		return "front_leaves_stale_udp_to_kube_proxy"
	}
	return ""
}
