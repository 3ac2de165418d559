package flowtable

import (
	"os/exec"
	"strings"
	"testing"
)

func TestNoAllocations(tt *testing.T) {
	t := openCapped(tt, 100, 1000)
	fill(tt, t, 50)
	crowd := openCapped(tt, 100, 1000)
	fill(tt, crowd, 100)
	n := uint32(100)
	keep := func(e *Entry) bool { return e.Flow.Proto != 0 }
	f, g, h := flowN(7), flowN(70), flowN(8)
	k := f.forward()
	tuples := make([]Tuple, 100)
	for i := range tuples {
		f := flowN(uint32(i))
		tuples[i] = f.forward()
	}
	hashes, refs := make([]uint64, 100), make([]Ref, 100)
	var to Target
	var got Flow
	for name, op := range map[string]func(){
		"Hash":        func() { t.Hash(&k) },
		"Lookup":      func() { t.Lookup(&k) },
		"LookupBatch": func() { t.LookupBatch(tuples, hashes, refs); t.Warm(refs) },
		"Insert and Remove": func() {
			ref, _ := t.Insert(&g, 0)
			t.Remove(ref.Record)
			t.Reclaim(t.Limbo())
		},
		"Insert and shed": func() {
			n++
			f := flowN(n)
			if _, res := crowd.Insert(&f, 0); res != Inserted {
				tt.Fatal(res)
			}
			crowd.Reclaim(crowd.Limbo())
		},
		"Insert, exists": func() { t.Insert(&h, 0) },
		"Touch":          func() { t.Touch(3, Reply, 9, ack); t.Closing(3) },
		"Target":         func() { t.Target(Ref{3, Reply}, &to); t.Flow(3, &got) },
		"marks":          func() { t.SetGeneration(3, t.Generation(3)+1); t.SetAdjacency(3, Reply, t.Adjacency(3, Reply)+1) },
		"Expire":         func() { t.Expire(0, 100) },
		"Reconcile":      func() { t.Reconcile(100, keep) },
		"Stats":          func() { t.Stats(); t.Urgent() },
	} {
		if n := testing.AllocsPerRun(100, op); n != 0 {
			tt.Errorf("%s: %v allocations", name, n)
		}
	}
}

// What the packet loop calls for each packet must cost no call where that is possible.
func TestInlining(t *testing.T) {
	out, err := exec.Command("go", "build", "-gcflags=-m", ".").CombinedOutput()
	if err != nil {
		t.Skipf("go build: %v", err)
	}
	for _, name := range []string{
		"(*Table).Adjacency", "(*Table).SetAdjacency", "(*Table).Generation", "(*Table).SetGeneration", "(*Table).Closing",
		"TickOf", "(*Table).pair", "tagOf", "round", "State.steady", "portsOf",
	} {
		if !strings.Contains(string(out), "can inline "+name+"\n") {
			t.Errorf("%s is not inlined", name)
		}
	}
}
