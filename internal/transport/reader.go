package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Reader reads bytes of a blob in order, with as many requests as that
// takes: if one breaks off, the next goes on where it broke.
type Reader struct {
	link *Link
	ctx  context.Context
	r    Range
	opts ReaderOptions

	body   *body // that of the last request; nil before the first
	at     int64 // offset in the blob of the next byte
	end    int64 // offset after the last byte to be read
	err    error // why body brings nothing more, or is nil
	waited time.Duration
	step   int64 // the value of at when waited was last 0
}

// ReaderOptions tell how a Reader goes on. The zero value is usable.
type ReaderOptions struct {
	// Body is the answer to the first request, if it was made already.
	Body io.ReadCloser
	// Leave has the owner begin again what has to begin from the blob's
	// first byte: a request that brought nothing, and any request to a
	// source that ignores ranges.
	Leave bool
	// Retried is called with the reason before each further request.
	Retried func(error)
}

// ErrTimeout reports that too little came within the time that the owner
// waits. It is a context.DeadlineExceeded too.
var ErrTimeout error = timeoutError{}

type timeoutError struct{}

func (timeoutError) Error() string        { return "registry did not answer in time" }
func (timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// progress is how many bytes have to come within Options.Timeout: a registry
// that sends a little with each request and then stops has stopped.
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

// Start makes the first request, as often as it takes. whole reports that
// all of the blob comes: then the Reader can read up to the blob's end.
func (d *Reader) Start(adopt func()) (whole bool, err error) {
	for d.err != nil {
		if err := d.again(adopt); err != nil {
			return false, err
		}
	}
	return d.body.whole, nil
}

// Body returns what the last bytes came in, for Link.Blame; nil before the
// first answer.
func (d *Reader) Body() io.ReadCloser {
	if d.body == nil {
		return nil
	}
	return d.body
}

// Offset returns where in the blob the next byte lies.
func (d *Reader) Offset() int64 { return d.at }

// ResetTimeout begins to count Options.Timeout anew.
func (d *Reader) ResetTimeout() { d.waited, d.step = 0, d.at }

// Read reads on, over breaks. Its error is io.EOF or one that another
// request does not mend.
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

// read reads from the body and counts the time, but not what the rate limit
// takes of it.
func (d *Reader) read(p []byte) (int, error) {
	began, held := time.Now(), d.body.held
	n, err := d.body.Read(p)
	d.waited += time.Since(began) - (d.body.held - held)
	switch t := d.link.opts.Timeout; {
	case err == io.EOF && d.at+int64(n) < d.end:
		err = io.ErrUnexpectedEOF
	case t > 0 && d.waited > t && d.body.taken:
		err = ErrSlow // with the time that is allowed used up
	}
	return n, err
}

// again asks for what is left, after a pause if something has failed.
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
	all := err == nil && answer == nil // can be had only
	if all {
		if d.opts.Leave {
			return broke
		}
		rest.Off, rest.N, rest.Stream = 0, d.r.Size, true
		answer, _, err = d.link.Open(d.ctx, rest, adopt)
	}
	if err != nil {
		d.err = err
		return nil // once more, unless it is final
	}
	d.body, d.err = answer.(*body), nil
	if d.body.whole = d.body.whole || all; d.body.whole {
		d.end = d.r.Size
		d.err = d.skip(d.at)
	}
	return nil
}

// skip reads over the first n bytes of a body.
func (d *Reader) skip(n int64) error {
	_, err := io.CopyN(io.Discard, d.body, n)
	d.waited -= d.body.held
	return NoEOF(err)
}

// pause waits before the next try, or returns why there is none.
func (d *Reader) pause(broke error) error {
	if d.ctx.Err() != nil || Final(broke) || d.at >= d.end {
		return broke
	}
	if d.opts.Leave && (d.at == d.r.Off || d.link.IgnoresRanges()) {
		return broke
	}
	var pause time.Duration
	if !errors.Is(broke, ErrSlow) { // the link has counted that one
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
		_ = d.body.Close() // what was read of it is checked by the owner
	}
}

// Close ends the last request.
func (d *Reader) Close() error {
	d.hangUp()
	return nil
}
