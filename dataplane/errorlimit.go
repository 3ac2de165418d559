package dataplane

import (
	"hash/maphash"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sluice-net/sluice/nat"
)

// ICMP errors of our own are limited as the kernel limits its own, by the same sysctls:
// all of the node together (icmp_global_allow, net/ipv4/icmp.c), and those to one
// destination (icmpv4_xrlim_allow there, icmpv6_xrlim_allow in net/ipv6/icmp.c, both by
// inet_peer_xrlim_allow, net/ipv4/inetpeer.c). Both are the node's, not a worker's: a
// client whose packets meet several workers gets no more answers for it.
//
// A destination has a bucket that fills by one token each `every` and holds six. All
// that it needs is the time at which the bucket was, or would have been, empty:
//
//	63            40 39                         0
//	+---------------+---------------------------+
//	| tag           | empty, ms                 |  one word, changed by compare and swap
//	+---------------+---------------------------+
//
// Eight words are a set, and a cache line. The hash is keyed, so nobody can choose who
// meets whom in a set. A destination that is not in its set takes the place of the one
// whose bucket was empty longest ago. If that bucket is full again nothing is lost, and
// how many are not is bounded by the limit for all.

const (
	peerSets = 1024
	peerWays = 8
	// timeMask is the part of a word that is a time: 34 years of milliseconds.
	timeMask = 1<<40 - 1
	// peerBurst is how many answers one destination gets at once
	// (XRLIM_BURST_FACTOR).
	peerBurst = 6
	// freshFor is how long a new destination's bucket has been filling, in ms
	// (inet_getpeer).
	freshFor = 60_000
	// refillEvery is how often the credit of all is refilled, in ms.
	refillEvery = 20
)

// errorKind is a kind of ICMP error.
type errorKind uint8

const (
	errorUnreachable errorKind = iota
	errorTimeExceeded
	errorTooBig // not limited by default: path MTU discovery needs it
	numErrorKinds
)

// errorRates are the kernel's sysctls. Families are 0 for IPv4 and 1 for IPv6.
type errorRates struct {
	perSecond, burst uint64                 // of all
	every            [2]uint64              // ms between answers to one destination; 0 is no limit
	limited          [2][numErrorKinds]bool // the kinds that are limited at all
}

// defaultErrorRates are the kernel's.
var defaultErrorRates = errorRates{
	perSecond: 1000, burst: 50,
	every:   [2]uint64{1000, 100},
	limited: [2][numErrorKinds]bool{{errorUnreachable: true, errorTimeExceeded: true}, {errorUnreachable: true, errorTimeExceeded: true}},
}

// readErrorRates reads the sysctls of the calling thread's network namespace. What
// cannot be read or understood is the kernel's default.
func readErrorRates() errorRates {
	r := defaultErrorRates
	for _, s := range []struct {
		path string
		to   *uint64
	}{
		{"ipv4/icmp_msgs_per_sec", &r.perSecond}, {"ipv4/icmp_msgs_burst", &r.burst},
		{"ipv4/icmp_ratelimit", &r.every[0]}, {"ipv6/icmp/ratelimit", &r.every[1]},
	} {
		if v, err := strconv.ParseUint(netSysctl(s.path), 10, 31); err == nil {
			*s.to = v
		}
	}
	// Fragmentation needed is never limited (icmpv4_mask_allow).
	if mask, err := strconv.ParseInt(netSysctl("ipv4/icmp_ratemask"), 10, 64); err == nil {
		r.limited[0] = [numErrorKinds]bool{errorUnreachable: mask>>3&1 != 0, errorTimeExceeded: mask>>11&1 != 0}
	}
	if data, err := os.ReadFile("/proc/sys/net/ipv6/icmp/ratemask"); err == nil {
		if in, ok := ranges(strings.TrimSpace(string(data))); ok {
			r.limited[1] = [numErrorKinds]bool{errorUnreachable: in(1), errorTimeExceeded: in(3), errorTooBig: in(2)}
		}
	}
	return r
}

// netSysctl is the value of a sysctl under net, empty if it cannot be read.
func netSysctl(path string) string {
	data, _ := os.ReadFile("/proc/sys/net/" + path)
	return strings.TrimSpace(string(data))
}

// ranges understands a list such as 0-1,3-127, and says what is in it.
func ranges(list string) (in func(n uint64) bool, ok bool) {
	var all [][2]uint64
	for part := range strings.SplitSeq(list, ",") {
		if part == "" {
			continue
		}
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		l, err := strconv.ParseUint(low, 10, 8)
		h, err2 := strconv.ParseUint(high, 10, 8)
		if err != nil || err2 != nil {
			return nil, false
		}
		all = append(all, [2]uint64{l, h})
	}
	return func(n uint64) bool {
		for _, r := range all {
			if r[0] <= n && n <= r[1] {
				return true
			}
		}
		return false
	}, true
}

