package flowtable

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
)

// flowsOf returns what a table holds, by forward tuple.
func flowsOf(t *Table) map[Tuple]Entry {
	m := map[Tuple]Entry{}
	for e := range t.All() {
		m[e.Flow.forward()] = *e
	}
	return m
}

func TestAdopt(tt *testing.T) {
	index, records := newImage(tt, 300)
	t := open(tt, index, records, Timeouts{})
	for i := range uint32(200) {
		f := flowN(i)
		f.Generation, f.ForwardAdj, f.ReplyAdj = 9, 8, 7
		if i%3 == 0 {
			f.Source, f.SourcePort = pod(60000+i), uint16(i+1)
		}
		ref, res := t.Insert(&f, Tick(i))
		if res != Inserted {
			tt.Fatal(res)
		}
		t.Touch(ref.Record, Reply, Tick(2*i), ack)
	}
	for rec := uint32(1); rec <= 50; rec++ {
		t.Remove(rec)
	}
	t.Reclaim(t.Limbo())
	for rec := uint32(51); rec <= 80; rec++ {
		t.Remove(rec)
	}
	before := flowsOf(t)

	t, rep, err := Open(index, records, Timeouts{})
	if err != nil {
		tt.Fatal(err)
	}
	if rep != (AdoptReport{Flows: 120}) {
		tt.Errorf("%v", rep)
	}
	check(tt, t)
	got := flowsOf(t)
	if len(got) != len(before) {
		tt.Errorf("%d flows, were %d", len(got), len(before))
	}
	for k, want := range before {
		want.Flow.Generation, want.Flow.ForwardAdj, want.Flow.ReplyAdj = 0, 0, 0
		if got[k] != want {
			tt.Errorf("%+v, was %+v", got[k], want)
		}
	}
	// What was in limbo waits for a grace period of the new life.
	if s := t.Stats(); s.Limbo != 30 || s.Free != 150+s.Reserve {
		tt.Errorf("%+v", s)
	}
	settle(t)
	check(tt, t)
}

