package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// untilSignal gives a context that ends with the first SIGTERM or SIGINT, or
// with SIGHUP unless it is ignored (nohup). The second ends the process, with
// the status a shell gives to it: whoever asks twice has waited long enough.
// The returned function gives the signals back.
func untilSignal(parent context.Context, log *slog.Logger) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	watched := []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	if !signal.Ignored(syscall.SIGHUP) {
		watched = append(watched, syscall.SIGHUP)
	}
	arrived := make(chan os.Signal, len(watched))
	signal.Notify(arrived, watched...)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case s := <-arrived:
				if ctx.Err() == nil {
					log.Info("stopping; a second signal ends it at once", "signal", s.String())
					cancel()
					continue
				}
				os.Exit(128 + int(s.(syscall.Signal)))
			}
		}
	}()
	return ctx, func() {
		signal.Stop(arrived)
		close(done)
		cancel()
	}
}
