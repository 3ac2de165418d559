package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
	"github.com/sluice-net/sluice/dataplane"
)

// Serve is the daemon: it serves the network namespace of the thread it is called
// on until ctx is done. It calls opened when everything is in place, and drained
// when all workers have ended and nothing has been let go yet.
type Serve func(ctx context.Context, cfg *config.Configuration, log *slog.Logger, opened, drained func(*dataplane.Dataplane)) error

// readyWithin is how long the daemon may take to be ready, and to end.
const readyWithin = 10 * time.Second

// daemon is the daemon of the lab's node.
type daemon struct {
	dataplane *dataplane.Dataplane
	stop      context.CancelFunc
	ended     chan error

	// Of its end; written before ended is closed.
	stats   dataplane.Stats
	leaked  int   // frames of the umem that are nowhere
	misused error // what the checker of frame ownership found
}

// configuration is what `sluice run` would have read from a file.
func configuration(l *lab, dir string) *config.Configuration {
	c := config.Default()
	for _, name := range l.devices() {
		c.Interfaces = append(c.Interfaces, config.Interface{Name: name, Kind: "auto"})
	}
	c.HostnameOverride = "node"
	c.Manifests = filepath.Join(dir, "manifests")
	c.RunDir = filepath.Join(dir, "run")
	c.RingSize = 1024
	c.FlowTable.Capacity = 16384
	// Nobody else serves these addresses, so that a machine which is busy with
	// something else must not make the kernel take over.
	c.Heartbeat.StaleAfter = config.Duration(2 * time.Second)
	c.OnExit = "remove"
	c.BindAddressHardFail = true // who tries again later does so in another namespace
	c.Debug.FrameOwnership = true
	return c
}

// start lets the daemon serve the node, and waits until it is ready.
func start(l *lab, dir string, serve Serve, log *slog.Logger) (*daemon, error) {
	for _, sub := range []string{"manifests", "run"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	cfg := configuration(l, dir)
	if err := writeManifest(cfg.Manifests, servicesFile, serviceManifests()); err != nil {
		return nil, err
	}
	if err := writeManifest(cfg.Manifests, endpointsFile, endpointManifests(l.backends)); err != nil {
		return nil, err
	}
	// The daemon outlives an interrupt, so that it ends in its order.
	ctx, stop := context.WithCancel(context.Background())
	d := &daemon{stop: stop, ended: make(chan error, 1)}
	opened := make(chan *dataplane.Dataplane, 1)
	go func() {
		d.ended <- l.Node.Do(func() error {
			return serve(ctx, cfg, log, func(dp *dataplane.Dataplane) { opened <- dp }, d.account)
		})
	}()
	timeout := time.After(readyWithin)
	select {
	case d.dataplane = <-opened:
	case err := <-d.ended:
		stop()
		return nil, errors.Join(err, errors.New("the daemon ended before it served"))
	case <-timeout:
		return nil, errors.Join(d.end(), fmt.Errorf("the daemon does not serve after %v", readyWithin))
	}
	for {
		health := d.dataplane.Health()
		if health.Ready {
			return d, nil
		}
		select {
		case err := <-d.ended:
			d.ended <- nil
			return nil, errors.Join(err, errors.New("the daemon ended before it was ready"))
		case <-timeout:
			return nil, errors.Join(d.end(), fmt.Errorf("the daemon is not ready after %v: %s", readyWithin, health.Reason))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// account takes the sums at the end, when nobody moves a frame any more but the
// kernel, which may still hold some that it sends.
func (d *daemon) account(dp *dataplane.Dataplane) {
	d.stats = dp.Stats()
	for range 100 {
		census, err := dp.Audit()
		if d.misused == nil {
			d.misused = err
		}
		d.leaked = census.Worker + census.Tx + census.Lost
		if d.leaked == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// end stops the daemon and waits for its end.
func (d *daemon) end() error {
	d.stop()
	select {
	case err := <-d.ended:
		d.ended <- nil
		return err
	case <-time.After(readyWithin):
		return fmt.Errorf("the daemon has not ended after %v", readyWithin)
	}
}

// attachment prints how each port was attached.
func (d *daemon) attachment(p *printer) {
	s := d.dataplane.Stats()
	p.title("How each port was attached")
	const row = "  %-12s %-8s %-8s %-8s %-9s %-10s %s"
	p.line(row, "device", "kind", "driver", "asked", "granted", "socket", "queues")
	for _, port := range s.Ports {
		p.line(row, port.Name, port.Kind, port.Driver, port.Asked, port.Granted, port.Socket, fmt.Sprint(port.Queues))
	}
}

// accounts prints how every frame ended, and gives what there is to complain of.
func (d *daemon) accounts(p *printer) (wrong []error) {
	s := &d.stats
	p.title("How every frame ended that Sluice received")
	p.line("  %d received = %d translated + %d returned to the kernel + %d rejected + %d dropped", s.Received,
		s.Verdict(dataplane.Translated), s.Verdict(dataplane.Returned), s.Verdict(dataplane.Rejected), s.Verdict(dataplane.Dropped))
	for _, v := range s.Verdicts {
		if v.Frames > 0 {
			p.line("  %10d  %-10s %s", v.Frames, v.Verdict, v.Reason)
		}
	}
	if n := s.Unaccounted(); n != 0 {
		wrong = append(wrong, fmt.Errorf("%d of %d frames have no verdict", n, s.Received))
	}
	if n := s.Verdict(dataplane.Dropped); n != 0 {
		wrong = append(wrong, fmt.Errorf("%d frames were dropped", n))
	}
	if d.misused != nil {
		wrong = append(wrong, fmt.Errorf("frame ownership: %w", d.misused))
	}
	var refused uint64
	for _, port := range s.Ports {
		x := &port.XSK
		n := x.RxDropped + x.RxInvalidDescs + x.TxInvalidDescs + x.RxRingFull
		refused += n
		if n != 0 {
			wrong = append(wrong, fmt.Errorf("the kernel dropped frames at the sockets of %s: %+v", port.Name, *x))
		}
	}
	p.line("  %d dropped by the kernel at the sockets; %d of %d frames of packet memory leaked; %d flows known",
		refused, d.leaked, s.Frames.Total, s.Flows.Flows)
	return wrong
}
