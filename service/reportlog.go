package service

import "log/slog"

// ReportLog logs what is not used, each thing once as long as it lasts, and few at a time.
type ReportLog struct {
	Log      *slog.Logger
	last     *Report
	reported map[Problem]struct{}
}

// Report logs what is new in r.
func (l *ReportLog) Report(r *Report) {
	if r == l.last {
		return
	}
	l.last = r
	const most = 20
	current := make(map[Problem]struct{}, len(r.Problems))
	fresh := 0
	for i := range r.Problems {
		p := r.Problems[i]
		current[p] = struct{}{}
		if _, known := l.reported[p]; known {
			continue
		}
		if fresh++; fresh <= most {
			args := []any{"object", p.Object, "field", p.Field, "reason", p.Text}
			if p.File != "" {
				args = append([]any{"file", p.File}, args...)
			}
			l.Log.Warn("not used", args...)
		}
	}
	if fresh > most {
		l.Log.Warn("more is not used", "count", fresh-most+r.Omitted)
	}
	l.reported = current
}
