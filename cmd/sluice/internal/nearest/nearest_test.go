package nearest

import (
	"slices"
	"testing"
)

func TestWord(t *testing.T) {
	fields := []string{"mode", "manifests", "workers", "frames", "frameSize"}
	for _, c := range []struct{ word, want string }{
		{"manifest", "manifests"},
		{"Workers", "workers"},
		{"worekrs", "workers"},
		{"framesize", "frameSize"},
		{"frame", "frames"},
		{"mdoe", "mode"},
		{"colour", ""},
		{"x", ""},
		{"", ""},
	} {
		if got := Word(c.word, fields); got != c.want {
			t.Errorf("Word(%q) = %q, want %q", c.word, got, c.want)
		}
	}
}

func TestWords(t *testing.T) {
	devices := []string{"lo", "eth0", "eth1", "vethab12", "wlan0"}
	for _, c := range []struct {
		word string
		want []string
	}{
		{"eth7", []string{"eth0", "eth1"}},
		{"ethO", []string{"eth0", "eth1"}},
		{"ens3", nil},
		{"vethab21", []string{"vethab12"}},
	} {
		if got := Words(c.word, devices, 2); !slices.Equal(got, c.want) {
			t.Errorf("Words(%q) = %q, want %q", c.word, got, c.want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"abc", "abc", 0},
		{"abc", "acb", 1}, {"abc", "abd", 1}, {"kitten", "sitting", 3},
	} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
