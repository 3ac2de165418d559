package dataplane

import (
	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/nat"
)

// ICMP errors. One that speaks of a translated packet quotes it as its sender saw it:
//
//	about a forward frame, from beyond us:    quotes source > backend     goes to the client
//	about a reply, from the client's side:    quotes frontend > client    goes to the backend
//
// Turned around, the quoted tuple is the one that the flow table knows: the reply's
// in the first case, the forward one's in the second. The quote gets back what the
// receiver sent, so that its socket knows it, and Path MTU discovery works through a
// ClusterIP. The outer source becomes the frontend in the first case, even for an
// error of a router on the way: that is what the kernel's NAT does
// (net/netfilter/nf_nat_proto.c: nf_nat_icmp_reply_translation), and whoever talks to
// a ClusterIP need not know what is behind it.

// icmpError ends frame i, which nat named an ICMP message.
func (w *worker) icmpError(i int) {
	b, t := &w.b, w.d.table
	p, frame := &b.packets[i], b.frames[i]
	var q nat.Quote
	r := q.Parse(frame, p)
	if r != nat.OK && r != nat.Redirect && r != nat.CutQuote {
		w.giveBack(i, unparsed(r))
		return
	}
	ref := t.Lookup(&flowtable.Tuple{Src: q.Dst, Dst: q.Src, SrcPort: q.DstPort, DstPort: q.SrcPort, Proto: q.Proto})
	if ref.Record == 0 {
		w.giveBack(i, NotServed)
		return
	}
	if r != nat.OK {
		// Untranslated it would start the two ends to talk past us
		// (nf_nat_icmp_reply_translation, net/netfilter/nf_nat_proto.c).
		w.drop(i, InvalidError)
		return
	}
	t.Target(ref, &w.target)
	a := w.adjacent(ref)
	if a.exceeds(p, w.b.in[i]) {
		w.drop(i, RejectRefused) // an error is not answered by an error
		return
	}
	to := &w.target
	var source *[16]byte
	if ref.Direction == flowtable.Reply || to.Src != q.Dst {
		source = &to.Src // of a hairpin's other half too
	}
	p.RewriteError(frame, &q, source, &to.Dst, &nat.Endpoints{Src: to.Dst, Dst: to.Src, SrcPort: to.DstPort, DstPort: to.SrcPort})
	w.forward(&b.descs[i], frame, p, w.b.in[i], a, ErrorDirect)
}
