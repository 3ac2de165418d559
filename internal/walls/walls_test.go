// Package walls holds no code, only the test that keeps the rooms of this
// repository apart.
package walls

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/sluice-net/sluice"

// rooms says which rooms each room may import, in code that is not a test. Arrows
// run one way: cmd, bench, dataplane, and then the rooms that know nothing of
// each other. A room covers the folders below it, unless they are rooms too.
var rooms = map[string][]string{
	"nat":                   {},
	"flowtable":             {},
	"service":               {},
	"service/apiserver":     {"service"},
	"xdpprog":               {},
	"dataplane/xsk":         {},
	"internal/netlab":       {},
	"internal/walls":        {},
	"dataplane":             {"dataplane/xsk", "xdpprog", "flowtable", "nat", "service"},
	"internal/differential": {"dataplane", "service", "internal/netlab"},
	"internal/chaos":        {"internal/netlab"},
	"bench":                 {"dataplane", "xdpprog", "flowtable", "nat", "service", "internal/netlab"},
	"cmd":                   {"bench", "dataplane", "dataplane/xsk", "xdpprog", "flowtable", "nat", "service", "service/apiserver", "internal/netlab"},
}

// only says where a package from outside, or anything below it, may be imported.
var only = map[string][]string{
	"unsafe":                              {"dataplane/xsk", "flowtable/unsafe.go", "bench/mmsg.go"},
	"C":                                   {},
	"syscall":                             {"dataplane", "dataplane/xsk", "xdpprog", "internal/netlab", "cmd", "bench", "internal/chaos"},
	"golang.org/x/sys":                    {"dataplane", "dataplane/xsk", "xdpprog", "internal/netlab", "cmd", "bench", "internal/differential", "internal/chaos"},
	"github.com/vishvananda":              {"dataplane", "xdpprog", "internal/netlab", "cmd", "bench"},
	"github.com/cilium/ebpf":              {"xdpprog", "internal/netlab", "bench"},
	"k8s.io/client-go":                    {"service/apiserver"},
	"k8s.io":                              {"service", "service/apiserver"},
	"sigs.k8s.io":                         {"service", "cmd"},
	"github.com/prometheus/client_golang": {"cmd"},
	"github.com/spf13":                    {"cmd"},
	"gonum.org":                           {"bench"},
	"github.com/HdrHistogram":             {"bench"},
	"kernel.org/pub/linux/libs/security/libcap": {"cmd"},
	"github.com/gopacket":                       {"cmd", "bench", "internal/differential"},
}

// clockless rooms get the time as an argument.
var clockless = []string{"nat", "flowtable"}

func TestWalls(t *testing.T) {
	root := moduleRoot(t)
	files := 0
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, name)
		if e.IsDir() && (strings.HasPrefix(e.Name(), ".") && rel != "." || e.Name() == "testdata" || hasModule(name) && rel != ".") {
			return filepath.SkipDir
		}
		if e.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		files++
		check(t, root, filepath.ToSlash(rel))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 20 {
		t.Fatalf("looked at %d files of %s: that cannot be all", files, root)
	}
}

// check looks at the imports of one file.
func check(t *testing.T, root, file string) {
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.ImportsOnly)
	if err != nil {
		t.Error(err)
		return
	}
	room := roomOf(path.Dir(file))
	if room == "" {
		t.Errorf("%s is in no room: give its folder one in this test", file)
		return
	}
	for _, spec := range f.Imports {
		imported, _ := strconv.Unquote(spec.Path.Value)
		if inside, ok := strings.CutPrefix(imported, module+"/"); ok {
			if to := roomOf(inside); to != room && !contains(rooms[room], to) {
				t.Errorf("%s imports %s: %s may import only %v", file, imported, room, rooms[room])
			}
			continue
		}
		for outside, where := range only {
			if within(imported, outside) && !contains(where, room) && !contains(where, file) {
				t.Errorf("%s imports %s: only %v may", file, imported, where)
			}
		}
		if contains(clockless, room) && imported == "time" && callsClock(t, filepath.Join(root, file)) {
			t.Errorf("%s asks the time: %s gets it as an argument", file, room)
		}
	}
}

// callsClock reports whether a file reads a clock.
func callsClock(t *testing.T, name string) bool {
	b, err := os.ReadFile(name)
	if err != nil {
		t.Error(err)
	}
	for _, call := range []string{"time.Now(", "time.Since(", "time.Until(", "time.After("} {
		if strings.Contains(string(b), call) {
			return true
		}
	}
	return false
}

// roomOf is the room that a folder belongs to: the longest that holds it.
func roomOf(folder string) (room string) {
	for r := range rooms {
		if within(folder, r) && len(r) > len(room) {
			room = r
		}
	}
	return room
}

// within reports whether p is parent or below it.
func within(p, parent string) bool { return p == parent || strings.HasPrefix(p, parent+"/") }

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

func hasModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// moduleRoot is the folder above with go.mod.
func moduleRoot(t *testing.T) string {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for !hasModule(dir) {
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above this test")
		}
		dir = up
	}
	return dir
}

func TestRoomOf(t *testing.T) {
	for folder, want := range map[string]string{
		"nat": "nat", "dataplane": "dataplane", "dataplane/xsk": "dataplane/xsk", "cmd/sluice/internal/config": "cmd", "natural": "", "internal": "",
	} {
		if got := roomOf(folder); got != want {
			t.Errorf("roomOf(%q) = %q, want %q", folder, got, want)
		}
	}
}
