package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Schema names the form of a result file. docs/bench.md documents it.
const Schema = "sluice.dev/bench/v1"

// Result is one run of the suite.
type Result struct {
	Schema   string    `json:"schema"`
	Command  string    `json:"command"`
	Version  string    `json:"version"` // of the program
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished,omitzero"`
	Machine  Machine   `json:"machine"`
	Baseline string    `json:"baseline"`
	Repeats  int       `json:"repeats"`
	Duration float64   `json:"duration_s"` // of one measurement
	Quick    bool      `json:"quick"`
	// Warnings say what makes the run worth less.
	Warnings []string  `json:"warnings,omitempty"`
	Stands   []*Stand  `json:"stands"`
	Series   []*Series `json:"series"`
	// Profiles are there if they were asked for.
	Profiles []*Profile `json:"profiles,omitempty"`
}

// Stand is a peer in a scenario: what it was, and what it was granted.
type Stand struct {
	Scenario   string   `json:"scenario"`
	Peer       string   `json:"peer"`
	About      string   `json:"about"`
	Translates bool     `json:"translates"`
	MTU        int      `json:"mtu"`
	Offloads   string   `json:"offloads,omitempty"`
	Granted    []string `json:"granted,omitempty"`
	Absent     string   `json:"absent,omitempty"` // why it did not take part
}

// Series is what one peer came to in one measurement, a sample a round.
type Series struct {
	Scenario string    `json:"scenario"` // topology and number of Services
	Workload string    `json:"workload"`
	Params   string    `json:"params,omitempty"`
	Peer     string    `json:"peer"`
	Metric   string    `json:"metric"`
	Unit     string    `json:"unit"`
	Better   string    `json:"better"` // higher or lower
	Samples  []float64 `json:"samples"`
	Median   float64   `json:"median"`
	// Spread is the distance of the farthest sample from the median, as a share.
	Spread float64 `json:"spread"`
	// Ratio is the median over the baseline's; 0 if that has none.
	Ratio   float64 `json:"ratio,omitempty"`
	Tally   *Tally  `json:"tally,omitempty"`   // summed over the rounds
	Note    string  `json:"note,omitempty"`    // what must be read beside it
	Skipped string  `json:"skipped,omitempty"` // why there are no samples
}

// key is what must be equal for series to be of the same thing.
func (s *Series) key() string {
	return s.Scenario + "|" + s.Workload + "|" + s.Params + "|" + s.Metric
}

// find returns a series, or nil.
func (r *Result) find(scenario, workload, params, metric, peer string) *Series {
	for _, s := range r.Series {
		if s.Peer == peer && s.Scenario == scenario && s.Workload == workload && s.Params == params && s.Metric == metric {
			return s
		}
	}
	return nil
}

// settle computes what follows from the samples.
func (r *Result) settle() {
	base := map[string]float64{}
	for _, s := range r.Series {
		s.Median, s.Spread = median(s.Samples), spread(s.Samples)
		if s.Peer == r.Baseline && len(s.Samples) > 0 {
			base[s.key()] = s.Median
		}
	}
	for _, s := range r.Series {
		s.Ratio = 0
		if b := base[s.key()]; b != 0 && len(s.Samples) > 0 {
			s.Ratio = s.Median / b
		}
	}
}

// totals are all datagrams of a run.
func (r *Result) totals() (t Tally) {
	type measurement struct{ scenario, workload, params, peer string }
	counted := map[measurement]bool{} // its series share a tally
	for _, s := range r.Series {
		m := measurement{s.Scenario, s.Workload, s.Params, s.Peer}
		if s.Tally != nil && !counted[m] {
			counted[m] = true
			t.add(*s.Tally)
		}
	}
	return t
}

// peers are the names of those that have stands, in order of appearance.
func (r *Result) peers() (names []string) {
	for _, s := range r.Stands {
		if !slices.Contains(names, s.Peer) {
			names = append(names, s.Peer)
		}
	}
	return names
}

// Write writes the result, whole or not at all.
func (r *Result) Write(name string) error {
	r.settle()
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return replaceFile(filepath.Dir(name), filepath.Base(name), append(b, '\n'))
}

// ReadResult reads a result file.
func ReadResult(name string) (*Result, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var r Result
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if r.Schema != Schema {
		return nil, fmt.Errorf("%s: schema %q, want %q", name, r.Schema, Schema)
	}
	return &r, nil
}
