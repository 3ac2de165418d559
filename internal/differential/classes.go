package main

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"github.com/sluice-net/sluice/dataplane"
)

// outcome is a step and what became of it on both sides.
type outcome struct {
	setting
	step
	kernel, sluice []output
}

// class is a kind of difference that is meant.
type class struct {
	name   string
	reason string
	// holds says whether an outcome is of it. It says exactly what both sides must have done.
	holds func(*outcome) bool
}

// classes are all of them. A step has to name those that it may be of.
var classes = []class{
	{"kernel_calls_invalid",
		"connection tracking judges sequence numbers, states and checksums, and lets what it calls invalid out untranslated: a client then sees " +
			"the backend's address and resets. Sluice translates every frame of a flow, a wrong checksum staying as wrong",
		func(o *outcome) bool {
			return o.strays == o.soleKernel(o.untranslated()) && o.goes == o.soleSluice(o.translated())
		}},
	{"invalid_reply_dropped",
		"a reply whose TCP flags connection tracking calls invalid reaches the client with the backend's address. Sluice drops it",
		func(o *outcome) bool {
			return o.isReply() && o.strays == o.soleKernel(o.untranslated()) && len(o.sluice) == 0
		}},
	{"spoofed_source",
		"Sluice takes no frame for a Service from a source that does not live behind the port, in both families; the kernel's reverse-path " +
			"filter is IPv4's only",
		func(o *outcome) bool { return len(o.kernel) > 0 && len(o.sluice) == 0 }},
	{"undefined_port",
		"Sluice rejects a port that a served ClusterIP does not have. The kernel here has only the rules that translate",
		func(o *outcome) bool {
			return o.strays == o.soleKernel(o.untranslated()) && len(o.sluice) == 1 && o.sluice[0].at == o.at && isUnreachable(o.sluice[0].data)
		}},
	{"given_to_kernel",
		"what Sluice does not understand exactly (an authentication header, which covers the addresses; more than eight extension headers; TCP whose " +
			"first fragment does not hold its header; IPv4-mapped addresses) it gives to the kernel. In mode alone that has no rules; in front it has them, but has not seen the " +
			"connection: replies leave untranslated or are dropped, and so do segments whose opening it did see",
		func(o *outcome) bool {
			return len(o.kernel) == 1 && o.kernel[0].at == o.goes && (len(o.sluice) == 0 || len(o.sluice) == 1 && o.keptAddresses(o.sluice[0]) && o.sluice[0].at == o.strays)
		}},
	{"incomplete_datagram",
		"connection tracking keeps fragments back until it has them all, and throws away what it never gets or what overlaps. Sluice sends on what follows " +
			"the first one, each fragment right in every byte, and leaves the rest to the receiver",
		func(o *outcome) bool {
			if len(o.kernel) > 0 || len(o.sluice) == 0 {
				return false
			}
			left := o.pieces()
			for _, out := range o.sluice {
				n := slices.IndexFunc(left, func(f []byte) bool { return bytes.Equal(f[12:], out.data[12:]) })
				if n < 0 || out.at != o.goes {
					return false
				}
				left = slices.Delete(left, n, n+1)
			}
			return true
		}},
	{"headless_fragment",
		"connection tracking lets a first fragment of IPv6 without its whole transport header out untranslated (RFC 8200 section 4.5), and keeps the others " +
			"back. Sluice gives all of them to the kernel, which in mode alone tracks nothing",
		func(o *outcome) bool {
			var sent []output
			for _, f := range o.frames {
				if g := forwarded(f.data, o.straysFar); g != nil {
					sent = append(sent, output{at: o.strays, data: g})
				}
			}
			return o.mode == dataplane.ModeAlone && len(o.kernel) == 1 && o.kernel[0].at == o.strays && len(sent) == len(o.frames) &&
				bytes.Equal(o.kernel[0].data[12:], sent[0].data[12:]) && len(o.sluice) == 1 && o.strays == o.soleSluice(join(sent)[0].data)
		}},
	{"sctp_repaired",
		"when the kernel changes the ports of an SCTP packet it computes the checksum anew, and so makes a wrong one right, if it was told not to judge " +
			"checksums. Sluice leaves it as wrong",
		func(o *outcome) bool {
			return !o.strict && o.goes == o.soleKernel(o.mended()) && o.goes == o.soleSluice(o.translated())
		}},
	{"broken_error",
		"an ICMP error with a wrong checksum is not translated (RFC 5508 REQ-3), and goes on as it is. The kernel does the same, but drops it if it was " +
			"told not to judge checksums",
		func(o *outcome) bool {
			return !o.strict && len(o.kernel) == 0 && o.strays == o.soleSluice(o.untranslated())
		}},
	{"node_answers",
		"the errors which Sluice, or the kernel in mode alone, answers to a client come from the node's address. Where the kernel translates, they " +
			"seem to come from the ClusterIP, since NAT takes them for a part of the connection",
		func(o *outcome) bool {
			return len(o.kernel) == 1 && len(o.sluice) == 1 && o.kernel[0].at == o.at && o.sluice[0].at == o.at &&
				(o.frames[0].partial || bytes.Equal(anonymous(o.kernel[0].data), anonymous(o.sluice[0].data))) &&
				isError(o.kernel[0].data) && isError(o.sluice[0].data)
		}},
	{"vlan",
		"this kernel cannot judge VLANs: it has no 8021q, and drops what is tagged with a VLAN",
		func(o *outcome) bool {
			return len(o.kernel) == 0 && o.goes == o.soleSluice(untagged(o.translated()))
		}},
	{"looks_unfinished",
		"a frame off a veth whose checksum field holds the pseudo header's sum is taken for unfinished, and finished. A wrong checksum that looks " +
			"so is thereby made right",
		func(o *outcome) bool { return o.goes == o.soleSluice(o.mended()) }},
}

