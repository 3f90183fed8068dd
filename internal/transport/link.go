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
	opts   Options
	epoch  time.Time      // when the link was made
	work   sync.WaitGroup // doubles

	newest    atomic.Int64 // when that answered request began which began last; since epoch
	lastBytes atomic.Int64 // when bytes last came; since epoch

	// ranges is rangesUnknown until one ranged request was answered.
	ranges  atomic.Int32
	wholes  atomic.Int32  // whole blobs in a row, from a source that honoured ranges before
	probing chan struct{} // holds one token; taken while ranges is unknown

	mu       sync.Mutex
	failures int       // since bytes arrived; those of one moment count once
	retry    time.Time // when the pause after the last failure ends
	last     error     // the last failure, until bytes arrived
	asked    time.Time // before this the source does not want requests
	givenUp  int       // requests in a row that brought nothing until they were given up
	slow     int64     // requests made because another stood still
	budget   budget
	measures

	busy pressure // its read is nil if Options.Tardy is what counts
}

const (
	rangesUnknown = iota
	rangesHonoured
	rangesIgnored
)

// Options tell how to use a link. The zero value is usable.
type Options struct {
	Limit *rate.Limiter // of bytes, maybe of several links; nil: none
	// Timeout is how long the owner waits for bytes; 0: for ever. Requests
	// that bring nothing are given up in time for more than one try.
	Timeout time.Duration
	// Tardy is the shortest time that counts as standing still; 0: as the
	// machine allows. It is for tests, which have a clock of their own, or
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

// Close waits until all requests have ended. The contexts that they were
// made with must have, or their bodies must be closed.
func (l *Link) Close() { l.work.Wait() }

// now returns the time since the link was made.
func (l *Link) now() time.Duration { return time.Since(l.epoch) }

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

// Ranges reports whether the source was asked for a range, and whether it
// serves them.
func (l *Link) Ranges() (known, served bool) {
	ranges := l.ranges.Load()
	return ranges != rangesUnknown, ranges == rangesHonoured
}

// IgnoresRanges reports whether the source was seen to send whole blobs only.
func (l *Link) IgnoresRanges() bool { return l.ranges.Load() == rangesIgnored }

// Open asks for a range and learns from the answer. While it is unknown
// whether ranges are honoured, one request at a time finds out: a registry
// that ignores them would answer each with the whole blob. If they are known
// to be ignored and r is partial, whole is true and answer is nil. adopt is
// called when a whole blob came for a range, before anybody can learn of
// that and ask for the same blob.
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

// probe waits for the turn to find out about ranges, if that is unknown.
// The caller calls release when its answer was learned from.
func (l *Link) probe(ctx context.Context) (release func(), err error) {
	if l.ranges.Load() != rangesUnknown {
		return func() {}, nil
	}
	stuck := time.NewTimer(patienceFirst)
	defer stuck.Stop()
	select {
	case l.probing <- struct{}{}:
		release = func() { <-l.probing }
		if l.ranges.Load() != rangesUnknown { // another has found out
			release()
			release = func() {}
		}
		return release, nil
	case <-stuck.C: // the one whose turn it is does not get an answer
		return func() {}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
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

// Blame reports to the source that bytes of a blob were wrong. answer is
// what they came in, or nil. more reports whether the source has another place to
// get them from.
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
		return errWhole
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
