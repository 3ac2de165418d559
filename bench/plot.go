package bench

import (
	"bytes"
	"image/color"
	"math"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// palette is one colour a peer, in the order of Peers; after Okabe and Ito, so that all
// eyes can tell them apart.
var palette = []color.RGBA{
	{0x99, 0x99, 0x99, 0xff}, {0x55, 0x55, 0x55, 0xff}, {0xe6, 0x9f, 0x00, 0xff}, {0xd5, 0x5e, 0x00, 0xff},
	{0x56, 0xb4, 0xe9, 0xff}, {0x00, 0x72, 0xb2, 0xff}, {0x00, 0x9e, 0x73, 0xff}, {0xcc, 0x79, 0xa7, 0xff}, {0xf0, 0xe4, 0x42, 0xff},
}

func peerColour(name string) color.RGBA {
	return palette[max(0, slices.Index(PeerNames(), name))%len(palette)]
}

// bar is one bar of a plot.
type bar struct {
	label           string
	value, min, max float64
	colour          color.RGBA
}

// plotBars draws horizontal bars with the span of their samples, as SVG.
func plotBars(title, axis string, bars []bar) (string, error) {
	p := plot.New()
	p.Title.Text = title
	p.X.Label.Text = axis
	p.X.Min = 0
	slices.Reverse(bars) // the first on top
	var labels []string
	for i, b := range bars {
		one, err := plotter.NewBarChart(plotter.Values{b.value}, vg.Points(12))
		if err != nil {
			return "", err
		}
		one.Horizontal = true
		one.XMin = float64(i)
		one.Color = b.colour
		one.LineStyle.Width = 0
		p.Add(one)
		span, err := plotter.NewLine(plotter.XYs{{X: b.min, Y: float64(i)}, {X: b.max, Y: float64(i)}})
		if err != nil {
			return "", err
		}
		span.Width = vg.Points(1.5)
		p.Add(span)
		labels = append(labels, b.label)
	}
	p.NominalY(labels...)
	return toSVG(p, 6.5*vg.Inch, vg.Points(float64(70+22*len(bars))))
}

// curve is one line of a plot.
type curve struct {
	label  string
	points plotter.XYs
	colour color.RGBA
}

// plotCurves draws lines over a logarithmic axis, as SVG.
func plotCurves(title, x, y string, curves []curve) (string, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	p.Y.Min = 0
	p.Legend.Top, p.Legend.Left = false, true
	for _, c := range curves {
		sort.Slice(c.points, func(i, j int) bool { return c.points[i].X < c.points[j].X })
		line, points, err := plotter.NewLinePoints(c.points)
		if err != nil {
			return "", err
		}
		line.Color, points.Color = c.colour, c.colour
		line.Width = vg.Points(1.5)
		points.Shape = draw.CircleGlyph{}
		p.Add(line, points)
		p.Legend.Add(c.label, line)
	}
	return toSVG(p, 6.5*vg.Inch, 3.6*vg.Inch)
}

// stack is one bar made of parts.
type stack struct {
	label string
	parts []float64
}

// plotStacks draws horizontal bars of parts, as SVG.
func plotStacks(title, axis string, names []string, stacks []stack) (string, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text = title, axis
	p.X.Min = 0
	slices.Reverse(stacks)
	var labels []string
	for _, s := range stacks {
		labels = append(labels, s.label)
	}
	var below *plotter.BarChart
	for i, name := range names {
		values := make(plotter.Values, len(stacks))
		for j, s := range stacks {
			values[j] = s.parts[i]
		}
		b, err := plotter.NewBarChart(values, vg.Points(14))
		if err != nil {
			return "", err
		}
		b.Horizontal = true
		b.Color = stageColour(name)
		b.LineStyle.Width = 0
		if below != nil {
			b.StackOn(below)
		}
		below = b
		p.Add(b)
		p.Legend.Add(name, b)
	}
	p.NominalY(labels...)
	p.Legend.Top = true
	p.X.Max *= 1.35 // room for the legend
	return toSVG(p, 7.5*vg.Inch, vg.Points(math.Max(float64(80+26*len(stacks)), float64(50+15*len(names)))))
}

// stageColour tells the stages apart: greys for the suite's own, warm for the kernel's, green for Go's.
func stageColour(name string) color.RGBA {
	i := slices.IndexFunc(stages, func(s struct{ name, functions string }) bool { return s.name == name })
	colours := []color.RGBA{
		{0xbb, 0xbb, 0xbb, 0xff}, {0xff, 0xe0, 0x9a, 0xff}, {0xcc, 0x79, 0xa7, 0xff}, {0xd5, 0x5e, 0x00, 0xff}, {0xe6, 0x9f, 0x00, 0xff},
		{0x56, 0xb4, 0xe9, 0xff}, {0x00, 0x72, 0xb2, 0xff}, {0x99, 0x99, 0x99, 0xff}, {0xdd, 0xdd, 0xdd, 0xff},
		{0x00, 0x9e, 0x73, 0xff}, {0x3f, 0xc1, 0x8f, 0xff}, {0x00, 0x6b, 0x4f, 0xff}, {0x8f, 0xd9, 0xb6, 0xff}, {0x5a, 0x8f, 0x29, 0xff}, {0xb7, 0xcf, 0x70, 0xff},
		{0x44, 0x44, 0x66, 0xff}, {0xee, 0xee, 0xee, 0xff},
	}
	return colours[max(i, 0)%len(colours)]
}

var svgHead = regexp.MustCompile(`(?s)^.*?<svg`)

// toSVG draws and leaves off what stands before the element, so that it can stand in a page.
func toSVG(p *plot.Plot, width, height vg.Length) (string, error) {
	c := vgsvg.New(width, height)
	p.Draw(draw.New(c))
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return "", err
	}
	return svgHead.ReplaceAllString(b.String(), "<svg"), nil
}

