package main

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-net/sluice/internal/netlab"
)

// Targets. Beyond them is a failure.
const (
	maxGap     = 100 * time.Millisecond // new connections after a death
	maxForward = 300 * time.Millisecond // known flows after a start
	maxHang    = 500 * time.Millisecond // new connections after a hang began
	maxBack    = 500 * time.Millisecond // known flows after it ended
)

// run is the whole story.
func (n *node) run() error {
	before := n.Node.State()
	n.conns = &talkers{n: n, stop: make(chan struct{})}
	for range n.r.conns {
		if err := n.conns.open("before the install"); err != nil {
			return err
		}
	}
	n.start()
	if err := n.ready(); err != nil {
		return err
	}
	for range n.r.conns {
		if err := n.conns.open("after the install"); err != nil {
			return err
		}
	}
	var err error
	if n.pulse, err = n.newPulse(); err != nil {
		return err
	}
	for _, act := range []struct {
		name string
		do   func() error
	}{
		{"kills", n.kills}, {"hangs", n.hangs}, {"restarts", n.restarts}, {"changes", n.changes}, {"churn", n.churn},
	} {
		start := time.Now()
		if err := act.do(); err != nil {
			return fmt.Errorf("%s: %w\n%s", act.name, err, n.daemon.Output())
		}
		fmt.Printf("%s: %v\n", act.name, time.Since(start).Round(time.Millisecond))
	}
	n.pulse.conn.Close()
	n.conns.end(n.r)
	if status, body := n.get("127.0.0.1:10356", "/livez"); status != http.StatusOK {
		n.r.fail("the daemon is not well at the end: %d %s", status, body)
	}
	if err := n.daemon.Stop(); err != nil {
		n.r.fail("stopping: %v\n%s", err, n.daemon.Output())
	}
	if p := n.exec("cleanup", "--config", n.config); p.Wait() != nil {
		n.r.fail("cleanup: %s", p.Output())
	}
	if diff := netlab.Diff(before, n.Node.State()); diff != "" {
		n.r.leaks++
		fmt.Printf("LEAK on the node after cleanup:\n%s\n", diff)
	}
	if _, err := os.Stat(filepath.Join(n.bpffs, "sluice")); !errors.Is(err, os.ErrNotExist) {
		n.r.leaks++
		fmt.Printf("LEAK pins after cleanup: %v\n", err)
	}
	return nil
}

// atMost keeps the longest, and fails beyond the target.
func (n *node) atMost(most *time.Duration, got, target time.Duration, what string) {
	*most = max(*most, got)
	if target *= time.Duration(n.r.slack); got > target {
		n.r.fail("%s took %v, want at most %v", what, got.Round(time.Millisecond), target)
	}
}

// kills kills the daemon and starts it at once. Every third time a connection begins in
// the gap, and lives to the end.
func (n *node) kills() error {
	for i := range n.r.kills {
		time.Sleep(time.Duration(100+rand.IntN(200)) * time.Millisecond)
		at := time.Now()
		if err := n.daemon.Signal(syscall.SIGKILL); err != nil {
			return err
		}
		gap, err := n.conns.fresh(at)
		if err != nil {
			return err
		}
		n.atMost(&n.r.maxGap, gap, maxGap, fmt.Sprintf("a new connection after kill %d", i))
		<-n.daemon.Done()
		if err := n.conns.open(fmt.Sprintf("in the gap after kill %d", i)); err != nil {
			return err
		}
		forward, err := n.pulse.beats(n.start())
		if err != nil {
			return err
		}
		n.atMost(&n.r.maxForward, forward, maxForward, fmt.Sprintf("a known flow after start %d", i))
		if err := n.ready(); err != nil {
			return err
		}
		if _, err := n.conns.fresh(time.Now()); err != nil {
			return err
		}
	}
	return nil
}

// hangs stops the daemon for a second and lets it go on.
func (n *node) hangs() error {
	for i := range n.r.hangs {
		time.Sleep(time.Duration(50+rand.IntN(100)) * time.Millisecond)
		at := time.Now()
		if err := n.daemon.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		took, err := n.conns.fresh(at)
		if err != nil {
			return err
		}
		n.atMost(&n.r.maxHang, took, maxHang, fmt.Sprintf("a new connection in hang %d", i))
		if err := n.conns.open(fmt.Sprintf("in hang %d", i)); err != nil {
			return err
		}
		time.Sleep(time.Until(at.Add(time.Second)))
		back := time.Now()
		if err := n.daemon.Signal(syscall.SIGCONT); err != nil {
			return err
		}
		if took, err = n.pulse.beats(back); err != nil {
			return err
		}
		n.atMost(&n.r.maxBack, took, maxBack, fmt.Sprintf("a known flow after hang %d", i))
	}
	return nil
}

