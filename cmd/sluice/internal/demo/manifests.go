package demo

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sluice-net/sluice/internal/netlab"
)

// The files of the folder that the daemon watches.
const (
	servicesFile  = "services.yaml"
	endpointsFile = "endpoints.yaml"
)

// serviceManifests are the two Services.
func serviceManifests() []byte {
	var b bytes.Buffer
	for i := range protos {
		p := &protos[i]
		v4, v6 := p.addr(netlab.IPv4), p.addr(netlab.IPv6)
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata:
  name: %s
  namespace: demo
spec:
  type: ClusterIP
  clusterIP: %q
  clusterIPs: [%q, %q]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  ports:
  - name: echo
    protocol: %s
    port: %d
    targetPort: %d
`, p.service, v4, v4, v6, strings.ToUpper(p.network), p.port, p.backendPort)
	}
	return b.Bytes()
}

// endpointManifests are an EndpointSlice for each Service and family.
func endpointManifests(backends []*backend) []byte {
	var b bytes.Buffer
	for _, k := range kinds() {
		fmt.Fprintf(&b, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: %s-%s
  namespace: demo
  labels:
    kubernetes.io/service-name: %s
addressType: %s
ports:
- name: echo
  protocol: %s
  port: %d
endpoints:
`, k.service, k.family, k.service, strings.Replace(k.family.String(), "ipv", "IPv", 1), strings.ToUpper(k.network), k.backendPort)
		for _, be := range backends {
			node := "node"
			if be.remote {
				node = "remote"
			}
			fmt.Fprintf(&b, "- addresses: [%q]\n  nodeName: %s\n  conditions: {ready: true}\n", be.IP(k.family), node)
		}
	}
	return b.Bytes()
}

// writeManifest puts a file in place at once, as a careful editor does.
func writeManifest(dir, name string, data []byte) error {
	hidden := filepath.Join(dir, "."+name) // which the daemon does not read
	if err := os.WriteFile(hidden, data, 0o644); err != nil {
		return fmt.Errorf("writing manifest: %w", err)
	}
	if err := os.Rename(hidden, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("writing manifest: %w", err)
	}
	return nil
}
