package service

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
)

// TestSettle: a burst of events is one refresh soon after its end, an endless one is refreshed all the same, and so is silence.
func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events, errs := make(chan fsnotify.Event), make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex // the fake clock does not order memory
		start := time.Now()
		var at []time.Duration
		done := make(chan struct{})
		go func() {
			settle(ctx, events, errs, func() {
				mu.Lock()
				defer mu.Unlock()
				at = append(at, time.Since(start))
			})
			close(done)
		}()
		expect := func(what string, want ...time.Duration) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if fmt.Sprint(at) != fmt.Sprint(want) {
				t.Errorf("%s: refreshed after %v, want %v", what, at, want)
			}
			at, start = nil, time.Now()
		}
		ms := time.Millisecond

		events <- fsnotify.Event{}
		time.Sleep(49 * ms)
		expect("too early")
		time.Sleep(time.Second)
		expect("one event", 1*ms)

		for range 5 {
			events <- fsnotify.Event{}
			time.Sleep(40 * ms)
		}
		time.Sleep(100 * ms)
		expect("five events 40 ms apart", 210*ms)

		for range 140 {
			events <- fsnotify.Event{}
			time.Sleep(7 * ms)
		}
		time.Sleep(100 * ms)
		// 500 ms after the first event, and after the next one, which is at 504 ms.
		expect("a second of events", 500*ms, 1004*ms)

		errs <- fsnotify.ErrEventOverflow
		time.Sleep(100 * ms)
		expect("lost events", 50*ms)

		since := 49*ms + time.Second + 300*ms + 1080*ms + 100*ms
		time.Sleep(rescanEvery)
		expect("silence", rescanEvery-since)

		cancel()
		<-done
	})
}

// watchedFolder is a Folder with all that it logs and publishes.
type watchedFolder struct {
	*Folder
	t   *testing.T
	dir string

	mu        sync.Mutex
	log       bytes.Buffer
	published []*Snapshot
}

func (w *watchedFolder) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(p)
}

func (w *watchedFolder) publish(s *Snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.published) > 0 && s.Generation != w.published[len(w.published)-1].Generation+1 {
		w.t.Errorf("generation %d after %d", s.Generation, w.published[len(w.published)-1].Generation)
	}
	w.published = append(w.published, s)
}

func (w *watchedFolder) last() *Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.published[len(w.published)-1]
}

func (w *watchedFolder) lines(word string) (lines []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for line := range strings.Lines(w.log.String()) {
		if strings.Contains(line, word) {
			lines = append(lines, line)
		}
	}
	return lines
}

// open fills a directory and opens it.
func open(t *testing.T, files map[string]string) *watchedFolder {
	t.Helper()
	w := &watchedFolder{t: t, dir: t.TempDir()}
	for name, data := range files {
		w.write(name, data)
	}
	f, err := OpenFolder(w.dir, Config{}, slog.New(slog.NewTextHandler(w, nil)), w.publish)
	if err != nil {
		t.Fatal(err)
	}
	w.Folder = f
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *watchedFolder) path(name string) string { return filepath.Join(w.dir, name) }

// write replaces a file at once. What comes of writing bit by bit, TestFolderHalfWritten shows.
func (w *watchedFolder) write(name, data string) {
	w.t.Helper()
	temporary := w.path("." + name)
	if err := os.WriteFile(temporary, []byte(data), 0o644); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(temporary, w.path(name)); err != nil {
		w.t.Fatal(err)
	}
}

// eventually polls, because fsnotify's events are the kernel's and no fake clock moves them.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func (w *watchedFolder) backends() string {
	p := w.last().Lookup(frontend("198.19.0.1", 80, TCP))
	if p == nil {
		return "no Service"
	}
	return strings.Join(texts(p.Backends), " ")
}

func (w *watchedFolder) expectBackends(want string) {
	w.t.Helper()
	eventually(w.t, "backends "+want, func() bool { return w.backends() == want })
}

func sliceWith(addrs ...string) string {
	s, _, _ := strings.Cut(goodSlice, "endpoints:\n")
	s += "endpoints:\n"
	for _, a := range addrs {
		s += "- addresses: [\"" + a + "\"]\n"
	}
	return s
}

