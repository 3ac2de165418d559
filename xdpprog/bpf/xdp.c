// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The classifier on the ingress of direct ports. It hands to the daemon's AF_XDP sockets:
 *
 * 1. a frame whose tuple is in the flow table, in either direction;
 * 2. TCP and UDP to an address we serve: in mode alone all of it, in mode front only what begins
 *    something and is not the kernel's already.
 *
 * All else passes. On the return port's inner end it is dropped instead: what passed there would be
 * routed to the service range again, and come back.
 */
#include "classifier.h"

struct nf_conn {
	unsigned long status;
};

/* net/netfilter/nf_conntrack_bpf.c; its first 12 bytes, which every kernel since 5.18 accepts. */
struct bpf_ct_opts___v1 {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

/* Weak, and called only if use_ct: without connection tracking in the kernel the program still
 * loads. */
extern struct nf_conn *bpf_xdp_ct_lookup(struct xdp_md *ctx, struct bpf_sock_tuple *tuple,
					 __u32 tuple_size, struct bpf_ct_opts___v1 *opts,
					 __u32 opts_size) __weak __ksym;
extern void bpf_ct_release(struct nf_conn *ct) __weak __ksym;

/* The kernel tells the families by these sizes. */
_Static_assert(sizeof(((struct bpf_sock_tuple *)0)->ipv4) == 12, "IPv4 tuple");
_Static_assert(sizeof(((struct bpf_sock_tuple *)0)->ipv6) == 36, "IPv6 tuple");

static __always_inline bool kernel_tracks(struct xdp_md *ctx, const struct tuple *t)
{
	struct bpf_ct_opts___v1 opts = {
		.netns_id = BPF_F_CURRENT_NETNS,
		.l4proto = t->proto,
	};
	struct bpf_sock_tuple tuple = {};
	struct nf_conn *ct;

	if (t->ipv4) {
		tuple.ipv4.saddr = t->src[1] >> 32;
		tuple.ipv4.daddr = t->dst[1] >> 32;
		tuple.ipv4.sport = t->ports;
		tuple.ipv4.dport = t->ports >> 16;
		ct = bpf_xdp_ct_lookup(ctx, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts));
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, t->src, sizeof(t->src));
		__builtin_memcpy(tuple.ipv6.daddr, t->dst, sizeof(t->dst));
		tuple.ipv6.sport = t->ports;
		tuple.ipv6.dport = t->ports >> 16;
		ct = bpf_xdp_ct_lookup(ctx, &tuple, sizeof(tuple.ipv6), &opts, sizeof(opts));
	}
	if (!ct)
		return false;
	bpf_ct_release(ct);
	return true;
}

static __always_inline enum reason judge(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct tuple t = {};
	enum reason reason;

	reason = parse(&t, data, end, end - data);
	if (reason != UNDECIDED)
		return reason;

	/*
	 * The table first: every reply has to be looked up there anyway. A flow whose Service is
	 * gone is still ours, its connection ends in its own time.
	 */
	switch (flow_find(&t)) {
	case FLOW_FORWARD:
		return REASON_FORWARD;
	case FLOW_REPLY:
		return REASON_REPLY;
	}
	if (!served(&t))
		return REASON_NOT_OURS;
	if (mode == MODE_FRONT) {
		if (t.proto == IPPROTO_TCP && !t.opens)
			return REASON_KERNEL_TCP;
		if (t.proto == IPPROTO_UDP && use_ct && kernel_tracks(ctx, &t))
			return REASON_KERNEL_UDP;
	}
	return REASON_NEW;
}

SEC("xdp")
int sluice_xdp(struct xdp_md *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex, queue = ctx->rx_queue_index, index;
	int verdict = XDP_PASS, away = XDP_PASS;
	enum reason reason;
	struct port *port;
	__s64 age;

	port = bpf_map_lookup_elem(&ports, &ifindex);
	if (!port) {
		count(slots, HOOK_INGRESS, REASON_UNKNOWN_PORT);
		return XDP_PASS;
	}
	if (port->flags & PORT_RETURN)
		away = XDP_DROP;

	reason = judge(ctx);
	switch (reason) {
	case REASON_FORWARD:
	case REASON_REPLY:
	case REASON_NEW:
		break;
	default:
		verdict = away;
		goto out;
	}

	/* Another slot's socket would be a black hole. */
	if (queue >= queues) {
		reason = REASON_BAD_QUEUE;
		verdict = away;
		goto out;
	}
	index = port->slot * queues + queue;
	age = age_of_beat(index);
	if (fresh(age)) {
		/* Without a socket there this answers the fallback. */
		verdict = bpf_redirect_map(&xsks, index, away);
		if (verdict == XDP_REDIRECT)
			goto out;
	}
	if (reason == REASON_NEW) {
		reason = REASON_DEAD_NEW;
		verdict = away;
	} else if (holds(age)) {
		reason = REASON_HELD;
		verdict = XDP_DROP;
	} else {
		reason = REASON_DEAD_KNOWN;
		verdict = away;
	}
out:
	count(port->slot, HOOK_INGRESS, reason);
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
