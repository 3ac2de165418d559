//go:build linux

package netlab

import (
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
)

// Counters returns what the namespace's protocols have counted: "Tcp.InCsumErrors" and the like from /proc/net/snmp,
// "IpExt.InCsumErrors" from /proc/net/netstat, "Udp6InCsumErrors" from /proc/net/snmp6. TCP counts both families together.
func (n *Namespace) Counters() map[string]uint64 {
	n.tb.Helper()
	counters := make(map[string]uint64)
	n.do("reading the protocols' counters", func() error {
		for _, file := range []string{"snmp", "netstat", "snmp6"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			c, err := parseCounters(string(text))
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			maps.Copy(counters, c)
		}
		return nil
	})
	return counters
}

// BadChecksums returns how many packets the namespace has refused because of a checksum: of IPv4, TCP, UDP and ICMP, in
// both families.
func (n *Namespace) BadChecksums() (bad uint64) {
	n.tb.Helper()
	for name, v := range n.Counters() {
		if strings.HasSuffix(name, "InCsumErrors") {
			bad += v
		}
	}
	return bad
}

// parseCounters reads either form: two lines of names and values with a prefix each, or a name and its value a line.
func parseCounters(text string) (map[string]uint64, error) {
	counters := make(map[string]uint64)
	var names []string // of the first line of two
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
			continue
		case !strings.HasSuffix(words[0], ":"):
			if len(words) != 2 {
				return nil, fmt.Errorf("line %q: want a name and a value", line)
			}
			v, err := strconv.ParseUint(words[1], 10, 64)
			if err != nil {
				return nil, err
			}
			counters[words[0]] = v
		case names == nil:
			names = words
		default:
			if len(words) != len(names) || words[0] != names[0] {
				return nil, fmt.Errorf("line %q does not belong to %q", line, names[0])
			}
			for i, word := range words[1:] {
				v, err := strconv.ParseInt(word, 10, 64) // some are -1
				if err != nil {
					return nil, err
				}
				counters[strings.TrimSuffix(names[0], ":")+"."+names[i+1]] = uint64(v)
			}
			names = nil
		}
	}
	return counters, nil
}
