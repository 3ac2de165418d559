//go:build linux

package xdpprog

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

func specs(t testing.TB) map[string]*ebpf.CollectionSpec {
	t.Helper()
	specs := make(map[string]*ebpf.CollectionSpec)
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){"xdp": loadXdp, "steer": loadSteer, "egress": loadEgress} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		specs[name] = spec
	}
	return specs
}

// enum returns the values of a C enum of an object, by name.
func enum(t *testing.T, spec *ebpf.CollectionSpec, name string) map[string]uint64 {
	t.Helper()
	var e *btf.Enum
	if err := spec.Types.TypeByName(name, &e); err != nil {
		t.Fatalf("enum %s: %v", name, err)
	}
	values := make(map[string]uint64)
	for _, v := range e.Values {
		values[v.Name] = v.Value
	}
	return values
}

func TestReasonsAreThoseOfTheClassifier(t *testing.T) {
	for object, spec := range specs(t) {
		c := enum(t, spec, "reason")
		if c["NREASONS"] != NumReasons {
			t.Errorf("%s: %d reasons in C, %d in Go", object, c["NREASONS"], NumReasons)
		}
		delete(c, "NREASONS")
		for r := range Reason(NumReasons) {
			name := "REASON_" + strings.ToUpper(r.String())
			if v, ok := c[name]; !ok || v != uint64(r) {
				t.Errorf("%s: %s is %d in C (there: %t), %d in Go", object, name, v, ok, r)
			}
			delete(c, name)
		}
		for name := range c {
			t.Errorf("%s: %s has no twin in Go", object, name)
		}
	}
	if got := Reason(NumReasons).String(); got != fmt.Sprintf("Reason(%d)", NumReasons) {
		t.Errorf("a reason that does not exist is called %q", got)
	}
}

func TestLayoutsAreThoseOfTheClassifier(t *testing.T) {
	for object, spec := range specs(t) {
		if got, want := spec.Maps[xdpMapCounters].ValueSize, uint32(2*8*NumReasons); got != want {
			t.Errorf("%s: counters are %d bytes in C, %d in Go", object, got, want)
		}
		if got := enum(t, spec, "hook"); got["HOOK_INGRESS"] != 0 || got["HOOK_EGRESS"] != 1 || got["NHOOKS"] != 2 {
			t.Errorf("%s: hooks are %v, PortCounters has ingress and egress", object, got)
		}
		for name, size := range map[string]uint32{"port": 8, "flow_bucket": 64, "flow_record": 128} {
			var s *btf.Struct
			if err := spec.Types.TypeByName(name, &s); err != nil {
				t.Errorf("%s: %v", object, err)
			} else if s.Size != size {
				t.Errorf("%s: struct %s has %d bytes, want %d", object, name, s.Size, size)
			}
		}
	}
}

func TestMapsAndConstantsAreShared(t *testing.T) {
	specs := specs(t)
	xdp := specs["xdp"]
	for _, object := range []string{"steer", "egress"} {
		for name, m := range xdp.Maps {
			if strings.HasPrefix(name, ".") {
				continue
			}
			if other := specs[object].Maps[name]; other == nil || other.String() != m.String() {
				t.Errorf("map %s: %v in xdp, %v in %s", name, m, other, object)
			}
		}
		for name := range xdp.Variables {
			if specs[object].Variables[name] == nil {
				t.Errorf("constant %s is not in %s", name, object)
			}
		}
	}
}
