//go:build !race

package nat

const exhaustiveStep = 1
