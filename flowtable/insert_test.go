package flowtable

import "testing"

func TestInsertResults(tt *testing.T) {
	base := Flow{
		Client: pod(1), Frontend: clusterIP(1), Backend: pod(100),
		ClientPort: 40000, FrontendPort: 80, BackendPort: 8080, Proto: protoTCP, Generation: 3,
	}
	for _, c := range []struct {
		name   string
		change func(f *Flow)
		want   InsertResult
		ref    Ref // for Exists
	}{
		{"the same again", func(f *Flow) {}, Exists, Ref{1, Forward}},
		{"the same with another backend", func(f *Flow) { f.Backend = pod(101) }, Exists, Ref{1, Forward}},
		{"the same with another source port", func(f *Flow) { f.SourcePort = 50000 }, Exists, Ref{1, Forward}},
		{"its forward tuple is a reply", func(f *Flow) {
			f.Client, f.ClientPort, f.Frontend, f.FrontendPort = f.Backend, f.BackendPort, f.Client, f.ClientPort
		}, Exists, Ref{1, Reply}},
		{"another protocol", func(f *Flow) { f.Proto = 17 }, Inserted, Ref{}},
		{"another client port", func(f *Flow) { f.ClientPort++ }, Inserted, Ref{}},
		{"another frontend on the same backend", func(f *Flow) { f.Frontend = clusterIP(2) }, Collision, Ref{}},
		{"the same, source port chosen again", func(f *Flow) { f.Frontend, f.SourcePort = clusterIP(2), 40001 }, Inserted, Ref{}},
		{"the same, source chosen again", func(f *Flow) { f.Frontend, f.Source = clusterIP(2), pod(7) }, Inserted, Ref{}},
		{"another client behind the same source", func(f *Flow) { f.Client, f.Source = pod(9), pod(1) }, Collision, Ref{}},
		{"its reply tuple is a forward tuple", func(f *Flow) {
			f.Client, f.ClientPort = f.Frontend, f.FrontendPort
			f.Backend, f.BackendPort = pod(1), 40000
			f.Frontend = clusterIP(3)
		}, Collision, Ref{}},
		{"its reply tuple is its own forward tuple", func(f *Flow) {
			f.Client, f.Backend, f.ClientPort, f.BackendPort = pod(5), pod(5), 80, 80
			f.Source, f.SourcePort = f.Frontend, f.FrontendPort
		}, Collision, Ref{}},
	} {
		tt.Run(c.name, func(tt *testing.T) {
			t := newTable(tt, 8, Timeouts{})
			first := base
			if ref, res := t.Insert(&first, 0); res != Inserted || ref != (Ref{1, Forward}) {
				tt.Fatalf("first: %+v %v", ref, res)
			}
			f := base
			c.change(&f)
			ref, res := t.Insert(&f, 0)
			if res != c.want {
				tt.Fatalf("%v, want %v", res, c.want)
			}
			if res == Exists && ref != c.ref || res == Collision && ref != (Ref{}) {
				tt.Errorf("ref %+v, want %+v", ref, c.ref)
			}
			s := t.Stats()
			want := Stats{Capacity: 8, Reserve: 1, Flows: 1, Free: 8, Inserted: 1}
			switch res {
			case Inserted:
				want.Flows, want.Free, want.Inserted = 2, 7, 2
			case Exists:
				want.Exists = 1
			case Collision:
				want.Collisions = 1
			}
			if s != want {
				tt.Errorf("stats %+v, want %+v", s, want)
			}
			check(tt, t)
		})
	}
}

func TestInsertFullOfRecords(tt *testing.T) {
	t := newTable(tt, 9, Timeouts{})
	fill(tt, t, 9)
	for rec := uint32(1); rec <= 9; rec++ {
		settleFlow(t, rec)
	}
	f := flowN(9)
	if ref, res := t.Insert(&f, 0); res != Inserted || ref.Record != 10 { // settled flows may have the reserve
		tt.Fatalf("%+v %v", ref, res)
	}
	settleFlow(t, 10)
	f = flowN(10)
	for range 3 {
		if ref, res := t.Insert(&f, 0); res != Full || ref != (Ref{}) {
			tt.Fatalf("%+v %v", ref, res)
		}
	}
	if s := t.Stats(); s.FullRecords != 3 || s.Free != 0 || s.Flows != 10 {
		tt.Errorf("%+v", s)
	}
	g := flowN(3)
	if _, res := t.Insert(&g, 0); res != Exists {
		tt.Errorf("a full table still knows its flows: %v", res)
	}
	check(tt, t)
	// Room comes with the grace period, not before.
	t.Remove(1)
	if _, res := t.Insert(&f, 0); res != Full {
		tt.Fatal(res)
	}
	settle(t)
	if _, res := t.Insert(&f, 0); res != Inserted {
		tt.Fatal(res)
	}
	check(tt, t)
}

