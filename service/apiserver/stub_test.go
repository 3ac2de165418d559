package apiserver

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
)

// stub is an API server for tests: lists, watches, selectors by label, and whatever fault is asked for. It speaks TLS and
// HTTP/2, as the real one does, and behaves as one with a watch cache of no memory: a watch from an old version is Expired.
type stub struct {
	t    *testing.T
	http *httptest.Server
	addr string

	mu      sync.Mutex
	version int
	objects map[string]map[string]object // by resource, by namespace/name
	history map[string][]event
	changed chan struct{} // closed at each change
	fault   fault
	proxy   net.Listener
	oldest  int // a watch from before it is Expired
	seen    []string
	posted  []string
	lacks   string // a resource that this server does not have
	conns   map[*relay]struct{}
	healed  chan struct{} // closed when there is no fault
	loops   sync.WaitGroup
}

type event struct {
	version int
	kind    string // ADDED, MODIFIED, DELETED
	object  object
}

// fault is what is wrong with a stub.
type fault int

const (
	none      fault = iota
	refuse          // nobody listens
	blackHole       // connections are taken, and nothing is ever said
	halfOpen        // what was open stays open, and nothing is ever said
	failing         // 500 to everything
	slowBody        // an answer begins and does not end
	expired         // watches are ended with 410, and deletions were not seen
	garbage         // 200, and no sense
)

var faults = map[fault]string{refuse: "refuse", blackHole: "blackHole", halfOpen: "halfOpen", failing: "failing", slowBody: "slowBody", expired: "expired", garbage: "garbage"}

var lists = map[string]metav1.TypeMeta{
	"services":        {APIVersion: "v1", Kind: "Service"},
	"nodes":           {APIVersion: "v1", Kind: "Node"},
	"pods":            {APIVersion: "v1", Kind: "Pod"},
	"endpointslices":  {APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
	"networkpolicies": {APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
	"servicecidrs":    {APIVersion: "networking.k8s.io/v1", Kind: "ServiceCIDR"},
}

func newStub(t *testing.T) *stub {
	s := &stub{
		t: t, version: 1, objects: make(map[string]map[string]object), history: make(map[string][]event),
		changed: make(chan struct{}), conns: make(map[*relay]struct{}), healed: make(chan struct{}),
	}
	close(s.healed)
	s.http = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.http.EnableHTTP2 = true
	s.http.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.http.StartTLS()
	s.listen("127.0.0.1:0")
	s.addr = s.proxy.Addr().String()
	t.Cleanup(func() {
		_ = s.proxy.Close()
		s.cut()
		s.http.CloseClientConnections()
		s.http.Close()
		s.loops.Wait()
	})
	return s
}

// listen takes connections and relays them to the server, for a fault is a matter of the wire as often as of the server.
func (s *stub) listen(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		s.t.Error(err)
		return
	}
	s.mu.Lock()
	s.proxy = l
	s.mu.Unlock()
	s.loops.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r := &relay{client: conn}
			s.mu.Lock()
			s.conns[r] = struct{}{}
			r.frozen.Store(s.fault == blackHole || s.fault == halfOpen)
			s.mu.Unlock()
			if r.server, err = net.Dial("tcp", s.http.Listener.Addr().String()); err != nil {
				_ = conn.Close()
				continue
			}
			s.loops.Go(func() { r.copy(r.server, r.client) })
			s.loops.Go(func() { r.copy(r.client, r.server) })
		}
	})
}

// relay is one connection. A frozen one stays open and brings nothing, for ever.
type relay struct {
	client, server net.Conn
	frozen         atomic.Bool
}

func (r *relay) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if r.frozen.Load() && err == nil {
			continue
		}
		if n > 0 {
			_, _ = to.Write(buf[:n])
		}
		if err != nil {
			_ = to.Close()
			_ = from.Close()
			return
		}
	}
}

// cut ends every connection.
func (s *stub) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.conns {
		_ = r.client.Close()
	}
	clear(s.conns)
}

func (s *stub) url() string { return "https://" + s.addr }

// set puts a fault in force, none ends it.
func (s *stub) set(f fault) {
	s.mu.Lock()
	before := s.fault
	if before == f {
		s.mu.Unlock()
		return
	}
	s.fault = f
	if f == none {
		close(s.healed)
	} else if before == none {
		s.healed = make(chan struct{})
	}
	if f == expired {
		s.oldest = s.version + 1
	}
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	switch {
	case f == refuse:
		_ = s.proxy.Close()
		s.cut()
	case before == refuse:
		s.listen(s.addr)
	case f == blackHole:
		s.cut()
	case f == halfOpen:
		s.mu.Lock()
		for r := range s.conns {
			r.frozen.Store(true)
		}
		s.mu.Unlock()
	}
}

