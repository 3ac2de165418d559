package config

import (
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/sluice-net/sluice/cmd/sluice/internal/nearest"
)

// maxFileSize bounds what is read: a path that names a disk is a mistake.
const maxFileSize = 1 << 20

// Draft is a configuration in the making, which knows where each of its values
// came from. Whoever changes a value by other means than Read says so to From.
type Draft struct {
	*Configuration
	origin map[string]string // by path of the field
}

// New gives a draft that holds the defaults.
func New() *Draft {
	return &Draft{Default(), map[string]string{}}
}

// From notes that the field's value came from origin, such as a flag, and
// forgets where the values below it came from.
func (d *Draft) From(path, origin string) {
	maps.DeleteFunc(d.origin, func(p, _ string) bool {
		return strings.HasPrefix(p, path+".") || strings.HasPrefix(p, path+"[")
	})
	d.origin[path] = origin
}

// ReadFile reads a file, YAML or JSON, over the draft. The error is a Problems.
func (d *Draft) ReadFile(path string) error {
	refuse := func(format string, args ...any) error {
		return Problems{{Origin: path, Text: fmt.Sprintf(format, args...)}}
	}
	info, err := os.Stat(path)
	switch {
	case os.IsNotExist(err):
		return refuse("no such file; `sluice config print-default` prints one to start from")
	case err != nil:
		return refuse("%v", unwrapPath(err))
	case !info.Mode().IsRegular():
		return refuse("not a regular file")
	case info.Size() > maxFileSize:
		return refuse("%d bytes are too many for a configuration; at most %d are read", info.Size(), maxFileSize)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return refuse("%v", unwrapPath(err))
	}
	return d.Read(path, data)
}

// unwrapPath takes off what os puts before an error, since the path is named
// already.
func unwrapPath(err error) error {
	if pe, ok := err.(*os.PathError); ok {
		return pe.Err
	}
	return err
}

// Read reads the content of the file of that name over the draft. A field that
// the content does not name, or names with no value, keeps what it had. The
// error is a Problems.
func (d *Draft) Read(name string, data []byte) error {
	root, err := parse(data)
	if err != nil {
		return Problems{syntaxProblem(name, err)}
	}
	r := reader{file: name, origin: d.origin}
	if root.shape == mapping && r.identify(root) {
		r.structure(root, reflect.ValueOf(d.Configuration).Elem(), "")
	} else if root.shape != mapping {
		r.refuse(root.line, "", "want a configuration (kind: %s), got %v", Kind, root.shape)
	}
	return r.problems.orNil()
}

// reader walks the file's tree and the configuration's structure side by side.
type reader struct {
	file     string
	origin   map[string]string
	problems Problems
}

// at is a place in the file.
func (r *reader) at(line int) string {
	if line == 0 {
		return r.file
	}
	return fmt.Sprintf("%s:%d", r.file, line)
}

func (r *reader) refuse(line int, path, format string, args ...any) {
	r.problems = append(r.problems, Problem{r.at(line), path, fmt.Sprintf(format, args...)})
}

// identify says whether the file is a configuration of ours. If it is another
// thing altogether, that is the one complaint worth making.
func (r *reader) identify(root *node) bool {
	want := []struct{ name, value string }{{"apiVersion", APIVersion}, {"kind", Kind}}
	for _, w := range want {
		i := slices.IndexFunc(root.fields, func(f field) bool { return f.key.name == w.name })
		if i < 0 || root.fields[i].value == nil {
			r.refuse(0, w.name, "missing; want %s: %s", w.name, w.value)
			continue
		}
		if v := root.fields[i].value; v.value != w.value {
			r.refuse(v.line, w.name, "want %s, got %s", w.value, v.show())
		}
	}
	return len(r.problems) == 0
}

// show gives a value as the complaint quotes it, shortened.
func (n *node) show() string {
	switch {
	case n.shape != scalar:
		return n.shape.String()
	case n.value == nil:
		return "nothing"
	}
	s, isText := n.value.(string)
	if !isText {
		return fmt.Sprint(n.value)
	}
	if len(s) > 40 {
		s = s[:40] + "..."
	}
	return fmt.Sprintf("%q", s)
}

