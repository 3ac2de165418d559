package main

// A scenario is who does what. Each process does its script once, in every interleaving with the others.
type scenario struct {
	name    string
	about   string
	records uint8
	flows   []flow    // from 1
	places  [][]uint8 // by tuple: the addresses of its cells, in the order of a lookup
	before  []uint8   // flows that are there at the start
	script  [processes][]op
}

// A flow's tuples, forward and reply.
type flow struct{ tuple [2]uint8 }

var (
	bucket0 = []uint8{cellAt, cellAt + 1}
	bucket1 = []uint8{cellAt + 2, cellAt + 3}
	both    = []uint8{cellAt, cellAt + 1, cellAt + 2, cellAt + 3}

	// housekeeping is one turn of the control loop.
	housekeeping = []op{{opExpire, 0}, {opCut, 0}, {opGrace, 0}, {opMembarrier, 0}, {opReclaim, 0}}
)

func twice(ops []op) []op { return append(append([]op{}, ops...), ops...) }

var scenarios = []scenario{
	{
		name:    "same-tuple",
		about:   "two workers insert the same forward tuple with two backends; one wins, the other adopts its flow",
		records: 2,
		flows:   []flow{{}, {[2]uint8{0, 1}}, {[2]uint8{0, 2}}},
		places:  [][]uint8{bucket0, bucket1, bucket1},
		script: [processes][]op{
			writer1:     {{opInsert, 1}, {opUse, 0}, {opSleep, 0}},
			writer2:     {{opInsert, 2}, {opUse, 0}, {opSleep, 0}},
			reader:      {{opLookup, 0}, {opUse, 0}, {opSleep, 0}},
			kernel:      {{opEnter, 0}, {opLookup, 1}, {opExit, 0}},
			housekeeper: housekeeping,
		},
	},
	{
		name:    "same-reply",
		about:   "two clients' flows would have the same reply tuple; one is inserted, the other refused",
		records: 2,
		flows:   []flow{{}, {[2]uint8{0, 2}}, {[2]uint8{1, 2}}},
		places:  [][]uint8{bucket0, bucket1, both},
		script: [processes][]op{
			writer1:     {{opInsert, 1}, {opSleep, 0}},
			writer2:     {{opInsert, 2}, {opSleep, 0}},
			reader:      {{opLookup, 0}, {opLookup, 2}, {opUse, 0}, {opSleep, 0}},
			kernel:      {{opEnter, 0}, {opLookup, 2}, {opExit, 0}},
			housekeeper: housekeeping,
		},
	},
	{
		name:    "crosswise",
		about:   "each flow's forward tuple lies in the bucket of the other's reply tuple: the locks' order matters",
		records: 2,
		flows:   []flow{{}, {[2]uint8{0, 1}}, {[2]uint8{2, 3}}},
		places:  [][]uint8{bucket0, bucket1, bucket1, bucket0},
		script: [processes][]op{
			writer1:     {{opInsert, 1}, {opRemove, 0}, {opSleep, 0}},
			writer2:     {{opInsert, 2}, {opSleep, 0}},
			reader:      {{opLookup, 2}, {opUse, 0}, {opSleep, 0}},
			kernel:      {{opEnter, 0}, {opLookup, 1}, {opExit, 0}},
			housekeeper: housekeeping,
		},
	},
	{
		name:    "reuse",
		about:   "the only record is removed by the sweep or by a worker, and used again for the same tuple with another backend",
		records: 1,
		flows:   []flow{{}, {[2]uint8{0, 1}}, {[2]uint8{0, 2}}},
		places:  [][]uint8{bucket0, bucket1, bucket1},
		before:  []uint8{1},
		script: [processes][]op{
			writer1:     {{opInsert, 2}, {opTurn, 0}, {opInsert, 2}, {opUse, 0}, {opSleep, 0}},
			writer2:     {{opLookup, 0}, {opRemove, 0}, {opUse, 0}, {opSleep, 0}},
			reader:      {{opLookup, 0}, {opUse, 0}, {opTurn, 0}, {opLookup, 0}, {opUse, 0}, {opSleep, 0}},
			kernel:      {{opEnter, 0}, {opLookup, 0}, {opUse, 0}, {opExit, 0}},
			housekeeper: housekeeping,
		},
	},
	{
		name:    "reuse-crossed",
		about:   "the record is used again for a flow whose reply tuple is the old one's forward tuple, in either bucket",
		records: 1,
		flows:   []flow{{}, {[2]uint8{0, 1}}, {[2]uint8{2, 0}}},
		places:  [][]uint8{both, bucket1, bucket0},
		before:  []uint8{1},
		script: [processes][]op{
			writer1:     {{opLookup, 1}, {opRemove, 0}, {opTurn, 0}, {opInsert, 2}, {opSleep, 0}},
			writer2:     {{opInsert, 2}, {opUse, 0}, {opSleep, 0}},
			reader:      {{opLookup, 0}, {opUse, 0}, {opSleep, 0}},
			kernel:      {{opEnter, 0}, {opLookup, 0}, {opUse, 0}, {opExit, 0}},
			housekeeper: housekeeping,
		},
	},
	{
		name:    "sleep",
		about:   "a worker that sleeps is not waited for; it wakes and looks up while its record is being used again",
		records: 1,
		flows:   []flow{{}, {[2]uint8{0, 1}}, {[2]uint8{0, 2}}},
		places:  [][]uint8{bucket0, bucket1, bucket1},
		before:  []uint8{1},
		script: [processes][]op{
			writer1:     {{opInsert, 2}, {opSleep, 0}, {opWake, 0}, {opInsert, 2}, {opSleep, 0}},
			writer2:     {{opSleep, 0}, {opWake, 0}, {opLookup, 0}, {opRemove, 0}, {opSleep, 0}},
			reader:      {{opSleep, 0}, {opWake, 0}, {opLookup, 0}, {opUse, 0}, {opSleep, 0}},
			kernel:      {{opEnter, 0}, {opLookup, 1}, {opExit, 0}},
			housekeeper: housekeeping,
		},
	},
	{
		name:    "two-turns",
		about:   "two grace periods: records removed during the first one wait for the second",
		records: 2,
		flows:   []flow{{}, {[2]uint8{0, 1}}, {[2]uint8{0, 2}}, {[2]uint8{3, 1}}},
		places:  [][]uint8{bucket0, bucket1, bucket1, bucket0},
		before:  []uint8{1},
		script: [processes][]op{
			writer1:     {{opInsert, 2}, {opSleep, 0}},
			writer2:     {{opInsert, 3}, {opSleep, 0}},
			reader:      {{opLookup, 0}, {opUse, 0}, {opSleep, 0}},
			kernel:      {{opEnter, 0}, {opLookup, 1}, {opExit, 0}},
			housekeeper: twice(housekeeping),
		},
	},
	{
		name:    "shed",
		about:   "two workers insert into a crowded table and shed for it, while the sweep removes the same flows",
		records: 2,
		flows:   []flow{{}, {[2]uint8{0, 1}}, {[2]uint8{2, 1}}, {[2]uint8{0, 3}}},
		places:  [][]uint8{bucket0, bucket1, bucket0, bucket1},
		before:  []uint8{1},
		script: [processes][]op{
			writer1:     {{opInsert, 2}, {opShed, 0}, {opSleep, 0}},
			writer2:     {{opInsert, 3}, {opShed, 0}, {opTurn, 0}, {opInsert, 3}, {opSleep, 0}},
			reader:      {{opLookup, 0}, {opUse, 0}, {opSleep, 0}},
			kernel:      {{opEnter, 0}, {opLookup, 1}, {opUse, 0}, {opExit, 0}},
			housekeeper: housekeeping,
		},
	},
	{
		name:    "mixed",
		about:   "a race for a tuple, a removal and the reuse of either record, while both readers look twice",
		records: 2,
		flows:   []flow{{}, {[2]uint8{0, 1}}, {[2]uint8{0, 2}}, {[2]uint8{0, 1}}},
		places:  [][]uint8{bucket0, bucket1, bucket1},
		before:  []uint8{1},
		script: [processes][]op{
			writer1:     {{opInsert, 2}, {opUse, 0}, {opSleep, 0}},
			writer2:     {{opInsert, 3}, {opRemove, 0}, {opSleep, 0}},
			reader:      {{opLookup, 0}, {opUse, 0}, {opTurn, 0}, {opLookup, 1}, {opUse, 0}, {opSleep, 0}},
			kernel:      {{opEnter, 0}, {opLookup, 0}, {opExit, 0}, {opEnter, 0}, {opLookup, 1}, {opExit, 0}},
			housekeeper: housekeeping,
		},
	},
	{
		name:    "dump",
		about:   "a dump walks the records by number, without a cell and without a turn, while they are used again",
		records: 2,
		flows:   []flow{{}, {[2]uint8{0, 1}}, {[2]uint8{0, 2}}, {[2]uint8{3, 1}}},
		places:  [][]uint8{bucket0, bucket1, bucket1, bucket0},
		before:  []uint8{1},
		script: [processes][]op{
			writer1:     {{opInsert, 2}, {opTurn, 0}, {opInsert, 2}, {opSleep, 0}},
			writer2:     {{opInsert, 3}, {opSleep, 0}},
			reader:      {{opLookup, 0}, {opUse, 0}, {opSleep, 0}},
			kernel:      {{opWalk, 0}},
			housekeeper: housekeeping,
		},
	},
}

