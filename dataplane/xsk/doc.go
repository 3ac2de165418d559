// Package xsk is Sluice's AF_XDP layer: a umem, the four rings of a socket, and
// the system calls around them. It is the Go twin of libxdp's headers/xdp/xsk.h and
// uses the same verbs.
//
// # The mental model
//
// A [Umem] is one piece of memory cut into frames of equal size. A [Socket] serves one
// queue of one device through four rings, which the kernel and the process share:
//
//	                 frames to receive into
//	      FillRing  ------------------------->  kernel
//	      RxRing    <-------------------------  kernel     frames received
//	      TxRing    ------------------------->  kernel     frames to send
//	CompletionRing  <-------------------------  kernel     frames sent
//
// Fill and completion carry frame addresses (offsets into the umem), rx and tx carry
// descriptors ([Desc]: address, length, options). On the rings that we produce, entries are
// reserved, written, submitted; on those that we consume they are peeked, read, released.
// Sockets on many devices share one Umem, so a frame received on one is sent on another
// without a copy.
//
// A worker's loop over one socket, by the batch verbs, which are made of the ring verbs:
//
//	s.Complete(cache)          // frames that were sent go back to the worker's cache
//	s.Refill(cache)            // free frames go to the kernel
//	n := s.Receive(descs[:])   // received frames are the worker's
//	...
//	m := out.Transmit(descs[:n])
//	out.Kick()                 // one system call a batch
//
// # The ownership rule
//
// A frame is owned by exactly one of: the free pool (or a worker's [Cache] of it), a fill
// ring, a worker's batch, a tx ring, a completion ring. "Fill ring" reads "the kernel, for
// receiving": from the submit to the fill ring until the peek at the rx ring; "tx ring" from
// the submit until the completion is there. With [UmemConfig.CheckFrames] every transition is
// verified and [Checker.Check] proves the sum.
//
// Rings have a single owner: the worker that serves the socket. If workers send on each
// other's sockets, they hold a lock of their own around Complete, Transmit and Kick. A Umem, a
// Pool and Open may be used from any goroutine.
//
// The fill ring is never handed more frames than the rx ring can take back. In copy mode the
// kernel then never has to put a frame aside (net/xdp/xsk_buff_pool.c: xp_free), and a Socket
// can account for each of its frames when it closes.
//
// # What it does not do
//
// No XDP programs, no maps, no flows, no packet parsing. Chunks are aligned; the unaligned chunk
// mode buys nothing in copy mode and is not offered. Every Socket receives and sends. Zero copy
// is offered, reported and, for want of a device, untested.
//
// # Tests against the kernel's own
//
// The kernel tests AF_XDP with tools/testing/selftests/bpf (test_xsk.h lists the 24 cases that
// its CI runs, and 12 more). Ours say the same about this package, on veth, with a native and
// with a generic XDP program:
//
//	kernel's case                   ours (selftest_test.go: TestSelftest/<mode>/...)
//	SEND_RECEIVE                    send_receive
//	SEND_RECEIVE_2K_FRAME           send_receive_2k_frame
//	SEND_RECEIVE_SINGLE_PKT         send_receive_single_packet
//	POLL_RX                         poll_rx
//	POLL_TX                         poll_tx
//	POLL_RXQ_FULL                   poll_rx_timeout
//	POLL_TXQ_FULL                   poll_tx_timeout
//	ALIGNED_INV_DESC                invalid_descriptors
//	ALIGNED_INV_DESC_2K_FRAME_SIZE  invalid_descriptors_2k_frame
//	UMEM_HEADROOM                   headroom
//	BIDIRECTIONAL                   bidirectional
//	STAT_RX_DROPPED                 stats_rx_dropped
//	STAT_TX_INVALID                 stats_tx_invalid
//	STAT_RX_FULL                    stats_rx_full (through the bare rings: the package's own
//	                                fill limit makes the state unreachable, also asserted)
//	STAT_FILL_EMPTY                 stats_fill_empty
//	XDP_PROG_CLEANUP                program_cleanup
//	XDP_DROP_HALF                   drop_half
//	XDP_SHARED_UMEM                 shared_umem (over two devices, which the kernel's does not)
//	XDP_METADATA_COPY               metadata_copy
//	XDP_METADATA_COPY_MULTI_BUFF    metadata_copy_multi_buffer
//	ALIGNED_INV_DESC_MULTI_BUFF     invalid_descriptors_multi_buffer
//	TOO_MANY_FRAGS                  too_many_frags
//	XDP_ADJUST_TAIL_SHRINK          adjust_tail_shrink
//	TX_QUEUE_CONSUMER               tx_queue_consumer
//
//	outside the kernel's CI
//	SEND_RECEIVE_9K_PACKETS         send_receive_9k
//	TEARDOWN                        teardown
//	HW_SW_MAX_RING_SIZE             ring_size_max (the software rings; veth has no others)
//	HW_SW_MIN_RING_SIZE             ring_size_min (likewise)
//	XDP_ADJUST_TAIL_GROW            none: whether veth has the tail room is up to the frame's
//	                                allocation, and not the socket's business
//	XDP_ADJUST_TAIL_*_MULTI_BUFF    none: likewise
//	UNALIGNED_* (4 cases)           none: the mode is not offered
//
// Zero-copy variants of the cases need a NIC and are not run. Busy-poll variants are not run:
// a veth socket has no NAPI id to poll.
package xsk
