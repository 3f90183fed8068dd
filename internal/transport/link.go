package transport

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Bounds of the pause between two tries at a link that fails.
const (
	backoffFirst = 100 * time.Millisecond
	backoffMost  = 10 * time.Second
	// retryAfterMost bounds the pause that a registry can ask for.
	retryAfterMost = 5 * time.Minute
)

// rateBurst is how many bytes may pass at once under a rate limit.
const rateBurst = 256 << 10

// NewLimiter returns a limit of n bytes per second, or nil if n is 0.
func NewLimiter(n int64) *rate.Limiter {
	if n <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(n), int(min(n, rateBurst)))
}

// Link is the way to one Source and what its answers have shown so far. It
// is safe for concurrent use.
type Link struct {
	src    Source
	proven bool
	rate   *rate.Limiter // nil without a limit

	// ranges is rangesUnknown until one ranged request was answered.
	ranges  atomic.Int32
	wholes  atomic.Int32  // whole blobs in a row, from a source that honoured ranges before
	probing chan struct{} // holds one token; taken while ranges is unknown

	mu       sync.Mutex
	failures int       // since bytes arrived; those of one moment count once
	retry    time.Time // when the pause after the last failure ends
	last     error     // the last failure, until bytes arrived
	asked    time.Time // before this the source does not want requests
	measures
}

const (
	rangesUnknown = iota
	rangesHonoured
	rangesIgnored
)

// NewLink returns a link to src. limit may be nil, and may be shared by
// several links.
func NewLink(src Source, limit *rate.Limiter) *Link {
	return &Link{src: src, proven: Proven(src), rate: limit, probing: make(chan struct{}, 1), measures: newMeasures()}
}

// Origin returns the name of who stands for the bytes, or "" if the source
// names nobody.
func (l *Link) Origin() string {
	if o, ok := l.src.(Origin); ok {
		return o.Origin()
	}
	return ""
}

// Proven reports whether the source has proved who it is.
func (l *Link) Proven() bool { return l.proven }

// IgnoresRanges reports whether the source was seen to send whole blobs only.
func (l *Link) IgnoresRanges() bool { return l.ranges.Load() == rangesIgnored }

// Open asks for a range and learns from the answer. While it is unknown
// whether ranges are honoured, one request at a time finds out: a registry
// that ignores them would answer each with the whole blob. If they are known
// to be ignored and r is partial, whole is true and body is nil. adopt is
// called when a whole blob came for a range, before anybody can learn of
// that and ask for the same blob.
func (l *Link) Open(ctx context.Context, r Range, adopt func()) (body io.ReadCloser, whole bool, err error) {
	if r.partial() {
		release, err := l.probe(ctx)
		if err != nil {
			return nil, false, err
		}
		defer release()
		if l.IgnoresRanges() {
			return nil, true, nil
		}
	}
	if err := l.keepAway(ctx); err != nil {
		return nil, false, err
	}
	began := time.Now()
	body, whole, err = l.ask(ctx, r)
	if err != nil {
		return nil, false, err
	}
	if l.rate != nil {
		body = &slowed{body, ctx, l.rate}
	}
	l.tookToFirstByte(time.Since(began))
	if r.partial() {
		if err := l.learn(whole, adopt); err != nil {
			_ = body.Close()
			return nil, false, err
		}
	}
	return body, whole, nil
}

// probe waits for the turn to find out about ranges, if that is unknown.
// The caller calls release when its answer was learned from.
func (l *Link) probe(ctx context.Context) (release func(), err error) {
	if l.ranges.Load() != rangesUnknown {
		return func() {}, nil
	}
	stuck := time.NewTimer(l.Patience(0))
	defer stuck.Stop()
	select {
	case l.probing <- struct{}{}:
		return func() { <-l.probing }, nil
	case <-stuck.C: // the one whose turn it is does not get an answer
		return func() {}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ask makes one request.
func (l *Link) ask(ctx context.Context, r Range) (body io.ReadCloser, whole bool, err error) {
	open := l.src.OpenBlob
	if m, ok := l.src.(Mirrored); ok && !r.Checked {
		open = m.OpenTrusted
	}
	body, whole, err = open(ctx, r.Digest, r.Size, r.Off, r.N)
	if err != nil {
		l.leaveAlone(err) // before another probe goes out
	}
	return body, whole, err
}

// keepAway waits for as long as the source has asked to be left alone.
func (l *Link) keepAway(ctx context.Context) error {
	l.mu.Lock()
	left := time.Until(l.asked)
	l.mu.Unlock()
	if left <= 0 {
		return nil
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// slowed is a body that keeps to a rate.
type slowed struct {
	io.ReadCloser
	ctx  context.Context
	rate *rate.Limiter
}

func (s *slowed) Read(p []byte) (int, error) {
	p = p[:min(len(p), s.rate.Burst())]
	n, err := s.ReadCloser.Read(p)
	if n > 0 {
		if late := s.rate.WaitN(s.ctx, n); late != nil && err == nil {
			err = late
		}
	}
	return n, err
}

// Blame reports to the source that bytes of a blob were wrong. body is what
// they came in, or nil. more reports whether the source has another place to
// get them from.
func (l *Link) Blame(digest string, body io.ReadCloser) (more bool) {
	m, ok := l.src.(Mirrored)
	if !ok {
		return false
	}
	if s, ok := body.(*slowed); ok {
		body = s.ReadCloser
	}
	return m.Blame(digest, body)
}

// wholesMost is how many whole blobs in a row make a source that honoured
// ranges one that ignores them. One may come by way of some proxy.
const wholesMost = 3

// learn notes how a ranged request was answered. It fails if a whole blob
// came from a source that is known to honour ranges.
func (l *Link) learn(whole bool, adopt func()) error {
	switch {
	case !whole:
		l.ranges.Store(rangesHonoured)
		l.wholes.Store(0)
		return nil
	case l.ranges.Load() == rangesHonoured && l.wholes.Add(1) < wholesMost:
		return errors.New("all of a blob came for a range of it")
	}
	adopt()
	l.ranges.Store(rangesIgnored)
	return nil
}

// Pause counts a failure and returns how long to wait before the next try:
// a time that doubles with each failure, with jitter, bounded; or as long as
// err asks for. Requests that fail during a pause share it.
func (l *Link) Pause(err error) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.last = err
	if l.leaveAloneLocked(err) {
		l.failures++
		return time.Until(l.asked)
	}
	if left := l.retry.Sub(now); left > 0 {
		return left
	}
	d := min(backoffFirst<<min(l.failures, 10), backoffMost)
	l.failures++
	d = d/2 + rand.N(d/2+1)
	l.retry = now.Add(d)
	return d
}

// leaveAlone notes for how long an error asks to be left alone.
func (l *Link) leaveAlone(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaveAloneLocked(err)
}

func (l *Link) leaveAloneLocked(err error) bool {
	var later interface{ RetryAfter() time.Duration }
	if !errors.As(err, &later) || later.RetryAfter() <= 0 {
		return false
	}
	d := min(later.RetryAfter(), retryAfterMost)
	d += rand.N(d/10 + 1) // a thousand nodes were told the same
	if until := time.Now().Add(d); until.After(l.asked) {
		l.asked = until
	}
	return true
}

// Trouble returns why the link does not bring bytes just now, or nil.
func (l *Link) Trouble() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}
