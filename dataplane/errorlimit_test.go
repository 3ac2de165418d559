package dataplane

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sluice-net/sluice/internal/netlab"
)

// slowLimit is errorLimit the plain way, after the kernel: jiffies of a millisecond, a
// peer for each address, tokens that are added up.
type slowLimit struct {
	errorRates
	credit, stamp int64
	peers         map[[16]byte]*slowPeer
}

type slowPeer struct{ tokens, last int64 }

// icmpGlobalAllow is icmp_global_allow.
func (s *slowLimit) icmpGlobalAllow(now int64) bool {
	if s.credit > 0 {
		return true
	}
	delta := min(now-s.stamp, 1000)
	if delta < 1000/50 {
		return false
	}
	incr := int64(s.perSecond) * delta / 1000
	if incr == 0 {
		return false
	}
	s.stamp = now
	s.credit = min(s.credit+incr, int64(s.burst))
	return true
}

// inetPeerXrlimAllow is inet_getpeer and inet_peer_xrlim_allow.
func (s *slowLimit) inetPeerXrlimAllow(addr [16]byte, now, timeout int64) bool {
	p := s.peers[addr]
	if p == nil {
		p = &slowPeer{last: now - 60*1000}
		s.peers[addr] = p
	}
	p.tokens = min(p.tokens+now-p.last, 6*timeout)
	p.last = now
	if p.tokens < timeout {
		return false
	}
	p.tokens -= timeout
	return true
}

func (s *slowLimit) allow(family int, addr [16]byte, now int64, random uint64) bool {
	if !s.icmpGlobalAllow(now) || s.every[family] != 0 && !s.inetPeerXrlimAllow(addr, now, int64(s.every[family])) {
		return false
	}
	s.credit = max(s.credit-int64(random%3), 0)
	return true
}

// TestErrorLimitIsTheKernels: whoever asks, and whenever, the answer is the model's.
func TestErrorLimitIsTheKernels(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := errorRates{
			perSecond: rapid.Uint64Range(0, 2000).Draw(t, "perSecond"),
			burst:     rapid.Uint64Range(0, 100).Draw(t, "burst"),
		}
		for f := range r.every {
			r.every[f] = rapid.SampledFrom([]uint64{0, 1, 7, 100, 1000, 20_000, 1 << 31}).Draw(t, "every")
		}
		l, slow := newErrorLimit(r), &slowLimit{errorRates: r, peers: map[[16]byte]*slowPeer{}}
		// The kernel's jiffies do not begin at zero either.
		now := l.milliseconds(0)
		now += rapid.Uint64Range(0, 1<<38).Draw(t, "start")
		for i := range rapid.IntRange(1, 300).Draw(t, "steps") {
			now += rapid.OneOf(rapid.Just(uint64(0)), rapid.Uint64Range(0, 30), rapid.Uint64Range(0, 5000)).Draw(t, "pass")
			family := rapid.IntRange(0, 1).Draw(t, "family")
			addr := [16]byte{byte(family), 15: rapid.Byte().Draw(t, "addr") % 6}
			random := rapid.Uint64().Draw(t, "random")
			got := l.all(now) && l.one(family, &addr, now)
			if got {
				l.spend(random)
			}
			if want := slow.allow(family, addr, int64(now), random); got != want {
				t.Fatalf("step %d, address %d of family %d at %d: got %v, want %v", i, addr[15], family, now, got, want)
			}
		}
	})
}

// TestErrorLimitFlood: more destinations than there is room for cost each other nothing
// that a full table would have given them, and one that is in it is still limited.
func TestErrorLimitFlood(t *testing.T) {
	l := newErrorLimit(defaultErrorRates)
	now := l.milliseconds(1 << 40)
	answered := 0
	for n := range 4 * peerSets * peerWays {
		addr := [16]byte{1, 2, byte(n >> 16), byte(n >> 8), byte(n)}
		if l.one(0, &addr, now) {
			answered++
		}
	}
	// A tag has 24 bits: now and then two of a set share one, and their bucket.
	if answered < 4*peerSets*peerWays-5 {
		t.Errorf("%d of %d new destinations were answered", answered, 4*peerSets*peerWays)
	}
	last, n := [16]byte{9}, 0
	for range 100 {
		if l.one(0, &last, now) {
			n++
		}
	}
	if n != peerBurst {
		t.Errorf("%d answers at once to one destination in a full table, want %d", n, peerBurst)
	}
}

