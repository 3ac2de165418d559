package flowtable

import (
	"fmt"
	"strings"
	"testing"
)

// The kernel's machine (net/netfilter/nf_conntrack_proto_tcp.c, Linux 6.18) beside ours: for each direction and kind of
// segment a row, with a column for each state that the kernel has the connection in.
const kernelStates = "NO SS SR ES FW CW LA TW CL S2"

// A row of transitions. kernel is the next state; IG keeps the state and translates, IV keeps the state and does not: the
// kernel calls the segment invalid, and it goes on with the addresses that it came with. ours is the class after the segment
//
//	op opening  es established  cw close_wait  cl closing
//	ne the flow is removed and begun anew: opening, with a fresh choice of backend
//	-- no flow, and no translation
//
// and why is a letter where ours differs from the projection of the kernel's, in class or in whether it is translated.
type transitions struct {
	d      Direction
	kind   string
	flags  uint8
	kernel string
	ours   string
	why    string
}

var conntrack = []transitions{
	{Forward, "SYN", syn,
		"SS SS IG IG IG IG IG SS SS S2",
		"op op op es cw cw ne ne ne op",
		".  .  .  .  .  .  a  .  .  . "},
	{Forward, "SYN-ACK", synAck,
		"IV IV SR IV IV IV IV IV IV SR",
		"-- op op es cw cw cl cl cl op",
		".  i  .  i  i  i  i  i  i  . "},
	{Forward, "FIN", fin,
		"IV IV FW FW LA LA LA TW CL IV",
		"op op cw cw cw cw cl cl cw cw",
		"p  i  .  .  r  r  .  .  t  s "},
	{Forward, "ACK", ack,
		"ES IV ES ES CW CW TW TW CL IV",
		"op op es es cw cw cl cl es es",
		"u  i  .  .  .  .  .  .  t  s "},
	{Forward, "RST", rst,
		"IV CL CL CL CL CL CL CL CL CL",
		"-- cl cl cl cl cl cl cl cl cl",
		".  .  .  .  .  .  .  .  .  . "},
	{Forward, "none", 0,
		"IV IV IV IV IV IV IV IV IV IV",
		"-- op op es cw cw cl cl cl op",
		".  i  i  i  i  i  i  i  i  i "},
	{Reply, "SYN", syn,
		"IV S2 IV IV IV IV IV SS IV S2",
		"-- op op es cw cw cl cl cl op",
		".  .  i  i  i  i  i  w  i  . "},
	{Reply, "SYN-ACK", synAck,
		"IV SR IG IG IG IG IG IG IG SR",
		"-- op op es cw cw cl cl cl op",
		".  .  .  .  .  .  .  .  .  . "},
	{Reply, "FIN", fin,
		"IV IV FW FW LA LA LA TW CL IV",
		"-- op cw cw cl cl cl cl cl cw",
		".  i  .  .  .  .  .  .  .  s "},
	{Reply, "ACK", ack,
		"IV IG SR ES CW CW TW TW CL IG",
		"-- op op es cw cw cl cl cl op",
		".  .  .  .  .  .  .  .  .  . "},
	{Reply, "RST", rst,
		"IV CL CL CL CL CL CL CL CL CL",
		"-- cl cl cl cl cl cl cl cl cl",
		".  .  .  .  .  .  .  .  .  . "},
	{Reply, "none", 0,
		"IV IV IV IV IV IV IV IV IV IV",
		"-- op op es cw cw cl cl cl op",
		".  i  i  i  i  i  i  i  i  i "},
}

var whys = map[string]string{
	"i": "the kernel leaves an invalid segment untranslated, and the client or the backend resets a connection that it does not know; " +
		"we keep the state as the kernel does and translate whatever belongs to a flow",
	"a": "the client has closed and asks anew: it begins at once, where the kernel needs a challenge ACK, a RST and a second SYN first",
	"u": "a flow picked up in mid-stream has the short timer of opening until it is answered; the kernel caps it at 5 minutes",
	"p": "the last segments of a connection whose history is lost are worth their way to the backend; the kernel gives up on them",
	"r": "the kernel takes a repeated FIN for the other side's; we keep the sides apart",
	"t": "without sequence numbers any RST is believed; so a sender that goes on speaking takes its RST back, where the kernel has checked it first",
	"s": "the kernel waits for a SYN-ACK that a simultaneous open may do without; for us whoever speaks after both SYNs has opened",
	"w": "the kernel begins a new, untranslated connection when the backend opens one from its service port to the very port of the client; " +
		"we stay with the flow until its timer ends",
}

