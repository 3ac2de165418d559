package main

import (
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// report prints a difference: the input, both outputs, and field by field what is not equal.
func report(w io.Writer, j *judged, command string) {
	fmt.Fprintf(w, "\nDIFFERENCE under %s: %s\n  %s\n", j.setting, j.name(), j.what)
	for i, f := range j.frames {
		partial := ""
		if f.partial {
			partial = " (checksum unfinished)"
		}
		fmt.Fprintf(w, "  sent from %s, frame %d of %d%s\n%s", j.at, i+1, len(j.frames), partial, indent(dump(j.at, f.data)))
	}
	print := func(who string, outs []output) {
		if len(outs) == 0 {
			fmt.Fprintf(w, "  %s: nothing comes out\n", who)
		}
		for _, o := range outs {
			partial := ""
			if o.raw.Partial {
				partial = ", sent unfinished"
			}
			fmt.Fprintf(w, "  %s%s\n%s", who, partial, indent(dump(o.at, o.data)))
		}
	}
	print("kernel", j.kernel)
	print("Sluice", j.sluice)
	for i := range min(len(j.kernel), len(j.sluice)) {
		a, b := j.kernel[i], j.sluice[i]
		for _, line := range fieldDiff(a.data, b.data) {
			fmt.Fprintf(w, "  differs: %s\n", line)
		}
		if a.at != b.at {
			fmt.Fprintf(w, "  differs: place %s, %s\n", a.at, b.at)
		}
	}
	fmt.Fprintf(w, "  again: %s\n", command)
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n    ") + "\n"
}

// dump is a frame in words and bytes.
func dump(at place, f []byte) string {
	var b strings.Builder
	fmt.Fprintf(&b, "at %s, %d bytes\n", at, len(f))
	p := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default)
	for _, l := range p.Layers() {
		s := gopacket.LayerString(l)
		if len(s) > 400 {
			s = s[:400] + " ..."
		}
		fmt.Fprintf(&b, "  %s\n", s)
	}
	for at := 0; at < len(f) && at < 160; at += 32 {
		fmt.Fprintf(&b, "  %04x %x\n", at, f[at:min(at+32, len(f))])
	}
	return b.String()
}

// fieldDiff names the fields in which two frames differ.
func fieldDiff(a, b []byte) (lines []string) {
	pa, pb := decode(a), decode(b)
	for i := range min(len(pa), len(pb)) {
		x, y := reflect.Indirect(reflect.ValueOf(pa[i])), reflect.Indirect(reflect.ValueOf(pb[i]))
		if x.Type() != y.Type() {
			lines = append(lines, fmt.Sprintf("layer %d: %s, %s", i, pa[i].LayerType(), pb[i].LayerType()))
			break
		}
		if x.Kind() != reflect.Struct {
			if !reflect.DeepEqual(x.Interface(), y.Interface()) {
				lines = append(lines, fmt.Sprintf("%s: kernel %d bytes, Sluice %d bytes", pa[i].LayerType(), len(pa[i].LayerContents()), len(pb[i].LayerContents())))
			}
			continue
		}
		for f := range x.NumField() {
			field := x.Type().Field(f)
			if !field.IsExported() || field.Name == "BaseLayer" || reflect.DeepEqual(x.Field(f).Interface(), y.Field(f).Interface()) {
				continue
			}
			lines = append(lines, fmt.Sprintf("%s %s: kernel %v, Sluice %v", pa[i].LayerType(), field.Name, x.Field(f).Interface(), y.Field(f).Interface()))
		}
	}
	if len(pa) != len(pb) {
		lines = append(lines, fmt.Sprintf("%d layers, %d layers", len(pa), len(pb)))
	}
	return lines
}

func decode(f []byte) []gopacket.Layer {
	return gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default).Layers()
}