// fragmentsGivenUp is the one class that is of no step: it comes of one long gone.
var fragmentsGivenUp = class{"fragments_given_up",
	"fragments whose first one does not come are given to the kernel, counted, when they have waited long enough; connection tracking throws its own away", nil}

// keptAddresses says that an output has the addresses of the step's frame.
func (o *outcome) keptAddresses(out output) bool {
	p, ok := parse(o.frames[0].data)
	q, too := parse(out.data)
	return ok && too && p.src == q.src && p.dst == q.dst
}

// mended is the right translation with a checksum made anew.
func (o *outcome) mended() []byte {
	f := o.translated()
	if f != nil {
		finish(f)
	}
	return f
}

// anonymous is a copy of an ICMP error without its source, and what its checksums owe to that.
func anonymous(f []byte) []byte {
	p, ok := parse(f)
	if !ok {
		return nil
	}
	f = slices.Clone(f)
	if p.v6 {
		clear(f[p.l3+8 : p.l3+24])
		clear(f[p.l4+2 : p.l4+4])
	} else {
		clear(f[p.l3+10 : p.l3+16])
	}
	return f
}

// untagged is a frame without its VLAN tags.
func untagged(f []byte) []byte {
	p, ok := parse(f)
	if !ok {
		return nil
	}
	return append(slices.Clone(f[:12]), f[p.l3-2:]...)
}

// isError tells an ICMP error of either family.
func isError(f []byte) bool {
	p, ok := parse(f)
	if !ok {
		return false
	}
	_, ok = p.quote(f)
	return ok
}

// explained is the name of the class that an outcome is of, "" if of none that it may be of.
func explained(o *outcome, all []class) string {
	for _, c := range all {
		if slices.Contains(o.allow, c.name) && c.holds(o) {
			return c.name
		}
	}
	return ""
}

func (o *outcome) isReply() bool { return o.goes == client0 || o.goes == client1 }

// untranslated is what the only frame of the step looks like when it has just been forwarded.
func (o *outcome) untranslated() []byte {
	if len(o.frames) != 1 {
		return nil
	}
	return forwarded(finished(o.frames[0]), o.straysFar)
}

// translated is what a right translation makes of it.
func (o *outcome) translated() []byte {
	if len(o.frames) != 1 {
		return nil
	}
	f, to := finished(o.frames[0]), o.to
	// A frame of another client, or to another one, is translated for that.
	if p, ok := parse(f); ok && o.isReply() {
		to.dst = netip.AddrPortFrom(p.dst, p.dport)
	} else if ok {
		to.src = netip.AddrPortFrom(p.src, p.sport)
	}
	return rewritten(f, to, o.hops)
}

// pieces are the right translations of the step's fragments, one by one.
func (o *outcome) pieces() (fs [][]byte) {
	for _, f := range o.frames {
		for _, g := range [][]byte{rewritten(f.data, o.to, o.hops), moved(f.data, o.to, o.hops)} {
			if p, ok := parse(f.data); ok && p.part && g != nil {
				fs = append(fs, g)
			}
		}
	}
	return fs
}

// nowhere is no place.
const nowhere = place(-1)

// soleKernel is where the only output is, if it is want from the IP header on.
func (o *outcome) soleKernel(want []byte) place { return sole(o.kernel, want) }
func (o *outcome) soleSluice(want []byte) place { return sole(o.sluice, want) }

func sole(outs []output, want []byte) place {
	if len(outs) != 1 || want == nil || !bytes.Equal(outs[0].data[12:], want[12:]) {
		return nowhere
	}
	return outs[0].at
}

// isUnreachable tells ICMP port unreachable of either family.
func isUnreachable(f []byte) bool {
	p, ok := parse(f)
	if !ok || p.end-p.l4 < 8 {
		return false
	}
	kind, code := f[p.l4], f[p.l4+1]
	return p.proto == protoICMP && kind == 3 && code == 3 || p.proto == protoICMPv6 && kind == 1 && code == 4
}

// explain prints both lists.
func explain(w io.Writer) {
	fmt.Fprintln(w, "Fields that are not compared:")
	for _, f := range ignored {
		fmt.Fprintf(w, "\n  %s\n      where: %s\n      why:   %s\n", f.name, f.where, f.reason)
	}
	fmt.Fprintln(w, "\nClasses of frames of which Sluice makes something else than the kernel:")
	for _, c := range append(slices.Clone(classes), fragmentsGivenUp) {
		fmt.Fprintf(w, "\n  %s\n      %s\n", c.name, c.reason)
	}
}
