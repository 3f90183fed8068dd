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

// place is a mirror, or the registry itself, and what was seen of it.
type place struct {
	reg     *Registry
	pull    bool
	resolve bool
	trusted bool // it proves who it is
	own     bool // the registry itself: asked last, and always
	log     *slog.Logger

	mu       sync.Mutex
	failures int // without a body that came whole since
	until    time.Time
	last     error // the last failure; nil since a body came whole
	blobs    map[string]seen
}

// seen is what a place did with a blob.
type seen struct {
	missing time.Time // it had none, and is not asked again before this
	whole   time.Time // it sent all of it for a range, and is not asked for one before this
	wholes  uint      // how often it did
	served  bool
	wrong   bool // bytes without the right digest
}

const (
	// maxSeen bounds the blobs a place is remembered for.
	maxSeen = 4096
	// missingFor is how long a mirror is taken not to have a blob it did
	// not have: a peer may get it.
	missingFor = 30 * time.Second
	// Bounds of the time for which a mirror that fails is left alone.
	aloneFirst = time.Second
	aloneMost  = 2 * time.Minute
	// Bounds of the time for which it is not asked again for ranges of a
	// blob of which it sent all: a pull-through cache does so while it
	// fetches the blob itself.
	wholeFirst = 2 * time.Second
	wholeMost  = 5 * time.Minute
)

// serves tells whether it is worth asking.
func (p *place) serves(w want, now time.Time) bool {
	if !p.pull || w.resolve && !p.resolve || w.trusted && !p.trusted {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.blobs[w.id]
	return !now.Before(p.until) && !now.Before(s.missing) && !s.wrong && !(w.part && now.Before(s.whole))
}

// change notes something about a blob.
func (p *place) change(digest string, f func(*seen)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blobs == nil || len(p.blobs) >= maxSeen {
		p.blobs = map[string]seen{} // only a hint is lost
	}
	s := p.blobs[digest]
	f(&s)
	p.blobs[digest] = s
}

func (p *place) blame(digest string) { p.change(digest, func(s *seen) { s.wrong = true }) }

func (p *place) forgive(digest string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.blobs, digest)
}

// served tells whether bytes of a blob came from here and were not found
// wrong.
func (p *place) served(digest string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.blobs[digest]
	return s.served && !s.wrong
}

// refused notes why a mirror did not serve what was asked for.
func (p *place) refused(w want, err error) {
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

// failed leaves the mirror alone for a while: longer each time, or for as
// long as it asks for.
func (p *place) failed(err error) {
	if p.own {
		return
	}
	p.mu.Lock()
	now := time.Now()
	if now.Before(p.until) {
		p.mu.Unlock()
		return // requests of one moment count once
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

func (p *place) recovered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures, p.last = 0, nil
}

// body watches what becomes of an answer; nil stays nil.
func (p *place) body(ctx context.Context, rc io.ReadCloser, digest string) io.ReadCloser {
	if rc == nil {
		return nil
	}
	p.change(digest, func(s *seen) { s.served = true })
	return &placed{ReadCloser: rc, ctx: ctx, p: p, moved: time.Now()}
}

// placed is a body that came from a place.
type placed struct {
	io.ReadCloser
	ctx   context.Context
	p     *place
	moved time.Time // when the last Read began or ended well
	told  bool
}

// Read notes how the body ends.
func (b *placed) Read(buf []byte) (int, error) {
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
