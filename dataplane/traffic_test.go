package dataplane

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/sluice-net/sluice/internal/netlab"
)

// Ordinary sockets, in numbers: as many as a change has time for, or with SLUICE_FULL
// set as many as a claim needs (make nat-labs). Each ends in a line of what it saw.

// scale is a number of things to do.
func scale(small, full int) int {
	if os.Getenv("SLUICE_FULL") != "" {
		return full
	}
	return small
}

// badChecksums is what all who could have received something wrong have refused.
func (b *testbed) badChecksums() (bad uint64) {
	for _, n := range []*netlab.Namespace{b.Node, b.Remote, b.RemoteBackend.Namespace} {
		bad += n.BadChecksums()
	}
	for _, p := range append(append([]*netlab.Pod{}, b.Clients...), b.Backends...) {
		bad += p.BadChecksums()
	}
	return bad
}

// TestFragmentedDatagrams: larger than the MTU, both ways, local and remote, in the
// order in which the senders' kernels cut them.
func TestFragmentedDatagrams(t *testing.T) { eachKind(t, testFragmentedDatagrams) }

func testFragmentedDatagrams(t *testing.T, kind PortKind) {
	for _, mode := range []Mode{ModeFront, ModeAlone} {
		t.Run(mode.String(), func(t *testing.T) {
			b := newTestbed(t, netlab.ClusterOptions{}, of(kind, func(c *Config) { c.Mode = mode }))
			_, backends := b.echo(8080)
			b.publish(testService{name: "large", number: 18, port: 80, backends: backends})
			rng := rand.New(rand.NewPCG(3, uint64(kind)))
			n, arrived := scale(60, 5000), 0 // 10 000 in both modes
			for i := range n {
				f := netlab.Families[i%2]
				size := 1500 + rng.IntN(65507-1500+1)
				if i < 2 {
					size = 65507
				}
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				_, err := b.Clients[0].Exchange(ctx, "udp", netip.AddrPortFrom(netlab.ClusterIP(f, 18), 80), size)
				cancel()
				if err != nil {
					t.Errorf("datagram %d, %s: %v", i, f, err)
					break
				}
				arrived++
			}
			s := b.settle()
			if s.Reason(FragmentExpired)+s.Verdict(Dropped) != 0 {
				t.Errorf("%d fragments expired, %d frames dropped", s.Reason(FragmentExpired), s.Verdict(Dropped))
			}
			bad := b.badChecksums()
			if bad != 0 {
				t.Errorf("%d bad checksums", bad)
			}
			t.Logf("nat-labs: fragmented=in_order ports=%s mode=%s datagrams=%d arrived_and_came_back=%d frames=%d bad_checksums=%d", kind, mode, n, arrived, s.Received, bad)
		})
	}
}

// TestShuffledFragments: the same, cut here, four datagrams at once, the fragments of
// all of them in any order. The backend's socket has every one of them.
func TestShuffledFragments(t *testing.T) { eachKind(t, testShuffledFragments) }

