package transport

import (
	"context"
	"io"
	"time"
)

// Reader reads bytes of a blob in order, with as many requests as that
// takes: if one breaks off, the next goes on where it broke. A source that
// ignores ranges can only begin again, which the Reader leaves to its owner.
type Reader struct {
	ctx     context.Context
	link    *Link
	r       Range
	body    io.ReadCloser // that of the last request
	at      int64         // offset in the blob of the next byte
	err     error         // why body ended too early, to be seen to
	retried func(error)
}

// NewReader returns a Reader of r whose first body is open already, at the
// range's first byte. retried is called before each further request, with
// the reason.
func (l *Link) NewReader(ctx context.Context, r Range, body io.ReadCloser, retried func(error)) *Reader {
	return &Reader{ctx: ctx, link: l, r: r, body: body, at: r.Off, retried: retried}
}

// Body returns what the last bytes came in, for Link.Blame.
func (r *Reader) Body() io.ReadCloser { return r.body }

// Read reads on, over breaks. Its error is io.EOF or one that another
// request does not mend.
func (r *Reader) Read(p []byte) (int, error) {
	for {
		if r.err != nil {
			if err := r.again(); err != nil {
				return 0, err
			}
		}
		n, err := r.body.Read(p)
		r.at += int64(n)
		if err != nil && err != io.EOF {
			r.err = err
		}
		if n > 0 || err == io.EOF {
			return n, err
		}
	}
}

// again asks for what is left, after a pause.
func (r *Reader) again() error {
	broke := r.err
	end := r.r.Off + r.r.N
	if r.ctx.Err() != nil || Final(broke) || r.link.IgnoresRanges() || r.at == r.r.Off || r.at >= end {
		return broke
	}
	r.retried(broke)
	t := time.NewTimer(r.link.Pause(broke))
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.ctx.Done():
		return broke
	}
	rest := r.r
	rest.Off, rest.N = r.at, end-r.at
	body, whole, err := r.link.Open(r.ctx, rest, func() {})
	if err != nil {
		r.err = err
		return nil // and once more, unless it is final
	}
	if body == nil {
		return broke // ranges are ignored now
	}
	_ = r.body.Close()
	r.body, r.err = body, nil
	if whole {
		_, r.err = io.CopyN(io.Discard, body, r.at)
		r.err = NoEOF(r.err)
	}
	return nil
}

// Close closes the last request's body.
func (r *Reader) Close() error { return r.body.Close() }
