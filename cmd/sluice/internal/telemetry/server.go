package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Bounds on what a client may take. A profile of n seconds lengthens its own
// write timeout by n.
const (
	headerTimeout  = 5 * time.Second
	readTimeout    = 10 * time.Second
	writeTimeout   = 30 * time.Second
	idleTimeout    = time.Minute
	maxHeaderBytes = 16 << 10
	// scrapesAtOnce bounds what a busy scraper costs.
	scrapesAtOnce = 4
	// bindRetry is how often an address that is taken is tried again.
	bindRetry = 5 * time.Second
	// shutdownTimeout is how long a request in hand may take at the end.
	shutdownTimeout = time.Second
)

// MetricsHandler serves /metrics and, with profiling, /debug/pprof/.
func MetricsHandler(registry *prometheus.Registry, profiling bool, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelError),
		MaxRequestsInFlight: scrapesAtOnce,
		Timeout:             readTimeout,
	}))
	if profiling {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// Server is one listener. Its methods may be called from any goroutine.
type Server struct {
	http   *http.Server
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu   sync.Mutex
	addr net.Addr // nil until bound
}

// Serve listens at address and serves handler there; what names the listener in
// errors and in the log. An address that is taken is an error if hardFail is
// set, and is otherwise logged and tried again until it is free: metrics are no
// reason to stop forwarding.
func Serve(what, address string, hardFail bool, handler http.Handler, log *slog.Logger) (*Server, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		http: &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: headerTimeout,
			ReadTimeout:       readTimeout,
			WriteTimeout:      writeTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeaderBytes,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
		cancel: cancel,
	}
	l, err := listen(ctx, what, address)
	if err != nil && hardFail {
		cancel()
		return nil, err
	}
	if err == nil {
		s.bound(l)
	}
	s.done.Go(func() {
		if err != nil {
			log.Warn("an address cannot be bound yet; trying again every "+bindRetry.String(), "err", err)
			if l = retry(ctx, what, address, bindRetry); l == nil {
				return
			}
			s.bound(l)
			log.Info("listening at last", "for", what, "address", l.Addr().String())
		}
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("a listener ended", "for", what, "err", err)
		}
	})
	return s, nil
}

// listen binds, with an error that names the setting and what to do.
func listen(ctx context.Context, what, address string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err == nil {
		return l, nil
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	mend := ""
	if errors.Is(err, syscall.EADDRINUSE) {
		mend = "; name a free port, or :0 for any"
	}
	return nil, fmt.Errorf("%s %s: %w%s", what, address, err, mend)
}

// retry binds as soon as it can be done; nil if ctx ends before that.
func retry(ctx context.Context, what, address string, every time.Duration) net.Listener {
	again := time.NewTicker(every)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
			if l, err := listen(ctx, what, address); err == nil {
				return l
			}
		}
	}
}

func (s *Server) bound(l net.Listener) {
	s.mu.Lock()
	s.addr = l.Addr()
	s.mu.Unlock()
}

// Addr is the address that is served, nil while there is none.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// Close ends the listener, with a moment for the requests in hand.
func (s *Server) Close() error {
	s.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	s.done.Wait()
	return err
}
