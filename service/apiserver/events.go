package apiserver

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// eventTimeout bounds the try to post an event. It is not tried again: an event says what is also in the log.
const eventTimeout = 10 * time.Second

// Event posts an event on this Node, as kube-proxy does: kubectl describe node shows it. It returns at once.
func (s *Source) Event(kind, reason, message string) {
	node, now := s.cfg.Service.NodeName, metav1.Now()
	e := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", node, now.UnixNano()), Namespace: metav1.NamespaceDefault},
		InvolvedObject: corev1.ObjectReference{Kind: "Node", Name: node, UID: types.UID(node)},
		Reason:         reason, Message: message, Type: kind, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: userAgent, Host: node}, ReportingController: userAgent, ReportingInstance: node,
	}
	s.loops.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, eventTimeout)
		defer cancel()
		err := s.clients.core.Post().Namespace(e.Namespace).Resource("events").Body(e).Do(ctx).Error()
		if err != nil && s.ctx.Err() == nil {
			s.log.Debug("an event could not be posted", "reason", reason, "err", err)
		}
	})
}
