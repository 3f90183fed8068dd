package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/registry/hosts"
)

// mirrorLimits returns shorter limits for a mirror, because another host can
// serve the request.
func mirrorLimits(l limits) limits {
	l.dial = min(l.dial, 3*time.Second)
	l.answer = min(l.answer, 10*time.Second) // a mirror may have to fetch it first
	l.stall = min(l.stall, 5*time.Second)
	return l
}

// Mirrors reads from a registry through its mirrors, in order. It avoids a
// failing mirror for a while, and asks the registry itself last. It is safe
// for concurrent use.
type Mirrors struct {
	own       *upstream
	upstreams []*upstream // the registry itself is the last one
	origin    string
	log       *slog.Logger
}

// NewMirrors returns clients of ref's registry and of its mirrors in conf.
// It leaves out a mirror that cannot be used, with a warning.
func NewMirrors(ref Reference, conf *hosts.Config, opts Options) (*Mirrors, error) {
	return newMirrors(ref, conf, opts, defaultLimits(), nil)
}

func newMirrors(ref Reference, conf *hosts.Config, opts Options, lim limits, dial dialFunc) (*Mirrors, error) {
	m := &Mirrors{log: opts.Log}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	at := endpoint{ref: ref, path: apiPath, tries: maxTries}
	if s := conf.Server; s != nil {
		at = standIn(ref, *s, maxTries)
	}
	reg, err := newAt(at, opts, lim, dial)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref.Host, err)
	}
	m.own = &upstream{reg: reg, pull: true, resolve: true, trusted: at.proven(), own: true, log: m.log}
	m.origin = ref.Host
	if !m.own.trusted {
		m.origin += " unproven"
	}
	// --plain-http concerns the registry. The file has the mirror's scheme.
	opts.PlainHTTP = false
	for _, h := range conf.Mirrors {
		at := standIn(ref, h, 1)
		reg, err := newAt(at, opts, mirrorLimits(lim), dial)
		if err != nil {
			m.log.Warn("mirror cannot be used", "host", h.Host, "error", err)
			continue
		}
		trusted := at.proven()
		m.upstreams = append(m.upstreams, &upstream{
			reg: reg, pull: h.Pull, resolve: h.Resolve && trusted, trusted: trusted, log: m.log,
		})
	}
	m.upstreams = append(m.upstreams, m.own)
	for _, key := range conf.Unknown {
		m.log.Warn("key has no effect", "file", conf.File, "key", clip(key))
	}
	return m, nil
}

// proven reports whether the host proves its identity, by verified TLS or by
// being this machine.
func (at *endpoint) proven() bool {
	return at.ref.Scheme == "https" && !at.skipVerify || at.ref.Scheme == "http" && isLoopback(at.ref.Host)
}

// standIn returns the endpoint of a mirror of ref's host.
func standIn(ref Reference, h hosts.Host, tries uint) endpoint {
	at := endpoint{ref: ref, path: h.Path, ca: h.CA, skipVerify: h.SkipVerify, plain: h.Scheme == "http", header: h.Header, tries: tries}
	at.ref.Scheme, at.ref.Host = h.Scheme, h.Host
	if h.Scheme != ref.Scheme || withPort(h.Scheme, h.Host) != withPort(ref.Scheme, apiHost(ref.Host)) {
		at.ns = ref.Host
	}
	return at
}

// Own returns the client of the registry itself.
func (m *Mirrors) Own() *Registry { return m.own.reg }

// Stats returns the sum of all clients' counters.
func (m *Mirrors) Stats() Stats {
	var s Stats
	for _, p := range m.upstreams {
		n := p.reg.Stats()
		s.Requests += n.Requests
		s.Bytes += n.Bytes
		s.Sent += n.Sent
		s.Retries += n.Retries
	}
	return s
}

// Ranges reports whether the registry itself serves ranges of blobs, once it
// was asked for one. A mirror that does not is not asked for ranges.
func (m *Mirrors) Ranges() (known, supported bool) { return m.own.reg.Ranges() }

// Close closes all clients.
func (m *Mirrors) Close() {
	for _, p := range m.upstreams {
		p.reg.Close()
	}
}

// want describes a request, for the choice of an upstream.
type want struct {
	id      string // digest, or tag
	resolve bool   // resolves a tag
	trusted bool   // no digest is there to verify the bytes
	part    bool   // a range that is not the whole blob
}

// errIgnoresRange disqualifies a mirror for ranges.
var errIgnoresRange = errors.New("ignores Range")

// ask tries one upstream after the other until one succeeds. It returns the
// registry's own error if none does.
func ask[T any](ctx context.Context, m *Mirrors, w want, try func(*upstream) (T, error)) (T, error) {
	for _, p := range m.upstreams {
		if !p.own && !p.serves(w, time.Now()) {
			continue
		}
		began := time.Now()
		v, err := try(p)
		if err == nil || p.own {
			return v, err
		}
		if ctx.Err() != nil {
			if time.Since(began) > tooLong {
				p.failed(err) // given up because no bytes came
			}
			return v, err
		}
		p.refused(w, err)
	}
	panic("the registry itself is an upstream")
}

