package bench

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// progress draws a bar on a terminal.
type progress struct {
	out         io.Writer
	done, total int
	start       time.Time
}

func newProgress(out io.Writer) *progress { return &progress{out: out, start: time.Now()} }

// expect adds steps to come.
func (p *progress) expect(n int) { p.total += n }

// step begins one, which counts as n.
func (p *progress) step(n int, format string, args ...any) {
	if p.out != nil {
		const width = 24
		full := 0
		if p.total > 0 {
			full = min(width, width*p.done/p.total)
		}
		line := fmt.Sprintf(format, args...)
		fmt.Fprintf(p.out, "\r\x1b[K[%s%s] %3d%% %s  %s", strings.Repeat("#", full), strings.Repeat(".", width-full),
			100*p.done/max(p.total, 1), time.Since(p.start).Round(time.Second), line)
	}
	p.done += n
}

// end clears the bar.
func (p *progress) end() {
	if p.out != nil {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
