package bench

import (
	"bytes"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// aResult is small and has one of everything.
func aResult() *Result {
	r := &Result{
		Schema: Schema, Command: "sluice bench", Version: "v0", Started: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC),
		Machine: Machine{Kernel: "6.18", CPU: "a cpu", Cores: 2}, Baseline: "nftables", Repeats: 4, Duration: 1,
		Profiles: []*Profile{
			{Scenario: "local services=1", Workload: "crr", Peer: "nftables", Per: "connection", Count: 10, Parts: map[string]float64{"veth": 10, "netfilter, conntrack": 30}},
			{Scenario: "local services=1", Workload: "crr", Peer: "sluice-native", Per: "connection", Count: 10, Parts: map[string]float64{"veth": 20, "Go: parse": 7}},
		},
	}
	for _, p := range []string{"plain", "nftables", "sluice-native"} {
		r.Stands = append(r.Stands, &Stand{Scenario: "local services=1", Peer: p, About: "what | it is", Translates: p != "plain", MTU: 1500, Offloads: "tso=on", Granted: []string{"all"}})
	}
	r.Stands = append(r.Stands, &Stand{Scenario: "local services=1", Peer: "iptables", About: "kube-proxy", Translates: true, Absent: "not here"})
	add := func(workload, params, metric, peer string, samples ...float64) {
		m := metrics[metric]
		r.Series = append(r.Series, &Series{
			Scenario: "local services=1", Workload: workload, Params: params, Peer: peer, Metric: metric, Unit: m.unit, Better: m.better,
			Samples: samples, Tally: &Tally{Sent: 10, Received: 10},
		})
	}
	add("pps-sockets", "frame=64 flows=1", "pps", "plain", 300e3, 301e3, 302e3, 303e3)
	add("pps-sockets", "frame=64 flows=1", "pps", "nftables", 200e3, 201e3, 199e3, 202e3)
	add("pps-sockets", "frame=64 flows=1", "pps", "sluice-native", 250e3, 251e3, 249e3, 253e3)
	add("pps-sockets", "frame=64 flows=1000", "pps", "nftables", 190e3, 191e3, 189e3, 190e3)
	add("pps-sockets", "frame=64 flows=1000", "pps", "sluice-native", 240e3, 241e3, 239e3, 240e3)
	add("rtt-idle", "", "p50", "nftables", 20, 21, 20, 20)
	add("rtt-idle", "", "p50", "sluice-native", 40, 41, 39, 40)
	r.Series[len(r.Series)-1].Tally.Duplicated = 3
	r.settle()
	return r
}

// TestResultSurvivesItsFile writes and reads one.
func TestResultSurvivesItsFile(t *testing.T) {
	r := aResult()
	name := filepath.Join(t.TempDir(), "r.json")
	if err := r.Write(name); err != nil {
		t.Fatal(err)
	}
	got, err := ReadResult(name)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, r) {
		t.Errorf("read %+v, wrote %+v", got, r)
	}
	if s := r.find("local services=1", "pps-sockets", "frame=64 flows=1", "pps", "sluice-native"); s.Median != 250.5e3 || s.Ratio != 250.5/200.5 {
		t.Errorf("median %v, ratio %v", s.Median, s.Ratio)
	}
	r.Schema = "other"
	if err := r.Write(name); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadResult(name); err == nil || !strings.Contains(err.Error(), "schema") {
		t.Errorf("another schema: %v", err)
	}
}

// TestTotals: series of one measurement share a tally, which is counted once, in a
// result that was read too.
func TestTotals(t *testing.T) {
	r := aResult()
	for _, s := range r.Series[:3] {
		other := *s
		other.Metric = "cpu"
		r.Series = append(r.Series, &other)
	}
	want := Tally{Sent: 70, Received: 70, Duplicated: 3}
	if got := r.totals(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	name := filepath.Join(t.TempDir(), "r.json")
	if err := r.Write(name); err != nil {
		t.Fatal(err)
	}
	read, err := ReadResult(name)
	if err != nil {
		t.Fatal(err)
	}
	if got := read.totals(); got != want {
		t.Errorf("read: %+v, want %+v", got, want)
	}
}

// TestReports wants each of them to say what must be said.
func TestReports(t *testing.T) {
	r := aResult()
	var text, md, html bytes.Buffer
	r.WriteTable(&text)
	if err := r.WriteMarkdown(&md); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteHTML(&html); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a cpu, 2 cores", "absent: not here", "(1.50)", "1.25", "duplicated=3", "tso=on", "Go: parse"} {
		for name, report := range map[string]string{"text": text.String(), "markdown": md.String(), "html": html.String()} {
			if !strings.Contains(report, want) {
				t.Errorf("%s does not say %q", name, want)
			}
		}
	}
	if !strings.Contains(md.String(), `what \| it is`) {
		t.Error("a bar in a cell breaks the Markdown table")
	}
	// A curve over flows, the profile, and a plot for each of the three tables with two peers.
	if n := strings.Count(html.String(), "<svg"); n < 5 {
		t.Errorf("%d plots", n)
	}
	for _, outside := range []string{"http://", "https://", "<script", "<link", "src="} {
		// The namespaces of SVG are names, not addresses.
		page := strings.NewReplacer("http://www.w3.org/2000/svg", "", "http://www.w3.org/1999/xlink", "").Replace(html.String())
		if strings.Contains(page, outside) {
			t.Errorf("the report is not self-contained: %q", outside)
		}
	}
}

