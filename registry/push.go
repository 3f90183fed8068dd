package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"sync"

	"github.com/cocoonstack/epochfs/internal/digests"
)

// BlobExists asks whether a repository has a blob. Storage behind a
// redirect that refuses to say counts as no: sending it again is safe.
func (r *Registry) BlobExists(ctx context.Context, name, digest string) (bool, error) {
	q, err := r.blobRequest("look for blob", http.MethodHead, name, digest)
	if err != nil {
		return false, err
	}
	q.access.push = true // the next request will be its upload
	return retry(ctx, r, q.target, func() (bool, error) {
		resp, err := r.do(ctx, q)
		if err != nil {
			return false, err
		}
		if resp.StatusCode == http.StatusOK {
			drain(resp)
			return true, nil
		}
		away := redirected(resp) && resp.StatusCode < 500
		err = q.status(resp)
		if away || errors.Is(err, ErrNotFound) {
			return false, nil
		}
		return false, err
	})
}

// PutBlob uploads a blob of size bytes. A blob of up to 16 MiB is compared
// with its digest and sent in one request where the registry takes that;
// a larger one goes in the first of the ways that the registry takes. A
// session that breaks off is begun anew where the blob is in memory or body
// can seek. Whether the registry has the blob is not
// asked here: that is BlobExists.
func (r *Registry) PutBlob(ctx context.Context, name, digest string, body io.Reader, size int64) error {
	t := r.target("upload blob", name, digest)
	if !validRepository(name) || !digests.Valid(digest) || size < 0 {
		return t.wrong("a repository, a sha256 digest and a size are needed")
	}
	if size <= int64(uploadChunk) {
		data, err := readBlob(body, digest, size, t)
		if err != nil {
			return err
		}
		u := uploader{r: r, t: t, name: name, known: digest, size: size}
		return u.putBytes(ctx, data)
	}
	h := newHashed(body)
	u := &uploader{r: r, t: t, name: name, known: digest, size: size, sum: h.digest}
	return u.putLarge(ctx, h.reader())
}

// PutHashed is PutBlob for a caller who has hashed the blob: that its bytes
// have this digest is his word.
func (r *Registry) PutHashed(ctx context.Context, name, digest string, body io.Reader, size int64) error {
	if size <= int64(uploadChunk) {
		return r.PutBlob(ctx, name, digest, body, size)
	}
	t := r.target("upload blob", name, digest)
	if !validRepository(name) || !digests.Valid(digest) {
		return t.wrong("a repository and a sha256 digest are needed")
	}
	u := &uploader{r: r, t: t, name: name, known: digest, size: size}
	return u.putLarge(ctx, body)
}

// putLarge uploads a blob of known digest and size.
func (u *uploader) putLarge(ctx context.Context, body io.Reader) error {
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	f, err := newFeed(body, rewinder(body), *buf)
	if err != nil {
		return err
	}
	err = u.send(ctx, f, waysOfLarge)
	if !u.refused {
		return err
	}
	if body, err = f.reader(); err != nil {
		return err
	}
	return u.r.putPlainStream(ctx, u.t, u.name, u.known, body, u.size)
}

// UploadBlob uploads all of body, whose digest and size nobody has to
// know before, and returns them. A blob of up to 16 MiB that is there is
// not sent. A session that breaks off is begun anew where body can seek.
func (r *Registry) UploadBlob(ctx context.Context, name string, body io.Reader) (digest string, size int64, err error) {
	h := newHashed(body)
	size, err = r.UploadStream(ctx, name, h.reader(), h.digest)
	return h.digest(), size, err
}

// UploadStream is UploadBlob for a body whose reader knows its digest: it
// is asked for when body has been read to its end, and must be that of
// all bytes read since body's start, or since the last Seek to it. Body
// is read ahead of what is sent. A registry that has no upload sessions
// is given a body that can seek after it was read once for its digest.
func (r *Registry) UploadStream(ctx context.Context, name string, body io.Reader, digest func() string) (size int64, err error) {
	t := r.target("upload blob", name, "")
	if !validRepository(name) {
		return 0, fmt.Errorf("%w: %s", ErrReference, t.what)
	}
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	f, err := newFeed(body, rewinder(body), *buf)
	if err != nil {
		return 0, err
	}
	if f.ended {
		u := &uploader{r: r, t: t, name: name, known: digest(), size: int64(len(f.first))}
		_, err = r.putMissing(ctx, u, f.first)
		return u.size, err
	}
	u := &uploader{r: r, t: t, name: name, size: -1, sum: digest}
	err = u.send(ctx, f, waysOfLarge)
	if u.refused {
		return r.uploadPlain(ctx, u, f)
	}
	return u.sent, err
}

// uploadPlain uploads what no session was opened for: it is read once
// for its digest and once to be sent.
func (r *Registry) uploadPlain(ctx context.Context, u *uploader, f *feed) (size int64, err error) {
	if f.again == nil {
		return 0, u.t.fail(ErrUnreachable, errors.New("the registry has no upload sessions and wants the digest first, but what is uploaded can be read only once"))
	}
	body, err := f.reader()
	if err != nil {
		return 0, err
	}
	if size, err = io.Copy(io.Discard, body); err != nil {
		return 0, fmt.Errorf("read blob to upload: %w", err)
	}
	digest := u.sum()
	if there, err := r.BlobExists(ctx, u.name, digest); there || err != nil {
		return size, err
	}
	if body, err = f.reader(); err != nil {
		return 0, err
	}
	return size, r.putPlainStream(ctx, u.t, u.name, digest, body, size)
}

