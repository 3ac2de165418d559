package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain lets the test's own binary be the daemon, in tests that need a
// process (see process_test.go).
func TestMain(m *testing.M) {
	if os.Getenv(processVariable) != "" {
		os.Exit(processMain())
	}
	os.Exit(m.Run())
}

// command runs one command line in this process.
func command(args ...string) (status int, stdout, stderr string) {
	var out, err bytes.Buffer
	status = execute(args, &out, &err)
	return status, out.String(), err.String()
}

// TestRefusals has for each command line that is refused the exit status and the
// one line on standard error. None of them gets as far as the interfaces of the
// machine.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bad := file("bad.yaml", "apiVersion: sluice.dev/v1alpha1\nkind: SluiceConfiguration\nwokers: 2\n")
	mode := file("mode.yaml", "apiVersion: sluice.dev/v1alpha1\nkind: SluiceConfiguration\nmode: back\n")
	for _, c := range []struct {
		args   string
		status int
		line   string
	}{
		{"rnu", 2, "unknown command \"rnu\"; did you mean `sluice run`?"},
		{"serve", 2, `unknown command "serve"; there are bench, ...`},
		{"--nonsense", 2, "unknown flag --nonsense; `sluice --help` lists the flags"},
		{"help serve", 2, `unknown command "serve"; there are bench, ...`},
		{"help config serve", 2, `unknown command "serve"; there are print-default, validate`},
		{"completion cmd.exe", 2, `unknown command "cmd.exe"; there are bash, fish, powershell, zsh`},
		{"config prnt-default", 2, "unknown command \"prnt-default\"; did you mean `sluice config print-default`?"},
		{"config print-default x", 2, "config print-default takes no arguments, got x; `sluice config print-default --help` tells more"},
		{"config validate", 2, "config validate takes one FILE, got none; `sluice config validate --help` tells more"},
		{"config validate a b", 2, "config validate takes one FILE, got a b; `sluice config validate --help` tells more"},
		{"config validate " + dir + "/none", 1, dir + "/none: no such file; `sluice config print-default` prints one to start from"},
		{"config validate " + bad, 1, bad + ":3: wokers: unknown field; did you mean workers?"},
		{"version x", 2, "version takes no arguments, got x; `sluice version --help` tells more"},
		{"version -o xml", 2, `--output: want text or json, got "xml"`},
		{"cleanup x", 2, "cleanup takes no arguments, got x; `sluice cleanup --help` tells more"},
		{"cleanup --interface eth0", 2, "unknown flag --interface; `sluice cleanup --help` lists the flags"},
		{"cleanup --pin-path bpf", 1, `--pin-path: want an absolute path, got "bpf"`},
		{"run eth0", 2, "run takes no arguments, got eth0; `sluice run --help` tells more"},
		{"run --interfce eth0", 2, "unknown flag --interfce; did you mean --interface?"},
		{"run -i eth0", 2, "unknown shorthand flag: 'i' in -i; `sluice run --help` lists the flags"},
		{"run --mode", 2, "flag needs an argument: --mode; `sluice run --help` lists the flags"},
		{"run --enable-profiling=perhaps", 2, "invalid argument \"perhaps\" for \"--enable-profiling\" flag; `sluice run --help` lists the flags"},
		{"run --mode back", 1, `--mode: want front, named or alone, got "back"`},
		{"run --interface eth0=skb", 1, `--interface: want auto, steered, native, generic or none, got "skb"`},
		{"run --interface lo", 1, "--interface: lo cannot be served: no frames of pods or of the wire pass it"},
		{"run --on-exit leave", 1, `--on-exit: want remove or keep, got "leave"`},
		{"run --metrics-address 10349", 1, `--metrics-address: want an IP address and a port such as 127.0.0.1:10356 or [::1]:10356, got "10349"`},
		{"run --metrics-address 0.0.0.0:1 --enable-profiling", 1, "--enable-profiling: profiles are served on loopback only, and metricsBindAddress is 0.0.0.0:1"},
		{"run --log-level loud", 1, `--log-level: want debug, info, warn or error, got "loud"`},
		{"run --config " + dir + "/none", 1, dir + "/none: no such file; `sluice config print-default` prints one to start from"},
		{"run --config " + bad, 1, bad + ":3: wokers: unknown field; did you mean workers?"},
		{"run --config " + mode, 1, mode + `:3: mode: want front, named or alone, got "back"`},
		{"run --config " + mode + " --mode side", 1, `--mode: want front, named or alone, got "side"`},
	} {
		status, stdout, stderr := command(strings.Fields(c.args)...)
		line, oneLine := strings.CutSuffix(stderr, "\n")
		oneLine = oneLine && !strings.Contains(line, "\n")
		want := "sluice: " + c.line
		if beginning, ok := strings.CutSuffix(want, "..."); ok && strings.HasPrefix(line, beginning) {
			want = line
		}
		if status != c.status || line != want || !oneLine || stdout != "" {
			t.Errorf("sluice %s\n status %d, want %d\n stderr %q\n   want %q\n stdout %q", c.args, status, c.status, stderr, want, stdout)
		}
	}
}

