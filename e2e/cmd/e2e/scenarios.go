package main

import "slices"

// scenarios are all of them.
func scenarios() []scenario {
	return slices.Concat(serviceScenarios(), conntrackScenarios(), networkingScenarios(), sliceScenarios(), distributionScenarios(), restartScenarios())
}
