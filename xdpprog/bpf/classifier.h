/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What every hook of the classifier shares, in the order in which a frame meets it: reasons, maps
 * and constants, parse, flow lookup, liveness.
 *
 * A hook asks two questions. Is the frame ours? parse() and flow_find() know. Is the daemon alive
 * to take it? age_of_beat() and the socket map know. Whatever is not understood exactly is not
 * ours.
 *
 * Little-endian only: the hash reads the frame's bytes as little-endian words.
 */
#pragma once

#include "uapi.h"

/*
 * Why a frame ended as it did. The Go twin is reason.go, a test pins them to each other. A frame
 * of the first group is ours; one of the second would be, were the daemon alive; the rest is not.
 */
enum reason {
	REASON_FORWARD,	 /* in the flow table, client to frontend */
	REASON_REPLY,	 /* in the flow table, backend to client */
	REASON_NEW,	 /* not in the flow table, to an address we serve, and ours to begin */
	REASON_OVERFLOW, /* from a backend, while there are flows that found no room in the table */
	REASON_BESIDE,	 /* to a backend itself, from where a flow of its already comes: it collides */
	/* Fragments are told by address, the first ones also by the flow table. */
	REASON_FRAGMENT_FORWARD, /* to an address we serve */
	REASON_FRAGMENT_REPLY,	 /* from a backend */

	/* Errors about frames of flows that are in the flow table. */
	REASON_ICMP_ERROR_FORWARD, /* about a reply: it goes to the backend */
	REASON_ICMP_ERROR_REPLY,   /* about a forward frame: it goes to the client */

	REASON_STEERED, /* on the return port: another program of ours has found it ours */

	REASON_HELD,	   /* in the flow table, daemon away for a moment: dropped */
	REASON_DEAD_KNOWN, /* in the flow table, daemon away for longer than we hold */
	REASON_DEAD_NEW,   /* another frame of the first group, daemon away */
	REASON_NO_MEMORY,  /* the kernel had none to write its source address with: dropped */

	REASON_NOT_OURS,    /* neither to an address we serve nor in the flow table */
	REASON_KERNEL_TCP,  /* to an address we serve, but of a connection that we did not begin */
	REASON_KERNEL_UDP,  /* to an address we serve, but known to conntrack */
	REASON_KERNEL_SCTP, /* as REASON_KERNEL_TCP */

	REASON_NOT_UNICAST,
	REASON_NOT_IP,
	REASON_VLAN_TAGS,      /* more than two in the frame */
	REASON_VLAN_OFFLOADED, /* a tag beside the frame */
	REASON_TRUNCATED,      /* the frame ends inside a header */
	REASON_BAD_HEADER,     /* version or header length that cannot be */
	REASON_BAD_LENGTH,     /* lengths that contradict each other or the frame */
	REASON_MAPPED_ADDRESS, /* an IPv4-mapped address in an IPv6 header */
	REASON_EXT_HEADERS,    /* more IPv6 extension headers than we walk */
	REASON_FRAGMENT,       /* one that we do not take */
	REASON_ICMP_ERROR,     /* one that we do not take, or about no flow of ours */
	REASON_OTHER_PROTO,

	REASON_UNKNOWN_PORT, /* a device that is not in the port map */
	REASON_BAD_QUEUE,    /* a queue beyond those that a slot has room for */

	NREASONS,
};

/* parse() understood the frame, the rest has to decide. */
#define UNDECIDED NREASONS

enum hook { HOOK_INGRESS, HOOK_EGRESS, NHOOKS };

enum mode { MODE_FRONT, MODE_ALONE };

/* Set by the loader before the programs are verified, so that dead branches cost nothing. */
const volatile __u32 mode;
const volatile __u32 slots;
const volatile __u32 queues;
const volatile __u32 flow_buckets;
const volatile __u64 stale_ns;
const volatile __u64 hold_ns;
const volatile __u32 outer_ifindex;
const volatile __u32 return_slot;
const volatile __u32 return_queues; /* of its inner end; frames of a flow go to one of them */
const volatile bool use_ct;
/* What we take beside TCP and UDP that is whole. */
const volatile bool fragments;
const volatile bool icmp_errors;
const volatile bool sctp;

#define PORT_RETURN (1U << 0) /* the return port's inner end */

struct port {
	__u32 slot;
	__u32 flags;
};

/*
 * What the tc programs send to the return port has a source address that says so, locally
 * administered: "slo" and the slot by which it came in, big endian. The daemon reads it back. The
 * last one is no slot: the frame is a reply that the daemon had the kernel route first.
 */
