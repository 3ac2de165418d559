/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the two NAT peers have in common: tables, parsing, and the choice of a backend. TCP and UDP
 * over IPv4 without options or fragments; all else passes to the kernel.
 *
 * The shape is that of a per-packet service datapath on tc or XDP: a service map, a table of
 * connections that the kernel ages by LRU, and a map of local pods with their link layer.
 */
#pragma once
#include "common.h"

struct service_key {
	__u32 addr; /* addresses and ports are in network byte order */
	__u16 port;
	__u8 proto;
	__u8 pad;
};

struct service {
	__u32 first; /* of its backends */
	__u32 count;
};

struct backend {
	__u32 addr;
	__u16 port;
	__u16 pad;
};

struct flow_key {
	__u32 saddr;
	__u32 daddr;
	__u16 sport;
	__u16 dport;
	__u32 proto;
};

struct flow {
	__u32 addr;
	__u16 port;
	__u16 reply; /* the source is rewritten, not the destination */
};

struct pod {
	__u32 ifindex; /* of the host's end */
	__u8 pod_mac[6];
	__u8 host_mac[6];
};

/* The sizes of these four are set when they are loaded. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct pod);
} pods SEC(".maps");

/* Reads the tuple of a frame; false if it is not ours to translate. */
static __always_inline bool read_tuple(void *data, void *end, struct flow_key *k)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = data + IP_OFF;
	struct udphdr *ports = data + L4_OFF;

	/* A TCP header is longer, but its ports stand in the same place. */
	if ((void *)(ports + 1) > end)
		return false;
	if (eth->proto != bpf_htons(ETH_P_IP) || ip->version_ihl != 0x45 || ip->frag_off & bpf_htons(0x3fff) || ip->ttl <= 1)
		return false;
	if (ip->proto != IPPROTO_TCP && ip->proto != IPPROTO_UDP)
		return false;
	k->saddr = ip->saddr;
	k->daddr = ip->daddr;
	k->sport = ports->source;
	k->dport = ports->dest;
	k->proto = ip->proto;
	return true;
}

/* The flow of a tuple, made if it is the first packet of one to a service. */
static __always_inline bool find_flow(const struct flow_key *k, struct flow *to)
{
	struct flow *known = bpf_map_lookup_elem(&flows, k);
	struct service_key sk = {.addr = k->daddr, .port = k->dport, .proto = k->proto};
	struct service *service;
	struct backend *backend;
	struct flow_key rk;
	struct flow reply;
	__u32 i;

	if (known) {
		*to = *known;
		return true;
	}
	service = bpf_map_lookup_elem(&services, &sk);
	if (!service || !service->count)
		return false;
	i = service->first + bpf_get_prandom_u32() % service->count;
	backend = bpf_map_lookup_elem(&backends, &i);
	if (!backend)
		return false;
	to->addr = backend->addr;
	to->port = backend->port;
	to->reply = 0;
	rk.saddr = backend->addr;
	rk.daddr = k->saddr;
	rk.sport = backend->port;
	rk.dport = k->sport;
	rk.proto = k->proto;
	reply.addr = k->daddr;
	reply.port = k->dport;
	reply.reply = 1;
	bpf_map_update_elem(&flows, &rk, &reply, 0);
	bpf_map_update_elem(&flows, k, to, 0);
	return true;
}

/* The pod that has an address. The client of the lab has a whole range, which is entered by its
 * first address. */
static __always_inline struct pod *find_pod(__u32 addr)
{
	struct pod *pod = bpf_map_lookup_elem(&pods, &addr);

	if (pod)
		return pod;
	addr &= bpf_htonl(0xffff8000);
	return bpf_map_lookup_elem(&pods, &addr);
}
