package apiserver

import (
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-net/sluice/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a Source and the stub that it watches.
type rig struct {
	*Source
	t        *testing.T
	stub     *stub
	snapshot atomic.Pointer[service.Snapshot]
}

// kubeconfig writes a file that leads to the stub.
func (s *stub) kubeconfig(dir string) string {
	ca := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.http.Certificate().Raw}), 0o644); err != nil {
		s.t.Fatal(err)
	}
	file := filepath.Join(dir, "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: stub,
contexts: [{name: stub, context: {cluster: stub, user: stub}}], users: [{name: stub, user: {token: secret}}],
clusters: [{name: stub, cluster: {server: "%s", certificate-authority: %s, tls-server-name: example.com}}]}`, s.url(), ca)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

func newRig(t *testing.T, s *stub, edit func(*Config)) *rig {
	r := &rig{t: t, stub: s}
	cfg := Config{
		Connection: Connection{Kubeconfig: s.kubeconfig(t.TempDir()), QPS: -1, ContentType: "application/json"},
		Service:    service.Config{NodeName: "n1"},
	}
	if edit != nil {
		edit(&cfg)
	}
	var err error
	r.Source, err = Open(cfg, slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo})), func(s *service.Snapshot) error {
		r.snapshot.Store(s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// programmed says what is programmed, as "name address backends".
func (r *rig) programmed() string {
	s := r.snapshot.Load()
	if s == nil {
		return "nothing"
	}
	var out []string
	for _, p := range s.ServicePorts() {
		text := p.Name + " " + p.Frontends[0].String()
		for _, b := range p.Backends {
			text += " " + b.String()
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

// await waits until this is programmed, and says how long that took.
func (r *rig) await(want string) time.Duration {
	r.t.Helper()
	start := time.Now()
	for r.programmed() != want {
		if time.Since(start) > 20*time.Second {
			r.t.Fatalf("programmed %q, want %q; %v", r.programmed(), want, r.Status().Err)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(start)
}

func TestSync(t *testing.T) {
	s := newStub(t)
	s.put("services", aService("web", "198.19.0.1"))
	s.put("endpointslices", aSlice("web-1", "web", "198.18.0.1", "198.18.0.2"))
	other := aService("other", "198.19.0.9")
	other.Labels = map[string]string{service.ProxyNameLabel: "sluice"}
	s.put("services", other)
	r := newRig(t, s, nil)
	r.await("web 198.19.0.1:80/TCP 198.18.0.1:8080 198.18.0.2:8080")

	s.put("endpointslices", aSlice("web-1", "web", "198.18.0.2"))
	r.await("web 198.19.0.1:80/TCP 198.18.0.2:8080")
	s.put("services", aService("api", "198.19.0.2"))
	r.await("api 198.19.0.2:80/TCP; web 198.19.0.1:80/TCP 198.18.0.2:8080")
	s.drop("services", aService("web", ""))
	r.await("api 198.19.0.2:80/TCP")
	if st := r.Status(); st.Err != nil || st.Services != 1 || st.EndpointSlices != 1 || st.Age() != 0 {
		t.Errorf("status %+v", st)
	}
}

// TestSelectors: the server is asked for what kube-proxy would ask for.
func TestSelectors(t *testing.T) {
	for proxyName, label := range map[string]string{"": "%21service.kubernetes.io%2Fservice-proxy-name", "sluice": "service.kubernetes.io%2Fservice-proxy-name%3Dsluice"} {
		s := newStub(t)
		mine, other := aService("mine", "198.19.0.1"), aService("other", "198.19.0.2")
		mine.Labels = map[string]string{service.ProxyNameLabel: "sluice"}
		s.put("services", mine)
		s.put("services", other)
		r := newRig(t, s, func(c *Config) { c.Service.ProxyName = proxyName })
		if proxyName == "" {
			r.await("other 198.19.0.2:80/TCP")
		} else {
			r.await("mine 198.19.0.1:80/TCP")
		}
		s.mu.Lock()
		asked := strings.Join(s.seen, "\n")
		s.mu.Unlock()
		for _, want := range []string{"labelSelector=" + label, "fieldSelector=spec.clusterIP%21%3DNone", "labelSelector=%21" + strings.ReplaceAll(corev1.IsHeadlessService, "/", "%2F")} {
			if !strings.Contains(asked, want) {
				t.Errorf("not asked for: %s in\n%s", want, asked)
			}
		}
	}
}

// TestFaults: while the server is away what is programmed stays, and after its return we are in sync within five seconds.
// What was deleted meanwhile is gone then, though no watch ever said so.
func TestFaults(t *testing.T) {
	for f, name := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStub(t)
			s.put("services", aService("web", "198.19.0.1"))
			s.put("services", aService("gone", "198.19.0.2"))
			s.put("endpointslices", aSlice("web-1", "web", "198.18.0.1", "198.18.0.2"))
			r := newRig(t, s, nil)
			before := "gone 198.19.0.2:80/TCP; web 198.19.0.1:80/TCP 198.18.0.1:8080 198.18.0.2:8080"
			r.await(before)
			// A watch that begins within the fault is silent, which is no fault of a watch.
			for !s.watched("services") || !s.watched("endpointslices") {
				time.Sleep(time.Millisecond)
			}

			s.set(f)
			s.mu.Lock() // changes that no watch is told of
			delete(s.objects["services"], "demo/gone")
			s.version++
			slice := aSlice("web-1", "web", "198.18.0.3")
			slice.ResourceVersion = fmt.Sprint(s.version)
			s.objects["endpointslices"]["demo/web-1"] = slice
			s.oldest = s.version
			s.mu.Unlock()
			after := "web 198.19.0.1:80/TCP 198.18.0.3:8080"
			var status service.Status
			// Nine seconds, and on a busy machine longer, until it is seen and has an age.
			begun := time.Now()
			for f != expired && (time.Since(begun) < 9*time.Second || status.Err == nil || status.Age() < time.Second) {
				if got := r.programmed(); got != before {
					t.Fatalf("programmed %q, want %q", got, before)
				}
				if time.Since(begun) > 30*time.Second {
					t.Fatalf("after 30 seconds: age %v, %v", status.Age(), status.Err)
				}
				time.Sleep(5 * time.Millisecond)
				status = r.Status()
			}
			s.set(none)
			took := r.await(after)
			t.Logf("in sync after %v", took.Round(time.Millisecond))
			if took > 5*time.Second {
				t.Errorf("in sync after %v", took)
			}
			for end := time.Now().Add(5 * time.Second); r.Status().Err != nil; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("still unwell: %v", r.Status().Err)
				}
			}
		})
	}
}

// TestNothingBeforeSync: with one kind of objects missing nothing is programmed.
func TestNothingBeforeSync(t *testing.T) {
	s := newStub(t)
	s.put("services", aService("web", "198.19.0.1"))
	s.set(failing)
	r := newRig(t, s, nil)
	time.Sleep(300 * time.Millisecond)
	if got := r.programmed(); got != "nothing" {
		t.Errorf("programmed %q", got)
	}
	if st := r.Status(); st.Err == nil || !strings.Contains(st.Err.Error(), "services") {
		t.Errorf("status %v", st.Err)
	}
	s.set(none)
	r.await("web 198.19.0.1:80/TCP")
}

// TestMinSyncPeriod: a change after a rest is programmed at once, a burst in one piece.
func TestMinSyncPeriod(t *testing.T) {
	s := newStub(t)
	s.put("services", aService("web", "198.19.0.1"))
	const period = 500 * time.Millisecond
	r := newRig(t, s, func(c *Config) { c.MinSyncPeriod = period })
	r.await("web 198.19.0.1:80/TCP")
	time.Sleep(period)
	s.put("endpointslices", aSlice("web-1", "web", "198.18.0.1"))
	if took := r.await("web 198.19.0.1:80/TCP 198.18.0.1:8080"); took > period/2 {
		t.Errorf("the first change took %v", took)
	}
	first := r.snapshot.Load().Generation
	var addrs []string
	for i := range 50 {
		addrs = append(addrs, fmt.Sprint("198.18.1.", i+1))
		s.put("endpointslices", aSlice("web-1", "web", addrs...))
	}
	slices.SortFunc(addrs, func(a, b string) int { return len(a)*1000 - len(b)*1000 + strings.Compare(a, b) })
	want := "web 198.19.0.1:80/TCP"
	for _, a := range addrs {
		want += " " + a + ":8080"
	}
	if took := r.await(want); took < period/4 {
		t.Errorf("a burst was programmed after %v", took)
	}
	if n := r.snapshot.Load().Generation - first; n > 2 {
		t.Errorf("a burst took %d Snapshots", n)
	}
}

// TestStateFile: a start without the server goes by the last known state, shows its age, and is corrected when the server
// is back.
func TestStateFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sub", "services.state")
	s := newStub(t)
	s.put("services", aService("web", "198.19.0.1"))
	s.put("services", aService("gone", "198.19.0.2"))
	s.put("endpointslices", aSlice("web-1", "web", "198.18.0.1"))
	with := func(c *Config) { c.StateFile = file }
	r := newRig(t, s, with)
	full := "gone 198.19.0.2:80/TCP; web 198.19.0.1:80/TCP 198.18.0.1:8080"
	r.await(full)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	s.set(refuse)
	r = newRig(t, s, with)
	if took := r.await(full); took < restoreAfter-time.Second {
		t.Errorf("the state was used after %v", took)
	}
	if st := r.Status(); st.Err == nil || st.Age() < restoreAfter/2 {
		t.Errorf("status %v, age %v", st.Err, st.Age())
	}
	s.mu.Lock()
	delete(s.objects["services"], "demo/gone")
	s.mu.Unlock()
	s.set(none)
	r.await("web 198.19.0.1:80/TCP 198.18.0.1:8080")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}

	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := len(good) / 2
	for what, bad := range map[string][]byte{
		"a flipped bit":   slices.Concat(good[:at], []byte{good[at] ^ 1}, good[at+1:]),
		"cut short":       good[:len(good)-1],
		"too long":        slices.Concat(good, []byte{0}),
		"empty":           nil,
		"another version": []byte(strings.Replace(string(good), `"version":1`, `"version":9`, 1)),
		"another node":    []byte(strings.Replace(string(good), `"node":"n1"`, `"node":"n2"`, 1)),
		"another file":    []byte("hello\n"),
	} {
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		c := service.NewCatalog(service.Config{})
		if _, err := loadState(file, stateHeader{Node: "n1"}, c); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", what, err)
		}
		if n := c.Counts().Services; n != 0 {
			t.Errorf("%s: %d Services", what, n)
		}
	}
}

// TestEvent: the event is about this Node, where kubectl looks for it.
func TestEvent(t *testing.T) {
	s := newStub(t)
	r := newRig(t, s, nil)
	r.Event("Normal", "Starting", "hello")
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		posted := strings.Join(s.posted, "\n")
		s.mu.Unlock()
		if posted != "" {
			for _, want := range []string{"/api/v1/namespaces/default/events ", `"involvedObject":{"kind":"Node","name":"n1","uid":"n1"}`, `"reason":"Starting"`, `"message":"hello"`, `"component":"sluice"`} {
				if !strings.Contains(posted, want) {
					t.Errorf("no %s in %s", want, posted)
				}
			}
			return
		}
		if time.Now().After(end) {
			t.Fatal("nothing was posted")
		}
	}
}

// TestNodeAndRanges: the zone is the Node's, a ClusterIP outside of the ServiceCIDRs is refused, and a policy that selects a
// backend on this node leaves its Service to kube-proxy.
func TestNodeAndRanges(t *testing.T) {
	s := newStub(t)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "z1"}}}
	s.put("nodes", node)
	s.put("servicecidrs", &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"198.19.0.0/24"}}})
	s.put("services", aService("web", "198.19.0.1"))
	s.put("services", aService("out", "198.19.9.1"))
	slice := aSlice("web-1", "web", "198.18.0.1", "198.18.0.2")
	for i, zone := range []string{"z1", "z2"} {
		slice.Endpoints[i].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
	}
	s.put("endpointslices", slice)
	var observed atomic.Int64
	r := newRig(t, s, func(c *Config) {
		c.Service.Policed = service.Pass
		c.Observe = func(o service.Sync) { observed.Add(1) }
	})
	r.await("web 198.19.0.1:80/TCP 198.18.0.1:8080")
	if n := r.Status().Counts.RefusedClusterIPs; n != 1 {
		t.Errorf("%d ClusterIPs refused", n)
	}
	node.Labels[corev1.LabelTopologyZone] = "z2"
	s.put("nodes", node)
	r.await("web 198.19.0.1:80/TCP 198.18.0.2:8080")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "a", Labels: map[string]string{"app": "web"}}}
	pod.Spec.NodeName, pod.Status.PodIPs = "n1", []corev1.PodIP{{IP: "198.18.0.2"}}
	s.put("pods", pod)
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "p"}}
	s.put("networkpolicies", policy)
	for r.snapshot.Load().ServicePorts()[0].Action != service.Pass {
		time.Sleep(time.Millisecond)
	}
	s.drop("networkpolicies", policy)
	r.await("web 198.19.0.1:80/TCP 198.18.0.2:8080")
	if observed.Load() < 4 {
		t.Errorf("%d syncs observed", observed.Load())
	}
}

// TestTriggers: the time that endpoints took is counted from the annotation, but not from before the process began.
func TestTriggers(t *testing.T) {
	s := newStub(t)
	s.put("services", aService("web", "198.19.0.1"))
	old := aSlice("web-1", "web", "198.18.0.1")
	old.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().Add(-time.Hour).UTC().Format(time.RFC3339Nano)}
	s.put("endpointslices", old)
	seen := make(chan service.Trigger, 10)
	r := newRig(t, s, func(c *Config) {
		c.Observe = func(o service.Sync) {
			for _, t := range o.Triggers {
				seen <- t
			}
		}
	})
	r.await("web 198.19.0.1:80/TCP 198.18.0.1:8080")
	now := time.Now().UTC()
	young := aSlice("web-1", "web", "198.18.0.2")
	young.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: now.Format(time.RFC3339Nano)}
	s.put("endpointslices", young)
	r.await("web 198.19.0.1:80/TCP 198.18.0.2:8080")
	if got := <-seen; !got.At.Equal(now) || got.IPv6 {
		t.Errorf("%v, want %v", got, now)
	}
}

// TestServerWithoutRanges: an older server has no ServiceCIDRs, and nothing is wrong with that.
func TestServerWithoutRanges(t *testing.T) {
	s := newStub(t)
	s.lacks = "servicecidrs"
	s.put("services", aService("web", "198.19.0.1"))
	r := newRig(t, s, nil)
	r.await("web 198.19.0.1:80/TCP")
	if st := r.Status(); st.Err != nil {
		t.Error(st.Err)
	}
}
