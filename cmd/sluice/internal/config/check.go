package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Allowed words of the fields that have words.
var (
	Modes      = []string{"front", "named", "alone"}
	Sources    = []string{"manifests", "apiServer"}
	LocalModes = []string{"ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"}
	Policies   = []string{"honour", "enforcedElsewhere"}
	contents   = []string{"application/vnd.kubernetes.protobuf", "application/json"}
	Kinds      = []string{"auto", "steered", "native", "generic", "none"}
	Roles      = []string{"pods", "uplinks", "tunnels"}
	Workers    = []string{"adaptive", "busy", "interrupt"}
	Selections = []string{"consistent", "random", "roundRobin"}
	OnExits    = []string{"remove", "keep"}
	LogLevels  = []string{"debug", "info", "warn", "error"}
	LogFormats = []string{"auto", "text", "json"}
)

// Bounds of numbers, none wider than what the rooms below allow: what they would
// refuse is refused here with file and line, before half the work is done.
const (
	maxNameLength   = 15 // IFNAMSIZ less the zero
	maxInterfaces   = 255
	maxWorkers      = 64
	minFrames       = 256
	maxFrames       = 1 << 24
	minRingSize     = 64
	maxRingSize     = 32768
	maxFlowCapacity = 1 << 24
	// The flow table's clock has 32 bits of about a millisecond and compares
	// by half its range, 26 days.
	maxFlowTimeout = 20 * 24 * time.Hour
	minStaleAfter  = 100 * time.Millisecond // twice the beat of a sleeping worker
	maxHoldKnown   = time.Minute
	maxBusySpin    = time.Second
	// What became of a datagram is known no longer.
	maxFragmentWait = 5 * time.Second
	maxCPUs         = 1024
)

// Check says what cannot be. The error is a Problems. It judges the words
// alone; it does not look at the machine.
func (d *Draft) Check() error {
	c := checker{draft: d}
	c.word("mode", d.Mode, Modes)
	c.interfaces()
	if d.Mode == "named" {
		c.labelValue("serviceProxyName", d.ServiceProxyName)
	}
	c.word("source", d.Source, Sources)
	if d.Source == "apiServer" {
		c.apiServer()
	}
	c.duration("minSyncPeriod", d.MinSyncPeriod, 0, time.Minute)
	if d.StateDir != "" {
		c.absolute("stateDir", d.StateDir)
	}
	c.absolute("manifests", d.Manifests)
	c.prefixes("serviceCIDR", d.ServiceCIDR)
	c.prefixes("clusterCIDR", d.ClusterCIDR)
	c.local()
	c.word("networkPolicy", d.NetworkPolicy, Policies)
	c.number("affinityCapacity", d.AffinityCapacity, 64, maxFlowCapacity)
	c.word("selection", d.Selection, Selections)

	c.number("workers", d.Workers, 0, maxWorkers)
	c.word("workerMode", d.WorkerMode, Workers)
	if _, err := CPUs(d.WorkerCPUs); err != nil {
		c.refuse("workerCPUs", "%v", err)
	}
	c.duration("busySpin", d.BusySpin, 0, maxBusySpin)
	c.duration("fragmentWait", d.FragmentWait, 0, maxFragmentWait)
	if d.Frames != 0 {
		c.number("frames", d.Frames, minFrames, maxFrames)
	}
	if d.FrameSize != 2048 && d.FrameSize != 4096 {
		c.refuse("frameSize", "want 2048 or 4096, got %d", d.FrameSize)
	}
	if d.RingSize < minRingSize || d.RingSize > maxRingSize || d.RingSize&(d.RingSize-1) != 0 {
		c.refuse("ringSize", "want a power of two from %d to %d, got %d", minRingSize, maxRingSize, d.RingSize)
	}
	c.number("flowTable.capacity", d.FlowTable.Capacity, 1, maxFlowCapacity)
	c.number("flowTable.maxPerClient", d.FlowTable.MaxPerClient, 0, maxFlowCapacity)

	ct := &d.Conntrack
	c.duration("conntrack.tcpOpeningTimeout", ct.TCPOpeningTimeout, time.Second, maxFlowTimeout)
	c.duration("conntrack.tcpEstablishedTimeout", ct.TCPEstablishedTimeout, time.Second, maxFlowTimeout)
	c.duration("conntrack.tcpCloseWaitTimeout", ct.TCPCloseWaitTimeout, time.Second, maxFlowTimeout)
	c.duration("conntrack.tcpClosingTimeout", ct.TCPClosingTimeout, time.Second, maxFlowTimeout)
	c.duration("conntrack.udpTimeout", ct.UDPTimeout, time.Second, maxFlowTimeout)
	c.duration("conntrack.udpStreamTimeout", ct.UDPStreamTimeout, time.Second, maxFlowTimeout)

	c.duration("heartbeat.staleAfter", d.Heartbeat.StaleAfter, minStaleAfter, maxHoldKnown)
	c.duration("heartbeat.holdKnown", d.Heartbeat.HoldKnown, 0, maxHoldKnown)
	if d.Heartbeat.HoldKnown < d.Heartbeat.StaleAfter {
		c.refuse("heartbeat.holdKnown", "want at least heartbeat.staleAfter (%v), got %v", d.Heartbeat.StaleAfter, d.Heartbeat.HoldKnown)
	}

	c.word("onExit", d.OnExit, OnExits)
	c.absolute("pinPath", d.PinPath)
	c.absolute("runDir", d.RunDir)
	c.deviceName("returnPort", d.ReturnPort, len("-out"))

	c.addresses()
	c.word("logging.level", d.Logging.Level, LogLevels)
	c.word("logging.format", d.Logging.Format, LogFormats)
	return c.problems.orNil()
}

