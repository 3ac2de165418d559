//go:build linux

package xdpprog

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

// attached returns the XDP program of a device, nil if it has none.
func (r *rig) attached(t *testing.T, ifindex int) *netlink.LinkXdp {
	t.Helper()
	l, err := r.ns.Handle().LinkByIndex(ifindex)
	if err != nil {
		t.Fatal(err)
	}
	if xdp := l.Attrs().Xdp; xdp != nil && xdp.Attached {
		return xdp
	}
	return nil
}

func id(t *testing.T, p *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

// in runs f in the rig's namespace, where devices are known by their numbers.
func (r *rig) in(t *testing.T, f func()) {
	t.Helper()
	if err := r.ns.Do(func() error { f(); return nil }); err != nil {
		t.Fatal(err)
	}
}

const ifindexLoopback = 1

func TestAttachXDP(t *testing.T) {
	r := newRig(t, nil)
	before := r.ns.State()
	for _, tt := range []struct {
		name    string
		ifindex int
		asked   AttachMode
		granted AttachMode
		refused bool // native, under Auto
	}{
		{"native", r.direct, Native, Native, false},
		{"generic", r.direct, Generic, Generic, false},
		{"auto", r.direct, Auto, Native, false},
		{"auto without a native driver", ifindexLoopback, Auto, Generic, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.in(t, func() {
				a, err := r.AttachXDP(tt.ifindex, XDPOptions{Mode: tt.asked})
				if err != nil {
					t.Fatal(err)
				}
				if a.Asked != tt.asked || a.Granted != tt.granted || (a.NativeRefused != nil) != tt.refused || a.Adopted || a.Replaced != nil {
					t.Errorf("got %+v", a)
				}
				there := r.attached(t, tt.ifindex)
				if there == nil || ebpf.ProgramID(there.ProgId) != id(t, r.xdp) || modeOf(there) != tt.granted {
					t.Errorf("on the device: %+v", there)
				}
				if _, err := r.AttachXDP(tt.ifindex, XDPOptions{}); err == nil || !strings.Contains(err.Error(), "attached already") {
					t.Errorf("attached twice: %v", err)
				}
				if err := r.Detach(tt.ifindex); err != nil {
					t.Fatal(err)
				}
				if there := r.attached(t, tt.ifindex); there != nil {
					t.Errorf("still on the device: %+v", there)
				}
				if err := r.Detach(tt.ifindex); err != nil {
					t.Errorf("detaching again: %v", err)
				}
			})
		})
	}
	if diff := netlab.Diff(before, r.ns.State()); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// Without a pin directory an attachment ends with its process.
func TestCloseDetachesWhatIsNotPinned(t *testing.T) {
	r := newRig(t, nil)
	r.in(t, func() {
		if _, err := r.AttachXDP(r.direct, XDPOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.AttachEgress(r.direct); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if there := r.attached(t, r.direct); there != nil {
			t.Errorf("still on the device: %+v", there)
		}
		if q, err := link.QueryPrograms(link.QueryOptions{Target: r.direct, Attach: ebpf.AttachTCXEgress}); err != nil || len(q.Programs) > 0 {
			t.Errorf("still on its egress: %v, %v", q, err)
		}
	})
}

func TestAttachXDPRefusals(t *testing.T) {
	r := newRig(t, nil)
	lab := netlab.New(t)
	lab.Veth(r.ns, "jumbo", r.ns, "jumbo-peer", netlab.VethOptions{MTU: 9000})
	lab.Veth(r.ns, "queues", r.ns, "queues-peer", netlab.VethOptions{Queues: 2})
	r.ns.Channels("queues", 1, 1)
	for _, tt := range []struct {
		name    string
		ifindex int
		mode    AttachMode
		want    []string
	}{
		{"no driver support", ifindexLoopback, Native, []string{"device lo", "no native XDP", "ask for generic"}},
		{"MTU", r.ns.Index("jumbo"), Native, []string{"device jumbo", "MTU (9000)", "3500"}},
		{"queues", r.ns.Index("queues"), Native, []string{"device queues", "receive queues", "ethtool -L"}},
		{"no such device", 1 << 20, Native, []string{"device 1048576"}},
		{"offload", r.direct, Offload, []string{"offload cannot be asked for"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.in(t, func() {
				_, err := r.AttachXDP(tt.ifindex, XDPOptions{Mode: tt.mode})
				if err == nil {
					t.Fatal("attached")
				}
				for _, want := range tt.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%q does not say %q", err, want)
					}
				}
				t.Log(err)
			})
		})
	}
}

