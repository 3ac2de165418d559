package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// leaver is the backend that is removed: one of this node's.
	leaver = 1
	// How many long-lived flows of each kind there are, to the backend that
	// leaves and to others, and how many are tried to get them.
	leaverFlows, otherFlows, flowTries = 1, 3, 100

	flowBytes  = 128
	flowPause  = 5 * time.Millisecond
	beforeEdit = 300 * time.Millisecond
	// effectWithin is how soon an edit must be in force; afterEdit is how long
	// it is looked at.
	effectWithin = time.Second
	afterEdit    = 2 * time.Second
)

// flow is a long-lived connection, or a UDP socket, that exchanges all the time.
type flow struct {
	kind
	conn      net.Conn
	local     netip.AddrPort
	backend   *backend // which had it first
	exchanges atomic.Int64
	err       error // that ended it
}

// ping makes one exchange.
func (f *flow) ping() error {
	var sent, got [flowBytes]byte
	rand.Read(sent[:])
	f.conn.SetDeadline(time.Now().Add(exchangeTimeout))
	if _, err := f.conn.Write(sent[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(f.conn, got[:]); err != nil { // a datagram comes whole
		return err
	}
	if !bytes.Equal(sent[:], got[:]) {
		return errors.New("what came back is not what was sent")
	}
	f.exchanges.Add(1)
	return nil
}

// run exchanges until ctx is done or an exchange goes wrong.
func (f *flow) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := f.ping(); err != nil {
			f.err = fmt.Errorf("%s flow from %s to %s, after %d exchanges: %w", f.kind, f.local, f.backend.label, f.exchanges.Load(), err)
			return
		}
		time.Sleep(flowPause)
	}
}

// servedBy are the backends that have seen a client's port.
func (r *run) servedBy(k kind, local netip.AddrPort) (list []*backend) {
	for _, b := range r.lab.backends {
		if slices.Contains(b.servers[k].Peers(), local) {
			list = append(list, b)
		}
	}
	return list
}

// open opens flows of a kind until there are enough to the one backend and to
// the others, and closes what is too many.
func (r *run) open(ctx context.Context, k kind) (flows []*flow, err error) {
	leaving := r.lab.backends[leaver]
	missing := map[bool]int{true: leaverFlows, false: otherFlows}
	for range flowTries {
		if missing[true]+missing[false] == 0 {
			return flows, nil
		}
		dialing, cancel := context.WithTimeout(ctx, exchangeTimeout)
		conn, err := r.lab.client.Dial(dialing, k.network, k.frontend(k.family))
		cancel()
		if err != nil {
			return flows, fmt.Errorf("opening a %s flow: %w", k, err)
		}
		local, err := netip.ParseAddrPort(conn.LocalAddr().String())
		if err != nil {
			return flows, errors.Join(err, conn.Close())
		}
		f := &flow{kind: k, conn: conn, local: local}
		if err := f.ping(); err != nil {
			return flows, errors.Join(fmt.Errorf("opening a %s flow: %w", k, err), conn.Close())
		}
		by := r.servedBy(k, f.local)
		if len(by) != 1 {
			return flows, errors.Join(fmt.Errorf("%s flow from %s reached %d backends", k, f.local, len(by)), conn.Close())
		}
		f.backend = by[0]
		if missing[f.backend == leaving] == 0 {
			conn.Close()
			continue
		}
		missing[f.backend == leaving]--
		flows = append(flows, f)
	}
	return flows, fmt.Errorf("of %d %s flows too few reached %s, or too few another backend", flowTries, k, leaving.label)
}

