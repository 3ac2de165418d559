package service

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Catalog is what is known of the cluster's Services. Set, Delete and Replace tell it of objects, Commit makes the next
// Snapshot of what has been told since the last one. The work is in proportion to what changed, but for a copy of one list
// of pointers.
//
// The order in which objects are told does not matter, nor how many changes there are between two Commits: what a Snapshot
// holds depends on nothing but the objects known at its Commit.
//
// A Catalog is not safe for concurrent use. Snapshots are.
type Catalog struct {
	cfg      Config
	asm      assembler
	snapshot *Snapshot

	entries map[types.NamespacedName]*entry
	owners  map[types.NamespacedName]types.NamespacedName // of slices: the Service that each belongs to
	orphans map[types.NamespacedName]Problem              // slices without an owner
	// claims says which Service has a frontend, contested who wants those that more than one does.
	claims    map[Frontend]*entry
	contested map[Frontend][]*entry
	served    map[[16]byte]int // ClusterIPs, with the number of Services that want each
	backends  map[[16]byte]int // addresses of serving backends, with the number of ServicePorts that have each
	ranges    serviceRanges
	policies  policies
	around    around

	// What has been told since the last Commit.
	dirty map[*entry]struct{}
	moved struct {
		clusterIPs map[[16]byte]struct{} // addresses that became a ClusterIP, or are none any more
		around     bool
	}
	triggers []Trigger

	troubled map[*entry]struct{} // entries with something to report
	report   *Report             // nil: to be made
	counts   Counts
}

// entry is all that is known under the name of one Service.
type entry struct {
	name    types.NamespacedName
	known   bool         // there is such a Service, be it ours or not
	service *serviceView // nil unless it is ours
	addrs   []netip.Addr // those of the Service that are claimed
	slices  []*sliceView // sorted by name
	policed bool         // a NetworkPolicy selects one of its backends

	ports  []*ServicePort // as of the last Commit, sorted
	report Report
}

// Counts says how much a Catalog knows.
type Counts struct {
	Services, EndpointSlices int
	RefusedEndpoints         int // unsafe addresses
	RefusedClusterIPs        int // outside of every known Service range
	// Changes of objects that were told of, and those of them that came after the last Commit.
	ServiceChanges, SliceChanges               uint64
	ServiceChangesPending, SliceChangesPending uint64
}

// Sync is what it took to put one change in force.
type Sync struct {
	Queued   time.Time // when there first was something to do
	Began    time.Time
	Took     time.Duration
	Full     bool      // it was the first
	Triggers []Trigger // of changes that are in force now
}

// Trigger is when something outside happened that made an EndpointSlice change: the start of the time that it takes to
// program it.
type Trigger struct {
	At   time.Time
	IPv6 bool
}

// Change is the outcome of a Commit.
type Change struct {
	Snapshot *Snapshot
	Report   *Report // of everything that is known and not used
	Changed  bool    // Snapshot is a new one
	Triggers []Trigger
}

// NewCatalog gives one that knows nothing.
func NewCatalog(cfg Config) *Catalog { return newCatalog(cfg, nil) }

// newCatalog gives one that continues prev, as if prev's ServicePorts were those of objects that have just been deleted.
func newCatalog(cfg Config, prev *Snapshot) *Catalog {
	c := &Catalog{
		cfg: cfg, asm: assembler{node: cfg.NodeName, zone: cfg.Zone}, snapshot: prev,
		entries: make(map[types.NamespacedName]*entry), owners: make(map[types.NamespacedName]types.NamespacedName),
		orphans: make(map[types.NamespacedName]Problem),
		claims:  make(map[Frontend]*entry), contested: make(map[Frontend][]*entry),
		served: make(map[[16]byte]int), backends: make(map[[16]byte]int),
		dirty: make(map[*entry]struct{}), troubled: make(map[*entry]struct{}),
		ranges: serviceRanges{configured: cfg.ServiceCIDRs, objects: make(map[string][]netip.Prefix), dirty: true},
		around: around{pods: cfg.Pods},
	}
	c.moved.clusterIPs = make(map[[16]byte]struct{})
	c.policies.init()
	if prev != nil {
		c.around = prev.around
		if c.around.pods = cfg.Pods; !slices.Equal(cfg.Pods, prev.around.pods) {
			c.moved.around = true
		}
	}
	c.asm.policed, c.asm.whenPoliced = c.policies.policed, cfg.Policed
	c.asm.refuses = c.refuses
	if prev != nil {
		for _, p := range prev.ports {
			e := c.entry(types.NamespacedName{Namespace: p.Namespace, Name: p.Name})
			e.ports = append(e.ports, p)
			c.dirty[e] = struct{}{}
			for i := range p.serving {
				if !sameAddr(p.serving, i) {
					c.backends[p.serving[i].Addr]++
				}
			}
		}
	}
	return c
}

