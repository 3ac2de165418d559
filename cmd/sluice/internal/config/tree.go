package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v2"
)

// shape is what a node of the file is, whatever the configuration wants it to
// be.
type shape uint8

const (
	scalar shape = iota
	mapping
	sequence
)

// String says it as a complaint does.
func (s shape) String() string {
	return [...]string{"a single value", "a group of fields", "a list"}[s]
}

// node is a value in the file with the line it stands on. The YAML package
// gives no tree with positions, and without lines a complaint about a long
// file is half a complaint; but it calls UnmarshalYAML on every value, and a
// value that is asked to become a channel is refused with its line and tag.
// That is how the tree is made. A null is a nil *node.
type node struct {
	shape  shape
	line   int
	value  any // of a scalar
	fields []field
	items  []*node
}

// field is one entry of a mapping.
type field struct {
	key   key
	value *node
}

// key is the name of a field with its line. The line makes keys that occur
// twice different keys of a map, so that both are seen.
type key struct {
	name string
	line int
}

// complaint takes the line and the tag out of the YAML package's refusal.
var complaint = regexp.MustCompile(`^(?:yaml: )?line (\d+): (?:cannot unmarshal (!!\w+) )?`)

// position asks for the line and the tag of a value.
func position(unmarshal func(any) error) (line int, tag string) {
	var none chan struct{}
	var refusal *yaml.TypeError
	if err := unmarshal(&none); errors.As(err, &refusal) {
		if m := complaint.FindStringSubmatch(refusal.Errors[0]); m != nil {
			line, _ = strconv.Atoi(m[1])
			tag = m[2]
		}
	}
	return line, tag
}

// UnmarshalYAML implements the YAML package's Unmarshaler.
func (k *key) UnmarshalYAML(unmarshal func(any) error) error {
	k.line, _ = position(unmarshal)
	return unmarshal(&k.name)
}

// UnmarshalYAML implements the YAML package's Unmarshaler.
func (n *node) UnmarshalYAML(unmarshal func(any) error) error {
	var tag string
	n.line, tag = position(unmarshal)
	switch tag {
	case "!!map":
		n.shape = mapping
		var fields map[key]*node
		if err := unmarshal(&fields); err != nil {
			return err
		}
		for k, v := range fields {
			n.fields = append(n.fields, field{k, v})
		}
		slices.SortFunc(n.fields, func(a, b field) int {
			if a.key.line != b.key.line {
				return a.key.line - b.key.line
			}
			return strings.Compare(a.key.name, b.key.name)
		})
	case "!!seq":
		n.shape = sequence
		return unmarshal(&n.items)
	default:
		return unmarshal(&n.value)
	}
	return nil
}

// parse reads a file that must hold exactly one document.
func parse(data []byte) (*node, error) {
	d := yaml.NewDecoder(bytes.NewReader(data))
	var root *node
	if err := d.Decode(&root); err != nil && err != io.EOF {
		return nil, err
	}
	if root == nil {
		return nil, errors.New("nothing in it")
	}
	if err := d.Decode(new(*node)); err != io.EOF {
		return nil, errors.New("more than one document in it")
	}
	return root, nil
}

// syntaxProblem turns what the YAML package says about a file into ours. Its
// parser, unlike its scanner, counts lines from 0 and then leaves the 0 out.
func syntaxProblem(file string, err error) Problem {
	text := err.Error()
	var refusal *yaml.TypeError
	if errors.As(err, &refusal) {
		text = refusal.Errors[0]
	}
	line, tag := 0, ""
	if m := complaint.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		tag = m[2]
		text = text[len(m[0]):]
	}
	text = strings.TrimPrefix(text, "yaml: ")
	if tag != "" {
		text = "the name of a field must be a single word"
	}
	if strings.HasPrefix(text, "did not find") {
		line++
	}
	if line > 0 {
		file = fmt.Sprintf("%s:%d", file, line)
	}
	return Problem{Origin: file, Text: text}
}