// TestErrorLimitOfSeveralWorkers: one destination gets no more from all of them than
// from one, and so with the limit for all.
func TestErrorLimitOfSeveralWorkers(t *testing.T) {
	l := newErrorLimit(defaultErrorRates)
	now := l.milliseconds(1 << 40)
	var one, all atomic.Int64
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for range 1000 {
				if l.one(0, &[16]byte{1}, now) {
					one.Add(1)
				}
				if l.all(now) {
					all.Add(1)
					l.spend(1)
				}
			}
		})
	}
	workers.Wait()
	if one.Load() != peerBurst {
		t.Errorf("%d answers to one destination, want %d", one.Load(), peerBurst)
	}
	// Who has looked before another has spent goes too, as in the kernel; who refills
	// goes in any case.
	if n := all.Load(); n < int64(l.burst) || n > int64(l.burst)+4+1 {
		t.Errorf("%d answers in all, want %d, and at most one more for each worker", n, l.burst)
	}
}

func TestErrorLimitAllocatesNothing(t *testing.T) {
	l := newErrorLimit(defaultErrorRates)
	now, n := l.milliseconds(1<<40), uint32(0)
	if got := testing.AllocsPerRun(10000, func() {
		n++
		now++
		addr := [16]byte{byte(n % 7), byte(n), byte(n >> 8)}
		if l.all(now) && l.one(0, &addr, now) {
			l.spend(uint64(n))
		}
	}); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

// TestWhichAnswersAreLimited: those of one kind share a destination's bucket with those of
// another; path MTU discovery has none, and resets have another.
func TestWhichAnswersAreLimited(t *testing.T) {
	r := newRig(t, 64)
	r.load([][]byte{udpFrame(t, 0)})
	r.parse()
	r.now = 1 << 40
	for _, c := range []struct {
		reason Reason
		want   int
	}{{NoEndpoints, peerBurst}, {TTLExceeded, 0}, {UnknownPort, 0}, {TooBig, 100}, {BackendGone, resetBurst}} {
		n := 0
		for range 100 {
			if r.mayAnswer(0, c.reason) {
				n++
			}
		}
		if n != c.want {
			t.Errorf("%s: %d of 100 answers at once, want %d", c.reason, n, c.want)
		}
	}
}

func TestRanges(t *testing.T) {
	for _, c := range []struct{ list, in, out string }{
		{"0-1,3-127", "0 1 3 127", "2 128 255"},
		{"3", "3", "2 4"},
		{"", "", "0 1 2 3"},
		{"0-255", "0 1 128 255", ""},
	} {
		in, ok := ranges(c.list)
		if !ok {
			t.Errorf("%q is refused", c.list)
			continue
		}
		for _, w := range strings.Fields(c.in + " - " + c.out) {
			n, err := strconv.ParseUint(w, 10, 8)
			if err != nil {
				break // the rest has its turn below
			}
			if !in(n) {
				t.Errorf("%q: %d is not in it", c.list, n)
			}
		}
		for _, w := range strings.Fields(c.out) {
			if n, _ := strconv.ParseUint(w, 10, 8); in(n) {
				t.Errorf("%q: %d is in it", c.list, n)
			}
		}
	}
	for _, list := range []string{"x", "1-", "-3", "1-2-3", "300"} {
		if _, ok := ranges(list); ok {
			t.Errorf("%q is understood", list)
		}
	}
}

// TestErrorRatesOfTheNode: the sysctls are those of the node's namespace.
func TestErrorRatesOfTheNode(t *testing.T) {
	netlab.RequireRoot(t)
	n := netlab.New(t).Namespace("node")
	for key, value := range map[string]string{
		"net.ipv4.icmp_ratelimit": "300", "net.ipv4.icmp_ratemask": "2048", "net.ipv6.icmp.ratelimit": "700", "net.ipv6.icmp.ratemask": "2-3",
	} {
		n.Sysctl(key, value)
	}
	var got errorRates
	if err := n.Do(func() error { got = readErrorRates(); return nil }); err != nil {
		t.Fatal(err)
	}
	want := [2][numErrorKinds]bool{{errorTimeExceeded: true}, {errorTimeExceeded: true, errorTooBig: true}}
	if got.every != [2]uint64{300, 700} || got.limited != want {
		t.Errorf("got %+v", got)
	}
}

// TestRejectsAreLimitedAsLinuxDoes: two clients send the same datagrams at the same times,
// one to a Service without endpoints, which we refuse, the other to a port of the node
// that nobody listens on, which the kernel does. Both are refused as often.
func TestRejectsAreLimitedAsLinuxDoes(t *testing.T) {
	for _, c := range []struct {
		name    string
		kind    PortKind
		workers int
		sysctls map[string]string
	}{
		{"native", KindNative, 1, nil},
		{"steered, two workers", KindSteered, 2, nil},
		{"other limits", KindNative, 1, map[string]string{"net.ipv4.icmp_ratelimit": "250", "net.ipv6.icmp.ratelimit": "400"}},
		{"no limit to one", KindSteered, 1, map[string]string{"net.ipv4.icmp_ratelimit": "0", "net.ipv6.icmp.ratelimit": "0"}},
		{"not limited", KindNative, 1, map[string]string{"net.ipv4.icmp_ratemask": "0", "net.ipv6.icmp.ratemask": "2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			netlab.RequireRoot(t)
			b := &testbed{t: t, Cluster: netlab.New(t).Cluster(netlab.ClusterOptions{Clients: 2})}
			for key, value := range c.sysctls {
				b.Node.Sysctl(key, value)
			}
			b.open(of(c.kind, func(cfg *Config) { cfg.Workers = c.workers }))
			defer b.close()
			b.publish(testService{name: "empty", number: 70, port: 80})
			const atOnce, rounds = 12, 15
			both := func() {
				for _, f := range netlab.Families {
					send(t, b.Clients[0].Namespace, netip.AddrPortFrom(netlab.ClusterIP(f, 70), 80))
					send(t, b.Clients[1].Namespace, netip.AddrPortFrom(netlab.NodeAddr(f, 1), 9))
				}
			}
			for range atOnce {
				both()
			}
			for range rounds {
				time.Sleep(100 * time.Millisecond) // the limits are of time
				both()
			}
			s := b.settle()
			total := 0
			for _, f := range netlab.Families {
				got, want := refused(t, b.Clients[0].Namespace, f), refused(t, b.Clients[1].Namespace, f)
				t.Logf("%s: of %d datagrams Sluice refused %d, the kernel %d", f, atOnce+rounds, got, want)
				if got < want-1 || got > want+1 || want < peerBurst {
					t.Errorf("%s: of %d datagrams Sluice refused %d, the kernel %d", f, atOnce+rounds, got, want)
				}
				total += got
			}
			if n := s.Reason(NoEndpoints); n != uint64(total) {
				t.Errorf("%d rejects counted, %d arrived", n, total)
			}
			if n := s.Reason(NoEndpoints) + s.Reason(RejectLimited); n != 2*(atOnce+rounds) {
				t.Errorf("%d datagrams rejected or kept under the limit, want %d", n, 2*(atOnce+rounds))
			}
		})
	}
}

// TestRejectsOfTheNodesOwn: as the kernel does with what goes to the loopback device, the
// node's own processes are told as often as they ask.
func TestRejectsOfTheNodesOwn(t *testing.T) {
	b := newTestbed(t, netlab.ClusterOptions{}, of(KindSteered, func(c *Config) { c.Mode = ModeAlone }))
	b.publish(testService{name: "empty", number: 71, port: 80})
	const atOnce = 15
	for _, f := range netlab.Families {
		for range atOnce {
			send(t, b.Node, netip.AddrPortFrom(netlab.ClusterIP(f, 71), 80))
		}
	}
	b.settle()
	for _, f := range netlab.Families {
		if n := refused(t, b.Node, f); n != atOnce {
			t.Errorf("%s: %d of %d datagrams refused", f, n, atOnce)
		}
	}
}

// send sends one small datagram from a new port, so that several workers have their
// share.
func send(t *testing.T, n *netlab.Namespace, to netip.AddrPort) {
	t.Helper()
	if err := n.Do(func() error {
		c, err := net.ListenUDP("udp", nil)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteToUDPAddrPort([]byte("anybody?"), to)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// refused is how many times a namespace was told that a destination is unreachable.
func refused(t *testing.T, p *netlab.Namespace, f netlab.Family) (n int) {
	t.Helper()
	if err := p.Do(func() (err error) {
		if f == netlab.IPv6 {
			n, err = snmp6("Icmp6InDestUnreachs")
		} else {
			n, err = snmp("Icmp:", "InDestUnreachs")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// snmp reads a counter of this thread's network namespace.
func snmp(group, name string) (int, error) {
	data, err := os.ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		return 0, err
	}
	var names []string
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case fields[0] != group:
		case names == nil:
			names = fields
		default:
			for i, n := range names {
				if n == name {
					return strconv.Atoi(fields[i])
				}
			}
		}
	}
	return 0, fmt.Errorf("no counter %s %s", group, name)
}

func snmp6(name string) (int, error) {
	data, err := os.ReadFile("/proc/thread-self/net/snmp6")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(data))
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i] == name {
			return strconv.Atoi(fields[i+1])
		}
	}
	return 0, fmt.Errorf("no counter %s", name)
}