// tooLong is how long a mirror may hold a request that is then given up,
// without being blamed for it. A cache that has others wait while it fetches a
// slice, and look again every half a second, is no worse than one that fetches
// it for each.
const tooLong = 2 * time.Second

// GetManifest is Registry.GetManifest. It resolves a tag only with upstreams
// that prove their identity: by verified TLS, or on this machine.
func (m *Mirrors) GetManifest(ctx context.Context, name, tag string) ([]byte, string, error) {
	type answer struct {
		raw  []byte
		kind string
	}
	w := want{id: tag, resolve: !digests.Valid(tag)}
	a, err := ask(ctx, m, w, func(p *upstream) (a answer, err error) {
		a.raw, a.kind, err = p.reg.GetManifest(ctx, name, tag)
		return a, err
	})
	return a.raw, a.kind, err
}

// GetBlob is Registry.GetBlob. The caller verifies the digest and reports
// wrong bytes with Blame.
func (m *Mirrors) GetBlob(ctx context.Context, name, digest string) (io.ReadCloser, error) {
	return ask(ctx, m, want{id: digest}, func(p *upstream) (io.ReadCloser, error) {
		body, err := p.reg.GetBlob(ctx, name, digest)
		return p.body(ctx, body, digest), err
	})
}

// GetBlobRange is Registry.GetBlobRange, from trusted upstreams only, because a
// range has no digest.
func (m *Mirrors) GetBlobRange(ctx context.Context, name, digest string, off, n int64) (io.ReadCloser, error) {
	return m.getRange(ctx, want{id: digest, trusted: true, part: true}, name, off, n)
}

// GetWhole is GetBlobRange for all size bytes of a blob, which the caller
// verifies. It sends a ranged request, so that the answer also shows whether
// the registry honours ranges.
func (m *Mirrors) GetWhole(ctx context.Context, name, digest string, size int64) (io.ReadCloser, error) {
	return m.getRange(ctx, want{id: digest}, name, 0, size)
}

func (m *Mirrors) getRange(ctx context.Context, w want, name string, off, n int64) (io.ReadCloser, error) {
	return ask(ctx, m, w, func(p *upstream) (io.ReadCloser, error) {
		body, err := p.reg.GetBlobRange(ctx, name, w.id, off, n)
		return p.body(ctx, body, w.id), err
	})
}

// Blame reports that bytes of a blob did not have its digest. body is the
// body they came in, or nil if that is no longer known; then the first upstream
// that served the blob is blamed. The upstream is not asked for the blob again
// while others can be; more reports whether there are any.
func (m *Mirrors) Blame(digest string, body io.ReadCloser) (more bool) {
	var from *upstream
	if b, ok := body.(*upstreamBody); ok {
		from = b.p
	}
	for _, p := range m.upstreams {
		if from == nil && p.served(digest) {
			from = p
		}
	}
	if from == nil || from.own {
		for _, p := range m.upstreams {
			p.forgive(digest) // the next reader begins anew
		}
		return false
	}
	m.log.Warn("mirror served wrong bytes", "host", from.reg.host, "digest", digest)
	from.blame(digest)
	return true
}

// MirrorSource is one repository of a Mirrors, as a source of blobs.
type MirrorSource struct {
	m    *Mirrors
	name string
}

// Source returns the blobs of a repository.
func (m *Mirrors) Source(repository string) *MirrorSource { return &MirrorSource{m, repository} }

// Origin returns the name of the registry that vouches for bytes without a
// digest.
func (s *MirrorSource) Origin() string { return s.m.origin }

// Proven reports whether that registry proves its identity: by verified TLS,
// or by being this machine.
func (s *MirrorSource) Proven() bool { return s.m.own.trusted }

// OpenBlob is Source.OpenBlob, for bytes whose digest is verified before
// they are used.
func (s *MirrorSource) OpenBlob(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	return s.open(ctx, want{id: digest, part: off != 0 || n != size}, size, off, n)
}

// OpenTrusted is OpenBlob for all other bytes.
func (s *MirrorSource) OpenTrusted(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	return s.open(ctx, want{id: digest, part: off != 0 || n != size, trusted: true}, size, off, n)
}

func (s *MirrorSource) open(ctx context.Context, w want, size, off, n int64) (io.ReadCloser, bool, error) {
	type answer struct {
		body  io.ReadCloser
		whole bool
	}
	a, err := ask(ctx, s.m, w, func(p *upstream) (a answer, err error) {
		a.body, a.whole, err = p.reg.Source(s.name).OpenBlob(ctx, w.id, size, off, n)
		if err == nil && a.whole && w.part && !p.own {
			a.body.Close()
			return answer{}, errIgnoresRange
		}
		a.body = p.body(ctx, a.body, w.id)
		return a, err
	})
	return a.body, a.whole, err
}

// Blame is Mirrors.Blame.
func (s *MirrorSource) Blame(digest string, body io.ReadCloser) (more bool) {
	return s.m.Blame(digest, body)
}
