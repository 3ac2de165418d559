//go:build race

package nat

// Exhaustive tests take one value in so many: the race detector finds nothing in
// them, and makes each ten times slower.
const exhaustiveStep = 61