// foreignProgram is somebody else's.
func foreignProgram(t *testing.T) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebody_else", Type: ebpf.XDP, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestForeignProgram(t *testing.T) {
	foreign := foreignProgram(t)
	for _, tt := range []struct {
		name   string
		mode   AttachMode
		attach func(ifindex int) error
	}{
		{"by link, native", Native, func(ifindex int) error {
			l, err := link.AttachXDP(link.XDPOptions{Program: foreign, Interface: ifindex, Flags: link.XDPDriverMode})
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		}},
		{"by netlink, native", Native, func(ifindex int) error {
			return netlink.LinkSetXdpFdWithFlags(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}, foreign.FD(), unix.XDP_FLAGS_DRV_MODE)
		}},
		{"by netlink, generic", Generic, func(ifindex int) error {
			return netlink.LinkSetXdpFdWithFlags(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}, foreign.FD(), unix.XDP_FLAGS_SKB_MODE)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.in(t, func() {
				if err := tt.attach(r.direct); err != nil {
					t.Fatal(err)
				}
				_, err := r.AttachXDP(r.direct, XDPOptions{Mode: Auto})
				var refusal *ForeignProgram
				if !errors.As(err, &refusal) {
					t.Fatalf("got %v", err)
				}
				if want := (ForeignProgram{"port", id(t, foreign), "somebody_else", tt.mode}); *refusal != want {
					t.Errorf("got %+v, want %+v", *refusal, want)
				}
				if there := r.attached(t, r.direct); there == nil || ebpf.ProgramID(there.ProgId) != id(t, foreign) {
					t.Errorf("the refusal touched the device: %+v", there)
				}
				a, err := r.AttachXDP(r.direct, XDPOptions{Replace: true})
				if err != nil {
					t.Fatal(err)
				}
				if a.Replaced == nil || a.Replaced.ID != id(t, foreign) || a.Granted != Native {
					t.Errorf("got %+v", a)
				}
				if there := r.attached(t, r.direct); there == nil || ebpf.ProgramID(there.ProgId) != id(t, r.xdp) {
					t.Errorf("on the device: %+v", there)
				}
			})
		})
	}
}

