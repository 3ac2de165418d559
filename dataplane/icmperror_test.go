package dataplane

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"

	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/internal/netlab"
)

// TestPathMTU: a middle link takes less than the ends, 64 KiB go through it and back
// through a ClusterIP, and the errors that say so quote what their receiver has sent.
// The link is the node's own, one beyond it, or the one back to the client.
func TestPathMTU(t *testing.T) { eachKind(t, testPathMTU) }

func testPathMTU(t *testing.T, kind PortKind) {
	const small = 1280
	for _, link := range []struct {
		name   string
		shrink func(b *testbed)
		learns func(b *testbed) *netlab.Pod // who is told
		way    func(b *testbed) *netlab.Pod // where it leads to, if it is the node's
	}{
		{"next to the node", func(b *testbed) {
			for _, n := range []*netlab.Namespace{b.Node, b.Remote} {
				n.MTU(netlab.UplinkDevice, small)
				b.t.Cleanup(func() { n.MTU(netlab.UplinkDevice, 1500) })
			}
		}, func(b *testbed) *netlab.Pod { return b.Clients[0] }, func(b *testbed) *netlab.Pod { return b.RemoteBackend }},
		{"beyond", func(b *testbed) { routeMTU(b.t, b.Remote, b.RemoteBackend, small) }, func(b *testbed) *netlab.Pod { return b.Clients[0] }, nil},
		{"back to the client", func(b *testbed) { routeMTU(b.t, b.Node, b.Clients[0], small) }, func(b *testbed) *netlab.Pod { return b.RemoteBackend }, func(b *testbed) *netlab.Pod { return b.Clients[0] }},
	} {
		t.Run(link.name, func(t *testing.T) {
			b := newTestbed(t, netlab.ClusterOptions{}, of(kind))
			b.RemoteBackend.EchoOn(8080)
			var far []netip.AddrPort
			for _, f := range netlab.Families {
				far = append(far, b.RemoteBackend.AddrPort(f, 8080))
			}
			b.publish(testService{name: "far", number: 15, port: 80, backends: far})
			pod := link.learns(b)
			told := pod.Capture(netlab.PodDevice, netlab.CaptureOptions{Match: func(f *netlab.Frame) bool { return f.Direction == netlab.In && tooBig(f.Data) != nil }})
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			for _, f := range netlab.Families { // the neighbours, before it gets narrow
				if _, err := b.Clients[0].Exchange(ctx, "tcp", netip.AddrPortFrom(netlab.ClusterIP(f, 15), 80), 100); err != nil {
					t.Fatal(err)
				}
			}
			link.shrink(b)
			if kind == KindNative && link.way != nil {
				b.knowsMTU(link.way(b), small)
			}
			for _, f := range netlab.Families {
				vip := netip.AddrPortFrom(netlab.ClusterIP(f, 15), 80)
				if _, err := b.Clients[0].Exchange(ctx, "tcp", vip, 64<<10); err != nil {
					t.Errorf("%s: %v", f, err)
				}
				sent := vip.Addr() // what the quoted packet was sent to
				if pod == b.RemoteBackend {
					sent = b.Clients[0].IP(f)
				}
				frames, err := told.Drain()
				if err != nil {
					t.Fatal(err)
				}
				if len(frames) == 0 {
					t.Errorf("%s: nobody was told", f)
				}
				for i := range frames {
					if err := netlab.VerifyChecksums(&frames[i]); err != nil {
						t.Errorf("%s: %v", f, err)
					}
					if quoted := tooBig(frames[i].Data); quoted.NetworkFlow().Src().String() != pod.IP(f).String() || quoted.NetworkFlow().Dst().String() != sent.String() {
						t.Errorf("%s: the error speaks of a packet %s, want one of %s to %s", f, quoted.NetworkFlow(), pod.IP(f), sent)
					}
				}
			}
			s := b.settle()
			if link.name == "beyond" && s.Reason(ErrorDirect)+s.Reason(ErrorReturn) < 2 {
				t.Error("no ICMP error was translated")
			}
			if kind == KindNative && link.name != "beyond" && s.Reason(TooBig) < 2 {
				t.Error("nobody was told by the fast path")
			}
		})
	}
}