func testShuffledFragments(t *testing.T, kind PortKind) {
	const together = 4
	// What is held up here must not be given to the kernel as headless.
	b := newTestbed(t, netlab.ClusterOptions{}, of(kind, func(c *Config) { c.FragmentWait = 2 * time.Second }))
	client, backend := b.Clients[0], b.Backends[0]
	// The backend's kernel gives a datagram up once 64 fragments of others came between its own.
	backend.Sysctl("net.ipv4.ipfrag_max_dist", "0")
	in := client.Inject(netlab.PodDevice)
	eth := &layers.Ethernet{SrcMAC: client.MAC(netlab.PodDevice), DstMAC: b.Node.MAC(client.HostDevice)}
	rng := rand.New(rand.NewPCG(4, uint64(kind)))
	random := rand.NewChaCha8([32]byte{byte(kind)})
	n, arrived := scale(40, 10000), 0
	buf := make([]byte, 1<<16)
	for _, f := range netlab.Families {
		socket, err := backend.ListenPacket(backend.AddrPort(f, 8080))
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		socket.SetReadBuffer(4 << 20)
		b.publish(testService{name: "large", number: 18, port: 80, backends: []netip.AddrPort{backend.AddrPort(f, 8080)}})
		to := netip.AddrPortFrom(netlab.ClusterIP(f, 18), 80)
		for i := 0; i < n/2; i += together {
			var frames [][]byte
			sent := map[uint16][]byte{}
			for j := range together {
				payload := make([]byte, 1500+rng.IntN(65000-1500))
				random.Read(payload)
				from := client.AddrPort(f, uint16(20000+(i+j)%20000))
				sent[from.Port()] = payload
				frames = append(frames, cutDatagram(t, eth, from, to, uint32(i+j+1), payload, 1400)...)
			}
			rng.Shuffle(len(frames), func(i, j int) { frames[i], frames[j] = frames[j], frames[i] })
			if _, err := in.Send(frames...); err != nil {
				t.Fatal(err)
			}
			socket.SetReadDeadline(time.Now().Add(5 * time.Second))
			for len(sent) > 0 {
				size, from, err := socket.ReadFromUDPAddrPort(buf)
				if err != nil {
					t.Fatalf("%s: after %d datagrams, %d of those in %d fragments missing: %v", f, arrived, len(sent), len(frames), err)
				}
				if from.Addr().Unmap() != client.IP(f) || !bytes.Equal(buf[:size], sent[from.Port()]) {
					t.Fatalf("%s: %d bytes came from %s, not what it sent", f, size, from)
				}
				delete(sent, from.Port())
				arrived++
			}
		}
	}
	s := b.settle()
	if s.Reason(FragmentExpired)+s.Verdict(Dropped) != 0 || s.Reason(ForwardDirect)+s.Reason(ForwardReturn) == 0 {
		t.Errorf("%d fragments expired, %d frames dropped", s.Reason(FragmentExpired), s.Verdict(Dropped))
	}
	bad := b.badChecksums()
	if bad != 0 || arrived != n {
		t.Errorf("%d of %d arrived, %d bad checksums", arrived, n, bad)
	}
	t.Logf("nat-labs: fragmented=shuffled ports=%s datagrams=%d arrived=%d fragments=%d bad_checksums=%d", kind, n, arrived, s.Received, bad)
}

// cutDatagram is a UDP datagram in frames of at most size bytes of data, in order.
func cutDatagram(t testing.TB, eth *layers.Ethernet, from, to netip.AddrPort, id uint32, payload []byte, size int) (frames [][]byte) {
	t.Helper()
	size &^= 7
	udp := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
	link := *eth
	if from.Addr().Is4() {
		link.EthernetType = layers.EthernetTypeIPv4
		udp.SetNetworkLayerForChecksum(&layers.IPv4{Protocol: layers.IPProtocolUDP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()})
	} else {
		link.EthernetType = layers.EthernetTypeIPv6
		udp.SetNetworkLayerForChecksum(&layers.IPv6{NextHeader: layers.IPProtocolUDP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()})
	}
	whole := serialize(t, udp, gopacket.Payload(payload))
	for at := 0; at < len(whole); at += size {
		data, more := whole[at:min(at+size, len(whole))], at+size < len(whole)
		if from.Addr().Is4() {
			ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolUDP, Id: uint16(id), FragOffset: uint16(at / 8),
				SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
			if more {
				ip.Flags = layers.IPv4MoreFragments
			}
			frames = append(frames, serialize(t, &link, ip, gopacket.Payload(data)))
			continue
		}
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolIPv6Fragment, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
		head := []byte{uint8(layers.IPProtocolUDP), 0}
		head = binary.BigEndian.AppendUint16(head, uint16(at))
		if more {
			head[3] |= 1
		}
		head = binary.BigEndian.AppendUint32(head, id)
		frames = append(frames, serialize(t, &link, ip, gopacket.Payload(append(head, data...))))
	}
	return frames
}

// TestHairpin: a pod that reaches itself through its own Service sees the node as
// its client, and the ClusterIP as its server; and where nobody listens, it learns it
// from itself.
func TestHairpin(t *testing.T) { eachKind(t, testHairpin) }

