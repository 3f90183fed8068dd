package cache

import (
	"context"
	"io"
	"time"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// resuming reads a stored blob from its first byte to its last, with as
// many requests as that takes: where one breaks off the next goes on, so
// that a decoder need not begin again. A source that ignores ranges has to.
type resuming struct {
	ctx     context.Context
	entry   *entry
	part    *layout.Part
	checked bool // see link.open

	body io.ReadCloser // that of the last request
	at   int64         // stored bytes that came
	err  error         // why body ended too early, to be seen to
}

// Read reads on, over breaks. Its error is one that another request does
// not mend, or io.EOF.
func (r *resuming) Read(p []byte) (int, error) {
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
func (r *resuming) again() error {
	broke := r.err
	l := r.entry.link
	if r.ctx.Err() != nil || final(broke) || l.ignoresRanges() || r.at == 0 || r.at >= r.part.StoredSize {
		return broke
	}
	r.entry.cache.counts.retried(broke)
	t := time.NewTimer(l.pause(broke))
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.ctx.Done():
		return broke
	}
	body, whole, err := l.open(r.ctx, r.part, r.at, r.part.StoredSize-r.at, r.checked, func() {})
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
		r.err = noEOF(r.err)
	}
	return nil
}

func (r *resuming) Close() error { return r.body.Close() }
