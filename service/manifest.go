package service

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
)

// object is one object of a manifest, with the API server's defaults filled in: one of these.
type object struct {
	service  *corev1.Service
	slice    *discoveryv1.EndpointSlice
	pod      *corev1.Pod
	policy   *networkingv1.NetworkPolicy
	document int
	line     int
}

func (o *object) name() string {
	switch {
	case o.service != nil:
		return objectName(o.service)
	case o.slice != nil:
		return sliceName(o.slice)
	case o.pod != nil:
		return "Pod " + o.pod.Namespace + "/" + o.pod.Name
	}
	return "NetworkPolicy " + o.policy.Namespace + "/" + o.policy.Name
}

// document is one document of a manifest as JSON. Number counts from 1, line is where it starts.
type document struct {
	number, line int
	json         []byte
}

// readManifest decodes all objects of a file, or says what is wrong with the first bad thing in it. It is as strict as the API
// server in its strict mode: unknown and duplicate fields, wrong types and missing fields are refused. The name decides
// between JSON and YAML.
func readManifest(name string, data []byte) (objects []object, problem *Problem) {
	// The YAML parser is other people's code, fed with a file that may hold anything. If a file makes it panic, that is a bad
	// file, and no reason to end a process that forwards by good ones.
	defer func() {
		if r := recover(); r != nil {
			objects, problem = nil, &Problem{Text: fmt.Sprintf("the parser gave up: %v", r)}
		}
		if problem != nil {
			problem.Object, problem.Field, problem.Text = clip(problem.Object), clip(problem.Field), clip(problem.Text)
		}
	}()
	if len(data) == 0 {
		// Truncated and not written yet, most likely. Were it a good file, half a second of it would delete every Service.
		return nil, &Problem{Text: "the file is empty: remove it to remove its objects"}
	}
	if at := invalidUTF8(data); at >= 0 {
		return nil, &Problem{Line: lineAt(data, at), Text: "not UTF-8"}
	}
	documents := yamlDocuments
	if strings.EqualFold(filepath.Ext(name), ".json") {
		documents = jsonDocuments
	}
	docs, problem := documents(data)
	if problem != nil {
		return nil, problem
	}
	for _, d := range docs {
		more, problem := decodeDocument(d.json)
		if problem != nil {
			problem.Document, problem.Line = d.number, d.line
			return nil, problem
		}
		for i := range more {
			more[i].document, more[i].line = d.number, d.line
		}
		objects = append(objects, more...)
	}
	return objects, nil
}

// jsonDocuments splits a file of JSON values, one after the other.
func jsonDocuments(data []byte) ([]document, *Problem) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	var docs []document
	dec := json.NewDecoder(bytes.NewReader(data))
	line, counted := 1, 0
	for {
		start := int(dec.InputOffset())
		for start < len(data) && bytes.IndexByte([]byte(" \t\r\n"), data[start]) >= 0 {
			start++
		}
		line += bytes.Count(data[counted:start], []byte("\n"))
		counted = start
		var raw json.RawMessage
		err := dec.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			at := len(data)
			var syntax *json.SyntaxError
			if errors.As(err, &syntax) {
				at = min(int(syntax.Offset), len(data))
			}
			return nil, &Problem{Document: len(docs) + 1, Line: lineAt(data, at), Text: err.Error()}
		}
		docs = append(docs, document{number: len(docs) + 1, line: line, json: raw})
	}
}

