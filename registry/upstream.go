package registry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// upstream is a mirror or the registry itself, with its history.
type upstream struct {
	reg     *Registry
	pull    bool
	resolve bool
	trusted bool // it proves its identity
	own     bool // the registry itself: asked last, and always
	log     *slog.Logger

	mu       sync.Mutex
	failures int // since the last complete body
	until    time.Time
	last     error // the last failure; nil after a complete body
	blobs    map[string]seen
}

// seen is the history of an upstream with a blob.
type seen struct {
	missing time.Time // the upstream lacked it, and is not asked again before this time
	whole   time.Time // the upstream sent all of it for a range, and is not asked for one before this time
	wholes  uint      // number of those answers
	served  bool
	wrong   bool // the upstream sent bytes with a wrong digest
}

const (
	// maxSeen bounds the blobs with a history, for each upstream.
	maxSeen = 4096
	// missingFor is how long a mirror is expected to lack a blob that it
	// lacked: a peer may get it.
	missingFor = 30 * time.Second
	// Bounds of the time for which a failing mirror is avoided.
	aloneFirst = time.Second
	aloneMost  = 2 * time.Minute
	// Bounds of the time for which an upstream that sent a whole blob is not
	// asked for ranges of it. A pull-through cache does so while it fetches
	// the blob.
	wholeFirst = 2 * time.Second
	wholeMost  = 5 * time.Minute
)

// serves reports whether the upstream is worth asking.
func (p *upstream) serves(w want, now time.Time) bool {
	if !p.pull || w.resolve && !p.resolve || w.trusted && !p.trusted {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.blobs[w.id]
	return !now.Before(p.until) && !now.Before(s.missing) && !s.wrong && !(w.part && now.Before(s.whole))
}

// change updates the history of a blob.
func (p *upstream) change(digest string, f func(*seen)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blobs == nil || len(p.blobs) >= maxSeen {
		p.blobs = map[string]seen{} // only hints are lost
	}
	s := p.blobs[digest]
	f(&s)
	p.blobs[digest] = s
}

func (p *upstream) blame(digest string) { p.change(digest, func(s *seen) { s.wrong = true }) }

func (p *upstream) forgive(digest string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.blobs, digest)
}

// served reports whether the upstream sent bytes of a blob that were not found
// wrong.
func (p *upstream) served(digest string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.blobs[digest]
	return s.served && !s.wrong
}

// refused records why a mirror did not serve a request.
func (p *upstream) refused(w want, err error) {
	switch {
	case errors.Is(err, errIgnoresRange):
		p.change(w.id, func(s *seen) {
			s.whole = time.Now().Add(min(wholeFirst<<min(s.wholes, 10), wholeMost))
			s.wholes++
		})
		p.log.Debug("mirror sends all of a blob for a range", "host", p.reg.host, "digest", w.id)
	case errors.Is(err, ErrNotFound):
		p.change(w.id, func(s *seen) { s.missing = time.Now().Add(missingFor) })
	case errors.Is(err, ErrContent):
		p.blame(w.id)
		p.log.Warn("mirror served something else", "host", p.reg.host, "error", err)
	default:
		p.failed(err)
	}
}

// failed makes requests avoid the mirror: longer each time, or for as long
// as the mirror asked for.
func (p *upstream) failed(err error) {
	if p.own {
		return
	}
	p.mu.Lock()
	now := time.Now()
	if now.Before(p.until) {
		p.mu.Unlock()
		return // concurrent failures count once
	}
	d := min(aloneFirst<<min(p.failures, 10), aloneMost)
	var e *Error
	if errors.As(err, &e) {
		d = max(d, e.RetryAfter())
	}
	d += rand.N(d/4 + 1)
	p.failures++
	p.last = err
	p.until = now.Add(d)
	first := p.failures == 1
	p.mu.Unlock()
	if first {
		p.log.Warn("mirror fails and is left alone for a while", "host", p.reg.host, "error", err)
	}
}

func (p *upstream) recovered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures, p.last = 0, nil
}

// body returns rc with its result recorded; nil stays nil.
func (p *upstream) body(ctx context.Context, rc io.ReadCloser, digest string) io.ReadCloser {
	if rc == nil {
		return nil
	}
	p.change(digest, func(s *seen) { s.served = true })
	return &upstreamBody{ReadCloser: rc, ctx: ctx, p: p, moved: time.Now()}
}

// upstreamBody is a body from an upstream.
type upstreamBody struct {
	io.ReadCloser
	ctx   context.Context
	p     *upstream
	moved time.Time // when the last Read began, or ended without error
	told  bool
}

// Read records how the body ends.
func (b *upstreamBody) Read(buf []byte) (int, error) {
	if !b.told {
		b.moved = time.Now()
	}
	n, err := b.ReadCloser.Read(buf)
	if err == nil || b.told {
		return n, err
	}
	b.told = true
	switch {
	case err == io.EOF:
		b.p.recovered()
	case b.ctx.Err() == nil || time.Since(b.moved) > tooLong:
		b.p.failed(err)
	}
	return n, err
}