// A mutant is the protocol with one thing wrong.
type mutant struct {
	name string

	publishFirst, forwardFirst, lifeLast     bool // order of an insert's last steps
	clearReplyFirst                          bool
	noStripes, lockForwardOnly, lockAnyOrder bool
	noReplySearch, noSecondLook              bool
	noGrace, noMembarrier, cutLate, keepRef  bool
	noSweepLock                              bool
	plainPublish, plainWake                  bool // stores that ought to be atomic
}

// mutants, each with a scenario and the weakest memory model that shows it.
var mutants = []struct {
	mutant
	scenario string
	memory   memory
}{
	{mutant{name: "publish before the record is filled", publishFirst: true}, "same-tuple", sc},
	{mutant{name: "publish the forward cell first", forwardFirst: true}, "same-tuple", sc},
	{mutant{name: "life turns live after publication", lifeLast: true}, "same-tuple", sc},
	{mutant{name: "clear the reply cell first", clearReplyFirst: true}, "crosswise", sc},
	{mutant{name: "no stripe locks", noStripes: true}, "same-tuple", sc},
	{mutant{name: "no lock on the reply tuple's stripe", lockForwardOnly: true}, "same-reply", sc},
	{mutant{name: "stripes locked in any order", lockAnyOrder: true}, "crosswise", sc},
	{mutant{name: "insert does not look for its reply tuple", noReplySearch: true}, "same-reply", sc},
	{mutant{name: "remove does not look at life under the lock", noSecondLook: true}, "reuse", sc},
	{mutant{name: "reclaim does not wait for the workers", noGrace: true}, "reuse", sc},
	{mutant{name: "reclaim does not wait for the kernel", noMembarrier: true}, "reuse", sc},
	{mutant{name: "the batch is cut after the grace period", cutLate: true}, "late", sc},
	{mutant{name: "a worker keeps a flow across its boundary", keepRef: true}, "keep", sc},
	{mutant{name: "a worker sheds while it is thought to sleep"}, "shed-asleep", sc},
	{mutant{name: "no sweep lock", noSweepLock: true}, "dump", sc},
	{mutant{name: "waking up is a plain store", plainWake: true}, "sleep", tso},
	{mutant{name: "cells are plain stores", plainPublish: true}, "same-tuple", pso},
}

