//go:build linux

package bench

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-net/sluice/internal/netlab"
)

// TestFaultsAreCounted puts a peer between that breaks known datagrams, and wants each to be reported, no
// more and no less, by either generator and either sink.
func TestFaultsAreCounted(t *testing.T) {
	const (
		sent  = 5000
		oneIn = 50
		hit   = sent / oneIn
	)
	for _, tt := range []struct {
		name   string
		faults natFaults
		want   Tally
	}{
		{"none", natFaults{}, Tally{Sent: sent, Received: sent}},
		{"drops", natFaults{Drop: oneIn}, Tally{Sent: sent, Received: sent - hit, Lost: hit}},
		{"duplicates", natFaults{Duplicate: oneIn}, Tally{Sent: sent, Received: sent + hit, Duplicated: hit}},
		{"corrupts", natFaults{Corrupt: oneIn}, Tally{Sent: sent, Received: sent - hit, Corrupted: hit}},
		{"forges the source", natFaults{WrongSource: oneIn}, Tally{Sent: sent, Received: sent, WrongSource: hit}},
		{
			"does all of it", natFaults{oneIn, oneIn, oneIn, oneIn},
			Tally{Sent: sent, Received: sent - hit, Lost: hit, Duplicated: hit, Corrupted: hit, WrongSource: hit},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, tcNAT{faults: &tt.faults}, Local, 1)
			tr := b.udpTarget(1)
			tr.frame, tr.flows, tr.rate = 64, 100, 20_000
			for name, run := range map[string]func() (trial, error){
				"sockets":        func() (trial, error) { return b.sockets(tr, time.Minute, sent) },
				"sockets to tap": func() (trial, error) { return b.socketsToTap(tr, time.Minute, sent) },
				"injected":       func() (trial, error) { return b.injected(tr, 0, time.Minute, sent) },
			} {
				got, err := run()
				if err != nil {
					t.Fatal(name, err)
				}
				if got.Tally != tt.want {
					t.Errorf("%s:\n got %v\nwant %v", name, got.Tally, tt.want)
				}
			}
		})
	}
}

// TestAbsent wants a peer that cannot take part to be named with the reason, and the rest to be measured.
func TestAbsent(t *testing.T) {
	netlab.RequireRoot(t)
	r, err := Run(context.Background(), Options{
		settleIn: time.Millisecond, Programs: Programs{Sluice: command(t), Kubernetes: t.TempDir()}, Quick: true, Baseline: "plain", Duration: 50 * time.Millisecond,
		Peers: []string{"nftables", "sluice-native", "sluice-generic"}, Workloads: []string{"pps-sockets"},
	})
	if err != nil {
		t.Fatal(err)
	}
	why := map[string]string{}
	for _, s := range r.Stands {
		why[s.Peer] += s.Absent
	}
	for peer, want := range map[string]string{"nftables": "no etcd in", "sluice-generic": "ask for steered", "plain": "", "sluice-native": ""} {
		if got := why[peer]; !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%s is absent because of %q, want %q", peer, got, want)
		}
	}
	line, reasons := r.Summary()
	if !strings.HasPrefix(line, "bench: pps_vs_nftables=n/a ") || !strings.HasSuffix(line, " corrupted=0 wrong_source=0") || len(reasons) == 0 {
		t.Errorf("%s\n%v", line, reasons)
	}
	if err := r.Sane(); err != nil {
		t.Error(err)
	}
}

// TestSamePeerIsEqual measures one peer twice and wants no difference, and a slower one told from it.
func TestSamePeerIsEqual(t *testing.T) {
	netlab.RequireRoot(t)
	run := func() *Result {
		r, err := Run(context.Background(), Options{
			settleIn: time.Millisecond, Programs: Programs{Sluice: command(t), Kubernetes: t.TempDir()}, Quick: true, Baseline: "plain", Duration: 30 * time.Millisecond, Repeats: 4,
			Peers: []string{"plain"}, Workloads: []string{"pps-injected"},
		})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	rate := func(c *Compared) Comparison {
		for _, s := range c.Series {
			if s.Metric == "pps" {
				return s
			}
		}
		t.Fatal("the rate was not compared")
		return Comparison{}
	}
	compare := func(a, b *Result) *Compared {
		c, err := Compare(a, b)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	// Two runs fall apart by chance once in 35 times, and oftener where others use the machine between: three
	// times in a row is no chance.
	a := run()
	for try := 1; ; try++ {
		b := run()
		c := compare(a, b)
		if len(c.Refused) != 0 || len(c.Alone) != 0 {
			t.Errorf("refused %v, alone %v", c.Refused, c.Alone)
		}
		s := rate(c)
		if !s.Significant {
			break
		}
		t.Logf("%+v", s)
		if try == 3 {
			t.Fatal("three times in a row a run differs from the one before")
		}
		a = b
	}
	slow := run()
	for _, s := range slow.Series {
		for i, x := range a.find(s.Scenario, s.Workload, s.Params, s.Metric, s.Peer).Samples {
			s.Samples[i] = x / 100
		}
	}
	if s := rate(compare(a, slow)); !s.Significant || s.Better {
		t.Errorf("a hundredth of the rate: %+v", s)
	}
}

// TestResume takes a peer's samples out of a result, goes on, and wants only those measured again.
func TestResume(t *testing.T) {
	netlab.RequireRoot(t)
	o := Options{
		settleIn: time.Millisecond, Programs: Programs{Kubernetes: t.TempDir()}, Quick: true, Baseline: "plain", Duration: 20 * time.Millisecond,
		Peers: []string{"plain", "tc-ebpf"}, Workloads: []string{"pps-injected"}, Output: filepath.Join(t.TempDir(), "r.json"), Resume: true,
	}
	first, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	cut := *first
	cut.Series = slices.DeleteFunc(slices.Clone(first.Series), func(s *Series) bool { return s.Peer == "tc-ebpf" })
	if len(cut.Series) == len(first.Series) || len(cut.Series) == 0 {
		t.Fatalf("%d series of %d left", len(cut.Series), len(first.Series))
	}
	if err := cut.Write(o.Output); err != nil {
		t.Fatal(err)
	}
	second, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if second.find("local services=1", "pps-injected", "frame=64 flows=64000", "pps", "tc-ebpf") == nil {
		t.Error("what was taken out was not measured again")
	}
	for _, s := range second.Series {
		// On a busy machine a round may see nothing, and so no time a packet.
		if s.Metric == "pps" && len(s.Samples) != 3 {
			t.Errorf("%s %s: %d samples, want 3", s.Peer, s.Metric, len(s.Samples))
		}
		same := slices.Equal(s.Samples, first.find(s.Scenario, s.Workload, s.Params, s.Metric, s.Peer).Samples)
		if s.Peer == "plain" && !same {
			t.Errorf("%s of plain was measured again", s.Metric)
		}
	}
	o.Repeats = 5
	if _, err := Run(context.Background(), o); err == nil || !strings.Contains(err.Error(), "of another kind of run") {
		t.Errorf("went on with another number of rounds: %v", err)
	}
}
