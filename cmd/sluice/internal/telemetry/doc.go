// Package telemetry shows the dataplane to the outside: metrics, health and
// profiles over HTTP.
//
// Nothing here runs until somebody asks. The workers keep plain counters and
// publish them; a scrape takes one picture of them (dataplane.Stats) and makes
// constant metrics of it, so that a metric costs the packet loop nothing, and
// all the numbers of one scrape are of one moment.
//
// Each listener has a mux of its own: health may be reachable from where
// metrics are not, and nothing is ever registered with http.DefaultServeMux,
// into which packages put handlers by merely being imported.
package telemetry
