package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/sluice-net/sluice/internal/netlab"
	"github.com/sluice-net/sluice/xdpprog"
)

func TestSlotsRest(t *testing.T) {
	s := newSlots(map[int]xdpprog.Port{7: {Slot: 3}, 8: {Slot: 4}, 9: {Slot: 4}})
	second := uint64(time.Second)
	if !s.claim(3) || s.claim(3) || s.claim(4) || s.claim(5) {
		t.Error("a slot is claimed once, and only by who had it alone")
	}
	got := map[int]bool{}
	for {
		slot, err := s.take(second)
		if err != nil {
			break
		}
		if got[slot] || slot == returnSlot || slot == 3 || slot == 4 {
			t.Fatalf("slot %d given twice, or not free", slot)
		}
		got[slot] = true
	}
	if len(got) != maxPorts-3 {
		t.Errorf("%d slots of %d", len(got), maxPorts-3)
	}
	s.release(10, 5*second)
	s.release(returnSlot, 5*second)
	s.forget(5 * second)
	if slot, err := s.take(6*second - 1); err == nil {
		t.Errorf("slot %d did not rest", slot)
	}
	for _, want := range []int{10, 4} {
		if slot, err := s.take(6 * second); err != nil || slot != want {
			t.Errorf("got slot %d, %v, want %d", slot, err, want)
		}
	}
	if _, err := s.take(9 * second); err == nil {
		t.Error("more slots than there are")
	}
}

func TestRoles(t *testing.T) {
	veth := func(peer int) netlink.Link {
		return &netlink.Veth{LinkAttrs: netlink.LinkAttrs{EncapType: "ether", NetNsID: peer}}
	}
	for _, c := range []struct {
		name    string
		link    netlink.Link
		gateway bool
		want    Role
	}{
		{"pod", veth(0), false, RolePods},
		{"uplink", veth(0), true, RoleUplinks},
		{"both ends here", veth(-1), false, RoleAny},
		{"hardware", &netlink.Device{LinkAttrs: netlink.LinkAttrs{EncapType: "ether"}}, false, RoleUplinks},
		{"loopback", &netlink.Device{LinkAttrs: netlink.LinkAttrs{EncapType: "loopback"}}, false, RoleAny},
		{"vxlan", &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{EncapType: "ether"}}, true, RoleTunnels},
		{"bridge", &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{EncapType: "ether"}}, false, RoleAny},
		{"tap", &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{EncapType: "ether"}}, false, RolePods},
		{"wireguard", &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{EncapType: "none"}}, true, RoleAny},
	} {
		if got := roleOf(c.link, c.gateway); got != c.want {
			t.Errorf("%s is %q, want %q", c.name, got, c.want)
		}
	}
}

// served waits until exactly these devices are served, besides the return port.
func (b *testbed) served(names ...string) {
	b.t.Helper()
	slices.Sort(names)
	var got []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		got = nil
		for _, p := range b.d.Stats().Ports[1:] {
			got = append(got, p.Name)
		}
		slices.Sort(got)
		if slices.Equal(got, names) {
			return
		}
	}
	b.t.Fatalf("served are %v, want %v; refused %v", got, names, b.d.Stats().Refused)
}

// refusedFor waits until one device is refused, and says why.
func (b *testbed) refusedFor(name string) string {
	b.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		for _, r := range b.d.Stats().Refused {
			if r.Name == name {
				return r.Why
			}
		}
	}
	b.t.Fatalf("%s is not refused", name)
	return ""
}

// chosen opens pods' devices by a pattern, of this kind, and the uplink by its role.
func chosen(kind PortKind) func(*Config) {
	return func(c *Config) {
		c.Ports = []PortConfig{
			{Name: "*-not", Kind: KindNone},
			{Role: RoleUplinks, Kind: KindNative},
			{Role: RolePods, Kind: kind},
		}
	}
}

// TestPortsFollowDevices: a pod comes, is renamed, changes its MTU, goes, and another
// comes with its number.
func TestPortsFollowDevices(t *testing.T) { eachKind(t, testPortsFollowDevices) }

