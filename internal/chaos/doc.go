// Command chaos lets things happen to a daemon, a real process on a node of
// namespaces, while ordinary clients talk through it, and says what became of them.
//
// A kernel DNAT rule serves the same Service behind it, in kube-proxy's place, with
// random choice. Before the daemon starts some clients connect: these connections are
// the kernel's to their end. Then others do, which are the daemon's, and so are those
// that begin in the gaps that follow. All of them say something every 20 ms and want
// it back until the end.
//
//	kills    kill -9, and a start at once, as a supervisor does
//	hangs    SIGSTOP for a while, then SIGCONT
//	restarts SIGTERM and a start, as an update of a DaemonSet
//	changes  of devices, at random: link down and up, MTU, name
//	churn    pods come and go, many at once
//
// It closes with one line:
//
//	max_gap_ms      from the death until a new connection had an answer
//	max_forward_ms  from the restart until a known flow was forwarded again
//	max_hang_ms     from SIGSTOP until a new connection had an answer
//	max_back_ms     from SIGCONT until a known flow was forwarded again
//	tcp_lost        connections that broke, or had another answer than they wanted
//	leaks           descriptors, goroutines, KiB of locked memory that the daemon has
//	                more after the churn than before, and what cleanup leaves on the node
//	failures        whatever else was not as it should be; each is printed
//
// and fails if one of the last three is not 0.
package main