// Warnings says what is allowed and yet deserves a word in the log.
func (c *Configuration) Warnings() []string {
	var warnings []string
	for _, a := range []struct{ field, value string }{
		{"healthzBindAddress", c.HealthzBindAddress},
		{"metricsBindAddress", c.MetricsBindAddress},
	} {
		if addr, err := netip.ParseAddrPort(a.value); err == nil && !addr.Addr().Unmap().IsLoopback() {
			warnings = append(warnings, fmt.Sprintf("%s %s is not loopback: whoever reaches this node's address can read it", a.field, a.value))
		}
	}
	return warnings
}

// checker collects what is wrong with a draft.
type checker struct {
	draft    *Draft
	problems Problems
}

// refuse complains about a field. A flag is its own name, so that the path
// beside it would only be noise.
func (c *checker) refuse(path, format string, args ...any) {
	origin := c.draft.origin[path]
	for up := path; origin == "" && up != ""; {
		up = up[:max(0, strings.LastIndexAny(up, ".["))]
		origin = c.draft.origin[up]
	}
	if strings.HasPrefix(origin, "--") {
		path = ""
	}
	c.problems = append(c.problems, Problem{origin, path, fmt.Sprintf(format, args...)})
}

func (c *checker) word(path, value string, allowed []string) {
	if !slices.Contains(allowed, value) {
		c.refuse(path, "want %s, got %q", alternatives(allowed), value)
	}
}

// alternatives writes "a, b or c".
func alternatives(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func (c *checker) number(path string, value, least, most int) {
	if value < least || value > most {
		c.refuse(path, "want %d to %d, got %d", least, most, value)
	}
}

func (c *checker) duration(path string, value Duration, least, most time.Duration) {
	if v := time.Duration(value); v < least || v > most {
		c.refuse(path, "want %v to %v, got %v", Duration(least), Duration(most), value)
	}
}

func (c *checker) absolute(path, value string) {
	if !filepath.IsAbs(value) {
		c.refuse(path, "want an absolute path, got %q", value)
	}
}

// deviceName refuses what the kernel's dev_valid_name (net/core/dev.c) does,
// with room left for what will be added to it.
func (c *checker) deviceName(path, name string, room int) bool {
	bad := func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) || !unicode.IsPrint(r) }
	switch {
	case name == "":
		c.refuse(path, "missing; want the name of a network device")
	case len(name) > maxNameLength-room:
		c.refuse(path, "want at most %d characters, got %q", maxNameLength-room, name)
	case name == "." || name == ".." || strings.ContainsFunc(name, bad):
		c.refuse(path, "%q cannot be the name of a network device", name)
	default:
		return true
	}
	return false
}

// labelValue refuses what cannot be the value of a Kubernetes label, or is empty.
func (c *checker) labelValue(path, value string) {
	inside := func(r rune) bool {
		return r < 128 && (unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_' || r == '.')
	}
	edge := func(b byte) bool { return inside(rune(b)) && b != '-' && b != '_' && b != '.' }
	bad := func(r rune) bool { return !inside(r) }
	if value == "" || len(value) > 63 || strings.ContainsFunc(value, bad) || !edge(value[0]) || !edge(value[len(value)-1]) {
		c.refuse(path, "want the value of a label (1 to 63 letters, digits, -, _ and ., ends without the signs), got %q", value)
	}
}

func (c *checker) prefixes(path, value string) {
	list, err := Prefixes(value)
	if err != nil {
		c.refuse(path, "want ranges such as 198.18.0.0/16,2001:db8:1::/48: %v", err)
	}
	if len(list) > 2 || len(list) == 2 && list[0].Addr().Is4() == list[1].Addr().Is4() {
		c.refuse(path, "want at most one range of each family, got %q", value)
	}
}

// Prefixes reads ranges that are separated by commas.
func Prefixes(value string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for text := range strings.SplitSeq(value, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%q is none", text)
		}
		list = append(list, p.Masked())
	}
	return list, nil
}

func (c *checker) local() {
	d := c.draft
	c.word("detectLocalMode", d.DetectLocalMode, LocalModes)
	switch d.DetectLocalMode {
	case "NodeCIDR":
		if d.Source != "apiServer" {
			c.refuse("detectLocalMode", "NodeCIDR needs the Node object, and so source: apiServer")
		}
	case "BridgeInterface":
		c.deviceName("detectLocal.bridgeInterface", d.DetectLocal.BridgeInterface, 0)
	case "InterfaceNamePrefix":
		c.deviceName("detectLocal.interfaceNamePrefix", d.DetectLocal.InterfaceNamePrefix, 0)
	}
}

