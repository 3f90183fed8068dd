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

// mirrorLimits are the patience with a mirror: there is always somebody
// else to ask.
func mirrorLimits(l limits) limits {
	l.dial = min(l.dial, 3*time.Second)
	l.answer = min(l.answer, 10*time.Second) // it may have to ask for it itself
	l.stall = min(l.stall, 5*time.Second)
	return l
}

// Mirrors reads from a registry by way of its mirrors: they are asked in
// order, those that fail are left alone for a while, and the registry
// itself is asked last. It is safe for concurrent use.
type Mirrors struct {
	own    *place
	places []*place // the registry itself is the last one
	origin string
	log    *slog.Logger
}

// NewMirrors makes clients of ref's registry and of what conf says stands
// in for it. A mirror that cannot be used is left out, with a warning.
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
	m.own = &place{reg: reg, pull: true, resolve: true, trusted: at.proven(), own: true, log: m.log}
	m.origin = ref.Host
	if !m.own.trusted {
		m.origin += " unproven"
	}
	// --plain-http is said about the registry. What a mirror is spoken to in
	// stands in the file.
	opts.PlainHTTP = false
	for _, h := range conf.Mirrors {
		at := standIn(ref, h, 1)
		reg, err := newAt(at, opts, mirrorLimits(lim), dial)
		if err != nil {
			m.log.Warn("mirror cannot be used", "host", h.Host, "error", err)
			continue
		}
		trusted := at.proven()
		m.places = append(m.places, &place{
			reg: reg, pull: h.Pull, resolve: h.Resolve && trusted, trusted: trusted, log: m.log,
		})
	}
	m.places = append(m.places, m.own)
	for _, key := range conf.Unknown {
		m.log.Warn("key has no effect", "file", conf.File, "key", clip(key))
	}
	return m, nil
}

// proven says that who answers there has proved to be it, by verified TLS
// or by being this machine.
func (at *endpoint) proven() bool {
	return at.ref.Scheme == "https" && !at.skipVerify || at.ref.Scheme == "http" && isLoopback(at.ref.Host)
}

// standIn is the endpoint of a host that stands in for ref's.
func standIn(ref Reference, h hosts.Host, tries uint) endpoint {
	at := endpoint{ref: ref, path: h.Path, ca: h.CA, skipVerify: h.SkipVerify, plain: h.Scheme == "http", header: h.Header, tries: tries}
	at.ref.Scheme, at.ref.Host = h.Scheme, h.Host
	if h.Scheme != ref.Scheme || withPort(h.Scheme, h.Host) != withPort(ref.Scheme, apiHost(ref.Host)) {
		at.ns = ref.Host
	}
	return at
}

// Own is the client of the registry itself.
func (m *Mirrors) Own() *Registry { return m.own.reg }

// Stats adds up the counters of all places.
func (m *Mirrors) Stats() Stats {
	var s Stats
	for _, p := range m.places {
		n := p.reg.Stats()
		s.Requests += n.Requests
		s.Bytes += n.Bytes
		s.Sent += n.Sent
		s.Retries += n.Retries
	}
	return s
}

// Ranges tells whether the registry itself serves ranges of blobs, once it
// has been asked for one. A mirror that does not is not asked for them.
func (m *Mirrors) Ranges() (known, supported bool) { return m.own.reg.Ranges() }

// Close closes all clients.
func (m *Mirrors) Close() {
	for _, p := range m.places {
		p.reg.Close()
	}
}

// want is what is asked for, for the choice of a place.
type want struct {
	id      string // digest, or tag
	resolve bool   // what a tag stands for
	trusted bool   // no digest is there to compare with
	part    bool   // a range that is not all of the blob
}

// errIgnoresRange makes a mirror useless for ranges.
var errIgnoresRange = errors.New("ignores Range")

// ask tries one place after the other until one has it. The error is the
// registry's own.
func ask[T any](ctx context.Context, m *Mirrors, w want, try func(*place) (T, error)) (T, error) {
	for _, p := range m.places {
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
				p.failed(err) // it was given up because nothing came
			}
			return v, err
		}
		p.refused(w, err)
	}
	panic("the registry itself is one of the places")
}

