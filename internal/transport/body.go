package transport

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// request is one request to the source.
type request struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	began  time.Duration // since Link.epoch
	body   io.ReadCloser
	whole  bool
	err    error

	// The rest is for doubles only.
	head []byte        // its first bytes, not read yet
	won  bool          // it received bytes before the other request; under body.mu
	done chan struct{} // closed once won is decided
}

// body is the answer to a Range. If its request stalls, a double requests
// the remaining bytes; the one that receives bytes first continues, and the
// other is cancelled.
type body struct {
	link *Link
	ctx  context.Context
	r    Range
	end  int64    // offset after the last byte of the answer
	cur  *request // the request being read; replaced under mu, by the reader

	mu      sync.Mutex
	at      int64 // offset of the next byte
	opening bool  // open has not returned yet
	whole   bool  // the whole blob was sent for a range
	taken   bool  // a double has become cur, so a request has failed
	closed  bool
	double  *request // runs beside cur, or nil
	watch   watch

	moved, limited int64         // bytes since the last sample of speed; those delayed by the limiter
	took           time.Duration // time that reads of the moved bytes took
	held           time.Duration // time spent in the rate limiter
}

// open sends the request, and doubles if it stalls.
func (l *Link) open(ctx context.Context, r Range) (*body, error) {
	b := &body{link: l, ctx: ctx, r: r, at: r.Off, end: r.Off + r.N, opening: true}
	b.cur = b.request()
	b.begin()
	l.ask(b.cur, r)
	_, _, old := b.came(0)
	old.discard()
	if b.cur.err != nil {
		if err := b.settle(b.cur.err); err != nil {
			_ = b.Close()
			return nil, err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opening = false
	if b.whole = b.cur.whole && r.partial(); b.whole {
		b.at, b.end = 0, r.Size
		b.dropDoubleLocked()
	}
	return b, nil
}

func (b *body) request() *request {
	q := &request{began: b.link.now()}
	q.ctx, q.cancel = context.WithCancelCause(b.ctx)
	return q
}

// ask sends q to the source, and records how it was answered.
func (l *Link) ask(q *request, r Range) {
	open := l.src.OpenBlob
	if m, ok := l.src.(Mirrored); ok && !r.Checked {
		open = m.OpenTrusted
	}
	q.body, q.whole, q.err = open(q.ctx, r.Digest, r.Size, r.Off, r.N)
	if q.err != nil {
		l.leaveAlone(q.err) // before another probe goes out
		return
	}
	l.answered(q)
}

// Read reads received bytes. The rate limit delays Read only after bytes
// were received, so its delays do not count as stalls.
func (b *body) Read(p []byte) (int, error) {
	limit := b.link.opts.Limit
	if limit != nil {
		p = p[:min(len(p), limit.Burst())]
	}
	n, err := b.read(p)
	if n > 0 && limit != nil {
		began := time.Now()
		if late := limit.WaitN(b.ctx, n); late != nil && err == nil {
			err = late
		}
		if held := time.Since(began); held > time.Millisecond {
			b.limited += int64(n)
			b.held += held
		}
	}
	if n > 0 {
		b.sample(n)
	}
	return n, err
}

func (b *body) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if q := b.cur; len(q.head) > 0 {
			n := copy(p, q.head)
			q.head = q.head[n:]
			b.mu.Lock()
			b.at += int64(n)
			b.mu.Unlock()
			return n, nil
		}
		b.begin()
		n, err := b.cur.body.Read(p)
		waited, overtaken, old := b.came(n)
		b.took += waited
		if overtaken {
			old.discard() // including bytes that it received too late
			continue
		}
		if n > 0 || err == nil || err == io.EOF {
			return n, err
		}
		if err = b.settle(err); err != nil {
			return 0, err
		}
	}
}

// sampleSize is the number of bytes in a sample of speed.
const sampleSize = 4 << 20