func (c *checker) apiServer() {
	d := c.draft
	if d.APIServer != "" {
		if u, err := url.Parse(d.APIServer); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			c.refuse("apiServer", "want a URL such as https://192.0.2.10:6443, got %q", d.APIServer)
		}
	}
	conn := &d.ClientConnection
	if conn.Kubeconfig != "" {
		c.absolute("clientConnection.kubeconfig", conn.Kubeconfig)
	}
	c.word("clientConnection.contentType", conn.ContentType, contents)
	if conn.QPS != -1 {
		c.number("clientConnection.qps", conn.QPS, 1, 10000)
	}
	c.number("clientConnection.burst", conn.Burst, 1, 10000)
}

func (c *checker) interfaces() {
	d := c.draft
	if n := len(d.Interfaces); n > maxInterfaces {
		c.refuse("interfaces", "want at most %d, got %d", maxInterfaces, n)
	}
	seen := map[Interface]bool{}
	for i := range d.Interfaces {
		f := &d.Interfaces[i]
		path := fmt.Sprintf("interfaces[%d]", i)
		if f.Kind == "" {
			f.Kind = defaultKind
		}
		c.word(path+".kind", f.Kind, Kinds)
		if f.Role != "" {
			c.word(path+".role", f.Role, Roles)
		}
		if f.Name == "" && f.Driver == "" && f.Role == "" {
			c.refuse(path+".name", "missing; want the name of a network device, a pattern of names, a driver or a role")
			continue
		}
		if f.Name != "" && !c.devicePattern(path+".name", f.Name) {
			continue
		}
		switch what := (Interface{f.Name, f.Driver, f.Role, ""}); {
		case seen[what] && f.Name == "":
			c.refuse(path+".name", "this is chosen twice")
		case seen[what]:
			c.refuse(path+".name", "%s is named twice", f.Name)
		case f.Name == d.ReturnPort+"-out" || f.Name == d.ReturnPort+"-in":
			c.refuse(path+".name", "%s belongs to the return port, which Sluice makes and serves by itself", f.Name)
		case f.Name == "lo":
			c.refuse(path+".name", "lo cannot be served: no frames of pods or of the wire pass it")
		default:
			seen[what] = true
		}
	}
}

// devicePattern checks a name, or a pattern of names.
func (c *checker) devicePattern(path, name string) bool {
	if !IsPattern(name) {
		return c.deviceName(path, name, 0)
	}
	if _, err := filepath.Match(name, ""); err != nil || strings.ContainsAny(name, "/:") {
		c.refuse(path, "%q cannot be a pattern of names; want one such as veth*, eth[0-3] or cali?*", name)
		return false
	}
	return true
}

// IsPattern reports whether an interface's name is a pattern of names.
func IsPattern(name string) bool { return strings.ContainsAny(name, `*?[\`) }

func (c *checker) addresses() {
	d := c.draft
	health, healthOK := c.address("healthzBindAddress", d.HealthzBindAddress)
	metrics, metricsOK := c.address("metricsBindAddress", d.MetricsBindAddress)
	if healthOK && metricsOK && health == metrics && health.Port() != 0 {
		c.refuse("metricsBindAddress", "%v is the healthzBindAddress too; want two addresses", metrics)
	}
	if !d.EnableProfiling {
		return
	}
	switch {
	case d.MetricsBindAddress == "":
		c.refuse("enableProfiling", "profiles are served at metricsBindAddress, which is empty")
	case metricsOK && !metrics.Addr().Unmap().IsLoopback():
		c.refuse("enableProfiling", "profiles are served on loopback only, and metricsBindAddress is %v", metrics)
	}
}

// address checks IP:port; the empty one is allowed.
func (c *checker) address(path, value string) (netip.AddrPort, bool) {
	if value == "" {
		return netip.AddrPort{}, false
	}
	host, port, err := net.SplitHostPort(value)
	if err == nil {
		ip, ipErr := netip.ParseAddr(host)
		number, portErr := strconv.ParseUint(port, 10, 16)
		if ipErr == nil && portErr == nil {
			return netip.AddrPortFrom(ip, uint16(number)), true
		}
	}
	c.refuse(path, "want an IP address and a port such as 127.0.0.1:10356 or [::1]:10356, got %q", value)
	return netip.AddrPort{}, false
}

// CPUs reads a list of processors such as 2,4-6.
func CPUs(list string) ([]int, error) {
	var cpus []int
	if list == "" {
		return nil, nil
	}
	for _, item := range strings.Split(list, ",") {
		first, last, isRange := strings.Cut(item, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || from > to || to >= maxCPUs {
			return nil, fmt.Errorf("want processors such as 2,4-6, each below %d, got %q", maxCPUs, list)
		}
		for cpu := from; cpu <= to; cpu++ {
			cpus = append(cpus, int(cpu))
		}
	}
	return cpus, nil
}