func testHairpin(t *testing.T, kind PortKind) {
	const times = 100
	b := newTestbed(t, netlab.ClusterOptions{}, of(kind))
	client := b.Clients[0]
	// The pod's kernel sends six errors to one address, fifty in all, and then a few a second, unless
	// these limits hold for no type of error.
	client.Sysctl("net.ipv4.icmp_ratemask", "0")
	client.Sysctl("net.ipv6.icmp.ratemask", "0")
	tcp, udp := client.EchoOn(8080)
	var self, nobody []netip.AddrPort
	for _, f := range netlab.Families {
		self = append(self, client.AddrPort(f, 8080))
		nobody = append(nobody, client.AddrPort(f, 9))
	}
	b.publish(testService{name: "self", number: 12, port: 80, backends: self}, testService{name: "nobody", number: 28, port: 80, backends: nobody})
	done := map[string]int{}
	for _, f := range netlab.Families {
		for _, c := range []struct {
			what, network string
			service       int
			want          error
		}{{"tcp", "tcp", 12, nil}, {"udp", "udp", 12, nil}, {"error", "udp", 28, syscall.ECONNREFUSED}} {
			for i := range times {
				size := 1 + i*65%1400
				if c.network == "tcp" {
					size = 1 + i*7000
				}
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				_, err := client.Exchange(ctx, c.network, netip.AddrPortFrom(netlab.ClusterIP(f, c.service), 80), size)
				cancel()
				if !errors.Is(err, c.want) {
					t.Errorf("%s %s hairpin %d: got %v, want %v", f, c.what, i, err, c.want)
					break
				}
				done[fmt.Sprintf("%s_%s", c.what, f)]++
			}
		}
	}
	for _, s := range []*netlab.EchoServer{tcp, udp} {
		if s.Requests() != 2*times {
			t.Errorf("%s had %d requests, want %d", s.Addr(), s.Requests(), 2*times)
		}
		for _, p := range s.Peers() {
			if a := p.Addr().Unmap(); a != netlab.NodeAddr(netlab.IPv4, 1) && a != netlab.NodeAddr(netlab.IPv6, 1) {
				t.Errorf("%s saw %s, want the node's address", s.Addr(), p)
			}
		}
	}
	s := b.settle()
	if s.Verdict(Returned) != 0 || s.Verdict(Dropped) != 0 {
		t.Errorf("returned %d, dropped %d, want none", s.Verdict(Returned), s.Verdict(Dropped))
	}
	bad := b.badChecksums()
	if bad != 0 {
		t.Errorf("%d bad checksums", bad)
	}
	t.Logf("nat-labs: hairpins=%d ports=%s tcp_v4=%d tcp_v6=%d udp_v4=%d udp_v6=%d error_v4=%d error_v6=%d bad_checksums=%d", 6*times, kind,
		done["tcp_ipv4"], done["tcp_ipv6"], done["udp_ipv4"], done["udp_ipv6"], done["error_ipv4"], done["error_ipv6"], bad)
}

// TestBulkTCP: one stream each way through a ClusterIP, whole, and nothing of it with a
// wrong checksum.
func TestBulkTCP(t *testing.T) { eachKind(t, testBulkTCP) }

func testBulkTCP(t *testing.T, kind PortKind) {
	b := newTestbed(t, netlab.ClusterOptions{}, of(kind))
	client, backend := b.Clients[0], b.Backends[0]
	size := int64(scale(16<<20, 1<<30))
	for _, f := range netlab.Families {
		l, err := backend.Listen(backend.AddrPort(f, 8080))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		b.publish(testService{name: "bulk", number: 19, port: 80, backends: []netip.AddrPort{backend.AddrPort(f, 8080)}})
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		c, err := client.Dial(ctx, "tcp", netip.AddrPortFrom(netlab.ClusterIP(f, 19), 80))
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		l.SetDeadline(time.Now().Add(10 * time.Second))
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for _, way := range []struct {
			name     string
			from, to net.Conn
		}{{"to the backend", c, s}, {"to the client", s, c}} {
			before := b.badChecksums()
			start := time.Now()
			got, equal, err := transfer(way.from, way.to, size)
			if err != nil {
				t.Fatalf("%s %s: after %d bytes: %v", f, way.name, got, err)
			}
			if got != size || !equal {
				t.Errorf("%s %s: %d bytes of %d, same hash %v", f, way.name, got, size, equal)
			}
			bad := b.badChecksums() - before
			if bad != 0 {
				t.Errorf("%s %s: %d bad checksums", f, way.name, bad)
			}
			t.Logf("nat-labs: tcp=%s way=%q ports=%s tcp_bytes=%d equal=%v bad_checksums=%d seconds=%.1f", f, way.name, kind, got, equal, bad, time.Since(start).Seconds())
		}
	}
	if s := b.settle(); s.Verdict(Translated) < 4*uint64(size)/1500 {
		t.Errorf("%d frames translated: the stream went another way", s.Verdict(Translated))
	}
}