#define SLOT_ROUTED 0xffff
#define MARK_0 0x02
#define MARK_1 's'
#define MARK_2 'l'
#define MARK_3 'o'

static __always_inline bool is_mark(const __u8 source[ETH_ALEN])
{
	return source[0] == MARK_0 && source[1] == MARK_1 && source[2] == MARK_2 &&
	       source[3] == MARK_3;
}

/* Index of the flow table: eight cells, each tag << 33 | direction << 32 | record. */
#define BUCKET_CELLS 8

struct flow_bucket {
	__u64 cell[BUCKET_CELLS];
};

/* A flow of the flow table. Record 0 is the table's header and never a flow. */
#define FLOW_SOURCE (1U << 0) /* the backend sees source, not client */

struct flow_record {
	__u64 client[2];
	__u64 frontend[2];
	__u64 backend[2];
	__u32 forward_ports; /* client, frontend: as a forward frame has them */
	__u32 reply_ports;   /* backend, source: as a reply has them */
	__u8 proto;
	__u8 flags;
	__u16 reserved;
	__u32 reserved2;
	/* second cache line */
	__u64 source[2];
	__u64 rest[6];
};

struct flow_header {
	__u64 magic;
	__u32 version;
	__u32 buckets;
	__u32 records;
	__u32 record_size;
	__u64 seed[2];
	__u64 reserved[3];
	__u64 overflow; /* until when there are flows without a record, as bpf_ktime_get_ns() counts
			 */
};

_Static_assert(sizeof(struct flow_bucket) == 64, "bucket");
_Static_assert(sizeof(struct flow_record) == 128, "record");
_Static_assert(__builtin_offsetof(struct flow_header, overflow) == 64, "header");

struct address {
	__u64 word[2];
};

struct counters {
	__u64 count[NHOOKS][NREASONS];
};

/* The loader sets every max_entries but that of claims. */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_bucket);
} flow_index SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_record);
} flow_records SEC(".maps");

/* Presence means: an address we serve. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct address);
	__type(value, __u32);
} frontend_addrs SEC(".maps");

/* Presence means: an address that a backend has. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct address);
	__type(value, __u32);
} backend_addrs SEC(".maps");

/* By ifindex. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct port);
} ports SEC(".maps");

/* By slot * queues + queue. The kernel takes a closed socket out by itself. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

/* By slot * queues + queue: when the worker that owns the socket last beat, CLOCK_MONOTONIC. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} beats SEC(".maps");

/*
 * Until when a connection with a backend itself claims its tuple, as bpf_ktime_get_ns() counts, by
 * that tuple's hash (claim()). The daemon reads it before a flow takes the same tuple.
 *
 * A cell has no name: the daemon may take another connection's for this one, and then chooses a
 * source port where it need not have. With n tuples claimed that happens to n flows in 131072.
 */
#define CLAIM_CELLS (1 << 17) /* 1 MiB */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, CLAIM_CELLS);
	__type(key, __u32);
	__type(value, __u64);
} claims SEC(".maps");

/* By slot; one more at the end for frames of unknown ports. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

/* Not inlined, so that the verifier sees it once. A global function has to return something. */
__noinline int count(__u32 slot, enum hook hook, enum reason reason)
{
	struct counters *c = bpf_map_lookup_elem(&counters, &slot);

	if (c && hook < NHOOKS && reason < NREASONS)
		c->count[hook][reason]++;
	return 0;
}

/*
 * Parse.
 *
 * Addresses are kept as in the flow table, 16 bytes with IPv4 mapped into IPv6, ports as in the
 * frame: source in the low half, destination in the high half, both big endian.
 *
 * Most frames are decided by parse() alone. Of a fragment or an ICMP error it leaves where to go on
 * (l4 and room), and parse_fragment() or parse_quote() do so, if the constants say that such frames
 * are wanted at all. Those are functions of their own, so that the verifier walks them once and not
 * once for each way that leads to them.
 */
struct tuple {
	__u64 src[2];
	__u64 dst[2];
	__u32 ports;
	__u8 proto;
	__u8 ipv4;
	__u8 opens; /* a TCP SYN without ACK, an SCTP INIT */
	__u8 kind;
	__u16 l4;	/* where the header behind that of IP is in the frame */
	__u16 room;	/* how much of the packet there is from there */
	__u16 fragment; /* as struct ipv6_fraghdr has it, but in host order */
	__u8 options;	/* there are some in the IP header that routers read */
	__u8 closes;	/* a TCP FIN or RST */
	__u64 hash;	/* since flow_find() */
};

