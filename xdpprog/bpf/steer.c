// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The classifier on the ingress of steered ports, as a tc program: the device keeps what native XDP
 * would take from it, above all the segmentation offload of the pod behind a veth. What is ours
 * (ingress.h) goes to the daemon by the return port (to_daemon()), with the slot of this port as its
 * source address, since the daemon must know where a frame came from.
 *
 * All else goes on to the next program of the device.
 */
#include "classifier.h"

#include "skb.h"

struct nf_conn;
struct bpf_ct_opts___v1;

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *ctx, struct bpf_sock_tuple *tuple,
					 __u32 tuple_size, struct bpf_ct_opts___v1 *opts,
					 __u32 opts_size) __weak __ksym;

#define CONTEXT struct __sk_buff
#define CT_LOOKUP bpf_skb_ct_lookup

/* A function of its own, so that the verifier walks what follows it once. */
__noinline int parse_frame(struct __sk_buff *skb, struct tuple *t)
{
	return t ? parse_skb_whole(skb, t) : REASON_TRUNCATED;
}

#include "ingress.h"

SEC("tcx/ingress")
int sluice_steer(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	enum reason reason;
	struct port *port;
	int verdict = TCX_NEXT;

	port = bpf_map_lookup_elem(&ports, &ifindex);
	if (!port) {
		count(slots, HOOK_INGRESS, REASON_UNKNOWN_PORT);
		return TCX_NEXT;
	}
	reason = judge(skb);
	if (reason < REASON_HELD)
		verdict = to_daemon(skb, port->slot, &reason);
	count(port->slot, HOOK_INGRESS, reason);
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
