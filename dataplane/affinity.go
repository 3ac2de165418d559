package dataplane

import "github.com/sluice-net/sluice/service"

// recallAffinities remembers the backends that clients of Services with ClientIP
// affinity have by the flows in the table, which a predecessor may have left. Before
// the first snapshot is published.
func (d *Dataplane) recallAffinities(s *service.Snapshot) {
	wanted := false
	for _, p := range s.ServicePorts() {
		wanted = wanted || p.Affinity != 0
	}
	if !wanted {
		return
	}
	now := d.clock.now()
	for e := range d.table.All() {
		f := &e.Flow
		p := servicePortOf(s, f)
		if p == nil || p.Affinity == 0 {
			continue
		}
		d.affinities.Remember(p, &f.Client, &service.Backend{Addr: f.Backend, Port: f.BackendPort}, now)
	}
}
