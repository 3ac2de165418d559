// Command differential compares Sluice's translation with the kernel's own NAT, byte for byte.
//
//	kernel's cluster                         Sluice's cluster (same addresses, same MACs)
//	  client0 .. client1                       client0 .. client1
//	        |   <-------- the same frames -------->   |
//	      node: nftables DNAT                      node: Sluice (in front of the same DNAT, or alone)
//	        |                                         |
//	  backend0, backend1, remote, outside      backend0, backend1, remote, outside
//	        |   --------> what comes out <--------    |
//	                    must be equal
//
// Frames are injected raw at the pods, which have no addresses and so never answer by themselves; what arrives at the pods,
// and at a host outside where all that is not translated goes, is captured and compared. What may differ is in two lists,
// which -explain prints and docs/differential.md has: fields ([ignored]) and classes of frames ([classes]), each with
// its reason.
//
// # Reading it
//
//	packet.go     a frame and how it is built
//	flow.go       random conversations, each decided by the seed and its own number alone
//	vectors*.go   the table of bad, odd and hostile frames, by name
//	side.go       one cluster with what translates in it
//	run.go        one step of many flows at a time through both sides, until both have said all
//	join.go       fragments, as their receiver has them
//	compare.go    what is compared, and what the fields are that are not
//	classes.go    differences that are meant
//	report.go     a difference as a person wants to read it, made small
//
// Frames are matched by content: a step of a flow has a client port of its own, and a round of markers after each batch
// says when all of it has come through. A frame that a capture lost is an error.
package main
