//go:build linux

package xdpprog

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/internal/netlab"
)

// claim is where the tuple of a packet has its cell, and until when from now it is claimed.
func (r *rig) claim(p packet) (cell []byte, left time.Duration) {
	proto := p.proto
	if proto == 0 {
		proto = tcp
	}
	src := p.src
	if !src.IsValid() {
		if src = client4; p.dst.Addr().Is6() {
			src = client6
		}
	}
	h := r.table.Hash(&flowtable.Tuple{Src: src.Addr().As16(), SrcPort: src.Port(), Dst: p.dst.Addr().As16(), DstPort: p.dst.Port(), Proto: uint8(proto)})
	cell = r.Claims()[8*(h%uint64(len(r.Claims())/8)):][:8]
	until := binary.NativeEndian.Uint64(cell)
	if until == 0 {
		return cell, 0
	}
	return cell, time.Duration(until - monotonic())
}

// allClaims is how many cells are not empty.
func (r *rig) allClaims() (n int) {
	for i := 0; i < len(r.Claims()); i += 8 {
		if binary.NativeEndian.Uint64(r.Claims()[i:]) != 0 {
			n++
		}
	}
	return n
}

// about expects a claim to hold so long from now.
func about(t *testing.T, left, want time.Duration) {
	t.Helper()
	if left > want || left < want-10*time.Second {
		t.Errorf("claimed for %v, want %v", left, want)
	}
}

func claimRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, func(s *Spec) { s.Mode, s.SCTP, s.Fragments, s.ICMPErrors = ModeAlone, true, true, true })
	r.insertKnown(t)
	r.alive(t, directSlot)
	r.alive(t, returnSlot)
	if err := r.UpdateBackends([][16]byte{backend4.Addr().As16(), backend6.Addr().As16()}, nil); err != nil {
		t.Fatal(err)
	}
	return r
}

// What passes to a backend's own address claims its tuple, by each program that it may
// meet, in the cell where Go looks for it. Nothing else claims anything.
func TestClaims(t *testing.T) {
	r := claimRig(t)
	elsewhere := netip.AddrPortFrom(netlab.PodAddr(netlab.IPv4, 1, 77), 8080)
	cases := []struct {
		name string
		packet
		want time.Duration
	}{
		{"SYN", packet{dst: backend4}, 2 * time.Minute},
		{"SYN over IPv6", packet{dst: backend6}, 2 * time.Minute},
		{"segment", packet{dst: backend4, flags: "A"}, 24 * time.Hour},
		{"segment over IPv6", packet{dst: backend6, flags: "AP"}, 24 * time.Hour},
		{"FIN", packet{dst: backend4, flags: "FA"}, 2 * time.Minute},
		{"RST", packet{dst: backend6, flags: "R"}, 2 * time.Minute},
		{"datagram", packet{dst: backend4, proto: udp}, 30 * time.Second},
		{"datagram over IPv6", packet{dst: backend6, proto: udp}, 30 * time.Second},
		{"INIT", packet{dst: backend4, proto: sctpProto, l4: sctpOf(client4, backend4, 1)}, 30 * time.Second},
		{"tagged", packet{dst: backend4, flags: "A", vlans: []layers.EthernetType{tagC}}, 24 * time.Hour},
		{"to no backend", packet{dst: elsewhere}, 0},
		{"from a backend", packet{src: backend4, dst: client4, flags: "A"}, 0},
		{"fragment", packet{dst: backend4, edit: put16(6, 0x2000)}, 0},
		{"neither protocol", packet{dst: backend4, proto: 47, l4: make([]byte, 8)}, 0},
	}
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			for program, run := range map[string]func() outcome{
				"xdp":               func() outcome { return r.ingress(t, tt.frame(t), r.direct, 0) },
				"steer":             func() outcome { return r.steer(t, tt.frame(t), r.direct) },
				"egress":            func() outcome { return r.egressOf(t, tt.frame(t), r.direct) },
				"egress, forwarded": func() outcome { return r.egressFrom(t, tt.frame(t), r.direct, r.stranger) },
				"egress, returned":  func() outcome { return r.egressFrom(t, tt.frame(t), r.direct, r.outer) },
			} {
				clear(r.Claims())
				run()
				want := tt.want
				if program == "egress, returned" || program == "egress, forwarded" {
					want = 0 // it is translated, or was seen before
				}
				_, left := r.claim(tt.packet)
				if want == 0 {
					if n := r.allClaims(); n != 0 {
						t.Errorf("%s: %d claims, want none", program, n)
					}
					continue
				}
				about(t, left, want)
				if n := r.allClaims(); n != 1 {
					t.Errorf("%s: %d claims, want one", program, n)
				}
			}
		})
	}
	t.Run("ours", func(t *testing.T) {
		clear(r.Claims())
		for _, p := range []packet{
			{src: known4, flags: "A"},                // a flow
			{src: known4, dst: backend4},             // beside it
			{src: known6, dst: backend6, proto: udp}, // the same
			{},                                       // a new one
		} {
			if got := r.ingress(t, p.frame(t), r.direct, 0); got.Verdict != "redirect" {
				t.Errorf("%+v: %v", p, got)
			}
			r.steer(t, p.frame(t), r.direct)
		}
		if n := r.allClaims(); n != 0 {
			t.Errorf("%d claims, want none", n)
		}
	})
}

// A claim follows its connection, and its cell is written once a second at most.
func TestClaimOverTime(t *testing.T) {
	r := claimRig(t)
	segment := packet{dst: backend4, flags: "A"}
	cell, _ := r.claim(segment)
	send := func(flags string) time.Duration {
		t.Helper()
		r.ingress(t, packet{dst: backend4, flags: flags}.frame(t), r.direct, 0)
		_, left := r.claim(segment)
		return left
	}
	set := func(left time.Duration, ends uint64) uint64 {
		v := (monotonic()+uint64(left))&^1 | ends
		binary.NativeEndian.PutUint64(cell, v)
		return v
	}
	about(t, send("S"), 2*time.Minute)
	about(t, send("A"), 24*time.Hour)
	about(t, send("S"), 24*time.Hour) // of another connection, perhaps: nothing shortens but an end
	about(t, send("FA"), 2*time.Minute)
	about(t, send("A"), 2*time.Minute) // the last ACK
	about(t, send("S"), 2*time.Minute) // begins anew
	about(t, send("A"), 24*time.Hour)
	about(t, send("R"), 2*time.Minute)
	set(-time.Second, 1)
	about(t, send("A"), 24*time.Hour) // it went on all the same

	for name, c := range map[string]struct {
		left time.Duration
		ends uint64
		want bool
	}{
		"young":         {24*time.Hour - time.Second/2, 0, false},
		"older":         {24*time.Hour - 2*time.Second, 0, true},
		"ending":        {time.Second, 1, false},
		"ended":         {-time.Second, 1, true},
		"far too long":  {48 * time.Hour, 0, false},
		"of a datagram": {30 * time.Second, 0, true},
	} {
		before := set(c.left, c.ends)
		send("A")
		if wrote := binary.NativeEndian.Uint64(cell) != before; wrote != c.want {
			t.Errorf("%s: written %t, want %t", name, wrote, c.want)
		}
	}

	datagram := packet{dst: backend4, proto: udp}
	for _, want := range []time.Duration{30 * time.Second, 2 * time.Minute} {
		r.ingress(t, datagram.frame(t), r.direct, 0)
		_, left := r.claim(datagram)
		about(t, left, want)
	}
}
