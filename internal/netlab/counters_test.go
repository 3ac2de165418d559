//go:build linux

package netlab

import (
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// TestBadChecksums: what the kernel refuses is counted, one each of TCP and UDP in both families and of IPv4 itself;
// what is right is not.
func TestBadChecksums(t *testing.T) {
	a, b := addressed(t, VethOptions{})
	in := a.Inject("eth0")
	send := func(f Family, proto layers.IPProtocol, spoil int) {
		t.Helper()
		var transport any = &layers.UDP{SrcPort: 4000, DstPort: 9}
		if proto == layers.IPProtocolTCP {
			transport = &layers.TCP{SrcPort: 4000, DstPort: 9, SYN: true}
		}
		frame := serialize(t, &layers.Ethernet{SrcMAC: a.MAC("eth0"), DstMAC: b.MAC("eth0"), EthernetType: etherTypeOf(f)},
			ipLayer(f, NodeAddr(f, 1), NodeAddr(f, 2), proto), transport, gopacket.Payload("12345678"))
		if spoil != 0 {
			frame[(len(frame)+spoil)%len(frame)] ^= 0x55
		}
		if _, err := in.Send(frame); err != nil {
			t.Fatal(err)
		}
	}
	count := func(want uint64) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); b.BadChecksums() < want && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		if got := b.BadChecksums(); got != want {
			t.Errorf("%d bad checksums, want %d", got, want)
		}
	}
	const lastByte, nothing = -1, 0
	for _, f := range Families {
		for _, proto := range []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP} {
			send(f, proto, nothing)
		}
	}
	count(0)
	var want uint64
	for _, f := range Families {
		for _, proto := range []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP} {
			send(f, proto, lastByte)
			want++
			count(want)
		}
	}
	const identification = 14 + 5
	send(IPv4, layers.IPProtocolUDP, identification)
	count(want + 1)
}

func TestParseCounters(t *testing.T) {
	got, err := parseCounters("Ip: A B\nIp: 1 -1\nTcp: A\nTcp: 7\n")
	if err != nil || len(got) != 3 || got["Ip.A"] != 1 || got["Tcp.A"] != 7 {
		t.Errorf("two lines each: %v, %v", got, err)
	}
	if got, err := parseCounters("Udp6InCsumErrors  \t3\n"); err != nil || got["Udp6InCsumErrors"] != 3 {
		t.Errorf("a line each: %v, %v", got, err)
	}
	for _, text := range []string{"Ip: A B\nIp: 1\n", "Ip: A\nTcp: 1\n", "Ip: A\nIp: x\n", "Name\n", "Name x\n"} {
		if got, err := parseCounters(text); err == nil {
			t.Errorf("%q: got %v, want an error", text, got)
		}
	}
}
