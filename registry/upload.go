package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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
)

// uploadChunk is the body of one PATCH, in bytes. It is in memory before
// it is sent, so a slow source keeps no request waiting. Only tests change
// it.
var uploadChunk = 16 << 20

// chunks are buffers of uploadChunk bytes.
var chunks = sync.Pool{New: func() any {
	b := make([]byte, uploadChunk)
	return &b
}}

// uploader is one blob on its way up, by sessions: POST, PATCH, PUT.
type uploader struct {
	r       *Registry
	t       target
	name    string
	known   string                    // the digest it must have; "" where only sum will tell
	size    int64                     // -1 where it is not known
	sum     func() string             // the digest, once all bytes were read
	again   func() (io.Reader, error) // the source from its start; nil where it has one run only
	where   *url.URL                  // of the session
	sent    int64
	refused bool // the registry has no sessions
}

// rewinder returns what reads body from here again, or nil.
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

// hashed is a body with the digest of what was read of it since its start.
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

func (h *hashed) digest() string { return "sha256:" + hex.EncodeToString(h.hash.Sum(nil)) }

// reader is h, and can seek to its start where the source can.
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

// run uploads body. first is a whole chunk that was read of it, or nil.
func (u *uploader) run(ctx context.Context, body io.Reader, first []byte) error {
	if u.again == nil && first == nil {
		u.again = rewinder(body)
	}
	if u.again == nil {
		return u.session(ctx, body, first)
	}
	begun := false
	return retryErr(ctx, u.r, u.t, maxSessions, func() error {
		if begun {
			first = nil
			if _, err := u.again(); err != nil {
				return fmt.Errorf("read blob to upload again: %w", err)
			}
		}
		begun = true
		return u.session(ctx, body, first)
	})
}

// session uploads body in one session, from its first byte to its last.
func (u *uploader) session(ctx context.Context, body io.Reader, first []byte) error {
	if err := u.begin(ctx); err != nil {
		return err
	}
	err := u.patches(ctx, body, first)
	if err == nil && u.size >= 0 && u.sent != u.size {
		err = u.t.wrong("%d bytes were announced, %d or more given", u.size, u.sent)
	}
	digest := ""
	if err == nil {
		digest = u.sum()
		if u.known != "" && u.known != digest {
			err = u.t.wrong("the bytes given have digest %s", digest)
		}
	}
	if err != nil {
		u.abandon()
		return err
	}
	broken := false
	return retryErr(ctx, u.r, u.t, maxTries, func() error {
		if broken && !u.resume(ctx) {
			return backoff.Permanent(err)
		}
		err = u.finish(ctx, digest, nil)
		broken = err != nil
		return err
	})
}

// patches sends body in chunks. The next is read while one is sent.
func (u *uploader) patches(ctx context.Context, body io.Reader, first []byte) error {
	if first != nil {
		if err := u.patch(ctx, first); err != nil {
			return err
		}
	}
	ahead := readAhead(body)
	defer ahead.close()
	for {
		p := ahead.next()
		if p.err != nil && p.err != io.EOF && p.err != io.ErrUnexpectedEOF {
			return fmt.Errorf("read blob to upload: %w", p.err)
		}
		if p.n > 0 {
			if err := u.patch(ctx, (*p.buf)[:p.n]); err != nil {
				return err
			}
		}
		ahead.free <- p.buf
		if p.err != nil || u.size >= 0 && u.sent > u.size {
			return nil // the caller says what is wrong with too much
		}
	}
}

// request is one step of the upload.
func (u *uploader) request(method string, to *url.URL) request {
	return request{
		target: u.t,
		method: method,
		url:    to,
		header: http.Header{},
		access: access{name: u.name, push: true},
		wait:   u.r.limits.patch,
	}
}

// begin opens a session. A registry that has none sets refused.
func (u *uploader) begin(ctx context.Context) error {
	u.sent, u.where, u.refused = 0, nil, false
	q := u.request(http.MethodPost, u.r.at(u.name+"/blobs/uploads/"))
	resp, err := u.r.do(ctx, q)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		u.refused = resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed
		return u.t.status(resp)
	}
	drain(resp)
	return u.moved(q.url, resp)
}

