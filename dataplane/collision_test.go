package dataplane

import (
	"net/netip"
	"testing"

	"github.com/sluice-net/sluice/flowtable"
	"github.com/sluice-net/sluice/internal/netlab"
)

// TestForcedCollisions: another flow of the client's port has the backend already.
// The new one gets another port of the same class, and nobody can tell which.
func TestForcedCollisions(t *testing.T) {
	const flows = 5000 // in each class of ports
	r := newRig(t, 4*flows)
	for _, c := range []struct {
		first, size int // of the clients' ports
		low, high   uint16
	}{{1, 100, 1, 1023}, {20000, 100, 1024, 65535}} {
		const parts = 50
		var seen [parts]int
		forced := 0
		for i := range flows {
			// A client for each, so that its ports are free but for one.
			client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(16 + i/250), byte(1 + i%250)}), uint16(c.first+i%c.size))
			other := flowtable.Flow{
				Client: client.Addr().As16(), ClientPort: client.Port(), Frontend: netlab.ClusterIP(netlab.IPv4, 99).As16(), FrontendPort: 80,
				Backend: rigBackend.As16(), BackendPort: 8080, Source: client.Addr().As16(), SourcePort: client.Port(), Proto: protoUDP,
			}
			switch _, got := r.d.table.Insert(&other, r.tick); got {
			case flowtable.Inserted:
				forced++
			case flowtable.Collision: // with a port that was chosen before
				forced++
			default:
				t.Fatalf("flow %d of %s: %s", i, client, got)
			}
			r.load([][]byte{udpFromTo(t, client, rigVIP)})
			r.process()
			r.clear()
			ref := r.d.table.Lookup(&flowtable.Tuple{Src: client.Addr().As16(), SrcPort: client.Port(), Dst: rigVIP.Addr().As16(), DstPort: rigVIP.Port(), Proto: protoUDP})
			if ref.Record == 0 {
				t.Fatalf("%s found no port", client)
			}
			var f flowtable.Flow
			r.d.table.Flow(ref.Record, &f)
			if f.SourcePort == client.Port() || f.SourcePort < c.low || f.SourcePort > c.high {
				t.Fatalf("%s got port %d, want another one from %d to %d", client, f.SourcePort, c.low, c.high)
			}
			seen[int(f.SourcePort-c.low)*parts/(int(c.high-c.low)+1)]++
		}
		// Chi-square with 49 degrees of freedom: above 94.6 once in ten thousand.
		chi, want := 0.0, float64(forced)/parts
		for _, n := range seen {
			chi += (float64(n) - want) * (float64(n) - want) / want
		}
		if chi > 94.6 {
			t.Errorf("ports from %d to %d: chi-square %.1f over %d parts: %v", c.low, c.high, chi, parts, seen)
		}
	}
}

// TestClaimedPorts: a connection with the backend itself has the client's port. The new
// flow gets another one of the same class, and one all the same if every one is claimed.
func TestClaimedPorts(t *testing.T) {
	const flows = 200
	r := newRig(t, 4*flows)
	begin := func(client netip.AddrPort) (f flowtable.Flow) {
		t.Helper()
		r.load([][]byte{udpFromTo(t, client, rigVIP)})
		r.process()
		r.clear()
		ref := r.d.table.Lookup(&flowtable.Tuple{Src: client.Addr().As16(), SrcPort: client.Port(), Dst: rigVIP.Addr().As16(), DstPort: rigVIP.Port(), Proto: protoUDP})
		if ref.Record == 0 {
			t.Fatalf("%s found no port", client)
		}
		r.d.table.Flow(ref.Record, &f)
		return f
	}
	r.now = r.d.clock.now()
	for i := range flows {
		// A client for each, with ports of both classes.
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 16, byte(1 + i)}), uint16(900+i))
		cell := &r.d.claims[r.d.table.Hash(&flowtable.Tuple{
			Src: client.Addr().As16(), SrcPort: client.Port(), Dst: rigBackend.As16(), DstPort: 8080, Proto: protoUDP,
		})%uint64(len(r.d.claims))]
		was := r.d.claimed.Load()
		if i%2 == 1 {
			cell.Store(r.now) // not any more
			if f := begin(client); f.SourcePort != client.Port() || r.d.claimed.Load() != was {
				t.Errorf("%s, not claimed any more, got port %d", client, f.SourcePort)
			}
			continue
		}
		cell.Store(r.now + 1e9)
		if f := begin(client); f.SourcePort == client.Port() || f.SourcePort < 1024 != (client.Port() < 1024) || r.d.claimed.Load() == was {
			t.Errorf("%s, claimed, got port %d", client, f.SourcePort)
		}
		cell.Store(0)
	}
	for i := range r.d.claims {
		r.d.claims[i].Store(r.now + 1e9)
	}
	begin(netip.AddrPortFrom(rigClient, 30000))
}
