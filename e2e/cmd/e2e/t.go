package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-net/sluice/e2e/stand"
	"github.com/sluice-net/sluice/internal/netlab"
)

// T is one scenario's run: a namespace in the API, and what was made in it. Its methods are for the scenario's own goroutine
// and end the scenario if what they want does not come about.
type T struct {
	c        *cluster
	ctx      context.Context
	ns       string
	cleanups []func()
	places   []*netlab.Pod
}

// failure is what ends a scenario.
type failure struct{ error }

// runScenario runs one and takes away what it made.
func (c *cluster) runScenario(ctx context.Context, s scenario) (problem error) {
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	t := &T{c: c, ctx: ctx, ns: fmt.Sprintf("e2e-%d", c.namespaces.Add(1))}
	guarded := func(f func()) {
		defer func() {
			switch r := recover().(type) {
			case nil:
			case failure:
				problem = errors.Join(problem, r.error)
			default:
				panic(r)
			}
		}()
		f()
	}
	guarded(func() {
		_, err := c.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: t.ns}}, metav1.CreateOptions{})
		t.check(err, "creating namespace %s", t.ns)
		s.run(t)
	})
	// What ended by its context is still to be cleaned up.
	clear, cancelClear := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancelClear()
	t.ctx = clear
	guarded(t.deleteServices)
	for _, f := range slices.Backward(t.cleanups) {
		guarded(f)
	}
	for _, p := range t.places {
		if p.Node == c.lab.Node {
			c.free[1] <- p
		} else {
			c.free[2] <- p
		}
	}
	return problem
}

func (t *T) deleteServices() {
	services, err := t.c.client.CoreV1().Services(t.ns).List(t.ctx, metav1.ListOptions{})
	t.check(err, "listing services")
	for _, s := range services.Items {
		if err := t.c.client.CoreV1().Services(t.ns).Delete(t.ctx, s.Name, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
			t.check(err, "deleting service %s", s.Name)
		}
	}
}

func (t *T) cleanup(f func()) { t.cleanups = append(t.cleanups, f) }

func (t *T) fatalf(format string, args ...any) { panic(failure{fmt.Errorf(format, args...)}) }

func (t *T) check(err error, format string, args ...any) {
	if err != nil {
		t.fatalf("%s: %w", fmt.Sprintf(format, args...), err)
	}
}

// retry does f again as long as somebody else was quicker to change the object.
func (t *T) retry(what string, f func() error) {
	for {
		err := f()
		if !apierrors.IsConflict(err) || t.ctx.Err() != nil {
			t.check(err, "%s", what)
			return
		}
	}
}

// place takes a pod's namespace on a node for the rest of the scenario.
func (t *T) place(node string) *netlab.Pod {
	select {
	case p := <-t.c.free[labNode(node)]:
		t.places = append(t.places, p)
		return p
	case <-t.ctx.Done():
		t.fatalf("no free pod on %s", node)
		return nil
	}
}

// clientPod takes a pod's namespace on node1 for a client. The API knows nothing of it.
func (t *T) clientPod() *netlab.Namespace { return t.place(stand.Node1).Namespace }

// hostPort is a port of the hosts that no other scenario uses.
func (t *T) hostPort() int32 { return 20000 + t.c.hostPorts.Add(1) }

// sleep waits where a scenario is about time itself.
func (t *T) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-t.ctx.Done():
		t.fatalf("the scenario took more than %v", budget)
	}
}

// object is a Service that is not made yet. In mode named it has Sluice's label.
func (t *T) object(name string, spec corev1.ServiceSpec) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}, Spec: spec}
	if t.c.mode == "named" {
		s.Labels[proxyNameLabel] = stand.ProxyTag
	}
	return s
}

// service makes a Service, with more labels.
func (t *T) service(name string, spec corev1.ServiceSpec, labels ...string) *corev1.Service {
	s := t.object(name, spec)
	for i := 0; i+1 < len(labels); i += 2 {
		s.Labels[labels[i]] = labels[i+1]
	}
	s, err := t.c.client.CoreV1().Services(t.ns).Create(t.ctx, s, metav1.CreateOptions{})
	t.check(err, "creating service %s", name)
	return s
}

const (
	proxyNameLabel = "service.kubernetes.io/service-proxy-name"
	headlessLabel  = corev1.IsHeadlessService
)

// change updates a Service.
func (t *T) change(s *corev1.Service, f func(*corev1.Service)) *corev1.Service {
	services := t.c.client.CoreV1().Services(t.ns)
	var out *corev1.Service
	t.retry("updating service "+s.Name, func() error {
		o, err := services.Get(t.ctx, s.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		f(o)
		out, err = services.Update(t.ctx, o, metav1.UpdateOptions{})
		return err
	})
	return out
}

func (t *T) deleteService(s *corev1.Service) {
	err := t.c.client.CoreV1().Services(t.ns).Delete(t.ctx, s.Name, metav1.DeleteOptions{})
	t.check(err, "deleting service %s", s.Name)
}

// servicePort is a ServicePort; target is the number or name of the pods' port.
func servicePort(name, proto string, number int32, target any) corev1.ServicePort {
	p := corev1.ServicePort{Name: name, Protocol: corev1.Protocol(strings.ToUpper(proto)), Port: number}
	switch v := target.(type) {
	case int:
		p.TargetPort = intstr.FromInt(v)
	case int32:
		p.TargetPort = intstr.FromInt32(v)
	case string:
		p.TargetPort = intstr.FromString(v)
	}
	return p
}

// httpSpec is a Service that selects the web pods' port 80.
func httpSpec() corev1.ServiceSpec {
	return corev1.ServiceSpec{Selector: web, Ports: []corev1.ServicePort{servicePort("http", "tcp", 80, 80)}}
}

// frontend is a Service's first address with a port.
func frontend(s *corev1.Service, number int32) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(s.Spec.ClusterIP), uint16(number))
}