enum kind {
	KIND_WHOLE,
	KIND_FIRST, /* fragment: it has the ports; also one that is the only one */
	KIND_LATER, /* fragment: it has no ports */
	KIND_ERROR, /* an ICMP error; the tuple is the quoted one reversed */
};

#define MAPPED_PREFIX 0xffff0000ULL /* ::ffff:0:0/96, its second word without the address */

#define IP_FRAGMENT 0x3fff /* more fragments, or an offset */
#define IP_MORE 0x2000
#define IP_OFFSET 0x1fff /* in 8 bytes */
#define FRAGMENT_OFFSET 0xfff8
#define FRAGMENT_MORE 0x0001
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define SCTP_INIT 1
#define MAX_EXT_HEADERS 8 /* as package nat */

/* Where to go on, at most: the verifier follows no offset beyond 64 KiB, and extension headers may
 * follow twice. No frame of ours is so long. */
#define MAX_L4 0x3fff

/* What an error has to quote behind the IP header for us to know whom it is about: the ports. Less
 * than eight bytes (RFC 792) the daemon drops. */
#define QUOTED_L4 4

static __always_inline bool is_vlan(__u16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD);
}

static __always_inline bool is_ext_header(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_DSTOPTS;
}

static __always_inline enum reason parse_tcp(struct tuple *t, void *pos, void *end, __u32 room)
{
	struct tcphdr *tcp = pos;
	__u32 header;

	if (room < sizeof(*tcp))
		return REASON_BAD_LENGTH;
	if ((void *)(tcp + 1) > end)
		return REASON_TRUNCATED;
	header = tcp->offset >> 4 << 2;
	if (header < sizeof(*tcp))
		return REASON_BAD_HEADER;
	if (header > room)
		return REASON_BAD_LENGTH;
	t->ports = tcp->ports;
	t->opens = (tcp->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	t->closes = (tcp->flags & (TCP_FIN | TCP_RST)) != 0;
	return UNDECIDED;
}

static __always_inline enum reason parse_udp(struct tuple *t, void *pos, void *end, __u32 room,
					     bool more)
{
	struct udphdr *udp = pos;
	__u32 len;

	if (room < sizeof(*udp))
		return REASON_BAD_LENGTH;
	if ((void *)(udp + 1) > end)
		return REASON_TRUNCATED;
	/* Less than the IP payload is odd but whole: the kernel trims it (net/ipv4/udp.c). In a
	 * first fragment it is the length of all of them. */
	len = bpf_ntohs(udp->len);
	if (len < sizeof(*udp) || (len > room && !more))
		return REASON_BAD_LENGTH;
	t->ports = udp->ports;
	return UNDECIDED;
}

/* Without a chunk it is none (do_basic_checks, net/netfilter/nf_conntrack_proto_sctp.c). */
static __always_inline enum reason parse_sctp(struct tuple *t, void *pos, void *end, __u32 room)
{
	struct sctphdr *header = pos;

	if (room < sizeof(*header))
		return REASON_BAD_LENGTH;
	if ((void *)(header + 1) > end)
		return REASON_TRUNCATED;
	t->ports = header->ports;
	t->opens = header->chunk == SCTP_INIT;
	return UNDECIDED;
}

static __always_inline bool has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || (sctp && proto == IPPROTO_SCTP);
}

/* For a protocol that has ports. More says that it is the first of several fragments. */
static __always_inline enum reason parse_l4(struct tuple *t, void *pos, void *end, __u32 room,
					    bool more)
{
	if (t->proto == IPPROTO_TCP)
		return parse_tcp(t, pos, end, room);
	if (t->proto == IPPROTO_UDP)
		return parse_udp(t, pos, end, room, more);
	return parse_sctp(t, pos, end, room);
}

/*
 * An error quotes the packet that it is about; anything else of ICMP is the kernel's. Errors are
 * what connection tracking takes for them: icmp_is_err() in include/linux/icmp.h, and of ICMPv6
 * all types below 128.
 */
static __always_inline enum reason parse_icmp(struct tuple *t, void *data, void *pos, void *end,
					      __u32 room)
{
	struct icmphdr *icmp = pos;
	__u8 type;

	if (room < sizeof(icmp->type) + sizeof(icmp->code))
		return REASON_BAD_LENGTH;
	if ((void *)&icmp->check > end)
		return REASON_TRUNCATED;
	type = icmp->type;
	if (t->ipv4) {
		switch (type) {
		case 3:	 /* destination unreachable */
		case 4:	 /* source quench */
		case 5:	 /* redirect */
		case 11: /* time exceeded */
		case 12: /* parameter problem */
			break;
		default:
			return REASON_OTHER_PROTO;
		}
	} else if (type >= 128) {
		return REASON_OTHER_PROTO;
	}
	if (icmp_errors) {
		t->l4 = pos - data;
		t->room = room;
	}
	return REASON_ICMP_ERROR;
}

