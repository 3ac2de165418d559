package bench

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// Comparison is one series in two results.
type Comparison struct {
	Scenario, Workload, Params, Peer, Metric, Unit string
	Old, New                                       float64 // medians
	Change                                         float64 // of the median, as a share of the old
	P                                              float64 // of the rank test
	N, M                                           int     // samples
	// Significant means that P is at most alpha, Better that it is so for the better.
	Significant, Better bool
}

// Compared is what two results come to beside each other.
type Compared struct {
	Series []Comparison
	// Refused says what is in both and cannot be compared, and why.
	Refused []string
	// Alone says what is in one only.
	Alone []string
}

// alpha is how likely a difference may be by chance and still count. With less than
// four rounds on each side no difference can be that unlikely.
const alpha = 0.05

// Compare compares two results. What was measured under other conditions is refused: all of it
// if machine or kind of run differ, single series if what peers were granted differs.
func Compare(a, b *Result) (*Compared, error) {
	var why []string
	if w := a.Machine.comparable(b.Machine); w != "" {
		why = append(why, w)
	}
	if a.Duration != b.Duration {
		why = append(why, fmt.Sprintf("measurements of %g s and of %g s", a.Duration, b.Duration))
	}
	if a.Machine.Clocksource != b.Machine.Clocksource {
		why = append(why, fmt.Sprintf("clock %s and %s", a.Machine.Clocksource, b.Machine.Clocksource))
	}
	if len(why) > 0 {
		return nil, fmt.Errorf("not comparable: %w", errors.Join(errorsOf(why)...))
	}
	c := &Compared{}
	refused := map[[2]string]string{}
	for _, sa := range a.Stands {
		for _, sb := range b.Stands {
			if sa.Scenario != sb.Scenario || sa.Peer != sb.Peer {
				continue
			}
			switch {
			case sa.MTU != sb.MTU && sa.MTU != 0 && sb.MTU != 0:
				refused[[2]string{sa.Scenario, sa.Peer}] = fmt.Sprintf("MTU %d and %d", sa.MTU, sb.MTU)
			case sa.Offloads != sb.Offloads && sa.Offloads != "" && sb.Offloads != "":
				refused[[2]string{sa.Scenario, sa.Peer}] = fmt.Sprintf("offloads: %s, and %s", sa.Offloads, sb.Offloads)
			}
		}
	}
	said := map[[2]string]bool{}
	for _, x := range a.Series {
		y := b.find(x.Scenario, x.Workload, x.Params, x.Metric, x.Peer)
		if len(x.Samples) == 0 || y == nil || len(y.Samples) == 0 {
			if len(x.Samples) > 0 && x.Metric == mainMetric(x.Workload) {
				c.Alone = append(c.Alone, fmt.Sprintf("%s, %s %s, %s: only in the first", x.Scenario, x.Workload, x.Params, x.Peer))
			}
			continue
		}
		at := [2]string{x.Scenario, x.Peer}
		if w := refused[at]; w != "" {
			if !said[at] {
				said[at] = true
				c.Refused = append(c.Refused, fmt.Sprintf("%s, %s: %s", x.Scenario, x.Peer, w))
			}
			continue
		}
		k := Comparison{
			Scenario: x.Scenario, Workload: x.Workload, Params: x.Params, Peer: x.Peer, Metric: x.Metric, Unit: x.Unit,
			Old: median(x.Samples), New: median(y.Samples), P: rankTest(x.Samples, y.Samples), N: len(x.Samples), M: len(y.Samples),
		}
		if k.Old != 0 {
			k.Change = (k.New - k.Old) / math.Abs(k.Old)
		}
		k.Significant = k.P <= alpha
		k.Better = k.Significant && (k.New > k.Old) == (x.Better == "higher")
		c.Series = append(c.Series, k)
	}
	for _, y := range b.Series {
		if x := a.find(y.Scenario, y.Workload, y.Params, y.Metric, y.Peer); (x == nil || len(x.Samples) == 0) && len(y.Samples) > 0 && y.Metric == mainMetric(y.Workload) {
			c.Alone = append(c.Alone, fmt.Sprintf("%s, %s %s, %s: only in the second", y.Scenario, y.Workload, y.Params, y.Peer))
		}
	}
	if len(c.Series) == 0 && len(c.Refused) == 0 {
		return nil, errors.New("not comparable: the two have no measurement in common")
	}
	return c, nil
}

func errorsOf(lines []string) (errs []error) {
	for _, l := range lines {
		errs = append(errs, errors.New(l))
	}
	return errs
}

// Write writes the comparison as text; all metrics, or of each workload the one that it is about.
func (c *Compared) Write(w io.Writer, all bool) {
	t := &textWriter{w}
	var scenarios []string
	for _, s := range c.Series {
		if !slices.Contains(scenarios, s.Scenario) {
			scenarios = append(scenarios, s.Scenario)
		}
	}
	few := false
	for _, scenario := range scenarios {
		var rows [][]string
		for _, s := range c.Series {
			if s.Scenario != scenario || !all && s.Metric != mainMetric(s.Workload) {
				continue
			}
			verdict := "~"
			switch {
			case s.Better:
				verdict = fmt.Sprintf("%+.1f%% better", 100*s.Change)
			case s.Significant:
				verdict = fmt.Sprintf("%+.1f%% worse", 100*s.Change)
			}
			few = few || s.N < 4 || s.M < 4
			rows = append(rows, []string{s.Workload, s.Params, s.Peer, s.Metric, number(s.Old), number(s.New), s.Unit, verdict, fmt.Sprintf("p=%.3f n=%d+%d", s.P, s.N, s.M)})
		}
		t.heading("Scenario " + scenario)
		t.table([]string{"workload", "", "peer", "metric", "first", "second", "", "", ""}, rows)
	}
	for _, r := range c.Refused {
		fmt.Fprintf(w, "  not compared: %s\n", r)
	}
	for _, r := range c.Alone {
		fmt.Fprintf(w, "  %s\n", r)
	}
	if few {
		fmt.Fprintf(w, "  with less than four rounds on a side no difference can be told from chance at p <= %g: use --repeats\n", alpha)
	}
}

// Line is the last line of a comparison.
func (c *Compared) Line() string {
	better, worse := 0, 0
	for _, s := range c.Series {
		switch {
		case s.Better:
			better++
		case s.Significant:
			worse++
		}
	}
	return fmt.Sprintf("compare: series=%d better=%d worse=%d equal=%d refused=%d alone=%d",
		len(c.Series), better, worse, len(c.Series)-better-worse, len(c.Refused), len(c.Alone))
}
