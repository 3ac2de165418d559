// Package bench measures dataplanes for ClusterIPs beside each other on veth
// pairs: kernel routing, kube-proxy, eBPF on tc and XDP, and Sluice in its forms.
//
// # How it is built
//
//	site.go       a peer's own lab: one client pod, backend pods, a node between them
//	world.go      the Services that every peer of a round serves, the same for all
//	peer.go       what a peer is; peer_*.go: one small file each
//	stamp.go      what each datagram carries, so that a receiver can tell what became of it
//	tally.go      what was sent, received, lost, duplicated, reordered, corrupted, mis-sourced
//	udp.go        ordinary sockets: sendmmsg and recvmmsg
//	inject.go     XDP frames by BPF_PROG_TEST_RUN, and the sink on tc ingress
//	crr.go, bulk.go, rtt.go   TCP connections, TCP streams, round trips
//	workload.go   what is measured, and how often
//	run.go        rounds of all peers in turn, one result file, resumable
//	result.go     the JSON of a run, documented in docs/bench.md
//	compare.go    what may be compared, and whether a difference means anything
//
// # How it measures
//
// All peers of a run stand at the same time, each in namespaces of its own, and idle
// but for the one whose turn it is. A round is one turn of each; there are at
// least three, in changing order. A result is the median over the rounds with all
// samples beside it, and a ratio to the baseline of the same rounds.
//
// Every datagram is counted by its number at the far end. A result of a run that
// corrupted one, or delivered one from a wrong source, says so.
//
// It needs root.
package bench
