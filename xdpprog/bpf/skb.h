/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the two tc programs share: parsing an skb, and sending it to the daemon by the return port.
 */
#pragma once

/* Functions of their own, so that the verifier sees them once although they are called twice. */
__noinline int parse_fragment(struct __sk_buff *skb, struct tuple *t)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	return t ? read_fragment(t, data, end) : REASON_FRAGMENT;
}

__noinline int parse_quote(struct __sk_buff *skb, struct tuple *t)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	return t ? read_quote(t, data, end) : REASON_ICMP_ERROR;
}

__noinline int parse_skb(struct __sk_buff *skb, struct tuple *t)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	enum reason reason;

	if (!t)
		return REASON_TRUNCATED;
	reason = parse(t, data, end, skb->len);
	if (fragments && reason == REASON_FRAGMENT)
		return parse_fragment(skb, t);
	if (icmp_errors && reason == REASON_ICMP_ERROR)
		return parse_quote(skb, t);
	return reason;
}

/* Longest headers we read: Ethernet, two tags, IPv6, eight extension headers of usual size, and TCP
 * or an error with as much in its quote. */
#define PULL 256

/* parse_skb() for a frame that may not be linear as far as we read. */
static __always_inline enum reason parse_skb_whole(struct __sk_buff *skb, struct tuple *t)
{
	enum reason reason;

	if (skb->vlan_present)
		return REASON_VLAN_OFFLOADED;
	reason = parse_skb(skb, t);
	if (reason == REASON_TRUNCATED) {
		/* Perhaps only the linear part ends there. Seldom: headers that were sent locally,
		 * or pulled by a driver, are linear. */
		if (bpf_skb_pull_data(skb, skb->len < PULL ? skb->len : PULL))
			return REASON_TRUNCATED;
		reason = parse_skb(skb, t);
	}
	return reason;
}

/*
 * to_daemon ends a frame that is ours, for this reason: with the daemon, by the return port's outer
 * end, whose offloads are off, so that the kernel segments and finishes the frame on the way. Its
 * source address says by which slot it came in. Without a live daemon it ends as it does in XDP.
 */
static __always_inline int to_daemon(struct __sk_buff *skb, __u32 slot, enum reason *reason)
{
	__u32 queue = return_queues > 1 ? bpf_get_hash_recalc(skb) % return_queues : 0;
	__u32 index = return_slot * queues + queue;
	__s64 age = age_of_beat(index);

	if (fresh(age) && bpf_map_lookup_elem(&xsks, &index)) {
		__u8 mark[ETH_ALEN] = {MARK_0, MARK_1, MARK_2, MARK_3, slot >> 8, slot};

		if (!bpf_skb_store_bytes(skb, __builtin_offsetof(struct ethhdr, source), mark,
					 sizeof(mark), 0)) {
			/* As the number of a receive queue, counted from 1: so it is the one that
			 * the frame is sent by, and received by at the other end (skb_tx_hash in
			 * net/core/dev.c, veth_xmit in drivers/net/veth.c). */
			if (return_queues > 1)
				skb->queue_mapping = queue + 1;
			return bpf_redirect(outer_ifindex, 0);
		}
		*reason = REASON_NO_MEMORY;
		return TCX_DROP;
	}
	if (*reason != REASON_FORWARD && *reason != REASON_REPLY) {
		*reason = REASON_DEAD_NEW;
		return TCX_NEXT;
	}
	if (holds(age)) {
		*reason = REASON_HELD;
		return TCX_DROP;
	}
	*reason = REASON_DEAD_KNOWN;
	return TCX_NEXT;
}
