package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Reader reads bytes of a blob in order, with as many requests as necessary:
// after a broken request the next resumes at the same byte.
type Reader struct {
	link *Link
	ctx  context.Context
	r    Range
	opts ReaderOptions

	body   *body // of the last request; nil before the first
	at     int64 // offset of the next byte in the blob
	end    int64 // offset after the last byte to read
	err    error // why body cannot be read further, or nil
	waited time.Duration
	step   int64 // value of at when waited was last reset
}

// ReaderOptions configures a Reader. The zero value is usable.
type ReaderOptions struct {
	// Body is the answer to the first request, if it was already made.
	Body io.ReadCloser
	// Leave makes the Reader fail instead of starting over from the
	// blob's first byte: after a request without bytes, and with a
	// source that ignores ranges. Its owner starts over.
	Leave bool
	// Retried is called before each further request, with the error that
	// caused it.
	Retried func(error)
}

// ErrTimeout reports that too few bytes arrived within Options.Timeout. It
// also matches context.DeadlineExceeded.
var ErrTimeout error = timeoutError{}

type timeoutError struct{}

func (timeoutError) Error() string        { return "registry did not answer in time" }
func (timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// progress is how many bytes must arrive within Options.Timeout. It detects
// a registry that sends a little for each request and then stops.
const progress = 1 << 20

var errNotAsked = errors.New("not asked yet")

// NewReader returns a Reader of r.
func (l *Link) NewReader(ctx context.Context, r Range, opts ReaderOptions) *Reader {
	if opts.Retried == nil {
		opts.Retried = func(error) {}
	}
	d := &Reader{link: l, ctx: ctx, r: r, opts: opts, at: r.Off, step: r.Off, end: r.Off + r.N}
	if d.body, _ = opts.Body.(*body); d.body == nil {
		d.err = errNotAsked
	}
	return d
}

// Start sends the first request, with retries. whole reports whether the
// answer is the whole blob: then the Reader can read to the blob's end.
func (d *Reader) Start(adopt func()) (whole bool, err error) {
	for d.err != nil {
		if err := d.again(adopt); err != nil {
			return false, err
		}
	}
	return d.body.whole, nil
}

// Body returns the body of the last bytes, for Link.Blame, or nil before the
// first answer.
func (d *Reader) Body() io.ReadCloser {
	if d.body == nil {
		return nil
	}
	return d.body
}

// Offset returns the offset of the next byte in the blob.
func (d *Reader) Offset() int64 { return d.at }

// ResetTimeout restarts the count of Options.Timeout.
func (d *Reader) ResetTimeout() { d.waited, d.step = 0, d.at }

// Read reads the next bytes, and resumes after broken requests. It returns
// io.EOF at the end, or an error that another request cannot fix.
func (d *Reader) Read(p []byte) (int, error) {
	for {
		if d.at >= d.end {
			return 0, io.EOF
		}
		if d.err != nil {
			if err := d.again(func() {}); err != nil {
				return 0, err
			}
			continue
		}
		n, err := d.read(p)
		if d.at += int64(n); d.at-d.step >= progress {
			d.ResetTimeout()
		}
		if err != nil && err != io.EOF {
			d.err, err = err, nil
		}
		if n > 0 || err == io.EOF {
			return n, err
		}
	}
}

// read reads from the body and counts the time, except for the rate limit's
// share.
func (d *Reader) read(p []byte) (int, error) {
	began, held := time.Now(), d.body.held
	n, err := d.body.Read(p)
	d.waited += time.Since(began) - (d.body.held - held)
	switch t := d.link.opts.Timeout; {
	case err == io.EOF && d.at+int64(n) < d.end:
		err = io.ErrUnexpectedEOF
	case t > 0 && d.waited > t && d.body.taken:
		err = ErrSlow // and the timeout has passed
	}
	return n, err
}

// again requests the remaining bytes, after a pause if a request has failed.
func (d *Reader) again(adopt func()) error {
	broke := d.err
	began := time.Now()
	defer func() { d.waited += time.Since(began) }()
	if broke != errNotAsked {
		if err := d.pause(broke); err != nil {
			return err
		}
	}
	d.hangUp()
	rest := d.r
	rest.Off, rest.N = d.at, d.end-d.at
	answer, _, err := d.link.Open(d.ctx, rest, adopt)
	all := err == nil && answer == nil // only the whole blob is available
	if all {
		if d.opts.Leave {
			return broke
		}
		rest.Off, rest.N, rest.Stream = 0, d.r.Size, true
		answer, _, err = d.link.Open(d.ctx, rest, adopt)
	}
	if err != nil {
		d.err = err
		return nil // Read or Start tries again, unless err is final
	}
	d.body, d.err = answer.(*body), nil
	if d.body.whole = d.body.whole || all; d.body.whole {
		d.end = d.r.Size
		d.err = d.skip(d.at)
	}
	return nil
}

// skip discards the next n bytes of the body.
func (d *Reader) skip(n int64) error {
	_, err := io.CopyN(io.Discard, d.body, n)
	d.waited -= d.body.held
	return NoEOF(err)
}

// pause waits before the next try. If no further try should be made, it
// returns the error for the caller.
func (d *Reader) pause(broke error) error {
	if d.ctx.Err() != nil || Final(broke) || d.at >= d.end {
		return broke
	}
	if d.opts.Leave && (d.at == d.r.Off || d.link.IgnoresRanges()) {
		return broke
	}
	var pause time.Duration
	if !errors.Is(broke, ErrSlow) { // the link has counted a slow request itself
		d.opts.Retried(broke)
		pause = d.link.Pause(broke)
	}
	if t := d.link.opts.Timeout; t > 0 && d.waited+pause > t {
		return fmt.Errorf("%w: %w", ErrTimeout, broke)
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-d.ctx.Done():
		return broke
	}
}

func (d *Reader) hangUp() {
	if d.body != nil {
		_ = d.body.Close() // the owner verifies the bytes read so far
	}
}

// Close closes the last request.
func (d *Reader) Close() error {
	d.hangUp()
	return nil
}
