package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/cocoonstack/epochfs/internal/digests"
)

// uploadChunk is the size of a PATCH body, in bytes. It is in memory before
// it is sent, so that a slow source does not keep a request waiting. Only
// tests change it.
var uploadChunk = 16 << 20

// chunks are buffers of uploadChunk bytes.
var chunks = sync.Pool{New: func() any {
	b := make([]byte, uploadChunk)
	return &b
}}

// smallChunk is the size of a PATCH body, in bytes, for registries that
// refuse more than 4 MiB. Only tests change it.
var smallChunk = 4 << 20

// uploader is the upload of one blob.
type uploader struct {
	r       *Registry
	t       target
	name    string
	known   string        // the digest it must have; "" if only sum will tell
	size    int64         // -1 if not known
	sum     func() string // the digest after all bytes were read; nil if the caller guarantees known
	way     way
	where   *url.URL // URL of the session
	sent    int64
	least   int64 // smallest size the registry takes in a PATCH, except the last
	refused bool  // the registry has no sessions
	broke   bool  // the connection broke in the last request with bytes
	tried   int64 // bytes sent in the session, accepted or not

	refusals int // in a way that was believed to be open
}

// rewinder returns a function that returns body to its current position, or
// nil if body cannot seek.
func rewinder(body io.Reader) func() (io.Reader, error) {
	s, ok := body.(io.Seeker)
	if !ok {
		return nil
	}
	start, err := s.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil
	}
	return func() (io.Reader, error) {
		_, err := s.Seek(start, io.SeekStart)
		return body, err
	}
}

// hashed is a body with the digest of the bytes read since its start.
type hashed struct {
	src  io.Reader
	hash hash.Hash
}

func newHashed(src io.Reader) *hashed { return &hashed{src, sha256.New()} }

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.src.Read(p)
	h.hash.Write(p[:n])
	return n, err
}

func (h *hashed) digest() string { return digests.OfHash(h.hash) }

// reader returns h, able to seek to its start if the source is.
func (h *hashed) reader() io.Reader {
	if s, ok := h.src.(io.Seeker); ok {
		return &hashedSeeker{h, s}
	}
	return h
}

type hashedSeeker struct {
	*hashed
	s io.Seeker
}

func (h *hashedSeeker) Seek(off int64, whence int) (int64, error) {
	at, err := h.s.Seek(off, whence)
	if whence == io.SeekStart {
		h.hash.Reset()
	}
	return at, err
}

// request returns one step of the upload.
func (u *uploader) request(method string, to *url.URL) request {
	return request{
		target: u.t,
		method: method,
		url:    to,
		header: http.Header{},
		access: access{name: u.name, push: true},
		wait:   u.r.limits.patch,
		moves:  true,
	}
}

// begin opens a session. It sets refused if the registry has none.
func (u *uploader) begin(ctx context.Context) error {
	u.sent, u.where, u.refused = 0, nil, false
	resp, err := u.r.do(ctx, u.request(http.MethodPost, u.r.at(u.name+"/blobs/uploads/")))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		u.refused = resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed
		return u.t.status(resp)
	}
	drain(resp)
	u.least, _ = parseCount(resp.Header.Get("OCI-Chunk-Min-Length"))
	return u.moved(resp)
}

// moved records the URL of the session's next request: on the registry's own
// host, or on the host that a redirect of the POST led to.
func (u *uploader) moved(resp *http.Response) error {
	location := resp.Header.Get("Location")
	if location == "" {
		if u.where == nil {
			return u.t.wrong("the registry does not say where to upload to")
		}
		return nil
	}
	from, base := resp.Request.URL, &u.r.base
	to, err := from.Parse(location)
	switch {
	case err != nil || to.User != nil:
	case withPort(base.Scheme, to.Host) == withPort(base.Scheme, base.Host):
		// A registry behind a proxy may not know that its clients use TLS.
		to.Scheme, to.Host, to.Fragment = base.Scheme, base.Host, ""
		u.where = to
		return nil
	case withPort(from.Scheme, to.Host) == withPort(from.Scheme, from.Host):
		to.Scheme, to.Host, to.Fragment = from.Scheme, from.Host, ""
		u.where = to
		return nil
	}
	return u.t.wrong("the registry redirects the upload to another host")
}

// patch appends a chunk. It does not repeat a failed PATCH blindly: some
// registries would append it twice, some end the session. It repeats it only
// if the registry says that it has nothing of it.
func (u *uploader) patch(ctx context.Context, p []byte) error {
	var err error
	return retryErr(ctx, u.r, u.t, maxTries, func() error {
		if err != nil && !u.resume(ctx) {
			return backoff.Permanent(err)
		}
		err = u.patchOnce(ctx, p, true)
		return err
	})
}

