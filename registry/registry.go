package registry

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/cocoonstack/epochfs/internal/digests"
)

// defaultConcurrency is for how many requests at a time connections are
// kept where Options do not say.
const defaultConcurrency = 16

// Options are what a client needs to know besides the host.
type Options struct {
	CACert      string // PEM file with root certificates to trust besides the system's
	EpochServer string // EPOCH_SERVER's value; "" is DefaultServer
	EpochToken  string // EPOCH_REGISTRY_TOKEN's value: for the epoch server and nobody else
	PlainHTTP   bool   // plain HTTP is allowed to every host

	Keychain    authn.Keychain // credentials of all other hosts; nil is what docker and podman have stored
	Concurrency int            // requests expected at a time; 0 is 16
	UserAgent   string         // "" is "epochfs"
	Log         *slog.Logger   // nil is silence

	// Patience is how long a registry that has answered before is waited
	// for when it does not, and how long it may ask to be left alone,
	// before a request counts as failed; 0: no longer than a moment. It is
	// for uploads: who reads has patience of his own.
	Patience time.Duration
}

// Registry is a client of one registry. It is safe for concurrent use.
type Registry struct {
	base      url.URL     // scheme and host
	path      string      // of the API there, such as "/v2"
	ns        string      // the registry that this one stands in for, or ""
	header    http.Header // of every request to it, besides ours
	host      string      // as it is printed
	tries     uint        // of a small request
	agent     string
	log       *slog.Logger
	limits    limits
	patience  time.Duration
	answered  atomic.Bool // at least once
	inner     *http.Transport
	transport http.RoundTripper // inner under guard
	plain     func(host string) bool
	auth      *authorizer
	stats     counters
	reasons   tally // of stats.retries
	ranges    atomic.Int32
	self      selfMounts
	ways      ways

	badSessions atomic.Bool     // that a mount opens are no good
	ctx         context.Context // ends with Close
	cancel      context.CancelFunc
	owned       sync.WaitGroup // goroutines that may outlive a call
}

// Stats count what a client has done since New.
type Stats struct {
	Requests int64 // HTTP requests sent, those for tokens and redirects too
	Bytes    int64 // of bodies received
	Sent     int64 // of bodies sent
	Retries  int64 // requests that were made again after a failure
}

// New makes a client of ref's host; nothing is sent yet. A reference that
// wants plain HTTP where it is not allowed is an error.
func New(ref Reference, opts Options) (*Registry, error) {
	return newRegistry(ref, opts, defaultLimits(), nil)
}

// endpoint is where and how a registry is spoken to.
type endpoint struct {
	ref        Reference // scheme and host of it
	path       string
	ns         string
	ca         []string // further PEM files
	skipVerify bool     // of the host's certificate, and of no other's
	plain      bool     // plain HTTP to the host is allowed
	header     http.Header
	tries      uint
}

func newRegistry(ref Reference, opts Options, lim limits, dial dialFunc) (*Registry, error) {
	return newAt(endpoint{ref: ref, path: apiPath, tries: maxTries}, opts, lim, dial)
}

// apiPath is where the distribution API begins.
const apiPath = "/v2"

func newAt(at endpoint, opts Options, lim limits, dial dialFunc) (*Registry, error) {
	ref := at.ref
	srv, err := parseServer(opts.EpochServer)
	if err != nil {
		return nil, err
	}
	if ref.Scheme != "http" && ref.Scheme != "https" || !validHost(ref.Host) {
		return nil, fmt.Errorf("%w: no registry named", ErrReference)
	}
	epoch := ref.Scheme == srv.scheme && withPort(ref.Scheme, ref.Host) == withPort(srv.scheme, srv.host)
	if ref.Scheme == "http" && !epoch && !at.plain && !opts.PlainHTTP && !isLoopback(ref.Host) {
		return nil, fmt.Errorf("%w: %s", errPlainHTTP, ref.Host)
	}
	if opts.Concurrency <= 0 {
		opts.Concurrency = defaultConcurrency
	}
	r := &Registry{
		base:   url.URL{Scheme: ref.Scheme, Host: apiHost(ref.Host)},
		path:   at.path,
		ns:     at.ns,
		header: at.header,
		host:   ref.Host,
		tries:  at.tries,
		agent:  opts.UserAgent,
		log:    opts.Log,
		limits: lim,

		patience: opts.Patience,
	}
	if r.agent == "" {
		r.agent = "epochfs"
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.inner, err = newTransport(opts, at, lim, dial); err != nil {
		return nil, err
	}
	own := withPort("http", r.base.Host)
	r.plain = func(host string) bool {
		return opts.PlainHTTP || ref.Scheme == "http" && host == own
	}
	r.transport = &guard{inner: r.inner, allow: r.plain}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.auth = newAuthorizer(r, opts, epoch)
	return r, nil
}

// apiHost is the host that speaks for ref's host. Docker Hub is the one
// registry whose name is not its host.
func apiHost(host string) string {
	if host == "docker.io" {
		return "index.docker.io"
	}
	return host
}

// Stats returns the counters.
func (r *Registry) Stats() Stats {
	return Stats{
		Requests: r.stats.requests.Load(),
		Bytes:    r.stats.bytes.Load(),
		Sent:     r.stats.sent.Load(),
		Retries:  r.stats.retries.Load(),
	}
}

const (
	rangesUnknown int32 = iota
	rangesIgnored
	rangesServed
)

// Ranges tells whether the registry serves ranges of blobs, once a range
// has been asked for.
func (r *Registry) Ranges() (known, supported bool) {
	n := r.ranges.Load()
	return n != rangesUnknown, n == rangesServed
}

// Close ends what is under way for tokens and closes idle connections.
// Bodies that were handed out stay good until they are closed.
func (r *Registry) Close() {
	r.cancel()
	r.owned.Wait()
	r.inner.CloseIdleConnections()
}

// target names what a request is about, for its errors.
func (r *Registry) target(op, name, id string) target {
	what := name
	switch {
	case id == "":
	case digests.Valid(id):
		what += "@" + id
	default:
		what += ":" + id
	}
	return target{op: op, host: r.host, what: clip(what), name: name, id: id, r: r}
}

// at is the URL of a path below the API's.
func (r *Registry) at(path string) *url.URL {
	u := r.base
	u.Path = r.path + "/" + path
	if r.ns != "" {
		u.RawQuery = url.Values{"ns": {r.ns}}.Encode()
	}
	return &u
}
