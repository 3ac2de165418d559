//go:build linux

package xdpprog

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

// sctpOf is an SCTP packet of one chunk without a value. Its checksum is nobody's
// business here.
func sctpOf(src, dst netip.AddrPort, chunk byte) []byte {
	b := make([]byte, 16)
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	b[12], b[15] = chunk, 4
	return b
}

func TestSCTP(t *testing.T) {
	of := func(src, dst netip.AddrPort, chunk byte) packet {
		return packet{src: src, dst: dst, proto: sctpProto, l4: sctpOf(src, dst, chunk)}
	}
	short := func(n int) packet {
		p := of(known4, frontend4, 1)
		p.l4 = p.l4[:n]
		return p
	}
	rigs := map[Mode]*rig{}
	for _, mode := range []Mode{ModeFront, ModeAlone} {
		r := fullRig(t, mode, func(s *Spec) { s.SCTP = true })
		r.insert(t, flowOf(known4, frontend4, backend4, sctpProto))
		r.insert(t, flowOf(known6, frontend6, backend6, sctpProto))
		r.alive(t, directSlot)
		r.alive(t, returnSlot)
		rigs[mode] = r
	}
	const init, initAck, data, abort = 1, 2, 0, 6
	for _, tt := range []struct {
		name string
		packet
		front, alone Reason
		egress       Reason
	}{
		{"INIT", of(client4, frontend4, init), ReasonNew, ReasonNew, ReasonNotOurs},
		{"INIT over IPv6", of(client6, frontend6, init), ReasonNew, ReasonNew, ReasonNotOurs},
		{"INIT, tagged", of(client4, frontend4, init).with(func(p *packet) { p.vlans = []layers.EthernetType{tagS, tagC} }), ReasonNew, ReasonNew, ReasonNotOurs},
		{"INIT behind options", of(client4, frontend4, init).with(func(p *packet) { p.options = option7 }), ReasonNew, ReasonNew, ReasonNotOurs},
		{"INIT behind an extension header", of(client6, frontend6, init).with(func(p *packet) { p.extensions = []extension{ext(60, 1)} }), ReasonNew, ReasonNew, ReasonNotOurs},
		{"INIT elsewhere", of(client4, other4, init), ReasonNotOurs, ReasonNotOurs, ReasonNotOurs},
		{"INIT ACK", of(client4, frontend4, initAck), ReasonKernelSCTP, ReasonNew, ReasonNotOurs},
		{"DATA", of(client4, frontend4, data), ReasonKernelSCTP, ReasonNew, ReasonNotOurs},
		{"DATA over IPv6", of(client6, frontend6, data), ReasonKernelSCTP, ReasonNew, ReasonNotOurs},
		{"ABORT", of(client4, frontend4, abort), ReasonKernelSCTP, ReasonNew, ReasonNotOurs},
		{"known, forward", of(known4, frontend4, data), ReasonForward, ReasonForward, ReasonNotOurs},
		{"known, forward over IPv6", of(known6, frontend6, data), ReasonForward, ReasonForward, ReasonNotOurs},
		{"known, reply", of(backend4, known4, data), ReasonReply, ReasonReply, ReasonReply},
		{"known, reply over IPv6", of(backend6, known6, initAck), ReasonReply, ReasonReply, ReasonReply},
		{"more chunks", of(known4, frontend4, data).with(func(p *packet) { p.payload = 100 }), ReasonForward, ReasonForward, ReasonNotOurs},
		{"no chunk", short(12), ReasonBadLength, ReasonBadLength, ReasonBadLength},
		{"half a chunk's head", short(15), ReasonBadLength, ReasonBadLength, ReasonBadLength},
		{"half a header", short(8), ReasonBadLength, ReasonBadLength, ReasonBadLength},

		{"first fragment, INIT", of(client4, frontend4, init).with(func(p *packet) { p.edit = frag4(moreFragments) }), ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
		{"first fragment, DATA", of(client4, frontend4, data).with(func(p *packet) { p.edit = frag4(moreFragments) }), ReasonKernelSCTP, ReasonFragmentForward, ReasonNotOurs},
		{"first fragment, known", of(known4, frontend4, data).with(func(p *packet) { p.edit = frag4(moreFragments) }), ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
		{"first fragment, no chunk", short(8).with(func(p *packet) { p.edit = frag4(moreFragments) }), ReasonFragmentForward, ReasonFragmentForward, ReasonNotOurs},
		{"later fragment", packet{src: backend6, dst: known6, proto: sctpProto, l4: block, extensions: []extension{frag6(64, true)}}, ReasonFragmentReply, ReasonFragmentReply, ReasonFragmentReply},
		{"error about forward", errorAbout(t, of(known4, backend4, data), 3, 28), ReasonICMPErrorReply, ReasonICMPErrorReply, ReasonICMPErrorReply},
		{"error about reply over IPv6", errorAbout(t, of(frontend6, known6, data), 2, 48), ReasonICMPErrorForward, ReasonICMPErrorForward, ReasonICMPErrorForward},
		{"error about no flow", errorAbout(t, of(client4, backend4, data), 3, 28), ReasonICMPError, ReasonICMPError, ReasonICMPError},
	} {
		t.Run(tt.name, func(t *testing.T) {
			frame := tt.frame(t)
			rigs[ModeFront].everywhere(t, frame, tt.front)
			rigs[ModeAlone].everywhere(t, frame, tt.alone)
			for mode, r := range rigs {
				if got, want := r.egressOf(t, frame, r.direct), ours(tt.egress, directSlot, "next"); got != want {
					t.Errorf("%v, egress: got %v, want %v", mode, got, want)
				}
			}
		})
	}

	// In the table, and held like TCP.
	r := rigs[ModeFront]
	if err := r.DeleteSocket(r.Index(directSlot, 0)); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[*packet]outcome{
		{src: known4, proto: sctpProto, l4: sctpOf(known4, frontend4, data)}:   {"drop", directSlot, ReasonHeld},
		{src: client4, proto: sctpProto, l4: sctpOf(client4, frontend4, init)}: {"pass", directSlot, ReasonDeadNew},
	} {
		if got := r.ingress(t, p.frame(t), r.direct, 0); got != want {
			t.Errorf("daemon killed: got %v, want %v", got, want)
		}
	}
}
