// Command kubelab starts a real control plane, and kube-proxy if asked, in the network namespace that it is started in, prints
// the path of a kubeconfig for it, and runs until a signal. Benchmarks take their peer from it:
//
//	ip netns exec node kubelab -bin bin -address 192.0.2.1 -proxy nftables
//
// It prints lines of key=value: kubeconfig=, then proxy= and ready when everything is up.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-net/sluice/e2e/kube"
	"github.com/sluice-net/sluice/e2e/stand"
	"github.com/sluice-net/sluice/internal/netlab"
)

func main() {
	var (
		bin     = flag.String("bin", "bin/kube", "`folder` that make kube filled")
		address = flag.String("address", "", "the API server's `address` in this namespace, on a device that is up")
		proxy   = flag.String("proxy", "", "kube-proxy's `mode`, nftables or iptables; empty: none")
		node    = flag.String("node", stand.Node1, "the `name` of the Node to make, which kube-proxy serves; its address is -address")
		zone    = flag.String("zone", "zone-a", "the Node's `zone`")
		bare    = flag.Bool("bare", false, "without kube-controller-manager: who wants EndpointSlices writes them")
	)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	owner := netlab.NewStand("e2e", netlab.ToStderr)
	err := owner.Run(func() error { return run(ctx, owner, *bin, *address, *proxy, *node, *zone, *bare) })
	if err = errors.Join(err, owner.Clear()); err != nil {
		fmt.Fprintln(os.Stderr, "kubelab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, owner *netlab.Stand, bin, address, proxy, nodeName, zone string, bare bool) error {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return fmt.Errorf("-address: %w", err)
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sluice-kubelab-")
	if err != nil {
		return err
	}
	owner.Cleanup(func() { os.RemoveAll(dir) })
	here, err := netlab.Here(owner)
	if err != nil {
		return err
	}
	starting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	control, err := kube.Start(starting, kube.Options{
		Bin: bin, Dir: dir, Namespace: here, Advertise: addr,
		Services4: netlab.ClusterIPPrefix4, Services6: netlab.ClusterIPPrefix6, Bare: bare,
	})
	if err != nil {
		return err
	}
	defer control.Close()
	kubeconfig, err := control.Kubeconfig("admin", fmt.Sprintf("https://127.0.0.1:%d", kube.APIPort))
	if err != nil {
		return err
	}
	fmt.Println("kubeconfig=" + kubeconfig)
	client, err := control.Client()
	if err != nil {
		return err
	}
	object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{
		corev1.LabelHostname: nodeName, corev1.LabelTopologyZone: zone,
	}}}
	if object, err = client.CoreV1().Nodes().Create(starting, object, metav1.CreateOptions{}); err != nil {
		return err
	}
	object.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
	if _, err := client.CoreV1().Nodes().UpdateStatus(starting, object, metav1.UpdateOptions{}); err != nil {
		return err
	}
	if proxy != "" {
		p, err := kube.StartProxy(starting, kube.ProxyOptions{
			Bin: bin, Dir: dir, Namespace: here, Kubeconfig: kubeconfig, Node: nodeName, Mode: proxy, Pods: stand.Pods,
		})
		if err != nil {
			return err
		}
		defer p.Kill()
		fmt.Printf("proxy=%s pid=%d\n", proxy, p.Pid())
	}
	fmt.Println("ready")
	<-ctx.Done()
	return nil
}
