// Package demo shows Sluice at work on a bare machine: it builds a node with
// pods out of network namespaces, lets the daemon serve it, sends ordinary
// clients through it, and checks and prints what came of it.
//
// # The order of things
//
//	demo.go       the stages, and the last line
//	stand.go      what netlab asks of its owner, for a command
//	lab.go        the node, its pods, their servers; the picture of it
//	manifests.go  the Services, as files in a folder that the daemon watches
//	daemon.go     the daemon, from its start to the accounts at its end
//	watch.go      captures in the pods: every frame that arrives is verified
//	traffic.go    the exchanges, and which backend got them
//	path.go       one frame before and after each rewrite
//	edit.go       a backend leaves while connections are open
//	leftovers.go  what is not as it was before
//	print.go      lines for people
//
// # What counts
//
// Everything in the last line is measured from the outside: exchanges compare
// what came back bit by bit, servers tell whom they saw, captures verify each
// checksum with arithmetic of their own. Only frames are counted by the
// dataplane, which is asked after its end.
//
// The daemon is the real one: demo gets the function that `sluice run` calls,
// and gives it a configuration like any other.
package demo
