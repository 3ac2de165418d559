//go:build linux

package xdpprog

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// AttachMode is where on a device's receive path an XDP program runs.
type AttachMode uint8

const (
	// Native runs in the driver.
	Native AttachMode = iota
	// Generic runs on skbs, for devices whose driver has no XDP.
	Generic
	// Auto asks for native, and takes generic if that is refused.
	Auto
	// Offload runs in the device's own processor. It is never asked for, but
	// a foreign program may be there.
	Offload
)

func (m AttachMode) String() string {
	switch m {
	case Native:
		return "native"
	case Generic:
		return "generic"
	case Auto:
		return "auto"
	case Offload:
		return "offload"
	}
	return fmt.Sprintf("AttachMode(%d)", uint8(m))
}

// XDPOptions say how to attach the XDP program.
type XDPOptions struct {
	Mode AttachMode
	// Replace takes a foreign program off the device. Otherwise it is a refusal.
	Replace bool
}

// XDPAttachment says what came of an [XDPOptions].
type XDPAttachment struct {
	Asked AttachMode
	// Granted is Native or Generic, read back from the kernel.
	Granted AttachMode
	// NativeRefused is why Auto came to be Generic.
	NativeRefused error
	// Adopted means that an earlier process's attachment goes on with our
	// program, without a frame in between that met none.
	Adopted bool
	// Replaced is the foreign program that had to go, if any.
	Replaced *ForeignProgram
}

// ForeignProgram is an XDP program on a device that is none of ours. As an error
// it is the refusal to attach beside it.
type ForeignProgram struct {
	Device string
	ID     ebpf.ProgramID
	Name   string // of the program, empty if it cannot be read
	Mode   AttachMode
}

func (p *ForeignProgram) Error() string {
	return fmt.Sprintf("device %s: a foreign %s XDP program is attached (id %d, name %q): detach it, or ask to replace it",
		p.Device, p.Mode, p.ID, p.Name)
}

// AttachXDP attaches the classifier to the ingress of a device, as a bpf_link. A
// pinned link of an earlier process is taken over, and our program put in its place
// atomically, unless it is there in another mode than the one asked for: then the
// device is without a program for a moment.
//
// The program is not marked xdp.frags: a frame that does not fit into one buffer is
// nothing that the daemon could take, so a native attachment is refused on a device
// that may deliver such frames.
func (o *Objects) AttachXDP(ifindex int, opts XDPOptions) (XDPAttachment, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	at := hookOf{ifindex, hookXDP}
	a := XDPAttachment{Asked: opts.Mode}
	if opts.Mode > Auto {
		return a, fmt.Errorf("device %d: attach mode %s cannot be asked for", ifindex, opts.Mode)
	}
	if _, ok := o.attached[at]; ok {
		return a, fmt.Errorf("device %d: attached already", ifindex)
	}
	device, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return a, fmt.Errorf("device %d: %w", ifindex, err)
	}
	name := device.Attrs().Name

	l, err := o.adoptXDP(at, device, opts.Mode)
	if err != nil {
		return a, fmt.Errorf("device %s: %w", name, err)
	}
	a.Adopted = l != nil
	if l == nil {
		if a.Replaced, err = makeWay(ifindex, opts.Replace); err != nil {
			return a, err
		}
		if l, a.NativeRefused, err = o.createXDP(device, opts.Mode); err != nil {
			return a, fmt.Errorf("device %s: attaching the XDP classifier: %w", name, err)
		}
		if err := o.pin(l, at); err != nil {
			return a, errors.Join(fmt.Errorf("device %s: %w", name, err), l.Close())
		}
	}
	o.attached[at] = l
	if a.Granted, err = grantedMode(ifindex); err != nil {
		return a, errors.Join(fmt.Errorf("device %s: %w", name, err), o.detach(at))
	}
	return a, nil
}

// adoptXDP returns the updated link of an earlier process, or nil if there is
// none that will do; one that will not is gone then.
func (o *Objects) adoptXDP(at hookOf, device netlink.Link, asked AttachMode) (link.Link, error) {
	l, info, err := o.loadLink(at)
	if l == nil || err != nil {
		return nil, err
	}
	there := device.Attrs().Xdp
	ours := there != nil && there.Attached && ebpf.ProgramID(there.ProgId) == info.Program
	switch {
	case int(info.XDP().Ifindex) != at.ifindex:
		// Its device is gone, and the number is another's now.
		return nil, errors.Join(l.Unpin(), l.Close())
	case !ours:
		l.Close()
		return nil, fmt.Errorf("the link pinned as %s is on another device: one pin directory serves one network namespace", o.pinOf(at))
	case asked != Auto && modeOf(there) != asked:
		return nil, errors.Join(l.Detach(), l.Unpin(), l.Close())
	}
	if err := l.Update(o.xdp); err != nil {
		return nil, errors.Join(fmt.Errorf("updating the adopted link: %w", err), l.Close())
	}
	return l, nil
}