// sample counts n bytes towards the link's speed.
func (b *body) sample(n int) {
	if b.moved += int64(n); b.moved < sampleSize && b.at < b.end {
		return
	}
	if b.limited > 0 {
		b.took = 0 // bytes delayed by the limiter were read from memory, not the network
	}
	b.link.movedBytes(b.moved, b.took)
	b.moved, b.limited, b.took = 0, 0, 0
}

// came ends a wait that brought n bytes. If a double has won, it becomes
// cur, and old is the previous cur.
func (b *body) came(n int) (waited time.Duration, overtaken bool, old *request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	waited = b.endWaitLocked()
	if q := b.double; q != nil && q.won {
		old = b.cur
		b.takeDoubleLocked()
		return waited, true, old
	}
	if n > 0 {
		b.at += int64(n)
		b.watch.gap = max(b.watch.gap, waited)
		b.link.bytesCame(waited)
		b.dropDoubleLocked()
	}
	return waited, false, nil
}

// settle handles the failure of cur. If there is a double, settle waits for
// it and makes it cur. Otherwise it returns the error for the reader.
func (b *body) settle(cause error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		q := b.double
		if q == nil {
			break
		}
		b.resumeWaitLocked()
		b.mu.Unlock()
		<-q.done // the double ends with ctx
		b.mu.Lock()
		_ = b.endWaitLocked()
		if q.won && b.double == q {
			old := b.cur
			b.takeDoubleLocked()
			old.discard()
			return nil
		}
	}
	if b.watch.gaveUp {
		return ErrSlow
	}
	return cause
}

// takeDoubleLocked makes the double cur.
func (b *body) takeDoubleLocked() {
	b.cur, b.double = b.double, nil
	b.watch.doubles = 0
	b.taken = true
}

// dropDoubleLocked cancels the double after cur has received bytes first.
func (b *body) dropDoubleLocked() {
	if b.double == nil {
		return
	}
	b.double.cancel(errOvertaken)
	b.double = nil
	b.watch.doubles = 0
}

var (
	errOvertaken = errors.New("another request for the same bytes was faster")
	errWhole     = errors.New("all of a blob came for a range of it")
)

// headSize is the most that a double reads of its body before it has won.
const headSize = 32 << 10

// doubleLocked starts a double for the remaining bytes.
func (b *body) doubleLocked() {
	if old := b.double; old != nil {
		old.cancel(errOvertaken) // it has stalled as well
	}
	q := b.request()
	q.done = make(chan struct{})
	b.double = q
	rest := b.r
	rest.Off, rest.N = b.at, b.end-b.at
	b.link.work.Go(func() { b.race(q, rest) })
}

// race reads a double's first bytes.
func (b *body) race(q *request, rest Range) {
	defer close(q.done)
	b.link.ask(q, rest)
	if q.err == nil {
		q.head = make([]byte, headSize)
		n, err := io.ReadAtLeast(q.body, q.head, 1)
		q.head = q.head[:n]
		if n == 0 {
			q.err = NoEOF(err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.double != q || b.closed:
	case q.err != nil:
		b.double = nil
	case q.whole && rest.partial() && !b.opening:
		b.link.ranges.CompareAndSwap(rangesUnknown, rangesIgnored)
		b.double = nil
	default:
		q.won = true
		b.link.doubleWon()
		b.cur.cancel(errOvertaken)
		return
	}
	q.discard()
}

// discard closes a request that is no longer read.
func (q *request) discard() {
	if q == nil {
		return
	}
	q.cancel(errOvertaken)
	if q.body != nil {
		_ = q.body.Close()
	}
}

// Close ends all requests for the range.
func (b *body) Close() error {
	b.mu.Lock()
	b.closed = true
	_ = b.endWaitLocked()
	double := b.double
	b.double = nil
	if b.at == b.end && b.watch.gap < longGap {
		b.link.waited(b.watch.gap)
	}
	b.mu.Unlock()
	if double != nil {
		double.cancel(nil)
		if double.won { // and its bytes have not been read
			_ = double.body.Close()
		}
	}
	var err error
	if b.cur.body != nil {
		err = b.cur.body.Close()
	}
	b.cur.cancel(nil)
	return err
}
