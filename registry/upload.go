package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// uploadChunk is the body of one PATCH, in bytes. It is in memory before
// it is sent, so a slow source keeps no request waiting.
const uploadChunk = 16 << 20

// chunks are buffers of uploadChunk bytes. One goes back only after a
// success: else a connection may still read it.
var chunks = sync.Pool{New: func() any {
	b := make([]byte, uploadChunk)
	return &b
}}

// uploader is one blob on its way up, by sessions: POST, PATCH, PUT.
type uploader struct {
	r       *Registry
	t       target
	name    string
	digest  string                    // "" until all bytes have passed
	size    int64                     // -1 where it is not known
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

// run uploads body. first is a whole chunk that was read of it, or nil.
func (u *uploader) run(ctx context.Context, body io.Reader, first []byte) error {
	if u.again == nil && first == nil {
		u.again = rewinder(body)
	}
	if u.again == nil {
		return u.session(ctx, body, first)
	}
	_, err := retry(ctx, u.r, u.t, func() (struct{}, error) {
		err := u.session(ctx, body, first)
		if err != nil && !u.refused {
			first = nil
			if _, seekErr := u.again(); seekErr != nil {
				err = fmt.Errorf("read blob to upload again: %w", seekErr)
			}
		}
		return struct{}{}, err
	})
	return err
}

// session uploads body in one session, from its first byte to its last.
func (u *uploader) session(ctx context.Context, body io.Reader, first []byte) error {
	if err := u.begin(ctx); err != nil {
		return err
	}
	digest, err := u.patches(ctx, body, first)
	if err == nil && u.size >= 0 && u.sent != u.size {
		err = u.t.wrong("%d bytes were announced, %d or more given", u.size, u.sent)
	}
	if err == nil && u.digest != "" && u.digest != digest {
		err = u.t.wrong("the bytes given have digest %s", digest)
	}
	if err != nil {
		u.abandon()
		return err
	}
	known := u.digest
	u.digest = digest
	if err = u.finish(ctx, nil); err != nil {
		u.digest = known
	}
	return err
}

// patches sends body in chunks and returns its digest.
func (u *uploader) patches(ctx context.Context, body io.Reader, first []byte) (string, error) {
	hash := sha256.New()
	send := func(p []byte) error {
		hash.Write(p)
		return u.patch(ctx, p)
	}
	if first != nil {
		if err := send(first); err != nil {
			return "", err
		}
	}
	buf := chunks.Get().(*[]byte)
	for {
		n, err := io.ReadFull(body, *buf)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return "", fmt.Errorf("read blob to upload: %w", err)
		}
		if n > 0 {
			if err := send((*buf)[:n]); err != nil {
				return "", err
			}
		}
		if err != nil {
			chunks.Put(buf)
			return "sha256:" + hex.EncodeToString(hash.Sum(nil)), nil
		}
		if u.size >= 0 && u.sent > u.size {
			return "", nil // the caller says what is wrong with it
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

// patch appends a chunk. It is never sent twice to one session: some
// registries append it again, some end the session.
func (u *uploader) patch(ctx context.Context, p []byte) error {
	q := u.request(http.MethodPatch, u.where)
	q.body = p
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
	u.sent += int64(len(p))
	if last, ok := lastByte(resp.Header.Get("Range")); ok && last != u.sent-1 {
		return u.lost(u.t.wrong("the registry has %d bytes of it, %d were sent", last+1, u.sent))
	}
	return u.moved(q.url, resp)
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
func (u *uploader) finish(ctx context.Context, rest []byte) error {
	to := *u.where
	if to.RawQuery != "" {
		to.RawQuery += "&"
	}
	to.RawQuery += "digest=" + url.QueryEscape(u.digest)
	q := u.request(http.MethodPut, &to)
	q.body = rest
	q.wait = u.r.limits.finish
	q.header.Set("Content-Type", "application/octet-stream")
	resp, err := u.r.do(ctx, q)
	if err == nil {
		err = u.lost(u.t.stored(resp, u.digest))
	}
	var e *Error
	if errors.As(err, &e) && e.Temporary() && e.kind == ErrUnreachable {
		// The answer may have been lost and not the blob.
		if there, _ := u.r.BlobExists(ctx, u.name, u.digest); there {
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

// MountBlob asks the registry to take a blob over from another of its
// repositories. False means that it did not, and that the blob has to be
// uploaded.
func (r *Registry) MountBlob(ctx context.Context, name, digest, from string) (bool, error) {
	t := r.target("mount blob", name, digest)
	if !validRepository(name) || !validRepository(from) || !digestForm.MatchString(digest) {
		return false, t.wrong("two repositories and a sha256 digest are needed")
	}
	return retry(ctx, r, t, func() (bool, error) {
		u := uploader{r: r, t: t, name: name}
		q := u.request(http.MethodPost, r.at(name+"/blobs/uploads/"))
		q.url.RawQuery = url.Values{"mount": {digest}, "from": {from}}.Encode()
		q.access.from = from
		resp, err := r.do(ctx, q)
		var e *Error
		switch {
		case errors.Is(err, ErrDenied) && errors.As(err, &e) && !e.Temporary():
			return false, nil // the upload will tell, if it is not allowed either
		case err != nil:
			return false, err
		case resp.StatusCode == http.StatusAccepted:
			drain(resp)
			if u.moved(q.url, resp) == nil {
				u.abandon()
			}
			return false, nil
		case resp.StatusCode == http.StatusCreated:
			return true, t.stored(resp, digest)
		}
		err = t.status(resp)
		if errors.As(err, &e) && e.Temporary() {
			return false, err
		}
		return false, nil
	})
}
