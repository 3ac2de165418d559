package service

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

const goodService = `apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: demo
spec:
  clusterIP: 198.19.0.1
  ports:
  - name: http
    port: 80
`

const goodSlice = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: demo
  labels:
    kubernetes.io/service-name: web
addressType: IPv4
ports:
- name: http
  port: 8080
endpoints:
- addresses: [198.18.0.1]
`

func objectNames(objects []object) string {
	var names []string
	for _, o := range objects {
		names = append(names, fmt.Sprintf("%s@%d:%d", o.name(), o.document, o.line))
	}
	return strings.Join(names, ", ")
}

func TestReadManifest(t *testing.T) {
	const service, slice = "Service demo/web", "EndpointSlice demo/web-1"
	indent := func(s, by string) string {
		return by + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n"+by) + "\n"
	}
	item := func(s string) string { return "-" + indent(s, "  ")[1:] }
	asJSON := func(s string) string {
		docs, problem := yamlDocuments([]byte(s))
		if problem != nil {
			t.Fatal(problem)
		}
		return string(docs[0].json)
	}
	for _, tc := range []struct{ name, file, data, want string }{
		{"service", "a.yaml", goodService, service + "@1:1"},
		{"slice", "a.yaml", goodSlice, slice + "@1:1"},
		{"two documents", "a.yml", goodService + "---\n" + goodSlice, service + "@1:1, " + slice + "@2:11"},
		{"marker first, comments, empty documents", "a.yaml", "# x\n\n---\n# y\n---\n" + goodService + "--- # z\n---\n" + goodSlice + "---\n", service + "@2:5, " + slice + "@4:17"},
		{"end markers", "a.yaml", goodService + "...\n---\n" + goodSlice + "...\n", service + "@1:1, " + slice + "@2:12"},
		{"version directive", "a.yaml", "%YAML 1.1\n---\n" + goodService, service + "@1:2"},
		{"comments only", "a.yaml", "# nothing here yet\n", ""},
		{"null", "a.yaml", "null\n---\n~\n", ""},
		{"byte order mark and CRLF", "a.yaml", "\ufeff" + strings.ReplaceAll(goodService+"---\n"+goodSlice, "\n", "\r\n"), service + "@1:1, " + slice + "@2:11"},
		{"no newline at the end", "a.yaml", strings.TrimSuffix(goodService, "\n"), service + "@1:1"},
		{"list", "a.yaml", "apiVersion: v1\nkind: List\nitems:\n" + item(goodService) + item(goodSlice), service + "@1:1, " + slice + "@1:1"},
		{"empty list", "a.yaml", "apiVersion: v1\nkind: List\nitems: []\n", ""},
		{"anchors and merge keys", "a.yaml", strings.Replace(goodService, "metadata:\n", "metadata: &m\n  annotations: {a: &v \"1\", b: *v}\n", 1), service + "@1:1"},
		{"JSON", "a.json", asJSON(goodService), service + "@1:1"},
		{"JSON values in a row", "a.JSON", "\n" + asJSON(goodService) + "\n\n" + asJSON(goodSlice) + "\n", service + "@1:2, " + slice + "@2:4"},
		{"JSON in YAML", "a.yaml", asJSON(goodService), service + "@1:1"},
		{"default namespace", "a.yaml", strings.Replace(goodService, "  namespace: demo\n", "", 1), "Service default/web@1:1"},
		{"as kubectl get prints it", "a.yaml", strings.Replace(goodService, "metadata:\n", "metadata:\n  creationTimestamp: \"2026-01-01T00:00:00Z\"\n  resourceVersion: \"7\"\n  uid: x\n  managedFields: [{manager: k, fieldsV1: {f:spec: {}}}]\n", 1) + "status:\n  loadBalancer: {}\n", service + "@1:1"},
		{"headless", "a.yaml", strings.Replace(goodService, "198.19.0.1", "None", 1), service + "@1:1"},
		{"ExternalName", "a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: demo}\nspec: {type: ExternalName, externalName: example.org}\n", "Service demo/x@1:1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			objects, problem := readManifest(tc.file, []byte(tc.data))
			if problem != nil {
				t.Fatal(problem)
			}
			if got := objectNames(objects); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// TestDefaults: what the API server fills in, a manifest gets too.
func TestDefaults(t *testing.T) {
	slice := strings.Replace(goodSlice, "- name: http\n  port", "- port", 1)
	service := strings.NewReplacer("- name: http\n    port", "- port", "clusterIP: 198.19.0.1", "clusterIPs: [198.19.0.1]").Replace(goodService)
	objects, problem := readManifest("a.yaml", []byte(service+"---\n"+slice))
	if problem != nil {
		t.Fatal(problem)
	}
	s, report := Build(&Config{}, nil, []*corev1.Service{objects[0].service}, []*discoveryv1.EndpointSlice{objects[1].slice})
	checkProblem(t, report, "")
	if p := s.Lookup(frontend("198.19.0.1", 80, TCP)); p == nil || len(p.Backends) != 1 {
		t.Errorf("port %+v", p)
	}
}

// badManifests are documents that must be refused, with what the refusal must say. The folder test feeds them all to a Folder.
var badManifests = func() []struct{ name, data, want string } {
	service := func(old, new string) string { return mustReplace(goodService, old, new) }
	slice := func(old, new string) string { return mustReplace(goodSlice, old, new) }
	manyEndpoints := goodSlice + strings.Repeat("- {}\n", 100000)
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		bomb += fmt.Sprintf("%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", c, c, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1)
	}
	return []struct{ name, data, want string }{
		{"empty file", "", "the file is empty"},
		{"kind wrong", service("kind: Service", "kind: Servce"), `document 1 (line 1): Servce demo/web: kind: "Servce" of "v1" is none of`},
		{"kind of another group", service("kind: Service", "kind: EndpointSlice"), `kind: "EndpointSlice" of "v1"`},
		{"kind we have no use for", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n", `kind: "Deployment" of "apps/v1" is none of`},
		{"kind missing", service("kind: Service\n", ""), "demo/web: kind: missing"},
		{"apiVersion missing", service("apiVersion: v1\n", ""), "Service demo/web: apiVersion: missing"},
		{"second document", goodService + "---\nkind: Service\n", "document 2 (line 11): Service: apiVersion: missing"},
		{"a list, not an object", "- a\n- b\n", "not an object"},
		{"a word, not an object", "hello\n", "not an object"},
		{"not YAML", service("  ports:", " ports:"), "document 1 (line "},
		{"tab", service("  clusterIP", "\tclusterIP"), "line 7"},
		{"half a file", goodService[:len(goodService)-9] + `"`, "document 1 (line "},
		{"something after the document", "{a: 1}\n{b: 2}\n", "did not find expected <document start>"},
		{"UTF-8 junk", service("web", "w\xffeb"), "line 4: not UTF-8"},
		{"UTF-16", "\xff\xfea\x00:\x00 \x001\x00", "line 1: not UTF-8"},
		{"zero byte", service("web", "w\x00eb"), "control characters are not allowed"},
		{"cyclic anchors", "a: &a [*a]\n", "anchor 'a' value contains itself"},
		{"a billion laughs", bomb, "excessive aliasing"},
		{"key twice", service("  name: web\n", "  name: web\n  name: api\n"), `key "name" already set`},
		{"key not a string", service("metadata:\n", "metadata:\n  labels: {yes: a}\n"), "the key true is not a string: put it in quotes"},
		{"unknown field", service("port: 80", "prot: 80"), "Service demo/web: spec.ports[0].prot: unknown field"},
		{"unknown field, wrong case", service("clusterIP:", "clusterip:"), "spec.clusterip: unknown field"},
		{"CRLF", strings.ReplaceAll(service("port: 80", "prot: 80"), "\n", "\r\n"), "spec.ports[0].prot: unknown field"},
		{"wrong type", service("port: 80", "port: http"), "spec.ports.port: string where an int32 is wanted"},
		{"number in quotes", service("port: 80", `port: "80"`), "spec.ports.port: string where an int32 is wanted"},
		{"number for a name", service("name: web", "name: 80"), "metadata.name: number where a string is wanted"},
		{"object where a list is wanted", service("  - name: http\n    port: 80", "    port: 80"), "spec.ports: object where a list is wanted"},
		{"huge integer", service("port: 80", "port: 99999999999999999999999999"), "spec.ports.port: number 1e+26 where an int32 is wanted"},
		{"int32 overflow", service("port: 80", "port: 4294967376"), "spec.ports.port: number 4294967376 where an int32 is wanted"},
		{"fraction", service("port: 80", "port: 80.5"), "spec.ports.port: number 80.5"},
		{"not a number", service("port: 80", "port: .nan"), "NaN"},
		{"no name", service("  name: web\n", ""), "Service: metadata.name: missing"},
		{"bad name", service("name: web", "name: Web_1"), `metadata.name: "Web_1" is not a valid name`},
		{"bad namespace", service("namespace: demo", "namespace: a/b"), `metadata.namespace: "a/b" is not a valid name`},
		{"no ports", service("  ports:\n  - name: http\n    port: 80\n", ""), "spec.ports: missing"},
		{"port 0", service("port: 80", "port: 0"), "spec.ports[0].port: 0 is not in 1..65535"},
		{"port 65536", service("port: 80", "port: 65536"), "spec.ports[0].port: 65536 is not in 1..65535"},
		{"port negative", service("port: 80", "port: -1"), "spec.ports[0].port: -1 is not"},
		{"protocol", service("port: 80", "port: 80\n    protocol: tcp"), `spec.ports[0].protocol: "tcp" is none of`},
		{"two ports without names", service("port: 80", "port: 80\n  - port: 81"), "spec.ports[1].name: missing"},
		{"port name twice", service("port: 80", "port: 80\n  - name: http\n    port: 81"), `spec.ports[1].name: "http" is there twice`},
		{"port number twice", service("port: 80", "port: 80\n  - name: alt\n    port: 80"), "spec.ports[1].port: 80/TCP is there twice"},
		{"target port", service("port: 80", "port: 80\n    targetPort: 65536"), "spec.ports[0].targetPort: 65536"},
		{"target port name", service("port: 80", "port: 80\n    targetPort: -a-"), `spec.ports[0].targetPort: "-a-" is not a port name`},
		{"node port", service("port: 80", "port: 80\n    nodePort: 70000"), "spec.ports[0].nodePort: 70000"},
		{"no clusterIP", service("  clusterIP: 198.19.0.1\n", ""), "spec.clusterIP: missing"},
		{"clusterIP", service("198.19.0.1", "198.19.0.256"), `spec.clusterIP: "198.19.0.256" is not an IP address`},
		{"clusterIP with leading zeros", service("198.19.0.1", "198.19.0.01"), "is not an IP address"},
		{"clusterIPs disagree", service("clusterIP: 198.19.0.1", "clusterIP: 198.19.0.1\n  clusterIPs: [198.19.0.2]"), `spec.clusterIPs[0]: "198.19.0.2" is not the "198.19.0.1"`},
		{"two clusterIPs of a family", service("clusterIP: 198.19.0.1", "clusterIPs: [198.19.0.1, 198.19.0.2]"), "spec.clusterIPs: 198.19.0.2: a Service has at most one"},
		{"three clusterIPs", service("clusterIP: 198.19.0.1", "clusterIPs: [198.19.0.1, 198.19.0.2, '2001:db8:2::1']"), "spec.clusterIPs: 3 addresses"},
		{"None and an address", service("clusterIP: 198.19.0.1", "clusterIPs: [None, 198.19.0.2]"), "spec.clusterIPs: None stands alone"},
		{"type", service("clusterIP: 198.19.0.1", "clusterIP: 198.19.0.1\n  type: Cluster"), `spec.type: "Cluster" is none of`},
		{"ExternalName without one", service("clusterIP: 198.19.0.1", "type: ExternalName"), "spec.externalName: missing"},
		{"affinity", service("clusterIP: 198.19.0.1", "clusterIP: 198.19.0.1\n  sessionAffinity: Client"), `spec.sessionAffinity: "Client" is none of`},
		{"affinity timeout", service("clusterIP: 198.19.0.1", "clusterIP: 198.19.0.1\n  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}"), "timeoutSeconds: 86401 is not in 1..86400"},
		{"internal traffic policy", service("clusterIP: 198.19.0.1", "clusterIP: 198.19.0.1\n  internalTrafficPolicy: local"), `spec.internalTrafficPolicy: "local" is none of`},
		{"time", service("metadata:\n", "metadata:\n  creationTimestamp: yesterday\n"), `parsing time "yesterday"`},

		{"slice name", slice("name: web-1", "name: web_1"), "metadata.name"},
		{"service label", slice("service-name: web", "service-name: Web"), "metadata.labels[kubernetes.io/service-name]"},
		{"address type", slice("addressType: IPv4", "addressType: ipv4"), `EndpointSlice demo/web-1: addressType: "ipv4" is none of`},
		{"address type missing", slice("addressType: IPv4\n", ""), "addressType: missing"},
		{"wrong family", slice("addressType: IPv4", "addressType: IPv6"), "endpoints[0].addresses[0]: 198.18.0.1 is not in the family of addressType IPv6"},
		{"no address", slice("[198.18.0.1]", "[]"), "endpoints[0].addresses: 0: 1 to 100 are wanted"},
		{"address", slice("198.18.0.1", "pod-1"), `endpoints[0].addresses[0]: "pod-1" is not an IP address`},
		{"slice port 0", slice("port: 8080", "port: 0"), "ports[0].port: 0 is not in 1..65535"},
		{"slice port 65536", slice("port: 8080", "port: 65536"), "ports[0].port: 65536"},
		{"slice protocol", slice("port: 8080", "port: 8080\n  protocol: QUIC"), `ports[0].protocol: "QUIC"`},
		{"slice port name", slice("name: http", "name: HTTP"), `ports[0].name: "HTTP"`},
		{"slice port name twice", slice("port: 8080", "port: 8080\n- name: http\n  port: 8081"), `ports[1].name: "http" is there twice`},
		{"100 001 endpoints", manyEndpoints, "endpoints: 100001: at most 1000"},

		{"list of junk", "apiVersion: v1\nkind: List\nitems: [1]\n", "items[0]: not an object"},
		{"list in a list", "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: List}]\n", `items[0].kind: "List" of "v1"`},
		{"list with an unknown field", "apiVersion: v1\nkind: List\nitem: []\n", "List: item: unknown field"},
		{"list with a bad service", "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: x, ports: [{port: 80}]}}]\n", `Service default/web: items[0].spec.clusterIP: "x" is not`},
		{"the same object twice", goodService + "---\n" + goodService, "Service demo/web: metadata.name: the same object is in document 1 of"},
	}
}()

