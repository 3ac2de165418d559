package bench

import (
	"fmt"
	"slices"
	"strings"
)

// profileGroups are the profiles that belong into one picture.
func (r *Result) profileGroups() (groups [][]*Profile) {
	for _, p := range r.Profiles {
		i := slices.IndexFunc(groups, func(g []*Profile) bool {
			return g[0].Scenario == p.Scenario && g[0].Workload == p.Workload && g[0].Params == p.Params
		})
		if i < 0 {
			groups = append(groups, nil)
			i = len(groups) - 1
		}
		groups[i] = append(groups[i], p)
	}
	return groups
}

func profileTitle(p *Profile) string {
	return strings.TrimSpace(fmt.Sprintf("Where the time of a %s goes: %s %s, %s", p.Per, p.Workload, p.Params, p.Scenario))
}

// usedStages are the stages that have any time in a group.
func usedStages(group []*Profile) (names []string) {
	for _, s := range stages {
		if slices.ContainsFunc(group, func(p *Profile) bool { return p.Parts[s.name] > 0 }) {
			names = append(names, s.name)
		}
	}
	return names
}

// StagePlots draw where a frame's time goes, on all cores together, for the peers that were
// profiled.
func (r *Result) StagePlots() (svgs []string, err error) {
	for _, group := range r.profileGroups() {
		names := usedStages(group)
		var stacks []stack
		for _, p := range group {
			s := stack{label: p.Peer}
			for _, n := range names {
				s.parts = append(s.parts, p.Parts[n])
			}
			stacks = append(stacks, s)
		}
		svg, err := plotStacks(profileTitle(group[0]), "ns of CPU time, all cores", names, stacks)
		if err != nil {
			return nil, err
		}
		svgs = append(svgs, svg)
	}
	return svgs, nil
}

// writeProfiles writes the same as tables.
func (r *Result) writeProfiles(t tables) {
	for _, group := range r.profileGroups() {
		columns := []string{"ns of CPU time a " + group[0].Per}
		for _, p := range group {
			columns = append(columns, p.Peer)
		}
		var rows [][]string
		sums := make([]float64, len(group))
		for _, n := range usedStages(group) {
			row := []string{n}
			for i, p := range group {
				row = append(row, fmt.Sprintf("%.0f", p.Parts[n]))
				sums[i] += p.Parts[n]
			}
			rows = append(rows, row)
		}
		sum := []string{"all"}
		for _, x := range sums {
			sum = append(sum, fmt.Sprintf("%.0f", x))
		}
		t.heading(profileTitle(group[0]))
		t.table(columns, append(rows, sum))
	}
}