// edit takes a backend out of the manifest under traffic, and watches what
// becomes of flows old and new.
func (r *run) edit(ctx context.Context) error {
	p, leaving := r.out, r.lab.backends[leaver]
	p.title("A live edit: %s leaves %s while flows are open and new ones come", leaving.label, endpointsFile)
	var flows []*flow
	defer func() {
		for _, f := range flows {
			f.conn.Close()
		}
	}()
	for _, k := range kinds() {
		opened, err := r.open(ctx, k)
		flows = append(flows, opened...)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			r.fail(err)
			return nil
		}
	}

	// Old flows go on, and new ones come all the time.
	running, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for _, f := range flows {
		wg.Go(func() { f.run(running) })
	}
	var fresh, failed atomic.Int64
	for _, k := range kinds() {
		wg.Go(func() {
			for running.Err() == nil && failed.Load() < patience {
				// Without the context: the last ones are let finish.
				if _, err := r.exchange(context.Background(), k, flowBytes); err != nil {
					failed.Add(1)
					r.fail(fmt.Errorf("new flow during the edit: %w", err))
					continue
				}
				fresh.Add(1)
				time.Sleep(flowPause)
			}
		})
	}
	if err := pause(ctx, beforeEdit); err != nil {
		return err
	}

	generation := r.daemon.dataplane.Stats().Snapshot.Generation
	left := slices.Delete(slices.Clone(r.lab.backends), leaver, leaver+1)
	// What is new to the leaver: connections, and datagrams of whatever flow.
	requests := func() (n uint64) {
		for _, k := range kinds() {
			n += leaving.servers[k].Requests()
		}
		return n
	}
	start := time.Now()
	if err := writeManifest(filepath.Join(r.dir, "manifests"), endpointsFile, endpointManifests(left)); err != nil {
		return err
	}
	var inForce, lastSeen time.Duration
	seen := requests()
	var since int64         // new flows after the edit was in force
	at := map[*flow]int64{} // exchanges of each flow by then
	for now := time.Duration(0); now < afterEdit; now = time.Since(start) {
		if n := requests(); n != seen {
			seen, lastSeen = n, now
		}
		if inForce == 0 && r.daemon.dataplane.Stats().Snapshot.Generation != generation {
			inForce, since = time.Since(start), fresh.Load()
			for _, f := range flows {
				at[f] = f.exchanges.Load()
			}
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return err
		}
	}
	stop()
	wg.Wait()

	if inForce == 0 || inForce > effectWithin {
		r.fail(fmt.Errorf("the edit was not in force within %v", effectWithin))
	}
	if lastSeen > effectWithin {
		r.fail(fmt.Errorf("%s was still reached %v after the edit", leaving.label, lastSeen.Round(time.Millisecond)))
	}
	p.line("  in force after %d ms; the last that %s got anew came after %d ms; %d new flows since",
		inForce.Milliseconds(), leaving.label, lastSeen.Milliseconds(), fresh.Load()-since)
	for _, k := range kinds() {
		r.fates(k, flows, at)
	}
	return nil
}

// fates checks and prints what became of the long-lived flows of a kind.
func (r *run) fates(k kind, flows []*flow, at map[*flow]int64) {
	leaving := r.lab.backends[leaver]
	var (
		stayed, moved, others, otherExchanges int64
		where                                 []string
	)
	for _, f := range flows {
		if f.kind != k {
			continue
		}
		if f.err != nil {
			r.fail(f.err)
			continue
		}
		since := f.exchanges.Load() - at[f]
		if since == 0 {
			r.fail(fmt.Errorf("%s flow from %s stands still since the edit", k, f.local))
		}
		by := r.servedBy(k, f.local)
		switch {
		case f.backend != leaving:
			others++
			otherExchanges += since
			if len(by) != 1 {
				r.fail(fmt.Errorf("%s flow from %s to %s, which stays, was moved", k, f.local, f.backend.label))
			}
		case k.network == "tcp":
			stayed += since
			if len(by) != 1 {
				r.fail(fmt.Errorf("%s connection from %s was moved", k, f.local))
			}
		default:
			moved += since
			by = slices.DeleteFunc(by, func(b *backend) bool { return b == leaving })
			if len(by) != 1 {
				r.fail(fmt.Errorf("%s flow from %s moved to %d other backends, want one", k, f.local, len(by)))
				continue
			}
			where = append(where, by[0].label)
		}
	}
	fate := fmt.Sprintf("the connection to %s stays there: %d exchanges since", leaving.label, stayed)
	if k.network == "udp" {
		fate = fmt.Sprintf("the flow to %s moved to %s: %d exchanges since", leaving.label, strings.Join(where, ", "), moved)
	}
	r.out.line("  %s  %s; %d others undisturbed: %d", k, fate, others, otherExchanges)
}

// pause sleeps, but not beyond ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