func mustReplace(s, old, new string) string {
	if strings.Count(s, old) < 1 {
		panic(fmt.Sprintf("%q is not in the manifest", old))
	}
	return strings.Replace(s, old, new, 1)
}

func TestBadManifests(t *testing.T) {
	if len(badManifests) < 40 {
		t.Errorf("only %d bad documents", len(badManifests))
	}
	for _, tc := range badManifests {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "the same object twice" {
				t.Skip("refused by the folder, not the file")
			}
			objects, problem := readManifest("a.yaml", []byte(tc.data))
			if problem == nil {
				t.Fatalf("accepted: %v", objectNames(objects))
			}
			if got := problem.Detail(); !strings.Contains(got, tc.want) || strings.Contains(got, "\n") {
				t.Errorf("got %q, want one line with %q", got, tc.want)
			}
		})
	}
}

func TestBadJSON(t *testing.T) {
	service := `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},` + "\n" + `"spec":{"clusterIP":"198.19.0.1","ports":[{"port":80}]}}`
	for _, tc := range []struct{ name, data, want string }{
		{"half a file", service[:80], "document 1 (line 2): unexpected EOF"},
		{"syntax", strings.Replace(service, "80", "eighty", 1), "document 1 (line 2): invalid character"},
		{"field twice", strings.Replace(service, `"port":80`, `"port":80,"port":81`, 1), "spec.ports[0].port: duplicate field"},
		{"something after the value", service + "\n]", "document 2 (line 3): invalid character"},
		{"second document", service + "\n\n{}", "document 2 (line 4): kind: missing"},
		{"blank", " \n", ""},
		{"huge number", strings.Replace(service, "80", "1"+strings.Repeat("0", 5000), 1), "spec.ports.port: number 1000"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, problem := readManifest("a.json", []byte(tc.data))
			switch {
			case problem == nil && tc.want != "":
				t.Error("accepted")
			case problem != nil && (tc.want == "" || !strings.Contains(problem.Detail(), tc.want)):
				t.Errorf("got %q, want %q", problem.Detail(), tc.want)
			case problem != nil && len(problem.Detail()) > 1000:
				t.Errorf("a line of %d bytes", len(problem.Detail()))
			}
		})
	}
}

