package bench

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestMedianAndSpread(t *testing.T) {
	for _, tt := range []struct {
		samples        []float64
		median, spread float64
	}{
		{nil, 0, 0}, {[]float64{5}, 5, 0}, {[]float64{4, 1, 2}, 2, 1}, {[]float64{1, 2, 3, 4}, 2.5, 0.6},
	} {
		if m, s := median(tt.samples), spread(tt.samples); m != tt.median || math.Abs(s-tt.spread) > 1e-9 {
			t.Errorf("%v: median %v spread %v", tt.samples, m, s)
		}
	}
}

// rankTestSlow deals the values to the two sides in every way.
func rankTestSlow(a, b []float64) float64 {
	all := append(slices.Clone(a), b...)
	ranks := ranksOf(all)
	mean := 0.0
	for _, r := range ranks {
		mean += float64(r)
	}
	mean = mean / float64(len(all)) * float64(len(a))
	distance := func(set uint) float64 {
		sum := 0.0
		for i, r := range ranks {
			if set>>i&1 == 1 {
				sum += float64(r)
			}
		}
		return math.Abs(sum - mean)
	}
	observed := distance(1<<len(a) - 1)
	count, extreme := 0, 0
	for set := range uint(1) << len(all) {
		ones := 0
		for i := range all {
			ones += int(set >> i & 1)
		}
		if ones != len(a) {
			continue
		}
		count++
		if distance(set) >= observed-1e-9 {
			extreme++
		}
	}
	return float64(extreme) / float64(count)
}

func TestRankTest(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		a, b := make([]float64, 1+r.IntN(5)), make([]float64, 1+r.IntN(5))
		for i := range a {
			a[i] = float64(r.IntN(8))
		}
		for i := range b {
			b[i] = float64(r.IntN(8)) + float64(r.IntN(3))
		}
		if got, want := rankTest(a, b), rankTestSlow(a, b); math.Abs(got-want) > 1e-9 {
			t.Fatalf("%v %v: %v, the twin says %v", a, b, got, want)
		}
	}
	// Two apart of three and three: 2 of 20 ways.
	if p := rankTest([]float64{1, 2, 3}, []float64{4, 5, 6}); math.Abs(p-0.1) > 1e-9 {
		t.Errorf("three below three: p=%v, want 0.1", p)
	}
	if p := rankTest([]float64{1, 2, 3, 4}, []float64{5, 6, 7, 8}); p >= 0.05 {
		t.Errorf("four below four: p=%v", p)
	}
	if p := rankTest([]float64{1, 1}, []float64{1, 1}); p != 1 {
		t.Errorf("the same: p=%v", p)
	}
}