func TestFolder(t *testing.T) {
	t.Parallel()
	w := open(t, map[string]string{
		"service.yaml": goodService, "slice.yml": goodSlice,
		"notes.txt": "junk", ".hidden.yaml": "junk", "slice.yml~": "junk", "#slice.yml#": "junk", ".#slice.yml": "junk",
	})
	if err := os.Mkdir(w.path("sub.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := w.backends(); got != "198.18.0.1:8080" {
		t.Fatalf("published at the start: %s", got)
	}
	if s := w.Status(); s.Files != 2 || s.Services != 1 || s.EndpointSlices != 1 || s.Generation != 1 || s.Err != nil || s.Age() != 0 || s.Changed.IsZero() {
		t.Errorf("status %+v", s)
	}

	w.write("slice.yml", sliceWith("198.18.0.1", "198.18.0.2"))
	w.expectBackends("198.18.0.1:8080 198.18.0.2:8080")

	if err := os.Remove(w.path("slice.yml")); err != nil {
		t.Fatal(err)
	}
	w.expectBackends("")
	if p := w.last().ServicePorts()[0]; p.Action != Reject {
		t.Errorf("no endpoints: %v", p.Action)
	}
	if err := os.Remove(w.path("service.yaml")); err != nil {
		t.Fatal(err)
	}
	w.expectBackends("no Service")
	if s := w.Status(); s.Files != 0 || s.Generation != 4 {
		t.Errorf("status %+v", s)
	}
	if lines := w.lines("level="); len(lines) != 0 {
		t.Errorf("logged %q", lines)
	}
}

// TestFolderIsQuick: an edit takes effect within one second.
func TestFolderIsQuick(t *testing.T) {
	w := open(t, map[string]string{"service.yaml": goodService, "slice.yaml": goodSlice})
	best := time.Hour
	for i := range 3 { // the machine may be busy with something else, but not each time
		start := time.Now()
		w.write("slice.yaml", sliceWith(fmt.Sprintf("198.18.0.%d", 2+i)))
		w.expectBackends(fmt.Sprintf("198.18.0.%d:8080", 2+i))
		best = min(best, time.Since(start))
	}
	if best > time.Second {
		t.Errorf("an edit took effect after %v", best)
	}
}

// TestFolderUnchanged: what changes no Snapshot publishes none.
func TestFolderUnchanged(t *testing.T) {
	t.Parallel()
	w := open(t, map[string]string{"service.yaml": goodService, "slice.yaml": goodSlice})
	read := w.Status().Read
	w.write("slice.yaml", "# a comment\n"+goodSlice)
	w.write("empty.yaml", "# nothing yet\n")
	eventually(t, "a read", func() bool { return w.Status().Read.After(read) && w.Status().Files == 3 })
	if n := w.last().Generation; n != 1 {
		t.Errorf("generation %d", n)
	}
}

// TestFolderConfigMap: a ConfigMap volume swaps a symbolic link beside its files.
func TestFolderConfigMap(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fill := func(version string, files map[string]string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(dir, version, name), []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	link := func(to, name string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	fill("..2026_01", map[string]string{"service.yaml": goodService, "slice.yaml": goodSlice})
	link("..2026_01", "..data")
	link("..data/service.yaml", "service.yaml")
	link("..data/slice.yaml", "slice.yaml")
	w := &watchedFolder{t: t, dir: dir}
	f, err := OpenFolder(dir, Config{}, slog.New(slog.NewTextHandler(w, nil)), w.publish)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := w.backends(); got != "198.18.0.1:8080" {
		t.Fatalf("at the start: %s", got)
	}
	fill("..2026_02", map[string]string{"service.yaml": goodService, "slice.yaml": sliceWith("198.18.0.7")})
	link("..2026_02", "..data_tmp")
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "..2026_01")); err != nil {
		t.Fatal(err)
	}
	w.expectBackends("198.18.0.7:8080")
	if lines := w.lines("level=ERROR"); len(lines) != 0 {
		t.Errorf("logged %q", lines)
	}
}

// TestFolderReplaced: the directory itself is moved away and another put in its place.
func TestFolderReplaced(t *testing.T) {
	t.Parallel()
	w := open(t, map[string]string{"service.yaml": goodService, "slice.yaml": goodSlice})
	if err := os.Rename(w.dir, w.dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w.write("service.yaml", goodService)
	w.write("slice.yaml", sliceWith("198.18.0.7"))
	w.expectBackends("198.18.0.7:8080") // by the rescan
	w.write("slice.yaml", sliceWith("198.18.0.8"))
	w.expectBackends("198.18.0.8:8080") // by the new watch
}

// TestFolderLinkMoved: the folder's own path is a symbolic link, and leads elsewhere one day. Nothing happens in the old
// directory then, so it takes the rescan to see it, and a new watch to see what follows.
func TestFolderLinkMoved(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	fill := func(version string, backend string) {
		t.Helper()
		w := &watchedFolder{t: t, dir: filepath.Join(base, version)}
		if err := os.MkdirAll(w.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		w.write("service.yaml", goodService)
		w.write("slice.yaml", sliceWith(backend))
	}
	fill("old", "198.18.0.1")
	fill("new", "198.18.0.2")
	w := &watchedFolder{t: t, dir: filepath.Join(base, "current")}
	if err := os.Symlink("old", w.dir); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFolder(w.dir, Config{}, slog.New(slog.NewTextHandler(w, nil)), w.publish)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Symlink("new", w.dir+".next"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(w.dir+".next", w.dir); err != nil {
		t.Fatal(err)
	}
	w.expectBackends("198.18.0.2:8080")
	start := time.Now()
	fill("new", "198.18.0.3")
	w.expectBackends("198.18.0.3:8080")
	if d := time.Since(start); d > rescanEvery*9/10 {
		t.Errorf("seen after %v: by the rescan, not the watch", d)
	}
}

// TestFolderLogsOnce: a bad file is one line as long as its error is the same, however often it is read.
func TestFolderLogsOnce(t *testing.T) {
	t.Parallel()
	w := open(t, map[string]string{"service.yaml": goodService, "slice.yaml": goodSlice})
	rewrite := func(data string) {
		t.Helper()
		before := w.Status().Checked
		w.write("slice.yaml", data)
		eventually(t, "a read", func() bool { return w.Status().Checked.After(before) })
	}
	rewrite("-")
	eventually(t, "the first line", func() bool { return len(w.lines("level=ERROR")) == 1 })
	rewrite("- # still bad")
	rewrite("-")
	rewrite("[]")
	if lines := w.lines("level=ERROR"); len(lines) != 1 {
		t.Errorf("logged %q", lines)
	}
	rewrite("{}")
	eventually(t, "another error", func() bool { return len(w.lines("level=ERROR")) == 2 })
}

func TestFolderBadAtStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	log := slog.New(slog.DiscardHandler)
	refused := func(want ...string) {
		t.Helper()
		_, err := OpenFolder(dir, Config{}, log, func(*Snapshot) { t.Error("published") })
		if err == nil {
			t.Fatal("opened")
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("error %q, want one with %q", err, w)
			}
		}
	}
	if err := os.WriteFile(path, []byte(mustReplace(goodService, "port: 80", "port: 0")), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b.yaml"), []byte("-"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused(path+": document 1 (line 1): Service demo/web: spec.ports[0].port: 0 is not in 1..65535", "b.yaml: document 1 (line 1): not an object")
	dir = filepath.Join(dir, "missing")
	refused("missing", "no such file or directory")
}

// TestFolderBadManifests: each bad document that turns up in a served folder is one error line with the file's name, and the old state
// serves on, all of it, while other files change too.
func TestFolderBadManifests(t *testing.T) {
	t.Parallel()
	w := open(t, map[string]string{"service.yaml": goodService, "slice.yaml": goodSlice})
	for _, tc := range badManifests {
		w.mu.Lock()
		w.log.Reset()
		w.mu.Unlock()
		bad := mustRename(tc.data)
		w.write("bad.yaml", bad)
		w.write("slice.yaml", sliceWith("198.18.0.9")) // good, but not alone
		eventually(t, tc.name+": an error", func() bool { return w.Status().Err != nil && len(w.lines("level=ERROR")) > 0 })
		if s := w.Status(); s.Generation != 1 || w.backends() != "198.18.0.1:8080" || s.Age() == 0 {
			t.Fatalf("%s: generation %d, backends %s, age %v", tc.name, s.Generation, w.backends(), s.Age())
		}
		w.write("slice.yaml", goodSlice)
		if err := os.Remove(w.path("bad.yaml")); err != nil {
			t.Fatal(err)
		}
		eventually(t, tc.name+": recovery", func() bool { return w.Status().Err == nil && len(w.lines("good again")) == 1 })
		lines := w.lines("level=ERROR")
		if len(lines) != 1 || !strings.Contains(lines[0], "file="+w.path("bad.yaml")) || !strings.Contains(lines[0], "err=") {
			t.Errorf("%s: logged %q, want one line with the file", tc.name, lines)
		}
	}
	if n := w.last().Generation; n != 1 {
		t.Errorf("generation %d at the end", n)
	}
}

// mustRename gives the objects of a bad manifest names of their own, so that it is not refused for another reason first.
func mustRename(data string) string {
	return strings.NewReplacer("name: web-1", "name: bad-1", "name: web\n", "name: bad\n").Replace(data)
}

// TestFolderHalfWritten: a file that is truncated and written bit by bit does no harm in between.
func TestFolderHalfWritten(t *testing.T) {
	t.Parallel()
	w := open(t, map[string]string{"all.yaml": goodService + "---\n" + goodSlice})
	f, err := os.Create(w.path("all.yaml")) // truncates
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	eventually(t, "the empty file is seen", func() bool { return w.Status().Err != nil })
	next := goodService + "---\n" + sliceWith("198.18.0.7")
	if _, err := f.WriteString(next[:len(next)-20]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "half of the file is seen", func() bool {
		err := w.Status().Err
		return err != nil && !strings.Contains(err.Error(), "empty")
	})
	if got := w.backends(); got != "198.18.0.1:8080" {
		t.Errorf("in between: %s", got)
	}
	if _, err := f.WriteString(next[len(next)-20:]); err != nil {
		t.Fatal(err)
	}
	w.expectBackends("198.18.0.7:8080")
	if n := w.last().Generation; n != 2 {
		t.Errorf("generation %d", n)
	}
}

// TestFolderOddFiles: what is not a regular file is refused without being opened.
func TestFolderOddFiles(t *testing.T) {
	t.Parallel()
	w := open(t, map[string]string{"service.yaml": goodService, "slice.yaml": goodSlice})
	for name, target := range map[string]string{"device.yaml": "/dev/zero", "dangling.yaml": "nowhere", "directory.yaml": "."} {
		if err := os.Symlink(target, w.path(name)); err != nil {
			t.Fatal(err)
		}
		eventually(t, name, func() bool { return w.Status().Err != nil && strings.Contains(w.Status().Err.Error(), name) })
		if err := os.Remove(w.path(name)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "recovery from "+name, func() bool { return w.Status().Err == nil })
	}
	big, err := os.Create(w.path("big.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer big.Close()
	if err := big.Truncate(maxManifest + 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "too big", func() bool {
		return w.Status().Err != nil && strings.Contains(w.Status().Err.Error(), "larger than 64 MiB")
	})
	if n := w.last().Generation; n != 1 {
		t.Errorf("generation %d", n)
	}
}

// TestFolderReports: what of a good folder is not used is logged with its file, once.
func TestFolderReports(t *testing.T) {
	t.Parallel()
	w := open(t, map[string]string{"service.yaml": goodService, "slice.yaml": sliceWith("198.18.0.1", "127.0.0.1")})
	report := w.Status().Report
	if len(report.Problems) != 1 || report.Refused != 1 || report.Problems[0].File != w.path("slice.yaml") || report.Problems[0].Line != 1 {
		t.Fatalf("report %+v", report)
	}
	w.write("slice.yaml", sliceWith("198.18.0.2", "127.0.0.1"))
	w.expectBackends("198.18.0.2:8080")
	lines := w.lines("level=WARN")
	if len(lines) != 1 || !strings.Contains(lines[0], "EndpointSlice demo/web-1") || !strings.Contains(lines[0], "loopback") || !strings.Contains(lines[0], "slice.yaml") {
		t.Errorf("logged %q", lines)
	}
}

// TestFolderClosed: after Close nothing is published.
func TestFolderClosed(t *testing.T) {
	t.Parallel()
	w := &watchedFolder{t: t, dir: t.TempDir()}
	w.write("service.yaml", goodService)
	f, err := OpenFolder(w.dir, Config{}, slog.New(slog.NewTextHandler(w, nil)), w.publish)
	if err != nil {
		t.Fatal(err)
	}
	w.write("slice.yaml", goodSlice)
	for range 2 {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	n := w.last().Generation
	w.write("slice.yaml", sliceWith("198.18.0.2"))
	if w.last().Generation != n {
		t.Error("published after Close")
	}
}
