package cache

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Source reads stored blobs. It must be comparable, and safe for
// concurrent use.
type Source interface {
	// OpenBlob opens bytes [off, off+n) of the stored blob, whose size is
	// given. Where the registry ignores ranges, whole is true and the body
	// is all of the blob from its first byte. A body that ends early ends
	// with an error other than io.EOF.
	//
	// An error in whose chain a method Temporary() bool answers false is
	// final. Any other is taken up again.
	OpenBlob(ctx context.Context, digest string, size, off, n int64) (body io.ReadCloser, whole bool, err error)
}

// Mirrored is a Source with several places to get bytes from.
type Mirrored interface {
	Source
	// OpenTrusted is OpenBlob for bytes that readers get before a digest
	// has vouched for them: only from places that prove who they are.
	OpenTrusted(ctx context.Context, digest string, size, off, n int64) (body io.ReadCloser, whole bool, err error)
	// Blame tells that bytes of a blob did not have their digest. body is
	// what they came in, nil where that is not known any more. Their place
	// is not asked for this blob again as long as there are others; more
	// says that there are.
	Blame(digest string, body io.ReadCloser) (more bool)
}

// Bounds of the wait between two tries at a link that fails.
const (
	backoffFirst = 100 * time.Millisecond
	backoffMost  = 10 * time.Second
	// askedMost bounds the wait that a registry can ask for.
	askedMost = 5 * time.Minute
)

// link is what has been learned about one source.
type link struct {
	src    Source
	proven bool // who is behind it; see Origin

	// ranges is rangesUnknown until one ranged request was answered.
	ranges  atomic.Int32
	wholes  atomic.Int32  // whole blobs in a row, from a source that honoured ranges before
	probing chan struct{} // holds one token; taken while ranges is unknown
	rate    *rate.Limiter // of the process; nil without a limit

	mu       sync.Mutex
	failures int           // since the last byte that arrived; those of one moment count once
	retry    time.Time     // when the pause after the last failure ends
	last     error         // the last failure, until a byte arrived
	asked    time.Time     // before this the source does not want requests
	delay    time.Duration // smoothed time from request to first byte
	speed    float64       // smoothed bytes per second of one connection
	latency  Histogram     // of that time
}

const (
	rangesUnknown = iota
	rangesHonoured
	rangesIgnored
)

func newLink(src Source, r *rate.Limiter) *link {
	return &link{src: src, proven: proven(src), probing: make(chan struct{}, 1), rate: r, latency: newLatency()}
}

// slowed is a body that keeps to the process's rate.
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

