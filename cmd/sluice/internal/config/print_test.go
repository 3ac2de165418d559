package config

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write default.yaml anew")

// TestDefaultFileSaysWhatTheTypesSay holds the printed configuration to the
// doc comments and the defaults.
func TestDefaultFileSaysWhatTheTypesSay(t *testing.T) {
	want := renderDefaults(t)
	if *update {
		if err := os.WriteFile("default.yaml", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(want), string(DefaultFile)); diff != "" {
		t.Errorf("default.yaml is stale; go test ./cmd/sluice/internal/config -run %s -update\n%s", t.Name(), diff)
	}
}

func TestDefaultFileRoundTrip(t *testing.T) {
	d := New()
	*d.Configuration = Configuration{} // so that what the file lacks is seen
	if err := d.Read("default.yaml", DefaultFile); err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Interfaces = []Interface{}
	if diff := cmp.Diff(want, d.Configuration); diff != "" {
		t.Error(diff)
	}
	if err := d.Check(); err != nil {
		t.Error(err)
	}
}

// renderDefaults is the twin of the embedded file.
func renderDefaults(t *testing.T) []byte {
	t.Helper()
	r := renderer{t: t, structs: map[string]*ast.StructType{}}
	file, err := parser.ParseFile(token.NewFileSet(), "types.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok {
			if s, ok := spec.Type.(*ast.StructType); ok {
				r.structs[spec.Name.Name] = s
			}
		}
		return true
	})
	r.out.WriteString("# The configuration of sluice with every field at its default.\n# Durations are written 250ms, 5s, 1h30m.\n")
	r.structure(reflect.ValueOf(*Default()), "")
	return r.out.Bytes()
}

type renderer struct {
	t       *testing.T
	structs map[string]*ast.StructType
	out     bytes.Buffer
}

func (r *renderer) structure(v reflect.Value, indent string) {
	for i, f := range r.structs[v.Type().Name()].Fields.List {
		goName := f.Names[0].Name
		name := v.Type().Field(i).Tag.Get("yaml")
		if !strings.HasPrefix(f.Doc.Text(), goName+" ") {
			r.t.Errorf("the comment of field %s.%s does not begin with its name", v.Type().Name(), goName)
		}
		if indent == "" {
			r.out.WriteString("\n")
		}
		doc := strings.Replace(f.Doc.Text(), goName, name, 1)
		for line := range strings.Lines(doc) {
			r.out.WriteString(indent + "# " + line)
		}
		value := v.Field(i)
		switch value.Kind() {
		case reflect.Struct:
			fmt.Fprintf(&r.out, "%s%s:\n", indent, name)
			r.structure(value, indent+"  ")
		case reflect.Slice:
			fmt.Fprintf(&r.out, "%s%s: []\n", indent, name)
			r.example(value.Type().Elem())
		default:
			text := fmt.Sprint(value.Interface())
			if text == "" {
				text = strconv.Quote(text)
			}
			fmt.Fprintf(&r.out, "%s%s: %s\n", indent, name, text)
		}
	}
}

// example shows one entry of the list of interfaces, as a comment.
func (r *renderer) example(t reflect.Type) {
	values := map[string]string{"name": "eth0", "driver": `""`, "role": `""`, "kind": defaultKind}
	bullet := "- "
	for i, f := range r.structs[t.Name()].Fields.List {
		name := t.Field(i).Tag.Get("yaml")
		for line := range strings.Lines(strings.Replace(f.Doc.Text(), f.Names[0].Name, name, 1)) {
			r.out.WriteString("#   # " + line)
		}
		fmt.Fprintf(&r.out, "# %s%s: %s\n", bullet, name, values[name])
		bullet = "  "
	}
}
