package service

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
)

// TestStateRoundTrip: a Catalog that was told what another has written makes the same Snapshot.
func TestStateRoundTrip(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 5))
		services, all := randomObjects(r)
		cfg := Config{NodeName: "n1", Partial: true, Policed: Pass}
		c := NewCatalog(cfg)
		c.ReplaceServices(services)
		c.ReplaceSlices(all)
		c.setNode("z1", nil)
		if r.IntN(2) == 0 {
			c.SetPolicy(aPolicy("p", map[string]string{"app": "web"}))
			c.SetPod(aPod("a", "n1", fmt.Sprint("198.18.0.", 1+r.IntN(4)), map[string]string{"app": "web"}))
		}
		if r.IntN(4) == 0 {
			c.SetRange(&networkingv1.ServiceCIDR{Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"198.19.0.0/31"}}})
		}
		want := c.Commit().Snapshot
		var file bytes.Buffer
		if err := c.State().Write(&file); err != nil {
			t.Fatal(err)
		}
		again := NewCatalog(cfg)
		if err := again.Restore(&file); err != nil {
			t.Fatal(err)
		}
		got := again.Commit().Snapshot
		if !maps.Equal(contents(got), contents(want)) {
			t.Fatalf("seed %d: got %v, want %v", seed, contents(got), contents(want))
		}
		// A relist that says the same changes nothing.
		again.ReplaceServices(services)
		again.ReplaceSlices(all)
		if change := again.Commit(); change.Changed && !maps.Equal(contents(change.Snapshot), contents(want)) {
			t.Fatalf("seed %d: after the relist %v, want %v", seed, contents(change.Snapshot), contents(want))
		}
	}
	if err := NewCatalog(Config{}).Restore(strings.NewReader("{")); err == nil {
		t.Error("half a state was taken")
	}
}
