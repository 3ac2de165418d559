package bench

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// WriteTable writes a result as text: a table for each measurement, a row for each peer.
func (r *Result) WriteTable(w io.Writer) {
	r.writeTables(&textWriter{w: w})
}

// tables is how a report is written.
type tables interface {
	heading(s string)
	facts(lines [][2]string)
	table(columns []string, rows [][]string)
	notes(lines []string)
}

func (r *Result) writeTables(t tables) {
	t.heading("The run")
	t.facts(r.factLines())
	t.notes(r.Warnings)
	for _, scenario := range r.scenarios() {
		rows := [][]string{}
		for _, s := range r.Stands {
			if s.Scenario == scenario {
				what := strings.Join(s.Granted, "; ")
				if s.Absent != "" {
					what = "absent: " + s.Absent
				} else if s.Offloads != "" {
					what = strings.TrimPrefix(what+"; "+s.Offloads, "; ")
				}
				rows = append(rows, []string{s.Peer, s.About, what})
			}
		}
		t.heading("Scenario " + scenario)
		t.table([]string{"peer", "what it is", "granted"}, rows)
		r.writeMeasurements(t, scenario)
	}
	if len(r.Profiles) > 0 {
		t.heading("The way of a frame")
		r.writeProfiles(t)
	}
}

func (r *Result) factLines() [][2]string {
	m := r.Machine
	kind := "metal"
	if m.Virtual {
		kind = "virtual"
	}
	return [][2]string{
		{"command", r.Command},
		{"version", r.Version},
		{"date", r.Started.Format("2006-01-02 15:04 MST")},
		{"machine", fmt.Sprintf("%s, %d cores (%s), %d GiB, Linux %s, clock %s", m.CPU, m.Cores, kind, m.MemoryBytes>>30, m.Kernel, m.Clocksource)},
		{"go", m.Go},
		{"rounds", fmt.Sprintf("%d of %g s, all peers in turn; medians, ± the farthest round; ratios to %s of the same rounds", r.Repeats, r.Duration, r.Baseline)},
		{"load at the start", m.LoadAtStart},
		{"datagrams", r.totals().String()},
	}
}

func (r *Result) scenarios() (names []string) {
	for _, s := range r.Stands {
		if !slices.Contains(names, s.Scenario) {
			names = append(names, s.Scenario)
		}
	}
	return names
}

// writeMeasurements writes a table for each workload of a scenario, a column for each metric.
func (r *Result) writeMeasurements(t tables, scenario string) {
	type id struct{ workload, params string }
	var order []id
	for _, s := range r.Series {
		i := id{s.Workload, s.Params}
		if s.Scenario == scenario && !slices.Contains(order, i) {
			order = append(order, i)
		}
	}
	for _, i := range order {
		var columns []string
		for _, s := range r.Series {
			if s.Scenario == scenario && s.Workload == i.workload && s.Params == i.params && len(s.Samples) > 0 && !slices.Contains(columns, s.Metric) {
				columns = append(columns, s.Metric)
			}
		}
		main := mainMetric(i.workload)
		slices.SortFunc(columns, func(a, b string) int {
			if (a == main) != (b == main) {
				if a == main {
					return -1
				}
				return 1
			}
			return strings.Compare(a, b)
		})
		header := []string{"peer"}
		for _, c := range columns {
			header = append(header, c+" "+metrics[c].unit)
			if c == main {
				header = append(header, "× "+r.Baseline)
			}
		}
		var rows [][]string
		var notes []string
		for _, peer := range r.peers() {
			row, any := []string{peer}, false
			for _, c := range columns {
				s := r.find(scenario, i.workload, i.params, c, peer)
				cells := []string{""}
				if c == main {
					cells = []string{"", ""}
				}
				if s != nil && len(s.Samples) > 0 {
					any = true
					cells[0] = fmt.Sprintf("%s ±%.0f%%", number(s.Median), 100*s.Spread)
					if c == main && s.Ratio > 0 {
						cells[1] = fmt.Sprintf("%.2f", s.Ratio)
						if !r.translates(peer) {
							cells[1] = "(" + cells[1] + ")" // a floor, no competitor
						}
					}
				}
				if s != nil && s.Skipped != "" {
					notes = append(notes, peer+": "+s.Skipped)
				}
				if s != nil && s.Note != "" && c == main {
					notes = append(notes, peer+": "+s.Note)
				}

				if s != nil && s.Tally != nil && c == main && (s.Tally.Duplicated|s.Tally.Reordered|s.Tally.Corrupted|s.Tally.WrongSource) != 0 {
					notes = append(notes, peer+": "+s.Tally.String())
				}
				row = append(row, cells...)
			}
			if any {
				rows = append(rows, row)
			} else if s := r.find(scenario, i.workload, i.params, main, peer); s != nil && s.Skipped != "" && len(columns) == 0 {
				notes = append(notes, peer+": "+s.Skipped)
			}
		}
		t.heading(strings.TrimSpace(i.workload + " " + i.params))
		t.table(header, rows)
		t.notes(notes)
	}
}

// translates reports whether a peer serves Services.
func (r *Result) translates(peer string) bool {
	return slices.ContainsFunc(r.Stands, func(s *Stand) bool { return s.Peer == peer && s.Translates })
}

// number writes three significant digits, and thousands as k and M.
func number(x float64) string {
	unit := ""
	switch a := math.Abs(x); {
	case a >= 1e6:
		x, unit = x/1e6, "M"
	case a >= 1e4:
		x, unit = x/1e3, "k"
	}
	digits := 0
	if a := math.Abs(x); a > 0 && a < 100 {
		digits = min(4, max(0, 2-int(math.Floor(math.Log10(a)))))
	}
	return strconv.FormatFloat(x, 'f', digits, 64) + unit
}

// textWriter writes for a terminal.
type textWriter struct{ w io.Writer }

func (t *textWriter) heading(s string) { fmt.Fprintf(t.w, "\n%s\n", s) }

func (t *textWriter) facts(lines [][2]string) {
	for _, l := range lines {
		fmt.Fprintf(t.w, "  %-18s %s\n", l[0], l[1])
	}
}

func (t *textWriter) table(columns []string, rows [][]string) {
	width := make([]int, len(columns))
	for _, row := range append([][]string{columns}, rows...) {
		for i, c := range row {
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	for _, row := range append([][]string{columns}, rows...) {
		var b strings.Builder
		b.WriteString(" ")
		for i, c := range row {
			fmt.Fprintf(&b, " %s%s ", c, strings.Repeat(" ", width[i]-len([]rune(c))))
		}
		fmt.Fprintln(t.w, strings.TrimRight(b.String(), " "))
	}
}

func (t *textWriter) notes(lines []string) {
	for _, l := range lines {
		fmt.Fprintf(t.w, "  * %s\n", l)
	}
}