/* A packet of IPv6 with such an address would be found among the flows of IPv4. */
static __always_inline bool is_mapped(const __u64 address[2])
{
	return !address[0] && (__u32)address[1] == MAPPED_PREFIX;
}

static __always_inline void load4(__u64 to[2], __u32 address)
{
	to[0] = 0;
	to[1] = (__u64)address << 32 | MAPPED_PREFIX;
}

static __always_inline void load6(__u64 to[2], const __u32 address[4])
{
	to[0] = (__u64)address[1] << 32 | address[0];
	to[1] = (__u64)address[3] << 32 | address[2];
}

/* Goes over the extension headers that may stand before a fragment header or L4. */
static __always_inline enum reason walk(void **pos, void *end, __u32 *room, __u8 *proto)
{
#pragma unroll
	for (int i = 0; i < MAX_EXT_HEADERS; i++) {
		struct ipv6_exthdr *ext = *pos;
		__u32 header;

		if (!is_ext_header(*proto))
			break;
		if (*room < sizeof(*ext))
			return REASON_BAD_LENGTH;
		if ((void *)(ext + 1) > end)
			return REASON_TRUNCATED;
		header = (ext->hdrlen + 1) << 3;
		if (header > *room)
			return REASON_BAD_LENGTH;
		*proto = ext->nexthdr;
		*pos += header;
		*room -= header;
	}
	return is_ext_header(*proto) ? REASON_EXT_HEADERS : UNDECIDED;
}

/* parse reads the frame between data and end, which is len bytes long as the kernel knows it. */
static __always_inline enum reason parse(struct tuple *t, void *data, void *end, __u32 len)
{
	struct ethhdr *eth = data;
	void *pos = eth + 1;
	bool fragment = false;
	__u16 type;
	__u8 proto;
	__u32 room;

	if (pos > end)
		return REASON_TRUNCATED;
	if (eth->dest[0] & 1)
		return REASON_NOT_UNICAST;
	type = eth->proto;
	len -= sizeof(*eth);

#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct vlanhdr *vlan = pos;

		if (!is_vlan(type))
			break;
		if ((void *)(vlan + 1) > end)
			return REASON_TRUNCATED;
		type = vlan->proto;
		pos = vlan + 1;
		len -= sizeof(*vlan);
	}

	if (type == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = pos;
		__u32 header, total;

		if ((void *)(ip + 1) > end)
			return REASON_TRUNCATED;
		header = (ip->version_ihl & 0xf) << 2;
		total = bpf_ntohs(ip->tot_len);
		if (ip->version_ihl >> 4 != 4 || header < sizeof(*ip))
			return REASON_BAD_HEADER;
		if (total < header || total > len)
			return REASON_BAD_LENGTH;
		load4(t->src, ip->saddr);
		load4(t->dst, ip->daddr);
		t->ipv4 = 1;
		t->options = header > sizeof(*ip);
		proto = ip->proto;
		pos += header;
		room = total - header;
		if (ip->frag_off & bpf_htons(IP_FRAGMENT)) {
			__u16 bits = bpf_ntohs(ip->frag_off);

			t->fragment = bits << 3 | (bits & IP_MORE ? FRAGMENT_MORE : 0);
			fragment = true;
		}
	} else if (type == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = pos;
		enum reason reason;

		if ((void *)(ip + 1) > end)
			return REASON_TRUNCATED;
		if (ip->version_class >> 4 != 6)
			return REASON_BAD_HEADER;
		len -= sizeof(*ip);
		room = bpf_ntohs(ip->payload_len);
		if (room > len)
			return REASON_BAD_LENGTH;
		load6(t->src, ip->saddr);
		load6(t->dst, ip->daddr);
		if (is_mapped(t->src) || is_mapped(t->dst))
			return REASON_MAPPED_ADDRESS;
		t->ipv4 = 0;
		t->options = ip->nexthdr == IPPROTO_HOPOPTS;
		proto = ip->nexthdr;
		pos = ip + 1;
		reason = walk(&pos, end, &room, &proto);
		if (reason != UNDECIDED)
			return reason;
		fragment = proto == IPPROTO_FRAGMENT;
	} else {
		return is_vlan(type) ? REASON_VLAN_TAGS : REASON_NOT_IP;
	}

	t->proto = proto;
	if (fragment) {
		if (fragments) {
			t->l4 = pos - data;
			t->room = room;
		}
		return REASON_FRAGMENT;
	}
	if (has_ports(proto))
		return parse_l4(t, pos, end, room, false);
	if (t->ipv4 ? proto == IPPROTO_ICMP : proto == IPPROTO_ICMPV6)
		return parse_icmp(t, data, pos, end, room);
	return REASON_OTHER_PROTO;
}

