// Package kube starts real Kubernetes components in a lab's namespaces: etcd, kube-apiserver, kube-controller-manager and
// kube-proxy, built by `make kube` from the modules that ../components pins.
//
// A [ControlPlane] lives in one namespace. Its parts speak over that namespace's loopback; the API server is also on the
// address that it advertises, and wherever else [ControlPlane.Forward] makes a door to it. Keys, tokens and data are made
// afresh in a folder that the caller gives and gone with it; nothing outside of the namespace can reach any of it. All
// processes end with the lab, and with this process, whatever way that dies.
package kube