func TestCompare(t *testing.T) {
	a, b := aResult(), aResult()
	for i := range b.Series[2].Samples {
		b.Series[2].Samples[i] *= 1.5 // faster
	}
	for i := range b.Series[6].Samples {
		b.Series[6].Samples[i] *= 1.5 // later
	}
	b.Series = append(b.Series[:4], b.Series[5:]...) // one is missing
	c, err := Compare(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Line(), "compare: series=6 better=1 worse=1 equal=4 refused=0 alone=1"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	var text bytes.Buffer
	c.Write(&text, false)
	for _, want := range []string{"+50.0% better", "+50.0% worse", "~", "p=0.029 n=4+4", "only in the first"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("does not say %q:\n%s", want, text.String())
		}
	}
}

// TestCompareRefuses what was measured under other conditions.
func TestCompareRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*Result)
		want string
	}{
		{"kernel", func(r *Result) { r.Machine.Kernel = "6.19" }, "another kernel: 6.18 and 6.19"},
		{"cpu", func(r *Result) { r.Machine.CPU = "b cpu" }, "another CPU"},
		{"cores", func(r *Result) { r.Machine.Cores = 4 }, "another number of cores: 2 and 4"},
		{"duration", func(r *Result) { r.Duration = 2 }, "measurements of 1 s and of 2 s"},
		{"nothing in common", func(r *Result) { r.Series = nil }, "no measurement in common"},
	} {
		b := aResult()
		tt.edit(b)
		if _, err := Compare(aResult(), b); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	b := aResult()
	b.Stands[2].Offloads = "tso=off"
	b.Stands[1].MTU = 9000
	c, err := Compare(aResult(), b)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Refused) != 2 || len(c.Series) != 1 {
		t.Errorf("refused %v, compared %d series", c.Refused, len(c.Series))
	}
}

// TestSummary has a key for each that is promised, in order, with the number or n/a.
func TestSummary(t *testing.T) {
	line, reasons := aResult().Summary()
	want := "bench: pps_vs_nftables=1.25 pps_vs_iptables=n/a crr_vs_nftables=n/a crr_vs_iptables_1k=n/a flow_setup_vs_nftables=n/a first_packet_1k_vs_1=n/a " +
		"cold_sync_1k_vs_nftables=n/a rtt_p50_vs_nftables=2.00 bulk_vs_nftables=n/a passed_bulk_steered_vs_none=n/a cpu_vs_nftables=n/a corrupted=0 wrong_source=0"
	if line != want {
		t.Errorf("got  %s\nwant %s", line, want)
	}
	if len(reasons) != 9 || !strings.Contains(strings.Join(reasons, "\n"), "pps_vs_iptables: iptables: not here") {
		t.Errorf("reasons %q", reasons)
	}
	r := aResult()
	r.Series[0].Tally.Corrupted = 1
	if err := r.Sane(); err == nil {
		t.Error("a corrupted datagram is sane")
	}
}

// TestStages puts functions where they belong.
func TestStages(t *testing.T) {
	x := newStageIndex()
	for function, want := range map[string]string{
		"nft_do_chain":                                 "netfilter, conntrack",
		"__xsk_rcv":                                    "AF_XDP receive",
		"xsk_build_skb":                                "AF_XDP transmit",
		"veth_xmit":                                    "veth",
		"ip_forward_finish":                            "IP, core receive path",
		"udp_sendmsg":                                  "generator",
		"bpf_prog_3a6b982_flow_find":                   "peer's BPF program",
		"bpf_prog_0123456_sink":                        "receiver's stack",
		"bpf_prog_0123456_generate":                    "generator",
		modulePath + "nat.(*Packet).Parse":             "Go: parse",
		modulePath + "nat.(*Packet).Rewrite":           "Go: rewrite",
		modulePath + "flowtable.(*Table).LookupBatch":  "Go: look up",
		modulePath + "dataplane/xsk.(*Socket).Receive": "Go: rings and frames",
		modulePath + "dataplane.(*worker).flush":       "Go: rings and frames",
		modulePath + "dataplane.(*worker).decide":      "Go: decide, egress",
		"runtime.mallocgc":                             "Go: runtime",
	} {
		got := ""
		if i := x.of(function); i >= 0 {
			got = stages[i].name
		}
		if got != want {
			t.Errorf("%s is %q, want %q", function, got, want)
		}
	}
}