// sameAddr says whether the backend before has the same address.
func sameAddr(list []Backend, i int) bool { return i > 0 && list[i-1].Addr == list[i].Addr }

func (c *Catalog) entry(name types.NamespacedName) *entry {
	e, ok := c.entries[name]
	if !ok {
		e = &entry{name: name}
		c.entries[name] = e
	}
	return e
}

// touch says that an entry has to be assembled again.
func (c *Catalog) touch(e *entry) { c.dirty[e] = struct{}{} }

// SetService tells of a Service that is new or has changed. The Catalog keeps no reference to it but for its strings.
func (c *Catalog) SetService(s *corev1.Service) {
	e := c.entry(nameOf(s))
	if !e.known {
		e.known = true
		c.counts.Services++
		c.touch(e)
	}
	var v *serviceView
	if c.cfg.ours(s) {
		if v = c.cfg.readService(s); len(v.addrs) == 0 && len(v.problems.Problems) == 0 {
			v = nil
		}
	}
	if !e.service.equal(v) {
		c.setView(e, v)
	}
}

func (v *serviceView) equal(o *serviceView) bool {
	if v == nil || o == nil {
		return v == o
	}
	return v.created == o.created && v.selection == o.selection && v.affinity == o.affinity && v.local == o.local &&
		slices.Equal(v.addrs, o.addrs) && slices.Equal(v.ports, o.ports) && v.problems.equal(&o.problems)
}

// setView replaces what is known of the Service of e.
func (c *Catalog) setView(e *entry, v *serviceView) {
	c.counts.ServiceChanges++
	c.counts.ServiceChangesPending++
	c.release(e)
	e.service = v
	c.claim(e)
	c.touch(e)
}

// DeleteService tells that a Service is gone.
func (c *Catalog) DeleteService(namespace, name string) {
	e, ok := c.entries[types.NamespacedName{Namespace: namespace, Name: name}]
	if !ok || !e.known {
		return
	}
	e.known = false
	c.counts.Services--
	c.setView(e, nil)
}

// ReplaceServices tells of all Services that there are. What is not among them is gone. Of two with one name the older counts.
func (c *Catalog) ReplaceServices(all []*corev1.Service) {
	seen := make(map[types.NamespacedName]*corev1.Service, len(all))
	twice := make(map[types.NamespacedName]bool)
	for _, s := range all {
		if s == nil {
			continue
		}
		name := nameOf(s)
		if first, ok := seen[name]; ok {
			twice[name] = true
			if !s.CreationTimestamp.Before(&first.CreationTimestamp) {
				continue
			}
		}
		seen[name] = s
	}
	for name, e := range c.entries {
		if _, ok := seen[name]; !ok && e.known {
			c.DeleteService(name.Namespace, name.Name)
		}
	}
	for name, s := range seen {
		c.SetService(s)
		if e := c.entries[name]; twice[name] && e.service != nil {
			e.service.problems.add(objectName(s), "metadata.name", "another Service has the same name: this one is ignored")
		}
	}
}

// claim asks for the frontends of e. A frontend that two Services claim goes to the older one, and if their age is the same
// (manifests in a folder have none), to the first by namespace and name. Losing one does not lose the others.
func (c *Catalog) claim(e *entry) {
	e.addrs = e.addrs[:0]
	if e.service == nil {
		return
	}
	for _, addr := range e.service.addrs {
		if c.ranges.allow(addr) {
			e.addrs = append(e.addrs, addr)
		}
	}
	for _, addr := range e.addrs {
		if len(e.service.ports) != 0 {
			c.serve(addr.As16(), +1)
		}
		for i := range e.service.ports {
			f := e.service.ports[i].frontend(addr)
			holder, taken := c.claims[f]
			if !taken {
				c.claims[f] = e
				continue
			}
			if c.contested[f] == nil {
				c.contested[f] = []*entry{holder}
			}
			c.contested[f] = append(c.contested[f], e)
			c.settle(f)
		}
	}
}

