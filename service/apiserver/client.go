package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Connection says how to reach the API server. Its fields are those of kube-proxy's clientConnection, but for Server.
type Connection struct {
	// Kubeconfig is a file; empty: the service account of the pod.
	Kubeconfig string
	// Server is the URL of the API server, in place of the one that the kubeconfig or the pod's environment names. A proxy of
	// ClusterIPs must not need a ClusterIP to start.
	Server string
	// QPS and Burst limit the requests that are sent; QPS below 0: no limit.
	QPS   float32
	Burst int
	// ContentType is what objects are asked for as: application/vnd.kubernetes.protobuf or application/json.
	ContentType string
}

// Bounds on what a server may keep us waiting for. What takes longer is given up and tried again, for another try may meet
// another server.
const (
	dialTimeout = 3 * time.Second
	// firstWordTimeout is for the first bytes on a new connection: the server's part of the TLS handshake.
	firstWordTimeout = 3 * time.Second
	// pingAfter is how long an HTTP/2 connection may be silent before it is asked for a sign of life, pingTimeout how long
	// that may take. A connection whose other end is gone without a word is found so, and only so: a watch says nothing for
	// minutes of itself.
	pingAfter, pingTimeout = 2 * time.Second, 2 * time.Second
	// headerTimeout is for the header of an answer, longHeaderTimeout for that of a list, which some servers make up in
	// memory first.
	headerTimeout, longHeaderTimeout = 4 * time.Second, 30 * time.Second
	// idleTimeout is how long the body of an answer may be silent; that of a watch has a bookmark a minute.
	idleTimeout, watchIdleTimeout = 4 * time.Second, 2 * time.Minute
)

const userAgent = "sluice"

// clients are the clients of the API groups that are watched.
type clients struct {
	core, discovery, networking rest.Interface
	params                      runtime.ParameterCodec
	server                      string
	http                        *http.Client
}

// connect makes the clients. It does not talk to the server.
func connect(c *Connection) (*clients, error) {
	cfg, err := restConfig(c)
	if err != nil {
		return nil, err
	}
	cfg.QPS, cfg.Burst, cfg.ContentType = c.QPS, c.Burst, c.ContentType
	cfg.UserAgent = userAgent
	dialer := &net.Dialer{
		Timeout:         dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: pingAfter, Interval: time.Second, Count: 2},
	}
	cfg.Dial = dialer.DialContext
	if !strings.HasPrefix(cfg.Host, "http://") {
		cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &wary{Conn: conn}, conn.SetReadDeadline(time.Now().Add(firstWordTimeout))
		}
	}
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper { return &impatient{rt} })
	// client-go's way to set these. What the operator has set holds.
	for name, d := range map[string]time.Duration{"HTTP2_READ_IDLE_TIMEOUT_SECONDS": pingAfter, "HTTP2_PING_TIMEOUT_SECONDS": pingTimeout} {
		if os.Getenv(name) == "" {
			if err := os.Setenv(name, fmt.Sprint(int(d.Seconds()))); err != nil {
				return nil, err
			}
		}
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", cfg.Host, err)
	}
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	codecs := serializer.NewCodecFactory(s).WithoutConversion()
	group := func(gv schema.GroupVersion, path string) (rest.Interface, error) {
		g := rest.CopyConfig(cfg)
		g.GroupVersion, g.APIPath, g.NegotiatedSerializer = &gv, path, codecs
		return rest.RESTClientForConfigAndClient(g, client)
	}
	out := &clients{params: runtime.NewParameterCodec(s), server: cfg.Host, http: client}
	if out.core, err = group(corev1.SchemeGroupVersion, "/api"); err != nil {
		return nil, err
	}
	if out.discovery, err = group(discoveryv1.SchemeGroupVersion, "/apis"); err != nil {
		return nil, err
	}
	out.networking, err = group(networkingv1.SchemeGroupVersion, "/apis")
	return out, err
}

func restConfig(c *Connection) (*rest.Config, error) {
	if c.Kubeconfig != "" {
		cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: c.Kubeconfig},
			&clientcmd.ConfigOverrides{ClusterInfo: clientcmdapi.Cluster{Server: c.Server}}).ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w", c.Kubeconfig, err)
		}
		return cfg, nil
	}
	const account = "/var/run/secrets/kubernetes.io/serviceaccount/"
	if c.Server != "" {
		cfg := &rest.Config{Host: c.Server}
		if _, err := os.Stat(account + "token"); err == nil {
			cfg.BearerTokenFile, cfg.CAFile = account+"token", account+"ca.crt"
		}
		return cfg, nil
	}
	cfg, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("%w (name a kubeconfig, or the API server's URL)", err)
	}
	return cfg, nil
}

func (c *clients) close() { utilnet.CloseIdleConnectionsFor(c.http.Transport) }

// wary is a connection that is given up if it does not begin to speak.
type wary struct {
	net.Conn
	spoke bool // read by the one goroutine that reads
}

// Read implements net.Conn.
func (c *wary) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.spoke {
		c.spoke = true
		err = errors.Join(err, c.Conn.SetReadDeadline(time.Time{}))
	}
	return n, err
}

var errSilent = errors.New("the answer stopped in the middle")

// patience is how long the body of one answer may be silent, and what is known of that answer.
type patience struct {
	idle atomic.Int64
	err  error // why there is no answer: client-go takes some reasons for the end of an empty watch. Read after the request
}

func (p *patience) get() time.Duration { return max(idleTimeout, time.Duration(p.idle.Load())) }

// patient is called once all that there is has been told and only changes are waited for.
func (p *patience) patient() { p.idle.Store(int64(watchIdleTimeout)) }

type patienceKey struct{}

func patienceOf(ctx context.Context) *patience {
	if p, ok := ctx.Value(patienceKey{}).(*patience); ok {
		return p
	}
	return new(patience)
}

// impatient gives up requests whose answer does not come, or stops coming.
type impatient struct{ next http.RoundTripper }

// WrappedRoundTripper lets client-go find the transport below.
func (t *impatient) WrappedRoundTripper() http.RoundTripper { return t.next }

// RoundTrip implements http.RoundTripper.
func (t *impatient) RoundTrip(r *http.Request) (*http.Response, error) {
	watching := r.URL.Query().Get("watch") != ""
	header, idle := longHeaderTimeout, patienceOf(r.Context())
	if watching {
		header = headerTimeout
	} else if r.Method != http.MethodGet {
		header = headerTimeout
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	timer := time.AfterFunc(header, func() { cancel(fmt.Errorf("no answer in %v", header)) })
	resp, err := t.next.RoundTrip(r.WithContext(ctx))
	timer.Stop()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && r.Context().Err() == nil {
			err = cause
		}
		cancel(nil)
		idle.err = err
		return nil, err
	}
	resp.Body = &impatientBody{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, idle: idle}
	return resp, nil
}

type impatientBody struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	idle   *patience
	timer  *time.Timer
	once   sync.Once
}

func (b *impatientBody) Read(p []byte) (int, error) {
	began := time.Now()
	giveUp := func() {
		if left := b.idle.get() - time.Since(began); left > 0 { // it has grown meanwhile
			b.timer.Reset(left)
			return
		}
		b.cancel(errSilent)
	}
	b.timer = time.AfterFunc(b.idle.get(), giveUp)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if err != nil && context.Cause(b.ctx) == errSilent {
		err = errSilent // and not that somebody canceled
	}
	return n, err
}

func (b *impatientBody) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(func() { b.cancel(nil) })
	return err
}
