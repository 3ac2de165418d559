package flowtable

import "math/bits"

// clients counts the flows of each client address, so that one client cannot take the table. It is an open-addressed
// table with linear probing, made once: a quarter more slots than flows can live, so that it is never full even if each flow
// has a client of its own. Under mu.
//
// A client is known by the hash of its address under the table's seed, all 64 bits of it, which is a third smaller than
// the address. Two clients with one hash would share a cap: among a million clients there is such a pair once in 10^7
// tables, and nobody who does not know the seed can choose one.
type clients struct {
	slots []clientCount
	most  uint32 // flows of one client; 0: nothing is counted
}

type clientCount struct {
	hash [2]uint32 // high, low: of 12 bytes with n
	n    uint32    // 0: the slot is empty
}

func newClients(most, flows int) clients {
	if most <= 0 {
		return clients{}
	}
	return clients{make([]clientCount, flows+flows/4+2), uint32(min(most, MaxCapacity))}
}

// hashClient is keyed as the index is: nobody chooses addresses that meet.
func (t *Table) hashClient(a [2]uint64) uint64 { return t.sip(a[0], a[1], 0, 0, 0) }

func halves(h uint64) [2]uint32 { return [2]uint32{uint32(h >> 32), uint32(h)} }

// home is where the search for a hash begins.
func (c *clients) home(hash [2]uint32) int {
	hi, _ := bits.Mul64(uint64(hash[0])<<32|uint64(hash[1]), uint64(len(c.slots)))
	return int(hi)
}

func (c *clients) after(i int) int {
	if i++; i == len(c.slots) {
		return 0
	}
	return i
}

// find returns the slot of a client, or the empty one where it belongs.
func (c *clients) find(h uint64) int {
	hash := halves(h)
	i := c.home(hash)
	for c.slots[i].n != 0 && c.slots[i].hash != hash {
		i = c.after(i)
	}
	return i
}

// take counts one more flow, unless that is too many.
func (c *clients) take(h uint64) bool {
	s := &c.slots[c.find(h)]
	if s.n >= c.most {
		return false
	}
	s.hash = halves(h)
	s.n++
	return true
}

// count is take without a cap, for flows that are there.
func (c *clients) count(h uint64) {
	s := &c.slots[c.find(h)]
	s.hash = halves(h)
	s.n++
}

// drop counts one less. The last one empties the slot and moves those behind it closer to their homes.
func (c *clients) drop(h uint64) {
	i := c.find(h)
	if c.slots[i].n == 0 {
		return
	}
	if c.slots[i].n--; c.slots[i].n > 0 {
		return
	}
	for j := c.after(i); c.slots[j].n != 0; j = c.after(j) {
		// It may move to i unless its home lies behind i on the way to j.
		if home := c.home(c.slots[j].hash); c.distance(home, j) >= c.distance(i, j) {
			c.slots[i] = c.slots[j]
			c.slots[j].n = 0
			i = j
		}
	}
}

func (c *clients) distance(from, to int) int {
	if to < from {
		to += len(c.slots)
	}
	return to - from
}
