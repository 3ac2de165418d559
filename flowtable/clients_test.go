package flowtable

import (
	"strings"
	"testing"
)

func openCapped(tb testing.TB, capacity, most int) *Table {
	tb.Helper()
	index, records := newImage(tb, capacity)
	t, _, err := OpenWith(index, records, Options{MaxPerClient: most})
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// One client gets as many flows as one may have, and others are not touched by it.
func TestMaxPerClient(tt *testing.T) {
	t := openCapped(tt, 100, 5)
	flow := func(client, port int) *Flow {
		return &Flow{
			Client: pod(uint32(client)), Frontend: clusterIP(1), Backend: pod(9000), ClientPort: uint16(port),
			FrontendPort: 53, BackendPort: 53, Proto: 17,
		}
	}
	for port := range 8 {
		want := Inserted
		if port >= 5 {
			want = OverCap
		}
		if ref, res := t.Insert(flow(1, port+1), 0); res != want || (ref.Record != 0) != (want == Inserted) {
			tt.Errorf("flow %d of the greedy one: %+v %v", port, ref, res)
		}
		if _, res := t.Insert(flow(2+port, 1), 0); res != Inserted {
			tt.Errorf("client %d: %v", 2+port, res)
		}
		check(tt, t)
	}
	if _, res := t.Insert(flow(1, 3), 0); res != Exists {
		tt.Errorf("over the cap a known flow is still known: %v", res)
	}
	if s := t.Stats(); s.OverCap != 3 || s.Flows != 13 || s.Full() != 0 {
		tt.Errorf("%+v", s)
	}
	k := Tuple{pod(1), clusterIP(1), 2, 53, 17}
	t.Remove(t.Lookup(&k).Record) // counted no longer, though its record waits
	if _, res := t.Insert(flow(1, 100), 0); res != Inserted {
		tt.Errorf("a flow less: %v", res)
	}
	if _, res := t.Insert(flow(1, 101), 0); res != OverCap {
		tt.Errorf("a flow more: %v", res)
	}
	check(tt, t)
}

func TestMaxPerClientValidated(t *testing.T) {
	index, records := newImage(t, 1)
	if _, _, err := OpenWith(index, records, Options{MaxPerClient: -1}); err == nil || !strings.Contains(err.Error(), "-1 flows a client") {
		t.Error(err)
	}
}

// Every flow of a table has a client of its own, all slots but a fifth are in use, and they come and go: the counts stay
// those of a Go map.
func TestClientsAgainstMap(tt *testing.T) {
	const capacity = 500
	t := openCapped(tt, capacity, 3)
	rng := newRand(5)
	want := map[[2]uint64]uint32{}
	total := 0
	var list [][2]uint64
	for step := range rounds(100_000) {
		if step%(4*capacity) < 2*capacity && total < capacity {
			a := wordsOf(&[16]byte{0: byte(rng.IntN(256)), 9: byte(rng.IntN(3))})
			if ok := t.clients.take(t.hashClient(a)); ok != (want[a] < 3) {
				tt.Fatalf("step %d: taken %v, with %d of it", step, ok, want[a])
			} else if ok {
				want[a]++
				total++
				list = append(list, a)
			}
		} else if total > 0 {
			i := rng.IntN(len(list))
			a := list[i]
			list[i] = list[len(list)-1]
			list = list[:len(list)-1]
			t.clients.drop(t.hashClient(a))
			if want[a]--; want[a] == 0 {
				delete(want, a)
			}
			total--
		}
		if step%50 == 0 {
			used := 0
			for i := range t.clients.slots {
				if t.clients.slots[i].n != 0 {
					used++
				}
			}
			if used != len(want) {
				tt.Fatalf("step %d: %d slots in use, want %d", step, used, len(want))
			}
			for a, n := range want {
				if got := t.clients.slots[t.clients.find(t.hashClient(a))].n; got != n {
					tt.Fatalf("step %d: %x has %d, want %d", step, a, got, n)
				}
			}
		}
	}
}

// A restart rebuilds the counts and the queue, oldest first.
func TestAdoptUnderPressure(tt *testing.T) {
	index, records := newImage(tt, 80)
	t, _, err := OpenWith(index, records, Options{MaxPerClient: 10})
	if err != nil {
		tt.Fatal(err)
	}
	const wrap = 1<<32 - 30 // ticks wrap in the middle
	for i := range uint32(64) {
		f := honest(i)
		f.Client = pod(i % 8)
		at := Tick(wrap + (i*37)%64) // in another order than the records'
		ref, res := t.Insert(&f, at)
		if res != Inserted {
			tt.Fatal(res)
		}
		switch i % 4 {
		case 1:
			settleFlow(t, ref.Record)
		case 2:
			t.Touch(ref.Record, Reply, at, synAck)
		}
	}
	t, _, err = OpenWith(index, records, Options{MaxPerClient: 10})
	if err != nil {
		tt.Fatal(err)
	}
	check(tt, t)
	if t.queued != [2]int{32, 16} {
		tt.Errorf("queues of %v", t.queued)
	}
	last := Tick(0)
	for rec := t.links[0].next; rec != 0; rec = t.links[rec].next {
		at := Tick(t.records[rec].seen[Forward]) - wrap
		if at < last {
			tt.Errorf("record %d of tick %d stands after %d", rec, at, last)
		}
		last = at
	}
	for i := range uint32(3) {
		f := honest(100 + i)
		f.Client = pod(0)
		want := Inserted
		if i == 2 {
			want = OverCap
		}
		if _, res := t.Insert(&f, 100); res != want {
			tt.Errorf("flow %d of the client: %v, want %v", 9+i, res, want)
		}
	}
	check(tt, t)
	// A cap below what a client has refuses new flows and ends none.
	t, rep, err := OpenWith(index, records, Options{MaxPerClient: 2})
	if err != nil || rep.Torn != 0 {
		tt.Fatal(rep, err)
	}
	f := honest(200)
	f.Client = pod(3)
	if _, res := t.Insert(&f, 100); res != OverCap {
		tt.Error(res)
	}
	check(tt, t)
}
