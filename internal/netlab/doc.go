// Package netlab builds small networks out of anonymous network namespaces: the one lab that the tests, the
// demo and the benchmarks share.
//
// # Model
//
// A [Lab] belongs to one [TB] (a *testing.T, or what a command brings along) and is taken down by its Cleanup. A
// [Namespace] is a network namespace without a name: nothing but a file descriptor of this process holds it, so it
// vanishes with the process, whatever way that dies, and takes devices, routes, rules and sockets with it.
// No namespace ever touches the host's own devices, and the mount namespace is never changed: pins in bpffs stay
// visible from inside.
//
//	lab := netlab.New(t)
//	a, b := lab.Namespace("a"), lab.Namespace("b")
//	lab.Veth(a, "eth0", b, "eth0", netlab.VethOptions{Queues: 2})
//	a.Addr("eth0", "192.0.2.1/24")
//	b.Addr("eth0", "192.0.2.2/24")
//	server := b.EchoUDP(netip.MustParseAddrPort("192.0.2.2:7"))
//	_, err := a.Exchange(ctx, "udp", server.Addr(), 64)
//
// What a lab is made of:
//
//   - [Lab.Namespace], [Lab.Veth], [Lab.Cluster]: namespaces, wires, and the standard topology (a node with client and
//     backend pods, and a remote backend behind an uplink) on the address plan of plan.go.
//   - [Namespace.Do] runs a function on a thread inside the namespace; [Namespace.Start] and [Namespace.Command] start
//     a process there; [Namespace.Dial], [Namespace.Listen] and [Namespace.ListenPacket] make ordinary sockets, which
//     can afterwards be used from any goroutine.
//   - [Namespace.Addr], Route, Neighbour, Up, Down, MTU, Sysctl, Offload, Channels: configuration.
//   - [Namespace.Inject] sends whole frames out of a device, [Namespace.Capture] sees those that pass it, and tells
//     which of them have an unfinished (partial) checksum; [VerifyChecksums] checks the others in full.
//   - [Namespace.EchoTCP], [Namespace.EchoUDP] and [Namespace.Exchange]: traffic between real sockets, checked bit for bit.
//   - [Namespace.DNAT]: the kernel's own translation of a frontend, in kube-proxy's place, as an oracle and fallback.
//   - [Namespace.State]: a listing of everything configured in a namespace, to be compared before and after.
//
// # Errors
//
// What builds (namespaces, devices, addresses, servers, captures) fails through TB.Fatalf, because no test can go
// on without it; it is called from the goroutine of the test. What makes traffic (Dial, Send, Next, Exchange) returns
// errors, because traffic that fails is what tests are about, and may be called from any goroutine.
//
// # Ownership
//
// The Lab owns its namespaces; a namespace's captures, servers, rules and processes are closed by the Cleanup of the
// TB, in reverse order of their making, and may be closed earlier. All types are safe for concurrent use unless
// they say otherwise.
//
// # What it does not do
//
// It knows nothing of what it is used for: no flow table, no Services, no AF_XDP. It needs root and Linux.
package netlab
