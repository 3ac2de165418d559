package main

import (
	"bytes"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-net/sluice/dataplane"
	"github.com/sluice-net/sluice/internal/netlab"
)

// TestDifferential is a small run of everything.
func TestDifferential(t *testing.T) {
	netlab.RequireRoot(t)
	var out strings.Builder
	err := run(options{frames: 4000, vectors: "options: ", setting: "all", kind: "native", flow: -1, most: 3}, &out)
	t.Log(out.String())
	if err != nil {
		t.Error(err)
	}
	if last := regexp.MustCompile(`(?m)^differential: valid=\d{4,} vectors=\d+ explained=\d+ differences=0\n\z`); !last.MatchString(out.String()) {
		t.Error("the last line does not say that nothing differs")
	}
}

// testSide is a side that has addresses, and no cluster.
func testSide() *side {
	x := &side{}
	for p := client0; p < places; p++ {
		x.hostMAC[p], x.mac[p] = []byte{2, 0, 0, 0, 1, byte(p)}, []byte{2, 0, 0, 0, 0, byte(p)}
		x.ip[p] = map[netlab.Family]netip.Addr{}
		for _, f := range netlab.Families {
			x.ip[p][f] = netlab.PodAddr(f, 1, int(p)+1)
		}
	}
	return x
}

// TestConversations: what is sent is right in every checksum, what the plain translation makes of it is too, and all of it
// is decided by seed and number.
func TestConversations(t *testing.T) {
	x := testSide()
	frames := 0
	for number := range uint64(300) {
		a, b := newConversation(x, 7, number), newConversation(x, 7, number)
		for {
			s, ok := a.next()
			again, too := b.next()
			if ok != too || !slices.EqualFunc(s.frames, again.frames, func(f, g injected) bool { return bytes.Equal(f.data, g.data) && f.partial == g.partial }) {
				t.Fatalf("%s, %s: another frame the second time", a.name(), s.what)
			}
			if !ok {
				break
			}
			frames += len(s.frames)
			var outs []output // fragments are looked at as the datagram that they make
			for _, f := range s.frames {
				if len(f.data) > 1514 {
					t.Errorf("%s, %s: %d bytes", a.name(), s.what, len(f.data))
				}
				outs = append(outs, output{data: f.data, raw: netlab.Frame{Partial: f.partial}})
			}
			if outs = join(outs); len(outs) != 1 {
				t.Fatalf("%s, %s: %d datagrams", a.name(), s.what, len(outs))
			}
			for _, o := range outs {
				f := injected{o.data, o.raw.Partial}
				wrong := strings.Contains(s.what, "bad checksum")
				if err := netlab.VerifyChecksums(&netlab.Frame{Data: f.data, Length: len(f.data), Partial: f.partial}); (err != nil) != wrong {
					t.Errorf("%s, %s: %v", a.name(), s.what, err)
				}
				if strings.Contains(s.what, "icmp error") {
					continue
				}
				to := rewritten(finished(f), s.to, s.hops)
				if err := netlab.VerifyChecksums(&netlab.Frame{Data: to, Length: len(to)}); (err != nil) != wrong {
					t.Errorf("%s, %s, translated: %v", a.name(), s.what, err)
				}
			}
		}
	}
	if frames < 3000 {
		t.Errorf("only %d frames", frames)
	}
}

// TestClassesAreExact: one byte that is not as a class has it, and nothing explains the difference.
func TestClassesAreExact(t *testing.T) {
	x := testSide()
	v := &vector{family: v4, proto: protoTCP, allow: []string{"kernel_calls_invalid"}, make: func(m *maker) []injected { return []injected{{data: m.good().bytes()}} }}
	s := newVectorScript(x, v, 0)
	st, _ := s.next()
	o := outcome{setting: setting{mode: dataplane.ModeFront, strict: true}, step: st}
	o.kernel = []output{{at: outside, data: o.untranslated()}}
	right := o.translated()
	o.sluice = []output{{at: backend0, data: right}}
	if got := explained(&o, classes); got != "kernel_calls_invalid" {
		t.Errorf("a right translation of what the kernel let out is explained by %q", got)
	}
	for i := 12; i < len(right); i++ {
		f := slices.Clone(right)
		f[i] ^= 1
		o.sluice[0].data = f
		if got := explained(&o, classes); got != "" {
			t.Errorf("byte %d is wrong, and explained by %q", i, got)
		}
	}
	o.sluice = []output{{at: backend1, data: right}}
	if got := explained(&o, classes); got != "" {
		t.Errorf("the wrong backend is explained by %q", got)
	}
	o.sluice = nil
	if got := explained(&o, classes); got != "" {
		t.Errorf("a lost frame is explained by %q", got)
	}
	o.allow = nil
	o.sluice = []output{{at: backend0, data: right}}
	if got := explained(&o, classes); got != "" {
		t.Errorf("a step that allows for nothing is explained by %q", got)
	}
}

