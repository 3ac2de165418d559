package service

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

const (
	// A writer that truncates and writes, or an editor that renames, makes several events of one edit. The folder is read
	// when it has been quiet this long, or, if it is never quiet, this long after the first event.
	settleQuiet = 50 * time.Millisecond
	settleMost  = 500 * time.Millisecond
	// The folder is also read this often whatever the kernel says: events are lost when the queue overflows, on network file
	// systems, and when the folder itself is replaced.
	rescanEvery = 5 * time.Second
	// maxManifest is the size from which a file is refused unread.
	maxManifest = 64 << 20
)

// Folder is a source of Services: the manifests in a directory. Files named *.yaml, *.yml and *.json count, hidden ones and
// editors' backups do not, subdirectories neither.
//
// The folder is taken as a whole. As long as one file in it is bad, the Snapshot of the last good state serves on, for the
// objects of a Service may be spread over several files. Each bad file is one log line, repeated when its error changes.
type Folder struct {
	dir     string
	cfg     Config
	log     *slog.Logger
	publish func(*Snapshot)

	watcher *fsnotify.Watcher
	stop    context.CancelFunc
	done    chan struct{} // closed when the watching goroutine has ended

	// Written by OpenFolder, then by the watching goroutine alone.
	files    map[string]*manifestFile
	watched  os.FileInfo // the directory that the watch is on
	snapshot *Snapshot   // the last one published
	catalog  *Catalog
	logged   map[string]string // error by file, as logged
	reports  ReportLog

	telling sync.Mutex // guards catalog

	mu     sync.Mutex // guards status
	status Status
}

// manifestFile is a file as last read.
type manifestFile struct {
	sum     [sha256.Size]byte
	objects []object
	problem *Problem
}

// Status says how a Folder is doing.
type Status struct {
	Dir            string
	Files          int // counted at the last good read, like the next two
	Services       int
	EndpointSlices int
	Generation     uint32    // of the Snapshot that serves
	Changed        time.Time // when that was published
	Read           time.Time // when the folder was last read and found good
	Checked        time.Time // when it was last read
	Err            error     // why the folder is not good now; nil if it is
	Report         *Report   // what of the good state is not used
	Counts         Counts
}

// Age is how long the state that serves has not been known to be the folder's: 0 while the folder is good.
func (s *Status) Age() time.Duration {
	if s.Err == nil {
		return 0
	}
	return time.Since(s.Read)
}

