//go:build linux

package flowtable

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A daemon is killed while it inserts and removes. Its table lies in memory that it shares, as in life; so does a
// journal with a byte for each flow, which says what was begun and what was reported done. What was reported is there, or
// gone, after the next daemon has opened the table.

const (
	crashCapacity = 512
	crashWorkers  = 2
	crashFlows    = 1024 // of each worker: more than fit, so that records are used again

	// Both workers' flows are twice as many as the table has room for, and half of them are in it at most.
	crashLimit = crashCapacity / crashWorkers * 3 / 4
)

// What the journal says of a flow.
const (
	journalOut = iota
	journalInserting
	journalIn
	journalRemoving
)

// TestMain lets this program be the daemon that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SLUICE_CRASH_DIR"); dir != "" {
		crashChild(dir)
	}
	os.Exit(m.Run())
}

// A crashImage is the memory that outlives the daemon.
type crashImage struct{ index, records, journal []byte }

func mapCrashImage(dir string, create bool) (*crashImage, error) {
	buckets, records := Geometry(crashCapacity)
	var i crashImage
	for _, f := range []struct {
		name string
		size int
		to   *[]byte
	}{{"index", buckets * BucketSize, &i.index}, {"records", records * RecordSize, &i.records}, {"journal", crashWorkers*crashFlows + 8, &i.journal}} {
		flags := os.O_RDWR
		if create {
			flags |= os.O_CREATE | os.O_EXCL
		}
		file, err := os.OpenFile(filepath.Join(dir, f.name), flags, 0o600)
		if err != nil {
			return nil, err
		}
		if create {
			err = file.Truncate(int64(f.size))
		}
		if err == nil {
			*f.to, err = syscall.Mmap(int(file.Fd()), 0, f.size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
		}
		file.Close()
		if err != nil {
			return nil, err
		}
	}
	return &i, nil
}

func (i *crashImage) unmap() {
	for _, b := range [][]byte{i.index, i.records, i.journal} {
		_ = syscall.Munmap(b)
	}
}

// crashFlow is the n-th flow of a worker. Every third has a source of its own, as a hairpin has.
func crashFlow(worker, n int) Flow {
	f := flowN(uint32(worker*crashFlows + n))
	if n%3 == 0 {
		f.Source = clusterIP(999)
		f.SourcePort = uint16(1 + worker*crashFlows + n)
	}
	return f
}

// crashChild inserts and removes until it is killed.
func crashChild(dir string) {
	fail := func(why ...any) {
		fmt.Fprintln(os.Stderr, why...)
		os.Exit(1)
	}
	image, err := mapCrashImage(dir, false)
	if err != nil {
		fail(err)
	}
	t, _, err := Open(image.index, image.records, Timeouts{})
	if err != nil {
		fail(err)
	}
	ws := make([]worker, crashWorkers)
	for w := range crashWorkers {
		go func() {
			journal := image.journal[w*crashFlows:][:crashFlows]
			rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(w)))
			recs := make([]uint32, crashFlows)
			in := 0
			for n := range journal { // what the daemon before left
				if journal[n] == journalIn {
					f := crashFlow(w, n)
					k := f.forward()
					if recs[n] = t.Lookup(&k).Record; recs[n] == 0 {
						fail("flow", n, "of worker", w, "is lost")
					}
					in++
				}
			}
			for turn := 1; ; turn++ {
				n := rng.IntN(crashFlows)
				switch {
				case journal[n] == journalIn:
					journal[n] = journalRemoving
					if !t.Remove(recs[n]) {
						fail("flow", n, "of worker", w, "cannot be removed")
					}
					journal[n] = journalOut
					in--
				case in < crashLimit:
					f := crashFlow(w, n)
					journal[n] = journalInserting
					ref, res := t.Insert(&f, 0)
					if res == Full { // limbo is where the room is
						journal[n] = journalOut
						turn = 0
						break
					}
					if res != Inserted {
						fail("flow", n, "of worker", w, res)
					}
					recs[n] = ref.Record
					journal[n] = journalIn
					in++
				}
				if turn%16 == 0 { // a batch; the housekeeper needs the CPU too
					ws[w].boundary()
					runtime.Gosched()
				}
			}
		}()
	}
	// The first byte after the flows' says that the daemon works.
	image.journal[crashWorkers*crashFlows] = 1
	for {
		b := t.Limbo()
		grace(ws)
		t.Reclaim(b)
		runtime.Gosched()
	}
}

