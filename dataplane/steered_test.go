package dataplane

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/internal/netlab"
)

// TestKindByDevice: what the kernel makes is steered unless something else is asked
// for, and generic XDP on it is refused with the way to mend it.
func TestKindByDevice(t *testing.T) {
	b := newTestbed(t, netlab.ClusterOptions{}, func(c *Config) {
		c.Ports[0].Kind = KindNative
		c.Ports[1].Kind = KindAuto
		c.Ports[2].Kind = KindSteered
		c.Ports = c.Ports[:3]
	})
	want := [][3]string{{"return", "native", "native"}, {"direct", "native", "native"}, {"steered", "auto", "steered"}, {"steered", "steered", "steered"}}
	for i, p := range b.d.Stats().Ports {
		if got := [3]string{p.Kind, p.Asked, p.Granted}; got != want[i] {
			t.Errorf("%s is %v, want %v", p.Name, got, want[i])
		}
	}
	var err error
	b.Node.Do(func() error {
		_, err = Open(Config{Ports: []PortConfig{{Name: b.Backends[1].HostDevice, Kind: KindGeneric}}, ReturnPort: "other"}, slog.New(slog.DiscardHandler))
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "interface backend1: generic XDP on a device of kind veth would lose what comes merged from the other side: ask for steered") {
		t.Errorf("generic on a veth: %v", err)
	}
}

// TestSteeredPortsKeepOffloads: a pod behind a steered port sends segments longer than
// its MTU, to others and to a Service, and they arrive whole; its datagrams that were
// given to the kernel in one piece arrive one by one.
func TestSteeredPortsKeepOffloads(t *testing.T) {
	for _, mode := range []Mode{ModeFront, ModeAlone} {
		t.Run(mode.String(), func(t *testing.T) {
			b := newTestbed(t, netlab.ClusterOptions{Backends: 1}, of(KindSteered, func(c *Config) { c.Mode = mode }))
			client, backend := b.Clients[0], b.Backends[0]
			backend.EchoOn(8080)
			const size = 8 << 20
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			for i, f := range netlab.Families {
				vip, direct := netip.AddrPortFrom(netlab.ClusterIP(f, 1+i), 80), backend.AddrPort(f, 8080)
				b.publish(testService{name: "echo", number: 1 + i, port: 80, backends: []netip.AddrPort{direct}})
				for _, to := range []netip.AddrPort{direct, vip} {
					long := b.Node.Capture(client.HostDevice, netlab.CaptureOptions{Match: func(f *netlab.Frame) bool {
						return f.Direction == netlab.In && f.Length > 1514
					}})
					if _, err := client.Exchange(ctx, "tcp", to, size); err != nil {
						t.Fatalf("%s: %v", to, err)
					}
					frames, err := long.Drain()
					if err != nil || len(frames) == 0 {
						t.Errorf("%s: %d segments longer than the MTU, %v: the pod has lost its offload", to, len(frames), err)
					}
					long.Close()
				}
				datagrams(t, client, backend, f, vip)
			}
			if s := b.settle(); s.Verdict(Dropped) != 0 || s.Verdict(Translated) < 2*size/1500 {
				t.Errorf("translated %d, dropped %d", s.Verdict(Translated), s.Verdict(Dropped))
			}
		})
	}
}

// datagrams sends 80 datagrams of 100 bytes, eight a call (UDP_SEGMENT), to the
// Service of an echo server and counts what comes back.
func datagrams(t *testing.T, client, backend *netlab.Pod, f netlab.Family, vip netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, "udp", vip)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 100) })
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 2000)
	for i := range byte(10) {
		if _, err := c.Write(bytes.Repeat([]byte{i}, 800)); err != nil {
			t.Fatal(err)
		}
		for n := range 8 {
			got, err := c.Read(buf)
			if err != nil || got != 100 || buf[0] != i {
				t.Fatalf("%s datagram %d of call %d: %d bytes, %v: want 100", vip, n, i, got, err)
			}
		}
	}
}