/*
 * read_fragment goes on where parse() answered REASON_FRAGMENT. Only the first fragment has ports;
 * what becomes of the later ones is decided by their addresses, and so, for want of better, is
 * whether they have ports at all where IPv6 lets an extension header stand between.
 *
 * The whole L4 header has to be in the first: one that is cut there is nothing that honest senders
 * make (RFC 1858), and connection tracking is the one to judge it. But the daemon has to see that it
 * came, or the others would wait for it: it goes by its addresses too.
 */
static __always_inline enum reason read_fragment(struct tuple *t, void *data, void *end)
{
	__u32 at = t->l4, room = t->room;
	void *pos = data + at;
	__u8 proto = t->proto;
	enum reason reason;

	if (at > MAX_L4)
		return REASON_FRAGMENT;
	if (!t->ipv4) {
		struct ipv6_fraghdr *header = pos;

		if (room < sizeof(*header))
			return REASON_BAD_LENGTH;
		if ((void *)(header + 1) > end)
			return REASON_TRUNCATED;
		t->fragment = bpf_ntohs(header->frag_off);
		proto = header->nexthdr;
		pos = header + 1;
		room -= sizeof(*header);
	}
	/* All but the last consist of whole 8 bytes (ip_frag_queue and ip6_frag_queue drop others).
	 */
	if (!room || (t->fragment & FRAGMENT_MORE && room % 8))
		return REASON_BAD_LENGTH;

	if (t->fragment & FRAGMENT_OFFSET) {
		t->kind = KIND_LATER;
		t->proto = proto;
		t->ports = 0;
		return has_ports(proto) || (!t->ipv4 && is_ext_header(proto)) ? UNDECIDED
									      : REASON_FRAGMENT;
	}
	t->kind = KIND_FIRST;
	if (!t->ipv4) {
		reason = walk(&pos, end, &room, &proto);
		if (reason != UNDECIDED)
			return reason;
	}
	if (!has_ports(proto))
		return REASON_FRAGMENT;
	t->proto = proto;
	reason = parse_l4(t, pos, end, room, t->fragment & FRAGMENT_MORE);
	if (reason == REASON_BAD_LENGTH && t->fragment & FRAGMENT_MORE) {
		t->kind = KIND_LATER;
		t->ports = 0;
		return UNDECIDED;
	}
	return reason;
}

/*
 * read_quote goes on where parse() answered REASON_ICMP_ERROR. It makes t the quoted tuple
 * reversed, so the tuple of a frame that goes where the error goes:
 *
 * - an error about a forward frame quotes what the backend's side saw of it, client (or source) to
 *   backend: reversed that is the reply tuple, and the error goes to the client as a reply does;
 * - an error about a reply quotes frontend to client: reversed the forward tuple, and the error
 * goes to the backend.
 *
 * The other quotes, client to frontend and backend to client, have been translated already or were
 * never: reversed they are in no flow. So an error is ours at most once.
 *
 * A quote is cut somewhere, and its lengths are those of the whole packet: of L4 only the ports are
 * read. Its version is that of the protocol which quotes it. What is not understood in it is not
 * about a flow of ours.
 */