// restarts ends the daemon as an update does and starts the next one.
func (n *node) restarts() error {
	for i := range n.r.restarts {
		if err := n.daemon.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		if err := n.daemon.Wait(); err != nil {
			return fmt.Errorf("restart %d: %w", i, err)
		}
		forward, err := n.pulse.beats(n.start())
		if err != nil {
			return err
		}
		n.atMost(&n.r.maxForward, forward, maxForward, fmt.Sprintf("a known flow after restart %d", i))
		if err := n.ready(); err != nil {
			return err
		}
	}
	return nil
}

// changes does things at random to the device of a pod of no importance, and to those of
// others what they can bear.
func (n *node) changes() error {
	const dev = "spare"
	n.AddPod(dev, 1)
	name := dev
	random := rand.New(rand.NewPCG(n.r.seed, 1))
	if err := n.served(name, true); err != nil {
		return err
	}
	for range n.r.changes {
		switch random.IntN(6) {
		case 0:
			n.Node.Down(name)
		case 1:
			n.Node.Up(name)
		case 2:
			n.Node.MTU(name, []int{1280, 1500, 2000, 9000}[random.IntN(4)])
		case 3:
			next := []string{dev, "other", "third"}[random.IntN(3)]
			if next != name {
				n.Node.Rename(name, next)
				name = next
			}
		case 4: // one that carries traffic
			n.Node.Down("backend2")
			time.Sleep(time.Millisecond)
			n.Node.Up("backend2")
			// What the kernel takes from a device that is down its CNI puts back.
			n.Node.Addr("backend2", netlab.Gateway6+"/64")
			for _, f := range netlab.Families {
				b := n.Backends[2]
				ip := b.IP(f)
				n.Node.Route(fmt.Sprintf("%s/%d", ip, ip.BitLen()), "", "backend2", netlab.NodeAddr(f, 1).String())
			}
		case 5:
			n.Node.MTU("backend1", []int{1400, 1500}[random.IntN(2)])
		}
		time.Sleep(time.Duration(random.IntN(10)) * time.Millisecond)
	}
	n.Node.Up(name)
	n.Node.MTU(name, 1500)
	n.Node.MTU("backend1", 1500)
	if err := n.served(name, true); err != nil {
		return err
	}
	n.Node.Delete(name)
	if err := n.served(name, false); err != nil {
		return err
	}
	_, err := n.conns.fresh(time.Now())
	return err
}

// served waits until a device is, or is not, among those that the daemon says it serves.
func (n *node) served(dev string, want bool) error {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		_, body := n.get("127.0.0.1:10349", "/metrics")
		if strings.Contains(body, fmt.Sprintf("sluice_interface_info{asked=\"auto\",driver=\"veth\",granted=\"steered\",interface=%q", dev)) == want {
			return nil
		}
	}
	return fmt.Errorf("device %s: served must be %t and is not", dev, want)
}

// churn has pods come and go, fifty at once, and compares what the daemon has before and
// after.
func (n *node) churn() error {
	const atOnce = 50
	before, err := n.resources()
	if err != nil {
		return err
	}
	other := n.Lab.Namespace("churn")
	for done := 0; done < n.r.churn; done += atOnce {
		for i := range atOnce {
			n.Lab.Veth(n.Node, fmt.Sprintf("churn%d", i), other, fmt.Sprintf("peer%d", i), netlab.VethOptions{})
		}
		if err := n.served(fmt.Sprintf("churn%d", atOnce-1), true); err != nil {
			return err
		}
		for i := range atOnce {
			n.Node.Delete(fmt.Sprintf("churn%d", i))
		}
	}
	if err := n.served("churn0", false); err != nil {
		return err
	}
	var after map[string]int
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if after, err = n.resources(); err != nil {
			return err
		}
		if maps.Equal(before, after) {
			return nil
		}
	}
	for what, had := range before {
		if after[what] > had {
			n.r.leaks += after[what] - had
			fmt.Printf("LEAK %s: %d before the churn, %d after it\n", what, had, after[what])
		}
	}
	for what, has := range after {
		if _, had := before[what]; !had {
			n.r.leaks += has
			fmt.Printf("LEAK %s: none before the churn, %d after it\n", what, has)
		}
	}
	return nil
}