// errorLimit is the state, shared by the workers. It takes no lock: each of its words
// changes by compare and swap.
type errorLimit struct {
	errorRates
	bias   uint64 // ms, added to every time so that none before it is negative
	seed   maphash.Seed
	credit atomic.Int64  // of all
	stamp  atomic.Uint64 // ms, when it was refilled
	peers  [peerSets][peerWays]atomic.Uint64
}

func newErrorLimit(r errorRates) *errorLimit {
	return &errorLimit{errorRates: r, seed: maphash.MakeSeed(), bias: max(freshFor, peerBurst*max(r.every[0], r.every[1]))}
}

// milliseconds turns a clock's nanoseconds into what the methods below want.
func (l *errorLimit) milliseconds(now uint64) uint64 { return now/uint64(time.Millisecond) + l.bias }

// all reports whether any error may be sent at now, in ms. It spends nothing.
func (l *errorLimit) all(now uint64) bool {
	if l.credit.Load() > 0 {
		return true
	}
	stamp := l.stamp.Load()
	if now < stamp+refillEvery { // another worker's clock may be ahead
		return false
	}
	more := l.perSecond * min(now-stamp, 1000) / 1000
	if more == 0 {
		return false
	}
	if l.stamp.CompareAndSwap(stamp, now) {
		for {
			old := l.credit.Load()
			if l.credit.CompareAndSwap(old, min(old+int64(more), int64(l.burst))) {
				break
			}
		}
	}
	return true
}

// spend takes an error off the credit of all: none, one or two, so that nobody can
// learn from outside how much is left (CVE-2020-25705).
func (l *errorLimit) spend(random uint64) {
	n := int64(random % 3)
	for n != 0 {
		old := l.credit.Load()
		if l.credit.CompareAndSwap(old, max(old-n, 0)) {
			return
		}
	}
}

// one reports whether an error may be sent to addr at now, in ms, and takes it off its
// bucket.
func (l *errorLimit) one(family int, addr *[16]byte, now uint64) bool {
	every := l.every[family]
	if every == 0 {
		return true
	}
	h := maphash.Bytes(l.seed, addr[:])
	tag, set := h&^timeMask, &l.peers[h%peerSets]
	for {
		at, was := 0, set[0].Load()
		known := false
		for i := range set {
			w := set[i].Load()
			if w != 0 && w&^timeMask == tag {
				at, was, known = i, w, true
				break
			}
			if w&timeMask < was&timeMask {
				at, was = i, w
			}
		}
		empty := now - min(freshFor, peerBurst*every)
		if known {
			empty = max(was&timeMask, now-peerBurst*every)
		}
		if now < empty+every {
			return false
		}
		if set[at].CompareAndSwap(was, tag|empty+every) {
			return true
		}
	}
}

// mayAnswer reports whether frame i may be answered for this reason.
func (w *worker) mayAnswer(i int, reason Reason) bool {
	p, l := &w.b.packets[i], w.d.errorLimit
	kind := errorUnreachable
	switch reason {
	case BackendGone:
		return w.resets.take(w.now)
	case TTLExceeded:
		kind = errorTimeExceeded
	case TooBig:
		kind = errorTooBig
	}
	family := familyOf(p)
	if !l.limited[family][kind] {
		return true
	}
	now := l.milliseconds(w.now)
	// The limit for all comes first, and is spent last: what one destination is refused
	// must not show in what another one gets.
	if !l.all(now) || !l.one(family, &p.Src, now) && !w.isLocal(&p.Src) {
		return false
	}
	l.spend(w.random())
	return true
}

// familyOf is 0 for IPv4 and 1 for IPv6.
func familyOf(p *nat.Packet) int {
	if p.IPv6 {
		return 1
	}
	return 0
}

// isLocal reports whether addr is the node's own. What goes to the loopback device is
// not limited by destination.
func (w *worker) isLocal(addr *[16]byte) bool {
	return w.d.egress.fib.Load().lookup(*addr).kind == routeLocal
}

// tokenBucket limits the resets that a worker sends. The kernel has no limit for its own
// (nf_send_reset, net/ipv4/netfilter/nf_reject_ipv4.c); we take a thousand a second, in
// bursts of fifty, for each worker, so that a storm of them stays small.
type tokenBucket struct {
	tokens uint64 // in ns of credit
	last   uint64
}

const (
	resetEvery = uint64(time.Second / 1000)
	resetBurst = 50
)

// take reports whether one more may be sent at now, in ns.
func (b *tokenBucket) take(now uint64) bool {
	b.tokens = min(b.tokens+now-b.last, resetBurst*resetEvery)
	b.last = now
	if b.tokens < resetEvery {
		return false
	}
	b.tokens -= resetEvery
	return true
}
