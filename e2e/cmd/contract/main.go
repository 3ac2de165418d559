// Command contract holds a dataplane to what kube-proxy does: random histories of Services and EndpointSlices, the same for all
// from one real API server, and after each step the same questions. See docs/contract.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-net/sluice/e2e/kube"
	"github.com/sluice-net/sluice/e2e/stand"
	"github.com/sluice-net/sluice/internal/netlab"
)

type options struct {
	seed      uint64
	histories int
	steps     int
	probes    int
	judges    string
	mode      string
	bin       string
	keep      bool
	verbose   bool
}

func main() {
	var o options
	flag.Uint64Var(&o.seed, "seed", 0, "the first history's `seed`; 0: from the clock")
	flag.IntVar(&o.histories, "histories", 8, "how many `histories`, each with the next seed")
	flag.IntVar(&o.steps, "steps", 12, "`steps` of a history")
	flag.IntVar(&o.probes, "probes", 40, "`pairs` of client and frontend that are asked after a step")
	flag.StringVar(&o.judges, "judges", "nftables,iptables", "kube-proxy's `modes` to compare with")
	flag.StringVar(&o.mode, "dataplane", "front", "what is held to the contract: front, alone, nftables, iptables")
	flag.StringVar(&o.bin, "bin", "../bin", "`folder` with sluice, and with kube/ below it")
	flag.BoolVar(&o.keep, "keep-logs", false, "leave the folder of logs behind, and name it")
	flag.BoolVar(&o.verbose, "v", false, "print every step")
	flag.Parse()
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano()) % 1e9
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()

	owner := netlab.NewStand("e2e", netlab.ToStderr)
	r := &run{o: o, explained: map[string]int{}}
	err := owner.Run(func() error {
		netlab.RequireRoot(owner)
		defer r.close()
		if err := r.start(ctx, owner); err != nil {
			return err
		}
		return r.all(ctx)
	})
	if cerr := owner.Clear(); err == nil {
		err = cerr
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "contract:", err)
	}
	total := 0
	for _, name := range sortedKeys(r.explained) {
		total += r.explained[name]
		fmt.Printf("explained %6d  %s\n", r.explained[name], name)
	}
	fmt.Printf("contract: dataplane=%s judges=%s seed=%d histories=%d steps=%d probes=%d explained=%d differences=%d\n",
		o.mode, o.judges, o.seed, r.histories, r.steps, r.probes, total, r.differences)
	if err != nil || r.differences > 0 || r.histories == 0 {
		os.Exit(1)
	}
}

// run is one run of the command.
type run struct {
	o       options
	dir     string
	control *kube.ControlPlane
	world   *world
	sides   []*side // the judges, and at last what is judged

	again                                 sync.Mutex // held by who asks a second time
	mu                                    sync.Mutex
	histories, steps, probes, differences int
	explained                             map[string]int
}

func (r *run) close() {
	for _, s := range r.sides {
		s.close()
	}
	if r.control != nil {
		r.control.Close()
	}
}

func (r *run) start(ctx context.Context, owner *netlab.Stand) error {
	if r.o.mode == "named" {
		return errors.New("-dataplane named: kube-proxy does not see what it serves, so there is nothing to compare it with; alone takes the same paths")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	bin, err := filepath.Abs(r.o.bin)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sluice-contract-")
	if err != nil {
		return err
	}
	r.dir = dir
	if r.o.keep {
		fmt.Println("logs are in", dir)
	} else {
		owner.Cleanup(func() { os.RemoveAll(dir) })
	}
	control := netlab.New(owner).Namespace("control")
	control.Addr("lo", netlab.NodeAddr(netlab.IPv4, 9).String()+"/32")
	r.control, err = kube.Start(ctx, kube.Options{
		Bin: filepath.Join(bin, "kube"), Dir: dir, Namespace: control, Advertise: netlab.NodeAddr(netlab.IPv4, 9),
		Services4: netlab.ClusterIPPrefix4, Services6: netlab.ClusterIPPrefix6, Bare: true,
	})
	if err != nil {
		return err
	}
	client, err := r.control.Client()
	if err != nil {
		return err
	}
	r.world = &world{
		client:   client,
		services: map[string]*corev1.Service{}, slices: map[string]*discoveryv1.EndpointSlice{},
	}
	for i, name := range []string{stand.Node1, stand.Node2} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelTopologyZone: []string{zone1, "zone-b"}[i],
		}}}
		if node, err = client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
			return err
		}
		for _, f := range netlab.Families {
			node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: netlab.NodeAddr(f, i+1).String()})
		}
		if _, err = client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	if err := r.world.tick(ctx); err != nil {
		return err
	}
	for _, mode := range append(strings.Split(r.o.judges, ","), r.o.mode) {
		s := &side{mode: mode}
		r.sides = append(r.sides, s)
		if err := s.start(ctx, owner, r.control, bin, dir); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) all(ctx context.Context) error {
	for i := range r.o.histories {
		h := newHistory(r.o.seed+uint64(i), r.o.steps)
		began := time.Now()
		found, err := r.history(ctx, h, nil)
		if err != nil {
			return fmt.Errorf("history %d: %w", h.seed, err)
		}
		r.histories++
		fmt.Printf("history seed=%d steps=%d differences=%d %.1fs\n", h.seed, len(h.steps), len(found), time.Since(began).Seconds())
		if len(found) > 0 {
			r.differences += len(found)
			for _, d := range found {
				fmt.Println(d)
			}
			if r.o.keep {
				r.dump(h.seed)
			}
			if err := r.minimise(ctx, h, found[0]); err != nil {
				return err
			}
		}
	}
	return nil
}

