// Package apiserver is the source of Services that watches a Kubernetes API server. It is the only package that imports
// client-go.
//
// One reflector a kind of object (client-go's tools/cache) lists and watches, and writes into the Catalog itself rather than
// into a cache of objects: what is not read is not kept. A relist is a Replace, so it is a diff against all that is known,
// and a deletion that was missed cannot stay. A single goroutine commits the Catalog and publishes Snapshots: not before
// every kind has been listed once, at once after a change if there was none for a while, and then no more often than
// Config.MinSyncPeriod.
//
// When the server cannot be reached, is slow, or talks nonsense, the last state serves on and Status tells its age. A state
// file holds the last state for a start without the server.
package apiserver