func TestKill(tt *testing.T) {
	const kills = 100
	dir := "/dev/shm"
	if _, err := os.Stat(dir); err != nil {
		dir = ""
	}
	dir, err := os.MkdirTemp(dir, "flowtable")
	if err != nil {
		tt.Fatal(err)
	}
	defer os.RemoveAll(dir)
	image, err := mapCrashImage(dir, true)
	if err != nil {
		tt.Fatal(err)
	}
	defer image.unmap()
	if err := Format(image.index, image.records, testSeed); err != nil {
		tt.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		tt.Fatal(err)
	}
	rng := newRand(uint64(time.Now().UnixNano()))
	began := &image.journal[crashWorkers*crashFlows]
	var sum AdoptReport
	begun, lost := 0, 0
	for i := range kills {
		*began = 0
		child := exec.Command(self)
		child.Env = append(os.Environ(), "SLUICE_CRASH_DIR="+dir)
		var stderr strings.Builder
		child.Stderr = &stderr
		if err := child.Start(); err != nil {
			tt.Fatal(err)
		}
		ended := make(chan error, 1)
		var reaped sync.Once
		kill := func() (err error) {
			reaped.Do(func() {
				_ = child.Process.Kill()
				err = <-ended
			})
			return err
		}
		go func() { ended <- child.Wait() }()
		for wait := 0; !startedBy(began) && wait < 20_000; wait++ {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(rng.IntN(8_000)) * time.Microsecond)
		if err := kill(); err == nil || !strings.Contains(err.Error(), "killed") || *began == 0 {
			tt.Fatalf("run %d: the daemon ended by itself: %v\n%s", i, err, stderr.String())
		}

		t, rep, err := Open(image.index, image.records, Timeouts{})
		if err != nil {
			tt.Fatalf("run %d: %v", i, err)
		}
		check(tt, t)
		sum.Torn += rep.Torn
		sum.Cells += rep.Cells
		sum.Flows += rep.Flows
		open, there := 0, 0
		for w := range crashWorkers {
			for n := range crashFlows {
				f := crashFlow(w, n)
				fwd, reply := both(tt, t, f.forward()), both(tt, t, f.reply())
				if fwd.Record != reply.Record {
					tt.Fatalf("run %d: worker %d, flow %d is in record %d one way and in %d the other", i, w, n, fwd.Record, reply.Record)
				}
				in := fwd.Record != 0
				if in {
					there++
					var got Flow
					if t.Flow(fwd.Record, &got); got != normal(f) {
						tt.Fatalf("run %d: worker %d, flow %d: %+v", i, w, n, got)
					}
				}
				said := &image.journal[w*crashFlows+n]
				switch {
				case *said == journalIn && !in:
					tt.Fatalf("run %d: worker %d, flow %d was inserted and is lost", i, w, n)
				case *said == journalOut && in:
					tt.Fatalf("run %d: worker %d, flow %d was removed and is there", i, w, n)
				case *said == journalInserting || *said == journalRemoving:
					open++
					if *said == journalInserting && !in {
						lost++
					}
				}
				if *said = journalOut; in {
					*said = journalIn
				}
			}
		}
		if there != rep.Flows || open > crashWorkers {
			tt.Fatalf("run %d: %d flows, adopted %v; %d operations were under way", i, there, rep, open)
		}
		begun += open
	}
	tt.Logf("%d kills: %d operations were under way, of which %d inserts were lost; %d flows adopted, %d torn, %d stray cells",
		kills, begun, lost, sum.Flows, sum.Torn, sum.Cells)
	if begun == 0 || sum.Flows < kills {
		tt.Error("the daemons did nothing")
	}
}

// startedBy reads the byte that another process writes.
//
//go:noinline
func startedBy(b *byte) bool { return *b != 0 }

// Every single bit of an image, flipped alone: a table in order is opened, and at most the one flow that the bit
// belongs to is lost.
func TestAdoptEveryBit(tt *testing.T) {
	index, records := newImage(tt, 6)
	t := open(tt, index, records, Timeouts{})
	fill(tt, t, 4)
	t.Remove(2)
	was := flowsOf(t)
	step := 1
	if raceEnabled || testing.Short() {
		step = 7
	}
	refused, kept, changed := 0, 0, 0
	for n := 0; n < 8*(len(index)+len(records)); n += step {
		i, r := slices.Clone(index), slices.Clone(records)
		if n < 8*len(index) {
			i[n/8] ^= 1 << (n % 8)
		} else {
			r[n/8-len(index)] ^= 1 << (n % 8)
		}
		t, _, err := Open(slices.Clone(i), slices.Clone(r), Timeouts{})
		if s, _ := survive(tt, i, r); (s == nil) != (err != nil) {
			tt.Fatal("opened once, and not again")
		}
		header := n - 8*len(index)
		if covered := header >= 0 && header < 8*(HeaderChecksum+4); covered != (t == nil) {
			tt.Fatalf("bit %d: refused is %v", n, t == nil)
		}
		if t == nil {
			refused++
			continue
		}
		same := 0
		for k, e := range flowsOf(t) {
			if e == was[k] {
				same++
			}
		}
		if same < len(was)-1 {
			tt.Fatalf("bit %d: %d of %d flows are as they were", n, same, len(was))
		}
		if same == len(was) {
			kept++
		} else {
			changed++
		}
	}
	tt.Logf("%d bits: refused %d, harmless %d, cost a flow %d", refused+kept+changed, refused, kept, changed)
	if changed == 0 || kept == 0 || refused == 0 {
		tt.Error("too easy")
	}
}
