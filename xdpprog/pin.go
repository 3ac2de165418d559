//go:build linux

package xdpprog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// What is pinned, below Spec.PinDir:
//
//	maps/<map>               every map by its name
//	links/<ifindex>-xdp      the attachment of sluice_xdp to a device
//	links/<ifindex>-steer    the attachment of sluice_steer to a device
//	links/<ifindex>-egress   the attachment of sluice_egress to a device
//
// Links go by ifindex, since a device may be renamed, and since a name may have a
// dot, which bpffs refuses (kernel/bpf/inode.c). A pin directory belongs to one
// network namespace.

// ErrNotBPFFS means that a pin directory is not on a bpf filesystem.
var ErrNotBPFFS = errors.New("not on a bpf filesystem")

func (o *Objects) mapsDir() string  { return filepath.Join(o.spec.PinDir, "maps") }
func (o *Objects) linksDir() string { return filepath.Join(o.spec.PinDir, "links") }

func preparePinDir(dir string) error {
	if err := checkBPFFS(dir); err != nil {
		return err
	}
	for _, d := range []string{"maps", "links"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return fmt.Errorf("pin directory: %w", err)
		}
	}
	return nil
}

// checkBPFFS looks at dir, or at the nearest parent that exists.
func checkBPFFS(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("pin directory %q: not an absolute path", dir)
	}
	for at := dir; ; at = filepath.Dir(at) {
		var st unix.Statfs_t
		err := unix.Statfs(at, &st)
		if errors.Is(err, unix.ENOENT) && at != "/" {
			continue
		}
		if err != nil {
			return fmt.Errorf("pin directory %q: %w", dir, err)
		}
		if int64(st.Type) != unix.BPF_FS_MAGIC {
			return fmt.Errorf("pin directory %q: %w (mount -t bpf bpf /sys/fs/bpf)", dir, ErrNotBPFFS)
		}
		return nil
	}
}

// Cleanup detaches every program that is pinned below dir, even if a process still
// holds it, removes all pins, and dir itself if nothing else is in it. A directory
// that does not exist is clean.
func Cleanup(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := checkBPFFS(dir); err != nil {
		return err
	}
	var errs []error
	for _, sub := range []struct {
		dir    string
		remove func(pin string) error
	}{
		{filepath.Join(dir, "links"), removeLink},
		{filepath.Join(dir, "maps"), os.Remove},
	} {
		pins, err := os.ReadDir(sub.dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		errs = append(errs, err)
		for _, pin := range pins {
			errs = append(errs, sub.remove(filepath.Join(sub.dir, pin.Name())))
		}
		errs = append(errs, os.Remove(sub.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing pins: %w", err)
	}
	// Somebody else's pins, or a mount point, are not ours to remove.
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing pins: %w", err)
	}
	return nil
}

// removeLink removes a pin of a link, and detaches the link first: otherwise its
// program is gone only when the kernel gets round to it (bpf_link_put defers).
func removeLink(pin string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return os.Remove(pin) // not a link, or not any more
	}
	return errors.Join(l.Detach(), l.Unpin(), l.Close())
}

// Sweep removes what an earlier process left and this one has not taken over:
// link pins of devices that it has not attached to, entries of the port map that
// it has not set. It is called once every wanted port is open, and says what it
// removed.
func (o *Objects) Sweep() (swept []string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	if o.spec.PinDir != "" {
		pins, err := os.ReadDir(o.linksDir())
		errs = append(errs, err)
		for _, pin := range pins {
			at, ok := parseHookOf(pin.Name())
			if _, attached := o.attached[at]; ok && attached {
				continue
			}
			if err := removeLink(filepath.Join(o.linksDir(), pin.Name())); err != nil {
				errs = append(errs, err)
				continue
			}
			swept = append(swept, "link "+pin.Name())
		}
	}
	ports, err := o.Ports()
	errs = append(errs, err)
	for ifindex := range ports {
		if o.ports[ifindex] {
			continue
		}
		if err := deleteKey(o.maps.Ports, uint32(ifindex)); err != nil {
			errs = append(errs, err)
			continue
		}
		swept = append(swept, fmt.Sprintf("port %d", ifindex))
	}
	if err := errors.Join(errs...); err != nil {
		return swept, fmt.Errorf("sweeping what an earlier process left: %w", err)
	}
	return swept, nil
}

type hook string

const (
	hookXDP    hook = "xdp"
	hookSteer  hook = "steer"
	hookEgress hook = "egress"
)

var hooks = []hook{hookXDP, hookSteer, hookEgress}

// hookOf names an attachment point, and its pin.
type hookOf struct {
	ifindex int
	hook    hook
}

func (h hookOf) String() string { return fmt.Sprintf("%d-%s", h.ifindex, h.hook) }

func parseHookOf(pin string) (hookOf, bool) {
	number, h, _ := strings.Cut(pin, "-")
	ifindex, err := strconv.Atoi(number)
	return hookOf{ifindex, hook(h)}, err == nil && slices.Contains(hooks, hook(h))
}

func (o *Objects) pinOf(at hookOf) string { return filepath.Join(o.linksDir(), at.String()) }