// difference is what was not explained.
type difference struct {
	step   int
	client int
	at     frontend
	text   string
}

func (d difference) String() string { return fmt.Sprintf("DIFFERENCE step %d: %s", d.step, d.text) }

// history plays one and returns what differed. With focus only that pair is asked, after every step.
func (r *run) history(ctx context.Context, h history, focus *difference) (found []difference, err error) {
	if err := r.world.clear(ctx); err != nil {
		return nil, err
	}
	flows := newFlows(r)
	defer flows.close()
	random := rand.New(rand.NewPCG(h.seed, 6))
	known := frontends{}
	for _, f := range netlab.Families {
		known[frontend{to: netip.AddrPortFrom(netlab.ClusterIP(f, 3000), 80), proto: "tcp"}] = true
		known[frontend{to: netip.AddrPortFrom(netlab.ClusterIP(f, 3000), 80), proto: "udp"}] = true
	}
	for i, step := range h.steps {
		touched := frontends{}
		for _, o := range step {
			if r.o.verbose {
				fmt.Printf("  step %d: %s\n", i, o)
			}
			name := ""
			if o.service != nil {
				known.add(o.service)
				touched.add(o.service)
				name = o.service.Name
			} else {
				name = o.slice.Labels[discoveryv1.LabelServiceName]
			}
			if s := r.world.services[name]; s != nil {
				touched.add(s)
			}
			if err := r.world.apply(ctx, o); err != nil {
				return found, fmt.Errorf("step %d: %s: %w", i, o, err)
			}
		}
		began := time.Now()
		if err := r.sync(ctx); err != nil {
			return found, fmt.Errorf("step %d: %w", i, err)
		}
		synced := time.Since(began)
		pairs := choose(random, known, touched, len(r.sides[0].clients), r.o.probes)
		if focus != nil {
			pairs = []pair{{focus.client, frontend{to: focus.at.to, proto: focus.at.proto}}}
		}
		found = append(found, r.ask(ctx, i, pairs, flows)...)
		if r.o.verbose {
			fmt.Printf("  step %d: synced in %.2f s, asked in %.2f s\n", i, synced.Seconds(), (time.Since(began) - synced).Seconds())
		}
		if ctx.Err() != nil {
			return found, ctx.Err()
		}
		r.steps++
		if len(found) > 0 {
			break // what follows may only be its consequence
		}
	}
	return found, nil
}

// sync waits until every side has got what the API server has.
func (r *run) sync(ctx context.Context) error {
	if err := r.world.tick(ctx); err != nil {
		return err
	}
	errs := make([]error, len(r.sides))
	var wg sync.WaitGroup
	for i, s := range r.sides {
		wg.Go(func() {
			errs[i] = r.world.settle(ctx, s)
			if err := s.dataplane.Ended(); err != nil {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// pair is a client and the frontend that it asks.
type pair struct {
	client int
	at     frontend
}

// choose takes those that a step has touched first, and then others.
func choose(random *rand.Rand, known, touched frontends, clients, n int) (out []pair) {
	list := func(fs frontends) (all []pair) {
		var keys []frontend
		for f := range fs {
			keys = append(keys, f)
		}
		slices.SortFunc(keys, func(a, b frontend) int { return strings.Compare(a.String(), b.String()) })
		for _, f := range keys {
			for c := range clients {
				all = append(all, pair{c, f})
			}
		}
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		return all
	}
	first, rest := list(touched), list(known)
	if len(first) > n*3/4 {
		first = first[:n*3/4]
	}
	for _, p := range append(first, rest...) {
		if len(out) < n && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// ask asks all pairs, some at once.
func (r *run) ask(ctx context.Context, step int, pairs []pair, flows *flows) (found []difference) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 24)
	for _, p := range pairs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			for _, text := range r.compare(ctx, p, flows) {
				r.mu.Lock()
				found = append(found, difference{step, p.client, p.at, text})
				r.mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.SortFunc(found, func(a, b difference) int { return strings.Compare(a.text, b.text) })
	return found
}

// dump writes what the kube-proxies have programmed beside their logs.
func (r *run) dump(seed uint64) {
	for _, s := range r.sides {
		name := filepath.Join(r.dir, s.mode, fmt.Sprintf("rules-%d.txt", seed))
		f, err := os.Create(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			continue
		}
		cmd := exec.Command("sh", "-c", "iptables-save; ip6tables-save; nft list ruleset; cat /proc/net/nf_conntrack")
		cmd.Stdout, cmd.Stderr = f, f
		s.lab.Node.Start(cmd).Wait()
		f.Close()
		fmt.Println("rules are in", name)
	}
}
