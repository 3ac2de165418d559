package netlab

import "time"

// Direction says which way a captured frame went, as seen from the device.
type Direction uint8

const (
	In  Direction = iota // the device received it
	Out                  // the device sent it
)

func (d Direction) String() string {
	if d == Out {
		return "out"
	}
	return "in"
}

// Frame is a captured frame.
type Frame struct {
	Data      []byte // from the Ethernet header on, with the VLAN tag back in its place
	Length    int    // of the frame on the wire; more than len(Data) if the capture cut it off
	Time      time.Time
	Direction Direction
	Partial   bool // the transport checksum is unfinished: a device with checksum offload was to do it
	GSO       bool // a TCP segment larger than the wire's, to be split by a device
}