// open asks for a range and learns from the answer. As long as nobody
// knows whether ranges are honoured, one request at a time finds out: a
// registry that ignores them would answer each with the whole blob. Where
// they are known to be ignored, whole is true and there is no body. adopt
// is called when a whole blob came for a range, before anybody learns of
// that and asks for the same blob. checked says that the bytes have a
// digest to be compared with before they are used.
func (l *link) open(ctx context.Context, p *layout.Part, off, n int64, checked bool, adopt func()) (io.ReadCloser, bool, error) {
	partial := off > 0 || n < p.StoredSize
	if partial && l.ranges.Load() == rangesUnknown {
		stuck := time.NewTimer(l.patience(0))
		defer stuck.Stop()
		select {
		case l.probing <- struct{}{}:
			defer func() { <-l.probing }()
		case <-stuck.C: // who is to find out does not get to it
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
	if partial && l.ignoresRanges() {
		return nil, true, nil
	}
	if err := l.keepAway(ctx); err != nil {
		return nil, false, err
	}
	began := time.Now()
	ask := l.src.OpenBlob
	if m, ok := l.src.(Mirrored); ok && !checked {
		ask = m.OpenTrusted
	}
	body, whole, err := ask(ctx, p.Digest, p.StoredSize, off, n)
	if err != nil {
		l.leaveAlone(err) // before another finds out in our place
		return nil, false, err
	}
	if l.rate != nil {
		body = &slowed{body, ctx, l.rate}
	}
	l.tookToFirstByte(time.Since(began))
	if partial {
		if err := l.learn(whole, adopt); err != nil {
			_ = body.Close()
			return nil, false, err
		}
	}
	return body, whole, nil
}

// keepAway waits for as long as the source has asked to be left alone.
func (l *link) keepAway(ctx context.Context) error {
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

// blame tells the source where wrong bytes came from, if it has several
// places. err is what was found, and learns whether there is another.
func (l *link) blame(digest string, body io.ReadCloser, err error) {
	var wrong *contentError
	m, ok := l.src.(Mirrored)
	if !ok || !errors.As(err, &wrong) {
		return
	}
	if s, ok := body.(*slowed); ok {
		body = s.ReadCloser
	}
	wrong.elsewhere = m.Blame(digest, body)
}

// wholesMost is how many whole blobs in a row make a source that honoured
// ranges one that does not. One may come by way of some proxy.
const wholesMost = 3

// learn notes how a ranged request was answered. It fails when a whole
// blob came from a source that is known to do better.
func (l *link) learn(whole bool, adopt func()) error {
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

// ignoresRanges says that the source was seen to send whole blobs only.
func (l *link) ignoresRanges() bool { return l.ranges.Load() == rangesIgnored }

func (l *link) tookToFirstByte(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.delay == 0 {
		l.delay = d
	}
	l.delay += (d - l.delay) / 8
	l.latency.observe(d)
}

// moved reports a body of n bytes that took d.
func (l *link) moved(n int64, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures, l.last = 0, nil
	if n < 256<<10 || d <= 0 {
		return // too short to say anything about speed
	}
	s := float64(n) / d.Seconds()
	if l.speed == 0 {
		l.speed = s
	}
	l.speed += (s - l.speed) / 8
}

// pause counts a failure and returns how long to wait before the next
// try: doubling, with jitter, bounded; or as long as the source asks for
// with an error that has RetryAfter() time.Duration. Requests that fail
// while another's pause lasts share it.
func (l *link) pause(err error) time.Duration {
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
func (l *link) leaveAlone(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaveAloneLocked(err)
}

func (l *link) leaveAloneLocked(err error) bool {
	var later interface{ RetryAfter() time.Duration }
	if !errors.As(err, &later) || later.RetryAfter() <= 0 {
		return false
	}
	d := min(later.RetryAfter(), askedMost)
	d += rand.N(d/10 + 1) // a thousand nodes were told the same
	if until := time.Now().Add(d); until.After(l.asked) {
		l.asked = until
	}
	return true
}

// trouble is why the link does not bring bytes just now; nil if it does.
func (l *link) trouble() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// Bounds of the patience with one request.
const (
	patienceLeast = time.Second
	patienceFirst = 10 * time.Second // while nothing is known of the link
	patienceMost  = 30 * time.Second
)

// patience is how long to wait for a request of n bytes before it must be
// taken for stuck: several times what such a one takes on this link.
func (l *link) patience(n int64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.speed == 0 {
		return patienceFirst
	}
	usual := l.delay + time.Duration(float64(n)/l.speed*float64(time.Second))
	return min(max(4*usual, patienceLeast), patienceMost)
}

// roundTrip is how long a request takes to be answered; 0 while unknown.
func (l *link) roundTrip() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.delay
}

// plenty is the rate, in bytes per second, beyond which more connections
// only take turns: the processor is what is short.
const plenty = 1 << 30

// connections is how many connections at a time fill the link, of limit:
// fewer the faster one is, all while that is not known.
func (l *link) connections(limit int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.speed == 0 {
		return limit
	}
	took := usual/l.speed + l.delay.Seconds() // for a request of that size
	return min(max(int(plenty/(usual/took))+1, connectionsLeast), limit)
}

const (
	connectionsLeast = 3
	usual            = 4 << 20 // bytes, of a request
)

// bandwidthDelay is how many bytes one connection carries in the time a
// request takes to be answered; 0 while unknown.
func (l *link) bandwidthDelay() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(l.speed * l.delay.Seconds())
}

// final says that trying again cannot help.
func final(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && !t.Temporary()
}
