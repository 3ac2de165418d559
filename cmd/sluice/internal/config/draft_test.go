package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const head = "apiVersion: sluice.dev/v1alpha1\nkind: SluiceConfiguration\n"

// manyInterfaces gives the items of a list.
func manyInterfaces(n int) string {
	items := make([]string, n)
	for i := range items {
		items[i] = fmt.Sprintf("{name: eth%d}", i)
	}
	return strings.Join(items, ", ")
}

// TestBadFiles reads and checks files that must be refused, each with the one
// line that a user sees. Lines count from the two of head.
func TestBadFiles(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		// Not a configuration at all.
		{"empty", "", "f.yaml: nothing in it"},
		{"comment only", "# sluice\n", "f.yaml: nothing in it"},
		{"null", "null\n", "f.yaml: nothing in it"},
		{"word", "sluice\n", `f.yaml:1: want a configuration (kind: SluiceConfiguration), got a single value`},
		{"list", "- mode: front\n", "f.yaml:1: want a configuration (kind: SluiceConfiguration), got a list"},
		{"binary", "\x7fELF\x02\x01\x01\x00\x00", "f.yaml: control characters are not allowed"},
		{"not UTF-8", head + "mode: \xff\xfe\n", "f.yaml: invalid leading UTF-8 octet"},
		{"unclosed quote", head + "mode: \"front\n", "f.yaml:4: found unexpected end of stream"},
		{"tab indentation", head + "logging:\n\tlevel: info\n", "f.yaml:4: found character that cannot start any token"},
		{"unclosed bracket", head + "interfaces: [{name: eth0}\n", "f.yaml:4: did not find expected ',' or ']'"},
		{"bad indentation", head + "logging:\n  level: info\n format: text\n", "f.yaml:5: did not find expected key"},
		{"unknown anchor", head + "mode: *front\n", "f.yaml: unknown anchor 'front' referenced"},
		{"anchor holds itself", head + "logging: &a\n  level: *a\n", "f.yaml: anchor 'a' value contains itself"},
		{"list as name", head + "? [a, b]\n: c\n", "f.yaml:3: the name of a field must be a single word"},
		{"no name of a field", head + ": front\n", "f.yaml:3: did not find expected key"},
		{"empty name of a field", head + "'': front\n", "f.yaml:3: an empty name of a field"},
		{"null for a name", head + "logging:\n  ~: front\n", "f.yaml:4: logging: an empty name of a field"},
		{"two documents", head + "---\n" + head, "f.yaml: more than one document in it"},
		{"broken JSON", `{"apiVersion": "sluice.dev/v1alpha1", "kind": "SluiceConfiguration",, }`, "f.yaml:1: did not find expected node content"},

		// Another kind of thing.
		{"no apiVersion", "kind: SluiceConfiguration\n", "f.yaml: apiVersion: missing; want apiVersion: sluice.dev/v1alpha1"},
		{"no kind", "apiVersion: sluice.dev/v1alpha1\n", "f.yaml: kind: missing; want kind: SluiceConfiguration"},
		{"empty kind", "apiVersion: sluice.dev/v1alpha1\nkind:\n", "f.yaml: kind: missing; want kind: SluiceConfiguration"},
		{"other version", "apiVersion: sluice.dev/v9\nkind: SluiceConfiguration\n", `f.yaml:1: apiVersion: want sluice.dev/v1alpha1, got "sluice.dev/v9"`},
		{"kube-proxy's", "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n",
			`f.yaml:1: apiVersion: want sluice.dev/v1alpha1, got "kubeproxy.config.k8s.io/v1alpha1" (and 1 more: ` + "`sluice config validate` lists them all)"},

		// Names of fields.
		{"misspelt", head + "manifest: /etc/x\n", "f.yaml:3: manifest: unknown field; did you mean manifests?"},
		{"case", head + "Mode: front\n", "f.yaml:3: Mode: unknown field; did you mean mode?"},
		{"far off", head + "colour: red\n", "f.yaml:3: colour: unknown field; `sluice config print-default` shows all"},
		{"wrong level", head + "capacity: 5\n", "f.yaml:3: capacity: unknown field; did you mean flowTable.capacity?"},
		{"nested", head + "heartbeat:\n  staleAftr: 1s\n", "f.yaml:4: heartbeat.staleAftr: unknown field; did you mean staleAfter?"},
		{"nested, far off", head + "flowTable:\n  max: 5\n", "f.yaml:4: flowTable.max: unknown field; there are capacity, maxPerClient, resetGoneBackends"},
		{"in a list", head + "interfaces:\n- name: eth0\n- name: eth1\n  zeroCopy: off\n", "f.yaml:6: interfaces[1].zeroCopy: unknown field; there are name, driver, role, kind"},
		{"with fields below", head + "conntrak:\n  udpTimeout: 1s\n", "f.yaml:3: conntrak: unknown field; did you mean conntrack?"},
		{"twice", head + "mode: front\nworkers: 1\nmode: alone\n", "f.yaml:5: mode: given twice, first in line 3"},
		{"several", head + "a: 1\nb: 2\n", "f.yaml:3: a: unknown field; `sluice config print-default` shows all (and 1 more: `sluice config validate` lists them all)"},

		// Types.
		{"number for text", head + "hostnameOverride: 7\n", "f.yaml:3: hostnameOverride: want text (in quotes, for YAML reads it as something else), got 7"},
		{"YAML's yes", head + "mode: yes\n", "f.yaml:3: mode: want text (in quotes, for YAML reads it as something else), got true"},
		{"text for number", head + "workers: two\n", `f.yaml:3: workers: want a whole number, got "two"`},
		{"fraction", head + "workers: 1.5\n", "f.yaml:3: workers: want a whole number, got 1.5"},
		{"too large a number", head + "frames: 99999999999999999999\n", "f.yaml:3: frames: want a whole number, got 1e+20"},
		{"text for bool", head + "enableProfiling: maybe\n", `f.yaml:3: enableProfiling: want true or false, got "maybe"`},
		{"number for duration", head + "busySpin: 50\n", "f.yaml:3: busySpin: want a duration such as 250ms or 1h30m, got 50"},
		{"no such unit", head + "busySpin: 3 days\n", `f.yaml:3: busySpin: want a duration such as 250ms or 1h30m, got "3 days"`},
		{"list for text", head + "mode: [front]\n", "f.yaml:3: mode: want text, got a list"},
		{"text for fields", head + "logging: debug\n", `f.yaml:3: logging: want fields (level, format), got "debug"`},
		{"text for list", head + "interfaces: eth0\n", `f.yaml:3: interfaces: want a list such as [{name: eth0}], got "eth0"`},
		{"too many interfaces", head + "interfaces: [" + manyInterfaces(256) + "]\n", "f.yaml:3: interfaces: want at most 255, got 256"},
		{"text in list", head + "interfaces: [eth0]\n", `f.yaml:3: interfaces[0]: want fields (name, driver, role, kind), got "eth0"`},
		{"nothing in list", head + "interfaces:\n-\n", "f.yaml:4: interfaces[0]: nothing there; want an entry such as {name: eth0}"},
		{"long text", head + "workers: " + strings.Repeat("x", 400) + "\n", `f.yaml:3: workers: want a whole number, got "` + strings.Repeat("x", 40) + `..."`},

		// Values.
		{"mode", head + "mode: nftables\n", `f.yaml:3: mode: want front, named or alone, got "nftables"`},
		{"selection", head + "selection: roundrobin\n", `f.yaml:3: selection: want consistent, random or roundRobin, got "roundrobin"`},
		{"kind", head + "interfaces:\n- name: eth0\n  kind: skb\n", `f.yaml:5: interfaces[0].kind: want auto, steered, native, generic or none, got "skb"`},
		{"no name", head + "interfaces:\n- kind: native\n", "f.yaml:4: interfaces[0].name: missing; want the name of a network device, a pattern of names, a driver or a role"},
		{"bad pattern", head + "interfaces: [{name: 'eth[0-'}]\n", `f.yaml:3: interfaces[0].name: "eth[0-" cannot be a pattern of names; want one such as veth*, eth[0-3] or cali?*`},
		{"bad role", head + "interfaces: [{role: pod}]\n", `f.yaml:3: interfaces[0].role: want pods, uplinks or tunnels, got "pod"`},
		{"same role", head + "interfaces:\n- role: pods\n- {role: pods, kind: native}\n", "f.yaml:5: interfaces[1].name: this is chosen twice"},
		{"long name", head + "interfaces: [{name: sixteencharacter}]\n", `f.yaml:3: interfaces[0].name: want at most 15 characters, got "sixteencharacter"`},
		{"slash in name", head + "interfaces: [{name: a/b}]\n", `f.yaml:3: interfaces[0].name: "a/b" cannot be the name of a network device`},
		{"same interface", head + "interfaces:\n- name: eth0\n- name: eth0\n", "f.yaml:5: interfaces[1].name: eth0 is named twice"},
		{"loopback", head + "interfaces: [{name: lo}]\n", "f.yaml:3: interfaces[0].name: lo cannot be served: no frames of pods or of the wire pass it"},
		{"return port", head + "interfaces: [{name: sluice-in}]\n", "f.yaml:3: interfaces[0].name: sluice-in belongs to the return port, which Sluice makes and serves by itself"},
		{"relative folder", head + "manifests: ./here\n", `f.yaml:3: manifests: want an absolute path, got "./here"`},
		{"relative pin path", head + "pinPath: bpf\n", `f.yaml:3: pinPath: want an absolute path, got "bpf"`},
		{"no pin path", head + "pinPath: ''\n", `f.yaml:3: pinPath: want an absolute path, got ""`},
		{"no run dir", head + "runDir: ''\n", `f.yaml:3: runDir: want an absolute path, got ""`},
		{"negative workers", head + "workers: -1\n", "f.yaml:3: workers: want 0 to 64, got -1"},
		{"few frames", head + "frames: 3\n", "f.yaml:3: frames: want 256 to 16777216, got 3"},
		{"frame size", head + "frameSize: 3000\n", "f.yaml:3: frameSize: want 2048 or 4096, got 3000"},
		{"ring size", head + "ringSize: 1000\n", "f.yaml:3: ringSize: want a power of two from 64 to 32768, got 1000"},
		{"capacity", head + "flowTable: {capacity: 0}\n", "f.yaml:3: flowTable.capacity: want 1 to 16777216, got 0"},
		{"timeout", head + "conntrack:\n  udpTimeout: 0s\n", "f.yaml:4: conntrack.udpTimeout: want 1s to 480h, got 0s"},
		{"eternity", head + "conntrack:\n  tcpEstablishedTimeout: 9999h\n", "f.yaml:4: conntrack.tcpEstablishedTimeout: want 1s to 480h, got 9999h"},
		{"stale too soon", head + "heartbeat:\n  staleAfter: 10ms\n", "f.yaml:4: heartbeat.staleAfter: want 100ms to 1m, got 10ms"},
		{"hold below stale", head + "heartbeat:\n  staleAfter: 2s\n  holdKnown: 1s\n", "f.yaml:5: heartbeat.holdKnown: want at least heartbeat.staleAfter (2s), got 1s"},
		{"worker mode", head + "workerMode: lazy\n", `f.yaml:3: workerMode: want adaptive, busy or interrupt, got "lazy"`},
		{"worker cpus", head + "workerCPUs: 3-1\n", `f.yaml:3: workerCPUs: want processors such as 2,4-6, each below 1024, got "3-1"`},
		{"spin", head + "busySpin: 2s\n", "f.yaml:3: busySpin: want 0s to 1s, got 2s"},
		{"fragment wait", head + "fragmentWait: 6s\n", "f.yaml:3: fragmentWait: want 0s to 5s, got 6s"},
		{"fragment wait below nothing", head + "fragmentWait: -1ms\n", "f.yaml:3: fragmentWait: want 0s to 5s, got -1ms"},
		{"on exit", head + "onExit: leave\n", `f.yaml:3: onExit: want remove or keep, got "leave"`},
		{"return port's name", head + "returnPort: twelveletter\n", `f.yaml:3: returnPort: want at most 11 characters, got "twelveletter"`},
		{"address without port", head + "metricsBindAddress: 127.0.0.1\n", `f.yaml:3: metricsBindAddress: want an IP address and a port such as 127.0.0.1:10356 or [::1]:10356, got "127.0.0.1"`},
		{"address by name", head + "healthzBindAddress: localhost:80\n", `f.yaml:3: healthzBindAddress: want an IP address and a port such as 127.0.0.1:10356 or [::1]:10356, got "localhost:80"`},
		{"port too large", head + "healthzBindAddress: 127.0.0.1:70000\n", `f.yaml:3: healthzBindAddress: want an IP address and a port such as 127.0.0.1:10356 or [::1]:10356, got "127.0.0.1:70000"`},
		{"same address", head + "metricsBindAddress: 127.0.0.1:10356\n", "f.yaml:3: metricsBindAddress: 127.0.0.1:10356 is the healthzBindAddress too; want two addresses"},
		{"profiles for all", head + "metricsBindAddress: 0.0.0.0:10349\nenableProfiling: true\n", "f.yaml:4: enableProfiling: profiles are served on loopback only, and metricsBindAddress is 0.0.0.0:10349"},
		{"profiles nowhere", head + "metricsBindAddress: ''\nenableProfiling: true\n", "f.yaml:4: enableProfiling: profiles are served at metricsBindAddress, which is empty"},
		{"log level", head + "logging:\n  level: loud\n", `f.yaml:4: logging.level: want debug, info, warn or error, got "loud"`},
		{"log format", head + "logging: {format: xml}\n", `f.yaml:3: logging.format: want auto, text or json, got "xml"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := New()
			err := d.Read("f.yaml", []byte(c.file))
			if err == nil {
				err = d.Check()
			}
			if err == nil {
				t.Fatalf("accepted; want %q", c.want)
			}
			if got := err.Error(); got != c.want {
				t.Errorf("\n got %q\nwant %q", got, c.want)
			}
			var problems Problems
			if !errors.As(err, &problems) {
				t.Errorf("the error is a %T, want Problems", err)
			}
		})
	}
}

// TestGoodFiles reads files that must be taken as they are.
func TestGoodFiles(t *testing.T) {
	for _, c := range []struct {
		name, file string
		change     func(*Configuration)
	}{
		{"nothing but the head", head, func(*Configuration) {}},
		{"a field without a value", head + "mode:\nlogging:\n  level:\ninterfaces:\n", func(*Configuration) {}},
		{"a comment and a document mark", "---\n# mine\n" + head, func(*Configuration) {}},
		{"JSON", "{\n\t\"apiVersion\": \"sluice.dev/v1alpha1\",\n\t\"kind\": \"SluiceConfiguration\",\n\t\"interfaces\": [{\"name\": \"eth0\", \"kind\": \"generic\"}]\n}\n",
			func(c *Configuration) { c.Interfaces = []Interface{{Name: "eth0", Kind: "generic"}} }},
		{"an interface without a mode", head + "interfaces:\n- name: eth0\n",
			func(c *Configuration) { c.Interfaces = []Interface{{Name: "eth0", Kind: "auto"}} }},
		{"one of a group's fields", head + "conntrack:\n  udpTimeout: 1m30s\n",
			func(c *Configuration) { c.Conntrack.UDPTimeout = Duration(90 * time.Second) }},
		{"an anchor", head + "conntrack:\n  udpTimeout: &t 7s\n  udpStreamTimeout: *t\n",
			func(c *Configuration) {
				c.Conntrack.UDPTimeout, c.Conntrack.UDPStreamTimeout = Duration(7*time.Second), Duration(7*time.Second)
			}},
		{"switches", head + "enableProfiling: true\nbindAddressHardFail: true\nreplaceForeignXDP: true\ndebug: {frameOwnership: true}\n",
			func(c *Configuration) {
				c.EnableProfiling, c.BindAddressHardFail, c.ReplaceForeignXDP, c.Debug.FrameOwnership = true, true, true, true
			}},
		{"no listeners", head + "healthzBindAddress: \"\"\nmetricsBindAddress: \"\"\n",
			func(c *Configuration) { c.HealthzBindAddress, c.MetricsBindAddress = "", "" }},
		{"both listeners on any port", head + "healthzBindAddress: 127.0.0.1:0\nmetricsBindAddress: 127.0.0.1:0\n",
			func(c *Configuration) { c.HealthzBindAddress, c.MetricsBindAddress = "127.0.0.1:0", "127.0.0.1:0" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, want := New(), Default()
			c.change(want)
			if err := d.Read("f.yaml", []byte(c.file)); err != nil {
				t.Fatal(err)
			}
			if err := d.Check(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, d.Configuration); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDefaultIsGood(t *testing.T) {
	d := New()
	if err := d.Check(); err != nil {
		t.Error(err)
	}
	if w := d.Warnings(); w != nil {
		t.Errorf("warnings %q", w)
	}
}

// TestOrigin checks that a complaint about a flag's value names the flag, and
// not the line whose value it replaced.
func TestOrigin(t *testing.T) {
	d := New()
	file := head + "mode: nonsense\ninterfaces:\n- name: eth0\n  kind: nonsense\nlogging:\n  level: debug\n"
	if err := d.Read("f.yaml", []byte(file)); err != nil {
		t.Fatal(err)
	}
	d.Mode = "back"
	d.From("mode", "--mode")
	d.Interfaces = []Interface{{Name: "a b"}}
	d.From("interfaces", "--interface")
	d.Logging.Format = "xml"
	d.From("logging.format", "--log-format")
	var problems Problems
	if err := d.Check(); !errors.As(err, &problems) {
		t.Fatalf("Check() = %v", err)
	}
	var got []string
	for _, p := range problems {
		got = append(got, p.String())
	}
	want := []string{
		`--mode: want front, named or alone, got "back"`,
		`--interface: "a b" cannot be the name of a network device`,
		`--log-format: want auto, text or json, got "xml"`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, append([]byte(head), make([]byte, size)...), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct{ path, want string }{
		{filepath.Join(dir, "none.yaml"), ": no such file; `sluice config print-default` prints one to start from"},
		{dir, ": not a regular file"},
		{"/dev/zero", ": not a regular file"},
		{write("huge.yaml", maxFileSize), fmt.Sprintf(": %d bytes are too many for a configuration; at most %d are read", maxFileSize+len(head), maxFileSize)},
		{write("good.yaml", 0) + "/below", ": not a directory"},
	} {
		if err := New().ReadFile(c.path); err == nil || err.Error() != c.path+c.want {
			t.Errorf("ReadFile(%q) = %v, want %q", c.path, err, c.want)
		}
	}
	if err := New().ReadFile(filepath.Join(dir, "good.yaml")); err != nil {
		t.Error(err)
	}
}

func TestWarnings(t *testing.T) {
	d := New()
	d.HealthzBindAddress, d.MetricsBindAddress = "[::1]:1", "0.0.0.0:2"
	want := []string{"metricsBindAddress 0.0.0.0:2 is not loopback: whoever reaches this node's address can read it"}
	if diff := cmp.Diff(want, d.Warnings()); diff != "" {
		t.Error(diff)
	}
}

func TestPins(t *testing.T) {
	for _, c := range []struct{ onExit, path, want string }{
		{"remove", "/sys/fs/bpf/a", ""},
		{"keep", "/sys/fs/bpf/a", "/sys/fs/bpf/a"},
	} {
		d := New()
		d.OnExit, d.PinPath = c.onExit, c.path
		if got := d.Pins(); got != c.want {
			t.Errorf("Pins() with onExit %q, pinPath %q = %q, want %q", c.onExit, c.path, got, c.want)
		}
	}
}

func TestDurationString(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 50 * time.Microsecond: "50us", 250 * time.Millisecond: "250ms", 10 * time.Second: "10s", time.Minute: "1m",
		90 * time.Second: "1m30s", time.Hour: "1h", 90 * time.Minute: "1h30m", time.Hour + time.Second: "1h0m1s",
		20 * time.Hour: "20h", 480 * time.Hour: "480h", 10 * time.Minute: "10m",
	} {
		if got := Duration(d).String(); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
		if back, err := time.ParseDuration(want); err != nil || back != d {
			t.Errorf("%q reads as %v, %v", want, back, err)
		}
	}
}

// FuzzRead checks that no file makes a panic, or a complaint of two lines or
// without the file's name, and that what is read can be checked.
func FuzzRead(f *testing.F) {
	f.Add([]byte(head))
	f.Add(DefaultFile)
	f.Add([]byte(head + "interfaces: [{name: eth0}, ~]\nlogging: {level: debug}\n"))
	f.Add([]byte(head + "<<: {mode: front}\n? [a]\n: b\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		d := New()
		err := d.Read("f.yaml", data)
		if err == nil {
			err = d.Check()
		} else if !strings.HasPrefix(err.Error(), "f.yaml:") {
			t.Errorf("complaint %q does not name the file", err)
		}
		var problems Problems
		if errors.As(err, &problems) {
			for _, p := range problems {
				if strings.ContainsAny(p.String(), "\n\r") {
					t.Errorf("complaint %q has two lines", p)
				}
			}
		}
	})
}
