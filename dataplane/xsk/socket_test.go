//go:build linux

package xsk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

func TestMain(m *testing.M) {
	if name := os.Getenv("XSK_TEST_CHILD"); name != "" {
		children[name]()
		return
	}
	before := openFDs()
	code := m.Run()
	if after := openFDs(); code == 0 && after > before+epollFDs {
		fmt.Fprintf(os.Stderr, "%d file descriptors were open before the tests, %d after\n", before, after)
		code = 99
	}
	os.Exit(code)
}

// epollFDs is what the Go runtime opens once for its network poller.
const epollFDs = 2

func openFDs() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}

// testUmem is a Umem that must have all its frames in the end.
func testUmem(t testing.TB, cfg UmemConfig) *Umem {
	t.Helper()
	if cfg.Frames == 0 {
		cfg.Frames = 512
	}
	cfg.CheckFrames = true
	u, err := NewUmem(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := u.Checker().Check(); err != nil {
			t.Error(err)
		}
		if free := u.Pool().Free(); free != u.Frames() {
			t.Errorf("%d of %d frames are free in the end", free, u.Frames())
		}
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	})
	return u
}

func TestConfig(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
		want string // in the error; "": none
	}{
		{"zero value", Config{}, ""},
		{"smallest", Config{FillSize: 1, RxSize: 1, TxSize: 1, CompletionSize: 1}, ""},
		{"whole ring a call", Config{TxSize: 512, TxBudget: 512}, ""},
		{"odd fill ring", Config{FillSize: 100}, "fill ring size 100"},
		{"negative rx ring", Config{RxSize: -1}, "rx ring size -1"},
		{"huge tx ring", Config{TxSize: 1 << 21}, "tx ring size 2097152"},
		{"odd completion ring", Config{CompletionSize: 3}, "completion ring size 3"},
		{"unknown mode", Config{Mode: 9}, "unknown mode 9"},
		{"negative queue", Config{Queue: -1}, "queue -1"},
		{"small budget", Config{TxBudget: 8}, "tx budget 8"},
		{"large budget", Config{TxSize: 64, TxBudget: 128}, "tx budget 128"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.cfg.withDefaults().validate()
			if tt.want == "" && err != nil {
				t.Error(err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// wantOpenError asserts the kind of an error and what its text names.
func wantOpenError(t *testing.T, err error, kind error, errno error, text ...string) {
	t.Helper()
	var open *OpenError
	if !errors.As(err, &open) {
		t.Fatalf("error %v, want an OpenError", err)
	}
	if kind != nil && !errors.Is(err, kind) {
		t.Errorf("error %v, want %v", err, kind)
	}
	if errno != nil && !errors.Is(err, errno) {
		t.Errorf("error %v, want %v", err, errno)
	}
	for _, s := range text {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q, want %q in it", err, s)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	a, _ := pair(t, netlab.VethOptions{})
	u, other := testUmem(t, UmemConfig{}), testUmem(t, UmemConfig{})
	s, err := openOn(a, "v0", u, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	t.Run("busy", func(t *testing.T) {
		const timeout = 20 * time.Millisecond
		start := time.Now()
		_, err := openOn(a, "v0", other, Config{BusyTimeout: timeout})
		wantOpenError(t, err, ErrBusy, unix.EBUSY, "v0 queue 0", "bind", "ss --xdp")
		if d := time.Since(start); d < timeout {
			t.Errorf("gave up after %v, want %v", d, timeout)
		}
	})
	t.Run("busy by the same umem", func(t *testing.T) {
		_, err := openOn(a, "v0", u, Config{})
		wantOpenError(t, err, ErrBusy, nil, "v0 queue 0", "this umem has a socket on it already")
	})
	t.Run("no device", func(t *testing.T) {
		err := a.Do(func() error {
			_, err := Open(other, Config{Ifindex: 4242, Interface: "gone0", Queue: 3})
			return err
		})
		wantOpenError(t, err, ErrNoDevice, unix.ENODEV, "gone0 queue 3", "network namespace")
		err = a.Do(func() error {
			_, err := Open(other, Config{Ifindex: 4242})
			return err
		})
		wantOpenError(t, err, ErrNoDevice, unix.ENODEV, "ifindex 4242 queue 0")
	})
	t.Run("no queue", func(t *testing.T) {
		_, err := openOn(a, "v0", other, Config{Queue: 9})
		wantOpenError(t, err, ErrNoQueue, unix.EINVAL, "v0 queue 9", "the device has 1")
		_, err = openOn(a, "v0", u, Config{Queue: 9})
		wantOpenError(t, err, ErrNoQueue, unix.EINVAL, "v0 queue 9", "the device has 1")
	})
	t.Run("MTU", func(t *testing.T) {
		small := testUmem(t, UmemConfig{FrameSize: 2048, Headroom: 300})
		_, err := openOn(a, "v0", small, Config{})
		wantOpenError(t, err, ErrMTU, nil, "v0 queue 0", "the MTU is 1500", "holds one of 1470", "multi-buffer")
	})
	t.Run("zero copy", func(t *testing.T) {
		_, err := openOn(a, "v0", other, Config{Mode: ModeZeroCopy, BusyTimeout: time.Millisecond})
		wantOpenError(t, err, nil, nil, "v0 queue 0")
		a2, _ := pair(t, netlab.VethOptions{})
		_, err = openOn(a2, "v0", other, Config{Mode: ModeZeroCopy})
		wantOpenError(t, err, ErrZeroCopy, unix.EOPNOTSUPP, "use copy mode")
		_, err = openOn(a2, "v0", u, Config{Mode: ModeZeroCopy})
		wantOpenError(t, err, ErrZeroCopy, nil, "a umem of its own", "v0 queue 0, which copies")
	})
	t.Run("multi-buffer on a umem without", func(t *testing.T) {
		a2, _ := pair(t, netlab.VethOptions{})
		_, err := openOn(a2, "v0", u, Config{MultiBuffer: true})
		wantOpenError(t, err, ErrMultiBuffer, nil, "ask for it on the first socket")
	})
	t.Run("closed umem", func(t *testing.T) {
		closed, err := NewUmem(UmemConfig{Frames: 1})
		if err != nil {
			t.Fatal(err)
		}
		closed.Close()
		_, err = openOn(a, "v0", closed, Config{})
		wantOpenError(t, err, nil, nil, "the umem is closed")
	})
	t.Run("config", func(t *testing.T) {
		_, err := openOn(a, "v0", other, Config{RxSize: 3})
		wantOpenError(t, err, nil, nil, "v0 queue 0", "rx ring size 3")
	})
}

// TestOpenUnwinds: a failed Open leaves nothing behind, whatever step it failed at.
func TestOpenUnwinds(t *testing.T) {
	a, _ := pair(t, netlab.VethOptions{})
	u, other := testUmem(t, UmemConfig{}), testUmem(t, UmemConfig{})
	s, err := openOn(a, "v0", u, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := openFDs()
	for range 20 {
		if _, err := openOn(a, "v0", other, Config{BusyTimeout: 1}); err == nil {
			t.Fatal("opened on a busy queue")
		}
		if _, err := openOn(a, "v0", other, Config{Queue: 9}); err == nil {
			t.Fatal("opened on no queue")
		}
	}
	if after := openFDs(); after > before {
		t.Errorf("%d file descriptors before, %d after", before, after)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(maps), "socket:["); n != 4 {
		t.Errorf("%d ring mappings, want the 4 of the open socket", n)
	}
}

// TestCloseFreesTheQueue: a queue can be bound again right after the close, from another umem.
func TestCloseFreesTheQueue(t *testing.T) {
	a, _ := pair(t, netlab.VethOptions{})
	first, second := testUmem(t, UmemConfig{}), testUmem(t, UmemConfig{})
	for i := range 10 {
		s, err := openOn(a, "v0", first, Config{})
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if s.FD() < 0 {
			t.Fatal("no file descriptor")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s.FD() != -1 {
			t.Errorf("file descriptor %d after the close", s.FD())
		}
		if _, err := s.Statistics(); err == nil {
			t.Error("statistics of a closed socket")
		}
		first, second = second, first
	}
}

// child runs one of the functions in children in a new process, and returns what it printed.
func child(t *testing.T, name string) string {
	t.Helper()
	netlab.RequireRoot(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "XSK_TEST_CHILD="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("child: %v\n%s", err, out)
	}
	return string(out)
}

// children run in a namespace of their own, where the only device is lo.
var children = map[string]func(){
	"no CAP_NET_RAW": func() {
		openWithout(unix.CAP_NET_RAW, func() {})
	},
	"no CAP_IPC_LOCK": func() {
		openWithout(unix.CAP_IPC_LOCK, func() {
			limit := unix.Rlimit{Cur: 64 << 10, Max: 64 << 10}
			if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
				fmt.Println(err)
			}
		})
	},
	"CAP_IPC_LOCK": func() {
		openWithout(unix.CAP_SYS_ADMIN, func() { // any other
			limit := unix.Rlimit{Cur: 64 << 10, Max: 64 << 10}
			if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
				fmt.Println(err)
			}
		})
	},
}

// openWithout opens a socket on lo on a thread without a capability and prints the outcome.
func openWithout(capability uint, prepare func()) {
	runtime.LockOSThread() // capset is the thread's
	u, err := NewUmem(UmemConfig{Frames: 64})
	if err != nil {
		fmt.Println(err)
		return
	}
	prepare()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		fmt.Println(err)
		return
	}
	data[capability/32].Effective &^= 1 << (capability % 32)
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		fmt.Println(err)
		return
	}
	s, err := Open(u, Config{Ifindex: 1, MultiBuffer: true}) // for the MTU of lo
	fmt.Println(err)
	for _, kind := range []error{ErrPermission, ErrMemlock} {
		if errors.Is(err, kind) {
			fmt.Println("kind:", kind)
		}
	}
	if err == nil {
		s.Close()
	}
}

func TestOpenWithoutPrivilege(t *testing.T) {
	for _, tt := range []struct {
		child string
		want  []string
	}{
		{"no CAP_NET_RAW", []string{"af_xdp socket on lo queue 0: socket(AF_XDP)", "CAP_NET_RAW is needed",
			"operation not permitted", "kind: missing capability"}},
		{"no CAP_IPC_LOCK", []string{"af_xdp socket on lo queue 0: XDP_UMEM_REG", "the umem wants 262144 bytes",
			"RLIMIT_MEMLOCK is 65536 bytes", "CAP_IPC_LOCK, which lifts the limit, is absent", "ulimit -l",
			"kind: locked memory exceeded"}},
		{"CAP_IPC_LOCK", []string{"<nil>\n"}},
	} {
		t.Run(tt.child, func(t *testing.T) {
			out := child(t, tt.child)
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("the child says %q, want %q in it", out, want)
				}
			}
		})
	}
}

// TestDeviceDown: descriptors wait for the device.
func TestDeviceDown(t *testing.T) {
	tx, rx := twoStations(t, link.XDPDriverMode, stationConfig{}, stationConfig{})
	tx.ns.Down("v0")
	tx.sock.Transmit([]Desc{tx.frame(0, minFrame)})
	if k := tx.sock.Kick(); k != KickDown {
		t.Errorf("kick on a device that is down: %v, want %v", k, KickDown)
	}
	tx.ns.Up("v0")
	if k := tx.sock.Kick(); k != KickDone {
		t.Errorf("kick on a device that is up again: %v (%+v)", k, tx.sock.Kicks)
	}
	_ = rx // the carrier may not be back yet: whether the frame arrives is not the point
}

// TestNoCarrier: without carrier the device drops frames, one a call, and each is completed.
func TestNoCarrier(t *testing.T) {
	tx, rx := twoStations(t, link.XDPDriverMode, stationConfig{}, stationConfig{})
	rx.ns.Down("v1")
	const n = 10
	for i := range uint32(n) {
		tx.sock.Transmit([]Desc{tx.frame(i, minFrame)})
	}
	if k := tx.sock.Kick(); k != KickDone {
		t.Errorf("kick: %v (%+v)", k, tx.sock.Kicks)
	}
	if got := tx.sock.Kicks.Dropped; got != n {
		t.Errorf("%d frames dropped, want %d", got, n)
	}
	if got := tx.sock.Complete(tx.cache); got != n {
		t.Errorf("%d frames completed, want %d", got, n)
	}
	tx.check()
}

// TestDeviceGone: the socket says so, gives its frames back, and the umem takes new sockets,
// although the one that registered it is dead.
func TestDeviceGone(t *testing.T) {
	netlab.RequireRoot(t)
	l := netlab.New(t)
	a, b := l.Namespace("a"), l.Namespace("b")
	l.Veth(a, "v0", b, "v1", netlab.VethOptions{})
	l.Veth(a, "w0", b, "w1", netlab.VethOptions{})
	u := testUmem(t, UmemConfig{})
	dead, err := openOn(a, "v0", u, Config{})
	if err != nil {
		t.Fatal(err)
	}
	cache := u.Pool().NewCache()
	defer cache.Close()
	dead.Refill(cache)
	a.Delete("v0")
	chunk, _ := cache.Get()
	dead.Transmit([]Desc{{Addr: u.Payload(chunk), Len: minFrame}})
	if k := dead.Kick(); k != KickGone {
		t.Errorf("kick on a device that is gone: %v, want %v", k, KickGone)
	}
	alive, err := openOn(a, "w0", u, Config{})
	if err != nil {
		t.Fatalf("opening beside a dead socket: %v", err)
	}
	if alive.Granted().SharedUmem {
		t.Error("umem shared with a dead socket")
	}
	alive.Refill(cache)
	if _, err := u.Checker().Check(); err != nil {
		t.Error(err)
	}
	for _, s := range []*Socket{dead, alive} {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestQueueNumbersRepeat: an interface's index means nothing outside its namespace.
func TestQueueNumbersRepeat(t *testing.T) {
	a, b := pair(t, netlab.VethOptions{})
	u := testUmem(t, UmemConfig{})
	for _, end := range []struct {
		ns  *netlab.Namespace
		dev string
	}{{a, "v0"}, {b, "v1"}} {
		s, err := openOn(end.ns, end.dev, u, Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
}

// TestQueues: a socket a queue.
func TestQueues(t *testing.T) {
	a, _ := pair(t, netlab.VethOptions{Queues: 2})
	u := testUmem(t, UmemConfig{})
	for queue := range 2 {
		s, err := openOn(a, "v0", u, Config{Queue: queue})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if want := fmt.Sprintf("v0 queue %d", queue); s.String() != want {
			t.Errorf("name %q, want %q", s, want)
		}
	}
}

// udpFrame is an IPv4 UDP frame whose checksum field holds the pseudo header's sum.
func udpFrame(srcMAC, dstMAC net.HardwareAddr, src, dst netip.AddrPort, payload []byte) []byte {
	f := make([]byte, 42+len(payload))
	copy(f, dstMAC)
	copy(f[6:], srcMAC)
	binary.BigEndian.PutUint16(f[12:], 0x0800)
	ip, udp := f[14:34], f[34:]
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(len(f)-14))
	s, d := src.Addr().As4(), dst.Addr().As4()
	copy(ip[12:], s[:])
	copy(ip[16:], d[:])
	binary.BigEndian.PutUint16(ip[10:], ^sum(ip, 0))
	binary.BigEndian.PutUint16(udp, src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	copy(udp[8:], payload)
	binary.BigEndian.PutUint16(udp[6:], sum(ip[12:20], 17+uint32(len(udp))))
	return f
}

func sum(b []byte, start uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		start += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for start > 0xffff {
		start = start>>16 + start&0xffff
	}
	return uint16(start)
}

// TestChecksumRequest: a frame with only the pseudo header's sum in its checksum field arrives as
// unfinished, or finished where the umem or the device asks for that, and a socket takes it.
func TestChecksumRequest(t *testing.T) {
	for _, tt := range []struct {
		name    string
		mem     UmemConfig
		prepare func(tx *netlab.Namespace)
		partial bool
	}{
		{"handed on unfinished", UmemConfig{}, func(*netlab.Namespace) {}, true},
		{"finished for a device without checksum offload", UmemConfig{},
			func(tx *netlab.Namespace) { tx.Offload("v0", "tx", false) }, false},
		{"finished in software", UmemConfig{swChecksum: true}, func(*netlab.Namespace) {}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := pair(t, netlab.VethOptions{})
			b.Addr("v1", "198.18.0.2/24")
			a.Addr("v0", "198.18.0.1/24")
			tt.prepare(a)
			conn, err := b.ListenPacket(netip.MustParseAddrPort("198.18.0.2:9000"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			capture := b.Capture("v1", netlab.CaptureOptions{Match: func(f *netlab.Frame) bool {
				return f.Direction == netlab.In && len(f.Data) > 37 && f.Data[23] == 17 && f.Data[36] == 9000>>8
			}})
			tx := newStation(t, a, "v0", link.XDPGenericMode, stationConfig{mem: tt.mem})
			from, to := netip.MustParseAddrPort("198.18.0.1:7000"), netip.MustParseAddrPort("198.18.0.2:9000")
			const n = 40
			for i := range n {
				frame := udpFrame(a.MAC("v0"), b.MAC("v1"), from, to, fmt.Appendf(nil, "datagram %d", i))
				chunk, ok := tx.cache.Get()
				if !ok {
					t.Fatal("no frame")
				}
				d := Desc{Addr: tx.umem.Payload(chunk), Len: uint32(len(frame))}
				copy(tx.umem.Frame(d.Addr, d.Len), frame)
				if !tx.umem.RequestChecksum(&d, 34, 6) {
					t.Fatal("request refused")
				}
				tx.sock.Transmit([]Desc{d})
				if k := tx.sock.Kick(); k != KickDone {
					t.Fatalf("kick: %v (%+v)", k, tx.sock.Kicks)
				}
				tx.step()
			}
			conn.SetReadDeadline(time.Now().Add(patience))
			for i := range n {
				var buf [100]byte
				got, err := conn.Read(buf[:])
				if want := fmt.Sprintf("datagram %d", i); err != nil || string(buf[:got]) != want {
					t.Fatalf("received %q, %v, want %q", buf[:got], err, want)
				}
			}
			frames, err := capture.Drain()
			if err != nil || len(frames) != n {
				t.Fatalf("captured %d frames, %v, want %d", len(frames), err, n)
			}
			for i := range frames {
				if frames[i].Partial != tt.partial {
					t.Fatalf("frame %d: unfinished %t, want %t", i, frames[i].Partial, tt.partial)
				}
				if err := netlab.VerifyChecksums(&frames[i]); err != nil {
					t.Fatalf("frame %d: %v", i, err)
				}
			}
			tx.check()
		})
	}
}

// TestBadMetadataIsStuck shows why only RequestChecksum may set the metadata flag: a request that the
// kernel refuses stays at the head of the ring.
func TestBadMetadataIsStuck(t *testing.T) {
	a, _ := pair(t, netlab.VethOptions{})
	u, err := NewUmem(UmemConfig{Frames: 64})
	if err != nil {
		t.Fatal(err)
	}
	s, err := openOn(a, "v0", u, Config{})
	if err != nil {
		t.Fatal(err)
	}
	d := Desc{Addr: u.Payload(0), Len: minFrame, Options: optionMetadata}
	for i := range u.mem[:d.Addr] {
		u.mem[i] = 0xff // stale bytes, taken for flags
	}
	s.Transmit([]Desc{d})
	if k := s.Kick(); k != KickStuck || s.Kicks.Errno != uint16(unix.EINVAL) {
		t.Errorf("kick: %v, errno %d, want %v, %d", k, s.Kicks.Errno, KickStuck, unix.EINVAL)
	}
	if err := errors.Join(s.Close(), u.Close()); err != nil {
		t.Error(err)
	}
}

// TestLostFramesAreCounted: a frame that the kernel took and did not complete is not given back.
func TestLostFramesAreCounted(t *testing.T) {
	u := heapUmem(UmemConfig{Frames: 64, CheckFrames: true})
	s := newHeapSocket(u, 16, ^uint32(0)-5)
	c := u.pool.NewCache()
	s.Refill(c)
	for range 3 {
		s.receive(minFrame)
	}
	for range 10 {
		addr, _ := c.Get()
		s.Transmit([]Desc{{Addr: u.Payload(addr), Len: minFrame}})
	}
	for range 4 {
		s.send()
	}
	s.tx.consume()
	s.tx.consume()
	rx, tx, lost := s.frames()
	if len(rx) != 16 || len(tx) != 8 || lost != 2 {
		t.Errorf("%d frames of the rx side, %d of the tx side, %d lost, want 16, 8, 2", len(rx), len(tx), lost)
	}
	u.check.reclaim(s.id, rx, tx)
	u.pool.put(rx, lost)
	u.pool.put(tx, 0)
	c.Close()
	u.sockets = nil
	census, err := u.Checker().Check()
	if want := (Census{Free: 62, Lost: 2}); err != nil || census != want {
		t.Errorf("%+v, %v, want %+v", census, err, want)
	}
	if got := u.Pool().Lost(); got != 2 {
		t.Errorf("the pool counts %d lost, want 2", got)
	}
}

// TestKickSuppressed: no call for an empty ring.
func TestKickSuppressed(t *testing.T) {
	a, _ := pair(t, netlab.VethOptions{})
	s, err := openOn(a, "v0", testUmem(t, UmemConfig{}), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if k := s.Kick(); k != KickDone || s.Kicks.Calls != 0 || s.Kicks.Suppressed != 1 {
		t.Errorf("kick of an empty ring: %v, %+v", k, s.Kicks)
	}
	if !s.Tx.NeedsWakeup() {
		t.Error("the tx ring of a copy-mode socket must always ask for a kick")
	}
	if s.Fill.NeedsWakeup() {
		t.Error("the fill ring of a copy-mode socket never asks for one")
	}
	s.KickRx()
}

func TestPollerWake(t *testing.T) {
	p, err := NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	// Before the Wait, and during it.
	if err := p.Wake(); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Wait(-1); n != 0 || err != nil {
		t.Errorf("woken before: %d, %v", n, err)
	}
	done := make(chan error)
	go func() { done <- p.Wake() }()
	if n, err := p.Wait(-1); n != 0 || err != nil {
		t.Errorf("woken during: %d, %v", n, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n, err := p.Wait(0); n != 0 || err != nil {
		t.Errorf("a wake must end one wait: %d, %v", n, err)
	}
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		t.Error(err)
	}
}