// structure reads a mapping into a struct.
func (r *reader) structure(n *node, to reflect.Value, path string) {
	if n.shape != mapping {
		r.refuse(n.line, path, "want fields (%s), got %s", strings.Join(fieldNames(to.Type()), ", "), n.show())
		return
	}
	names := fieldNames(to.Type())
	seen := map[string]int{}
	for _, f := range n.fields {
		name := f.key.name
		if name == "" {
			r.refuse(max(n.line, f.key.line), path, "an empty name of a field")
			continue
		}
		at := join(path, name)
		i := slices.Index(names, name)
		if i < 0 {
			r.refuse(f.key.line, at, "unknown field%s", suggest(name, path, names))
			continue
		}
		if line, twice := seen[name]; twice {
			r.refuse(f.key.line, at, "given twice, first in line %d", line)
			continue
		}
		seen[name] = f.key.line
		if f.value != nil {
			r.origin[at] = r.at(f.key.line)
			r.value(f.value, to.Field(i), at)
		}
	}
}

// value reads what a field holds.
func (r *reader) value(n *node, to reflect.Value, path string) {
	if to.Kind() == reflect.Struct {
		r.structure(n, to, path)
		return
	}
	if to.Kind() == reflect.Slice {
		r.list(n, to, path)
		return
	}
	want := "text"
	switch v := to.Addr().Interface().(type) {
	case *Duration:
		if text, ok := n.value.(string); ok {
			if parsed, err := time.ParseDuration(text); err == nil {
				*v = Duration(parsed)
				return
			}
		}
		want = "a duration such as 250ms or 1h30m"
	case *string:
		if text, ok := n.value.(string); ok {
			*v = text
			return
		}
		if n.shape == scalar {
			want = "text (in quotes, for YAML reads it as something else)"
		}
	case *int:
		if number, ok := n.value.(int); ok {
			*v = number
			return
		}
		want = "a whole number"
	case *bool:
		if truth, ok := n.value.(bool); ok {
			*v = truth
			return
		}
		want = "true or false"
	}
	r.refuse(n.line, path, "want %s, got %s", want, n.show())
}

// list reads a sequence into the list of interfaces, the only list there is.
func (r *reader) list(n *node, to reflect.Value, path string) {
	if n.shape != sequence {
		r.refuse(n.line, path, "want a list such as [{name: eth0}], got %s", n.show())
		return
	}
	list := reflect.MakeSlice(to.Type(), len(n.items), len(n.items))
	for i, item := range n.items {
		at := fmt.Sprintf("%s[%d]", path, i)
		if item == nil {
			r.refuse(n.line, at, "nothing there; want an entry such as {name: eth0}")
			continue
		}
		r.origin[at] = r.at(item.line)
		r.structure(item, list.Index(i), at)
	}
	to.Set(list)
}

// fieldNames gives the names in the file of a struct's fields, in order.
func fieldNames(t reflect.Type) []string {
	names := make([]string, t.NumField())
	for i := range names {
		names[i] = t.Field(i).Tag.Get("yaml")
	}
	return names
}

// suggest names the field that a wrong one was meant to be: a neighbour spelt
// nearly so, or one that is called so elsewhere.
func suggest(name, path string, siblings []string) string {
	if near := nearest.Word(name, siblings); near != "" {
		return fmt.Sprintf("; did you mean %s?", near)
	}
	if at := elsewhere(name, reflect.TypeFor[Configuration](), ""); at != "" {
		return fmt.Sprintf("; did you mean %s?", at)
	}
	if path == "" {
		return "; `sluice config print-default` shows all"
	}
	return fmt.Sprintf("; there are %s", strings.Join(siblings, ", "))
}

// elsewhere finds the path of a field by its own name.
func elsewhere(name string, t reflect.Type, path string) string {
	for f := range t.Fields() {
		at := join(path, f.Tag.Get("yaml"))
		if strings.EqualFold(f.Tag.Get("yaml"), name) {
			return at
		}
		below := f.Type
		if below.Kind() == reflect.Slice {
			below, at = below.Elem(), at+"[]"
		}
		if below.Kind() == reflect.Struct {
			if found := elsewhere(name, below, at); found != "" {
				return found
			}
		}
	}
	return ""
}

// join makes a path.
func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
