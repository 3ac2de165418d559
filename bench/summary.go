package bench

import (
	"fmt"
	"strings"
)

// Summary is the last line of a quick run: ratios of medians of that run, and what must always be 0.
// A ratio that there is not is n/a; the reasons come with it.
func (r *Result) Summary() (line string, reasons []string) {
	const one, thousand = "local services=1", "local services=1000"
	var b strings.Builder
	b.WriteString("bench:")
	ours := "sluice-native"
	value := func(scenario, workload, metric, peer string) (float64, string) {
		for _, s := range r.Series {
			if s.Scenario == scenario && s.Workload == workload && s.Metric == metric && s.Peer == peer {
				if len(s.Samples) > 0 && s.Median != 0 {
					return s.Median, ""
				}
				return 0, peer + ": " + s.Skipped
			}
		}
		for _, s := range r.Stands {
			if s.Scenario == scenario && s.Peer == peer && s.Absent != "" {
				return 0, peer + ": " + s.Absent
			}
		}
		return 0, fmt.Sprintf("%s: %s was not measured", peer, workload)
	}
	put := func(key string, a, b2 float64, why ...string) {
		for _, w := range why {
			if w != "" {
				fmt.Fprintf(&b, " %s=n/a", key)
				reasons = append(reasons, key+": "+w)
				return
			}
		}
		fmt.Fprintf(&b, " %s=%.2f", key, a/b2)
	}
	ratio := func(key, scenario, workload, metric, to string) {
		a, why := value(scenario, workload, metric, ours)
		c, why2 := value(scenario, workload, metric, to)
		put(key, a, c, why, why2)
	}
	ratio("pps_vs_nftables", one, "pps-sockets", "pps", "nftables")
	ratio("pps_vs_iptables", one, "pps-sockets", "pps", "iptables")
	ratio("crr_vs_nftables", one, "crr", "conn_rate", "nftables")
	ratio("crr_vs_iptables_1k", thousand, "crr", "conn_rate", "iptables")
	ratio("flow_setup_vs_nftables", one, "flow-setup", "flow_rate", "nftables")
	many, why := value(thousand, "first-packet", "p50", ours)
	few, why2 := value(one, "first-packet", "p50", ours)
	put("first_packet_1k_vs_1", many, few, why, why2)
	// Higher is better: the speed of a sync is one over its time.
	theirs, why := value(thousand, coldSync, "sync", "nftables")
	own, why2 := value(thousand, coldSync, "sync", ours)
	put("cold_sync_1k_vs_nftables", theirs, own, why2, why)
	ratio("rtt_p50_vs_nftables", one, "rtt-idle", "p50", "nftables")
	ratio("bulk_vs_nftables", one, "bulk", "bits", "nftables")
	steered, why := value(one, "passed-bulk", "bits", "sluice-steered")
	none, why2 := value(one, "passed-bulk", "bits", "plain")
	put("passed_bulk_steered_vs_none", steered, none, why, why2)
	ratio("cpu_vs_nftables", one, "pps-sockets", "cpu", "nftables")
	t := r.totals()
	fmt.Fprintf(&b, " corrupted=%d wrong_source=%d", t.Corrupted, t.WrongSource)
	return b.String(), reasons
}

// Sane says what in a result cannot be: an error of the suite or of a peer.
func (r *Result) Sane() error {
	t := r.totals()
	switch {
	case t.Corrupted != 0 || t.WrongSource != 0:
		return fmt.Errorf("%d datagrams were corrupted, %d came from a wrong source", t.Corrupted, t.WrongSource)
	case t.Received == 0 && len(r.Series) > 0:
		return fmt.Errorf("nothing was received")
	}
	for _, s := range r.Stands {
		if s.Absent != "" && (s.Peer == "sluice-native" || s.Peer == "sluice-steered") && s.Scenario != string(RemoteVXLAN)+" services=1" {
			return fmt.Errorf("%s, %s took no part: %s", s.Scenario, s.Peer, s.Absent)
		}
	}
	for _, s := range r.Series {
		if len(s.Samples) > 0 && s.Better == "higher" && s.Metric != "offered" && s.Median <= 0 && s.Peer != "generator" {
			return fmt.Errorf("%s, %s %s: %s is %v", s.Scenario, s.Workload, s.Peer, s.Metric, s.Median)
		}
	}
	return nil
}