// put adds or changes an object, drop deletes one. hidden: no watch is ever told, as when the watch was away too long.
func (s *stub) put(resource string, o object) { s.change(resource, o, false) }

func (s *stub) drop(resource string, o object) { s.change(resource, o, true) }

func (s *stub) change(resource string, o object, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	o = o.DeepCopyObject().(object)
	o.SetResourceVersion(strconv.Itoa(s.version))
	key := o.GetNamespace() + "/" + o.GetName()
	if s.objects[resource] == nil {
		s.objects[resource] = make(map[string]object)
	}
	kind := "MODIFIED"
	if _, ok := s.objects[resource][key]; !ok {
		kind = "ADDED"
	}
	if gone {
		kind = "DELETED"
		delete(s.objects[resource], key)
	} else {
		s.objects[resource][key] = o
	}
	s.history[resource] = append(s.history[resource], event{s.version, kind, o})
	close(s.changed)
	s.changed = make(chan struct{})
}

// watched reports whether a kind of objects has been watched, after its list.
func (s *stub) watched(resource string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.seen, func(uri string) bool {
		path, query, _ := strings.Cut(uri, "?")
		return strings.HasSuffix(path, "/"+resource) && strings.Contains(query, "watch=true") && !strings.Contains(query, "sendInitialEvents")
	})
}

func (s *stub) serve(w http.ResponseWriter, r *http.Request) {
	resource := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	q := r.URL.Query()
	s.mu.Lock()
	f, healed := s.fault, s.healed
	s.seen = append(s.seen, r.URL.RequestURI())
	s.mu.Unlock()
	switch f {
	case failing:
		http.Error(w, "etcd is gone", http.StatusInternalServerError)
		return
	case garbage:
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"kind":"Status","items":[{"metadata":{"na`)
		return
	case slowBody:
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"kind":`)
		w.(http.Flusher).Flush()
		select {
		case <-healed:
		case <-r.Context().Done():
		}
		return
	}
	if r.Method == http.MethodPost {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.posted = append(s.posted, r.URL.Path+" "+string(body))
		s.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(body)
		return
	}
	if lists[resource].Kind == "" || resource == s.lacks {
		http.NotFound(w, r)
		return
	}
	selector, err := labels.Parse(q.Get("labelSelector"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if q.Get("watch") != "" {
		s.watch(w, r, resource, selector)
		return
	}
	s.mu.Lock()
	list := struct {
		metav1.TypeMeta `json:",inline"`
		metav1.ListMeta `json:"metadata"`
		Items           []object `json:"items"`
	}{TypeMeta: lists[resource], ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)}, Items: []object{}}
	list.Kind += "List"
	for _, o := range s.objects[resource] {
		if selector.Matches(labels.Set(o.GetLabels())) {
			list.Items = append(list.Items, o)
		}
	}
	s.mu.Unlock()
	_ = json.NewEncoder(w).Encode(list)
}

func (s *stub) watch(w http.ResponseWriter, r *http.Request, resource string, selector labels.Selector) {
	q := r.URL.Query()
	if q.Get("sendInitialEvents") != "" { // as a server without streaming lists
		w.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Reason: metav1.StatusReasonInvalid, Code: 422})
		return
	}
	from, _ := strconv.Atoi(q.Get("resourceVersion"))
	tell := func(kind string, o any) bool {
		err := json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": o})
		w.(http.Flusher).Flush()
		return err == nil
	}
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	for {
		s.mu.Lock()
		var events []event
		for _, e := range s.history[resource] {
			if e.version > from {
				events = append(events, e)
			}
		}
		f, oldest, changed := s.fault, s.oldest, s.changed
		s.mu.Unlock()
		switch {
		case f == refuse || f == failing || f == garbage || f == slowBody:
			return
		case from < oldest:
			tell("ERROR", metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Reason: metav1.StatusReasonExpired, Code: http.StatusGone})
			return
		}
		for _, e := range events {
			from = e.version
			if selector.Matches(labels.Set(e.object.GetLabels())) && !tell(e.kind, typed(resource, e.object)) {
				return
			}
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		case <-time.After(10 * time.Second):
			return
		}
	}
}

func typed(resource string, o object) runtime.Object {
	c := o.DeepCopyObject()
	meta := lists[resource]
	c.GetObjectKind().SetGroupVersionKind(meta.GroupVersionKind())
	return c
}

// aService and aSlice make the objects of tests.
func aService(name, clusterIP string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: name}}
	s.Spec.ClusterIP, s.Spec.ClusterIPs = clusterIP, []string{clusterIP}
	s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}
	return s
}

func aSlice(name, service string, addrs ...string) *discoveryv1.EndpointSlice {
	port, proto, yes := int32(8080), corev1.ProtocolTCP, true
	portName := "http"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "demo", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &proto}},
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}})
	}
	return s
}
