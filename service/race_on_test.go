//go:build race

package service

// raceEnabled shrinks what the race detector makes ten times slower.
const raceEnabled = true