// OpenFolder reads the manifests in dir, publishes their Snapshot, and then watches dir until Close. A bad manifest is an error
// now and a log line later. publish is called before OpenFolder returns and then from one goroutine, never after Close, and
// only when something has changed. It should not block: changes wait for it.
func OpenFolder(dir string, cfg Config, log *slog.Logger, publish func(*Snapshot)) (*Folder, error) {
	f := &Folder{
		dir: filepath.Clean(dir), cfg: cfg, log: log, publish: publish,
		done: make(chan struct{}), status: Status{Dir: dir},
		catalog: NewCatalog(cfg),
		logged:  make(map[string]string), reports: ReportLog{Log: log},
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watching manifests in %q: %w", dir, err)
	}
	f.watcher = watcher
	if problems := f.refresh(); len(problems) != 0 {
		return nil, errors.Join(fmt.Errorf("reading manifests in %q: %w", dir, joinProblems(problems)), watcher.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	f.stop = stop
	go func() {
		defer close(f.done)
		settle(ctx, watcher.Events, watcher.Errors, func() { f.logProblems(f.refresh()) })
	}()
	return f, nil
}

// Close stops watching and waits for a publish under way. The last Snapshot stays valid.
func (f *Folder) Close() error {
	f.stop()
	<-f.done
	return f.watcher.Close()
}

// Describe describes what is programmed. It may be called from any goroutine.
func (f *Folder) Describe() []Description {
	f.telling.Lock()
	defer f.telling.Unlock()
	return f.catalog.Describe()
}

// Status may be called from any goroutine.
func (f *Folder) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// settle calls refresh after each burst of events, and at times without one, until ctx is done.
func settle(ctx context.Context, events <-chan fsnotify.Event, watchErrors <-chan error, refresh func()) {
	rescan := time.NewTicker(rescanEvery)
	defer rescan.Stop()
	quiet := time.NewTimer(0)
	quiet.Stop()
	defer quiet.Stop()
	var since time.Time // of the first event that has not been acted on; zero: none
	changed := func() {
		now := time.Now()
		if since.IsZero() {
			since = now
		}
		quiet.Reset(min(settleQuiet, settleMost-now.Sub(since)))
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-events:
			changed()
		case <-watchErrors: // events were lost
			changed()
		case <-quiet.C:
			since = time.Time{}
			refresh()
		case <-rescan.C:
			refresh()
		}
	}
}

// refresh reads the folder, and publishes if it is good and has changed. It returns what is wrong: at most one Problem a file.
func (f *Folder) refresh() []*Problem {
	watchErr := f.watch() // before reading: what changes in between is read twice and not missed
	problems := f.reload()
	if len(problems) == 0 && watchErr != nil {
		problems = []*Problem{{File: f.dir, Text: "not watched: " + watchErr.Error()}}
	}
	f.mu.Lock()
	f.status.Err, f.status.Checked = joinProblems(problems), time.Now()
	f.mu.Unlock()
	return problems
}

// watch puts the watch on the directory, and moves it if the path leads to another one by now. It is on the directory and
// not on the files, because a ConfigMap volume never touches its files: it swaps the symbolic link ..data beside them.
func (f *Folder) watch() error {
	now, err := os.Stat(f.dir)
	if err != nil {
		return withoutPath(err)
	}
	if f.watched != nil && os.SameFile(f.watched, now) && slices.Contains(f.watcher.WatchList(), f.dir) {
		return nil
	}
	_ = f.watcher.Remove(f.dir) // the old one, if the kernel has not done so
	if err := f.watcher.Add(f.dir); err != nil {
		return err
	}
	f.watched = now
	return nil
}

func (f *Folder) reload() []*Problem {
	files, objects, problems := f.read()
	if len(problems) != 0 {
		return problems
	}
	services, endpointSlices := make([]*corev1.Service, 0, len(objects)), make([]*discoveryv1.EndpointSlice, 0, len(objects))
	var pods []*corev1.Pod
	var policies []*networkingv1.NetworkPolicy
	for _, o := range objects {
		switch {
		case o.service != nil:
			services = append(services, o.service)
		case o.slice != nil:
			endpointSlices = append(endpointSlices, o.slice)
		case o.pod != nil:
			pods = append(pods, o.pod)
		default:
			policies = append(policies, o.policy)
		}
	}
	f.telling.Lock()
	f.catalog.ReplacePods(pods)
	f.catalog.ReplacePolicies(policies)
	f.catalog.ReplaceServices(services)
	f.catalog.ReplaceSlices(endpointSlices)
	change := f.catalog.Commit()
	counts := f.catalog.Counts()
	f.telling.Unlock()
	next, report := change.Snapshot, change.Report
	f.locate(report, files)
	f.reports.Report(report)

	f.mu.Lock()
	f.status.Files, f.status.Services, f.status.EndpointSlices = len(files), len(services), len(endpointSlices)
	f.status.Read, f.status.Report, f.status.Counts = time.Now(), report, counts
	changed := next != f.snapshot
	if changed {
		f.status.Generation, f.status.Changed = next.Generation, f.status.Read
	}
	f.mu.Unlock()
	if changed {
		f.snapshot = next
		f.publish(next)
	}
	return nil
}

// read returns all objects of the folder, or what is wrong with it: at most one Problem a file.
func (f *Folder) read() (names []string, objects []object, problems []*Problem) {
	entries, err := os.ReadDir(f.dir) // sorted by name
	if err != nil {
		return nil, nil, []*Problem{{File: f.dir, Text: withoutPath(err).Error()}}
	}
	type origin struct {
		path string
		object
	}
	seen := make(map[string]origin)
	files := make(map[string]*manifestFile)
	for _, e := range entries {
		if !isManifest(e.Name()) || e.IsDir() {
			continue
		}
		path := filepath.Join(f.dir, e.Name())
		file := readFile(path, f.files[path])
		if file == nil {
			continue
		}
		names, files[path] = append(names, path), file
		if file.problem != nil {
			problems = append(problems, file.problem)
			continue
		}
		for _, o := range file.objects {
			if first, twice := seen[o.name()]; twice {
				problems = append(problems, &Problem{
					File: path, Document: o.document, Line: o.line, Object: o.name(), Field: "metadata.name",
					Text: fmt.Sprintf("the same object is in document %d of %s", first.document, first.path),
				})
				break
			}
			seen[o.name()] = origin{path, o}
		}
		objects = append(objects, file.objects...)
	}
	f.files = files
	return names, objects, problems
}

// readFile reads and decodes one file. If it is what it was, the old result is returned; if it is gone by now, nil.
func readFile(path string, old *manifestFile) *manifestFile {
	data, err := readRegular(path)
	if err != nil {
		if _, gone := os.Lstat(path); errors.Is(gone, os.ErrNotExist) {
			return nil
		}
		return &manifestFile{problem: &Problem{File: path, Text: err.Error()}}
	}
	sum := sha256.Sum256(data)
	if old != nil && old.sum == sum {
		return old
	}
	objects, problem := readManifest(path, data)
	if problem != nil {
		problem.File = path
	}
	return &manifestFile{sum: sum, objects: objects, problem: problem}
}

func readRegular(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, withoutPath(err)
	}
	if !info.Mode().IsRegular() { // opening a pipe would wait for its writer
		return nil, errors.New("not a regular file")
	}
	tooLarge := fmt.Errorf("larger than %d MiB", maxManifest>>20)
	if info.Size() > maxManifest {
		return nil, tooLarge
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, withoutPath(err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxManifest+1))
	if err != nil {
		return nil, withoutPath(err)
	}
	if len(data) > maxManifest {
		return nil, tooLarge // grown since
	}
	return data, nil
}