// release gives up what claim has got.
func (c *Catalog) release(e *entry) {
	for _, addr := range e.addrs {
		if len(e.service.ports) != 0 {
			c.serve(addr.As16(), -1)
		}
		for i := range e.service.ports {
			f := e.service.ports[i].frontend(addr)
			rivals := c.contested[f]
			if rivals == nil {
				delete(c.claims, f)
				continue
			}
			c.contested[f] = slices.DeleteFunc(rivals, func(r *entry) bool { return r == e })
			c.settle(f)
		}
	}
	e.addrs = e.addrs[:0]
}

// settle gives a contested frontend to the first of those that want it.
func (c *Catalog) settle(f Frontend) {
	rivals := c.contested[f]
	c.claims[f] = slices.MinFunc(rivals, func(x, y *entry) int {
		return cmp.Or(cmp.Compare(x.service.created, y.service.created),
			strings.Compare(x.name.Namespace, y.name.Namespace), strings.Compare(x.name.Name, y.name.Name))
	})
	for _, r := range rivals {
		c.touch(r)
	}
	if len(rivals) == 1 {
		delete(c.contested, f)
	}
}

// serve counts those that want an address as their ClusterIP.
func (c *Catalog) serve(addr [16]byte, by int) {
	n := c.served[addr] + by
	if n == 0 || n == 1 && by == 1 {
		c.moved.clusterIPs[addr] = struct{}{}
	}
	if n == 0 {
		delete(c.served, addr)
		return
	}
	c.served[addr] = n
}

// refuses says why nothing may be sent to an endpoint with this address, or "".
func (c *Catalog) refuses(addr [16]byte) string {
	if _, isService := c.served[addr]; isService {
		return "the ClusterIP of a Service" // translating to it would come back here
	}
	return c.ranges.holds(addr)
}

// portAt names the port of e that has the frontend.
func (e *entry) portAt(f *Frontend) string {
	for i := range e.service.ports {
		if p := &e.service.ports[i]; p.port == f.Port && p.proto == f.Proto {
			return (&ServicePort{Namespace: e.name.Namespace, Name: e.name.Name, PortName: p.name}).String()
		}
	}
	return e.name.String()
}

