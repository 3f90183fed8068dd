package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// limits are the timeouts of a client. Tests make them shorter.
type limits struct {
	dial   time.Duration // connecting, and the TLS handshake, each
	answer time.Duration // from a request's last byte to the answer's headers
	finish time.Duration // the same if a registry hashes or moves a whole blob first
	patch  time.Duration // the same if a registry takes one upload at a time, as epoch does
	stall  time.Duration // without a byte of a body
	small  time.Duration // for the whole of a body that fits into memory
	first  time.Duration // before the first quick retry
	settle time.Duration // for which a list must stand that several clients may write
}

func defaultLimits() limits {
	return limits{
		dial:   15 * time.Second,
		answer: 60 * time.Second,
		finish: 30 * time.Minute, // epoch copies 40 GiB to S3 before it answers
		patch:  5 * time.Minute,
		stall:  15 * time.Second,
		small:  5 * time.Minute,
		first:  200 * time.Millisecond,
		settle: 500 * time.Millisecond,
	}
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// newTransport returns the transport of one client. It uses HTTP/1.1 only,
// since several plain connections carry more than one multiplexed one.
func newTransport(o Options, at endpoint, lim limits, dial dialFunc) (*http.Transport, error) {
	roots, err := rootCAs(append([]string{o.CACert}, at.ca...))
	if err != nil {
		return nil, err
	}
	if dial == nil {
		dial = (&net.Dialer{Timeout: lim.dial, KeepAlive: 30 * time.Second}).DialContext
	}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		OnProxyConnectResponse: proxyAnswered,
		DialContext:            dial,
		TLSClientConfig:        tlsConfig(roots, at),
		TLSHandshakeTimeout:    lim.dial,
		DisableCompression:     true,
		MaxConnsPerHost:        2*o.Concurrency + 4, // waiting streams must not block a manifest
		MaxIdleConns:           4 * o.Concurrency,
		MaxIdleConnsPerHost:    o.Concurrency + 2,
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  2 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		ReadBufferSize:         connBuffer,
		WriteBufferSize:        connBuffer,
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	return t, nil
}

// connBuffer is the size of a connection's buffers, in bytes: headers fit.
// Every idle connection of every mount has two of them, and larger reads and
// writes go past them.
const connBuffer = 4 << 10

// tlsConfig verifies the certificates of all hosts, except the endpoint's
// own if at.skipVerify is set.
func tlsConfig(roots *x509.CertPool, at endpoint) *tls.Config {
	c := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if !at.skipVerify {
		return c
	}
	own := (&url.URL{Host: apiHost(at.ref.Host)}).Hostname()
	if net.ParseIP(own) != nil {
		own = "" // addresses are not named in a handshake
	}
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		switch cs.ServerName {
		case own:
			return nil
		case "":
			return errors.New("a certificate for an address cannot be checked here")
		}
		opts := x509.VerifyOptions{Roots: roots, DNSName: cs.ServerName, Intermediates: x509.NewCertPool()}
		for _, cert := range cs.PeerCertificates[1:] {
			opts.Intermediates.AddCert(cert)
		}
		if _, err := cs.PeerCertificates[0].Verify(opts); err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
		}
		return nil
	}
	return c
}

// rootCAs returns the system's certificates and those of the PEM files.
func rootCAs(files []string) (*x509.CertPool, error) {
	var pool *x509.CertPool
	for _, file := range files {
		if file == "" {
			continue
		}
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRoots, err)
		}
		if pool == nil {
			if pool, err = x509.SystemCertPool(); err != nil {
				pool = x509.NewCertPool()
			}
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%w: %s holds no PEM certificate", ErrRoots, file)
		}
	}
	return pool, nil
}

// guard refuses plain HTTP to hosts where it is not allowed, even after a
// redirect.
type guard struct {
	inner *http.Transport
	allow func(host string) bool // host with port
}

// RoundTrip sends the request, or fails with errPlainHTTP.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	switch req.URL.Scheme {
	case "https":
	case "http":
		if !isLoopback(req.URL.Host) && !g.allow(withPort("http", req.URL.Host)) {
			return nil, fmt.Errorf("%w: %s", errPlainHTTP, req.URL.Hostname())
		}
	default:
		return nil, errors.New("neither http nor https")
	}
	return g.inner.RoundTrip(req)
}

// counters are a client's counters.
type counters struct{ requests, bytes, sent, retries atomic.Int64 }

// send sends one HTTP request. It fails if the answer's headers do not
// arrive, or the request's body does not move, for wait. The caller must
// close the answer's body, which fails if no byte arrives for the stall
// limit.
func (r *Registry) send(req *http.Request, wait time.Duration) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	w := newWatchdog(wait, func() { cancel(errStalled) })
	// Waiting for a free connection is not the registry's silence, and
	// dialling has its own timeouts.
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { w.kick() },
	})
	r.watchUpload(req, w)
	r.stats.requests.Add(1)
	resp, err := r.transport.RoundTrip(req.WithContext(ctx))
	w.stop()
	if err != nil {
		err = causeOf(ctx, err)
		cancel(nil)
		return nil, err
	}
	r.answered.Store(true)
	resp.Body = r.newBody(ctx, cancel, resp.Body)
	return resp, nil
}

// watchUpload makes every read of the request's body a sign of life.
func (r *Registry) watchUpload(req *http.Request, w *watchdog) {
	if req.Body == nil || req.Body == http.NoBody {
		return
	}
	wrap := func(rc io.ReadCloser) io.ReadCloser { return &upload{rc, w, &r.stats.sent} }
	req.Body = wrap(req.Body)
	if again := req.GetBody; again != nil {
		req.GetBody = func() (io.ReadCloser, error) {
			rc, err := again()
			if err != nil {
				return nil, err
			}
			return wrap(rc), nil
		}
	}
}

// causeOf returns the cause of ctx's end, or err if ctx has not ended.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// upload is a request's body under a watchdog.
type upload struct {
	io.ReadCloser
	w    *watchdog
	sent *atomic.Int64
}

func (u *upload) Read(p []byte) (int, error) {
	u.w.hold() // a slow source is not the registry's silence
	n, err := u.ReadCloser.Read(p)
	u.w.kick()
	u.sent.Add(int64(n))
	return n, err
}

// watchdog calls bark if it is not kicked for a while. It starts with the
// first kick, and ends with stop.
type watchdog struct {
	limit time.Duration
	mu    sync.Mutex
	timer *time.Timer
	bark  func()
	done  bool
}

func newWatchdog(limit time.Duration, bark func()) *watchdog {
	return &watchdog{limit: limit, bark: bark}
}

func (w *watchdog) kick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.done:
	case w.timer == nil:
		w.timer = time.AfterFunc(w.limit, w.bark)
	default:
		w.timer.Reset(w.limit)
	}
}

// hold stops the timer until the next kick.
func (w *watchdog) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
}

func (w *watchdog) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = true
	if w.timer != nil {
		w.timer.Stop()
	}
}