// withoutPath leaves "open: no such file or directory": the Problem names the file already.
func withoutPath(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return fmt.Errorf("%s: %w", p.Op, p.Err)
	}
	return err
}

// isManifest says whether a file of this name counts. Hidden files are a ConfigMap volume's own (..data), or an editor's (.#name,
// .name.swp); backups end in ~ or begin with #.
func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") {
		return false
	}
	switch strings.ToLower(filepath.Ext(name)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// locate adds file and line to the Problems of objects.
func (f *Folder) locate(r *Report, names []string) {
	if len(r.Problems) == 0 {
		return
	}
	where := make(map[string]Problem)
	for _, path := range names {
		for i := range f.files[path].objects {
			o := &f.files[path].objects[i]
			where[o.name()] = Problem{File: path, Document: o.document, Line: o.line}
		}
	}
	for i := range r.Problems {
		p := &r.Problems[i]
		at := where[p.Object]
		p.File, p.Document, p.Line = at.File, at.Document, at.Line
	}
}

// logProblems logs each bad file once, until its error changes, and that all is well again.
func (f *Folder) logProblems(problems []*Problem) {
	current := make(map[string]string, len(problems))
	for _, p := range problems {
		current[p.File] = p.Detail()
		if f.logged[p.File] != p.Detail() {
			f.log.Error("manifest refused: the last good state serves on", "file", p.File, "err", p.Detail())
		}
	}
	if len(current) == 0 && len(f.logged) != 0 {
		f.log.Info("manifests are good again", "dir", f.dir)
	}
	f.logged = current
}

// joinProblems makes one error of Problems: nil if there are none.
func joinProblems(problems []*Problem) error {
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = p
	}
	return errors.Join(errs...)
}
