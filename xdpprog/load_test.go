//go:build linux

package xdpprog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/internal/netlab"
)

// What the verifier walks is a budget: it decides how long a start takes, and the
// kernel refuses a program at a million. The figures differ a little by kernel.
func TestVerifierBudget(t *testing.T) {
	netlab.RequireRoot(t)
	for _, tt := range []struct {
		name               string
		spec               Spec
		xdp, steer, egress uint32
	}{
		{"front with conntrack", Spec{Conntrack: ConntrackRequired}, 9000, 9000, 8500},
		{"front without conntrack", Spec{Conntrack: ConntrackOff}, 9000, 9000, 8500},
		{"alone", Spec{Mode: ModeAlone}, 9000, 9000, 8500},
		{"SCTP", Spec{Conntrack: ConntrackRequired, SCTP: true}, 9000, 9000, 8500},
		{"errors", Spec{Conntrack: ConntrackRequired, ICMPErrors: true}, 18000, 18000, 17500},
		{"fragments", Spec{Conntrack: ConntrackRequired, Fragments: true}, 11000, 11000, 10500},
		{"fragments and errors", Spec{Conntrack: ConntrackRequired, Fragments: true, ICMPErrors: true}, 21000, 21000, 21000},
		{"all, front with conntrack", Spec{Conntrack: ConntrackRequired, Fragments: true, ICMPErrors: true, SCTP: true}, 21000, 21000, 21000},
		{"all, front without conntrack", Spec{Conntrack: ConntrackOff, Fragments: true, ICMPErrors: true, SCTP: true}, 21000, 21000, 21000},
		{"all, alone", Spec{Mode: ModeAlone, Fragments: true, ICMPErrors: true, SCTP: true}, 21000, 21000, 21000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.spec.FlowBuckets, tt.spec.FlowRecords, tt.spec.OuterIfindex = 2, 2, 1
			o, err := Load(tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			for _, p := range []struct {
				*ebpf.Program
				budget uint32
			}{{o.xdp, tt.xdp}, {o.steer, tt.steer}, {o.egress, tt.egress}} {
				info, err := p.Info()
				if err != nil {
					t.Fatal(err)
				}
				verified, ok := info.VerifiedInstructions()
				jited, _ := info.JitedSize()
				if !ok || verified > p.budget {
					t.Errorf("%s: %d instructions verified, budget %d", info.Name, verified, p.budget)
				}
				t.Logf("%s: %d instructions verified, %d bytes of machine code", info.Name, verified, jited)
			}
		})
	}
}

// bpffs returns a pin directory on a bpf filesystem that is mounted nowhere: only a
// descriptor of this process holds it, so it leaves nothing behind.
func bpffs(t testing.TB) string {
	t.Helper()
	netlab.RequireRoot(t)
	fs, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		t.Fatal(err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(mount) })
	return fmt.Sprintf("/proc/%d/fd/%d/sluice", os.Getpid(), mount)
}

func small(dir string) Spec {
	s := Spec{Slots: 4, Queues: 2, MaxAddresses: 8, PinDir: dir}
	s.FlowBuckets, s.FlowRecords = flowtable.Geometry(16)
	return s
}

