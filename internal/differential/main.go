package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/dataplane"
	"github.com/sluice-net/sluice/internal/netlab"
)

// options are the flags.
type options struct {
	frames  int
	seed    uint64
	vectors string
	setting string
	flow    int64
	steps   string
	kind    string
	most    int
}

func main() {
	var o options
	flag.IntVar(&o.frames, "frames", 20000, "random frames in all, shared by the settings")
	flag.Uint64Var(&o.seed, "seed", 0, "seed of the random frames; 0 chooses one")
	flag.StringVar(&o.vectors, "vectors", "all", "play the vectors whose name contains this; all, or none")
	flag.StringVar(&o.setting, "setting", "all", "front/strict, front/liberal, alone/strict, alone/liberal, or all")
	flag.Int64Var(&o.flow, "flow", -1, "play only this flow of the seed, alone, and no vectors")
	flag.StringVar(&o.steps, "steps", "", "with -flow: send only these steps of it (1,2,5)")
	flag.StringVar(&o.kind, "kind", "native", "kind of the node's ports: native or steered")
	flag.IntVar(&o.most, "most", 5, "end a setting after so many differences")
	list := flag.Bool("explain", false, "print what is not compared and what is explained, and why")
	flag.Parse()
	if *list {
		explain(os.Stdout)
		return
	}
	if err := run(o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "differential:", err)
		os.Exit(1)
	}
}

// errDifferent ends a run that found differences, which are printed.
var errDifferent = errors.New("the kernel and Sluice differ")

// run is the whole comparison.
func run(o options, w io.Writer) error {
	if o.seed == 0 {
		o.seed = rand.Uint64()>>1 | 1
	}
	kind, err := dataplane.ParsePortKind(o.kind)
	if err != nil {
		return err
	}
	var chosen []setting
	for _, s := range settings {
		s.kind = kind
		if o.setting == "all" || o.setting == s.String() {
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no setting %q", o.setting)
	}
	// The thread ends with the goroutine, and takes its processor along.
	fmt.Fprintf(w, "seed %d\n", o.seed)
	done := make(chan error, 1)
	go func() {
		if err := pin(); err != nil {
			done <- err
			return
		}
		done <- play(o, chosen, w)
	}()
	return <-done
}

// play runs the chosen settings, one after the other.
func play(o options, chosen []setting, w io.Writer) error {
	var total tally
	total.explained = map[string]int{}
	vectors := map[string]bool{}
	for i, s := range chosen {
		start := time.Now()
		t, sluice, err := phase(o, s, i, len(chosen), vectors)
		if err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		fmt.Fprintf(w, "%-13s flows=%d valid=%d delivered=%d translated_by_sluice=%d vector_frames=%d explained=%d differences=%d in %v\n",
			s, t.flows, t.valid, t.delivered, sluice, t.sent-t.valid, sum64(t.explained), len(t.differences), time.Since(start).Round(100*time.Millisecond))
		total.merge(t)
		for i := range t.differences {
			j := &t.differences[i]
			report(w, j, o.again(j))
		}
	}
	for _, name := range slices.Sorted(keys(total.explained)) {
		fmt.Fprintf(w, "explained %6d %s\n", total.explained[name], name)
	}
	fmt.Fprintf(w, "differential: valid=%d vectors=%d explained=%d differences=%d\n",
		total.valid, len(vectors), sum64(total.explained), len(total.differences))
	if len(total.differences) > 0 {
		return errDifferent
	}
	return nil
}

// pin keeps the caller on one processor: what two threads send on two of them overtakes itself in the kernel.
func pin() error {
	runtime.LockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return fmt.Errorf("asking for processors: %w", err)
	}
	for cpu := range 1024 {
		if all.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("choosing a processor: %w", err)
	}
	return nil
}

// phase plays one setting's share.
func phase(o options, s setting, i, n int, vectors map[string]bool) (t *tally, translated uint64, err error) {
	tb := netlab.NewStand("differential", netlab.ToStderr)
	defer func() { err = errors.Join(err, tb.Clear()) }()
	t = &tally{explained: map[string]int{}, most: o.most}
	err = tb.Run(func() error {
		d, err := newDuel(tb, s)
		if err != nil {
			return err
		}
		err = d.share(o, i, n, t, vectors)
		err = errors.Join(err, d.close())
		translated = d.translated()
		if d.givenUp > 0 {
			t.explained[fragmentsGivenUp.name] += d.givenUp
		}
		return err
	})
	if err == nil && o.flow < 0 && len(t.differences) == 0 && t.valid > 1000 {
		// Equality of nothing, or of the kernel with itself, proves nothing.
		if t.delivered*10 < t.valid*8 {
			err = fmt.Errorf("only %d of %d valid frames were delivered", t.delivered, t.valid)
		} else if translated*10 < uint64(t.valid)*8 {
			err = fmt.Errorf("of %d valid frames Sluice translated only %d", t.valid, translated)
		}
	}
	return t, translated, err
}

// share is what one of n duels plays.
func (d *duel) share(o options, i, n int, t *tally, vectors map[string]bool) error {
	if o.flow >= 0 {
		c := newConversation(d.kernel, o.seed, uint64(o.flow))
		if o.steps != "" {
			c.skip = func(i int) bool { return !slices.Contains(strings.Split(o.steps, ","), strconv.Itoa(i)) }
		}
		return d.one(c, t)
	}
	var numbers []int
	for number, v := range allVectors() {
		if o.vectors == "all" || strings.Contains(v.full(), o.vectors) {
			vectors[v.full()] = true
			numbers = append(numbers, number)
		}
	}
	if err := d.vectors(numbers, t); err != nil || t.enough() {
		return err
	}
	return d.random(o.seed, uint64(i)<<32, o.frames/n, t)
}

// translated is how many frames Sluice has translated, markers apart.
func (d *duel) translated() uint64 {
	return d.sluice.stats.Verdict(dataplane.Translated) - uint64(d.round-1)*marksTranslated - marksTranslated/2
}

// again is the command that plays a difference again, alone.
func (o options) again(j *judged) string {
	c := "go run ./internal/differential -setting " + j.setting.String()
	if o.kind != "native" {
		c += " -kind " + o.kind
	}
	if v, ok := j.script.(*vectorScript); ok {
		return c + fmt.Sprintf(" -frames 0 -vectors %q", v.full())
	}
	return c + fmt.Sprintf(" -seed %d %s", o.seed, j.script.repro())
}

func (t *tally) merge(u *tally) {
	t.flows += u.flows
	t.valid += u.valid
	t.sent += u.sent
	t.delivered += u.delivered
	for k, n := range u.explained {
		t.explained[k] += n
	}
	t.differences = append(t.differences, u.differences...)
}

func sum64(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

func keys[K cmp.Ordered, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