func testPortsFollowDevices(t *testing.T, kind PortKind) {
	netlab.RequireRoot(t)
	b := &testbed{t: t, Cluster: netlab.New(t).Cluster(netlab.ClusterOptions{Backends: 1, Queues: 2})}
	b.Node.Channels("backend0", 1, 1)
	b.Backends[0].Channels(netlab.PodDevice, 1, 1)
	b.open(chosen(kind))
	defer b.close()
	base := []string{netlab.UplinkDevice, "client0", "backend0"}
	b.served(base...)
	with := func(names ...string) []string { return append(slices.Clone(base), names...) }
	_, backends := b.echo(8080)
	b.publish(testService{name: "echo", number: 30, port: 80, backends: backends})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	exchange := func(p *netlab.Pod) {
		t.Helper()
		before := b.settle()
		for _, f := range netlab.Families {
			for _, network := range []string{"tcp", "udp"} {
				if _, err := p.Exchange(ctx, network, netip.AddrPortFrom(netlab.ClusterIP(f, 30), 80), 1000); err != nil {
					t.Fatalf("%s from %s: %v", network, p.Name(), err)
				}
			}
		}
		if now := b.settle(); now.Verdict(Translated) == before.Verdict(Translated) || now.Verdict(Dropped) != before.Verdict(Dropped) {
			t.Errorf("translated %d, dropped %d", now.Verdict(Translated)-before.Verdict(Translated), now.Verdict(Dropped)-before.Verdict(Dropped))
		}
	}
	pod := b.AddPod("new", 1)
	b.served(with("new")...)
	exchange(pod)
	b.Node.Rename("new", "new-not")
	b.served(base...)
	b.Node.Rename("new-not", "other")
	b.served(with("other")...)
	b.Node.Rename("other", "new")
	b.served(with("new")...)

	b.Node.MTU("new", 2000)
	b.Node.MTU("new", 9000)
	if why := b.refusedFor("new"); !strings.Contains(why, "MTU") || !strings.Contains(why, "9000") {
		t.Errorf("refused: %s", why)
	}
	b.served(base...)
	b.Node.MTU("new", 1500)
	b.served(with("new")...)
	exchange(b.Clients[0])

	if kind == KindNative {
		b.Node.Channels("backend0", 2, 1)
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			p := b.d.Stats().Ports
			if i := slices.IndexFunc(p, func(p PortStats) bool { return p.Name == "backend0" }); i > 0 && p[i].Queues == 2 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("a second queue is not served")
			}
		}
	}
	// Another device under the old number, before the loss of the first one is seen.
	index := b.Node.Index("new")
	b.Node.Delete("new")
	again := newVeth("new", index)
	if err := b.Node.Do(func() error { return netlink.LinkAdd(again) }); err != nil {
		t.Fatal(err)
	}
	b.served(base...) // both its ends are here
	b.Node.Delete("new")
	exchange(b.Clients[0])
}

// newVeth is a pair in one namespace.
func newVeth(name string, index int) *netlink.Veth {
	at := netlink.NewLinkAttrs()
	at.Name, at.Index = name, index
	return &netlink.Veth{LinkAttrs: at, PeerName: name + "-not"}
}