func (o *Objects) createXDP(device netlink.Link, mode AttachMode) (l link.Link, refused, err error) {
	attach := func(flags link.XDPAttachFlags) (link.Link, error) {
		l, err := link.AttachXDP(link.XDPOptions{Program: o.xdp, Interface: device.Attrs().Index, Flags: flags})
		if err != nil {
			return nil, explainXDP(err, device, flags)
		}
		return l, nil
	}
	if mode != Generic {
		if l, err = attach(link.XDPDriverMode); err == nil || mode != Auto {
			return l, nil, err
		}
		refused = err
	}
	l, err = attach(link.XDPGenericMode)
	return l, refused, err
}

// explainXDP adds what the bare errno does not say. The reasons are those of
// net/core/dev.c:dev_xdp_attach and drivers/net/veth.c:veth_xdp_set.
func explainXDP(err error, device netlink.Link, flags link.XDPAttachFlags) error {
	attrs := device.Attrs()
	native := flags&link.XDPDriverMode != 0
	hint := ""
	switch {
	case native && errors.Is(err, unix.ENOSPC):
		hint = fmt.Sprintf("it has %d receive queues, fewer than its peer has transmit queues (ethtool -L, or -L on the peer)", attrs.NumRxQueues)
	case native && errors.Is(err, unix.EINVAL):
		hint = fmt.Sprintf("its driver (%s) refuses native XDP as it is set up: look at its MTU (%d) and queues, or ask for generic", device.Type(), attrs.MTU)
	case native && errors.Is(err, unix.ERANGE):
		hint = fmt.Sprintf("its MTU (%d), or its peer's, leaves frames that do not fit into one page: the limit is about 3500", attrs.MTU)
	case native && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, ebpf.ErrNotSupported)):
		hint = fmt.Sprintf("its driver (%s) has no native XDP as it is set up: ask for generic", device.Type())
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		hint = "another program came in between, or one is attached in another mode"
	case errors.Is(err, unix.EPERM):
		hint = "CAP_NET_ADMIN and CAP_BPF are needed"
	default:
		return err
	}
	return fmt.Errorf("%w: %s", err, hint)
}

// makeWay finds the foreign program of a device, and detaches it if that is
// wanted.
func makeWay(ifindex int, replace bool) (*ForeignProgram, error) {
	// Read again: an adoption may just have detached.
	device, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return nil, fmt.Errorf("device %d: %w", ifindex, err)
	}
	xdp := device.Attrs().Xdp
	if xdp == nil || !xdp.Attached {
		return nil, nil
	}
	foreign := &ForeignProgram{Device: device.Attrs().Name, ID: ebpf.ProgramID(xdp.ProgId), Mode: modeOf(xdp)}
	if program, err := ebpf.NewProgramFromID(foreign.ID); err == nil {
		if info, err := program.Info(); err == nil {
			foreign.Name = info.Name
		}
		program.Close()
	}
	if !replace {
		return nil, foreign
	}
	if err := detachForeign(device, foreign); err != nil {
		return nil, fmt.Errorf("device %s: replacing foreign program %d (%q): %w", foreign.Device, foreign.ID, foreign.Name, err)
	}
	return foreign, nil
}

func detachForeign(device netlink.Link, foreign *ForeignProgram) error {
	// A program that is attached by a link cannot be detached otherwise.
	links := new(link.Iterator)
	defer links.Close()
	for links.Next() {
		info, err := links.Link.Info()
		if err != nil || info.Type != link.XDPType || info.Program != foreign.ID {
			continue
		}
		if int(info.XDP().Ifindex) == device.Attrs().Index {
			return links.Link.Detach()
		}
	}
	if err := links.Err(); err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	flags := map[AttachMode]int{Native: unix.XDP_FLAGS_DRV_MODE, Generic: unix.XDP_FLAGS_SKB_MODE, Offload: unix.XDP_FLAGS_HW_MODE}
	return netlink.LinkSetXdpFdWithFlags(device, -1, flags[foreign.Mode])
}

// modeOf translates IFLA_XDP_ATTACHED.
func modeOf(xdp *netlink.LinkXdp) AttachMode {
	switch xdp.AttachMode {
	case nl.XDP_ATTACHED_SKB:
		return Generic
	case nl.XDP_ATTACHED_HW:
		return Offload
	}
	return Native
}

func grantedMode(ifindex int) (AttachMode, error) {
	device, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return 0, err
	}
	xdp := device.Attrs().Xdp
	if xdp == nil || !xdp.Attached {
		return 0, errors.New("the XDP classifier was attached, but is not there")
	}
	return modeOf(xdp), nil
}

// AttachEgress attaches the egress classifier to a device, as the first of its tcx
// programs: one that came before it could end the frame's way. The pinned link of
// an earlier process is taken over like that of the XDP program.
//
// The return port has none, or its frames would loop.
func (o *Objects) AttachEgress(ifindex int) (adopted bool, err error) {
	return o.attachTCX(hookOf{ifindex, hookEgress})
}