// TestEqual: order does not matter, everything else does.
func TestEqual(t *testing.T) {
	a, b := output{at: client0, data: []byte{1}}, output{at: client1, data: []byte{2}}
	for _, c := range []struct {
		x, y []output
		want bool
	}{
		{nil, nil, true},
		{[]output{a, b}, []output{b, a}, true},
		{[]output{a}, nil, false},
		{[]output{a, a}, []output{a}, false},
		{[]output{a, a}, []output{a, b}, false},
		{[]output{a}, []output{{at: client1, data: a.data}}, false},
		{[]output{a}, []output{{at: client0, data: []byte{3}}}, false},
	} {
		if got := equal(c.x, c.y); got != c.want {
			t.Errorf("equal(%v, %v) = %v", c.x, c.y, got)
		}
	}
}

// TestNormal: only what the list says is left out.
func TestNormal(t *testing.T) {
	x := testSide()
	m := &maker{vector: &vector{family: v4, proto: protoUDP}, x: x, m: &mappings[1]}
	m.client, m.frontend, m.backend = netip.AddrPortFrom(x.ip[client0][v4], 1000), mappings[1].frontend(v4), x.backend(&mappings[1], v4)
	icmp := icmpError(m, 3, 3, 0, 0, 0, make([]byte, 28))
	icmp.tos = internetControl
	stamp := m.good()
	stamp.options = []byte{optionTimestamp, 12, 5, 0, 1, 2, 3, 4, 5, 6, 7, 8}
	for _, c := range []struct {
		name  string
		frame *packet
		at    place
		left  []int // offsets of bytes that are not compared
	}{
		{"forwarded", m.good(), backend0, nil},
		{"outside", m.good(), outside, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
		{"an error of a node", icmp, client0, []int{18, 19, 20, 21}},
		{"a timestamp", stamp, backend0, []int{38, 39, 40, 41, 42, 43, 44, 45}},
	} {
		plain := x.normal(c.at, netlab.Frame{Data: c.frame.bytes()})
		for i := range c.frame.bytes() {
			f := c.frame.bytes()
			f[i] ^= 0x10
			if f[12] == 8 && (i < 24 || i > 25) && i >= etherLen && i < 14+int(f[14]&15)*4 {
				fix4(f) // else the header is broken, which is compared too
			}
			same := bytes.Equal(x.normal(c.at, netlab.Frame{Data: f}).data, plain.data)
			if want := slices.Contains(c.left, i); same != want {
				t.Errorf("%s: byte %d: left out %v, want %v", c.name, i, same, want)
			}
		}
	}
}

// TestDocument: the page has each name of both lists.
func TestDocument(t *testing.T) {
	page, err := os.ReadFile("../../docs/differential.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range ignored {
		names = append(names, f.name)
	}
	for _, c := range append(slices.Clone(classes), fragmentsGivenUp) {
		names = append(names, "`"+c.name+"`")
	}
	for _, name := range names {
		if !strings.Contains(string(page), name) {
			t.Errorf("docs/differential.md lacks %s", name)
		}
	}
}

// TestVectorTable: names are unique, classes exist, and there are as many as there are to be.
func TestVectorTable(t *testing.T) {
	known := map[string]bool{}
	for _, c := range classes {
		known[c.name] = true
	}
	used := map[string]bool{}
	names := map[string]bool{}
	byHand, made := 0, 0
	for i, v := range allVectors() {
		if names[v.full()] {
			t.Errorf("two vectors are named %s", v.full())
		}
		names[v.full()] = true
		for _, a := range v.allow {
			used[a] = true
			if !known[a] {
				t.Errorf("%s allows for %q, which is no class", v.full(), a)
			}
		}
		if v.generated {
			made++
		} else {
			byHand++
		}
		s := newVectorScript(testSide(), v, i)
		for st, ok := s.next(); ok; st, ok = s.next() {
			if len(st.frames) == 0 {
				t.Errorf("%s, %s: no frame", v.full(), st.what)
			}
		}
	}
	for name := range maps.Keys(known) {
		if !used[name] {
			t.Errorf("class %s is for no vector", name)
		}
	}
	if byHand < 170 || made < 370 {
		t.Errorf("%d vectors by hand, %d generated: want 170 and 370", byHand, made)
	}
	t.Logf("%d vectors by hand, %d generated", byHand, made)
}
