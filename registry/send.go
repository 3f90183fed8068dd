package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/cenkalti/backoff/v5"

	"github.com/cocoonstack/epochfs/internal/digests"
)

// Ways in the order in which they are tried.
var (
	waysOfLarge  = []way{byChunks, byStream, byWhole, bySmall}
	waysOfMemory = []way{byWhole, byStream, bySmall} // fewest requests first
)

// maxBreaks bounds the consecutive broken connections or server errors while
// a way is being tried: some registries refuse like that.
const maxBreaks = 2

// send uploads the blob of f in the first way that the registry takes.
func (u *uploader) send(ctx context.Context, f *feed, order []way) error {
	defer f.close()
	for _, k := range order {
		err := u.by(ctx, k, f)
		if err == errWay {
			continue
		}
		var e *Error
		if !errors.As(err, &e) || !e.odd || u.refused {
			return u.again(err)
		}
		u.r.log.Debug("registry: the upload goes another way", "error", err)
		if !f.restartable() {
			e.Hint = join(e.Hint, "what was read only once cannot be sent in another way: push --input FILE or --spool can")
			return e
		}
	}
	e := u.r.ways.refusal(u.t)
	if e.Status != http.StatusRequestEntityTooLarge && !u.wholeKnown(f) {
		e.Hint = join(e.Hint, "a registry that takes a blob in one request only wants its digest first: push --input FILE, --spool or --chunk 4MiB (format v2) makes it known")
	}
	return e
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// again adds to an error that a later push may avoid what push has to send
// again.
func (u *uploader) again(err error) error {
	var e *Error
	if errors.As(err, &e) && e.Temporary() && e.kind != nil && e.Hint == "" {
		e.Hint = "the next push sends this blob again from its start, and skips what the registry has"
	}
	return err
}

// errWay means that a way is not to be tried.
var errWay = errors.New("the registry does not take this way")

// wholeKnown reports whether the digest is, or can be, known before the blob
// is sent.
func (u *uploader) wholeKnown(f *feed) bool { return u.known != "" || f.again != nil }

// by uploads the blob of f in one way, in as many sessions as that takes. It
// returns errWay, or an odd error, if another way has to be tried.
func (u *uploader) by(ctx context.Context, k way, f *feed) error {
	u.way, u.refusals = k, 0
	if !u.r.ways.takes(k, u.size) || k == byWhole && !u.wholeKnown(f) {
		return errWay
	}
	if k == byWhole && u.known == "" {
		if there, err := u.learn(ctx, f); there || err != nil {
			return err
		}
	}
	leave, err := u.r.ways.enter(ctx, k)
	if err != nil {
		return u.t.broken(err)
	}
	defer leave()
	if !u.r.ways.takes(k, u.size) {
		return errWay
	}
	if k == byWhole && u.unknown() && (!f.ended || len(f.first) > u.r.ways.left()) {
		if err := u.prove(ctx); err != nil {
			return err
		}
	}
	breaks := 0
	return retryErr(ctx, u.r, u.t, maxSessions, func() error {
		err := f.start()
		if err == nil {
			err = u.session(ctx, f)
		}
		u.learned(err, &breaks)
		if err != nil && !f.restartable() {
			return backoff.Permanent(err)
		}
		return err
	})
}

// learned records what the end of a session shows about its way. breaks
// counts the consecutive broken connections and server errors while the way
// was unknown.
func (u *uploader) learned(err error, breaks *int) {
	var e *Error
	if !errors.As(err, &e) {
		return
	}
	fails := e.Status == http.StatusInternalServerError || e.Status == http.StatusBadGateway
	if u.unknown() && (u.broke || fails && u.tried > 0) {
		if *breaks++; *breaks == maxBreaks {
			e.odd = true
		} else {
			u.r.ways.spend(u.tried)
		}
	}
	if e.odd {
		u.r.ways.spend(u.tried)
		u.refuse(e)
	}
}

// refuse records that the registry does not take the way, at all or for this
// size.
func (u *uploader) refuse(e *Error) {
	e.again = false
	u.r.ways.refused(e)
	if u.way == byChunks || u.way == bySmall || e.Status != http.StatusRequestEntityTooLarge && u.r.ways.state(u.way) != wayDone {
		u.r.ways.set(u.way, wayRefused)
	}
}

// session uploads a blob in one session, from its first byte to its last.
func (u *uploader) session(ctx context.Context, f *feed) error {
	u.broke, u.tried = false, 0
	if err := u.begin(ctx); err != nil {
		return err
	}
	if u.way == byWhole {
		return u.abandonOn(u.whole(ctx, f))
	}
	var err error
	if u.way == byStream {
		err = u.stream(ctx, f)
	} else {
		err = u.chunks(ctx, f)
	}
	digest := u.known
	if err == nil {
		digest, err = u.check()
	}
	if err != nil {
		return u.abandonOn(err)
	}
	return u.end(ctx, digest)
}

// abandonOn ends the session if err is not nil, and returns err.
func (u *uploader) abandonOn(err error) error {
	if err != nil {
		u.abandon()
	}
	return err
}

// check compares the sent bytes with the announced size and digest, and
// returns the digest.
func (u *uploader) check() (string, error) {
	if u.size >= 0 && u.sent != u.size {
		return "", u.t.wrong("%d bytes were announced, %d or more given", u.size, u.sent)
	}
	if u.sum == nil {
		return u.known, nil
	}
	digest := u.sum()
	if u.known != "" && u.known != digest {
		return "", u.t.wrong("the data has digest %s", digest)
	}
	return digest, nil
}

// end completes a session that has all bytes.
func (u *uploader) end(ctx context.Context, digest string) error {
	broken := false
	var err error
	return retryErr(ctx, u.r, u.t, maxTries, func() error {
		if broken && !u.resume(ctx) {
			return backoff.Permanent(err)
		}
		err = u.finish(ctx, digest, nil)
		broken = err != nil
		return err
	})
}

// chunks sends all bytes in PATCHes with a Content-Range.
func (u *uploader) chunks(ctx context.Context, f *feed) error {
	for good := 0; ; {
		p, err := f.next(ctx.Done())
		switch err {
		case nil:
		case io.EOF:
			return nil
		case errStopped:
			return u.t.broken(ctx.Err())
		default:
			return err
		}
		for len(p) > 0 {
			n, err := u.chunk(len(p))
			if err == nil {
				err = u.patch(ctx, p[:n])
			}
			if err != nil && u.smaller(ctx, err, n) {
				continue
			}
			if err != nil {
				return err
			}
			p = p[n:]
			if good++; good == 2 {
				u.r.ways.set(u.way, wayOpen)
			}
		}
		if u.size >= 0 && u.sent > u.size {
			return nil // check reports excess bytes
		}
	}
}

// chunk returns how many of the n available bytes go into the next PATCH.
func (u *uploader) chunk(n int) (int, error) {
	most := u.r.ways.chunk(u.way, u.least)
	switch {
	case most == 0:
		err := u.t.fail(ErrUnreachable, fmt.Errorf("the registry wants chunks of at least %d bytes, which is too large", u.least))
		err.odd = true
		return 0, err
	case n <= most:
		return n, nil
	case u.least > 0: // no chunk except the last may be smaller
		k := n / most
		return (n + k - 1) / k, nil
	}
	return most, nil
}

// smaller reports whether a chunk of n bytes that was refused for its size
// is to be sent again as two, to the same session.
func (u *uploader) smaller(ctx context.Context, err error, n int) bool {
	var e *Error
	if !errors.As(err, &e) || u.way != byChunks || u.unknown() {
		return false
	}
	tooLarge := e.Status == http.StatusRequestEntityTooLarge
	if !tooLarge && e.Status != http.StatusRequestedRangeNotSatisfiable || !u.r.ways.halve(n) {
		return false
	}
	return u.resume(ctx) || tooLarge // a 413 is sent before anything is kept
}

// stream sends all bytes in one PATCH. While it is unknown whether the
// registry takes a large PATCH without a Content-Range, some of the bytes in
// memory are first sent to a session of their own: a registry that refuses
// only after it has read everything then costs less.
func (u *uploader) stream(ctx context.Context, f *feed) error {
	n := u.r.ways.probe()
	unproven := !f.ended && n > smallChunk && u.r.ways.taking(byStream) <= int64(smallChunk)
	if u.unknown() && (n < len(f.first) || !f.ended) || unproven {
		if n > 0 {
			err := u.patchOnce(ctx, f.first[:min(n, len(f.first))], false)
			u.abandon()
			if err == nil {
				u.r.ways.spend(u.tried)
				u.tried = 0
				err = u.begin(ctx)
			}
			if err != nil {
				return err
			}
		}
		u.r.ways.set(u.way, wayOpen)
	}
	if f.ended { // in memory: can be sent again after a challenge
		return u.patchOnce(ctx, f.first, false)
	}
	q := u.request(http.MethodPatch, u.where)
	q.header.Set("Content-Type", "application/octet-stream")
	r := &feedReader{f: f, stop: make(chan struct{})}
	resp, err := u.doStream(ctx, q, r, r, u.size)
	switch {
	case r.failed() != nil:
		if err == nil {
			drain(resp)
		}
		return r.failed()
	case err != nil:
		return err
	}
	if !r.ended && resp.StatusCode < 300 {
		status := resp.StatusCode
		drain(resp)
		err := u.t.wrong("the registry answered %d before it had all bytes", status)
		return u.judge(err, r.n)
	}
	return u.patched(resp, r.n, false)
}

// doStream sends q with body, which reads from r. It returns once nothing
// reads r.
func (u *uploader) doStream(ctx context.Context, q request, body io.Reader, r *feedReader, size int64) (*http.Response, error) {
	gone := make(chan struct{})
	q.stream, q.size = &leased{body, sync.OnceFunc(func() { close(gone) })}, size
	resp, err := u.r.do(ctx, q)
	close(r.stop)
	<-gone
	u.broke = err != nil
	u.tried += r.n
	return resp, err
}

// learn reads all bytes to compute the digest and size. It reports whether
// the registry has the blob.
func (u *uploader) learn(ctx context.Context, f *feed) (there bool, err error) {
	if err := f.start(); err != nil {
		return false, err
	}
	if u.size, err = f.drain(); err != nil {
		return false, err
	}
	u.sent, u.known = u.size, u.sum()
	return u.r.BlobExists(ctx, u.name, u.known)
}

// prove uploads a blob of two bytes to show that the registry takes a blob
// in a PUT.
func (u *uploader) prove(ctx context.Context) error {
	small := []byte("{}")
	p := &uploader{r: u.r, t: u.t, name: u.name, known: digests.Of(small), size: int64(len(small)), way: byWhole}
	err := retryErr(ctx, u.r, u.t, maxTries, func() error {
		if err := p.begin(ctx); err != nil {
			return err
		}
		return p.finish(ctx, p.known, small)
	})
	u.refused = p.refused
	var e *Error
	if errors.As(err, &e) && e.odd {
		u.refuse(e)
	}
	return err
}

// whole completes the session with all bytes in the last request.
func (u *uploader) whole(ctx context.Context, f *feed) error {
	if f.ended {
		u.sent = int64(len(f.first))
		return u.finish(ctx, u.known, f.first)
	}
	r := &feedReader{f: f, stop: make(chan struct{})}
	v := &verified{src: r, left: u.size, hash: sha256.New(), digest: u.known, t: u.t}
	resp, err := u.doStream(ctx, u.last(u.known), v, r, u.size)
	if v.err != nil && r.err != errStopped && (err != nil || resp.StatusCode >= 300) {
		if err == nil {
			drain(resp)
		}
		return v.err
	}
	u.sent = u.size
	return u.finished(ctx, u.known, u.size, resp, err)
}
