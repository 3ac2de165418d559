package bench

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// WriteMarkdown writes the report for docs.
func (r *Result) WriteMarkdown(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Benchmark report, %s\n\nWritten by `%s`. What the words mean, how it is measured and what it is worth: [bench.md](bench.md).\n", r.Started.Format("2006-01-02"), r.Command)
	r.writeTables(&markdownWriter{&b})
	line, reasons := r.Summary()
	if r.Quick {
		fmt.Fprintf(&b, "\n```\n%s\n```\n", line)
		for _, reason := range reasons {
			fmt.Fprintf(&b, "- n/a: %s\n", cell(reason))
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

type markdownWriter struct{ b *bytes.Buffer }

func (m *markdownWriter) heading(s string) {
	level := "###"
	if strings.HasPrefix(s, "Scenario ") || strings.HasPrefix(s, "The ") {
		level = "##"
	}
	fmt.Fprintf(m.b, "\n%s %s\n\n", level, s)
}

func (m *markdownWriter) facts(lines [][2]string) {
	m.table([]string{"", ""}, func() (rows [][]string) {
		for _, l := range lines {
			rows = append(rows, l[:])
		}
		return rows
	}())
}

func (m *markdownWriter) table(columns []string, rows [][]string) {
	line := func(cells []string) {
		for _, c := range cells {
			fmt.Fprintf(m.b, "| %s ", cell(c))
		}
		m.b.WriteString("|\n")
	}
	line(columns)
	m.b.WriteString(strings.Repeat("|---", len(columns)) + "|\n")
	for _, r := range rows {
		line(r)
	}
}

func (m *markdownWriter) notes(lines []string) {
	if len(lines) > 0 {
		m.b.WriteString("\n")
	}
	for _, l := range lines {
		fmt.Fprintf(m.b, "- %s\n", cell(l))
	}
}

// cell keeps a text from breaking a table.
func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ").Replace(s)
}
