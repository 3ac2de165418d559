// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The generator and the sink in the kernel.
 *
 * generate runs by BPF_PROG_TEST_RUN with live frames and writes each frame anew, for pages are
 * recycled. sink stands on tc ingress of the backends and counts every datagram by its number, then
 * drops it; early stands on tc ingress of the client's host end and only drops, which is what the
 * generator costs by itself.
 */
#include "common.h"

struct generator {
	__u64 interval; /* ns between two frames; 0: as fast as it goes */
	__u64 next;	/* ns, when the next is due */
	__u32 run;
	__u32 seq; /* of the next */
	__u32 limit; /* of numbers; nothing is sent beyond */
	__u32 flows;
	__u32 first_flow;
	__u32 flow_bits; /* of a flow's number that go into the address, the rest into the port */
	__u32 client;	 /* first address, host byte order */
	__u32 frontend;	 /* network byte order from here */
	__u16 first_port; /* host byte order */
	__u16 frontend_port;
	__u16 length; /* of the IP packet, host byte order */
	__u16 rest_sum; /* ones' complement sum of the payload behind the stamp, as read in memory */
	__u8 dest[6];
	__u8 source[6];
};

struct sink {
	__u32 run;
	__u32 flows;
	__u32 first_flow;
	__u32 flow_bits;
	__u32 client;
	__u16 first_port;
	__u16 port; /* network byte order, of the backends */
	__u32 length; /* of the IP packet */
	__u32 pad;
	/* Counted. */
	__u64 received;
	__u64 bytes;
	__u64 duplicated;
	__u64 reordered;
	__u64 corrupted;
	__u64 wrong_source;
	__u64 stray; /* of another run */
};

#define MAX_SEQ (1 << 23)
#define MAX_FLOWS (1 << 20)
#define MAX_PACKET 1500

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct generator);
} generator SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct sink);
} counted SEC(".maps");

/* A bit for each number that came. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SEQ / 64);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

/* The highest number, plus one, that came of each flow. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_FLOWS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u32);
} latest SEC(".maps");

struct scratch {
	__u8 packet[MAX_PACKET + 4];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

/*
 * Writes what stands behind the stamp: each byte is the low byte of its offset in the payload. Pages
 * come back as the peer left them, so all of it is written each time.
 */
static __always_inline void write_rest(void *payload, void *end)
{
	__u8 *p = payload + sizeof(struct stamp);
	__u64 word = 0x0706050403020100 + 0x0101010101010101 * sizeof(struct stamp);
	__u32 i;

	for (i = 0; i < MAX_PACKET / 8; i++) {
		if ((void *)(p + 8) > end)
			break;
		*(__u64 *)p = word;
		p += 8;
		/* Every byte wraps by itself: they are multiples of 8 plus their place. */
		word = (word & 0xf8f8f8f8f8f8f8f8) == 0xf8f8f8f8f8f8f8f8 ? 0x0706050403020100 : word + 0x0808080808080808;
	}
	for (i = 0; i < 7; i++) {
		if ((void *)(p + 1) > end)
			break;
		*p++ = word;
		word >>= 8;
	}
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + IP_OFF;
	struct udphdr *udp = data + L4_OFF;
	struct stamp *stamp = data + PAYLOAD_OFF;
	struct generator *g;
	__u32 zero = 0, flow, mask, check;
	__u64 sum;
	__u16 port;

	if ((void *)(stamp + 1) > end)
		return XDP_ABORTED;
	g = bpf_map_lookup_elem(&generator, &zero);
	if (!g || g->seq >= g->limit || !g->flows)
		return XDP_DROP;
	if (g->interval) {
		__u64 now = bpf_ktime_get_ns();

		if (now < g->next)
			return XDP_DROP;
		/* What could not be sent in time is sent late, but not more than a millisecond of it. */
		g->next = g->next + 1000000 < now ? now : g->next + g->interval;
	}
	mask = (1U << (g->flow_bits & 31)) - 1;
	flow = g->first_flow + g->seq % g->flows;
	port = g->first_port + (flow >> (g->flow_bits & 31));

	write_rest(stamp, end);
	__builtin_memcpy(eth->dest, g->dest, 6);
	__builtin_memcpy(eth->source, g->source, 6);
	eth->proto = bpf_htons(ETH_P_IP);
	ip->version_ihl = 0x45;
	ip->tos = 0;
	ip->tot_len = bpf_htons(g->length);
	ip->id = 0;
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = 64;
	ip->proto = IPPROTO_UDP;
	ip->check = 0;
	ip->saddr = bpf_htonl(g->client + (flow & mask));
	ip->daddr = g->frontend;
	sum = (__u64)0x0045 + ip->tot_len + ip->frag_off + (IPPROTO_UDP << 8 | 64) + ip->saddr + ip->daddr;
	ip->check = ~fold(sum);

	udp->source = bpf_htons(port);
	udp->dest = g->frontend_port;
	udp->len = bpf_htons(g->length - 20);
	check = stamp_check(g->run, flow, g->seq);
	stamp->run = bpf_htonl(g->run);
	stamp->flow = bpf_htonl(flow);
	stamp->seq = bpf_htonl(g->seq);
	stamp->check = bpf_htonl(check);
	sum = (__u64)ip->saddr + ip->daddr + bpf_htons(IPPROTO_UDP) + udp->len;
	sum += (__u64)udp->source + udp->dest + udp->len;
	sum += (__u64)stamp->run + stamp->flow + stamp->seq + stamp->check + g->rest_sum;
	port = ~fold(sum);
	udp->check = port ? port : 0xffff;
	g->seq++;
	return XDP_TX;
}

