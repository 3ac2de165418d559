/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few definitions of the kernel's ABI that the programs need. They are our own copy so that the
 * objects are the same bytes whatever kernel headers a machine has.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef _Bool bool;

#define true 1
#define false 0

#define SEC(name) __attribute__((section(name), used))
#define __always_inline inline __attribute__((always_inline))
#define __noinline __attribute__((noinline))
#define __weak __attribute__((weak))
#define __ksym __attribute__((section(".ksyms")))

/* Map definitions that live in BTF. */
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_XSKMAP 17

#define BPF_F_NO_PREALLOC (1U << 0)
#define BPF_F_MMAPABLE (1U << 10)
#define BPF_F_CURRENT_NETNS (-1)

enum xdp_action { XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT };
enum tcx_action { TCX_NEXT = -1, TCX_PASS = 0, TCX_DROP = 2, TCX_REDIRECT = 7 };

struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

/* Up to the last field we read. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys;
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	struct bpf_sock *sk __attribute__((aligned(8)));
};

struct bpf_sock_tuple {
	union {
		struct {
			__u32 saddr;
			__u32 daddr;
			__u16 sport;
			__u16 dport;
		} ipv4;
		struct {
			__u32 saddr[4];
			__u32 daddr[4];
			__u16 sport;
			__u16 dport;
		} ipv6;
	};
};

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from,
					  __u32 len, __u64 flags) = (void *)9;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*const bpf_skb_pull_data)(struct __sk_buff *skb, __u32 len) = (void *)39;
static __u32 (*const bpf_get_hash_recalc)(struct __sk_buff *skb) = (void *)34;
static long (*const bpf_redirect_map)(void *map, __u64 key, __u64 flags) = (void *)51;
static __u64 (*const bpf_ktime_get_coarse_ns)(void) = (void *)160;

#define bpf_htons(x) ((__u16)__builtin_bswap16(x))
#define bpf_ntohs(x) ((__u16)__builtin_bswap16(x))

/* Frames. */

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88a8

#define IPPROTO_HOPOPTS 0
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60
#define IPPROTO_SCTP 132

#define ETH_ALEN 6

struct ethhdr {
	__u8 dest[ETH_ALEN];
	__u8 source[ETH_ALEN];
	__u16 proto;
} __attribute__((packed));

struct vlanhdr {
	__u16 tci;
	__u16 proto;
} __attribute__((packed));

struct iphdr {
	__u8 version_ihl;
	__u8 tos;
	__u16 tot_len;
	__u16 id;
	__u16 frag_off;
	__u8 ttl;
	__u8 proto;
	__u16 check;
	__u32 saddr;
	__u32 daddr;
} __attribute__((packed));

struct ipv6hdr {
	__u8 version_class;
	__u8 flow[3];
	__u16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	__u32 saddr[4];
	__u32 daddr[4];
} __attribute__((packed));

struct ipv6_exthdr {
	__u8 nexthdr;
	__u8 hdrlen;	    /* in 8 bytes, the first 8 not counted */
	__u8 type;	    /* routing header */
	__u8 segments_left; /* routing header */
	__u8 rest[4];
} __attribute__((packed));

struct tcphdr {
	__u32 ports;
	__u32 seq;
	__u32 ack_seq;
	__u8 offset; /* high four bits, in 4 bytes */
	__u8 flags;
	__u16 window;
	__u16 check;
	__u16 urgent;
} __attribute__((packed));

struct udphdr {
	__u32 ports;
	__u16 len;
	__u16 check;
} __attribute__((packed));

/* The first chunk's head behind the common header. */
struct sctphdr {
	__u32 ports;
	__u32 tag;
	__u32 check;
	__u8 chunk;
	__u8 chunk_flags;
	__u16 chunk_len;
} __attribute__((packed));

struct icmphdr {
	__u8 type;
	__u8 code;
	__u16 check;
	__u32 rest;
} __attribute__((packed));

struct ipv6_fraghdr {
	__u8 nexthdr;
	__u8 reserved;
	__u16 frag_off; /* offset in bytes, bit 0: more fragments */
	__u32 id;
} __attribute__((packed));
