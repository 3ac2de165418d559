package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-net/sluice/dataplane"
	"github.com/sluice-net/sluice/internal/netlab"
)

// Options of a demo.
type Options struct {
	Serve Serve // the daemon
	// Exchanges is how many there are of each kind: a protocol over a family.
	Exchanges int
	// Hold keeps everything up, when all has been shown, until the context ends.
	Hold bool
	// Out takes what a person reads; its last line is the result.
	Out    io.Writer
	Colour bool
	// Log takes what goes wrong, and what the daemon logs.
	Log *slog.Logger
}

// result is the last line.
type result struct {
	tcp, udp, families, backends                               int
	wrongSource, errors, badChecksums, leakedFrames, leftovers int
}

func (r *result) String() string {
	return fmt.Sprintf("demo: tcp=%d udp=%d families=%d backends=%d wrong_source=%d errors=%d bad_checksums=%d leaked_frames=%d leftovers=%d",
		r.tcp, r.udp, r.families, r.backends, r.wrongSource, r.errors, r.badChecksums, r.leakedFrames, r.leftovers)
}

// good says whether all is as it has to be.
func (r *result) good(exchanges, backends int) bool {
	return *r == result{tcp: exchanges * len(netlab.Families), udp: exchanges * len(netlab.Families), families: len(netlab.Families), backends: backends}
}

// run is one demo under way.
type run struct {
	Options
	log      *slog.Logger
	out      *printer
	stand    *netlab.Stand
	dir      string // of manifests and locks
	lab      *lab
	daemon   *daemon
	watchers []*watcher
	good     map[kind]int // exchanges

	mu     sync.Mutex
	errors int
}

// shownErrors is how many errors are logged; all are counted.
const shownErrors = 10

// fail counts an error. Any goroutine.
func (r *run) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.errors++; r.errors <= shownErrors {
		r.log.Error("went wrong", "err", err)
	}
}

// Run shows everything and is nil if all of it was as it has to be. It leaves
// nothing behind, also if ctx ends it.
func Run(ctx context.Context, o Options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("demo needs root, for network namespaces and BPF: run it as root")
	}
	r := &run{Options: o, log: o.Log, out: &printer{o.Out, o.Colour}, stand: netlab.NewStand("demo", func(line string) { o.Log.Warn(line) }), good: map[kind]int{}}
	before := belongings()
	var res result
	err = r.stand.Run(func() error { return r.show(ctx, &res) })
	err = errors.Join(err, r.stand.Clear())
	if _, gone := os.Stat(r.dir); r.dir != "" && gone == nil {
		res.leftovers++
		r.log.Error("left behind", "what", r.dir)
	}
	for _, is := range without(belongings(), before) {
		res.leftovers++
		r.log.Error("left behind", "what", is)
	}
	if err != nil {
		if ctx.Err() != nil {
			return errors.New("demo was interrupted, and has cleaned up")
		}
		return err
	}
	r.out.blank()
	r.out.line("%s", &res)
	if !res.good(o.Exchanges, len(r.lab.backends)) {
		return errors.New("demo has shown that something is wrong: see its last line")
	}
	return nil
}

