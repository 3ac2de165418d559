package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
)

// newLogger logs to w. Keys are the same everywhere: interface, queue, service,
// backend, reason, err.
func newLogger(w io.Writer, c config.Logging) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // checked with the configuration
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "text" || c.Format == "auto" && isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// isTerminal says whether a person reads along.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// waiting holds the log back until it is known whether the daemon starts: if it
// does not, the one line that says why is all that is to be read, and what was
// done up to there has been undone. Only who asked for everything (debug) sees
// the rest.
type waiting struct {
	mu   sync.Mutex
	over bool
	held []func()
}

// hold gives a logger that waits.
func (w *waiting) hold(log *slog.Logger) *slog.Logger {
	if log.Enabled(context.Background(), slog.LevelDebug) {
		return log
	}
	return slog.New(&waitingHandler{log.Handler(), w})
}

// end logs what was held back, and from now on everything at once.
func (w *waiting) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, emit := range w.held {
		emit()
	}
	w.over, w.held = true, nil
}

// waitingHandler is the slog.Handler of it.
type waitingHandler struct {
	slog.Handler
	w *waiting
}

// Handle implements slog.Handler.
func (h *waitingHandler) Handle(ctx context.Context, r slog.Record) error {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if h.w.over {
		return h.Handler.Handle(ctx, r)
	}
	r = r.Clone()
	h.w.held = append(h.w.held, func() { _ = h.Handler.Handle(context.WithoutCancel(ctx), r) })
	return nil
}

// WithAttrs implements slog.Handler.
func (h *waitingHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &waitingHandler{h.Handler.WithAttrs(attrs), h.w}
}

// WithGroup implements slog.Handler.
func (h *waitingHandler) WithGroup(name string) slog.Handler {
	return &waitingHandler{h.Handler.WithGroup(name), h.w}
}
