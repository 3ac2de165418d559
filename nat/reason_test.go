package nat

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestReasonsHaveStableWords(t *testing.T) {
	all := Reasons()
	if len(all) != int(NumReasons) {
		t.Fatalf("Reasons() has %d entries, want %d", len(all), NumReasons)
	}
	snake := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	seen := map[string]Reason{}
	for i, r := range all {
		if int(r) != i {
			t.Errorf("Reasons()[%d] = %d", i, r)
		}
		word := r.String()
		if !snake.MatchString(word) || word == "unknown" {
			t.Errorf("reason %d: word %q", r, word)
		}
		if other, ok := seen[word]; ok {
			t.Errorf("reasons %d and %d share the word %q", other, r, word)
		}
		seen[word] = r
	}
	if got := NumReasons.String(); got != "unknown" {
		t.Errorf("NumReasons.String() = %q, want unknown", got)
	}
}

// The table of doc.go lists the same words in the same order.
func TestReasonsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(doc), "the frame\n")
	table, _, _ = strings.Cut(table, "//\n")
	var words, want []string
	for line := range strings.Lines(table) {
		words = append(words, strings.Fields(line)[1])
	}
	for _, r := range Reasons() {
		want = append(want, r.String())
	}
	if got, want := strings.Join(words, "\n"), strings.Join(want, "\n"); got != want {
		t.Errorf("doc.go lists\n%s\nwant\n%s", got, want)
	}
}