// show does everything between the first and the last account.
func (r *run) show(ctx context.Context, res *result) (err error) {
	netlab.RequireRoot(r.stand)
	if r.dir, err = os.MkdirTemp("", "sluice-demo-"); err != nil {
		return err
	}
	r.stand.Cleanup(func() {
		if err := os.RemoveAll(r.dir); err != nil {
			r.log.Warn("removing the demo's folder", "err", err)
		}
	})

	r.lab = newLab(r.stand)
	r.out.title("A node, in network namespaces")
	r.lab.draw(r.out)
	states := make(map[*netlab.Namespace]netlab.State)
	for _, n := range r.lab.namespaces() {
		states[n] = n.State()
	}
	if err := ctx.Err(); err != nil {
		return err
	}

	if r.daemon, err = start(r.lab, r.dir, r.Serve, r.log); err != nil {
		return err
	}
	// If all goes well it has ended before.
	r.stand.Cleanup(func() {
		if err := r.daemon.end(); err != nil {
			r.log.Warn("ending the daemon", "err", err)
		}
	})
	r.daemon.attachment(r.out)
	r.look()

	if err := r.paths(ctx); err != nil {
		return err
	}
	if err := r.traffic(ctx, r.Exchanges); err != nil {
		return err
	}
	res.backends = r.backendsUsed()
	if err := r.edit(ctx); err != nil {
		return err
	}
	if r.Hold {
		r.hold(ctx)
	}

	// The end, and the accounts.
	r.quiet()
	watched, atClient := r.looked()
	if err := r.daemon.end(); err != nil {
		r.fail(fmt.Errorf("the daemon: %w", err))
	}
	for _, err := range r.daemon.accounts(r.out) {
		r.fail(err)
	}
	seen, wrong := r.wrongPeers()
	r.out.title("What the ends saw")
	r.out.line("  the servers: %d peers, %d of them another than client0", seen, wrong)
	r.out.line("  the client's eth0: %d frames, %d of them not from a ClusterIP", atClient.Arrived, atClient.WrongSource)
	r.out.line("  the backends' eth0: %d frames, %d of them not from client0", watched.Arrived-atClient.Arrived, watched.WrongSource-atClient.WrongSource)
	r.out.line("  checksums: %d complete ones verified, %d partial ones (left to a device) verified, %d wrong",
		watched.Arrived-watched.Partial, watched.Partial, watched.Bad)
	res.wrongSource = wrong + watched.WrongSource
	res.badChecksums = watched.Bad
	res.leakedFrames = r.daemon.leaked
	res.leftovers = r.changes(states)
	if n := r.daemon.stats.Verdict(dataplane.Translated); n != uint64(watched.Arrived) {
		r.fail(fmt.Errorf("%d frames were translated, but %d arrived", n, watched.Arrived))
	}
	if watched.Lost > 0 {
		r.fail(fmt.Errorf("the captures lost %d frames, whose checksums nobody has seen", watched.Lost))
	}
	for _, k := range kinds() {
		if k.network == "tcp" {
			res.tcp += r.good[k]
		} else {
			res.udp += r.good[k]
		}
	}
	for _, f := range netlab.Families {
		if !slices.ContainsFunc(kinds(), func(k kind) bool { return k.family == f && r.good[k] < r.Exchanges }) {
			res.families++
		}
	}
	res.errors = r.errors
	return nil
}

// quiet waits until no frame is under way any more.
func (r *run) quiet() {
	last := uint64(0)
	for range 50 {
		received := r.daemon.dataplane.Stats().Received
		if received == last {
			return
		}
		last = received
		time.Sleep(100 * time.Millisecond) // twice a sleeping worker's beat
	}
}

// look begins to watch every pod.
func (r *run) look() {
	client := r.lab.client
	ofService := func(a netip.Addr) bool {
		return slices.ContainsFunc(kinds(), func(k kind) bool { return k.addr(k.family) == a })
	}
	ofClient := func(a netip.Addr) bool { return a == client.IP4 || a == client.IP6 }
	r.watchers = append(r.watchers, watch(client.HostDevice, client.Namespace, ofService))
	for _, b := range r.lab.backends {
		r.watchers = append(r.watchers, watch(b.label, b.Namespace, ofClient))
	}
}

// looked ends that and gives the sums, and those of the client.
func (r *run) looked() (sum, client watchCounts) {
	for i, w := range r.watchers {
		c, problems := w.close()
		if i == 0 {
			client = c
		}
		sum.Arrived += c.Arrived
		sum.Partial += c.Partial
		sum.Bad += c.Bad
		sum.WrongSource += c.WrongSource
		sum.Lost += c.Lost
		for _, err := range problems {
			r.log.Error("seen in a capture", "err", err)
		}
	}
	return sum, client
}

// changes is the number of settings that are not as they were, anywhere in the lab.
func (r *run) changes(before map[*netlab.Namespace]netlab.State) (n int) {
	for _, ns := range r.lab.namespaces() {
		for line := range strings.Lines(netlab.Diff(before[ns], ns.State())) {
			n++
			r.log.Error("left behind", "namespace", ns.Name(), "what", strings.TrimSpace(line))
		}
	}
	return n
}

// hold tells how to look into the lab, and waits.
func (r *run) hold(ctx context.Context) {
	enter := func(n *netlab.Namespace) string {
		return fmt.Sprintf("nsenter --net=/proc/%d/fd/%d", os.Getpid(), n.FD())
	}
	p := r.out
	p.title("All of it stays up until Ctrl-C. In another terminal:")
	p.line("  # ask a Service, as the client")
	p.line("  %s bash -c 'exec 3<>/dev/tcp/%s/%d; echo hello >&3; head -1 <&3'", enter(r.lab.client.Namespace), protos[0].addr(netlab.IPv4), protos[0].port)
	p.line("  # what the daemon counts, and what the node looks like")
	p.line("  %s curl -s http://127.0.0.1:10349/metrics", enter(r.lab.Node))
	p.line("  %s ip -details address", enter(r.lab.Node))
	p.line("  # the manifests: edit them")
	p.line("  ls %s/manifests", r.dir)
	<-ctx.Done()
}

// without is list less the lines of known, each as often as it is there.
func without(list, known []string) []string {
	rest := map[string]int{}
	for _, k := range known {
		rest[k]++
	}
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool {
		if rest[s] == 0 {
			return false
		}
		rest[s]--
		return true
	})
}
