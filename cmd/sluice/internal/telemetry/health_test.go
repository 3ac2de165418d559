package telemetry

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-net/sluice/dataplane"
)

func get(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

func TestHealth(t *testing.T) {
	good := dataplane.Health{Live: true, Ready: true}
	starting := dataplane.Health{Live: true, Reason: "starting"}
	stuck := dataplane.Health{Reason: "a worker has not beaten for 2s"}
	for _, c := range []struct {
		name   string
		health dataplane.Health
		path   string
		code   int
		reason string
	}{
		{"good", good, "/livez", 200, ""},
		{"good", good, "/readyz", 200, ""},
		{"good", good, "/healthz", 200, ""},
		{"starting", starting, "/livez", 200, ""},
		{"starting", starting, "/readyz", 503, "starting"},
		{"starting", starting, "/healthz", 503, "starting"},
		{"stuck", stuck, "/livez", 503, stuck.Reason},
		{"stuck", stuck, "/readyz", 503, stuck.Reason},
		{"stuck", stuck, "/healthz", 503, stuck.Reason},
		{"stuck, and ready before", dataplane.Health{Ready: true, Reason: "stuck"}, "/readyz", 503, "stuck"},
	} {
		t.Run(c.name+c.path, func(t *testing.T) {
			w := get(HealthHandler(func() dataplane.Health { return c.health }), "GET", c.path)
			if w.Code != c.code {
				t.Errorf("status %d, want %d", w.Code, c.code)
			}
			if ct := w.Header().Get("Content-Type"); ct != "application/json" {
				t.Errorf("content type %q", ct)
			}
			var body healthBody
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
				t.Fatalf("%v in %q", err, w.Body)
			}
			if body.Healthy != (c.code == 200) || body.Reason != c.reason {
				t.Errorf("body %q", w.Body)
			}
			if body.CurrentTime.IsZero() || body.LastUpdated.IsZero() {
				t.Errorf("a time is missing in %q", w.Body)
			}
		})
	}
}

func TestHealthRefusesOtherRequests(t *testing.T) {
	h := HealthHandler(func() dataplane.Health { return dataplane.Health{Live: true, Ready: true} })
	for _, c := range []struct {
		method, path string
		code         int
	}{
		{"HEAD", "/livez", 200},
		{"POST", "/livez", 405},
		{"GET", "/", 404},
		{"GET", "/livez/x", 404},
		{"GET", "/metrics", 404},
		{"GET", "/debug/pprof/", 404},
	} {
		if w := get(h, c.method, c.path); w.Code != c.code {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, w.Code, c.code)
		}
	}
}

// TestLastUpdatedStandsStill is kube-proxy's meaning of the two times.
func TestLastUpdatedStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		now := dataplane.Health{Live: true, Ready: true}
		h := HealthHandler(func() dataplane.Health { return now })
		ask := func() (body healthBody) {
			if err := json.Unmarshal(get(h, "GET", "/healthz").Body.Bytes(), &body); err != nil {
				t.Fatal(err)
			}
			return body
		}
		time.Sleep(time.Minute)
		if b := ask(); !b.LastUpdated.Equal(start.Add(time.Minute)) || !b.CurrentTime.Equal(b.LastUpdated) {
			t.Errorf("healthy: %+v", b)
		}
		now.Live = false
		time.Sleep(time.Minute)
		if b := ask(); !b.LastUpdated.Equal(start.Add(time.Minute)) || !b.CurrentTime.Equal(start.Add(2*time.Minute)) {
			t.Errorf("unhealthy: %+v", b)
		}
	})
}
