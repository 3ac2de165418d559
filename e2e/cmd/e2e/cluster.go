package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-net/sluice/e2e/kube"
	"github.com/sluice-net/sluice/e2e/stand"
	"github.com/sluice-net/sluice/internal/netlab"
)

// Pods that stand ready for scenarios to use, on the node and on the remote one.
const (
	localPods  = 28
	remotePods = 14
)

// node3 is a node of the same zone as node1. Its pods are on the remote node's network.
const node3 = "node3"

// nodes are the API's: where each lies in the lab (1 is the node that is tested), in which zone, and how large it is.
var nodes = []struct {
	name, zone string
	lab        int
	cpu        string
}{
	{stand.Node1, "zone-a", 1, "2"},
	{stand.Node2, "zone-b", 2, "4"},
	{node3, "zone-a", 2, "2"},
}

// labNode gives a node's number in the lab.
func labNode(name string) int {
	for _, n := range nodes {
		if n.name == name {
			return n.lab
		}
	}
	panic("no node " + name)
}

// The ranges of ClusterIPs: the upper half of the plan's is left for ServiceCIDRs that scenarios make.
const (
	services4 = "198.19.0.0/17"
	services6 = netlab.ClusterIPPrefix6
)

// cluster is what all scenarios share.
type cluster struct {
	lab       *netlab.Cluster
	control   *kube.ControlPlane
	client    kubernetes.Interface
	dataplane *stand.Dataplane
	free      map[int]chan *netlab.Pod // by the lab's node; those given back longest ago come first
	mode      string

	namespaces, hostPorts atomic.Int32
}

// close ends the processes. What is made of namespaces goes with its owner.
func (c *cluster) close() {
	if c.dataplane != nil {
		c.dataplane.Close()
	}
	if c.control != nil {
		c.control.Close()
	}
}

// start starts everything; close is to be called whatever comes of it.
func (c *cluster) start(ctx context.Context, owner *netlab.Stand, mode, bin string, keep bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	bin, err := filepath.Abs(bin)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sluice-e2e-")
	if err != nil {
		return err
	}
	if keep {
		fmt.Println("logs are in", dir)
	} else {
		owner.Cleanup(func() { os.RemoveAll(dir) })
	}

	c.mode, c.free = mode, make(map[int]chan *netlab.Pod)
	c.lab = netlab.New(owner).Cluster(netlab.ClusterOptions{Clients: 1, Backends: 1, Outside: true})
	stand.UnlimitedICMP(c.lab.Node)
	c.free[1] = make(chan *netlab.Pod, localPods)
	c.free[2] = make(chan *netlab.Pod, remotePods)
	interfaces := []string{netlab.UplinkDevice}
	for i := range localPods {
		pod := c.lab.AddPod(fmt.Sprintf("pod%d", i), 1)
		interfaces = append(interfaces, pod.HostDevice)
		c.free[1] <- pod
	}
	for i := range remotePods {
		c.free[2] <- c.lab.AddPod(fmt.Sprintf("pod%d", i), 2)
	}

	c.control, err = kube.Start(ctx, kube.Options{
		Bin: filepath.Join(bin, "kube"), Dir: dir, Namespace: c.lab.Node, Advertise: netlab.NodeAddr(netlab.IPv4, 1),
		Services4: services4, Services6: services6,
	})
	if err != nil {
		return err
	}
	if c.client, err = c.control.Client(); err != nil {
		return err
	}
	for i := range nodes {
		if err := c.addNode(ctx, i); err != nil {
			return err
		}
	}
	kubeconfig, err := c.control.Kubeconfig("dataplane", fmt.Sprintf("https://127.0.0.1:%d", kube.APIPort))
	if err != nil {
		return err
	}
	c.dataplane, err = stand.StartDataplane(ctx, mode, stand.Place{
		Bin: bin, Dir: dir, PinDir: filepath.Join(netlab.BPFFS(owner), "sluice"), Node: c.lab.Node,
		Interfaces: interfaces, Kubeconfig: kubeconfig,
	})
	if err != nil {
		return err
	}
	return nil
}

// addNode makes a Node as kubelet would.
func (c *cluster) addNode(ctx context.Context, i int) error {
	n := nodes[i]
	var addrs []corev1.NodeAddress
	var ranges []string
	for _, f := range netlab.Families {
		addrs = append(addrs, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: netlab.NodeAddr(f, i+1).String()})
		ranges = append(ranges, netlab.PodSubnet(f, i+1).String())
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: map[string]string{corev1.LabelHostname: n.name, corev1.LabelTopologyZone: n.zone}},
		Spec:       corev1.NodeSpec{PodCIDR: ranges[0], PodCIDRs: ranges},
	}
	node, err := c.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse(n.cpu), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	node.Status = corev1.NodeStatus{
		Addresses: addrs, Capacity: room, Allocatable: room,
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}},
	}
	_, err = c.client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return err
}
