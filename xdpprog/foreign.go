//go:build linux

package xdpprog

import (
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// Foreign looks for what others have attached to a device: the XDP program, nil if there
// is none or it is ours, of whatever process, and the number of tcx programs.
func Foreign(device netlink.Link) (xdp *ForeignProgram, tcx int) {
	at := device.Attrs()
	if x := at.Xdp; x != nil && x.Attached {
		id := ebpf.ProgramID(x.ProgId)
		if name, isOurs := programName(id); !isOurs {
			xdp = &ForeignProgram{Device: at.Name, ID: id, Name: name, Mode: modeOf(x)}
		}
	}
	for _, where := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		q, err := link.QueryPrograms(link.QueryOptions{Target: at.Index, Attach: where})
		if err != nil {
			continue
		}
		for _, p := range q.Programs {
			if _, isOurs := programName(p.ID); !isOurs {
				tcx++
			}
		}
	}
	return xdp, tcx
}

// programName reads a program's name, which of ours begins as theirs all do.
func programName(id ebpf.ProgramID) (name string, isOurs bool) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "", false
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return "", false
	}
	return info.Name, strings.HasPrefix(info.Name, "sluice_")
}