// A pinned attachment outlives its process, and the next one takes it over in
// place: the link stays, its program changes.
func TestAdoptAttachments(t *testing.T) {
	dir := bpffs(t)
	r := newRig(t, func(s *Spec) { s.PinDir = dir })
	before := r.ns.State()
	r.in(t, func() {
		for _, ifindex := range []int{r.direct, r.inner} {
			if _, err := r.AttachXDP(ifindex, XDPOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.AttachEgress(r.direct); err != nil {
			t.Fatal(err)
		}
		if _, err := r.AttachSteer(r.direct); err != nil {
			t.Fatal(err)
		}
	})
	first := id(t, r.xdp)
	links := linkIDs(t, dir)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if there := r.attached(t, r.direct); there == nil || ebpf.ProgramID(there.ProgId) != first {
		t.Fatalf("after the process's end: %+v", there)
	}

	next, err := Load(r.spec)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	r.in(t, func() {
		a, err := next.AttachXDP(r.direct, XDPOptions{})
		if err != nil || !a.Adopted || a.Granted != Native || a.Replaced != nil {
			t.Errorf("got %+v, %v", a, err)
		}
		if there := r.attached(t, r.direct); there == nil || ebpf.ProgramID(there.ProgId) != id(t, next.xdp) {
			t.Errorf("on the device: %+v, want program %d", there, id(t, next.xdp))
		}
		for _, tc := range []struct {
			name    string
			attach  func(int) (bool, error)
			at      ebpf.AttachType
			program *ebpf.Program
		}{
			{"egress", next.AttachEgress, ebpf.AttachTCXEgress, next.egress},
			{"steer", next.AttachSteer, ebpf.AttachTCXIngress, next.steer},
		} {
			if adopted, err := tc.attach(r.direct); err != nil || !adopted {
				t.Errorf("%s: adopted %t, %v", tc.name, adopted, err)
			}
			q, err := link.QueryPrograms(link.QueryOptions{Target: r.direct, Attach: tc.at})
			if err != nil || len(q.Programs) != 1 || q.Programs[0].ID != id(t, tc.program) {
				t.Errorf("%s: on the device: %+v, %v", tc.name, q, err)
			}
		}
	})
	now := linkIDs(t, dir)
	for pin, id := range links {
		if now[pin] != id {
			t.Errorf("%s: link %d became %d", pin, id, now[pin])
		}
	}

	// The inner end was not taken over.
	if there := r.attached(t, r.inner); there == nil {
		t.Error("the other port's program is gone before the sweep")
	}
	if err := next.SetPort(r.direct, directSlot, 0); err != nil {
		t.Fatal(err)
	}
	swept, err := next.Sweep()
	if err != nil || len(swept) != 2 {
		t.Errorf("swept %q, %v", swept, err)
	}
	if there := r.attached(t, r.inner); there != nil {
		t.Errorf("after the sweep: %+v", there)
	}
	if there := r.attached(t, r.direct); there == nil {
		t.Error("the sweep took what is in use")
	}

	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Cleanup(dir); err != nil {
		t.Fatal(err)
	}
	if diff := netlab.Diff(before, r.ns.State()); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

func linkIDs(t *testing.T, dir string) map[string]link.ID {
	t.Helper()
	ids := make(map[string]link.ID)
	for _, pin := range files(t, filepath.Join(dir, "links")) {
		l, err := link.LoadPinnedLink(filepath.Join(dir, "links", pin), nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		ids[pin] = info.ID
		l.Close()
	}
	return ids
}

// What an earlier process left may not be what this one wants.
func TestAdoptWhatChanged(t *testing.T) {
	setup := func(t *testing.T) (r *rig, next func() *Objects) {
		dir := bpffs(t)
		r = newRig(t, func(s *Spec) { s.PinDir = dir })
		r.in(t, func() {
			if _, err := r.AttachXDP(r.direct, XDPOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := r.AttachEgress(r.direct); err != nil {
				t.Fatal(err)
			}
		})
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		return r, func() *Objects { return load(t, r.spec) }
	}
	t.Run("another mode", func(t *testing.T) {
		r, next := setup(t)
		o := next()
		r.in(t, func() {
			a, err := o.AttachXDP(r.direct, XDPOptions{Mode: Generic})
			if err != nil || a.Adopted || a.Granted != Generic || a.Replaced != nil {
				t.Errorf("got %+v, %v", a, err)
			}
		})
	})
	t.Run("auto takes what is there", func(t *testing.T) {
		r, next := setup(t)
		o := next()
		r.in(t, func() {
			if a, err := o.AttachXDP(r.direct, XDPOptions{Mode: Auto}); err != nil || !a.Adopted || a.Granted != Native {
				t.Errorf("got %+v, %v", a, err)
			}
		})
	})
	t.Run("the device was renamed", func(t *testing.T) {
		r, next := setup(t)
		r.ns.Down("port")
		l, err := r.ns.Handle().LinkByIndex(r.direct)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.ns.Handle().LinkSetName(l, "port.new"); err != nil {
			t.Fatal(err)
		}
		o := next()
		r.in(t, func() {
			if a, err := o.AttachXDP(r.direct, XDPOptions{}); err != nil || !a.Adopted {
				t.Errorf("got %+v, %v", a, err)
			}
		})
	})
	t.Run("another device has its number", func(t *testing.T) {
		r, next := setup(t)
		r.ns.Delete("port")
		if err := r.ns.Handle().LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "reborn", Index: r.direct}, PeerName: "twin"}); err != nil {
			t.Fatal(err)
		}
		o := next()
		r.in(t, func() {
			a, err := o.AttachXDP(r.direct, XDPOptions{})
			if err != nil || a.Adopted || a.Granted != Native {
				t.Errorf("got %+v, %v", a, err)
			}
			if adopted, err := o.AttachEgress(r.direct); err != nil || adopted {
				t.Errorf("egress: adopted %t, %v", adopted, err)
			}
		})
	})
	t.Run("another namespace", func(t *testing.T) {
		r, next := setup(t)
		o := next()
		stranger := netlab.New(t).Namespace("stranger")
		twin := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "twin", Index: r.direct}, PeerName: "peer"}
		if err := stranger.Handle().LinkAdd(twin); err != nil {
			t.Fatal(err)
		}
		if err := stranger.Do(func() error {
			if _, err := o.AttachXDP(r.direct, XDPOptions{}); err == nil || !strings.Contains(err.Error(), "one network namespace") {
				t.Errorf("got %v", err)
			}
			if _, err := o.AttachEgress(r.direct); err == nil || !strings.Contains(err.Error(), "one network namespace") {
				t.Errorf("egress: got %v", err)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if there := r.attached(t, r.direct); there == nil {
			t.Error("the real one is gone")
		}
	})
	t.Run("the pin is something else", func(t *testing.T) {
		r, next := setup(t)
		o := next()
		pin := o.pinOf(hookOf{r.direct, hookXDP})
		if err := os.Rename(o.pinOf(hookOf{r.direct, hookEgress}), pin); err != nil {
			t.Fatal(err)
		}
		r.in(t, func() {
			if _, err := o.AttachXDP(r.direct, XDPOptions{}); err == nil || !strings.Contains(err.Error(), "another kind") {
				t.Errorf("got %v", err)
			}
		})
	})
	t.Run("the device is gone when we detach", func(t *testing.T) {
		r, next := setup(t)
		o := next()
		r.in(t, func() {
			if _, err := o.AttachXDP(r.direct, XDPOptions{}); err != nil {
				t.Fatal(err)
			}
		})
		r.ns.Delete("port")
		if err := o.Detach(r.direct); err != nil {
			t.Error(err)
		}
		if _, err := o.Sweep(); err != nil {
			t.Error(err)
		}
		if left := files(t, filepath.Join(r.spec.PinDir, "links")); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

// Frames on a wire: a daemon that serves takes them, one that hangs leaves them to
// the kernel, and so does one that never was.
func TestFramesOnAPort(t *testing.T) {
	for _, mode := range []AttachMode{Native, Generic} {
		t.Run(mode.String(), func(t *testing.T) {
			netlab.RequireRoot(t)
			lab := netlab.New(t)
			c := lab.Cluster(netlab.ClusterOptions{Backends: 1})
			client := c.Clients[0]
			c.Backends[0].EchoOn(8080)
			r := &rig{ns: c.Node}
			lab.Veth(r.ns, "inner", r.ns, "outer", netlab.VethOptions{})
			r.direct, r.inner, r.outer = r.ns.Index(client.HostDevice), r.ns.Index("inner"), r.ns.Index("outer")
			r.load(t, nil)
			for _, f := range netlab.Families {
				frontend := map[netlab.Family]netip.AddrPort{netlab.IPv4: frontend4, netlab.IPv6: frontend6}[f]
				for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
					c.Node.DNAT(frontend, proto, []netip.AddrPort{c.Backends[0].AddrPort(f, 8080)}, netlab.PickFirst)
				}
			}
			r.in(t, func() {
				if a, err := r.AttachXDP(r.direct, XDPOptions{Mode: mode}); err != nil || a.Granted != mode {
					t.Fatalf("got %+v, %v", a, err)
				}
			})
			exchange := func(network string, to netip.AddrPort, patience time.Duration) error {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				_, err := client.Exchange(ctx, network, to, 100)
				return err
			}
			each := func(state string, served bool) {
				t.Helper()
				for _, network := range []string{"tcp", "udp"} {
					for _, to := range []netip.AddrPort{frontend4, frontend6} {
						patience := 5 * time.Second
						if !served {
							patience = 100 * time.Millisecond
						}
						if err := exchange(network, to, patience); (err == nil) != served {
							t.Errorf("%s: %s to %v: %v", state, network, to, err)
						}
					}
				}
			}
			index := r.Index(directSlot, 0)
			each("no daemon yet", true)
			// Its socket takes every frame and gives none back.
			r.socket(t, index)
			r.beat(index, 0)
			before := r.counters(t)[directSlot].Ingress
			each("serving", false)
			if after := r.counters(t)[directSlot].Ingress; after[ReasonNew] < before[ReasonNew]+4 {
				t.Errorf("%d frames were ours, want 4 and more", after[ReasonNew]-before[ReasonNew])
			}
			r.beat(index, 2*rigStale)
			each("hung", true)
			r.beat(index, 0)
			each("back", false)
			if err := r.DeleteSocket(index); err != nil {
				t.Fatal(err)
			}
			each("dead", true)
		})
	}
}
