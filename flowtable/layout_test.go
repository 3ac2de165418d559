package flowtable

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"
)

func TestGeometry(t *testing.T) {
	for _, c := range []struct{ capacity, buckets, records int }{
		{-1, 2, 2}, {0, 2, 2}, {1, 2, 2}, {4, 2, 5}, {5, 3, 6}, {7, 4, 8}, {8, 4, 10}, {9, 5, 11}, {16, 8, 19},
		{65536, 32768, 73729}, {131072, 65536, 147457}, {1_000_000, 500_000, 1_125_001},
		{MaxCapacity, MaxCapacity / 2, maxRecords}, {MaxCapacity + 1, MaxCapacity / 2, maxRecords},
	} {
		buckets, records := Geometry(c.capacity)
		if buckets != c.buckets || records != c.records {
			t.Errorf("Geometry(%d) = %d, %d, want %d, %d", c.capacity, buckets, records, c.buckets, c.records)
		}
		flows := min(max(c.capacity, 1), MaxCapacity)
		if 2*flows > buckets*bucketCells/2 {
			t.Errorf("Geometry(%d): %d cells of %d when full, want at most half", c.capacity, 2*flows, buckets*bucketCells)
		}
		if got := records - 1 - reserveOf(records-1); got != flows {
			t.Errorf("Geometry(%d): %d records less the reserve are %d", c.capacity, records-1, got)
		}
	}
}

// A flow's bytes as another language sees them.
func TestRecordBytes(tt *testing.T) {
	index, records := newImage(tt, 4)
	t := open(tt, index, records, Timeouts{})
	f := Flow{
		Client: pod(1), Frontend: clusterIP(2), Backend: pod(3), Source: pod(4),
		ClientPort: 0x1122, FrontendPort: 0x3344, BackendPort: 0x5566, SourcePort: 0x7788, Proto: protoTCP,
		Generation: 0xa1a2a3a4, ForwardAdj: 0xb1b2b3b4, ReplyAdj: 0xc1c2c3c4,
	}
	ref, res := t.Insert(&f, 0xd1d2d3d4)
	if res != Inserted {
		tt.Fatal(res)
	}
	t.Touch(ref.Record, Forward, 0xe1e2e3e4, 0)
	t.Touch(ref.Record, Forward, 0xe1e2e3e4, 0)
	t.Touch(ref.Record, Reply, 0xf1f2f3f4, tcpSYN|tcpACK)

	le := binary.LittleEndian
	want := make([]byte, RecordSize)
	copy(want[0:], f.Client[:])
	copy(want[16:], f.Frontend[:])
	copy(want[32:], f.Backend[:])
	copy(want[48:], []byte{0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88})
	want[56], want[57] = 6, 1
	copy(want[64:], f.Source[:])
	le.PutUint32(want[80:], f.Generation)
	le.PutUint32(want[84:], 0xd1d2d3d4)
	le.PutUint32(want[88:], f.ForwardAdj)
	le.PutUint32(want[92:], f.ReplyAdj)
	le.PutUint32(want[96:], 0xe1e2e3e4)
	le.PutUint32(want[100:], 0xf1f2f3f4)
	le.PutUint32(want[104:], 1)
	le.PutUint32(want[108:], 1)
	le.PutUint64(want[112:], 2)
	le.PutUint64(want[120:], 1)
	if got := records[int(ref.Record)*RecordSize:][:RecordSize]; !bytes.Equal(got, want) {
		tt.Errorf("record:\n% x\nwant:\n% x", got, want)
	}

	// The cells, computed from the contract's words alone.
	cells := map[uint64]int{}
	for i := 0; i < len(index); i += 8 {
		if c := le.Uint64(index[i:]); c != 0 {
			cells[c] = i / BucketSize
		}
	}
	n := uint64(len(index) / BucketSize)
	fwd, rep := f.forward(), f.reply()
	for d, k := range []*Tuple{&fwd, &rep} {
		h := hashSlow(testSeed, k)
		b1 := h << 32 >> 32 * n >> 32
		b2 := (b1 + 1 + h>>32*(n-1)>>32) % n
		tag := (h * 0x9E3779B97F4A7C15) >> 33
		b, ok := cells[tag<<33|uint64(d)<<32|uint64(ref.Record)]
		if !ok || uint64(b) != b1 && uint64(b) != b2 {
			tt.Errorf("direction %d: cell in bucket %d (%v), want %d or %d; cells %#x", d, b, ok, b1, b2, cells)
		}
	}
	if len(cells) != 2 {
		tt.Errorf("%d cells, want 2", len(cells))
	}
}

func TestHeaderBytes(t *testing.T) {
	_, records := newImage(t, 100)
	h := records[:RecordSize]
	le := binary.LittleEndian
	if got := string(h[:8]); got != "sluiceFT" {
		t.Errorf("magic %q", got)
	}
	for _, c := range []struct {
		off  int
		want uint32
	}{{8, 3}, {12, 50}, {16, 113}, {20, 128}, {40, crc32.Checksum(h[:40], crc32.MakeTable(crc32.Castagnoli))}} {
		if got := le.Uint32(h[c.off:]); got != c.want {
			t.Errorf("offset %d: %#x, want %#x", c.off, got, c.want)
		}
	}
	if s := [2]uint64{le.Uint64(h[24:]), le.Uint64(h[32:])}; s != testSeed {
		t.Errorf("seed %#x", s)
	}
	if !bytes.Equal(h[44:], make([]byte, 84)) {
		t.Errorf("rest of the header is not zero: % x", h[44:])
	}
}

func TestFormatRefuses(t *testing.T) {
	for _, c := range []struct {
		name           string
		index, records []byte
		want           string
	}{
		{"no index", nil, make([]byte, 256), "index of 0 bytes"},
		{"one bucket", make([]byte, 64), make([]byte, 256), "index of 64 bytes"},
		{"half a bucket", make([]byte, 160), make([]byte, 256), "index of 160 bytes"},
		{"no record", make([]byte, 128), make([]byte, 128), "records of 128 bytes"},
		{"half a record", make([]byte, 128), make([]byte, 320), "records of 320 bytes"},
		{"crooked", make([]byte, 192)[4:132], make([]byte, 256), "not aligned"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := Format(c.index, c.records, testSeed); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Format: %v, want %q", err, c.want)
			}
		})
	}
}

func TestFormatEmptiesWhatWasThere(tt *testing.T) {
	index, records := newImage(tt, 64)
	fill(tt, open(tt, index, records, Timeouts{}), 64)
	if err := Format(index, records, testSeed); err != nil {
		tt.Fatal(err)
	}
	t, rep, err := Open(index, records, Timeouts{})
	if err != nil || rep != (AdoptReport{}) {
		tt.Fatalf("%v, %v", rep, err)
	}
	check(tt, t)
}