// TestLostNews: more changes than the kernel keeps news of, and still what comes after
// them is heard of at once.
func TestLostNews(t *testing.T) {
	defer func(n int) { subscriptionBuffer = n }(subscriptionBuffer)
	subscriptionBuffer = 1 // the kernel's least
	b := newTestbed(t, netlab.ClusterOptions{Backends: 1}, func(c *Config) { c.Ports = []PortConfig{{Name: "new*"}, {Name: "backend0"}} })
	lost := func() bool { return !b.d.egress.lost.CompareAndSwap(false, false) }
	seen := make(chan bool, 1)
	go func() {
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Microsecond) {
			if lost() {
				seen <- true
				return
			}
		}
		seen <- false
	}()
	if err := b.Node.Do(func() error {
		for i := range 30 {
			if err := netlink.LinkAdd(newVeth(fmt.Sprintf("old%d", i), 0)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !<-seen {
		t.Fatal("no news were lost: the test proves nothing")
	}
	b.served("backend0")
	time.Sleep(100 * time.Millisecond) // the burst is over
	if err := b.Node.Do(func() error { return netlink.LinkAdd(newVeth("new", 0)) }); err != nil {
		t.Fatal(err)
	}
	b.served("backend0", "new", "new-not")
	if err := b.Node.Do(func() error {
		for i := range 30 {
			l, err := netlink.LinkByName(fmt.Sprintf("old%d", i))
			if err == nil {
				err = netlink.LinkDel(l)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	b.Node.Delete("new")
	b.served("backend0")
}

// TestPodChurn: devices come and go, many at once, under traffic of others, and nothing
// is left of them. SLUICE_CHURN is how many; 10 000 take a few minutes.
func TestPodChurn(t *testing.T) { eachKind(t, testPodChurn) }

func testPodChurn(t *testing.T, kind PortKind) {
	cycles, atOnce := 100, 50
	if kind == KindNative {
		cycles, atOnce = 30, 3
	}
	if n, err := strconv.Atoi(os.Getenv("SLUICE_CHURN")); err == nil {
		cycles = n
	}
	b := newTestbed(t, netlab.ClusterOptions{Backends: 1}, func(c *Config) {
		c.Ports = []PortConfig{{Name: "uplink", Kind: KindNative}, {Name: "client0"}, {Name: "backend0"}, {Name: "churn*", Kind: kind}}
		c.Frames = 16384
	})
	_, backends := b.echo(8080)
	b.publish(testService{name: "echo", number: 31, port: 80, backends: backends})
	base := []string{"uplink", "client0", "backend0"}
	b.served(base...)
	b.exchanges(31, 80, 1)
	b.settle()
	churn := func(n int) {
		for done := 0; done < n; done += atOnce {
			var names []string
			if err := b.Node.Do(func() error {
				for i := range atOnce {
					name := fmt.Sprintf("churn%d", i)
					names = append(names, name)
					at := netlink.NewLinkAttrs()
					at.Name, at.Flags = name, 1 // up
					if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: at, PeerName: fmt.Sprintf("peer%d", i)}); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			b.served(append(slices.Clone(base), names...)...)
			if err := b.Node.Do(func() error {
				for _, name := range names {
					l, err := netlink.LinkByName(name)
					if err == nil {
						err = netlink.LinkDel(l)
					}
					if err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		b.served(base...)
	}
	churn(atOnce) // what is made once is made
	before := resources(t)
	ctx, cancel := context.WithCancel(context.Background())
	traffic := make(chan error, 1)
	go func() {
		vip := netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 31), 80)
		for ctx.Err() == nil {
			within, done := context.WithTimeout(context.Background(), 20*time.Second)
			_, err := b.Clients[0].Exchange(within, "tcp", vip, 20000)
			done()
			if err != nil {
				traffic <- err
				return
			}
		}
		traffic <- nil
	}()
	start := time.Now()
	churn(cycles)
	took := time.Since(start)
	cancel()
	if err := <-traffic; err != nil {
		t.Errorf("traffic of others: %v", err)
	}
	if kind == KindSteered && len(b.d.slots.free) != maxPorts-4 {
		t.Errorf("%d of %d slots are free", len(b.d.slots.free), maxPorts-4)
	}
	if ports, err := b.d.prog.Ports(); err != nil || len(ports) != 4 {
		t.Errorf("%d entries in the port map, %v, want 4", len(ports), err)
	}
	var after map[string]int
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if after = resources(t); maps.Equal(before, after) {
			t.Logf("%d cycles in %v: %v", cycles, took.Round(time.Millisecond), after)
			return
		}
	}
	t.Errorf("before %v, after %d cycles %v", before, cycles, after)
}

// resources counts what a process may leak: descriptors by what they are, locked
// memory in KiB, goroutines.
func resources(t *testing.T) map[string]int {
	t.Helper()
	runtime.GC()
	n := map[string]int{"goroutines": runtime.NumGoroutine()}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			what, _, _ := strings.Cut(to, ":[")
			n[what]++
		}
	}
	for line := range strings.Lines(string(must(os.ReadFile("/proc/self/status")))) {
		if f := strings.Fields(line); f[0] == "VmLck:" || f[0] == "VmPin:" {
			n[f[0]], _ = strconv.Atoi(f[1])
		}
	}
	return n
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// TestRefusedForWantOfASlot: such a device is looked at again by itself, another one
// when it changes.
func TestRefusedForWantOfASlot(t *testing.T) {
	d := &Dataplane{log: slog.New(slog.DiscardHandler), refused: map[int]refusal{}}
	l := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 7, Name: "pod"}}
	for _, c := range []struct {
		err   error
		waits bool
	}{{errNoSlot, true}, {errors.New("another"), false}, {fmt.Errorf("pod: %w", errNoSlot), true}} {
		d.refuse(l, c.err)
		if r := d.refused[7]; d.waitsForSlot() != c.waits || (r.of == likeness(l)) == c.waits || r.why != c.err.Error() {
			t.Errorf("%v: waits %v, %+v", c.err, d.waitsForSlot(), r)
		}
	}
	d.unrefuse(7)
	if d.waitsForSlot() {
		t.Error("what is no longer refused waits")
	}
}
