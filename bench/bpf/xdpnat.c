// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The peer xdp-redirect: NAT in XDP on the pods' host ends, sent on by bpf_redirect to the other
 * pod's host end. Redirected frames carry no word about their checksum, so what the pods send must
 * have finished ones (tx off on their devices), and the pods' ends need NAPI (GRO on).
 */
#include "nat.h"

/* RFC 1624, equation 3, for a sum in network byte order. */
static __always_inline __u16 replace(__u16 check, __u32 from_addr, __u32 to_addr, __u16 from_port, __u16 to_port)
{
	__u64 sum = (__u16)~check;

	sum += (__u32)~from_addr;
	sum += to_addr;
	sum += (__u16)~from_port;
	sum += to_port;
	return ~fold(sum);
}

SEC("xdp")
int xdp_nat(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + IP_OFF;
	struct udphdr *ports = data + L4_OFF;
	struct flow_key k = {};
	struct flow to;
	struct pod *pod;
	__u16 *check, word, updated;
	__u32 daddr;

	if (!read_tuple(data, end, &k) || !find_flow(&k, &to))
		return XDP_PASS;
	/* find_flow calls helpers that leave the packet alone, but the verifier wants the bounds again
	 * for the checksum's place. */
	check = data + L4_OFF + (k.proto == IPPROTO_TCP ? 16 : 6);
	if ((void *)(check + 1) > end || (void *)(ports + 1) > end)
		return XDP_PASS;
	daddr = to.reply ? k.daddr : to.addr;
	if (k.proto == IPPROTO_TCP || *check) {
		updated = to.reply ? replace(*check, k.saddr, to.addr, k.sport, to.port) :
				     replace(*check, k.daddr, to.addr, k.dport, to.port);
		*check = updated ? updated : (k.proto == IPPROTO_UDP ? 0xffff : 0);
	}
	ip->check = replace(ip->check, to.reply ? k.saddr : k.daddr, to.addr, 0, 0);
	if (to.reply) {
		ip->saddr = to.addr;
		ports->source = to.port;
	} else {
		ip->daddr = to.addr;
		ports->dest = to.port;
	}
	pod = find_pod(daddr);
	if (!pod)
		return XDP_PASS; /* on another node: the kernel routes it */
	/* TTL is the high byte of its word. */
	word = (__u16)ip->ttl << 8;
	ip->ttl--;
	ip->check = replace(ip->check, 0, 0, bpf_htons(word), bpf_htons((__u16)(word - 0x100)));
	__builtin_memcpy(eth->dest, pod->pod_mac, 6);
	__builtin_memcpy(eth->source, pod->host_mac, 6);
	return bpf_redirect(pod->ifindex, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
