// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The classifier on the ingress of direct ports, and of the return port. It hands what is ours
 * (ingress.h) to the daemon's AF_XDP sockets. All else passes.
 *
 * On the return port's inner end all else is dropped: what passed there would be routed to the
 * service range again, and come back. What the other programs send there is ours already, and not
 * asked twice.
 */
#include "classifier.h"

struct nf_conn;
struct bpf_ct_opts___v1;

extern struct nf_conn *bpf_xdp_ct_lookup(struct xdp_md *ctx, struct bpf_sock_tuple *tuple,
					 __u32 tuple_size, struct bpf_ct_opts___v1 *opts,
					 __u32 opts_size) __weak __ksym;

#define CONTEXT struct xdp_md
#define CT_LOOKUP bpf_xdp_ct_lookup

__noinline int parse_fragment(struct xdp_md *ctx, struct tuple *t)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	return t ? read_fragment(t, data, end) : REASON_FRAGMENT;
}

__noinline int parse_quote(struct xdp_md *ctx, struct tuple *t)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	return t ? read_quote(t, data, end) : REASON_ICMP_ERROR;
}

/* A function of its own, so that the verifier walks what follows it once. */
__noinline int parse_frame(struct xdp_md *ctx, struct tuple *t)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	enum reason reason;

	if (!t)
		return REASON_TRUNCATED;
	reason = parse(t, data, end, end - data);
	if (fragments && reason == REASON_FRAGMENT)
		return parse_fragment(ctx, t);
	if (icmp_errors && reason == REASON_ICMP_ERROR)
		return parse_quote(ctx, t);
	return reason;
}

#include "ingress.h"

/* Was the frame steered here by another program of ours? */
static __always_inline bool steered(const struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	return (void *)(eth + 1) <= (void *)(long)ctx->data_end && is_mark(eth->source);
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

	reason = port->flags & PORT_RETURN && steered(ctx) ? REASON_STEERED : judge(ctx);
	if (reason >= REASON_HELD) {
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
	if (reason != REASON_FORWARD && reason != REASON_REPLY) {
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