// moved notes where the session goes on.
func (u *uploader) moved(from *url.URL, resp *http.Response) error {
	location := resp.Header.Get("Location")
	if location == "" {
		if u.where == nil {
			return u.t.wrong("the registry does not say where to upload to")
		}
		return nil
	}
	base := &u.r.base
	to, err := from.Parse(location)
	if err != nil || to.User != nil || withPort(base.Scheme, to.Host) != withPort(base.Scheme, base.Host) {
		return u.t.wrong("the registry wants the upload to go to another host")
	}
	// Behind a proxy, a registry may not know that it is spoken to in TLS.
	to.Scheme, to.Host, to.Fragment = base.Scheme, base.Host, ""
	u.where = to
	return nil
}

// patch appends a chunk. It is never sent blindly twice to one session:
// some registries append it again, some end the session. Only one that
// says that it has nothing of it is sent it again.
func (u *uploader) patch(ctx context.Context, p []byte) error {
	var err error
	return retryErr(ctx, u.r, u.t, maxTries, func() error {
		if err != nil && !u.resume(ctx) {
			return backoff.Permanent(err)
		}
		err = u.patchOnce(ctx, p)
		return err
	})
}

func (u *uploader) patchOnce(ctx context.Context, p []byte) error {
	q := u.request(http.MethodPatch, u.where)
	q.body = p
	q.closed = new(sync.WaitGroup)
	defer q.closed.Wait()
	q.header.Set("Content-Type", "application/octet-stream")
	q.header.Set("Content-Range", fmt.Sprintf("%d-%d", u.sent, u.sent+int64(len(p))-1))
	resp, err := u.r.do(ctx, q)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusNoContent && resp.StatusCode != http.StatusCreated {
		return u.lost(u.t.status(resp))
	}
	drain(resp)
	sent := u.sent + int64(len(p))
	if last, ok := lastByte(resp.Header.Get("Range")); ok && last != sent-1 {
		return u.lost(u.t.wrong("the registry has %d bytes of it, %d were sent", last+1, sent))
	}
	if err := u.moved(q.url, resp); err != nil {
		return err
	}
	u.sent = sent
	return nil
}

// resume asks how much of the session's blob the registry has, and tells
// whether that is just what it has acknowledged. "0-0" stands for no byte
// as well as for one, so an upload that has none yet begins anew.
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
	return resp.StatusCode == http.StatusNoContent && ok && last == u.sent-1 && u.moved(q.url, resp) == nil
}

// lastByte reads an upload's "0-N", with or without a unit.
func lastByte(v string) (int64, bool) {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(v, "bytes="), "0-")
	if !ok {
		return 0, false
	}
	return parseCount(rest)
}

// lost marks an error that ends the session, and no more than that.
func (u *uploader) lost(err error) error {
	var e *Error
	if errors.As(err, &e) {
		switch {
		case e.Status == http.StatusNotFound, e.Status == http.StatusRequestedRangeNotSatisfiable:
			e.kind, e.again = ErrUnreachable, true
			e.cause = fmt.Errorf("the upload session broke off (%d)", e.Status)
		case e.Code == "DIGEST_INVALID", e.Status == 0 && e.kind == ErrContent:
			e.again = true // bytes were lost or doubled on the way
		}
	}
	return err
}

// finish ends the session with the digest; rest is appended before.
func (u *uploader) finish(ctx context.Context, digest string, rest []byte) error {
	to := *u.where
	if to.RawQuery != "" {
		to.RawQuery += "&"
	}
	to.RawQuery += "digest=" + url.QueryEscape(digest)
	q := u.request(http.MethodPut, &to)
	q.body = rest
	q.closed = new(sync.WaitGroup)
	defer q.closed.Wait()
	q.wait = u.r.limits.finish
	q.header.Set("Content-Type", "application/octet-stream")
	resp, err := u.r.do(ctx, q)
	if err == nil {
		err = u.lost(u.t.stored(resp, digest))
	}
	var e *Error
	if errors.As(err, &e) && e.Temporary() && e.kind == ErrUnreachable {
		// The answer may have been lost and not the blob.
		if there, _ := u.r.BlobExists(ctx, u.name, digest); there {
			return nil
		}
	}
	return err
}

// abandon tells the registry that the session's bytes can go.
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
