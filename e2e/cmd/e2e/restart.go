package main

import (
	"context"
	"time"

	"github.com/sluice-net/sluice/e2e/stand"
)

// restartScenarios stop what all share, so they run one by one.
func restartScenarios() []scenario {
	return []scenario{
		{name: "[sig-network] Services should work after restarting kube-proxy [Disruptive]", run: restartDataplane, serial: true},
		{name: "[sig-network] Services should work after restarting apiserver [Disruptive]", run: restartAPIServer, serial: true},
		{name: "[sig-apps] DaemonRestart [Disruptive] Kube-proxy should recover after being killed accidentally", run: killedDataplane, serial: true},
	}
}

// restartDataplane has upstream's name; what is restarted is the dataplane under test.
func restartDataplane(t *T) {
	client := t.clientPod()
	p, q := t.pod("pod1", podOptions{}), t.pod("pod2", podOptions{node: stand.Node2})
	one := t.service("restart-proxy-1", httpSpec())
	t.reaches(client, "tcp", frontend(one, 80), p, q)
	t.c.dataplane.Kill()
	// What changes meanwhile has to be learnt afterwards.
	two := t.service("restart-proxy-2", httpSpec())
	q.kill()
	t.restart()
	t.reaches(client, "tcp", frontend(one, 80), p)
	t.reaches(client, "tcp", frontend(two, 80), p)
}

func (t *T) restart() {
	// The process belongs to the cluster, not to the scenario, and so does the time it takes.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	t.check(t.c.dataplane.Restart(ctx), "restarting the dataplane")
}

func restartAPIServer(t *T) {
	client := t.clientPod()
	p, q := t.pod("pod1", podOptions{}), t.pod("pod2", podOptions{node: stand.Node2})
	one := t.service("restart-apiserver-1", httpSpec())
	t.reaches(client, "tcp", frontend(one, 80), p, q)
	t.c.control.StopAPIServer()
	stop, failures := t.background(client, "tcp", frontend(one, 80))
	t.sleep(2 * time.Second)
	t.check(t.c.control.StartAPIServer(t.ctx), "starting the API server")
	two := t.service("restart-apiserver-2", httpSpec())
	t.reaches(client, "tcp", frontend(one, 80), p, q)
	t.reaches(client, "tcp", frontend(two, 80), p, q)
	stop()
	if n, last := failures(); n > 0 {
		t.fatalf("%d connections failed while the API server was away or came back, the last one: %v", n, last)
	}
}

func killedDataplane(t *T) {
	client := t.clientPod()
	p := t.pod("pod1", podOptions{})
	s := t.service("killed", httpSpec())
	t.reaches(client, "tcp", frontend(s, 80), p)
	for range 2 {
		t.c.dataplane.Kill()
		t.restart()
		t.reaches(client, "tcp", frontend(s, 80), p)
	}
}