// patchOnce sends one PATCH from memory, with a Content-Range if ranged is
// set.
func (u *uploader) patchOnce(ctx context.Context, p []byte, ranged bool) error {
	q := u.request(http.MethodPatch, u.where)
	q.body = p
	q.closed = new(sync.WaitGroup)
	defer q.closed.Wait()
	q.header.Set("Content-Type", "application/octet-stream")
	if ranged {
		q.header.Set("Content-Range", fmt.Sprintf("%d-%d", u.sent, u.sent+int64(len(p))-1))
	}
	if u.unknown() && !u.r.ways.noExpect.Load() {
		q.header.Set("Expect", "100-continue") // a refusal need not cost the body
	}
	resp, err := u.r.do(ctx, q)
	if err == nil && resp.StatusCode == http.StatusExpectationFailed && q.header.Get("Expect") != "" {
		drain(resp)
		u.r.ways.noExpect.Store(true)
		q.header.Del("Expect")
		resp, err = u.r.do(ctx, q)
	}
	u.tried += int64(len(p))
	if err != nil {
		u.broke = true
		return err
	}
	return u.patched(resp, int64(len(p)), ranged)
}

// patched checks the answer to a PATCH of n bytes. It uses Range only if
// that decides whether to continue.
func (u *uploader) patched(resp *http.Response, n int64, ranged bool) error {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusCreated, http.StatusAccepted, http.StatusNoContent:
	default:
		return u.judge(u.t.status(resp), n)
	}
	drain(resp)
	u.r.ways.patched.Store(true)
	u.r.ways.taken(u.way, n)
	last, ok := lastByte(resp.Header.Get("Range"))
	sure := ok || u.way != byChunks || !u.unknown()
	if sent := u.sent + n; ranged && (!sure || ok && last != sent-1) {
		err := u.t.wrong("the registry has %d bytes, but %d were sent", last+1, sent)
		if !ok {
			err = u.t.wrong("the registry does not say how many bytes it has")
		}
		return u.judge(err, n)
	}
	if err := u.moved(resp); err != nil {
		return err
	}
	u.sent += n
	return nil
}

// resume asks how much of the blob the session has, and reports whether that
// is exactly what was acknowledged. "0-0" means no byte or one, so an upload
// without acknowledged bytes starts over.
func (u *uploader) resume(ctx context.Context) bool {
	if u.sent == 0 {
		return false
	}
	q := u.request(http.MethodGet, u.where)
	q.wait = 0
	resp, err := u.r.do(ctx, q)
	if err != nil {
		return false
	}
	drain(resp)
	last, ok := lastByte(resp.Header.Get("Range"))
	return resp.StatusCode == http.StatusNoContent && ok && last == u.sent-1 && u.moved(resp) == nil
}

// lastByte parses an upload's "0-N", with or without a unit.
func lastByte(v string) (int64, bool) {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(v, "bytes="), "0-")
	if !ok {
		return 0, false
	}
	return parseCount(rest)
}

// unknown reports whether the registry has not yet accepted anything in this
// way.
func (u *uploader) unknown() bool { return u.r.ways.state(u.way) == wayUnknown }

// finish completes the session with the digest, after appending rest.
func (u *uploader) finish(ctx context.Context, digest string, rest []byte) error {
	q := u.last(digest)
	q.body = rest
	q.closed = new(sync.WaitGroup)
	defer q.closed.Wait()
	u.tried += int64(len(rest))
	resp, err := u.r.do(ctx, q)
	u.broke = err != nil
	return u.finished(ctx, digest, int64(len(rest)), resp, err)
}

// last returns the request that completes the session.
func (u *uploader) last(digest string) request {
	to := *u.where
	if to.RawQuery != "" {
		to.RawQuery += "&"
	}
	to.RawQuery += "digest=" + url.QueryEscape(digest)
	q := u.request(http.MethodPut, &to)
	q.wait = u.r.limits.finish
	q.header.Set("Content-Type", "application/octet-stream")
	return q
}

// finished checks the result of the last request, which had n bytes of body.
func (u *uploader) finished(ctx context.Context, digest string, n int64, resp *http.Response, err error) error {
	if err == nil {
		if err = u.t.stored(resp, digest); err != nil {
			err = u.judge(err, n)
		}
	}
	if err == nil {
		u.r.ways.set(u.way, wayDone)
		u.r.ways.taken(u.way, n)
	}
	var e *Error
	if errors.As(err, &e) && e.Temporary() && e.kind == ErrUnreachable {
		// The answer may have been lost, but not the blob.
		if there, _ := u.r.BlobExists(ctx, u.name, digest); there {
			return nil
		}
	}
	return err
}

// abandon deletes the session.
func (u *uploader) abandon() {
	const patience = 5 * time.Second
	if u.where == nil {
		return
	}
	ctx, cancel := context.WithTimeout(u.r.ctx, patience)
	defer cancel()
	if resp, err := u.r.do(ctx, u.request(http.MethodDelete, u.where)); err == nil {
		drain(resp)
	}
}
