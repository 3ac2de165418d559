package telemetry

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/sluice-net/sluice/service"
)

// histogramSum is the sum of what a histogram has observed.
func histogramSum(t *testing.T, o prometheus.Observer) float64 {
	var m dto.Metric
	if err := o.(prometheus.Histogram).Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetHistogram().GetSampleSum()
}

func TestSyncs(t *testing.T) {
	s := NewSyncs()
	began := time.Unix(1000, 0)
	s.Observe(service.Sync{Queued: began, Began: began, Took: 300 * time.Millisecond, Full: true})
	s.Observe(service.Sync{
		Queued: began.Add(time.Second), Began: began.Add(2 * time.Second), Took: 3 * time.Millisecond,
		Triggers: []service.Trigger{{At: began.Add(1500 * time.Millisecond)}, {At: began, IPv6: true}},
	})
	if n := testutil.CollectAndCount(s); n != 7 {
		t.Errorf("%d metrics", n)
	}
	if err := testutil.CollectAndCompare(s, strings.NewReader(`
# HELP kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds When a change was last waiting to be programmed.
# TYPE kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds gauge
kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds 1001
# HELP kubeproxy_sync_proxy_rules_last_timestamp_seconds When a change was last programmed.
# TYPE kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge
kubeproxy_sync_proxy_rules_last_timestamp_seconds 1002.003
`), "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "kubeproxy_sync_proxy_rules_last_timestamp_seconds"); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{"IPv4": "503ms", "IPv6": "2.003s"} {
		m, err := s.latency.GetMetricWithLabelValues(name)
		if err != nil {
			t.Fatal(err)
		}
		got := histogramSum(t, m)
		if d := time.Duration(got * float64(time.Second)).Round(time.Millisecond).String(); d != want {
			t.Errorf("%s: %s, want %s", name, d, want)
		}
	}
}