// projected is the class that a state of the kernel stands for.
var projected = map[string]string{
	"NO": "--", "SS": "op", "S2": "op", "SR": "op", "ES": "es", "FW": "cw", "CW": "cw", "LA": "cl", "TW": "cl", "CL": "cl",
}

var classShort = [classes]string{tcpOpening: "op", tcpEstablished: "es", tcpCloseWait: "cw", tcpClosing: "cl"}

// ways lead both machines to each state.
var ways = map[string][]step{
	"NO": nil,
	"SS": handshake[:1],
	"SR": handshake[:2],
	"ES": handshake,
	"FW": after(step{Forward, fin}),
	"CW": after(step{Forward, fin}, step{Reply, ack}),
	"LA": after(step{Forward, fin}, step{Reply, ack}, step{Reply, fin}),
	"TW": after(step{Forward, fin}, step{Reply, ack}, step{Reply, fin}, step{Forward, ack}),
	"CL": after(step{Forward, rst}),
	"S2": {{Forward, syn}, {Reply, syn}},
}

// kernelNext is the kernel's transition as the table has it, without what it does beside the table.
func kernelNext(state string, s step) (next, verdict string) {
	for _, row := range conntrack {
		if row.d == s.d && row.flags == s.flags {
			verdict = strings.Fields(row.kernel)[strings.Index(kernelStates, state)/3]
			if next = verdict; verdict == "IG" || verdict == "IV" {
				next = state
			}
			return next, verdict
		}
	}
	panic(fmt.Sprintf("no row for %+v", s))
}

// tracker is the flow table as the packet loop uses it, for one connection.
type tracker struct {
	t   *Table
	f   Flow
	rec uint32
}

// packet returns the class after a segment, "--" without a flow, "ne" if it began anew.
func (c *tracker) packet(s step) string {
	began := false
	if c.rec != 0 && s.d == Forward && StartOf(s.flags) == Opens && c.t.Closing(c.rec) {
		c.t.Remove(c.rec)
		settle(c.t)
		c.rec, began = 0, true
	}
	if c.rec == 0 && s.d == Forward && StartOf(s.flags) != NoStart {
		ref, _ := c.t.Insert(&c.f, 1)
		c.rec = ref.Record
	}
	if c.rec == 0 {
		return "--"
	}
	c.t.Touch(c.rec, s.d, 1, s.flags)
	if began {
		return "ne"
	}
	return classShort[State(c.t.records[c.rec].state).class(protoTCP, 0)]
}

// TestConntrackTransitions decides the 120 transitions: what the table above says of the kernel and of us is what we do, and
// every difference between the two has a reason, and nothing else has.
func TestConntrackTransitions(tt *testing.T) {
	decided := 0
	used := map[string]bool{}
	for _, row := range conntrack {
		ours, why := strings.Fields(row.ours), strings.Fields(row.why)
		for i, from := range strings.Fields(kernelStates) {
			name := fmt.Sprintf("%v %s in %s", row.d, row.kind, from)
			c := tracker{t: newTable(tt, 2, Timeouts{}), f: flowN(0)}
			state := "NO"
			for _, s := range ways[from] {
				c.packet(s)
				state, _ = kernelNext(state, s)
			}
			if state != from {
				tt.Fatalf("%s: the way leads to %s", name, state)
			}
			got := c.packet(step{row.d, row.flags})
			if got != ours[i] {
				tt.Errorf("%s: we are at %s, the table says %s", name, got, ours[i])
			}

			next, verdict := kernelNext(from, step{row.d, row.flags})
			want := projected[next]
			if verdict == "SS" && (from == "TW" || from == "CL") {
				want = "ne" // nf_conntrack_tcp_packet deletes the entry and looks up again
			}
			translates := [2]bool{verdict != "IV", got != "--"}
			differs := got != want || translates[0] != translates[1]
			if differs != (why[i] != ".") {
				tt.Errorf("%s: kernel %s (%s), we %s; translated %v; reason %q", name, verdict, want, got, translates, why[i])
			}
			if why[i] != "." && whys[why[i]] == "" {
				tt.Errorf("%s: no reason %q", name, why[i])
			}
			used[why[i]] = true
			decided++
		}
	}
	if delete(used, "."); len(used) != len(whys) {
		tt.Errorf("%d reasons given, %d used", len(whys), len(used))
	}
	if tt.Logf("%d of 120 decided", decided); decided != 120 {
		tt.Errorf("%d of 120 transitions decided", decided)
	}
}
