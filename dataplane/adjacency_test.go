package dataplane

import "testing"

func TestAdjacencyNumbers(t *testing.T) {
	table := newAdjacencies(4) // numbers 1 to 3
	calls := 0
	resolve := func(a [16]byte) *adjacency { calls++; return &adjacency{addr: a} }
	addr := func(n byte) [16]byte { return [16]byte{15: n} }

	one, two := table.number(addr(1), resolve), table.number(addr(2), resolve)
	if one == 0 || two == 0 || one == two {
		t.Fatalf("two addresses: got numbers %d and %d", one, two)
	}
	if again := table.number(addr(1), resolve); again != one || calls != 2 {
		t.Errorf("the same address again: got number %d after %d resolutions, want %d after 2", again, calls, one)
	}
	if a := table.at(two); a == nil || a.addr != addr(2) {
		t.Errorf("at(%d) = %+v", two, a)
	}
	three := table.number(addr(3), resolve)
	if n := table.number(addr(4), resolve); n != 0 {
		t.Errorf("a full table: got number %d, want 0", n)
	}
	for _, n := range []uint32{0, 4, 1 << 31} {
		if a := table.at(n); a != nil {
			t.Errorf("at(%d) = %+v, want none", n, a)
		}
	}

	// A collection frees only what two in a row found unused.
	used := func(n uint32) bool { return n == one }
	table.collect(used)
	if table.len() != 3 {
		t.Fatalf("after one collection: %d adjacencies, want 3", table.len())
	}
	table.number(addr(2), resolve) // about to be used by a new flow
	table.collect(used)
	if table.len() != 2 || table.at(two) == nil || table.at(three) != nil {
		t.Errorf("after two collections: %d adjacencies, number %d %+v, number %d %+v: want 2, kept, freed",
			table.len(), two, table.at(two), three, table.at(three))
	}
	if n := table.number(addr(5), resolve); n != three {
		t.Errorf("a new address: got number %d, want the freed %d", n, three)
	}
}

func TestAdjacencyRefreshReplacesEntries(t *testing.T) {
	table := newAdjacencies(4)
	n := table.number([16]byte{1}, func(a [16]byte) *adjacency { return &adjacency{addr: a, mtu: 1500} })
	table.refresh(func(a [16]byte) *adjacency { return &adjacency{addr: a, mtu: 9000} })
	if got := table.at(n); got.mtu != 9000 || got.addr != ([16]byte{1}) {
		t.Errorf("after refresh: %+v", got)
	}
}
