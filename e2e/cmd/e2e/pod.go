package main

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-net/sluice/e2e/stand"
	"github.com/sluice-net/sluice/internal/netlab"
)

// port is a port that a pod serves.
type port struct {
	name, proto string // tcp, udp or sctp
	number      int32
}

// podOptions say what a pod is to be. The zero value is a ready pod of node1 that serves HTTP on port 80.
type podOptions struct {
	labels      map[string]string // nil: {"app": "web"}
	node        string
	hostNetwork bool
	notReady    bool
	ports       []port
	gates       []corev1.PodReadinessGate
	sidecar     bool // the ports are those of a restartable init container
	address     *netlab.Pod
}

// pod is an object in the API, a network namespace, and servers in it.
type pod struct {
	t       *T
	name    string
	o       podOptions
	ns      *netlab.Namespace
	place   *netlab.Pod // nil on the host's network
	ips     []netip.Addr
	servers []*stand.Server
	gone    bool
}

// web is the label of pods that have no other, and what most Services select.
var web = map[string]string{"app": "web"}

// pod makes a pod and plays kubelet for it.
func (t *T) pod(name string, o podOptions) *pod {
	if o.labels == nil {
		o.labels = web
	}
	if o.node == "" {
		o.node = stand.Node1
	}
	if o.ports == nil {
		o.ports = []port{{"http", "tcp", 80}}
	}
	p := &pod{t: t, name: name, o: o}
	number := labNode(o.node)
	switch {
	case o.hostNetwork:
		p.ns = t.c.lab.Node
		if number == 2 {
			p.ns = t.c.lab.Remote
		}
		for _, f := range netlab.Families {
			p.ips = append(p.ips, netlab.NodeAddr(f, number))
		}
	case o.address != nil:
		p.place = o.address
	default:
		p.place = t.place(o.node)
	}
	if p.place != nil {
		p.ns = p.place.Namespace
		p.ips = []netip.Addr{p.place.IP4, p.place.IP6}
	}
	p.serve()
	t.cleanup(p.kill)

	container := corev1.Container{Name: "c", Image: "lab"}
	for _, q := range o.ports {
		cp := corev1.ContainerPort{Name: q.name, ContainerPort: q.number, Protocol: corev1.Protocol(strings.ToUpper(q.proto))}
		if o.hostNetwork {
			cp.HostPort = q.number
		}
		container.Ports = append(container.Ports, cp)
	}
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: o.labels},
		Spec: corev1.PodSpec{
			NodeName: o.node, HostNetwork: o.hostNetwork, Containers: []corev1.Container{container}, ReadinessGates: o.gates,
		},
	}
	if o.sidecar {
		always := corev1.ContainerRestartPolicyAlways
		init := container
		init.Name, init.RestartPolicy = "sidecar", &always
		object.Spec.InitContainers = []corev1.Container{init}
		object.Spec.Containers[0].Ports = nil
	}
	_, err := t.c.client.CoreV1().Pods(t.ns).Create(t.ctx, object, metav1.CreateOptions{})
	t.check(err, "creating pod %s", name)
	p.status(!o.notReady)
	return p
}

// id is what the pod's servers say.
func (p *pod) id() string { return p.t.ns + "/" + p.name }

// serve starts the pod's servers.
func (p *pod) serve() {
	for _, q := range p.o.ports {
		for _, ip := range p.ips {
			s, err := stand.Serve(p.ns, p.id(), q.proto, netip.AddrPortFrom(ip, uint16(q.number)))
			p.t.check(err, "serving %s %d in pod %s", q.proto, q.number, p.name)
			p.servers = append(p.servers, s)
		}
	}
}

// close ends the pod's processes; its object stays.
func (p *pod) close() {
	for _, s := range p.servers {
		s.Close()
	}
	p.servers = nil
}

// status writes the pod's status as kubelet would.
func (p *pod) status(ready bool) {
	p.update(func(o *corev1.Pod) {
		o.Status.Phase = corev1.PodRunning
		o.Status.StartTime = &metav1.Time{Time: o.CreationTimestamp.Time}
		o.Status.HostIP = netlab.NodeAddr(netlab.IPv4, labNode(p.o.node)).String()
		o.Status.HostIPs = []corev1.HostIP{{IP: o.Status.HostIP}}
		o.Status.PodIP = p.ips[0].String()
		o.Status.PodIPs = nil
		for _, ip := range p.ips {
			o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: ip.String()})
		}
		setCondition(o, corev1.PodReady, ready)
		setCondition(o, corev1.ContainersReady, ready)
	})
}

func setCondition(o *corev1.Pod, kind corev1.PodConditionType, yes bool) {
	status := corev1.ConditionFalse
	if yes {
		status = corev1.ConditionTrue
	}
	for i := range o.Status.Conditions {
		if o.Status.Conditions[i].Type == kind {
			o.Status.Conditions[i].Status = status
			return
		}
	}
	o.Status.Conditions = append(o.Status.Conditions, corev1.PodCondition{Type: kind, Status: status, LastTransitionTime: metav1.Now()})
}

// update changes the pod's status.
func (p *pod) update(change func(*corev1.Pod)) {
	pods := p.t.c.client.CoreV1().Pods(p.t.ns)
	p.t.retry("updating the status of pod "+p.name, func() error {
		o, err := pods.Get(p.t.ctx, p.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(o)
		_, err = pods.UpdateStatus(p.t.ctx, o, metav1.UpdateOptions{})
		return err
	})
}

// terminate asks for the pod's end as `kubectl delete` does. It goes on serving, and being ready, until kill.
func (p *pod) terminate() {
	grace := int64(600)
	err := p.t.c.client.CoreV1().Pods(p.t.ns).Delete(p.t.ctx, p.name, metav1.DeleteOptions{GracePeriodSeconds: &grace})
	p.t.check(err, "terminating pod %s", p.name)
}

// kill ends the pod's processes and removes its object.
func (p *pod) kill() {
	p.close()
	if p.gone {
		return
	}
	p.gone = true
	now := int64(0)
	err := p.t.c.client.CoreV1().Pods(p.t.ns).Delete(p.t.ctx, p.name, metav1.DeleteOptions{GracePeriodSeconds: &now})
	if err != nil && !apierrors.IsNotFound(err) {
		p.t.check(err, "deleting pod %s", p.name)
	}
}

func (p *pod) String() string { return fmt.Sprintf("%s (%s on %s)", p.name, p.ips[0], p.o.node) }
