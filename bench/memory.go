//go:build linux

package bench

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-net/sluice/flowtable"
)

// meminfo reads lines of /proc/meminfo, in bytes.
func meminfo() map[string]int64 {
	values := map[string]int64{}
	b, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.SplitSeq(string(b), "\n") {
		name, rest, _ := strings.Cut(line, ":")
		if f := strings.Fields(rest); len(f) > 0 {
			if n, err := strconv.ParseInt(f[0], 10, 64); err == nil {
				values[name] = n << 10
			}
		}
	}
	return values
}

// memoryUsed is what processes and the kernel hold, without what it only caches of files. It is the
// machine's: whatever else goes on is in a difference of two.
func memoryUsed() int64 {
	m := meminfo()
	return m["MemTotal"] - m["MemFree"] - m["Buffers"] - m["Cached"] - m["SReclaimable"]
}

// FlowTable is an instance whose table of flows has its full size from the start.
type FlowTable interface {
	// BytesPerFlow is the size of the table over the flows it can hold.
	BytesPerFlow() float64
}

func (i *sluiceInstance) BytesPerFlow() float64 {
	buckets, records := flowtable.Geometry(i.site.flowCapacity())
	return float64(buckets*64+records*128) / float64(i.site.flowCapacity())
}

func (i *natInstance) BytesPerFlow() float64 {
	info, err := i.flows.Info()
	if err != nil {
		return 0
	}
	size, _ := info.Memlock()
	return float64(size) / (natFlows / 2) // two entries a flow
}

// memoryOfFlows is the size of a flow: of a fixed table by its capacity, and of what the kernel
// allocates a flow by how its slabs grow.
func memoryOfFlows() workload {
	return workload{
		name: "memory-flows", unsuited: needsServices,
		run: func(_ context.Context, r *runner, b *bed) (outcome, error) {
			if t, ok := b.instance.(FlowTable); ok {
				return outcome{values: map[string]float64{"per_flow": t.BytesPerFlow()}, note: "of a table of fixed size, by its capacity"}, nil
			}
			const flows = 50_000
			t := b.udpTarget(1)
			t.frame, t.flows = 64, flows
			before := meminfo()["Slab"]
			got, err := b.injected(t, r.freshFlows(), 10*time.Second, flows)
			if err != nil {
				return outcome{}, err
			}
			grown := meminfo()["Slab"] - before
			return outcome{
				values: map[string]float64{"per_flow": float64(grown) / float64(max(got.Received, 1))},
				note:   fmt.Sprintf("of the kernel's slabs, by their growth over %d flows", got.Received),
			}, nil
		},
	}
}
