package nat

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// docs/rfc.md decides every clause, and names no test that does not exist.
func TestClausesAreDecided(t *testing.T) {
	doc, err := os.ReadFile("../docs/rfc.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := testsOf(t, "..")
	named := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9]+)`")
	counts := map[string]int{}
	n := 0
	for line := range strings.Lines(string(doc)) {
		for _, m := range named.FindAllStringSubmatch(line, -1) {
			if !tests[m[1]] {
				t.Errorf("no test %s: %s", m[1], line)
			}
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) < 2 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "RFC ") {
			continue
		}
		n++
		if len(cells) != 5 || strings.TrimSpace(cells[0]) != strconv.Itoa(n) {
			t.Errorf("row %d: %s", n, line)
			continue
		}
		status, shown := strings.TrimSpace(cells[3]), strings.TrimSpace(cells[4])
		counts[status]++
		switch status {
		case "met":
			if !named.MatchString(shown) {
				t.Errorf("met, but by what test? %s", line)
			}
		case "planned", "deviates", "not applicable":
			if len(shown) == 0 {
				t.Errorf("%s, but why? %s", status, line)
			}
		default:
			t.Errorf("status %q: %s", status, line)
		}
	}
	if n != 59 {
		t.Errorf("%d clauses, want 59", n)
	}
	t.Log(counts)
}

// testsOf finds the names of all tests and fuzz targets below a folder.
func testsOf(t *testing.T, root string) map[string]bool {
	t.Helper()
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9]+)\(`)
	names := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range function.FindAllSubmatch(source, -1) {
			names[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
