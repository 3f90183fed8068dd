package registrytest

import (
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Front is a server before a registry. It counts, and it makes the faults
// that it is told to make. Safe for concurrent use.
type Front struct {
	URL  string // without a slash at the end
	Host string // host:port

	backend http.Handler
	mu      sync.Mutex
	log     []*Request
	faults  []*Fault
}

// Request is one request that a Front has seen.
type Request struct {
	Method   string
	Path     string
	RawQuery string
	Header   http.Header

	status   atomic.Int64
	received atomic.Int64
	sent     atomic.Int64
}

// Status is the status of the answer; 0 before it began.
func (r *Request) Status() int { return int(r.status.Load()) }

// Received is how many bytes of body came with it so far.
func (r *Request) Received() int64 { return r.received.Load() }

// Sent is how many bytes of body the answer has so far.
func (r *Request) Sent() int64 { return r.sent.Load() }

// IsManifest reports whether the request is for a manifest.
func (r *Request) IsManifest() bool { return strings.Contains(r.Path, "/manifests/") }

// IsBlob reports whether the request is for a blob, and is no upload.
func (r *Request) IsBlob() bool {
	return strings.Contains(r.Path, "/blobs/") && !strings.Contains(r.Path, "/blobs/uploads/")
}

// NewFront starts a server before a handler. It ends with the test.
func NewFront(t testing.TB, backend http.Handler) *Front {
	f := &Front{backend: backend}
	srv := httptest.NewUnstartedServer(f)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	f.began(t, srv)
	return f
}

// NewTLSFront is NewFront with TLS.
func NewTLSFront(t testing.TB, backend http.Handler, config *tls.Config) *Front {
	f := &Front{backend: backend}
	srv := httptest.NewUnstartedServer(f)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = config
	srv.StartTLS()
	f.began(t, srv)
	return f
}

func (f *Front) began(t testing.TB, srv *httptest.Server) {
	f.URL = srv.URL
	f.Host = srv.Listener.Addr().String()
	t.Cleanup(func() {
		f.Clear()
		srv.CloseClientConnections()
		srv.Close()
	})
}

// Before starts a Front before another server, whose base URL is given.
// The Host header goes through, so that the locations it names lead back
// here.
func Before(t testing.TB, base string) *Front {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return NewFront(t, &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = u.Scheme, u.Host
			p.Out.Host = p.In.Host
		},
		Transport:     tr,
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0),
	})
}

// ServeHTTP counts a request, makes its fault or passes it on.
func (f *Front) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	rec := &Request{Method: req.Method, Path: req.URL.Path, RawQuery: req.URL.RawQuery, Header: req.Header.Clone()}
	f.mu.Lock()
	f.log = append(f.log, rec)
	fault := f.takeLocked(req)
	f.mu.Unlock()
	// In a copy: the server must see its own body, to know whether the client
	// still waits for being asked for it.
	own := *req
	req = &own
	req.Body = &counted{req.Body, &rec.received}
	cw := &writer{ResponseWriter: w, rec: rec, req: req, fault: fault}
	if fault != nil && fault.before(cw, req) {
		return
	}
	f.backend.ServeHTTP(cw, req)
}

// Requests returns what came since the start or the last Reset.
func (f *Front) Requests() []*Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*Request(nil), f.log...)
}

// Reset forgets what came. Faults stay.
func (f *Front) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = nil
}

// Counts sum up requests.
type Counts struct {
	Manifests     int   // requests for manifests
	Blobs         int   // requests for blobs
	Other         int   // all others: tokens, uploads, pings
	ManifestBytes int64 // of bodies sent to the client
	BlobBytes     int64
	Received      int64 // of bodies that came from the client
}

// Counts sums up what came since the start or the last Reset.
func (f *Front) Counts() Counts {
	var c Counts
	for _, r := range f.Requests() {
		c.Received += r.Received()
		switch {
		case r.IsManifest():
			c.Manifests++
			c.ManifestBytes += r.Sent()
		case r.IsBlob():
			c.Blobs++
			c.BlobBytes += r.Sent()
		default:
			c.Other++
		}
	}
	return c
}

// BlobBytes are the bytes sent of each blob, by digest.
func (f *Front) BlobBytes() map[string]int64 {
	all := map[string]int64{}
	for _, r := range f.Requests() {
		if r.IsBlob() {
			all[r.Path[strings.LastIndexByte(r.Path, '/')+1:]] += r.Sent()
		}
	}
	return all
}

// counted counts a body that is read.
type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}
