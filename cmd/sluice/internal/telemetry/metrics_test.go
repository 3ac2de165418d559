package telemetry

import (
	"bytes"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"

	"github.com/sluice-net/sluice/dataplane"
	"github.com/sluice-net/sluice/dataplane/xsk"
	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/service"
)

var update = flag.Bool("update", false, "write testdata/metrics.txt anew")

// samplePicture has a different number in every place, so that a metric that
// reads the wrong one is seen.
func samplePicture() Picture {
	return Picture{
		Stats: dataplane.Stats{
			Ports: []dataplane.PortStats{{
				Name: "sluice-in", Kind: "return", Asked: "native", Granted: "native", Socket: "copy", Driver: "veth", Queues: 1,
			}, {
				Name: "eth0", Kind: "direct", Asked: "auto", Granted: "generic", Socket: "zero-copy", Driver: "virtio_net", Queues: 2,
				RxFrames: 11, RxBytes: 1100, TxFrames: 12, TxBytes: 1200,
				XSK:        xsk.Statistics{RxDropped: 21, RxInvalidDescs: 22, TxInvalidDescs: 23, RxRingFull: 24, RxFillRingEmpty: 25, TxRingEmpty: 26},
				Kicks:      xsk.KickCounters{Calls: 31, Suppressed: 32, Again: 33, Dropped: 34},
				Classifier: map[string]uint64{"redirected": 41, "not_ours": 42},
				Egress:     map[string]uint64{"not_ours": 43},
			}},
			Workers: []dataplane.WorkerStats{
				{ID: 0, Received: 51, Batches: 52, Sleeps: 53, Busy: 1500 * time.Millisecond, LastBeat: 7 * time.Millisecond},
				{ID: 1, Received: 61},
			},
			Verdicts: []dataplane.VerdictStats{
				{Verdict: dataplane.Translated, Reason: dataplane.ForwardDirect, Frames: 71},
				{Verdict: dataplane.Dropped, Reason: dataplane.TxFull, Frames: 72},
			},
			Flows: flowtable.Stats{
				Capacity: 81, Flows: 82, Limbo: 83, Free: 84, Inserted: 85, Exists: 86, Collisions: 87,
				FullRecords: 88, FullCells: 89, Removed: 90, Expired: 91, Reclaimed: 92, Stray: 93,
			},
			Frames:      dataplane.FrameStats{Total: 101, Free: 102, Lost: 103},
			Snapshot:    dataplane.SnapshotStats{Generation: 111, Age: 2500 * time.Millisecond, Services: 112, Backends: 113, NoLocal: 114, Policed: 115},
			Adjacencies: 121, AffinityEvicted: 122,
		},
		SourceAge: 4500 * time.Millisecond,
		Source: service.Counts{
			Services: 131, EndpointSlices: 132, RefusedEndpoints: 133, RefusedClusterIPs: 134,
			ServiceChanges: 135, SliceChanges: 136, ServiceChangesPending: 137, SliceChangesPending: 138,
		},
	}
}

// scrape gives the exposition of the metrics of that prefix.
func scrape(t *testing.T, picture Picture, prefix string) string {
	t.Helper()
	families, err := NewRegistry(func() Picture { return picture }, NewSyncs(), Build{"v1.2.3", "abcdef"}).Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), prefix) {
			if _, err := expfmt.MetricFamilyToText(&out, f); err != nil {
				t.Fatal(err)
			}
		}
	}
	return out.String()
}

// TestMetrics holds names, helps, types, labels and values to the golden
// exposition, which is what dashboards and alerts are written against.
func TestMetrics(t *testing.T) {
	const golden = "testdata/metrics.txt"
	got := scrape(t, samplePicture(), "sluice_")
	// The Go version is whoever's runs the test.
	lines := strings.Split(got, "\n")
	for i, l := range lines {
		if at := strings.Index(l, `goversion="`); at >= 0 {
			end := at + len(`goversion="`)
			lines[i] = l[:end] + "go" + l[end+strings.IndexByte(l[end:], '"'):]
		}
	}
	got = strings.Join(lines, "\n")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("metrics differ from %s; if that is meant, run with -update\n%s", golden, diff)
	}
}

func TestMetricsLint(t *testing.T) {
	problems, err := testutil.GatherAndLint(NewRegistry(samplePicture, NewSyncs(), Build{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "sluice_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// TestMetricsOfNothing scrapes a daemon that has not opened its dataplane yet.
func TestMetricsOfNothing(t *testing.T) {
	got := scrape(t, Picture{}, "sluice_")
	for _, want := range []string{"sluice_snapshot_generation 0\n", "sluice_flows 0\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestRuntimeMetrics(t *testing.T) {
	for _, prefix := range []string{"go_goroutines ", "process_resident_memory_bytes "} {
		if !strings.Contains(scrape(t, Picture{}, ""), "\n"+prefix) {
			t.Errorf("no %s", prefix)
		}
	}
}

// TestLabels keeps out labels whose values nobody bounds.
func TestLabels(t *testing.T) {
	allowed := []string{"interface", "kind", "driver", "asked", "granted", "socket", "hook", "reason", "verdict", "ring", "worker", "version", "revision", "goversion"}
	families, err := NewRegistry(samplePicture, NewSyncs(), Build{}).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "sluice_") {
			continue
		}
		for _, l := range f.GetMetric()[0].GetLabel() {
			if !slices.Contains(allowed, l.GetName()) {
				t.Errorf("%s has the label %s", f.GetName(), l.GetName())
			}
		}
	}
}
