// Package dataplane moves frames: ports, workers, the packet loop, and the way
// out of the node.
//
// # The way of a frame
//
// The classifier (package xdpprog) redirects a frame of a Service into the
// AF_XDP socket of the port and queue that it came in by. From there, in the
// order of the files:
//
//	worker.go      a worker owns the queue; it spins while there is traffic, then sleeps
//	loop.go        receive a batch, parse all, look all up, decide each, flush the outboxes
//	flow.go        what a known flow, and the first frame of a new one, come to
//	masquerade.go  whose flows get an address of the node, and affinity.go who returns to a backend
//	fragments.go   what shares the fate of its datagram's first piece
//	icmperror.go   errors about known flows
//	errorlimit.go  how many answers of our own are sent
//	stateless.go   what goes on when the table is full
//	verdict.go     how a frame can end, and why: each end is counted
//	adjacency.go   where a flow leaves: a direct port with link-layer addresses, or the return port
//	egress.go      which follows the kernel's routes, neighbours and links (fib.go)
//	returnport.go  the veth pair through which the node's kernel gets frames, and gives them
//	hostroute.go   the routes by which the node's own processes reach it
//	ports.go       opens and closes ports as devices come and go; select.go says which
//	maintain.go    ages flows, and lets removed records be used again
//	open.go        puts all of this in place
//	dataplane.go   runs it, publishes Services to it, and takes it away
//	flows.go, stats.go   what it says of itself; examine.go what a node lacks for it
//
// # Who owns what
//
// A worker is a goroutine on a thread of its own. It alone touches the receive
// side of its queues, its batch and its counters. The transmit side of a queue
// belongs to whoever holds the queue's lock, once a batch. The flow table is
// lock-free for lookups. Services come as an immutable snapshot through one
// atomic pointer, routes and neighbours as an immutable fib through another, and
// a worker loads both at most once a batch, a new flow, or a frame whose source
// is not seen at a glance (bridges, VLANs).
//
// The control loop (follow and maintain, a goroutine each) never touches
// a frame. Nothing waits for it.
//
// # What a worker must not do
//
// Allocate, block, log, or ask the time more than once a batch. A frame ends in
// exactly one Reason; received is always the sum over the reasons.
package dataplane