// Every state that a daemon killed in the middle of an insert or a removal leaves.
func TestAdoptTorn(tt *testing.T) {
	type image struct {
		t      *Table
		r      *record
		fc, rc *uint64
	}
	for _, c := range []struct {
		name string
		harm func(i image)
		want AdoptReport
	}{
		{"whole", func(i image) {}, AdoptReport{Flows: 3}},
		{"insert before life", func(i image) { i.r.life, *i.fc, *i.rc = LifeFree, 0, 0 }, AdoptReport{Flows: 2}},
		{"insert before the reply cell", func(i image) { *i.fc, *i.rc = 0, 0 }, AdoptReport{Flows: 2, Torn: 1}},
		{"insert before the forward cell", func(i image) { *i.fc = 0 }, AdoptReport{Flows: 2, Torn: 1, Cells: 1}},
		{"removal before the forward cell", func(i image) { i.r.life = LifeRetired }, AdoptReport{Flows: 2, Cells: 2}},
		{"removal before the reply cell", func(i image) { i.r.life, *i.fc = LifeRetired, 0 }, AdoptReport{Flows: 2, Cells: 1}},
		{"removed", func(i image) { i.r.life, *i.fc, *i.rc = LifeRetired, 0, 0 }, AdoptReport{Flows: 2}},
		{"unknown life", func(i image) { i.r.life = 77 }, AdoptReport{Flows: 2, Cells: 2}},
		{"unknown flag", func(i image) { i.r.flags = 2 }, AdoptReport{Flows: 2, Torn: 1, Cells: 2}},
		{"another tuple", func(i image) { i.r.ports[Forward]++ }, AdoptReport{Flows: 2, Torn: 1, Cells: 2}},
		{"cells swapped", func(i image) { *i.fc, *i.rc = *i.rc, *i.fc }, AdoptReport{Flows: 2, Torn: 1, Cells: 2}},
		{"cell twice", func(i image) { *i.t.vacant(i.t.hash(i.r.key(Forward)), nil) = *i.fc }, AdoptReport{Flows: 3, Cells: 1}},
		{"cell of no record", func(i image) { *i.t.vacant(1, nil) = 1<<40 | 99 }, AdoptReport{Flows: 3, Cells: 1}},
		{"cell of the header", func(i image) { *i.t.vacant(1, nil) = 1 << 40 }, AdoptReport{Flows: 3, Cells: 1}},
		{"a flow twice", func(i image) {
			dup := &i.t.records[20]
			*dup = *i.r
			fh, rh := i.t.hash(dup.key(Forward)), i.t.hash(dup.key(Reply))
			*i.t.vacant(fh, nil) = cellOf(fh, 20, Forward)
			*i.t.vacant(rh, nil) = cellOf(rh, 20, Reply)
		}, AdoptReport{Flows: 3, Torn: 1, Cells: 2}},
	} {
		tt.Run(c.name, func(tt *testing.T) {
			index, records := newImage(tt, 30)
			t := open(tt, index, records, Timeouts{})
			fill(tt, t, 3)
			i := image{t: t, r: &t.records[2]}
			for b := range t.buckets {
				for j := range t.buckets[b] {
					switch cell := &t.buckets[b][j]; *cell & (1<<33 - 1) {
					case 2:
						i.fc = cell
					case 2 | cellReply:
						i.rc = cell
					}
				}
			}
			c.harm(i)
			t, rep, err := Open(index, records, Timeouts{})
			if err != nil || rep != c.want {
				tt.Fatalf("%v, %v, want %v", rep, err, c.want)
			}
			check(tt, t)
			settle(t)
			f := flowN(1)
			if _, res := t.Insert(&f, 0); (res == Inserted) != (rep.Flows == 2) {
				tt.Errorf("the flow again: %v", res)
			}
			check(tt, t)
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	le := binary.LittleEndian
	seal := func(h []byte) { le.PutUint32(h[40:], crc32.Checksum(h[:40], castagnoli)) }
	for _, c := range []struct {
		name   string
		change func(index, records []byte) ([]byte, []byte)
		want   string
	}{
		{"never formatted", func(i, r []byte) ([]byte, []byte) { clear(r); return i, r }, "magic"},
		{"older version", func(i, r []byte) ([]byte, []byte) { r[8] = 2; seal(r); return i, r }, "version 2"},
		{"newer version", func(i, r []byte) ([]byte, []byte) { r[8] = 4; seal(r); return i, r }, "version 4"},
		{"seed changed", func(i, r []byte) ([]byte, []byte) { r[30] ^= 1; return i, r }, "checksum"},
		{"checksum changed", func(i, r []byte) ([]byte, []byte) { r[41] ^= 1; return i, r }, "checksum"},
		{"other record size", func(i, r []byte) ([]byte, []byte) { r[20] = 64; seal(r); return i, r }, "records of 64 bytes"},
		{"smaller index", func(i, r []byte) ([]byte, []byte) { return i[:len(i)/2], r }, "buckets"},
		{"more records", func(i, r []byte) ([]byte, []byte) { return i, append(r, make([]byte, 128)...) }, "records"},
		{"no index", func(i, r []byte) ([]byte, []byte) { return nil, r }, "index of 0 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			index, records := newImage(t, 100)
			index, records = c.change(index, records)
			was := slices.Clone(records)
			table, _, err := Open(index, records, Timeouts{})
			if err == nil || table != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if !slices.Equal(was, records) {
				t.Error("a refused image was changed")
			}
		})
	}
}

// survive opens an image of unknown content. If that works, it must be a table in order, and a usable one.
func survive(tt *testing.T, index, records []byte) (*Table, AdoptReport) {
	tt.Helper()
	t, rep, err := Open(index, records, Timeouts{})
	if err != nil {
		return nil, rep
	}
	check(tt, t)
	if n := len(flowsOf(t)); n != rep.Flows || n != t.Stats().Flows {
		tt.Fatalf("%d flows, reported %v", n, rep)
	}
	again, second, err := Open(index, records, Timeouts{})
	if err != nil || second != (AdoptReport{Flows: rep.Flows}) {
		tt.Fatalf("opened again: %v, %v, after %v", second, err, rep)
	}
	settle(again)
	for i := range uint32(50) {
		f := flowN(1000 + i)
		ref, res := again.Insert(&f, 0)
		if got := both(tt, again, f.forward()); res == Inserted && got != ref {
			tt.Fatalf("inserted %+v, found %+v", ref, got)
		}
	}
	again.Expire(1<<31, 1<<20)
	check(tt, again)
	return t, rep
}

// A thousand images with flipped bits, all but a few of them beyond the header.
func TestAdoptFlippedBits(tt *testing.T) {
	index, records := newImage(tt, 64)
	t := open(tt, index, records, Timeouts{})
	fill(tt, t, 48)
	for rec := uint32(1); rec < 9; rec++ {
		t.Remove(rec)
	}
	rng := newRand(7)
	opened, kept := 0, 0
	for n := range 1000 {
		i, r := slices.Clone(index), slices.Clone(records)
		from := RecordSize
		if n%10 == 0 {
			from = 0
		}
		for range 1 + rng.IntN(64) {
			if rng.IntN(2) == 0 {
				i[rng.IntN(len(i))] ^= 1 << rng.IntN(8)
			} else {
				r[from+rng.IntN(len(r)-from)] ^= 1 << rng.IntN(8)
			}
		}
		if t, rep := survive(tt, i, r); t != nil {
			opened++
			kept += rep.Flows
			if rep.Flows > 48 {
				tt.Fatalf("%v of 40 flows and 8 retired ones", rep)
			}
		}
	}
	if opened < 900 || kept < 10*opened {
		tt.Errorf("%d of 1000 opened with %d flows in all", opened, kept)
	}
}

// FuzzOpen lays arbitrary bytes over a table: index cells, records, header.
func FuzzOpen(f *testing.F) {
	f.Add([]byte{}, []byte{}, uint16(0), uint16(0))
	f.Add([]byte{1, 0, 0, 0, 2, 0, 0, 0}, []byte{2, 0, 0, 0}, uint16(64), uint16(128+108))
	f.Add([]byte{}, []byte{9}, uint16(0), uint16(8))
	f.Fuzz(func(tt *testing.T, cells, bytes []byte, at, from uint16) {
		index, records := newImage(tt, 16)
		fill(tt, open(tt, index, records, Timeouts{}), 12)
		copy(index[int(at)%len(index):], cells)
		copy(records[int(from)%len(records):], bytes)
		survive(tt, index, records)
	})
}