// readBlob reads a blob into memory that must be what is announced.
func readBlob(body io.Reader, digest string, size int64, t target) ([]byte, error) {
	data := make([]byte, size)
	n, err := io.ReadFull(body, data)
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return nil, t.wrong("%d bytes were announced, %d given", size, n)
	case err != nil:
		return nil, fmt.Errorf("read blob to upload: %w", err)
	case digests.Of(data) != digest:
		return nil, t.wrong("the bytes given have digest %s", digests.Of(data))
	}
	return data, nil
}

// plainRequest is epoch's own PUT to the blob's URL, for servers without
// upload sessions.
func (r *Registry) plainRequest(t target, name, digest string) request {
	return request{
		target: t,
		method: http.MethodPut,
		url:    r.at(name + "/blobs/" + digest),
		header: http.Header{"Content-Type": {"application/octet-stream"}},
		access: access{name: name, push: true},
		wait:   r.limits.finish,
	}
}

// putPlain uploads bytes with epoch's own PUT.
func (r *Registry) putPlain(ctx context.Context, t target, name, digest string, data []byte) error {
	q := r.plainRequest(t, name, digest)
	q.body = data
	return retryErr(ctx, r, t, maxTries, func() error {
		q.closed = new(sync.WaitGroup)
		defer q.closed.Wait()
		resp, err := r.do(ctx, q)
		if err != nil {
			return err
		}
		return t.stored(resp, digest)
	})
}

// putPlainStream uploads a stream with epoch's own PUT; one that breaks
// off again where the stream can seek.
func (r *Registry) putPlainStream(ctx context.Context, t target, name, digest string, body io.Reader, size int64) error {
	q := r.plainRequest(t, name, digest)
	again := rewinder(body)
	tries := uint(maxSessions)
	if again == nil {
		tries = 1
	}
	begun := false
	return retryErr(ctx, r, t, tries, func() error {
		if begun {
			if _, err := again(); err != nil {
				return fmt.Errorf("read blob to upload again: %w", err)
			}
		}
		begun = true
		src := &verified{src: body, left: size, hash: sha256.New(), digest: digest, t: t}
		gone := make(chan struct{})
		q.stream, q.size = &leased{src, sync.OnceFunc(func() { close(gone) })}, size
		resp, err := r.do(ctx, q)
		if err == nil {
			err = t.stored(resp, digest)
		}
		<-gone // before body is read again, or src.err looked at
		if src.err != nil && err != nil {
			return src.err
		}
		return err
	})
}

// leased is a stream that says when the transport has done with it.
type leased struct {
	io.Reader
	back func()
}

func (l *leased) Close() error {
	l.back()
	return nil
}

// stored takes the answer that ends an upload.
func (t target) stored(resp *http.Response, digest string) error {
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent {
		return t.status(resp)
	}
	defer drain(resp)
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != digest {
		return t.confirm(resp, digest, got)
	}
	return nil
}

// verified hands out a blob, and its last bytes only when all of it has
// the right digest: epoch's PUT does not look.
type verified struct {
	src    io.Reader
	left   int64
	hash   hash.Hash
	digest string
	t      target
	err    error // what the source, or the digest, failed with
}

func (v *verified) Read(p []byte) (int, error) {
	if v.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > v.left {
		p = p[:v.left]
	}
	n, err := v.src.Read(p)
	v.hash.Write(p[:n])
	v.left -= int64(n)
	switch {
	case v.left == 0 && v.sum() != v.digest:
		v.err = v.t.wrong("the bytes given have digest %s", v.sum())
	case v.left == 0:
		return n, io.EOF
	case err == io.EOF:
		v.err = v.t.wrong("the bytes given end %d too early", v.left)
	case err != nil:
		v.err = fmt.Errorf("read blob to upload: %w", err)
	default:
		return n, nil
	}
	return 0, v.err
}

func (v *verified) sum() string { return digests.OfHash(v.hash) }

// PutManifest stores a manifest under a tag or its digest. The registry
// must name the digest that the bytes have, if it names one.
func (r *Registry) PutManifest(ctx context.Context, name, tag string, data []byte, contentType string) error {
	_, err := r.putManifest(ctx, name, tag, data, contentType)
	return err
}

// putManifest is PutManifest. It returns the headers of the answer.
func (r *Registry) putManifest(ctx context.Context, name, tag string, data []byte, contentType string) (http.Header, error) {
	t := r.target("put manifest", name, tag)
	if !validRepository(name) || !tagForm.MatchString(tag) && !digests.Valid(tag) {
		return nil, fmt.Errorf("%w: %s", ErrReference, t.what)
	}
	digest := digests.Of(data)
	if digests.Valid(tag) && tag != digest {
		return nil, t.wrong("the manifest has digest %s", digest)
	}
	q := request{
		target: t,
		method: http.MethodPut,
		url:    r.at(name + "/manifests/" + tag),
		header: http.Header{"Content-Type": {contentType}},
		body:   data,
		access: access{name: name, push: true},
		wait:   r.limits.patch,
		moves:  true,
	}
	return retry(ctx, r, t, func() (http.Header, error) {
		resp, err := r.do(ctx, q)
		if err != nil {
			return nil, err
		}
		return resp.Header, t.stored(resp, digest)
	})
}