// SetSlice tells of an EndpointSlice that is new or has changed. The Catalog keeps no reference to it but for its strings.
func (c *Catalog) SetSlice(s *discoveryv1.EndpointSlice) {
	name := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
	if _, headless := s.Labels[corev1.IsHeadlessService]; headless {
		c.deleteSlice(name) // kube-proxy's own selector leaves these out
		return
	}
	owner := ownerOf(s)
	if owner.Name == "" {
		c.deleteSlice(name)
		c.owners[name] = types.NamespacedName{}
		c.orphans[name] = Problem{Object: sliceName(s), Field: "metadata.labels[" + discoveryv1.LabelServiceName + "]", Text: "missing: the slice belongs to no Service"}
		c.report = nil
		return
	}
	if old, ok := c.owners[name]; ok && old != owner {
		c.deleteSlice(name)
	}
	c.owners[name] = owner
	e, v := c.entry(owner), readSlice(s)
	at, exists := e.find(v.name)
	switch {
	case !exists:
		e.slices = slices.Insert(e.slices, at, v)
	case e.slices[at].equal(v):
		return
	default:
		e.slices[at] = v
	}
	c.touch(e)
	c.sliceChanged()
	if t, err := time.Parse(time.RFC3339Nano, s.Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil {
		c.triggers = append(c.triggers, Trigger{t, v.ipv6})
	}
}

func (c *Catalog) sliceChanged() {
	c.counts.SliceChanges++
	c.counts.SliceChangesPending++
}

func (e *entry) find(slice string) (at int, exists bool) {
	return slices.BinarySearchFunc(e.slices, slice, func(v *sliceView, name string) int { return strings.Compare(v.name, name) })
}

func (v *sliceView) equal(o *sliceView) bool {
	samePort := func(x, y slicePort) bool { x.used, y.used = false, false; return x == y }
	return v.ipv6 == o.ipv6 && slices.EqualFunc(v.ports, o.ports, samePort) &&
		slices.Equal(v.endpoints, o.endpoints) && v.problems.equal(&o.problems)
}

// DeleteSlice tells that an EndpointSlice is gone.
func (c *Catalog) DeleteSlice(namespace, name string) {
	c.deleteSlice(types.NamespacedName{Namespace: namespace, Name: name})
}

func (c *Catalog) deleteSlice(name types.NamespacedName) {
	owner, ok := c.owners[name]
	if !ok {
		return
	}
	delete(c.owners, name)
	if owner.Name == "" {
		delete(c.orphans, name)
		c.report = nil
		return
	}
	e := c.entries[owner]
	if at, exists := e.find(name.Name); exists {
		e.slices = slices.Delete(e.slices, at, at+1)
		c.touch(e)
		c.sliceChanged()
	}
}

// ReplaceSlices tells of all EndpointSlices that there are. What is not among them is gone. Of two with one name the first counts.
func (c *Catalog) ReplaceSlices(all []*discoveryv1.EndpointSlice) {
	seen := make(map[types.NamespacedName]struct{}, len(all))
	for _, s := range all {
		if s != nil {
			seen[types.NamespacedName{Namespace: s.Namespace, Name: s.Name}] = struct{}{}
		}
	}
	for name := range c.owners {
		if _, ok := seen[name]; !ok {
			c.deleteSlice(name)
		}
	}
	for _, s := range all {
		if s == nil {
			continue
		}
		name := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
		if _, first := seen[name]; first {
			delete(seen, name)
			c.SetSlice(s)
			continue
		}
		if owner := c.owners[name]; owner.Name != "" {
			e := c.entries[owner]
			at, _ := e.find(name.Name)
			v := *e.slices[at] // the one that is programmed is compared with at the next Replace
			v.problems.Problems = slices.Clip(v.problems.Problems)
			v.problems.add(sliceName(s), "metadata.name", "another EndpointSlice has the same name: this one is ignored")
			e.slices[at] = &v
			c.touch(e)
		}
	}
}

// Counts may be called between any two calls.
func (c *Catalog) Counts() Counts {
	n := c.counts
	n.EndpointSlices = len(c.owners)
	return n
}

// Commit makes the Snapshot of all that is known. If nothing has changed, it is the last one.
func (c *Catalog) Commit() Change {
	if c.ranges.dirty {
		c.rerange()
	}
	c.spread()
	changed := make([]*entry, 0, len(c.dirty))
	before := make(map[*entry][]*ServicePort, len(c.dirty))
	wins := func(f *Frontend) *entry { return c.claims[*f] }
	for e := range c.dirty {
		old := e.ports
		hadReport := len(e.report.Problems) != 0
		c.count(&e.report, -1)
		c.assemble(e, wins)
		c.count(&e.report, +1)
		if has := len(e.report.Problems) != 0; has || hadReport {
			c.report = nil
			if has {
				c.troubled[e] = struct{}{}
			} else {
				delete(c.troubled, e)
			}
		}
		if !slices.Equal(old, e.ports) {
			before[e] = old
			changed = append(changed, e)
		}
		if !e.known && len(e.slices) == 0 {
			delete(c.entries, e.name)
		}
	}
	clear(c.dirty)
	c.counts.ServiceChangesPending, c.counts.SliceChangesPending = 0, 0
	next := c.next(changed, before)
	change := Change{Snapshot: next, Changed: next != c.snapshot, Triggers: c.triggers}
	c.snapshot, c.triggers = next, nil
	if c.report == nil {
		c.report = c.makeReport()
	}
	change.Report = c.report
	return change
}

func (c *Catalog) count(r *Report, by int) {
	c.counts.RefusedEndpoints += by * r.Refused
	c.counts.RefusedClusterIPs += by * r.RefusedClusterIPs
}

// spread touches the entries that have an endpoint whose address means something else by now.
func (c *Catalog) spread() {
	if len(c.moved.clusterIPs) != 0 {
		c.touchUsers(c.moved.clusterIPs)
		clear(c.moved.clusterIPs)
	}
	if c.policies.dirty && c.cfg.Policed != Forward {
		if moved := c.policies.choose(); len(moved) != 0 {
			c.around.policed, c.moved.around = c.policies.selected, true
			c.touchUsers(moved)
		}
	}
}

// touchUsers touches the entries that have an endpoint with one of the addresses.
func (c *Catalog) touchUsers(addrs map[[16]byte]struct{}) {
	if len(c.dirty) == len(c.entries) {
		return
	}
	for _, e := range c.entries {
		if _, is := c.dirty[e]; !is && e.service != nil && e.uses(addrs) {
			c.touch(e)
		}
	}
}

func (e *entry) uses(addrs map[[16]byte]struct{}) bool {
	for _, v := range e.slices {
		for i := range v.endpoints {
			if _, ok := addrs[v.endpoints[i].addr]; ok {
				return true
			}
		}
	}
	return false
}

// assemble makes e's ServicePorts and report.
func (c *Catalog) assemble(e *entry, wins func(*Frontend) *entry) {
	c.asm.assemble(e, wins)
	if !e.known && !c.cfg.Partial {
		for _, v := range e.slices {
			e.report.add("EndpointSlice "+e.name.Namespace+"/"+v.name, "metadata.labels["+discoveryv1.LabelServiceName+"]", "there is no Service %s", e.name)
		}
	}
}

// makeReport gathers what there is to report, in the order of the Services' names.
func (c *Catalog) makeReport() *Report {
	r := new(Report)
	for _, name := range slices.SortedFunc(maps.Keys(c.orphans), compareNames) {
		p := c.orphans[name]
		r.add(p.Object, p.Field, "%s", p.Text)
	}
	for _, e := range slices.SortedFunc(maps.Keys(c.troubled), func(x, y *entry) int { return compareNames(x.name, y.name) }) {
		r.append(&e.report)
	}
	return r
}

func compareNames(x, y types.NamespacedName) int {
	return cmp.Or(strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Name, y.Name))
}

