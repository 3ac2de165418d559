// Package nearest finds the word that a misspelt one was meant to be.
package nearest

import "strings"

// Word gives the candidate nearest to word, or "" if none is near: at most a
// third of the word may be wrong, in letters changed, added, left out or
// swapped with their neighbour. Case counts for nothing.
func Word(word string, candidates []string) string {
	best, bestDistance := "", len(word)/3+1
	for _, c := range candidates {
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d < bestDistance || d == 0 {
			best, bestDistance = c, d
		}
	}
	return best
}

// Words gives every candidate that is near to word or shares its beginning
// (all but the digits at its end), in the candidates' order, at most limit.
func Words(word string, candidates []string, limit int) []string {
	stem := strings.TrimRight(word, "0123456789")
	var near []string
	for _, c := range candidates {
		if len(near) == limit {
			break
		}
		if stem != "" && strings.HasPrefix(c, stem) || Word(word, []string{c}) != "" {
			near = append(near, c)
		}
	}
	return near
}

// distance is the optimal string alignment distance.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
