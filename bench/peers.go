package bench

import "os/exec"

// Programs are what peers are started from.
type Programs struct {
	// Sluice starts `sluice` with arguments; Other another build of it, nil for
	// none.
	Sluice, Other func(args ...string) *exec.Cmd
	// Kubernetes is the folder of etcd, kube-apiserver and kube-proxy.
	Kubernetes string
}

// Peers are all that take part, in the order of tables.
func Peers(p Programs) []Peer {
	peers := []Peer{
		generatorPeer{},
		plain{},
		&kubeProxy{mode: "iptables", binaries: p.Kubernetes},
		&kubeProxy{mode: "nftables", binaries: p.Kubernetes},
		tcNAT{},
		xdpNAT{},
	}
	peers = append(peers, sluicePeers(p.Sluice, "")...)
	if p.Other != nil {
		peers = append(peers, sluicePeers(p.Other, "-other")...)
	}
	return peers
}

// PeerNames are their names.
func PeerNames() []string {
	var names []string
	for _, p := range Peers(Programs{Other: func(...string) *exec.Cmd { return nil }}) {
		names = append(names, p.Name())
	}
	return names
}
