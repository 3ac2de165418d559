package demo

import (
	"fmt"
	"io"
	"strings"
)

// printer writes what a person reads, 100 columns wide.
type printer struct {
	w      io.Writer
	colour bool
}

func (p *printer) line(format string, args ...any) {
	fmt.Fprintln(p.w, strings.TrimRight(fmt.Sprintf(format, args...), " "))
}

func (p *printer) blank() { fmt.Fprintln(p.w) }

// title begins a stage.
func (p *printer) title(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if p.colour {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	fmt.Fprintf(p.w, "\n%s\n", text)
}

// changed pads a cell, and makes it stand out if it begins with an asterisk.
func (p *printer) changed(cell string, width int) string {
	padded := fmt.Sprintf("%-*s", width, cell)
	if p.colour && strings.HasPrefix(cell, "*") {
		return "\x1b[36m" + padded + "\x1b[0m"
	}
	return padded
}