// More records than the two buckets have cells for.
func TestInsertFullOfCells(tt *testing.T) {
	index, records := make([]byte, 2*BucketSize), make([]byte, 64*RecordSize)
	if err := Format(index, records, testSeed); err != nil {
		tt.Fatal(err)
	}
	t := open(tt, index, records, Timeouts{})
	n := 0
	for i := range uint32(20) {
		f := flowN(i)
		if ref, res := t.Insert(&f, 0); res == Inserted {
			n++
			settleFlow(t, ref.Record)
		} else if res != Full {
			tt.Fatal(res)
		}
		check(tt, t)
	}
	if s := t.Stats(); n != 8 || s.FullCells != 12 || s.FullRecords != 0 {
		tt.Errorf("%d flows in 16 cells, %+v", n, s)
	}
}

// The branch-free count of free cells against the plain one, with each cell taken or not.
func TestVacancy(t *testing.T) {
	rng := newRand(2)
	for pattern := range 256 {
		var b bucket
		n, first, second := 0, (*uint64)(nil), (*uint64)(nil)
		for i := range b {
			if pattern>>i&1 != 0 {
				b[i] = []uint64{1, 1 << 63, 1 << 32, rng.Uint64() | 2}[rng.IntN(4)]
				continue
			}
			switch n++; n {
			case 1:
				first = &b[i]
			case 2:
				second = &b[i]
			}
		}
		other := new(uint64)
		for _, taken := range []*uint64{nil, other} {
			if gotN, got := b.vacancy(taken); gotN != n || got != first {
				t.Errorf("%08b: %d free, first %p, want %d, %p", pattern, gotN, got, n, first)
			}
		}
		if gotN, got := b.vacancy(first); first != nil && (gotN != n-1 || got != second) {
			t.Errorf("%08b, the first taken: %d free, first %p, want %d, %p", pattern, gotN, got, n-1, second)
		}
	}
}

// A table of the sizes that Geometry gives takes all of its flows, whatever the seed.
func TestInsertFillsToCapacity(tt *testing.T) {
	for seed := range uint64(4) {
		buckets, n := Geometry(4096)
		index, records := make([]byte, buckets*BucketSize), make([]byte, n*RecordSize)
		if err := Format(index, records, [2]uint64{seed, ^seed}); err != nil {
			tt.Fatal(err)
		}
		t := open(tt, index, records, Timeouts{})
		fill(tt, t, 4096)
		check(tt, t)
		// And, if nothing in it may be shed, the reserve.
		for rec := 1; rec < n; rec++ {
			if t.records[rec].life == LifeLive {
				settleFlow(t, uint32(rec))
			}
		}
		for i := uint32(4096); t.Stats().Free > 0; i++ {
			f := flowN(i)
			ref, res := t.Insert(&f, 0)
			if res != Inserted {
				tt.Fatalf("seed %d, flow %d of %d: %v", seed, i+1, n-1, res)
			}
			settleFlow(t, ref.Record)
		}
		check(tt, t)
	}
}

func TestTarget(tt *testing.T) {
	plain := Flow{
		Client: pod(1), Frontend: clusterIP(1), Backend: pod(100),
		ClientPort: 40000, FrontendPort: 80, BackendPort: 8080, Proto: protoTCP,
	}
	hairpin, ported := plain, plain
	hairpin.Backend, hairpin.Source, hairpin.SourcePort = pod(1), v4(192, 0, 2, 1), 1234
	ported.SourcePort = 40001
	for _, c := range []struct {
		name           string
		f              Flow
		forward, reply Target
	}{
		{"plain", plain, Target{pod(1), pod(100), 40000, 8080}, Target{clusterIP(1), pod(1), 80, 40000}},
		{"source port", ported, Target{pod(1), pod(100), 40001, 8080}, Target{clusterIP(1), pod(1), 80, 40000}},
		{"hairpin", hairpin, Target{v4(192, 0, 2, 1), pod(1), 1234, 8080}, Target{clusterIP(1), pod(1), 80, 40000}},
	} {
		tt.Run(c.name, func(tt *testing.T) {
			t := newTable(tt, 2, Timeouts{})
			ref, _ := t.Insert(&c.f, 0)
			var to Target
			if t.Target(ref, &to); to != c.forward {
				tt.Errorf("forward: %+v, want %+v", to, c.forward)
			}
			if t.Target(Ref{ref.Record, Reply}, &to); to != c.reply {
				tt.Errorf("reply: %+v, want %+v", to, c.reply)
			}
		})
	}
}
