package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// backoff is the pause between two tries. Its cap is what decides how soon after the server's return we are in sync again;
// client-go's own is half a minute. The jitter spreads the nodes of a cluster.
var backoff = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 1 << 20, Cap: time.Second}

// resource is one kind of object that is watched.
type resource struct {
	name      string
	source    *Source
	reflector *cache.Reflector
	optional  bool // a server without it, or one that forbids it, has none

	// Guarded by the source's mutex.
	synced  bool
	contact time.Time // when the server last answered well
	err     error     // why it does not now
	listing *patience // of the watch that began with a list, until that is complete
}

type object interface {
	runtime.Object
	metav1.Object
}

func (r *resource) run(ctx context.Context) { r.reflector.RunWithContext(ctx) }

// heard notes that the server answers.
func (r *resource) heard() {
	s := r.source
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.err != nil {
		s.log.Info("watching again", "what", r.name, "after", time.Since(r.contact).Round(time.Millisecond))
	}
	if !s.restored.IsZero() && s.unsynced() == "" {
		s.restored = time.Time{}
		s.log.Info("synced with the API server")
	}
	r.err, r.contact = nil, time.Now()
}

// opened notes that a watch has begun. One that begins with all there is has proved nothing yet.
func (r *resource) opened(p *patience, listing bool) {
	if !listing {
		p.patient()
		r.heard()
		return
	}
	r.source.mu.Lock()
	r.listing = p
	r.source.mu.Unlock()
}

// failed notes that it does not. What was said once is not said again until that is over.
func (r *resource) failed(err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	s := r.source
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.err == nil {
		state := "nothing is programmed yet"
		if !s.status.Changed.IsZero() {
			state = "the last state serves on"
		}
		s.log.Warn("the API server cannot be watched: "+state, "what", r.name, "err", err)
		if r.contact.IsZero() {
			r.contact = time.Now()
		}
	}
	r.err = err
}

// lackingRetry is how often an optional kind that the server does not have is asked for again.
const lackingRetry = 5 * time.Minute

// lacking says whether the error means that the server does not have the kind, which is optional.
func (r *resource) lacking(err error) bool {
	return r.optional && (apierrors.IsNotFound(err) || apierrors.IsForbidden(err))
}

// newReflector makes the reflector of one kind of objects in all namespaces.
func newReflector[T object](client rest.Interface, codec runtime.ParameterCodec, which selectors, st *store[T]) *cache.Reflector {
	r := st.resource
	with := func(o metav1.ListOptions) metav1.ListOptions {
		o.LabelSelector, o.FieldSelector = which.labels.String(), which.fields.String()
		return o
	}
	request := func(o metav1.ListOptions) *rest.Request {
		return client.Get().MaxRetries(0).Resource(r.name).VersionedParams(&o, codec)
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := request(with(o)).Do(ctx).Get()
			switch {
			case err == nil:
				return list, nil
			case r.lacking(err):
				st.source.mu.Lock()
				r.synced = true
				st.source.mu.Unlock()
				st.source.kick()
				select { // it may come with an upgrade
				case <-ctx.Done():
				case <-time.After(lackingRetry):
				}
			case !apierrors.IsResourceExpired(err):
				r.failed(err)
			}
			return nil, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			p := new(patience)
			w, err := request(with(o)).Watch(context.WithValue(ctx, patienceKey{}, p))
			if err != nil {
				// An older server does not know lists that are streams, and will be asked for a list.
				if !r.lacking(err) && (o.SendInitialEvents == nil || !apierrors.IsInvalid(err)) {
					r.failed(err)
				}
				return nil, err
			}
			if p.err != nil {
				r.failed(p.err)
				return w, nil
			}
			r.opened(p, o.SendInitialEvents != nil)
			return w, nil
		},
	}
	b := backoff
	return cache.NewReflectorWithOptions(lw, st.kind, st, cache.ReflectorOptions{Name: r.name, Backoff: &b})
}

// store is the Catalog as a reflector sees it.
type store[T object] struct {
	*resource
	kind    T // any object of it
	set     func(T)
	remove  func(namespace, name string)
	replace func([]T)
}

// change runs what changes the Catalog, under the source's lock.
func (st *store[T]) change(obj any, with func(T)) error {
	o, ok := obj.(T)
	if !ok {
		return fmt.Errorf("a %T among the %s", obj, st.name)
	}
	st.heard()
	st.source.mu.Lock()
	with(o)
	st.source.mu.Unlock()
	st.source.kick()
	return nil
}

// Add implements cache.ReflectorStore.
func (st *store[T]) Add(obj any) error { return st.change(obj, st.set) }

// Update implements cache.ReflectorStore.
func (st *store[T]) Update(obj any) error { return st.change(obj, st.set) }

// Delete implements cache.ReflectorStore.
func (st *store[T]) Delete(obj any) error {
	return st.change(obj, func(o T) { st.remove(o.GetNamespace(), o.GetName()) })
}

// Replace implements cache.ReflectorStore.
func (st *store[T]) Replace(list []any, _ string) error {
	all := make([]T, len(list))
	for i := range list {
		o, ok := list[i].(T)
		if !ok {
			return fmt.Errorf("a %T among the %s", list[i], st.name)
		}
		all[i] = o
	}
	st.heard()
	st.source.mu.Lock()
	st.replace(all)
	st.synced = true
	if st.listing != nil {
		st.listing.patient()
		st.listing = nil
	}
	st.source.mu.Unlock()
	st.source.kick()
	return nil
}

// Bookmark implements cache.ReflectorBookmarkStore: the server is there, and has nothing to say.
func (st *store[T]) Bookmark(string) error {
	st.heard()
	return nil
}

// Resync implements cache.ReflectorStore.
func (st *store[T]) Resync() error { return nil }
