// Sluice is a node dataplane for Kubernetes ClusterIP Services: it serves the
// interfaces it is told of over XDP and AF_XDP, and leaves to the kernel what
// it does not understand.
//
//	sluice run --interface eth0 --manifests ./services
//
// # What is here
//
// The command line and the daemon: nothing that a library room should do.
//
//	main.go, root.go   the command line, exit statuses, errors of one line
//	run.go             flags and file to a configuration
//	daemon.go          the daemon's life: everything is acquired in one order,
//	                   and let go in the reverse one
//	signals.go, log.go what their names say
//	services.go, flows.go   what is asked of a running daemon
//	config.go, cleanup.go, version.go, demo.go   the other verbs
//	internal/control   the socket by which it is asked
//	internal/config    the configuration file
//	internal/preflight what the machine must have
//	internal/instance  one daemon for a node
//	internal/telemetry metrics, health, profiles
//	internal/nearest   what a misspelt word was meant to be
//	internal/demo      the demo's lab, traffic and checks
//
// # Exit status
//
// 0 if all went well, 1 if something failed, 2 if the command line was wrong.
// Whatever fails says so on standard error in one line that begins with
// "sluice: ".
package main
