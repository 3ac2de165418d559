package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
)

func TestLogger(t *testing.T) {
	for _, c := range []struct {
		level, format string
		json          bool
		lines         int // of one at each level
	}{
		{"info", "auto", true, 3}, // a buffer is no terminal
		{"debug", "json", true, 4},
		{"warn", "text", false, 2},
		{"error", "text", false, 1},
	} {
		var out bytes.Buffer
		log := newLogger(&out, config.Logging{Level: c.level, Format: c.format})
		log.Debug("d")
		log.Info("i")
		log.Warn("w")
		log.Error("e", "interface", "eth0")
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != c.lines {
			t.Errorf("level %s: %d lines, want %d: %q", c.level, len(lines), c.lines, lines)
		}
		last := lines[len(lines)-1]
		var fields map[string]any
		if isJSON := json.Unmarshal([]byte(last), &fields) == nil; isJSON != c.json {
			t.Errorf("format %s: %q", c.format, last)
		}
		if c.json && fields["interface"] != "eth0" || !c.json && !strings.Contains(last, "interface=eth0") {
			t.Errorf("no key in %q", last)
		}
	}
}

func TestIsTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if isTerminal(null) || isTerminal(new(bytes.Buffer)) {
		t.Error("what is no terminal passes for one")
	}
	if master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0); err == nil {
		defer master.Close()
		if !isTerminal(master) {
			t.Error("a terminal is not taken for one")
		}
	}
}

func TestWaiting(t *testing.T) {
	var out bytes.Buffer
	plain := newLogger(&out, config.Logging{Level: "info", Format: "text"})
	var w waiting
	log := w.hold(plain)
	log.Debug("unwanted")
	log.Info("first")
	log.With("interface", "eth0").WithGroup("g").Warn("second", "k", 1)
	if out.Len() > 0 {
		t.Errorf("logged too early: %q", out.String())
	}
	w.end()
	log.Info("third")
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "msg=first") || !strings.Contains(lines[1], "msg=second interface=eth0 g.k=1") || !strings.Contains(lines[2], "msg=third") {
		t.Errorf("logged %q", lines)
	}

	out.Reset()
	new(waiting).hold(newLogger(&out, config.Logging{Level: "debug", Format: "text"})).Info("at once")
	if out.Len() == 0 {
		t.Error("debug waits too")
	}
}