// tooLong is for how long a mirror may keep a request that was then given
// up, without being blamed for it.
const tooLong = 500 * time.Millisecond

// GetManifest is Registry's. A tag is asked for only where the answer can
// be believed: over verified TLS, or on this machine.
func (m *Mirrors) GetManifest(ctx context.Context, name, tag string) ([]byte, string, error) {
	type answer struct {
		raw  []byte
		kind string
	}
	w := want{id: tag, resolve: !digests.Valid(tag)}
	a, err := ask(ctx, m, w, func(p *place) (a answer, err error) {
		a.raw, a.kind, err = p.reg.GetManifest(ctx, name, tag)
		return a, err
	})
	return a.raw, a.kind, err
}

// GetBlob is Registry's. The caller compares the bytes with the digest and
// reports what is wrong with Blame.
func (m *Mirrors) GetBlob(ctx context.Context, name, digest string) (io.ReadCloser, error) {
	return ask(ctx, m, want{id: digest}, func(p *place) (io.ReadCloser, error) {
		body, err := p.reg.GetBlob(ctx, name, digest)
		return p.body(ctx, body, digest), err
	})
}

// GetBlobRange is Registry's, from places that can be believed: a range
// has no digest.
func (m *Mirrors) GetBlobRange(ctx context.Context, name, digest string, off, n int64) (io.ReadCloser, error) {
	return m.getRange(ctx, want{id: digest, trusted: true, part: true}, name, off, n)
}

// GetWhole is GetBlobRange for all size bytes of a blob, which the caller
// compares with the digest. It asks for a range, so that the answer also
// tells whether the registry knows ranges.
func (m *Mirrors) GetWhole(ctx context.Context, name, digest string, size int64) (io.ReadCloser, error) {
	return m.getRange(ctx, want{id: digest}, name, 0, size)
}

func (m *Mirrors) getRange(ctx context.Context, w want, name string, off, n int64) (io.ReadCloser, error) {
	return ask(ctx, m, w, func(p *place) (io.ReadCloser, error) {
		body, err := p.reg.GetBlobRange(ctx, name, w.id, off, n)
		return p.body(ctx, body, w.id), err
	})
}

// Blame tells that bytes of a blob did not have its digest. body is what
// they came in; nil where that is not known any more, then it was the
// first of those that have served the blob. That place is not asked for
// the blob again as long as there are others; more says that there are.
func (m *Mirrors) Blame(digest string, body io.ReadCloser) (more bool) {
	var from *place
	if b, ok := body.(*placed); ok {
		from = b.p
	}
	for _, p := range m.places {
		if from == nil && p.served(digest) {
			from = p
		}
	}
	if from == nil || from.own {
		for _, p := range m.places {
			p.forgive(digest) // the next reader begins anew
		}
		return false
	}
	m.log.Warn("mirror served wrong bytes", "host", from.reg.host, "digest", digest)
	from.blame(digest)
	return true
}

// MirrorSource is one repository as a source of bytes for a cache.
type MirrorSource struct {
	m    *Mirrors
	name string
}

// Source returns the blobs of a repository.
func (m *Mirrors) Source(repository string) *MirrorSource { return &MirrorSource{m, repository} }

// Origin names the registry that stands for bytes without a digest.
func (s *MirrorSource) Origin() string { return s.m.origin }

// Proven says that it proves who it is: by verified TLS, or by being this
// machine.
func (s *MirrorSource) Proven() bool { return s.m.own.trusted }

// OpenBlob is Source's, for bytes that are compared with a digest before
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
	a, err := ask(ctx, s.m, w, func(p *place) (a answer, err error) {
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

// Blame is that of Mirrors.
func (s *MirrorSource) Blame(digest string, body io.ReadCloser) (more bool) {
	return s.m.Blame(digest, body)
}