func load(t *testing.T, spec Spec) *Objects {
	t.Helper()
	o, err := Load(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return names
}

// The next process finds everything as the last one left it.
func TestAdoptMaps(t *testing.T) {
	dir := bpffs(t)
	first := load(t, small(dir))
	if first.Adopted() {
		t.Error("adopted from an empty directory")
	}
	if err := flowtable.Format(first.FlowIndex(), first.FlowRecords(), [2]uint64{1, 2}); err != nil {
		t.Fatal(err)
	}
	table, _, err := flowtable.Open(first.FlowIndex(), first.FlowRecords(), flowtable.Timeouts{})
	if err != nil {
		t.Fatal(err)
	}
	flow := flowOf(known4, frontend4, backend4, tcp)
	if _, result := table.Insert(&flow, 0); result != flowtable.Inserted {
		t.Fatal(result)
	}
	if err := first.SetPort(7, 2, ReturnPort); err != nil {
		t.Fatal(err)
	}
	if err := first.UpdateAddresses([][16]byte{frontend4.Addr().As16()}, nil); err != nil {
		t.Fatal(err)
	}
	first.BeatsMemory()[8*first.Index(2, 1)] = 42
	first.Claims()[8*4711] = 43
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}

	second := load(t, small(dir))
	if !second.Adopted() {
		t.Error("nothing was adopted")
	}
	_, report, err := flowtable.Open(second.FlowIndex(), second.FlowRecords(), flowtable.Timeouts{})
	if err != nil || report.Flows != 1 {
		t.Errorf("flow table: %v, %v", report, err)
	}
	if ports, err := second.Ports(); err != nil || len(ports) != 1 || ports[7] != (Port{2, ReturnPort}) {
		t.Errorf("ports %v, %v", ports, err)
	}
	if a, err := second.Addresses(); err != nil || len(a) != 1 || a[0] != frontend4.Addr().As16() {
		t.Errorf("addresses %v, %v", a, err)
	}
	if second.BeatsMemory()[8*second.Index(2, 1)] != 42 {
		t.Error("the beat is lost")
	}
	if second.Claims()[8*4711] != 43 {
		t.Error("the claim is lost")
	}

	swept, err := second.Sweep()
	if err != nil || len(swept) != 1 || swept[0] != "port 7" {
		t.Errorf("swept %q, %v", swept, err)
	}
	if ports, _ := second.Ports(); len(ports) != 0 {
		t.Errorf("after the sweep: %v", ports)
	}

	// While it runs: the process keeps its maps.
	if err := Cleanup(dir); err != nil {
		t.Fatal(err)
	}
	if left := files(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if _, err := second.Counters(); err != nil {
		t.Error(err)
	}
	if err := Cleanup(dir); err != nil {
		t.Errorf("again: %v", err)
	}
}

// What does not fit is refused as a whole, and stays as it was.
func TestIncompatiblePins(t *testing.T) {
	for _, tt := range []struct {
		name  string
		edit  func(*Spec)
		wreck func(t *testing.T, dir string)
		want  string
	}{
		{name: "buckets", edit: func(s *Spec) { s.FlowBuckets *= 2 }, want: "maps/flow_index: MaxEntries"},
		{name: "records", edit: func(s *Spec) { s.FlowRecords++ }, want: "maps/flow_records: MaxEntries"},
		{name: "addresses", edit: func(s *Spec) { s.MaxAddresses++ }, want: "maps/frontend_addrs: MaxEntries"},
		{name: "sockets", edit: func(s *Spec) { s.Queues++ }, want: "maps/xsks: MaxEntries"},
		{name: "half a flow table", want: "half of the flow table", wreck: func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "maps", xdpMapFlowIndex)); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "something else", want: "maps/flow_index", wreck: func(t *testing.T, dir string) {
			o := load(t, small(""))
			path := filepath.Join(dir, "maps", xdpMapFlowIndex)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := o.xdp.Pin(path); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := bpffs(t)
			if err := load(t, small(dir)).Close(); err != nil {
				t.Fatal(err)
			}
			if tt.wreck != nil {
				tt.wreck(t, dir)
			}
			spec := small(dir)
			if tt.edit != nil {
				tt.edit(&spec)
			}
			before := files(t, dir)
			_, err := Load(spec)
			if !errors.Is(err, ErrIncompatiblePins) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if !slices.Equal(files(t, dir), before) {
				t.Errorf("pins were %q, are %q", before, files(t, dir))
			}
			// The way out.
			if err := Cleanup(dir); err != nil {
				t.Fatal(err)
			}
			if o := load(t, spec); o.Adopted() {
				t.Error("adopted after a cleanup")
			}
		})
	}
}

