package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"github.com/sluice-net/sluice/internal/netlab"
)

// TestHostProcesses: in mode alone the node's own processes reach ClusterIPs whose
// backends are pods here and elsewhere, and the node itself, whatever the filters of
// reverse paths; and nothing sent to a ClusterIP follows the node's default route.
func TestHostProcesses(t *testing.T) {
	eachKind(t, func(t *testing.T, kind PortKind) {
		for _, filter := range []string{"0", "1", "2"} {
			t.Run("rp_filter "+filter, func(t *testing.T) { testHostProcesses(t, kind, filter) })
		}
	})
}

func testHostProcesses(t *testing.T, kind PortKind, filter string) {
	netlab.RequireRoot(t)
	b := &testbed{t: t, Cluster: netlab.New(t).Cluster(netlab.ClusterOptions{Outside: true})}
	for _, dev := range append([]string{"all", netlab.UplinkDevice}, b.Clients[0].HostDevice, b.Backends[0].HostDevice, b.Backends[1].HostDevice) {
		b.Node.Sysctl("net.ipv4.conf."+dev+".rp_filter", filter)
	}
	before := b.Node.State()
	b.open(of(kind, func(c *Config) { c.Mode = ModeAlone }))
	defer func() {
		b.close()
		if diff := netlab.Diff(before, b.Node.State()); diff != "" {
			t.Errorf("changed on the node:\n%s", diff)
		}
	}()
	_, pods := b.echo(8080)
	var itself []netip.AddrPort
	for _, f := range netlab.Families {
		at := netip.AddrPortFrom(netlab.NodeAddr(f, 1), 6443)
		b.Node.EchoTCP(at)
		b.Node.EchoUDP(at)
		itself = append(itself, at)
	}
	leak := b.Outside.Capture(netlab.PodDevice, netlab.CaptureOptions{Match: func(f *netlab.Frame) bool {
		return f.Direction == netlab.In && toClusterIP(f.Data)
	}})
	b.publish(testService{name: "pods", number: 40, port: 80, backends: pods}, testService{name: "itself", number: 41, port: 443, backends: itself})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, f := range netlab.Families {
		for _, to := range []netip.AddrPort{netip.AddrPortFrom(netlab.ClusterIP(f, 40), 80), netip.AddrPortFrom(netlab.ClusterIP(f, 41), 443)} {
			for _, network := range []string{"tcp", "udp"} {
				for i := range 6 {
					size := 1 + i*200
					if network == "tcp" {
						size = 1 + i*50000
					}
					if _, err := b.Node.Exchange(ctx, network, to, size); err != nil {
						t.Fatalf("a process of the node: %v", err)
					}
				}
			}
		}
		// A port that nobody serves is refused, and no timeout.
		if _, err := b.Node.Dial(ctx, "tcp", netip.AddrPortFrom(netlab.ClusterIP(f, 40), 81)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: a port that is not served: %v", f, err)
		}
	}
	b.exchanges(40, 80, 3) // pods are as before
	b.exchanges(41, 443, 3)
	// A return port that somebody sets down is set up again, and its routes are back.
	b.Node.Down("sluice-out")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		within, done := context.WithTimeout(ctx, time.Second)
		_, err := b.Node.Exchange(within, "tcp", netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 40), 80), 1000)
		if err == nil {
			_, err = b.Node.Exchange(within, "tcp", netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv6, 40), 80), 1000)
		}
		done()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after the return port was set down: %v", err)
		}
	}
	b.exchanges(40, 80, 3)
	// Without the return port ClusterIPs are unreachable at once.
	b.settle()
	lost := make(chan error, 1)
	go func() { lost <- b.stop() }()
	if err := b.Node.Do(func() error {
		l, err := netlink.LinkByName("sluice-out")
		if err == nil {
			err = netlink.LinkDel(l)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	<-lost
	b.stop = func() error { return nil }
	for _, f := range netlab.Families {
		if _, err := b.Node.Dial(ctx, "tcp", netip.AddrPortFrom(netlab.ClusterIP(f, 40), 80)); !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("%s without the return port: %v, want unreachable", f, err)
		}
		if _, err := b.Clients[0].Dial(ctx, "tcp", netip.AddrPortFrom(netlab.ClusterIP(f, 40), 80)); err == nil || os.IsTimeout(err) {
			t.Errorf("%s without the return port, from a pod: %v, want unreachable", f, err)
		}
	}
	if frames, err := leak.Drain(); err != nil || len(frames) != 0 {
		t.Errorf("%d frames to ClusterIPs left by the default route, %v", len(frames), err)
	}
}

// TestHostProcessesBesideKubeProxy: kube-proxy's nftables mode drops what is new and bound for an address in the Services' range that
// it does not know, in the node's output too, and the addresses of mode named it does not know.
func TestHostProcessesBesideKubeProxy(t *testing.T) {
	netlab.RequireRoot(t)
	b := &testbed{t: t, Cluster: netlab.New(t).Cluster(netlab.ClusterOptions{Outside: true})}
	nft, err := nftables.New(nftables.WithNetNSFd(b.Node.FD()))
	if err != nil {
		t.Fatal(err)
	}
	table := nft.AddTable(&nftables.Table{Name: "kube-proxy", Family: nftables.TableFamilyIPv4})
	output := nft.AddChain(&nftables.Chain{Name: "filter-output", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter})
	isNew := binary.NativeEndian.AppendUint32(nil, expr.CtStateBitNEW)
	nft.AddRule(&nftables.Rule{Table: table, Chain: output, Exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: isNew, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{198, 19}},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	if err := nft.Flush(); err != nil {
		t.Fatal(err)
	}
	b.open(func(c *Config) { c.Mode = ModeAlone })
	defer b.close()
	_, pods := b.echo(8080)
	b.publish(testService{name: "pods", number: 40, port: 80, backends: pods})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, network := range []string{"tcp", "udp"} {
		if _, err := b.Node.Exchange(ctx, network, netip.AddrPortFrom(netlab.ClusterIP(netlab.IPv4, 40), 80), 1000); err != nil {
			t.Errorf("a process of the node: %v", err)
		}
	}
}

// toClusterIP reports whether a frame is sent to an address of the Service ranges.
func toClusterIP(frame []byte) bool {
	switch {
	case len(frame) >= 34 && frame[12] == 0x08 && frame[13] == 0:
		return frame[30] == 198 && frame[31] == 19
	case len(frame) >= 54 && frame[12] == 0x86 && frame[13] == 0xdd:
		return netip.MustParsePrefix("2001:db8:2::/112").Contains(netip.AddrFrom16([16]byte(frame[38:54])))
	}
	return false
}
