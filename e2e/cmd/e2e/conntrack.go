package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-net/sluice/e2e/stand"
	"github.com/sluice-net/sluice/internal/netlab"
)

// conntrackScenarios are those of upstream's test/e2e/network/conntrack.go.
func conntrackScenarios() []scenario {
	const s = "[sig-network] Conntrack should "
	return []scenario{
		{name: s + "be able to preserve UDP traffic when server pod cycles for a ClusterIP service", run: udpCycle(udpSpec, false)},
		{name: s + "be able to preserve UDP traffic when server pod cycles for a NodePort service", run: udpCycle(udpNodePortSpec, false)},
		{name: s + "be able to preserve UDP traffic when server pod cycles for a ClusterIP service and client is hostNetwork", run: udpCycle(udpSpec, true)},
		{name: s + "be able to preserve UDP traffic when server pod cycles for a ClusterIP service with InternalTrafficPolicy set to Local", run: udpCycle(udpLocalSpec, false)},
		{name: s + "be able to preserve UDP traffic when initial unready endpoints get ready", run: udpUnready},
		{name: s + "be able to cleanup conntrack entries when UDP service target port changes for a NodePort service", run: udpTargetPort},
		{name: s + "drop INVALID conntrack entries", run: invalidSegment},
	}
}

func udpSpec() corev1.ServiceSpec {
	return corev1.ServiceSpec{Selector: web, Ports: []corev1.ServicePort{servicePort("udp", "udp", 80, 80)}}
}

func udpNodePortSpec() corev1.ServiceSpec {
	spec := udpSpec()
	spec.Type = corev1.ServiceTypeNodePort
	return spec
}

func udpLocalSpec() corev1.ServiceSpec {
	spec := udpSpec()
	local := corev1.ServiceInternalTrafficPolicyLocal
	spec.InternalTrafficPolicy = &local
	return spec
}

// stream is a client that sends a datagram every 20 ms from one socket, whatever comes back.
type stream struct {
	t    *T
	conn net.Conn
	done sync.WaitGroup

	mu   sync.Mutex
	last string // who answered last
}

func (t *T) stream(from *netlab.Namespace, to netip.AddrPort) *stream {
	conn, err := from.Dial(t.ctx, "udp", to)
	t.check(err, "dialling udp %s", to)
	s := &stream{t: t, conn: conn}
	s.done.Go(func() {
		for ctx := t.ctx; ; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
			// A refusal of an earlier datagram comes back here; the next is sent all the same.
			if _, err := conn.Write(nil); errors.Is(err, net.ErrClosed) {
				return
			}
		}
	})
	s.done.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, err := conn.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(time.Millisecond)
				continue
			}
			name, _, _ := strings.Cut(string(buf[:n]), " ")
			s.mu.Lock()
			s.last = name
			s.mu.Unlock()
		}
	})
	t.cleanup(func() {
		conn.Close()
		s.done.Wait()
	})
	return s
}

// reaches waits until a pod answers the stream.
func (s *stream) reaches(p *pod) {
	s.mu.Lock()
	s.last = ""
	s.mu.Unlock()
	s.t.eventually("the UDP stream to "+p.name, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.last != p.id() {
			return fmt.Errorf("%q answers", s.last)
		}
		return nil
	})
}

func udpCycle(spec func() corev1.ServiceSpec, host bool) func(*T) {
	return func(t *T) {
		s := t.service("svc-udp", spec())
		client := t.c.lab.Node
		if !host {
			client = t.clientPod()
		}
		second := stand.Node2
		if s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal {
			second = stand.Node1
		}
		ports := []port{{"udp", "udp", 80}}
		// The stream begins before there is anybody to answer.
		flow := t.stream(client, frontend(s, 80))
		one := t.pod("pod-server-1", podOptions{ports: ports})
		flow.reaches(one)
		two := t.pod("pod-server-2", podOptions{ports: ports, node: second})
		t.waitEndpoints("svc-udp", func(c endpointState) bool { return c.ready == 2 })
		one.kill()
		flow.reaches(two)
		three := t.pod("pod-server-3", podOptions{ports: ports})
		two.kill()
		flow.reaches(three)
	}
}