// TestMachineRefuses gets to the questions to the machine, which fail whoever
// asks: the interface has a name that none has.
func TestMachineRefuses(t *testing.T) {
	dir := t.TempDir()
	status, stdout, stderr := command("run", "--interface", "no-such-device", "--manifests", dir, "--metrics-address=", "--healthz-address=")
	if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "sluice: ") {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
	if os.Geteuid() == 0 && !strings.HasPrefix(stderr, `sluice: interface "no-such-device" does not exist here; there is `) {
		t.Errorf("stderr %q", stderr)
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{}, {"help"}, {"--help"}} {
		status, stdout, stderr := command(args...)
		if status != 0 || stderr != "" || !strings.Contains(stdout, "sluice [command]") {
			t.Errorf("sluice %q: status %d, stdout %q, stderr %q", args, status, stdout, stderr)
		}
	}
	for _, args := range [][]string{{"help", "run"}, {"run", "--help"}, {"run", "-h"}} {
		status, stdout, stderr := command(args...)
		if status != 0 || stderr != "" || !strings.Contains(stdout, "--interface") {
			t.Errorf("sluice %q: status %d, stdout %q, stderr %q", args, status, stdout, stderr)
		}
	}
}

// TestEveryCommandIsStrict walks the tree, so that a verb that is added later
// is held to the same.
func TestEveryCommandIsStrict(t *testing.T) {
	var walk func(path []string)
	walk = func(path []string) {
		c, _, err := newRoot().Find(path)
		if err != nil {
			t.Fatal(err)
		}
		args := append(append([]string{}, path...), "--no-such-flag")
		status, stdout, stderr := command(args...)
		if status != 2 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "sluice: unknown flag --no-such-flag") {
			t.Errorf("sluice %s: status %d, stdout %q, stderr %q", strings.Join(args, " "), status, stdout, stderr)
		}
		if c.Short == "" {
			t.Errorf("sluice %s has no description", strings.Join(path, " "))
		}
		for _, sub := range c.Commands() {
			if sub.Name() != "help" {
				walk(append(path[:len(path):len(path)], sub.Name()))
			}
		}
	}
	walk(nil)
}

func TestConfigCommands(t *testing.T) {
	status, stdout, stderr := command("config", "print-default")
	if status != 0 || stderr != "" || !strings.Contains(stdout, "\nkind: SluiceConfiguration\n") {
		t.Fatalf("print-default: status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, stdout, stderr := command("config", "validate", path); status != 0 || stderr != "" || stdout != path+": good\n" {
		t.Errorf("validate: status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
	three := strings.NewReplacer("mode: front", "mode: back", "ringSize: 2048", "ringSize: 2047", "onExit: remove", "onExit: ''").Replace(stdout)
	if err := os.WriteFile(path, []byte(three), 0o600); err != nil {
		t.Fatal(err)
	}
	status, _, stderr = command("config", "validate", path)
	lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	if status != 1 || len(lines) != 3 {
		t.Fatalf("validate: status %d, stderr %q, want three lines", status, stderr)
	}
	for i, want := range []string{": mode: want", ": ringSize: want", ": onExit: want"} {
		if !strings.HasPrefix(lines[i], "sluice: "+path+":") || !strings.Contains(lines[i], want) {
			t.Errorf("line %d is %q, want %q", i, lines[i], want)
		}
	}
}

func TestOneLine(t *testing.T) {
	err := errors.Join(errors.New("first:\n\tbecause\r\n"), errors.New("second"))
	if got, want := oneLine(err), "first:; because; second"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
