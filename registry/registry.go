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

// defaultConcurrency is the number of requests that connections are kept for
// if Options.Concurrency is 0.
const defaultConcurrency = 16

// Options configure a client.
type Options struct {
	CACert      string // PEM file with root certificates to trust besides the system's
	EpochServer string // EPOCH_SERVER's value; "" for DefaultServer
	EpochToken  string // EPOCH_REGISTRY_TOKEN's value, sent only to the epoch server
	PlainHTTP   bool   // allow plain HTTP to every host

	Keychain    authn.Keychain // credentials of all other hosts; nil for those stored by docker and podman
	Concurrency int            // expected concurrent requests; 0 for 16
	UserAgent   string         // "" for "epochfs"
	Log         *slog.Logger   // nil for no log

	// Patience bounds the wait for a registry that has answered before and
	// is unreachable now, and the pause that it may ask for, before a
	// request fails; 0 for a moment. It is meant for uploads: readers have a
	// patience of their own.
	Patience time.Duration
}

// Registry is a client of one registry. It is safe for concurrent use.
type Registry struct {
	base      url.URL     // scheme and host
	path      string      // of the API, such as "/v2"
	ns        string      // the registry that this one mirrors, or ""
	header    http.Header // added to every request
	host      string      // for messages
	tries     uint        // tries of a small request
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

	badSessions atomic.Bool     // sessions that a mount opens are unusable
	ctx         context.Context // ends with Close
	cancel      context.CancelFunc
	owned       sync.WaitGroup // goroutines that may outlive a call
}

// Stats are a client's counters since New.
type Stats struct {
	Requests int64 // HTTP requests sent, including redirects and those for tokens
	Bytes    int64 // bytes of bodies received
	Sent     int64 // bytes of bodies sent
	Retries  int64 // requests repeated after a failure
}

// New returns a client of ref's host. It sends nothing. It fails if the
// reference needs plain HTTP and that is not allowed.
func New(ref Reference, opts Options) (*Registry, error) {
	return newRegistry(ref, opts, defaultLimits(), nil)
}

// endpoint is the address of a registry and how to talk to it.
type endpoint struct {
	ref        Reference // its scheme and host are used
	path       string
	ns         string
	ca         []string // additional PEM files
	skipVerify bool     // do not verify the host's certificate; others are verified
	plain      bool     // plain HTTP to the host is allowed
	header     http.Header
	tries      uint
}

func newRegistry(ref Reference, opts Options, lim limits, dial dialFunc) (*Registry, error) {
	return newAt(endpoint{ref: ref, path: apiPath, tries: maxTries}, opts, lim, dial)
}

// apiPath is the root of the distribution API.
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

// apiHost returns the host of a registry's API. Docker Hub is the only
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

// Ranges reports whether the registry serves ranges of blobs, once a range
// was requested.
func (r *Registry) Ranges() (known, supported bool) {
	n := r.ranges.Load()
	return n != rangesUnknown, n == rangesServed
}

// Close ends requests for tokens and closes idle connections. Open bodies
// stay usable until they are closed.
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

// at returns the URL of a path below the API's root.
func (r *Registry) at(path string) *url.URL {
	u := r.base
	u.Path = r.path + "/" + path
	if r.ns != "" {
		u.RawQuery = url.Values{"ns": {r.ns}}.Encode()
	}
	return &u
}