func udpUnready(t *T) {
	s := t.service("svc-udp", udpSpec())
	flow := t.stream(t.clientPod(), frontend(s, 80))
	p := t.pod("pod-server-1", podOptions{ports: []port{{"udp", "udp", 80}}, notReady: true})
	t.waitEndpoints("svc-udp", func(c endpointState) bool { return c.all == 1 && c.ready == 0 })
	t.sleep(time.Second)
	p.status(true)
	flow.reaches(p)
}

func udpTargetPort(t *T) {
	s := t.service("svc-udp", udpNodePortSpec())
	p := t.pod("pod-server-1", podOptions{ports: []port{{"a", "udp", 80}, {"b", "udp", 9090}}})
	flow := t.stream(t.clientPod(), frontend(s, 80))
	flow.reaches(p)
	second := p.servers[len(p.ips)] // port 9090's, of the first family
	if second.Asked() != 0 {
		t.fatalf("port 9090 was asked before the change")
	}
	t.change(s, func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromInt32(9090) })
	t.eventually("the stream to the new target port", func() error {
		if second.Asked() == 0 {
			return errors.New("port 9090 was not asked")
		}
		return nil
	})
	first := p.servers[0].Asked()
	t.sleep(500 * time.Millisecond)
	if now := p.servers[0].Asked(); now > first+1 {
		t.fatalf("port 80 is still asked")
	}
	flow.reaches(p)
}

// invalidSegment: a server's segment far outside of the window must not end the client's connection, as it does if it
// reaches the client with the server's own address and the client resets what it does not know.
func invalidSegment(t *T) {
	server, client := t.place(stand.Node2), t.clientPod()
	l, err := server.Listen(netip.AddrPortFrom(server.IP4, 9000))
	t.check(err, "listening")
	t.cleanup(func() { l.Close() })
	s := t.service("boom-server", corev1.ServiceSpec{Ports: []corev1.ServicePort{servicePort("tcp", "tcp", 9000, 9000)}})
	t.slice("boom", sliceOf("IPv4", []netip.Addr{server.IP4}, slicePort{"tcp", "tcp", 9000}), "boom-server")

	var in net.Conn
	accepted := make(chan net.Conn, 16)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	var out net.Conn
	t.eventually("connecting", func() error {
		ctx, cancel := context.WithTimeout(t.ctx, attempt)
		defer cancel()
		var err error
		out, err = client.Dial(ctx, "tcp", frontend(s, 9000))
		return err
	})
	in = <-accepted
	defer in.Close()
	defer out.Close()
	from, to := in.LocalAddr().(*net.TCPAddr).AddrPort(), in.RemoteAddr().(*net.TCPAddr).AddrPort()
	exchange := func() {
		deadline := time.Now().Add(5 * time.Second)
		in.SetDeadline(deadline)
		out.SetDeadline(deadline)
		buf := make([]byte, 4)
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			_, err := pair[0].Write([]byte("ping"))
			t.check(err, "writing")
			_, err = io.ReadFull(pair[1], buf)
			t.check(err, "reading")
		}
	}
	exchange()

	var raw *net.IPConn
	err = server.Do(func() (err error) {
		raw, err = net.ListenIP("ip4:tcp", &net.IPAddr{IP: server.IP4.AsSlice()})
		return err
	})
	t.check(err, "opening a raw socket")
	defer raw.Close()
	for i := range 10 {
		segment := tcpSegment(from, to, uint32(i)*0x10000000+12345, 77, 0x10 /* ACK */, []byte("boom"))
		_, err = raw.WriteToIP(segment, &net.IPAddr{IP: to.Addr().Unmap().AsSlice()})
		t.check(err, "injecting")
	}
	t.sleep(300 * time.Millisecond)
	exchange()
}

// tcpSegment is a TCP segment with its checksum over IPv4.
func tcpSegment(from, to netip.AddrPort, seq, ack uint32, flags byte, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint32(b, ack)
	b = append(b, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
	b = append(b, payload...)
	pseudo := append(from.Addr().Unmap().AsSlice(), to.Addr().Unmap().AsSlice()...)
	pseudo = append(pseudo, 0, 6)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(b)))
	sum := uint32(0)
	for _, part := range [][]byte{pseudo, b} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[16:], ^uint16(sum))
	return b
}
