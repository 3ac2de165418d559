package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-net/sluice/e2e/stand"
	"github.com/sluice-net/sluice/internal/netlab"
)

// world is what the API server holds of a history: what was accepted.
type world struct {
	client   kubernetes.Interface
	services map[string]*corev1.Service
	slices   map[string]*discoveryv1.EndpointSlice
	refused  int // ops that the API server did not accept: a minimised history has some
	ticks    int
}

// apply makes an op's request. What the API server refuses is left out: all sides read what it has.
func (w *world) apply(ctx context.Context, o op) error {
	var err error
	switch {
	case o.service != nil && o.delete:
		delete(w.services, o.service.Name)
		err = w.client.CoreV1().Services(namespace).Delete(ctx, o.service.Name, metav1.DeleteOptions{})
	case o.service != nil:
		err = w.putService(ctx, o.service.DeepCopy())
	case o.delete:
		delete(w.slices, o.slice.Name)
		err = w.client.DiscoveryV1().EndpointSlices(namespace).Delete(ctx, o.slice.Name, metav1.DeleteOptions{})
	default:
		err = w.putSlice(ctx, o.slice.DeepCopy())
	}
	if apierrors.IsNotFound(err) || apierrors.IsInvalid(err) {
		w.refused++
		return nil
	}
	return err
}

func (w *world) putService(ctx context.Context, s *corev1.Service) error {
	services := w.client.CoreV1().Services(namespace)
	old := w.services[s.Name]
	if old != nil && len(old.Spec.ClusterIPs) > 0 && len(s.Spec.ClusterIPs) > 0 && !slices.Equal(old.Spec.ClusterIPs, s.Spec.ClusterIPs) {
		// An address cannot be changed.
		if err := services.Delete(ctx, s.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		delete(w.services, s.Name)
		old = nil
	}
	// An address is free a moment after its Service is gone.
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var err error
		var stored *corev1.Service
		if old == nil {
			stored, err = services.Create(ctx, s, metav1.CreateOptions{})
		} else {
			s.ResourceVersion = old.ResourceVersion
			for i := range s.Spec.Ports { // the API server's own choice stays
				s.Spec.Ports[i].NodePort = 0
			}
			stored, err = services.Update(ctx, s, metav1.UpdateOptions{})
		}
		if err == nil {
			w.services[s.Name] = stored
			return nil
		}
		if !apierrors.IsInvalid(err) || time.Now().After(deadline) {
			return err
		}
	}
}

func (w *world) putSlice(ctx context.Context, s *discoveryv1.EndpointSlice) error {
	all := w.client.DiscoveryV1().EndpointSlices(namespace)
	if old := w.slices[s.Name]; old != nil {
		if old.AddressType == s.AddressType {
			s.ResourceVersion = old.ResourceVersion
			stored, err := all.Update(ctx, s, metav1.UpdateOptions{})
			if err == nil {
				w.slices[s.Name] = stored
			}
			return err
		}
		if err := all.Delete(ctx, s.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	stored, err := all.Create(ctx, s, metav1.CreateOptions{})
	if err == nil {
		w.slices[s.Name] = stored
	}
	return err
}

// clear removes what a history has left.
func (w *world) clear(ctx context.Context) error {
	for _, name := range sortedKeys(w.services) {
		if err := w.apply(ctx, op{service: w.services[name], delete: true}); err != nil {
			return err
		}
	}
	for _, name := range sortedKeys(w.slices) {
		if err := w.apply(ctx, op{slice: w.slices[name], delete: true}); err != nil {
			return err
		}
	}
	return nil
}

// The marker is a Service that moves with every tick, last of all: a side on which it has arrived has got everything that was
// before it. Services and slices come by two watches, and each family has a proxier of its own, so it has something of each.
const (
	markerName    = "marker"
	markerAddress = 2000
	markerPorts   = 20000
)

// tick moves the marker.
func (w *world) tick(ctx context.Context) error {
	w.ticks++
	services, all := w.client.CoreV1().Services(namespace), w.client.DiscoveryV1().EndpointSlices(namespace)
	s, err := services.Get(ctx, markerName, metav1.GetOptions{})
	fresh := apierrors.IsNotFound(err)
	if err != nil && !fresh {
		return err
	}
	if fresh {
		dual := corev1.IPFamilyPolicyRequireDualStack
		s = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: markerName}, Spec: corev1.ServiceSpec{
			IPFamilyPolicy: &dual, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			ClusterIPs: []string{netlab.ClusterIP(netlab.IPv4, markerAddress).String(), netlab.ClusterIP(netlab.IPv6, markerAddress).String()},
		}}
		fixAddress(s)
	}
	s.Spec.Ports = []corev1.ServicePort{{Name: "m", Port: w.markerPort(), Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}}
	if fresh {
		_, err = services.Create(ctx, s, metav1.CreateOptions{})
	} else {
		_, err = services.Update(ctx, s, metav1.UpdateOptions{})
	}
	if err != nil {
		return err
	}
	for _, f := range netlab.Families {
		name := fmt.Sprintf("%s-%s", markerName, f)
		port, portName, proto, node := int32(8080), "m", corev1.ProtocolTCP, stand.Node1
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
				discoveryv1.LabelServiceName: markerName, discoveryv1.LabelManagedBy: "contract.sluice.dev",
			}},
			AddressType: discoveryv1.AddressType(fmt.Sprintf("IPv%d", f)),
			Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &proto}},
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{w.markerBackend().addr(f).String()}, NodeName: &node}},
		}
		if fresh {
			_, err = all.Create(ctx, slice, metav1.CreateOptions{})
		} else {
			_, err = all.Update(ctx, slice, metav1.UpdateOptions{})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *world) markerPort() int32       { return int32(markerPorts + w.ticks%20000) }
func (w *world) markerBackend() *backend { return &backends[w.ticks%4] }

// settle waits until the marker has arrived on a side.
func (w *world) settle(ctx context.Context, s *side) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	from := s.clients[0]
	for _, f := range netlab.Families {
		to := netip.AddrPortFrom(netlab.ClusterIP(f, markerAddress), uint16(w.markerPort()))
		for {
			a, err := stand.Ask(ctx, stand.Question{From: from.ns, Proto: "tcp", To: to, Wait: 200 * time.Millisecond})
			if err == nil && a.Server == w.markerBackend().name+":8080" {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("%s has not got the changes after 30 s: %s leads to %q, want %s (%w)", s.mode, to, a.Server, w.markerBackend().name, err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}