// routeMTU says of a router's way to a pod that it takes no more.
func routeMTU(t testing.TB, n *netlab.Namespace, pod *netlab.Pod, mtu int) {
	t.Helper()
	for _, f := range netlab.Families {
		bits := pod.IP(f).BitLen()
		dst := &net.IPNet{IP: pod.IP(f).AsSlice(), Mask: net.CIDRMask(bits, bits)}
		family := netlink.FAMILY_V4
		if f == netlab.IPv6 {
			family = netlink.FAMILY_V6
		}
		routes, err := n.Handle().RouteListFiltered(family, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
		if err != nil || len(routes) != 1 {
			t.Fatalf("route to %s: %v, %v", pod.IP(f), routes, err)
		}
		was, is := routes[0], routes[0]
		is.MTU = mtu
		if err := n.Handle().RouteReplace(&is); err != nil {
			t.Fatalf("route to %s: %v", pod.IP(f), err)
		}
		t.Cleanup(func() { n.Handle().RouteReplace(&was) })
	}
}

// knowsMTU waits until the fast path knows how little its way to a pod takes.
func (b *testbed) knowsMTU(pod *netlab.Pod, mtu int) {
	b.t.Helper()
	for _, f := range netlab.Families {
		deadline := time.Now().Add(10 * time.Second)
		for a := b.d.egress.resolve(pod.IP(f).As16()); a.port == nil || a.mtu != mtu; a = b.d.egress.resolve(pod.IP(f).As16()) {
			if time.Sleep(time.Millisecond); time.Now().After(deadline) {
				b.t.Fatalf("the dataplane does not learn the MTU towards %s", pod.IP(f))
			}
		}
	}
}

// tooBig is the packet that a frame of "fragmentation needed" or "packet too big" quotes,
// nil if it is none.
func tooBig(frame []byte) gopacket.NetworkLayer {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	decode := func(b []byte, first gopacket.LayerType) gopacket.NetworkLayer {
		return gopacket.NewPacket(b, first, gopacket.NoCopy).NetworkLayer()
	}
	if l, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok && l.TypeCode == layers.CreateICMPv4TypeCode(3, 4) {
		return decode(l.Payload, layers.LayerTypeIPv4)
	}
	if l, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok && l.TypeCode.Type() == layers.ICMPv6TypePacketTooBig && len(l.Payload) > 4 {
		return decode(l.Payload[4:], layers.LayerTypeIPv6)
	}
	return nil
}

// TestPortUnreachable: the backend has nobody on its port, and the client learns it
// on its socket towards the ClusterIP.
func TestPortUnreachable(t *testing.T) { eachKind(t, testPortUnreachable) }

func testPortUnreachable(t *testing.T, kind PortKind) {
	b := newTestbed(t, netlab.ClusterOptions{}, of(kind))
	var backends []netip.AddrPort
	for _, f := range netlab.Families {
		backends = append(backends, b.Backends[0].AddrPort(f, 9)) // nobody there
	}
	b.publish(testService{name: "nobody", number: 16, port: 80, backends: backends})
	for _, f := range netlab.Families {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		_, err := b.Clients[0].Exchange(ctx, "udp", netip.AddrPortFrom(netlab.ClusterIP(f, 16), 80), 100)
		cancel()
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: got %v, want connection refused", f, err)
		}
	}
	if s := b.settle(); s.Reason(ErrorDirect)+s.Reason(ErrorReturn) < 2 {
		t.Errorf("%d ICMP errors were translated, want 2", s.Reason(ErrorDirect)+s.Reason(ErrorReturn))
	}
}

// TestUnreachableClient: the other way round: the client's socket is gone when the
// answer comes, and the backend learns it on its socket.
func TestUnreachableClient(t *testing.T) { eachKind(t, testUnreachableClient) }

func testUnreachableClient(t *testing.T, kind PortKind) {
	b := newTestbed(t, netlab.ClusterOptions{}, of(kind))
	backend, client := b.Backends[0], b.Clients[0]
	for _, f := range netlab.Families {
		at := backend.AddrPort(f, 8080)
		server, err := backend.ListenPacket(at)
		if err != nil {
			t.Fatal(err)
		}
		b.publish(testService{name: "late", number: 17, port: 80, backends: []netip.AddrPort{at}})
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		c, err := client.Dial(ctx, "udp", netip.AddrPortFrom(netlab.ClusterIP(f, 17), 80))
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("question"))
		buf := make([]byte, 64)
		server.SetDeadline(time.Now().Add(5 * time.Second))
		_, peer, err := server.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		c.Close()
		server.Close()
		// A connected socket is told of errors.
		answer, err := backend.DialFrom(ctx, "udp", at, netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port()))
		if err != nil {
			t.Fatal(err)
		}
		answer.SetDeadline(time.Now().Add(3 * time.Second))
		answer.Write([]byte("answer"))
		if _, err := answer.Read(buf); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: the backend got %v, want connection refused", f, err)
		}
		answer.Close()
		cancel()
	}
}

// TestNoICMPEndsAFlow: whatever is said of a flow, and by whom, it stays.
func TestNoICMPEndsAFlow(t *testing.T) {
	r := newRig(t, 64)
	frame := udpFromTo(t, flowClient(0), rigVIP)
	r.load([][]byte{frame})
	r.process()
	translated := r.sent(r.backend)[0]
	r.clear()
	tuple := flowtable.Tuple{Src: flowClient(0).Addr().As16(), SrcPort: flowClient(0).Port(), Dst: rigVIP.Addr().As16(), DstPort: rigVIP.Port(), Proto: protoUDP}
	flow := r.d.table.Lookup(&tuple)
	if flow.Record == 0 {
		t.Fatal("no flow")
	}
	messages := []layers.ICMPv4TypeCode{}
	for _, m := range []struct{ kind, codes uint8 }{{3, 15}, {4, 0}, {5, 3}, {11, 1}, {12, 2}, {8, 0}, {0, 0}, {13, 0}, {17, 0}} {
		for code := uint8(0); code <= m.codes; code++ {
			messages = append(messages, layers.CreateICMPv4TypeCode(m.kind, code))
		}
	}
	r.in = &queue{port: r.backend}
	router := netlab.OutsideAddr(netlab.IPv4, 9)
	sent := 0
	for _, m := range messages {
		for _, from := range []netip.Addr{rigBackend, router} {
			ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: from.AsSlice(), DstIP: flowClient(0).Addr().AsSlice()}
			f := serialize(t, &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 1, 1, 1, 1, 1}, DstMAC: net.HardwareAddr{2, 2, 2, 2, 2, 2}, EthernetType: layers.EthernetTypeIPv4},
				ip, &layers.ICMPv4{TypeCode: m}, gopacket.Payload(translated[14:]))
			r.load([][]byte{f})
			r.process()
			r.clear()
			sent++
			if got := r.d.table.Lookup(&tuple); got != flow {
				t.Fatalf("%s from %s: the flow is %v, was %v", m, from, got, flow)
			}
		}
	}
	if n := r.counts[ErrorDirect] + r.counts[ErrorReturn]; sent < 50 || n == 0 {
		t.Errorf("%d messages, %d translated", sent, n)
	}
}
