package main

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/sluice-net/sluice/internal/netlab"
)

// ignoredField is a field that is not compared: the list is to stay short.
type ignoredField struct {
	name   string
	where  string
	reason string
}

// ignored is the whole list. normal does what it says.
var ignored = []ignoredField{
	{"MAC addresses", "frames that leave to the host outside",
		"the two clusters' uplinks have random addresses. At the pods they are equal and compared"},
	{"IPv4 identification and DF, and the header checksum for its part", "ICMP errors which a node makes",
		"ip_select_ident (net/ipv4/route.c) takes the number from counters with a random key for each namespace. Those that Sluice makes are atomic " +
			"(RFC 6864): zero with DF. What is forwarded keeps its own, which is compared"},
	{"the time in an IPv4 timestamp option, and the header checksum for its part", "packets with that option",
		"it is the millisecond at which a node has had the packet"},
	{"how a datagram is cut into fragments, and the number of those of IPv6", "fragments that make a datagram",
		"connection tracking joins them, and the kernel cuts the datagram again. What the receiver joins of them is compared. Fragments that make " +
			"none are compared as they are"},
	{"an unfinished transport checksum", "frames that a device was to finish",
		"whether a frame that was sent unfinished arrives finished is a matter of offloads. It is compared as if finished"},
}

// output is a frame that came out, ready to be compared.
type output struct {
	at   place
	data []byte
	raw  netlab.Frame
}

// internetControl is the TOS of ICMP errors that a node makes; their source may be a ClusterIP, as NAT has it.
const internetControl = 0xc0

// optionTimestamp is the type of the IPv4 timestamp option.
const optionTimestamp = 68

// normal takes from a captured frame what is not compared.
func (x *side) normal(at place, f netlab.Frame) output {
	o := output{at: at, data: f.Data, raw: f}
	p, ok := parse(o.data)
	// What is forwarded here never has this TOS (net/ipv4/icmp.c:icmp_send).
	own := ok && p.proto == protoICMP && !p.v6 && o.data[p.l3+1] == internetControl
	stamped := ok && !p.v6 && p.l3+ipv4Len < p.l4 && o.data[p.l3+ipv4Len] == optionTimestamp
	if !f.Partial && !own && !stamped && at != outside {
		return o
	}
	o.data = bytes.Clone(o.data)
	if f.Partial {
		finish(o.data)
	}
	if header := o.data[min(p.l3, p.l4):p.l4]; (own || stamped) && fold(add(0, header)) == 0xffff { // a wrong one stays wrong
		if own {
			clear(header[4:8])
		}
		if stamped {
			// Behind type, length, pointer and flags come times, each behind an address if a flag says so.
			option := header[ipv4Len:]
			size := 4
			if option[3]&0x0f != 0 {
				size = 8
			}
			for at := 4; at+size <= min(int(option[1]), len(option)); at += size {
				clear(option[at+size-4 : at+size])
			}
		}
		binary.BigEndian.PutUint16(header[10:], 0)
		binary.BigEndian.PutUint16(header[10:], ^fold(add(0, header)))
	}
	if at == outside {
		clear(o.data[:12])
	}
	return o
}

// equal compares what came out on both sides, in any order: both are sorted.
func equal(a, b []output) bool {
	if len(a) != len(b) {
		return false
	}
	sortOutputs(a)
	sortOutputs(b)
	return slices.EqualFunc(a, b, func(x, y output) bool { return x.at == y.at && bytes.Equal(x.data, y.data) })
}

func sortOutputs(o []output) {
	slices.SortFunc(o, func(x, y output) int {
		return cmp.Or(cmp.Compare(x.at, y.at), bytes.Compare(x.data, y.data))
	})
}

func familyOf(a netip.Addr) netlab.Family {
	if a.Is4() {
		return netlab.IPv4
	}
	return netlab.IPv6
}

// client is the end that a frame, or the packet that it quotes, belongs to.
type clientKey struct {
	addr netip.Addr
	port uint16
}

// belongs says which flow a captured frame is of; false for what has no ports that are a client's.
func (x *side) belongs(f []byte) (clientKey, bool) {
	p, ok := parse(f)
	if !ok {
		return clientKey{}, false
	}
	if q, ok := p.quote(f); ok {
		p = q
	}
	if !p.ports {
		// A fragment's number is the client's port: the kernel keeps it in IPv4, and Sluice in both.
		x, ok := pieceOf(0, f)
		if !ok {
			return clientKey{}, false
		}
		p.sport, p.dport = uint16(x.key.id), uint16(x.key.id)
	}
	for c := client0; c <= client1; c++ {
		switch a := x.ip[c]; {
		case p.src == a[netlab.IPv4] || p.src == a[netlab.IPv6]:
			return clientKey{p.src, p.sport}, true
		case p.dst == a[netlab.IPv4] || p.dst == a[netlab.IPv6]:
			return clientKey{p.dst, p.dport}, true
		}
	}
	// A hairpin's client is a backend, and its backend sees the node.
	b := x.ip[backend0]
	switch {
	case p.sport >= vectorPorts:
		return clientKey{b[familyOf(p.src)], p.sport}, true
	case p.dport >= vectorPorts:
		return clientKey{b[familyOf(p.dst)], p.dport}, true
	}
	return clientKey{}, false
}
