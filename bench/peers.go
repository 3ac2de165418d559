package bench

import "os/exec"

// Peers are all that take part, in the order of tables. command starts `sluice`;
// kubernetes is the folder of kube-proxy and what it needs.
func Peers(command func(args ...string) *exec.Cmd, kubernetes string) []Peer {
	peers := []Peer{
		generatorPeer{},
		plain{},
		&kubeProxy{mode: "iptables", binaries: kubernetes},
		&kubeProxy{mode: "nftables", binaries: kubernetes},
		tcNAT{},
		xdpNAT{},
	}
	return append(peers, sluicePeers(command)...)
}

// PeerNames are their names.
func PeerNames() []string {
	var names []string
	for _, p := range Peers(nil, "") {
		names = append(names, p.Name())
	}
	return names
}
