// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The classifier on the egress of every port but the return port. It is for what the node itself
 * sends and no ingress hook ever meets: replies of backends on the node's own network. They go to
 * the return port's outer end, whose offloads are off, so that the kernel segments and finishes
 * them on the way. What AF_XDP transmits does not come by here, so nothing loops.
 *
 * All else goes on to the next program of the device.
 */
#include "classifier.h"

/* A function of its own, so that the verifier sees it once although it is called twice. */
__noinline int parse_skb(struct __sk_buff *skb, struct tuple *t)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (!t)
		return REASON_TRUNCATED;
	return parse(t, data, end, skb->len);
}

/* Longest headers we read: Ethernet, two tags, IPv6, four extension headers of usual size, TCP. */
#define PULL 256

static __always_inline enum reason judge(struct __sk_buff *skb)
{
	struct tuple t = {};
	enum reason reason;

	if (skb->vlan_present)
		return REASON_VLAN_OFFLOADED;
	reason = parse_skb(skb, &t);
	if (reason == REASON_TRUNCATED) {
		/* Perhaps only the linear part ends there. Seldom: locally sent headers are linear.
		 */
		if (bpf_skb_pull_data(skb, skb->len < PULL ? skb->len : PULL))
			return REASON_TRUNCATED;
		reason = parse_skb(skb, &t);
	}
	if (reason != UNDECIDED)
		return reason;
	return flow_find(&t) == FLOW_REPLY ? REASON_REPLY : REASON_NOT_OURS;
}

SEC("tcx/egress")
int sluice_egress(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, index = return_slot * queues;
	enum reason reason;
	struct port *port;
	__s64 age;
	int verdict = TCX_NEXT;

	port = bpf_map_lookup_elem(&ports, &ifindex);
	if (!port) {
		count(slots, HOOK_EGRESS, REASON_UNKNOWN_PORT);
		return TCX_NEXT;
	}
	reason = judge(skb);
	if (reason != REASON_REPLY)
		goto out;

	age = age_of_beat(index);
	if (fresh(age) && bpf_map_lookup_elem(&xsks, &index)) {
		verdict = bpf_redirect(outer_ifindex, 0);
	} else if (holds(age)) {
		reason = REASON_HELD;
		verdict = TCX_DROP;
	} else {
		reason = REASON_DEAD_KNOWN;
	}
out:
	count(port->slot, HOOK_EGRESS, reason);
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
