// Package preflight asks, before anything is attached, whether this machine
// and this process can do what the configuration wants.
//
// Everything here would come out later too, as EPERM or ENOENT from somewhere
// deep. Here it comes out as one line that names what is missing and what to
// do about it, and with nothing half done.
package preflight
