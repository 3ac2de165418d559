package service

import (
	"fmt"
	"slices"
	"strings"
)

// Problem explains one thing that is not used, or not as written: a manifest, an object, a field of it.
type Problem struct {
	File     string // the manifest's path; empty for objects that are in no file
	Document int    // counted from 1 in the file; 0 if unknown
	Line     int    // where the document starts, or where its syntax breaks; 0 if unknown
	Object   string // "Service demo/web"; empty if the document could not be read that far
	Field    string // "spec.ports[0].port"; empty if it is about the whole object
	Text     string
}

// Error makes a Problem an error, for sources that refuse a manifest because of it.
func (p *Problem) Error() string {
	if p.File == "" {
		return p.Detail()
	}
	return p.File + ": " + p.Detail()
}

// Detail is Error without the file.
func (p *Problem) Detail() string {
	var b strings.Builder
	switch {
	case p.Document > 0 && p.Line > 0:
		fmt.Fprintf(&b, "document %d (line %d): ", p.Document, p.Line)
	case p.Document > 0:
		fmt.Fprintf(&b, "document %d: ", p.Document)
	case p.Line > 0:
		fmt.Fprintf(&b, "line %d: ", p.Line)
	}
	for _, s := range []string{p.Object, p.Field} {
		if s != "" {
			b.WriteString(s)
			b.WriteString(": ")
		}
	}
	b.WriteString(p.Text)
	return b.String()
}

// maxProblems bounds a Report: a hundred thousand refused endpoints must not become as many strings.
const maxProblems = 1000

// Report is what Build has to say besides the Snapshot.
type Report struct {
	Problems []Problem // the first 1000
	Omitted  int       // how many more there were
	Refused  int       // endpoints refused as unsafe; each is among Problems or Omitted
	// RefusedClusterIPs counts ClusterIPs outside of every known Service range, likewise.
	RefusedClusterIPs int
}

// append adds what another Report says.
func (r *Report) append(o *Report) {
	room := min(maxProblems-len(r.Problems), len(o.Problems))
	r.Problems = append(r.Problems, o.Problems[:room]...)
	r.Omitted += o.Omitted + len(o.Problems) - room
	r.Refused += o.Refused
	r.RefusedClusterIPs += o.RefusedClusterIPs
}

func (r *Report) equal(o *Report) bool {
	return r.Omitted == o.Omitted && r.Refused == o.Refused && r.RefusedClusterIPs == o.RefusedClusterIPs && slices.Equal(r.Problems, o.Problems)
}

func (r *Report) add(object, field, format string, args ...any) {
	if len(r.Problems) == maxProblems {
		r.Omitted++
		return
	}
	r.Problems = append(r.Problems, Problem{Object: object, Field: field, Text: fmt.Sprintf(format, args...)})
}
