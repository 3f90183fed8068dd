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

// Bounds of the pause between two tries on a failing link.
const (
	backoffFirst = 100 * time.Millisecond
	backoffMost  = 10 * time.Second
	// retryAfterMost bounds the pause that a registry can ask for.
	retryAfterMost = 5 * time.Minute
)

// rateBurst is the number of bytes that a rate limit lets pass at once.
const rateBurst = 256 << 10

// NewLimiter returns a limiter to n bytes per second, or nil if n is 0.
func NewLimiter(n int64) *rate.Limiter {
	if n <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(n), int(min(n, rateBurst)))
}

// Link is the path to one Source, with what its answers have shown. It is
// safe for concurrent use.
type Link struct {
	src    Source
	proven bool
	opts   Options
	epoch  time.Time      // when the link was made
	work   sync.WaitGroup // doubles

	newest    atomic.Int64 // the latest start of an answered request; since epoch
	lastBytes atomic.Int64 // when bytes were last received; since epoch

	// ranges is rangesUnknown until one ranged request was answered.
	ranges  atomic.Int32
	wholes  atomic.Int32  // consecutive whole blobs from a source that honoured ranges before
	probing chan struct{} // holds one token; taken while ranges is unknown

	mu       sync.Mutex
	failures int       // since bytes were received; concurrent failures count once
	retry    time.Time // when the pause after the last failure ends
	last     error     // the last failure, until bytes arrived
	asked    time.Time // the source does not want requests before this time
	givenUp  int       // consecutive requests given up without bytes
	slow     int64     // requests made because another stalled
	budget   budget
	measures

	busy pressure // its read is nil if Options.Tardy is set
}

const (
	rangesUnknown = iota
	rangesHonoured
	rangesIgnored
)

// Options configures a link. The zero value is usable.
type Options struct {
	Limit *rate.Limiter // in bytes, may be shared by links; nil: no limit
	// Timeout is how long the owner waits for bytes; 0: for ever.
	// Requests without bytes are given up early enough for more than one
	// try.
	Timeout time.Duration
	// Tardy is the shortest wait that counts as a stall; 0: as the
	// machine allows. It is for tests with a clock of their own, or that
	// count requests.
	Tardy time.Duration
}

// NewLink returns a link to src.
func NewLink(src Source, opts Options) *Link {
	l := &Link{
		src: src, proven: Proven(src), opts: opts, probing: make(chan struct{}, 1), epoch: time.Now(),
		budget: budget{tokens: tokensFirst, filled: time.Now()}, measures: newMeasures(),
	}
	if opts.Tardy <= 0 {
		l.opts.Tardy = tardyLeast
		l.busy.read = readPressure
	}
	return l
}

// Close blocks until all requests have ended. Their contexts must have
// ended, or their bodies must be closed.
func (l *Link) Close() { l.work.Wait() }

// now returns the time since the link was made.
func (l *Link) now() time.Duration { return time.Since(l.epoch) }

// Origin returns the name of the registry that vouches for unverified bytes,
// or "" if the source has no such name.
func (l *Link) Origin() string {
	if o, ok := l.src.(Origin); ok {
		return o.Origin()
	}
	return ""
}

// Proven reports whether the source has authenticated itself.
func (l *Link) Proven() bool { return l.proven }

// Ranges reports whether a range was requested from the source, and whether
// the source serves ranges.
func (l *Link) Ranges() (known, served bool) {
	ranges := l.ranges.Load()
	return ranges != rangesUnknown, ranges == rangesHonoured
}

// IgnoresRanges reports whether the source is known to send only whole
// blobs.
func (l *Link) IgnoresRanges() bool { return l.ranges.Load() == rangesIgnored }

// Open requests a range and learns from the answer. While it is unknown
// whether ranges are honoured, Open sends one request at a time: a registry
// that ignores ranges would answer each with the whole blob. If ranges are
// known to be ignored and r is partial, whole is true and answer is nil.
// Open calls adopt when a whole blob arrives for a range, before other
// callers can learn that ranges are ignored and request the same blob.
func (l *Link) Open(ctx context.Context, r Range, adopt func()) (answer io.ReadCloser, whole bool, err error) {
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
	b, err := l.open(ctx, r)
	if err != nil {
		return nil, false, err
	}
	whole = b.cur.whole
	if r.partial() {
		if err := l.learn(whole, adopt); err != nil {
			_ = b.Close()
			return nil, false, err
		}
	}
	return b, whole, nil
}

// probe blocks until the caller may send a request that finds out whether
// ranges are honoured, or until that is known. The caller calls release
// after it has learned from the answer.
func (l *Link) probe(ctx context.Context) (release func(), err error) {
	if l.ranges.Load() != rangesUnknown {
		return func() {}, nil
	}
	stuck := time.NewTimer(patienceFirst)
	defer stuck.Stop()
	select {
	case l.probing <- struct{}{}:
		release = func() { <-l.probing }
		if l.ranges.Load() != rangesUnknown { // another request has found out
			release()
			release = func() {}
		}
		return release, nil
	case <-stuck.C: // the probing request gets no answer
		return func() {}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// keepAway blocks as long as the source has asked to be left alone.
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

// Blame reports to the source that bytes of a blob were wrong. answer is the
// body that contained them, or nil. more reports whether the source can get
// the blob from another mirror.
func (l *Link) Blame(digest string, answer io.ReadCloser) (more bool) {
	m, ok := l.src.(Mirrored)
	if !ok {
		return false
	}
	if b, ok := answer.(*body); ok {
		answer = b.cur.body
	}
	return m.Blame(digest, answer)
}

// wholesMost is how many consecutive whole blobs show that a source which
// honoured ranges now ignores them. A single one may come from a proxy.
const wholesMost = 3

// learn records how a ranged request was answered. It returns an error for a
// whole blob from a source that is known to honour ranges.
func (l *Link) learn(whole bool, adopt func()) error {
	switch {
	case !whole:
		l.ranges.Store(rangesHonoured)
		l.wholes.Store(0)
		return nil
	case l.ranges.Load() == rangesHonoured && l.wholes.Add(1) < wholesMost:
		return errWhole
	}
	adopt()
	l.ranges.Store(rangesIgnored)
	return nil
}

// Pause counts a failure and returns how long to wait before the next try: a
// bounded time with jitter that doubles with each failure, or as long as err
// asks for. Requests that fail during a pause share it.
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

// leaveAlone records how long an error asks to leave the source alone.
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
	d += rand.N(d/10 + 1) // thousands of nodes may have got the same time
	if until := time.Now().Add(d); until.After(l.asked) {
		l.asked = until
	}
	return true
}

// Trouble returns the link's last failure, or nil if bytes have arrived
// since.
func (l *Link) Trouble() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}
