package bench

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"strings"
)

// WriteHTML writes a report that needs nothing but itself.
func (r *Result) WriteHTML(w io.Writer) error {
	h := &htmlWriter{r: r}
	fmt.Fprintf(&h.b, `<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sluice benchmark, %s</title><style>
body{font:15px/1.45 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0 1rem;font-size:13px}td,th{border-bottom:1px solid #ddd;padding:.2rem .6rem;text-align:right;vertical-align:top}
td:first-child,th:first-child,table.words td{text-align:left}h2{margin-top:2.5rem;border-bottom:2px solid #222}h3{margin:1.6rem 0 .3rem;font-size:15px}
ul{font-size:13px;margin-top:0}svg{max-width:100%%;height:auto}</style></head><body><h1>Sluice beside its peers</h1>
<p>A ratio in brackets is of a floor that translates nothing. Bars are medians; the line on each spans all rounds.</p>
`, html.EscapeString(r.Started.Format("2006-01-02")))
	if line, _ := r.Summary(); r.Quick {
		fmt.Fprintf(&h.b, "<pre>%s</pre>\n", html.EscapeString(strings.ReplaceAll(line, " ", "\n  ")))
	}
	svgs, err := r.trends()
	if err != nil {
		return err
	}
	ways, err := r.StagePlots()
	if err != nil {
		return err
	}
	for _, svg := range append(ways, svgs...) {
		h.b.WriteString(svg)
	}
	r.writeTables(h)
	h.b.WriteString("</body></html>\n")
	if h.err != nil {
		return h.err
	}
	_, err = w.Write(h.b.Bytes())
	return err
}

type htmlWriter struct {
	r        *Result
	b        bytes.Buffer
	scenario string
	err      error
}

func (h *htmlWriter) heading(s string) {
	level := "h3"
	scenario, isScenario := strings.CutPrefix(s, "Scenario ")
	if isScenario || strings.HasPrefix(s, "The ") {
		level = "h2"
	}
	fmt.Fprintf(&h.b, "<%s>%s</%s>\n", level, html.EscapeString(s), level)
	if isScenario {
		h.scenario = scenario
		return
	}
	workload, params, _ := strings.Cut(s, " ")
	svg, err := h.r.plots(h.scenario, workload, params)
	if err != nil {
		h.err = err
	}
	h.b.WriteString(svg)
}

func (h *htmlWriter) facts(lines [][2]string) {
	h.b.WriteString(`<table class="words">`)
	for _, l := range lines {
		fmt.Fprintf(&h.b, "<tr><td>%s</td><td>%s</td></tr>\n", html.EscapeString(l[0]), html.EscapeString(l[1]))
	}
	h.b.WriteString("</table>\n")
}

func (h *htmlWriter) table(columns []string, rows [][]string) {
	class := ""
	if len(columns) > 1 && columns[1] == "what it is" {
		class = ` class="words"`
	}
	fmt.Fprintf(&h.b, "<table%s>", class)
	for i, row := range append([][]string{columns}, rows...) {
		tag := "td"
		if i == 0 {
			tag = "th"
		}
		h.b.WriteString("<tr>")
		for _, c := range row {
			fmt.Fprintf(&h.b, "<%s>%s</%s>", tag, html.EscapeString(c), tag)
		}
		h.b.WriteString("</tr>\n")
	}
	h.b.WriteString("</table>\n")
}

func (h *htmlWriter) notes(lines []string) {
	if len(lines) == 0 {
		return
	}
	h.b.WriteString("<ul>")
	for _, l := range lines {
		fmt.Fprintf(&h.b, "<li>%s</li>", html.EscapeString(l))
	}
	h.b.WriteString("</ul>\n")
}
