// Package instance keeps a second daemon away from what one daemon owns: a
// network namespace (the return port's devices, the interfaces, the rules) and
// a folder of pins.
//
// Each of the two is a file in the run folder, locked with flock for the
// daemon's life: the kernel lets go of it when the process ends, however it
// ends. The file holds the process's id, for the complaint of the one that
// comes second. Daemons of several nodes in one machine's namespaces, each
// with its own pins, do not meet.
package instance

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Lock is what this process holds.
type Lock struct {
	dir   string
	files []*os.File
}

// Acquire locks, in the folder dir, the network namespace that the process is
// in and, unless it is empty, the folder of pins.
func Acquire(dir, pins string) (*Lock, error) {
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return nil, fmt.Errorf("identifying the network namespace: %w", err)
	}
	l := &Lock{dir: dir}
	if err := l.take(fmt.Sprintf("netns-%d.lock", ns.Ino), "this network namespace"); err != nil {
		return nil, err
	}
	if pins == "" {
		return l, nil
	}
	pins = filepath.Clean(pins)
	h := fnv.New64a()
	h.Write([]byte(pins))
	if err := l.take(fmt.Sprintf("pins-%016x.lock", h.Sum64()), "pinPath "+pins); err != nil {
		return nil, errors.Join(err, l.Release())
	}
	return l, nil
}

// take locks one file. The file is removed when it is let go, so that it may
// vanish between opening and locking: then it is opened anew. That happens
// once for each daemon that just ended; more often than this, something else
// is at work in the folder.
func (l *Lock) take(name, what string) error {
	path := filepath.Join(l.dir, name)
	for range 16 {
		if err := os.MkdirAll(l.dir, 0o755); err != nil {
			return fmt.Errorf("runDir: %w", err)
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("runDir: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			holder := readPid(f)
			f.Close()
			if err != unix.EWOULDBLOCK {
				return fmt.Errorf("locking %s: %w", path, err)
			}
			return fmt.Errorf("another sluice%s serves %s (lock %s); stop it first", holder, what, path)
		}
		if !same(f, path) {
			f.Close()
			continue
		}
		if err := writePid(f); err != nil {
			f.Close()
			return fmt.Errorf("writing %s: %w", path, err)
		}
		l.files = append(l.files, f)
		return nil
	}
	return fmt.Errorf("locking %s: the file keeps vanishing", path)
}

// same says whether the open file is still the one of that name.
func same(f *os.File, path string) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(open, named)
}

func writePid(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// readPid gives " (pid 123)", or nothing while the holder has not written it.
func readPid(f *os.File) string {
	buf := make([]byte, 32)
	n, _ := f.ReadAt(buf, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (pid %d)", pid)
}

// Release lets go and removes the files, and the folder if it is empty then.
// The names go first, while the locks still hold: whoever opens one of them
// now finds either nothing or a file that is no longer the one of that name.
func (l *Lock) Release() error {
	var errs []error
	for _, f := range l.files {
		errs = append(errs, os.Remove(f.Name()), f.Close())
	}
	l.files = nil
	_ = os.Remove(l.dir) // others may be in it
	return errors.Join(errs...)
}