// FuzzManifest: no bytes make the decoder panic, what it refuses it explains in one line, and what it accepts is fit to build from.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(goodService), false)
	f.Add([]byte(goodSlice), false)
	f.Add([]byte(goodService+"---\n"+goodSlice), false)
	for _, tc := range badManifests {
		if len(tc.data) < 10000 {
			f.Add([]byte(tc.data), false)
		}
	}
	for _, s := range []string{goodService, goodSlice} {
		docs, _ := yamlDocuments([]byte(s))
		f.Add(docs[0].json, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, isJSON bool) {
		name := "a.yaml"
		if isJSON {
			name = "a.json"
		}
		objects, problem := readManifest(name, data)
		if problem != nil {
			if text := problem.Detail(); text == "" || strings.Contains(text, "the parser gave up") || len(text) > 1000 {
				t.Errorf("problem %q", text)
			}
			return
		}
		var services []*corev1.Service
		var endpointSlices []*discoveryv1.EndpointSlice
		for _, o := range objects {
			if o.document < 1 || o.line < 1 || o.line > 1+bytes.Count(data, []byte("\n")) {
				t.Errorf("%s at document %d, line %d", o.name(), o.document, o.line)
			}
			if s := o.service; s != nil {
				services = append(services, s)
				if s.Name == "" || s.Namespace == "" {
					t.Errorf("service %q/%q", s.Namespace, s.Name)
				}
				for _, p := range s.Spec.Ports {
					if p.Port < 1 || p.Port > 65535 {
						t.Errorf("port %d", p.Port)
					}
				}
			} else {
				s := o.slice
				endpointSlices = append(endpointSlices, s)
				if s.Name == "" || s.Namespace == "" || s.AddressType == "" {
					t.Errorf("slice %q/%q of type %q", s.Namespace, s.Name, s.AddressType)
				}
				for _, e := range s.Endpoints {
					for _, a := range e.Addresses {
						if _, err := netip.ParseAddr(a); err != nil && s.AddressType != discoveryv1.AddressTypeFQDN {
							t.Error(err)
						}
					}
				}
			}
		}
		s, _ := Build(&Config{}, nil, services, endpointSlices)
		checkSnapshot(t, s)

		// What was accepted is accepted again as JSON, and means the same.
		var again bytes.Buffer
		for _, o := range objects {
			var v any = o.service
			if o.service == nil {
				v = o.slice
			}
			raw, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			again.Write(raw)
		}
		if len(objects) > 0 {
			second, problem := readManifest("a.json", again.Bytes())
			if problem != nil {
				t.Fatalf("refused when written again: %v\n%s", problem, again.Bytes())
			}
			if !slices.EqualFunc(objects, second, func(a, b object) bool { return a.name() == b.name() }) {
				t.Errorf("%s, when written again %s", objectNames(objects), objectNames(second))
			}
		}
	})
}

func BenchmarkReadManifest(b *testing.B) {
	var yaml strings.Builder
	services, all := cluster(100)
	for i := range services {
		yaml.WriteString(strings.NewReplacer("web", services[i].Name, "198.19.0.1", services[i].Spec.ClusterIP).Replace(goodService) + "---\n")
		yaml.WriteString(strings.NewReplacer("web", services[i].Name).Replace(goodSlice))
		for _, e := range all[i].Endpoints {
			yaml.WriteString("- addresses: [" + e.Addresses[0] + "]\n")
		}
		yaml.WriteString("---\n")
	}
	b.SetBytes(int64(yaml.Len()))
	for b.Loop() {
		if _, problem := readManifest("a.yaml", []byte(yaml.String())); problem != nil {
			b.Fatal(problem)
		}
	}
}
