/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the ingress of direct and of steered ports shares: is a frame ours?
 *
 * 1. a frame whose tuple is in the flow table, in either direction, is;
 * 2. TCP, UDP and SCTP to an address we serve: in mode alone all of it, in mode front only what
 *    begins something and is not the kernel's already;
 * 3. a fragment to an address we serve, or from a backend;
 * 4. an ICMP error about a frame of a flow that is in the flow table.
 *
 * The hook that includes this says what its context is (CONTEXT), how to parse a frame of it
 * (parse_frame()), and which of the kernel's calls asks its connection tracking (CT_LOOKUP).
 */
#pragma once

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

/* Weak, as CT_LOOKUP is: without connection tracking in the kernel the program still loads. */
extern void bpf_ct_release(struct nf_conn *ct) __weak __ksym;

/* The kernel tells the families by these sizes. */
_Static_assert(sizeof(((struct bpf_sock_tuple *)0)->ipv4) == 12, "IPv4 tuple");
_Static_assert(sizeof(((struct bpf_sock_tuple *)0)->ipv6) == 36, "IPv6 tuple");

static __always_inline bool kernel_tracks(CONTEXT *ctx, const struct tuple *t)
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
		ct = CT_LOOKUP(ctx, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts));
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, t->src, sizeof(t->src));
		__builtin_memcpy(tuple.ipv6.daddr, t->dst, sizeof(t->dst));
		tuple.ipv6.sport = t->ports;
		tuple.ipv6.dport = t->ports >> 16;
		ct = CT_LOOKUP(ctx, &tuple, sizeof(tuple.ipv6), &opts, sizeof(opts));
	}
	if (!ct)
		return false;
	bpf_ct_release(ct);
	return true;
}

/*
 * In mode front the kernel serves the connections that it has begun: of what is to an address we
 * serve and not in the flow table, only what begins something is ours.
 */
static __always_inline enum reason kernels(CONTEXT *ctx, const struct tuple *t)
{
	if (t->proto == IPPROTO_TCP && !t->opens)
		return REASON_KERNEL_TCP;
	if (sctp && t->proto == IPPROTO_SCTP && !t->opens)
		return REASON_KERNEL_SCTP;
	if (t->proto == IPPROTO_UDP && use_ct && kernel_tracks(ctx, t))
		return REASON_KERNEL_UDP;
	return UNDECIDED;
}

/*
 * Fragments. All of a datagram share the fate of its first, which alone has the ports, but they
 * come in any order and this program remembers nothing. The daemon does, so it gets all that may be
 * of a flow of its own, and hands the rest to the kernel through the return port, unchanged. The
 * kernel joins fragments by addresses, protocol and ID, whatever device they came by
 * (ip4_frag_match, net/ipv4/ip_fragment.c), so it does not mind the way that they took.
 *
 * - Forward, that is to an address we serve: in mode alone all. In mode front a first fragment is
 *   asked what any frame is asked, since the kernel translates the datagrams of connections that it
 *   has begun. A later one cannot be asked: its datagram may be the kernel's or the daemon's. The
 *   daemon knows if it has had the first. If it never does, because that passed here, the others
 *   have to be given to the kernel, which keeps the first for half a minute (IP_FRAG_TIME). Were
 *   they to pass here instead, no datagram of ours would ever be whole.
 * - Reply, that is from a backend's address: all, the first too although its tuple can be looked
 *   up. What a backend sends to others is not in the flow table; were its first fragment to pass,
 *   the daemon would wait for it in vain.
 */
static __always_inline enum reason judge(CONTEXT *ctx)
{
	int direction = FLOW_NONE;
	struct tuple t = {};
	bool fragment, later;
	enum reason reason;

	reason = parse_frame(ctx, &t);
	if (reason != UNDECIDED)
		return reason;
	later = fragments && t.kind == KIND_LATER;
	fragment = later || (fragments && t.kind == KIND_FIRST);

	/*
	 * The table first: every reply has to be looked up there anyway. A flow whose Service is
	 * gone is still ours, its connection ends in its own time.
	 */
	if (!later)
		direction = flow_find(&t);
	if (direction == FLOW_FORWARD || direction == FLOW_REPLY)
		return known(direction, t.kind);
	if (icmp_errors && t.kind == KIND_ERROR)
		return REASON_ICMP_ERROR;
	if (served(&t)) {
		if (mode == MODE_FRONT && !later) {
			reason = kernels(ctx, &t);
			if (reason != UNDECIDED)
				return reason;
		}
		return fragment ? REASON_FRAGMENT_FORWARD : REASON_NEW;
	}
	if (fragment)
		return from_backend(&t) ? REASON_FRAGMENT_REPLY : REASON_NOT_OURS;
	/* A flow without a record has replies that only the daemon can tell. */
	if (mode == MODE_ALONE && overflows() && from_backend(&t))
		return REASON_OVERFLOW;
	return direct(&t);
}
