// Package stand is what the suites of this module share: the owner of a lab in a command, servers that say who they are and
// clients that ask them over ordinary sockets, and the dataplanes that are to be compared.
package stand