// next makes the Snapshot after the last one, from the entries whose ports changed and what these were before.
func (c *Catalog) next(changed []*entry, before map[*entry][]*ServicePort) *Snapshot {
	if len(changed) == 0 && !c.moved.around && c.snapshot != nil {
		return c.snapshot
	}
	c.moved.around = false
	slices.SortFunc(changed, func(x, y *entry) int { return compareNames(x.name, y.name) })
	edits := make([]edit, len(changed))
	var tally tally
	tally.count = c.backends
	for i, e := range changed {
		edits[i] = edit{before[e], e.ports}
		for _, p := range before[e] {
			if !slices.Contains(e.ports, p) {
				tally.add(p.serving, -1)
			}
		}
		for _, p := range e.ports {
			if !slices.Contains(before[e], p) {
				tally.add(p.serving, +1)
			}
		}
	}
	next := c.snapshot.edit(edits)
	next.around = c.around
	next.newBackends, next.goneBackends = tally.changes()
	return next
}

// tally keeps count of the ServicePorts that have a backend's address, and of what that was before the first change.
type tally struct {
	count map[[16]byte]int
	was   map[[16]byte]int
}

func (t *tally) add(list []Backend, by int) {
	if t.was == nil {
		t.was = make(map[[16]byte]int, len(list))
	}
	for i := range list {
		if sameAddr(list, i) {
			continue
		}
		a := list[i].Addr
		n := t.count[a]
		if _, ok := t.was[a]; !ok {
			t.was[a] = n
		}
		if n += by; n == 0 {
			delete(t.count, a)
		} else {
			t.count[a] = n
		}
	}
}

// changes are the addresses that came and that went.
func (t *tally) changes() (come, gone [][16]byte) {
	for a, was := range t.was {
		switch is := t.count[a]; {
		case was == 0 && is != 0:
			come = append(come, a)
		case was != 0 && is == 0:
			gone = append(gone, a)
		}
	}
	return come, gone
}