static __always_inline enum reason read_quote(struct tuple *t, void *data, void *end)
{
	__u32 at = t->l4, room = t->room, whole;
	void *pos = data + at;
	__u32 *l4;
	__u64 src[2];
	enum reason reason;
	__u8 proto;

	if (at > MAX_L4 || room < sizeof(struct icmphdr))
		return REASON_ICMP_ERROR;
	pos += sizeof(struct icmphdr);
	room -= sizeof(struct icmphdr);

	if (t->ipv4) {
		struct iphdr *ip = pos;
		__u32 header;

		if (room < sizeof(*ip))
			return REASON_ICMP_ERROR;
		if ((void *)(ip + 1) > end)
			return REASON_TRUNCATED;
		header = (ip->version_ihl & 0xf) << 2;
		whole = bpf_ntohs(ip->tot_len);
		if (whole < room)
			room = whole;
		if (header < sizeof(*ip) || header > room ||
		    ip->frag_off & bpf_htons(IP_OFFSET))
			return REASON_ICMP_ERROR;
		load4(src, ip->saddr);
		load4(t->src, ip->daddr);
		proto = ip->proto;
		pos += header;
		room -= header;
	} else {
		struct ipv6hdr *ip = pos;

		if (room < sizeof(*ip))
			return REASON_ICMP_ERROR;
		if ((void *)(ip + 1) > end)
			return REASON_TRUNCATED;
		room -= sizeof(*ip);
		whole = bpf_ntohs(ip->payload_len);
		if (whole < room)
			room = whole;
		load6(src, ip->saddr);
		/* A mapped address here is in no flow: t->dst is not mapped. */
		load6(t->src, ip->daddr);
		proto = ip->nexthdr;
		pos = ip + 1;
		reason = walk(&pos, end, &room, &proto);
		if (reason == UNDECIDED && proto == IPPROTO_FRAGMENT) {
			struct ipv6_fraghdr *fragment = pos;

			if (room < sizeof(*fragment))
				return REASON_ICMP_ERROR;
			if ((void *)(fragment + 1) > end)
				return REASON_TRUNCATED;
			if (fragment->frag_off & bpf_htons(FRAGMENT_OFFSET))
				return REASON_ICMP_ERROR;
			proto = fragment->nexthdr;
			pos = fragment + 1;
			room -= sizeof(*fragment);
			reason = walk(&pos, end, &room, &proto);
		}
		if (reason != UNDECIDED)
			return reason == REASON_TRUNCATED ? reason : REASON_ICMP_ERROR;
	}
	/* An error goes to whom the packet came from, or it is forged (nf_conntrack_inet_error,
	 * net/netfilter/nf_conntrack_proto_icmp.c). So t->dst stays. */
	if (src[0] != t->dst[0] || src[1] != t->dst[1])
		return REASON_ICMP_ERROR;
	if (!has_ports(proto) || room < QUOTED_L4)
		return REASON_ICMP_ERROR;
	l4 = pos;
	if ((void *)(l4 + 1) > end)
		return REASON_TRUNCATED;
	t->ports = *l4 << 16 | *l4 >> 16;
	t->proto = proto;
	t->kind = KIND_ERROR;
	return UNDECIDED;
}

/*
 * Flow lookup: the reader's half of package flowtable, in the kernel.
 *
 * Cells are published by one atomic 64-bit store when their record is complete, and a removed
 * record is not used again before every reader of that time is gone. So a cell is loaded once, and
 * what it names may be read plainly.
 */

#define ROTL(x, n) ((x) << (n) | (x) >> (64 - (n)))
#define SIPROUND                                                                                   \
	do {                                                                                       \
		v0 += v1;                                                                          \
		v2 += v3;                                                                          \
		v1 = ROTL(v1, 13) ^ v0;                                                            \
		v3 = ROTL(v3, 16) ^ v2;                                                            \
		v0 = ROTL(v0, 32);                                                                 \
		v2 += v1;                                                                          \
		v0 += v3;                                                                          \
		v1 = ROTL(v1, 17) ^ v2;                                                            \
		v3 = ROTL(v3, 21) ^ v0;                                                            \
		v2 = ROTL(v2, 32);                                                                 \
	} while (0)
#define SIPWORD(m)                                                                                 \
	do {                                                                                       \
		__u64 word = (m);                                                                  \
		v3 ^= word;                                                                        \
		SIPROUND;                                                                          \
		v0 ^= word;                                                                        \
	} while (0)

