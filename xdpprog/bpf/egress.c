// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The classifier on the egress of every port but the return port. It is for what the node itself
 * sends and no ingress hook ever meets: replies of backends on the node's own network, whole or in
 * fragments, and ICMP errors of the node's kernel about frames of our flows. They go to the return
 * port's outer end, whose offloads are off, so that the kernel segments and finishes them on the
 * way.
 *
 * Nothing loops. What AF_XDP transmits does not come by here. What the daemon has translated and
 * leaves to the kernel to route does, but is in no flow any more. What it gave back untranslated
 * is told by where it came from, and only a reply that the kernel had to route first goes back.
 *
 * All else goes on to the next program of the device.
 */
#include "classifier.h"
#include "skb.h"

/*
 * May the daemon have had this frame, and given it back? Then it came out of the return port's
 * outer end. A frame without an ingress device and without a socket is no better: it is what the
 * kernel makes of one that it joined and cuts again (ip6_fragment), which then has lost its device.
 */
static __always_inline bool seen(const struct __sk_buff *skb)
{
	return skb->ingress_ifindex ? skb->ingress_ifindex == outer_ifindex : !skb->sk;
}

static __always_inline enum reason judge(struct __sk_buff *skb)
{
	int direction = FLOW_NONE;
	struct tuple t = {};
	enum reason reason;

	reason = parse_skb_whole(skb, &t);
	if (reason != UNDECIDED)
		return reason;

	if (icmp_errors && t.kind == KIND_ERROR) {
		if (seen(skb))
			return REASON_ICMP_ERROR;
		direction = flow_find(&t);
		return direction == FLOW_FORWARD || direction == FLOW_REPLY
			       ? known(direction, KIND_ERROR)
			       : REASON_ICMP_ERROR;
	}
	/* By address alone, as on ingress: all of a datagram has to take the same way. */
	if (fragments && t.kind != KIND_WHOLE) {
		if (seen(skb))
			return REASON_FRAGMENT;
		if (from_backend(&t))
			return REASON_FRAGMENT_REPLY;
		if (t.kind == KIND_LATER)
			return REASON_NOT_OURS;
		return flow_find(&t) == FLOW_REPLY ? REASON_FRAGMENT_REPLY : REASON_NOT_OURS;
	}
	direction = flow_find(&t);
	if (direction != FLOW_REPLY) {
		/* From a process of the node. What is forwarded was seen where it came in, or is
		 * translated: by us, or by the kernel, whose connection may begin anew as ours. */
		if (direction == FLOW_NONE && !skb->ingress_ifindex && skb->sk)
			claim(&t);
		return REASON_NOT_OURS;
	}
	/* Out of the return port it has been translated, and only looks like a reply of another flow
	 * (beside()); but for one whose options the kernel had to see first. */
	if (skb->ingress_ifindex == outer_ifindex && !t.options)
		return REASON_NOT_OURS;
	return REASON_REPLY;
}

SEC("tcx/egress")
int sluice_egress(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	enum reason reason;
	struct port *port;
	int verdict = TCX_NEXT;

	port = bpf_map_lookup_elem(&ports, &ifindex);
	if (!port) {
		count(slots, HOOK_EGRESS, REASON_UNKNOWN_PORT);
		return TCX_NEXT;
	}
	reason = judge(skb);
	/* The slot is the return port's: the frame is the node's own, whatever port it leaves by. */
	if (reason < REASON_HELD)
		verdict = to_daemon(
			skb, skb->ingress_ifindex == outer_ifindex ? SLOT_ROUTED : return_slot, &reason);
	count(port->slot, HOOK_EGRESS, reason);
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