// extra scenarios are for mutants only.
var extra = []scenario{
	{
		name:    "late",
		about:   "a flow is inserted, found and removed after the workers were seen asleep",
		records: 1,
		flows:   []flow{{}, {[2]uint8{0, 1}}},
		places:  [][]uint8{bucket0, bucket1},
		script: [processes][]op{
			writer1:     {{opSleep, 0}, {opWake, 0}, {opInsert, 1}, {opRemove, 0}, {opSleep, 0}},
			writer2:     {{opSleep, 0}, {opWake, 0}, {opInsert, 1}, {opSleep, 0}},
			reader:      {{opSleep, 0}, {opWake, 0}, {opLookup, 0}, {opUse, 0}, {opSleep, 0}},
			kernel:      {{opEnter, 0}, {opExit, 0}},
			housekeeper: housekeeping,
		},
	},
	{
		name:    "shed-asleep",
		about:   "a worker sheds outside its batch",
		records: 1,
		flows:   []flow{{}, {[2]uint8{0, 1}}, {[2]uint8{0, 2}}},
		places:  [][]uint8{bucket0, bucket1, bucket1},
		before:  []uint8{1},
		script: [processes][]op{
			writer1:     {{opInsert, 2}, {opTurn, 0}, {opInsert, 2}, {opSleep, 0}},
			writer2:     {{opSleep, 0}, {opShed, 0}},
			reader:      {{opSleep, 0}},
			kernel:      {{opEnter, 0}, {opExit, 0}},
			housekeeper: housekeeping,
		},
	},
	{
		name:    "keep",
		about:   "a worker uses what it found before its boundary",
		records: 1,
		flows:   []flow{{}, {[2]uint8{0, 1}}, {[2]uint8{0, 2}}},
		places:  [][]uint8{bucket0, bucket1, bucket1},
		before:  []uint8{1},
		script: [processes][]op{
			writer1:     {{opInsert, 2}, {opTurn, 0}, {opInsert, 2}, {opSleep, 0}},
			writer2:     {{opSleep, 0}},
			reader:      {{opLookup, 0}, {opTurn, 0}, {opUse, 0}, {opSleep, 0}},
			kernel:      {{opEnter, 0}, {opExit, 0}},
			housekeeper: housekeeping,
		},
	},
}

func newMachine(s scenario, memory memory, mutant mutant) *machine {
	m := &machine{scenario: s, memory: memory, mutant: mutant}
	switch {
	case mutant.publishFirst:
		m.publish = []uint8{setLive, putReply, putForward, fillFirst, fillSecond}
	case mutant.forwardFirst:
		m.publish = []uint8{fillFirst, fillSecond, setLive, putForward, putReply}
	case mutant.lifeLast:
		m.publish = []uint8{fillFirst, fillSecond, putReply, putForward, setLive}
	default:
		m.publish = []uint8{fillFirst, fillSecond, setLive, putReply, putForward}
	}
	if mutant.cutLate {
		m.script[housekeeper] = []op{{opExpire, 0}, {opGrace, 0}, {opMembarrier, 0}, {opCut, 0}, {opReclaim, 0}}
	}
	return m
}

func scenarioByName(name string) scenario {
	for _, s := range append(append([]scenario{}, scenarios...), extra...) {
		if s.name == name {
			return s
		}
	}
	panic("no scenario " + name)
}