// A process that knew of no fragments left no map of backends. Its flows are adopted
// all the same.
func TestPinsWithoutBackends(t *testing.T) {
	dir := bpffs(t)
	if err := load(t, small(dir)).Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "maps", xdpMapBackendAddrs)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second := load(t, small(dir))
	if !second.Adopted() {
		t.Error("the flow table was not adopted")
	}
	if b, err := second.Backends(); err != nil || len(b) != 0 {
		t.Errorf("backends %v, %v", b, err)
	}
	if err := second.UpdateBackends([][16]byte{backend4.Addr().As16(), backend6.Addr().As16()}, nil); err != nil {
		t.Fatal(err)
	}
	if err := second.UpdateBackends(nil, [][16]byte{backend4.Addr().As16()}); err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	third := load(t, small(dir))
	if b, err := third.Backends(); err != nil || len(b) != 1 || b[0] != backend6.Addr().As16() {
		t.Errorf("adopted backends %v, %v", b, err)
	}
	if a, err := third.Addresses(); err != nil || len(a) != 0 {
		t.Errorf("backends are no frontends: %v, %v", a, err)
	}
}

// Counters are no reason to lose flows: an upgrade may have other reasons.
func TestOutdatedCountersAreReplaced(t *testing.T) {
	dir := bpffs(t)
	if err := load(t, small(dir)).Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "maps", xdpMapCounters)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	old, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := old.Pin(path); err != nil {
		t.Fatal(err)
	}
	o := load(t, small(dir))
	if !o.Adopted() {
		t.Error("the flow table was not adopted")
	}
	if _, err := o.Counters(); err != nil {
		t.Error(err)
	}
}

func TestPinDirRefusals(t *testing.T) {
	netlab.RequireRoot(t)
	dir := filepath.Join(t.TempDir(), "a", "b")
	for _, call := range []func() error{
		func() error { _, err := Load(small(dir)); return err },
		func() error { return Cleanup(filepath.Dir(filepath.Dir(dir))) },
	} {
		if err := call(); !errors.Is(err, ErrNotBPFFS) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Error("a directory was made where no pin can be")
	}
	if _, err := Load(small("relative")); err == nil || !strings.Contains(err.Error(), "absolute") {
		t.Errorf("got %v", err)
	}
}

func TestMapLimits(t *testing.T) {
	netlab.RequireRoot(t)
	o := load(t, small(""))
	if err := o.SetPort(5, 4, 0); err == nil || !strings.Contains(err.Error(), "slot 4 of 4") {
		t.Errorf("slot out of range: %v", err)
	}
	if err := o.SetSocket(8, 0); err == nil {
		t.Error("a socket out of range")
	}
	if err := o.SetSocket(0, int(os.Stdin.Fd())); err == nil {
		t.Error("a file is no AF_XDP socket")
	}
	for _, gone := range []error{o.DeletePort(99), o.DeleteSocket(3), o.UpdateAddresses(nil, [][16]byte{{1}})} {
		if gone != nil {
			t.Errorf("deleting what is not there: %v", gone)
		}
	}
	var many [][16]byte
	for i := range byte(9) {
		many = append(many, [16]byte{i})
	}
	if err := o.UpdateAddresses(many, nil); !errors.Is(err, unix.E2BIG) || !strings.Contains(err.Error(), "more than 8 entries") {
		t.Errorf("too many addresses: %v", err)
	}
	if err := o.UpdateBackends(many, nil); !errors.Is(err, unix.E2BIG) || !strings.Contains(err.Error(), "more than 8 entries") {
		t.Errorf("too many backends: %v", err)
	}
	// Removed before added.
	if err := o.UpdateAddresses([][16]byte{{100}}, many[:1]); err != nil {
		t.Error(err)
	}
}

// The counters of a slot are those of its device.
func TestCountersStartAnewWithADevice(t *testing.T) {
	r := newRig(t, nil)
	r.alive(t, directSlot)
	r.ingress(t, packet{}.frame(t), r.direct, 0)
	if err := r.SetPort(r.direct, directSlot, 0); err != nil {
		t.Fatal(err)
	}
	if n := r.counters(t)[directSlot].Ingress[ReasonNew]; n != 1 {
		t.Errorf("setting a port again left %d of 1", n)
	}
	if err := r.SetPort(r.stranger, directSlot, 0); err != nil {
		t.Fatal(err)
	}
	if c := r.counters(t)[directSlot]; c != (PortCounters{}) {
		t.Errorf("another device begins with %v", c)
	}
}
