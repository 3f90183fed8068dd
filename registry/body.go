package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// body is the body of an answer. It fails when it stalls. Close may be
// called during a Read, and ends it.
type body struct {
	rc     io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
	count  *atomic.Int64
}

func (r *Registry) newBody(ctx context.Context, cancel context.CancelCauseFunc, rc io.ReadCloser) *body {
	b := &body{rc: rc, ctx: ctx, cancel: cancel, limit: r.limits.stall, count: &r.stats.bytes}
	b.timer = time.AfterFunc(b.limit, func() { cancel(errStalled) })
	b.timer.Stop()
	return b
}

// Read reads from the connection, at most for the stall limit.
func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.limit)
	n, err := b.rc.Read(p)
	b.timer.Stop()
	b.count.Add(int64(n))
	if err != nil && err != io.EOF {
		err = causeOf(b.ctx, err)
	}
	return n, err
}

// Close returns the connection to the pool, or closes it if the body was not
// read to its end.
func (b *body) Close() error {
	b.timer.Stop()
	err := b.rc.Close()
	b.cancel(nil)
	return err
}

// exact returns n bytes of a body and then io.EOF, ignoring what follows. It
// fails if the body ends early, or if the registry announced fewer bytes
// than are needed.
type exact struct {
	rc      io.ReadCloser
	left    int64
	lacking int64 // bytes needed beyond those
	t       target
}

func (e *exact) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, e.end()
	}
	if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := e.rc.Read(p)
	e.left -= int64(n)
	switch {
	case e.left == 0:
		return n, e.end()
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		return n, e.t.short()
	case err != nil:
		return n, e.t.broken(err)
	}
	return n, nil
}

// end returns the error after the last byte.
func (e *exact) end() error {
	if e.lacking > 0 {
		return e.t.short()
	}
	return io.EOF
}

func (e *exact) Close() error { return e.rc.Close() }

// open is a body of unknown length; its errors are *Error.
type open struct {
	io.ReadCloser
	t target
}

func (o *open) Read(p []byte) (int, error) {
	n, err := o.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		return n, o.t.broken(err)
	}
	return n, err
}

// drain reads the rest of a small body, so that its connection can be
// reused, and closes it. It returns the first bytes.
func drain(resp *http.Response) []byte {
	const (
		most    = 16 << 10
		patient = 5 * time.Second
	)
	t := time.AfterFunc(patient, func() { resp.Body.Close() })
	defer t.Stop()
	defer resp.Body.Close()
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, most))
	return raw
}

// isJSON reports whether a small body begins like a JSON object.
func isJSON(raw []byte) bool {
	raw = bytes.TrimSpace(raw)
	return len(raw) > 0 && (raw[0] == '{' || raw[0] == '[')
}

// readSmall reads a whole body of at most most bytes and closes it. A longer
// body is ErrContent; one that takes too long fails.
func (r *Registry) readSmall(resp *http.Response, most int64, t target) ([]byte, error) {
	defer resp.Body.Close()
	if resp.ContentLength > most {
		return nil, t.wrong("%d bytes announced, but at most %d are accepted", resp.ContentLength, most)
	}
	stop := time.AfterFunc(r.limits.small, func() {
		if b, ok := resp.Body.(*body); ok {
			b.cancel(errStalled)
		}
	})
	defer stop.Stop()
	if err := wholeOrNone(resp, -1, t); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	switch {
	case err != nil:
		return nil, t.broken(err)
	case int64(len(raw)) > most:
		return nil, t.wrong("more than %d bytes", most)
	case !isJSON(raw) && beginsEncoded(resp.Header, raw):
		return nil, t.encoded(resp.Header)
	}
	return raw, nil
}