// plots are those of a result: bars for each measurement, and curves over the number of Services
// and of flows.
func (r *Result) plots(scenario, workload, params string) (svg string, err error) {
	main := mainMetric(workload)
	var bars []bar
	unit := ""
	for _, peer := range r.peers() {
		s := r.find(scenario, workload, params, main, peer)
		if s == nil || len(s.Samples) == 0 || peer == "generator" && s.Median == 0 {
			continue
		}
		unit = s.Unit
		bars = append(bars, bar{peer, s.Median, slices.Min(s.Samples), slices.Max(s.Samples), peerColour(peer)})
	}
	if len(bars) < 2 {
		return "", nil
	}
	return plotBars(strings.TrimSpace(workload+" "+params), main+", "+unit, bars)
}

// trends are curves over what a workload was varied in.
func (r *Result) trends() (svgs []string, err error) {
	over := func(title, x, y string, points func(s *Series) (float64, bool)) error {
		byPeer := map[string]plotter.XYs{}
		for _, s := range r.Series {
			if v, ok := points(s); ok && len(s.Samples) > 0 {
				byPeer[s.Peer] = append(byPeer[s.Peer], plotter.XY{X: v, Y: s.Median})
			}
		}
		var curves []curve
		for _, peer := range r.peers() {
			if len(byPeer[peer]) > 1 {
				curves = append(curves, curve{peer, byPeer[peer], peerColour(peer)})
			}
		}
		if len(curves) == 0 {
			return nil
		}
		svg, err := plotCurves(title, x, y, curves)
		svgs = append(svgs, svg)
		return err
	}
	services := func(workload, metric string) func(*Series) (float64, bool) {
		seen := map[string]bool{}
		return func(s *Series) (float64, bool) {
			n, ok := strings.CutPrefix(s.Scenario, string(Local)+" services=")
			v, err := strconv.ParseFloat(n, 64)
			at := s.Peer + n
			if !ok || err != nil || s.Workload != workload || s.Metric != metric || seen[at] {
				return 0, false
			}
			seen[at] = true
			return v, true
		}
	}
	flows := func(workload string) func(*Series) (float64, bool) {
		return func(s *Series) (float64, bool) {
			n, ok := strings.CutPrefix(s.Params, "frame=64 flows=")
			v, err := strconv.ParseFloat(n, 64)
			return v, ok && err == nil && s.Workload == workload && s.Metric == "pps"
		}
	}
	for _, err := range []error{
		over("First packet of a flow, median", "Services", "µs", services("first-packet", "p50")),
		over("Connections", "Services", "connections/s", services("crr", "conn_rate")),
		over("Cold sync", "Services", "s", services(coldSync, "sync")),
		over("One change", "Services", "ms", services("one-change", "change")),
		over("64-byte frames injected", "flows", "packets/s", flows("pps-injected")),
		over("64-byte frames between sockets", "flows", "packets/s", flows("pps-sockets")),
	} {
		if err != nil {
			return nil, err
		}
	}
	return svgs, nil
}
