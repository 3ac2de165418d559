package bench

// StagePlots draw where a frame's time goes, for the peers that were profiled.
func (r *Result) StagePlots() []string { return nil }