// transfer sends size random bytes from one end of a connection to the other and says
// how many came, and whether they have the hash of those that were sent.
func transfer(from, to net.Conn, size int64) (received int64, equal bool, err error) {
	deadline := time.Now().Add(2 * time.Minute)
	from.SetDeadline(deadline)
	to.SetDeadline(deadline)
	sent, got := sha256.New(), sha256.New()
	written := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{from}, io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sent), make([]byte, 1<<18))
		written <- err
	}()
	received, err = io.CopyBuffer(got, io.LimitReader(to, size), make([]byte, 1<<18))
	if err != nil {
		from.SetDeadline(time.Unix(1, 0)) // frees the writer
	}
	err = errors.Join(err, <-written)
	return received, bytes.Equal(sent.Sum(nil), got.Sum(nil)), err
}

// TestChecksums: what arrives is right in full on each way through the dataplane, with
// checksums that the sender has finished, as frames off a wire are, and with those that
// it leaves to a device, in each combination of client and server.
func TestChecksums(t *testing.T) { eachKind(t, testChecksums) }

func testChecksums(t *testing.T, kind PortKind) {
	for _, way := range []struct {
		name   string
		change func(*Config)
		ends   func(b *testbed) (client, server *netlab.Pod)
	}{
		{"veth to veth", nil, func(b *testbed) (client, server *netlab.Pod) { return b.Clients[0], b.Backends[0] }},
		// What leaves by a steered port, the kernel sends.
		{"veth to return port", func(c *Config) { c.Ports[0].Kind = KindSteered }, func(b *testbed) (client, server *netlab.Pod) { return b.Clients[0], b.RemoteBackend }},
		{"uplink to veth", nil, func(b *testbed) (client, server *netlab.Pod) {
			for f, prefix := range map[netlab.Family]string{netlab.IPv4: netlab.ClusterIPPrefix4, netlab.IPv6: netlab.ClusterIPPrefix6} {
				b.Remote.Route(prefix, netlab.NodeAddr(f, 1).String(), netlab.UplinkDevice)
			}
			return b.RemoteBackend, b.Backends[0]
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			b := newTestbed(t, netlab.ClusterOptions{Backends: 1}, of(kind, func(c *Config) {
				if way.change != nil {
					way.change(c)
				}
			}))
			client, server := way.ends(b)
			server.EchoOn(8080)
			var backends []netip.AddrPort
			for _, f := range netlab.Families {
				backends = append(backends, server.AddrPort(f, 8080))
			}
			b.publish(testService{name: "echo", number: 11, port: 80, backends: backends})
			ends := []*netlab.Pod{client, server}
			var captures []*netlab.Capture
			for _, p := range ends {
				captures = append(captures, p.Capture(netlab.PodDevice, netlab.CaptureOptions{Match: func(f *netlab.Frame) bool { return f.Direction == netlab.In }}))
			}
			exchanges, frames := 0, 0
			for _, partial := range [][2]bool{{true, true}, {true, false}, {false, true}, {false, false}} {
				for i, p := range ends {
					p.Offload(netlab.PodDevice, "tx", partial[i])
				}
				senders := fmt.Sprintf("client partial %v, server partial %v", partial[0], partial[1])
				for i := range scale(10, 100) {
					for _, f := range netlab.Families {
						for network, size := range map[string]int{"tcp": 1 + i%10*7000, "udp": 1 + i*149%1400} {
							ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
							_, err := client.Exchange(ctx, network, netip.AddrPortFrom(netlab.ClusterIP(f, 11), 80), size)
							cancel()
							if err != nil {
								t.Fatalf("%s: %s: %v", senders, f, err)
							}
							exchanges++
						}
					}
					for i, c := range captures {
						got, err := c.Drain()
						if err != nil || c.Lost() > 0 {
							t.Fatalf("capture in %s: %d frames lost, %v", ends[i].Name(), c.Lost(), err)
						}
						for j := range got {
							if err := netlab.VerifyChecksums(&got[j]); err != nil {
								t.Errorf("%s: %s received a bad frame: %v\n%x", senders, ends[i].Name(), err, got[j].Data)
							}
						}
						frames += len(got)
					}
				}
			}
			s := b.settle()
			direct, returned := s.Reason(ForwardDirect), s.Reason(ForwardReturn)
			if byReturn := kind == KindSteered || way.change != nil; byReturn && direct != 0 || byReturn == (returned < direct) {
				t.Errorf("forward direct %d, by the return port %d: another way than meant", direct, returned)
			}
			bad := b.badChecksums()
			if bad != 0 {
				t.Errorf("%d bad checksums", bad)
			}
			t.Logf("nat-labs: checksums=4_combinations way=%q ports=%s exchanges=%d frames_verified=%d bad_checksums=%d", way.name, kind, exchanges, frames, bad)
		})
	}
}
