package telemetry

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/sluice-net/sluice/dataplane"
)

// healthBody is what the health endpoints answer with. LastUpdated and
// CurrentTime are kube-proxy's: while healthy they are the same; after that
// the first stands still at the last time it was seen to be.
type healthBody struct {
	Healthy     bool      `json:"healthy"`
	LastUpdated time.Time `json:"lastUpdated"`
	CurrentTime time.Time `json:"currentTime"`
	Reason      string    `json:"reason,omitempty"`
}

// HealthHandler serves /livez, which is good unless a worker is stuck, and
// /readyz and /healthz, which besides want something programmed.
func HealthHandler(health func() dataplane.Health) http.Handler {
	mux := http.NewServeMux()
	ready := func(h dataplane.Health) bool { return h.Live && h.Ready }
	mux.Handle("GET /livez", newProbe(health, func(h dataplane.Health) bool { return h.Live }))
	mux.Handle("GET /readyz", newProbe(health, ready))
	mux.Handle("GET /healthz", newProbe(health, ready))
	return mux
}

// probe is one health endpoint.
type probe struct {
	health func() dataplane.Health
	good   func(dataplane.Health) bool

	mu       sync.Mutex
	lastGood time.Time // when a request last found it good, at first its start
}

func newProbe(health func() dataplane.Health, good func(dataplane.Health) bool) *probe {
	return &probe{health: health, good: good, lastGood: time.Now()}
}

// ServeHTTP implements http.Handler.
func (p *probe) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	h, now := p.health(), time.Now()
	b := healthBody{Healthy: p.good(h), CurrentTime: now}
	code := http.StatusOK
	p.mu.Lock()
	if b.Healthy {
		p.lastGood = now
	} else {
		code, b.Reason = http.StatusServiceUnavailable, h.Reason
	}
	b.LastUpdated = p.lastGood
	p.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(b) // the asker is gone
}