/* Whether the packet in the scratch buffer has whole checksums, or one that is left to the device. */
static __always_inline bool sums_hold(__u8 *p, __u32 len)
{
	struct iphdr *ip = (void *)p;
	struct udphdr *udp = (void *)(p + 20);
	__u64 pseudo;
	__u32 size;

	if (fold(bpf_csum_diff(0, 0, (void *)p, 20, 0)) != 0xffff)
		return false;
	if (!udp->check)
		return true;
	pseudo = (__u64)ip->saddr + ip->daddr + bpf_htons(IPPROTO_UDP) + udp->len;
	if (udp->check == fold(pseudo))
		return true;
	/* Rounded up over bytes that are zero. */
	size = (len - 20 + 3) & ~3U;
	if (size > MAX_PACKET - 20)
		return false;
	return fold(pseudo + (__u32)bpf_csum_diff(0, 0, (void *)udp, size, 0)) == 0xffff;
}

/* The bytes behind the stamp are each the low byte of their offset in the payload. */
static __always_inline bool rest_holds(__u8 *p, __u32 len)
{
	__u32 i;

	for (i = 28 + sizeof(struct stamp); i < MAX_PACKET; i++) {
		if (i >= len)
			break;
		if (p[i] != (__u8)(i - 28))
			return false;
	}
	return true;
}

SEC("tcx/ingress")
int sink(struct __sk_buff *skb)
{
	__u32 zero = 0, flow, seq, index, mask, len, last;
	struct sink *s = bpf_map_lookup_elem(&counted, &zero);
	struct scratch *buf = bpf_map_lookup_elem(&scratch, &zero);
	struct iphdr *ip;
	struct udphdr *udp;
	struct stamp *st;
	__u64 *word, bit, old;
	__u32 *l;
	__u8 *p;
	bool bad;

	if (!s || !buf || !s->flows || skb->protocol != bpf_htons(ETH_P_IP))
		return TC_OK;
	p = buf->packet;
	ip = (void *)p;
	udp = (void *)(p + 20);
	st = (void *)(p + 28);
	if (skb->len < IP_OFF + 28 + sizeof(*st) || bpf_skb_load_bytes(skb, IP_OFF, p, 28))
		return TC_OK;
	if (ip->version_ihl != 0x45 || ip->proto != IPPROTO_UDP || udp->dest != s->port)
		return TC_OK;
	len = bpf_ntohs(ip->tot_len);
	bad = len != s->length;
	/* The verifier sees the bounds only if they are taken last, of a value of its own. */
	asm volatile("" : "+r"(len));
	if (len < 28 + sizeof(*st) || len > MAX_PACKET || bad || bpf_skb_load_bytes(skb, IP_OFF, p, len)) {
		__sync_fetch_and_add(&s->corrupted, 1);
		return TC_DROP;
	}
	*(__u32 *)(p + len) = 0;
	flow = bpf_ntohl(st->flow);
	seq = bpf_ntohl(st->seq);
	if (bpf_ntohl(st->check) != stamp_check(bpf_ntohl(st->run), flow, seq) || !rest_holds(p, len) || !sums_hold(p, len)) {
		__sync_fetch_and_add(&s->corrupted, 1);
		return TC_DROP;
	}
	if (bpf_ntohl(st->run) != s->run) {
		__sync_fetch_and_add(&s->stray, 1);
		return TC_DROP;
	}
	__sync_fetch_and_add(&s->received, 1);
	__sync_fetch_and_add(&s->bytes, len);
	mask = (1U << (s->flow_bits & 31)) - 1;
	if (bpf_ntohl(ip->saddr) != s->client + (flow & mask) ||
	    bpf_ntohs(udp->source) != (__u16)(s->first_port + (flow >> (s->flow_bits & 31))))
		__sync_fetch_and_add(&s->wrong_source, 1);
	index = seq / 64;
	word = bpf_map_lookup_elem(&seen, &index);
	if (!word)
		return TC_DROP;
	bit = 1ULL << (seq & 63);
	old = __sync_fetch_and_or(word, bit);
	if (old & bit) {
		__sync_fetch_and_add(&s->duplicated, 1);
		return TC_DROP;
	}
	index = (flow - s->first_flow) & (MAX_FLOWS - 1);
	l = bpf_map_lookup_elem(&latest, &index);
	if (!l)
		return TC_DROP;
	last = *l;
	if (seq + 1 < last)
		__sync_fetch_and_add(&s->reordered, 1);
	else
		*l = seq + 1;
	return TC_DROP;
}

SEC("tcx/ingress")
int early(struct __sk_buff *skb __attribute__((unused)))
{
	return TC_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