// frontends are a Service's addresses with a port.
func frontends(s *corev1.Service, number int32) (all []netip.AddrPort) {
	for _, ip := range s.Spec.ClusterIPs {
		all = append(all, netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(number)))
	}
	return all
}

// slice makes an EndpointSlice by hand.
func (t *T) slice(name string, s *discoveryv1.EndpointSlice, of string) *discoveryv1.EndpointSlice {
	s.Name = name
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	s.Labels[discoveryv1.LabelServiceName] = of
	s.Labels[discoveryv1.LabelManagedBy] = "e2e.sluice.dev"
	s, err := t.c.client.DiscoveryV1().EndpointSlices(t.ns).Create(t.ctx, s, metav1.CreateOptions{})
	t.check(err, "creating slice %s", name)
	t.cleanup(func() { t.c.client.DiscoveryV1().EndpointSlices(t.ns).Delete(t.ctx, name, metav1.DeleteOptions{}) })
	return s
}

// slices are those of a Service.
func (t *T) slicesOf(service string) []discoveryv1.EndpointSlice {
	l, err := t.c.client.DiscoveryV1().EndpointSlices(t.ns).List(t.ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service})
	t.check(err, "listing slices")
	return l.Items
}

// Times of waiting. converge is how long a change may take to be in force; attempt is one question's time.
const (
	converge = 20 * time.Second
	attempt  = 700 * time.Millisecond
	pause    = 20 * time.Millisecond
)

// eventually waits until f gives nil.
func (t *T) eventually(what string, f func() error) {
	deadline := time.Now().Add(converge)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || t.ctx.Err() != nil {
			t.fatalf("%s: after %v still: %w", what, converge, err)
		}
		time.Sleep(pause)
	}
}

// ask asks once.
func (t *T) ask(from *netlab.Namespace, proto string, to netip.AddrPort) (stand.Answer, error) {
	return stand.Ask(t.ctx, stand.Question{From: from, Proto: proto, To: to, Wait: attempt})
}

// reaches waits until a frontend leads to exactly these pods: each answers, and nobody else does.
func (t *T) reaches(from *netlab.Namespace, proto string, to netip.AddrPort, want ...*pod) {
	names := make([]string, len(want))
	for i, p := range want {
		names[i] = p.id()
	}
	t.reachesNames(from, proto, to, names...)
}

func (t *T) reachesNames(from *netlab.Namespace, proto string, to netip.AddrPort, want ...string) {
	var (
		deadline = time.Now().Add(converge)
		seen     = map[string]bool{}
		streak   = 0
		last     error
	)
	for streak < 4*len(want) || len(seen) < len(want) {
		a, err := t.ask(from, proto, to)
		if err == nil && !slices.Contains(want, a.Server) {
			err = fmt.Errorf("%s answered", a.Server)
		}
		if err != nil {
			clear(seen)
			streak, last = 0, err
			time.Sleep(pause)
		} else {
			seen[a.Server] = true
			streak++
		}
		if time.Now().After(deadline) || t.ctx.Err() != nil {
			got := make([]string, 0, len(seen))
			for name := range seen {
				got = append(got, name)
			}
			sort.Strings(got)
			t.fatalf("%s %s from %s: after %v %v answer, want %v (last error: %v)", proto, to, from.Name(), converge, got, want, last)
		}
	}
}

// refused waits until a frontend is refused, at once and every time.
func (t *T) refused(from *netlab.Namespace, proto string, to netip.AddrPort) {
	t.verdict(from, proto, to, stand.ErrRefused)
}

// silent waits until nobody answers at a frontend, not even with a refusal.
func (t *T) silent(from *netlab.Namespace, proto string, to netip.AddrPort) {
	t.verdict(from, proto, to, stand.ErrSilent)
}

// unreachable waits until nobody answers at a frontend, whatever the verdict.
func (t *T) unreachable(from *netlab.Namespace, proto string, to netip.AddrPort) {
	t.verdict(from, proto, to, stand.ErrRefused, stand.ErrSilent)
}

func (t *T) verdict(from *netlab.Namespace, proto string, to netip.AddrPort, want ...error) {
	t.eventually(fmt.Sprintf("%s %s from %s", proto, to, from.Name()), func() error {
		for range 3 {
			a, err := t.ask(from, proto, to)
			if err == nil {
				return fmt.Errorf("%s answered, want: %v", a.Server, want)
			}
			if !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
				return err
			}
		}
		return nil
	})
}