// yamlDocuments reads YAML and turns each document into JSON. sigs.k8s.io/yaml is not used, because it silently ignores
// everything after the first document, be that a document or a typing error.
func yamlDocuments(data []byte) ([]document, *Problem) {
	starts := documentLines(data)
	lineOf := func(number int) int {
		if number <= len(starts) {
			return starts[number-1]
		}
		return 0
	}
	var docs []document
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.SetStrict(true) // a key twice in a map is an error
	for number := 1; ; number++ {
		var value any
		err := dec.Decode(&value)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			line, text := splitYAMLError(err)
			if line == 0 {
				line = lineOf(number)
			}
			return nil, &Problem{Document: number, Line: line, Text: text}
		}
		if value == nil {
			continue // nothing but comments, as after a last "---"
		}
		if value, err = plainKeys(value); err == nil {
			var raw []byte
			if raw, err = json.Marshal(value); err == nil {
				docs = append(docs, document{number: number, line: lineOf(number), json: raw})
				continue
			}
		}
		return nil, &Problem{Document: number, Line: lineOf(number), Text: err.Error()}
	}
}

// documentLines returns the line of the start of each YAML document. Three dashes at the start of a line begin a document
// wherever they stand, but for the first one, which may begin without.
func documentLines(data []byte) []int {
	var starts []int
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	for number := 1; len(data) > 0; number++ {
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		data = rest
		if after, ok := bytes.CutPrefix(line, []byte("---")); ok && (len(after) == 0 || strings.IndexByte(" \t\r", after[0]) >= 0) {
			starts = append(starts, number)
			continue
		}
		content := bytes.TrimSpace(line)
		if len(starts) == 0 && len(content) > 0 && content[0] != '#' && line[0] != '%' {
			starts = append(starts, number)
		}
	}
	return starts
}

// splitYAMLError takes the line out of an error of the YAML package, and makes it one line.
func splitYAMLError(err error) (line int, text string) {
	text = strings.TrimPrefix(err.Error(), "yaml: ")
	text = strings.TrimPrefix(text, "unmarshal errors:\n")
	text, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if number, after, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				return n, after
			}
		}
	}
	return 0, text
}

// plainKeys makes the maps of a YAML value maps of strings. Other keys are refused and not converted: "yes: 1" would become
// "true: 1".
func plainKeys(value any) (any, error) {
	switch v := value.(type) {
	case map[any]any:
		m := make(map[string]any, len(v))
		for key, item := range v {
			name, ok := key.(string)
			if !ok {
				return nil, fmt.Errorf("the key %v is not a string: put it in quotes (y, yes, on, n, no and off are booleans in YAML 1.1)", key)
			}
			item, err := plainKeys(item)
			if err != nil {
				return nil, err
			}
			m[name] = item
		}
		return m, nil
	case []any:
		for i := range v {
			item, err := plainKeys(v[i])
			if err != nil {
				return nil, err
			}
			v[i] = item
		}
	}
	return value, nil
}

// header is what every object has. It is read first, and leniently, to know what the rest must be.
type header struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
}

// list is a v1 List with its items still undecoded.
type list struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []json.RawMessage `json:"items"`
}

// decodeDocument decodes an object or a List of them.
func decodeDocument(data []byte) ([]object, *Problem) {
	head, problem := decodeHeader(data)
	if problem != nil {
		return nil, problem
	}
	if head.APIVersion != "v1" || head.Kind != "List" {
		o, problem := decodeObject(head, data)
		if problem != nil {
			return nil, problem
		}
		return []object{o}, nil
	}
	var l list
	if problem := decodeStrict(data, &l); problem != nil {
		problem.Object = "List"
		return nil, problem
	}
	objects := make([]object, 0, len(l.Items))
	for i, item := range l.Items {
		head, problem := decodeHeader(item)
		if problem == nil {
			var o object
			if o, problem = decodeObject(head, item); problem == nil {
				objects = append(objects, o)
				continue
			}
		}
		problem.Field = strings.TrimSuffix(fmt.Sprintf("items[%d].%s", i, problem.Field), ".")
		return nil, problem
	}
	return objects, nil
}

func decodeHeader(data []byte) (*header, *Problem) {
	if trimmed := bytes.TrimSpace(data); len(trimmed) == 0 || trimmed[0] != '{' {
		return nil, &Problem{Text: "not an object: apiVersion, kind, metadata and spec are wanted"}
	}
	var h header
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &h); err != nil {
		return nil, jsonProblem(err)
	}
	return &h, nil
}