/* SipHash-1-3 of source, destination, ports and protocol: 13 bytes for IPv4, 37 for IPv6. */
static __always_inline __u64 flow_hash(const struct tuple *t, const __u64 seed[2])
{
	__u64 v0 = seed[0] ^ 0x736f6d6570736575ULL;
	__u64 v1 = seed[1] ^ 0x646f72616e646f6dULL;
	__u64 v2 = seed[0] ^ 0x6c7967656e657261ULL;
	__u64 v3 = seed[1] ^ 0x7465646279746573ULL;
	__u64 last = (__u64)t->proto << 32 | t->ports;

	if (t->ipv4) {
		SIPWORD(t->src[1] >> 32 | (t->dst[1] >> 32 << 32));
		last |= 13ULL << 56;
	} else {
		SIPWORD(t->src[0]);
		SIPWORD(t->src[1]);
		SIPWORD(t->dst[0]);
		SIPWORD(t->dst[1]);
		last |= 37ULL << 56;
	}
	SIPWORD(last);
	v2 ^= 0xff;
	SIPROUND;
	SIPROUND;
	SIPROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

enum direction { FLOW_FORWARD, FLOW_REPLY, FLOW_NONE };

#define CELL_RECORD(cell) ((__u32)(cell))
#define CELL_DIRECTION(cell) ((cell) >> 32 & 1)
#define CELL_TAG(cell) ((cell) >> 33)

static __always_inline bool same(const __u64 a[2], const __u64 b[2])
{
	return a[0] == b[0] && a[1] == b[1];
}

/* Compares the whole tuple with the side of the flow that the cell speaks of. */
__noinline int flow_match(const struct tuple *t, __u64 cell)
{
	__u32 record = CELL_RECORD(cell);
	struct flow_record *f;

	/* The header is not a flow, and an empty cell points at it. */
	if (!t || !record)
		return FLOW_NONE;
	f = bpf_map_lookup_elem(&flow_records, &record);
	if (!f || f->proto != t->proto)
		return FLOW_NONE;
	if (CELL_DIRECTION(cell) == FLOW_FORWARD) {
		if (f->forward_ports == t->ports && same(f->client, t->src) &&
		    same(f->frontend, t->dst))
			return FLOW_FORWARD;
	} else if (f->reply_ports == t->ports && same(f->backend, t->src)) {
		if (same(f->flags & FLOW_SOURCE ? f->source : f->client, t->dst))
			return FLOW_REPLY;
	}
	return FLOW_NONE;
}

static __always_inline int bucket_find(const struct tuple *t, __u32 number, __u64 tag)
{
	struct flow_bucket *b = bpf_map_lookup_elem(&flow_index, &number);

	if (!b)
		return FLOW_NONE;
#pragma unroll
	for (int i = 0; i < BUCKET_CELLS; i++) {
		__u64 cell = *(volatile __u64 *)&b->cell[i];

		if (CELL_TAG(cell) == tag) {
			int direction = flow_match(t, cell);

			if (direction != FLOW_NONE)
				return direction;
		}
	}
	return FLOW_NONE;
}

__noinline int flow_find(struct tuple *t)
{
	const __s64 buckets = flow_buckets;
	__u32 zero = 0;
	struct flow_header *header;
	__u64 hash, tag;
	__s64 first, second;
	int direction;

	if (!t)
		return FLOW_NONE;
	header = bpf_map_lookup_elem(&flow_records, &zero);
	if (!header)
		return FLOW_NONE;
	t->hash = hash = flow_hash(t, header->seed);
	tag = hash * 0x9e3779b97f4a7c15ULL >> 33;
	/* The second is some way behind the first, around the end. Without a branch: the verifier
	 * would walk all that follows twice. */
	first = (hash & 0xffffffff) * buckets >> 32;
	second = first + 1 + ((hash >> 32) * (buckets - 1) >> 32) - buckets;
	second += buckets & second >> 63;

	direction = bucket_find(t, first, tag);
	if (direction != FLOW_NONE)
		return direction;
	return bucket_find(t, second, tag);
}

/* What a frame is that flow_find() has found. */
static __always_inline enum reason known(int direction, enum kind kind)
{
	bool reply = direction == FLOW_REPLY;

	if (icmp_errors && kind == KIND_ERROR)
		return reply ? REASON_ICMP_ERROR_REPLY : REASON_ICMP_ERROR_FORWARD;
	if (fragments && kind != KIND_WHOLE)
		return reply ? REASON_FRAGMENT_REPLY : REASON_FRAGMENT_FORWARD;
	return reply ? REASON_REPLY : REASON_FORWARD;
}

static __always_inline bool served(const struct tuple *t)
{
	struct address a = {{t->dst[0], t->dst[1]}};

	return bpf_map_lookup_elem(&frontend_addrs, &a);
}

/* Are there flows that found no room in the table? */
static __always_inline bool overflows(void)
{
	__u32 zero = 0;
	struct flow_header *header = bpf_map_lookup_elem(&flow_records, &zero);
	__u64 until = header ? *(volatile __u64 *)&header->overflow : 0;

	return until && bpf_ktime_get_coarse_ns() < until;
}

static __always_inline bool from_backend(const struct tuple *t)
{
	struct address a = {{t->src[0], t->src[1]}};

	return bpf_map_lookup_elem(&backend_addrs, &a);
}

/* Is t's destination, not its source, an address that a backend has? */
static __always_inline bool to_backend(const struct tuple *t)
{
	struct address a = {{t->dst[0], t->dst[1]}};

	return bpf_map_lookup_elem(&backend_addrs, &a);
}

/*
 * A client may reach a backend by an address of ours and by the backend's own from one port. The
 * replies of both would be the same, so the daemon has to give the later one another source port, as
 * connection tracking would (nf_nat_used_tuple, net/netfilter/nf_nat_core.c). If the flow is there
 * first, the connection that begins is beside() it, and becomes a flow too. If the connection is, it
 * is the kernel's, and claim() keeps its tuple from the flow.
 */

/* Is there a flow that comes to t's destination, a backend, from t's source? */
static __always_inline bool beside(const struct tuple *t)
{
	struct tuple reply = {};

	reply.src[0] = t->dst[0];
	reply.src[1] = t->dst[1];
	reply.dst[0] = t->src[0];
	reply.dst[1] = t->src[1];
	reply.ports = t->ports << 16 | t->ports >> 16;
	reply.proto = t->proto;
	reply.ipv4 = t->ipv4;
	return flow_find(&reply) == FLOW_REPLY;
}

/* For how long a connection claims its tuple, in nanoseconds: as connection tracking keeps one
 * (nf_conntrack_proto_tcp.c, nf_conntrack_proto_udp.c), but established TCP for a day. */
#define SECOND 1000000000ULL
#define CLAIM_OPENING (120 * SECOND)
#define CLAIM_ESTABLISHED (86400 * SECOND)
#define CLAIM_CLOSING (120 * SECOND)
#define CLAIM_UNREPLIED (30 * SECOND)
#define CLAIM_STREAM (120 * SECOND)
#define CLAIM_ENDS 1ULL /* a bit of the cell: with a FIN or RST, which the last ACK does not undo */

/* Until when this frame claims its tuple; the same if a cell that was so need not change. It is
 * changed once a second at most, so that its cache line is mostly only read. */
static __always_inline __u64 claimed_until(const struct tuple *t, __u64 was)
{
	__u64 now = bpf_ktime_get_coarse_ns(), until = now;
	bool live = was > now;

	if (t->closes) {
		until = (now + CLAIM_CLOSING) | CLAIM_ENDS;
		return live && was & CLAIM_ENDS && until < was + SECOND ? was : until;
	}
	if (live && was & CLAIM_ENDS) {
		if (!t->opens)
			return was;
		was = 0;
	}
	if (t->proto != IPPROTO_TCP)
		until += live ? CLAIM_STREAM : CLAIM_UNREPLIED;
	else
		until += t->opens ? CLAIM_OPENING : CLAIM_ESTABLISHED;
	return until < was + SECOND ? was : until & ~CLAIM_ENDS;
}

/*
 * claim claims the tuple of a whole frame that flow_find() did not find, if it goes to a backend.
 * Nobody waits for anybody here: a connection and a flow that begin within the same microseconds
 * may miss each other.
 */
static __always_inline void claim(const struct tuple *t)
{
	__u32 index = t->hash & (CLAIM_CELLS - 1);
	volatile __u64 *cell = bpf_map_lookup_elem(&claims, &index);
	__u64 was, until;

	if (!cell)
		return;
	was = *cell;
	until = claimed_until(t, was);
	if (until != was && to_backend(t))
		*cell = until;
}

/* What a whole frame is that is in no flow and not to an address we serve. */
static __always_inline enum reason direct(const struct tuple *t)
{
	bool begins = t->proto == IPPROTO_UDP || t->opens;

	if (begins && to_backend(t) && beside(t))
		return REASON_BESIDE;
	claim(t);
	return REASON_NOT_OURS;
}

/*
 * Liveness.
 *
 * Only whole frames of known flows are held while the daemon is away: they come again when it is
 * back, or TCP sends them again. Half a datagram or an error is not worth that.
 *
 * The coarse clock lags the one that a worker reads by up to a tick, so a beat may lie a
 * little ahead of it. One that lies further ahead than a beat may lag is not believed: it would
 * keep a dead daemon alive until then.
 */
static __always_inline __s64 age_of_beat(__u32 index)
{
	const __s64 never = (1ULL << 63) - 1;
	volatile __u64 *beat = bpf_map_lookup_elem(&beats, &index);
	__s64 age;

	if (!beat)
		return never;
	age = bpf_ktime_get_coarse_ns() - *beat;
	return age < -(__s64)stale_ns ? never : age;
}

static __always_inline bool fresh(__s64 age)
{
	return age <= (__s64)stale_ns;
}

/* May a known flow still wait for the daemon to come back? */
static __always_inline bool holds(__s64 age)
{
	return age <= (__s64)hold_ns;
}
