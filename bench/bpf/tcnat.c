// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The peer tc-ebpf: NAT on tc ingress of the pods' host ends, delivered into the pod by
 * bpf_redirect_peer, as Cilium's datapath does for pods on the same node. The faults at the end are
 * for the suite's own test: a peer that breaks a known share of packets.
 */
#include "nat.h"

struct faults {
	__u32 drop; /* one in so many stamped datagrams, by its number; 0: none */
	__u32 duplicate;
	__u32 corrupt;
	__u32 missource;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct faults);
} faults SEC(".maps");

const volatile bool faulty = false;

#define csum_offset(proto) (L4_OFF + ((proto) == IPPROTO_TCP ? 16 : 6))

/* UDP without a checksum stays without one. */
#define csum_flags(proto) ((proto) == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0)

static __always_inline void rewrite(struct __sk_buff *skb, __u8 proto, __u32 ip_off, __u32 port_off, __u32 old_addr,
				    __u32 addr, __u16 old_port, __u16 port)
{
	bpf_l4_csum_replace(skb, csum_offset(proto), old_addr, addr, BPF_F_PSEUDO_HDR | csum_flags(proto) | 4);
	bpf_l4_csum_replace(skb, csum_offset(proto), old_port, port, csum_flags(proto) | 2);
	bpf_l3_csum_replace(skb, IP_OFF + 10, old_addr, addr, 4);
	bpf_skb_store_bytes(skb, ip_off, &addr, 4, 0);
	bpf_skb_store_bytes(skb, port_off, &port, 2, 0);
}

/* Numbers are counted from the run's first, so that shares are exact. Remainders differ, so that no
 * datagram is broken twice. */
static __always_inline bool hit(__u32 seq, __u32 one_in, __u32 remainder)
{
	return one_in && seq % one_in == remainder;
}

static __noinline int break_some(struct __sk_buff *skb, __u32 ifindex)
{
	struct faults *f;
	struct stamp s;
	__u32 zero = 0, seq, source;
	__u8 byte;

	f = bpf_map_lookup_elem(&faults, &zero);
	if (!f || !skb || bpf_skb_load_bytes(skb, PAYLOAD_OFF, &s, sizeof(s)))
		return 0;
	seq = bpf_ntohl(s.seq);
	if (hit(seq, f->drop, 1))
		return 1;
	if (hit(seq, f->corrupt, 2)) {
		bpf_skb_load_bytes(skb, PAYLOAD_OFF + sizeof(s), &byte, 1);
		byte ^= 0x10;
		bpf_skb_store_bytes(skb, PAYLOAD_OFF + sizeof(s), &byte, 1, 0);
	}
	if (hit(seq, f->missource, 3)) {
		bpf_skb_load_bytes(skb, IP_OFF + 12, &source, 4);
		zero = source ^ bpf_htonl(1);
		bpf_l4_csum_replace(skb, csum_offset(IPPROTO_UDP), source, zero, BPF_F_PSEUDO_HDR | 4);
		bpf_l3_csum_replace(skb, IP_OFF + 10, source, zero, 4);
		bpf_skb_store_bytes(skb, IP_OFF + 12, &zero, 4, 0);
	}
	if (hit(seq, f->duplicate, 4))
		bpf_clone_redirect(skb, ifindex, 0);
	return 0;
}

SEC("tcx/ingress")
int tc_nat(struct __sk_buff *skb)
{
	struct flow_key k = {};
	struct flow to;
	struct pod *pod;
	struct {
		__u8 dest[6];
		__u8 source[6];
	} macs;
	__u32 daddr;
	__u16 old_ttl, new_ttl;
	__u8 ttl;

	if (!read_tuple((void *)(long)skb->data, (void *)(long)skb->data_end, &k))
		return TC_OK;
	if (!find_flow(&k, &to))
		return TC_OK;
	if (to.reply) {
		rewrite(skb, k.proto, IP_OFF + 12, L4_OFF, k.saddr, to.addr, k.sport, to.port);
		daddr = k.daddr;
	} else {
		rewrite(skb, k.proto, IP_OFF + 16, L4_OFF + 2, k.daddr, to.addr, k.dport, to.port);
		daddr = to.addr;
	}
	pod = find_pod(daddr);
	if (!pod)
		return TC_OK; /* on another node: the kernel routes it */
	/* The word of TTL and protocol. */
	bpf_skb_load_bytes(skb, IP_OFF + 8, &old_ttl, 2);
	new_ttl = old_ttl - 1; /* the TTL is the low byte here */
	ttl = new_ttl;
	bpf_l3_csum_replace(skb, IP_OFF + 10, old_ttl, new_ttl, 2);
	bpf_skb_store_bytes(skb, IP_OFF + 8, &ttl, 1, 0);
	__builtin_memcpy(macs.dest, pod->pod_mac, 6);
	__builtin_memcpy(macs.source, pod->host_mac, 6);
	bpf_skb_store_bytes(skb, 0, &macs, 12, 0);
	if (faulty && k.proto == IPPROTO_UDP && !to.reply && break_some(skb, pod->ifindex))
		return TC_DROP;
	return bpf_redirect_peer(pod->ifindex, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
