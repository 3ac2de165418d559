package flowtable

import "math/bits"

// clients counts the flows of each client address, exactly, so that one client cannot take the table. It is an
// open-addressed table with linear probing, made once: a quarter more slots than flows can live, so that it is never full
// even if each flow has a client of its own. Under mu.
type clients struct {
	slots []clientCount
	most  uint32 // flows of one client; 0: nothing is counted
}

type clientCount struct {
	addr [4]uint32
	n    uint32 // 0: the slot is empty
}

func newClients(most, flows int) clients {
	if most <= 0 {
		return clients{}
	}
	return clients{make([]clientCount, flows+flows/4+2), uint32(min(most, MaxCapacity))}
}

func halves(a [2]uint64) [4]uint32 {
	return [4]uint32{uint32(a[0]), uint32(a[0] >> 32), uint32(a[1]), uint32(a[1] >> 32)}
}

// hashClient is keyed as the index is: nobody chooses addresses that meet.
func (t *Table) hashClient(a [2]uint64) uint64 { return t.sip(a[0], a[1], 0, 0, 0) }

func (c *clients) home(h uint64) int {
	hi, _ := bits.Mul64(h, uint64(len(c.slots)))
	return int(hi)
}

func (c *clients) after(i int) int {
	if i++; i == len(c.slots) {
		return 0
	}
	return i
}

// find returns the slot of an address, or the empty one where it belongs.
func (c *clients) find(a [4]uint32, h uint64) *clientCount {
	i := c.home(h)
	for c.slots[i].n != 0 && c.slots[i].addr != a {
		i = c.after(i)
	}
	return &c.slots[i]
}

// take counts one more flow, unless that is too many.
func (c *clients) take(a [4]uint32, h uint64) bool {
	s := c.find(a, h)
	if s.n >= c.most {
		return false
	}
	s.addr = a
	s.n++
	return true
}

// count is take without a cap, for flows that are there.
func (c *clients) count(a [4]uint32, h uint64) {
	s := c.find(a, h)
	s.addr = a
	s.n++
}

// dropClient counts one less. The last one empties the slot and moves those behind it closer to their homes.
func (t *Table) dropClient(a [4]uint32, h uint64) {
	c := &t.clients
	s := c.find(a, h)
	if s.n == 0 {
		return
	}
	if s.n--; s.n > 0 {
		return
	}
	i := c.home(h)
	for &c.slots[i] != s {
		i = c.after(i)
	}
	for j := c.after(i); c.slots[j].n != 0; j = c.after(j) {
		b := &c.slots[j].addr
		home := c.home(t.hashClient([2]uint64{uint64(b[0]) | uint64(b[1])<<32, uint64(b[2]) | uint64(b[3])<<32}))
		// It may move to i unless its home lies behind i on the way to j.
		if c.distance(home, j) >= c.distance(i, j) {
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