func decodeObject(head *header, data []byte) (object, *Problem) {
	namespace := head.Metadata.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	var (
		o       object
		problem *Problem
	)
	switch {
	case head.APIVersion == "v1" && head.Kind == "Service":
		o.service = new(corev1.Service)
		if problem = decodeStrict(data, o.service); problem == nil {
			o.service.Namespace = namespace
			problem = validateService(o.service)
			defaultService(o.service)
		}
	case head.APIVersion == discoveryv1.SchemeGroupVersion.String() && head.Kind == "EndpointSlice":
		o.slice = new(discoveryv1.EndpointSlice)
		if problem = decodeStrict(data, o.slice); problem == nil {
			o.slice.Namespace = namespace
			problem = validateSlice(o.slice)
			defaultSlice(o.slice)
		}
	case head.APIVersion == "v1" && head.Kind == "Pod":
		o.pod = new(corev1.Pod)
		if problem = decodeStrict(data, o.pod); problem == nil {
			o.pod.Namespace = namespace
			problem = validatePod(o.pod)
		}
	case head.APIVersion == networkingv1.SchemeGroupVersion.String() && head.Kind == "NetworkPolicy":
		o.policy = new(networkingv1.NetworkPolicy)
		if problem = decodeStrict(data, o.policy); problem == nil {
			o.policy.Namespace = namespace
			problem = validatePolicy(o.policy)
		}
	case head.Kind == "":
		problem = &Problem{Field: "kind", Text: "missing"}
	case head.APIVersion == "":
		problem = &Problem{Field: "apiVersion", Text: "missing"}
	default:
		problem = &Problem{Field: "kind", Text: fmt.Sprintf("%q of %q is none of Service of v1, EndpointSlice of discovery.k8s.io/v1, Pod of v1, NetworkPolicy of networking.k8s.io/v1, List of v1", head.Kind, head.APIVersion)}
	}
	if problem != nil {
		problem.Object = head.Kind
		if head.Metadata.Name != "" {
			problem.Object = strings.TrimSpace(fmt.Sprintf("%s %s/%s", head.Kind, namespace, head.Metadata.Name))
		}
		return object{}, problem
	}
	return o, nil
}

func decodeStrict(data []byte, into any) *Problem {
	strict, err := kjson.UnmarshalStrict(data, into)
	if err == nil && len(strict) > 0 {
		err = strict[0]
	}
	if err != nil {
		return jsonProblem(err)
	}
	return nil
}

// jsonProblem takes the field out of a decoding error.
func jsonProblem(err error) *Problem {
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return &Problem{Field: wrongType.Field, Text: fmt.Sprintf("%s where %s is wanted", wrongType.Value, jsonWord(wrongType.Type))}
	}
	var field kjson.FieldError
	if errors.As(err, &field) {
		what, _, _ := strings.Cut(err.Error(), ` "`) // "unknown field" or "duplicate field"
		return &Problem{Field: field.FieldPath(), Text: what}
	}
	return &Problem{Text: strings.TrimPrefix(err.Error(), "json: ")}
}

func jsonWord(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return jsonWord(t.Elem())
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	}
	return "an " + t.String() // int32, int64
}

// clip keeps what a file says of itself from filling the log: names, keys and numbers can be megabytes.
func clip(s string) string {
	const most = 300
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

func lineAt(data []byte, offset int) int { return 1 + bytes.Count(data[:offset], []byte("\n")) }

// invalidUTF8 returns the offset of the first byte that is not UTF-8, or -1.
func invalidUTF8(data []byte) int {
	if utf8.Valid(data) {
		return -1
	}
	for at := 0; at < len(data); {
		r, size := utf8.DecodeRune(data[at:])
		if r == utf8.RuneError && size == 1 {
			return at
		}
		at += size
	}
	return -1
}
