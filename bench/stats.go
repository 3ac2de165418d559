package bench

import (
	"math"
	"slices"
)

// median of samples; 0 of none.
func median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	n := len(s)
	switch {
	case n == 0:
		return 0
	case n%2 == 1:
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

// spread is the distance of the farthest sample from the median, as a share of it.
func spread(samples []float64) float64 {
	m := median(samples)
	if m == 0 {
		return 0
	}
	far := 0.0
	for _, x := range samples {
		far = max(far, math.Abs(x-m))
	}
	return far / math.Abs(m)
}

// rankTest is the two-sided Mann-Whitney U test: the probability that samples of one
// and the same thing differ in rank at least as much as these. It is exact, by counting
// every way to deal the ranks, with ties as average ranks.
//
// Mann and Whitney, On a test of whether one of two random variables is stochastically
// larger than the other, Annals of Mathematical Statistics 18 (1947).
func rankTest(a, b []float64) float64 {
	n, m := len(a), len(b)
	if n == 0 || m == 0 {
		return 1
	}
	ranks := ranksOf(append(slices.Clone(a), b...))
	observed := 0
	for _, r := range ranks[:n] {
		observed += r
	}
	// ways[k][s]: in how many ways k of the ranks sum to s. Ranks are doubled, so
	// that averages are whole.
	total := 0
	for _, r := range ranks {
		total += r
	}
	ways := make([][]float64, n+1)
	for k := range ways {
		ways[k] = make([]float64, total+1)
	}
	ways[0][0] = 1
	for _, r := range ranks {
		for k := n - 1; k >= 0; k-- {
			for s := total - r; s >= 0; s-- {
				ways[k+1][s+r] += ways[k][s]
			}
		}
	}
	// Sums as far from the mean as the observed one. The mean of the sum is
	// n·total/(n+m); compare multiplied out.
	far := func(s int) int { return max(s*(n+m)-n*total, n*total-s*(n+m)) }
	var all, extreme float64
	for s, w := range ways[n] {
		all += w
		if far(s) >= far(observed) {
			extreme += w
		}
	}
	return extreme / all
}

// ranksOf gives twice the rank of each value, equal ones the average of theirs.
func ranksOf(values []float64) []int {
	order := make([]int, len(values))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		switch {
		case values[i] < values[j]:
			return -1
		case values[i] > values[j]:
			return 1
		}
		return 0
	})
	ranks := make([]int, len(values))
	for i := 0; i < len(order); {
		j := i
		for j < len(order) && values[order[j]] == values[order[i]] {
			j++
		}
		for _, o := range order[i:j] {
			ranks[o] = (i + 1) + j // twice the average of i+1..j
		}
		i = j
	}
	return ranks
}
