package service

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// TestDescribe: each endpoint is explained.
func TestDescribe(t *testing.T) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	why := func(local *corev1.ServiceInternalTrafficPolicy, endpoints ...discoveryv1.Endpoint) (out []string) {
		c := NewCatalog(Config{NodeName: "n1", Zone: "z1"})
		web := newService("web", []string{"198.19.0.1"}, tcp("http", 80))
		web.Spec.InternalTrafficPolicy = local
		c.SetService(web)
		c.SetSlice(newSlice("web-1", "web", http(8080), endpoints...))
		c.Commit()
		all := c.Describe()
		if len(all) != 1 || all[0].Name != "web" || all[0].Frontends[0] != "198.19.0.1:80/TCP" {
			t.Fatalf("%+v", all)
		}
		for _, e := range all[0].Endpoints {
			if e.Used {
				e.Why = "used"
			}
			out = append(out, e.Address+" "+e.Why)
		}
		return out
	}
	for name, tc := range map[string]struct{ got, want []string }{
		"cluster": {why(nil, pod("198.18.0.1", "rs"), pod("198.18.0.2", ""), pod("198.18.0.3", "st"), pod("198.18.0.4", "t"), pod("198.18.0.5", "s"), pod("198.19.0.1", "rs")), []string{
			"198.18.0.1:8080 used", "198.18.0.2:8080 not ready", "198.18.0.3:8080 terminating, and others are ready",
			"198.18.0.4:8080 terminating, and no longer serving", "198.18.0.5:8080 not ready, though it serves",
			"198.19.0.1 refused: the ClusterIP of a Service",
		}},
		"zones": {why(nil, hinted(pod("198.18.0.1", "rs"), nil, []string{"z1"}), hinted(pod("198.18.0.2", "rs"), nil, []string{"z2"})), []string{
			"198.18.0.1:8080 used", "198.18.0.2:8080 its hints are for other zones",
		}},
		"local": {why(&local, on("n1", pod("198.18.0.1", "rs")), on("n2", pod("198.18.0.2", "rs"))), []string{
			"198.18.0.1:8080 used", "198.18.0.2:8080 on another node, and internalTrafficPolicy is Local",
		}},
		"draining": {why(nil, pod("198.18.0.1", "st")), []string{"198.18.0.1:8080 used"}},
	} {
		if diff := cmp.Diff(tc.want, tc.got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