// AttachSteer attaches the classifier to the ingress of a device as a tc program,
// which makes it a steered port. As [Objects.AttachEgress] in all else.
func (o *Objects) AttachSteer(ifindex int) (adopted bool, err error) {
	return o.attachTCX(hookOf{ifindex, hookSteer})
}

// tcx is where a hook's program is attached, and the program.
func (o *Objects) tcx(h hook) (ebpf.AttachType, *ebpf.Program) {
	if h == hookSteer {
		return ebpf.AttachTCXIngress, o.steer
	}
	return ebpf.AttachTCXEgress, o.egress
}

func (o *Objects) attachTCX(at hookOf) (adopted bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch _, attached := o.attached[at]; {
	case o.spec.OuterIfindex == 0:
		return false, fmt.Errorf("device %d: without a return port there is no %s classifier", at.ifindex, at.hook)
	case at.ifindex == o.spec.OuterIfindex:
		return false, fmt.Errorf("device %d: the return port's outer end takes no %s classifier", at.ifindex, at.hook)
	case attached:
		return false, fmt.Errorf("device %d: %s classifier attached already", at.ifindex, at.hook)
	}
	l, err := o.adoptTCX(at)
	if err != nil {
		return false, fmt.Errorf("device %d: %w", at.ifindex, err)
	}
	adopted = l != nil
	if l == nil {
		where, program := o.tcx(at.hook)
		l, err = link.AttachTCX(link.TCXOptions{Interface: at.ifindex, Program: program, Attach: where, Anchor: link.Head()})
		if err != nil {
			return false, fmt.Errorf("device %d: attaching the %s classifier: %w", at.ifindex, at.hook, err)
		}
		if err := o.pin(l, at); err != nil {
			return false, errors.Join(fmt.Errorf("device %d: %w", at.ifindex, err), l.Close())
		}
	}
	o.attached[at] = l
	return adopted, nil
}

func (o *Objects) adoptTCX(at hookOf) (link.Link, error) {
	l, info, err := o.loadLink(at)
	if l == nil || err != nil {
		return nil, err
	}
	if int(info.TCX().Ifindex) != at.ifindex {
		return nil, errors.Join(l.Unpin(), l.Close())
	}
	where, program := o.tcx(at.hook)
	there, err := link.QueryPrograms(link.QueryOptions{Target: at.ifindex, Attach: where})
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	for _, p := range there.Programs {
		if id, ok := p.LinkID(); !ok || id != info.ID {
			continue
		}
		if err := l.Update(program); err != nil {
			return nil, errors.Join(fmt.Errorf("updating the adopted link: %w", err), l.Close())
		}
		return l, nil
	}
	l.Close()
	return nil, fmt.Errorf("the link pinned as %s is on another device: one pin directory serves one network namespace", o.pinOf(at))
}

// loadLink returns the pinned link, or nil if there is none. A pin that is
// something else is not ours.
func (o *Objects) loadLink(at hookOf) (link.Link, *link.Info, error) {
	if o.spec.PinDir == "" {
		return nil, nil, nil
	}
	l, err := link.LoadPinnedLink(o.pinOf(at), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("adopting %s: %w", o.pinOf(at), err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("adopting %s: %w", o.pinOf(at), err), l.Close())
	}
	if (at.hook == hookXDP) != (info.Type == link.XDPType) || at.hook != hookXDP && info.Type != link.TCXType {
		return nil, nil, errors.Join(fmt.Errorf("adopting %s: it is a link of another kind", o.pinOf(at)), l.Close())
	}
	return l, info, nil
}

func (o *Objects) pin(l link.Link, at hookOf) error {
	if o.spec.PinDir == "" {
		return nil
	}
	if err := l.Pin(o.pinOf(at)); err != nil {
		return fmt.Errorf("pinning the link as %s: %w", o.pinOf(at), err)
	}
	return nil
}

// Attached reports whether all that was attached to a device still is: not if the device
// is gone, though another may have its number, nor if somebody detached a program. A
// device that nothing was attached to is as it was.
func (o *Objects) Attached(ifindex int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, h := range hooks {
		l, ok := o.attached[hookOf{ifindex, h}]
		if !ok {
			continue
		}
		info, err := l.Info()
		if err != nil {
			return false
		}
		at := uint32(0)
		if h == hookXDP {
			at = info.XDP().Ifindex
		} else {
			at = info.TCX().Ifindex
		}
		if int(at) != ifindex {
			return false
		}
	}
	return true
}

// Detach takes our programs off a device and removes their pins. A device that is
// gone, or that we never attached to, is no error.
func (o *Objects) Detach(ifindex int) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, h := range hooks {
		errs = append(errs, o.detach(hookOf{ifindex, h}))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("device %d: detaching: %w", ifindex, err)
	}
	return nil
}

func (o *Objects) detach(at hookOf) error {
	l, ok := o.attached[at]
	if !ok {
		return nil
	}
	delete(o.attached, at)
	return errors.Join(l.Detach(), l.Unpin(), l.Close())
}
