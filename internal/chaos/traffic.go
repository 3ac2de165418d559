package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// talkers are connections that say something now and then and want the answer, however
// long it takes.
type talkers struct {
	n    *node
	stop chan struct{}
	wg   sync.WaitGroup
	mu   sync.Mutex
	all  []*talker
}

type talker struct {
	net.Conn
	why    string // it was opened
	rounds int
	err    error
}

// open connects, with as many tries as it takes in ten seconds, and lets the connection
// talk until the end.
func (t *talkers) open(why string) error {
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		var c net.Conn
		if c, err = t.dial(10 * time.Second); err == nil {
			k := &talker{Conn: c, why: why}
			t.mu.Lock()
			t.all = append(t.all, k)
			t.mu.Unlock()
			t.wg.Go(func() { k.talk(t.stop) })
			return nil
		}
	}
	return fmt.Errorf("connecting %s: %w", why, err)
}

func (t *talkers) dial(within time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return t.n.Clients[0].Dial(ctx, "tcp", t.n.vip)
}

func (k *talker) talk(stop <-chan struct{}) {
	out, in := make([]byte, 64), make([]byte, 64)
	for {
		select {
		case <-stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
		k.rounds++
		for i := range out {
			out[i] = byte(k.rounds + i)
		}
		k.SetDeadline(time.Now().Add(20 * time.Second))
		if _, k.err = k.Write(out); k.err != nil {
			return
		}
		if _, k.err = io.ReadFull(k, in); k.err != nil {
			return
		}
		if !bytes.Equal(in, out) {
			k.err = fmt.Errorf("round %d: got % x, want % x", k.rounds, in[:4], out[:4])
			return
		}
	}
}

// end stops them all and counts those that broke.
func (t *talkers) end(r *result) {
	close(t.stop)
	t.wg.Wait()
	r.connections = len(t.all)
	for _, k := range t.all {
		k.Close()
		if k.err != nil {
			r.lost++
			fmt.Printf("LOST a connection opened %s, in round %d: %v\n", k.why, k.rounds, k.err)
		}
	}
}

// fresh waits until a new connection has its answer, and says how long that took since.
func (t *talkers) fresh(since time.Time) (time.Duration, error) {
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		var c net.Conn
		// Less than it takes TCP to send a SYN again.
		if c, err = t.dial(25 * time.Millisecond); err != nil {
			continue
		}
		c.SetDeadline(time.Now().Add(100 * time.Millisecond))
		in := make([]byte, 4)
		if _, err = c.Write([]byte("ping")); err == nil {
			_, err = io.ReadFull(c, in)
		}
		c.Close()
		if err == nil {
			return time.Since(since), nil
		}
	}
	return 0, fmt.Errorf("no new connection in ten seconds: %w", err)
}

// pulse is a UDP flow that asks every two milliseconds, so that the time at which a known
// flow is forwarded again can be seen.
type pulse struct {
	conn net.Conn
	last atomic.Int64 // when the last answer came, ns since 1970
	sent atomic.Int64
	got  atomic.Int64
}

func (n *node) newPulse() (*pulse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := n.Clients[1].Dial(ctx, "udp", n.vip)
	if err != nil {
		return nil, err
	}
	p := &pulse{conn: c}
	go func() {
		for {
			if _, err := c.Write([]byte("pulse")); err == net.ErrClosed {
				return
			}
			p.sent.Add(1)
			time.Sleep(2 * time.Millisecond)
			if c.SetReadDeadline(time.Time{}) != nil {
				return
			}
		}
	}()
	go func() {
		in := make([]byte, 64)
		for {
			if _, err := c.Read(in); err != nil {
				if c.SetReadDeadline(time.Time{}) != nil {
					return
				}
				continue
			}
			p.got.Add(1)
			p.last.Store(time.Now().UnixNano())
		}
	}()
	return p, nil
}

// beats waits for the first answer after a time, and says how long that took since.
func (p *pulse) beats(since time.Time) (time.Duration, error) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(500 * time.Microsecond) {
		if last := time.Unix(0, p.last.Load()); last.After(since) {
			return last.Sub(since), nil
		}
	}
	return 0, fmt.Errorf("a known flow had no answer in ten seconds")
}
