// Package xdpprog holds Sluice's kernel side: the classifier in C, its generated
// Go, and what loads it, keeps its maps and attaches it.
//
// The classifier decides for each frame on a port whether it is the daemon's.
// It hands such a frame to the AF_XDP socket of its port and queue; all else is
// the kernel's, unchanged. There are three programs for one set of maps:
//
//	sluice_xdp     XDP on the ingress of direct ports and of the return port
//	sluice_steer   tcx on the ingress of steered ports
//	sluice_egress  tcx on the egress of every port but the return port
//
// A [Spec] says what to load; [Load] makes or adopts the maps and loads the
// programs; [Objects] is the live set. With a pin directory maps and links
// outlive the process: the programs go on without it (and let the kernel serve,
// since nobody beats), and the next process adopts what it finds and puts its
// own programs in place without a gap.
//
// Who writes what: the daemon writes every map but the counters, the programs
// write nothing but the counters. The flow table's two arrays and the beats are
// shared memory, see [Objects.FlowIndex].
//
// The package knows nothing of Services, and nothing of what a flow means
// beyond its tuple.
//
// The generated files are committed; `go generate ./xdpprog` needs clang and
// llvm-strip 14, a build needs neither.
package xdpprog
