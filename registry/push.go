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

// BlobExists reports whether a repository has a blob. If storage behind a
// redirect refuses to say, it reports false: sending the blob again is safe.
func (r *Registry) BlobExists(ctx context.Context, name, digest string) (bool, error) {
	q, err := r.blobRequest("look for blob", http.MethodHead, name, digest)
	if err != nil {
		return false, err
	}
	q.access.push = true // its upload is the next request
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

// PutBlob uploads a blob of size bytes, without asking whether the registry
// has it. A blob of up to 16 MiB is verified first, and sent in one request
// if the registry takes that. A larger one goes in the first of the ways
// that the registry takes. If a session breaks off, PutBlob starts over,
// provided that the blob is in memory or body can seek.
func (r *Registry) PutBlob(ctx context.Context, name, digest string, body io.Reader, size int64) error {
	t := r.target("upload blob", name, digest)
	if !validRepository(name) || !digests.Valid(digest) || size < 0 {
		return t.wrong("invalid repository, sha256 digest or size")
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

// PutHashed is PutBlob for a caller that has hashed the blob, and guarantees
// the digest.
func (r *Registry) PutHashed(ctx context.Context, name, digest string, body io.Reader, size int64) error {
	if size <= int64(uploadChunk) {
		return r.PutBlob(ctx, name, digest, body, size)
	}
	t := r.target("upload blob", name, digest)
	if !validRepository(name) || !digests.Valid(digest) {
		return t.wrong("invalid repository or sha256 digest")
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

// UploadBlob uploads all of body and returns its digest and size. It does
// not send a blob of up to 16 MiB that the registry has. If a session breaks
// off, it starts over, provided that body can seek.
func (r *Registry) UploadBlob(ctx context.Context, name string, body io.Reader) (digest string, size int64, err error) {
	h := newHashed(body)
	size, err = r.UploadStream(ctx, name, h.reader(), h.digest)
	return h.digest(), size, err
}

// UploadStream is UploadBlob for a body whose digest its reader computes.
// digest is called after body was read to its end; it must return the digest
// of all bytes read since the start of body, or since the last Seek to it.
// Body is read ahead of sending. If the registry has no upload sessions and
// body can seek, body is read twice: for the digest and to be sent.
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

// uploadPlain uploads a blob without a session: it reads the blob once for
// the digest and once to send it.
func (r *Registry) uploadPlain(ctx context.Context, u *uploader, f *feed) (size int64, err error) {
	if f.again == nil {
		return 0, u.t.fail(ErrUnreachable, errors.New("the registry has no upload sessions and needs the digest first, but the source can be read only once"))
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

// readBlob reads a blob into memory and verifies its size and digest.
func readBlob(body io.Reader, digest string, size int64, t target) ([]byte, error) {
	data := make([]byte, size)
	n, err := io.ReadFull(body, data)
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return nil, t.wrong("%d bytes were announced, but %d given", size, n)
	case err != nil:
		return nil, fmt.Errorf("read blob to upload: %w", err)
	case digests.Of(data) != digest:
		return nil, t.wrong("the data has digest %s", digests.Of(data))
	}
	return data, nil
}

// plainRequest returns epoch's own PUT to the blob's URL, for servers
// without upload sessions.
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

// putPlainStream uploads a stream with epoch's own PUT, and again after a
// break if the stream can seek.
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
		<-gone // before body is read again, or src.err is read
		if src.err != nil && err != nil {
			return src.err
		}
		return err
	})
}

// leased is a stream that signals when the transport has finished with it.
type leased struct {
	io.Reader
	back func()
}

func (l *leased) Close() error {
	l.back()
	return nil
}

// stored checks the answer that ends an upload.
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

// verified reads a blob and withholds its last bytes until the digest is
// verified, because epoch's PUT does not verify it.
type verified struct {
	src    io.Reader
	left   int64
	hash   hash.Hash
	digest string
	t      target
	err    error // error of the source or the digest
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
		v.err = v.t.wrong("the data has digest %s", v.sum())
	case v.left == 0:
		return n, io.EOF
	case err == io.EOF:
		v.err = v.t.wrong("the data ends %d bytes too early", v.left)
	case err != nil:
		v.err = fmt.Errorf("read blob to upload: %w", err)
	default:
		return n, nil
	}
	return 0, v.err
}

func (v *verified) sum() string { return digests.OfHash(v.hash) }

// PutManifest stores a manifest under a tag or its digest. If the registry
// names a digest in its answer, it must be that of data.
func (r *Registry) PutManifest(ctx context.Context, name, tag string, data []byte, contentType string) error {
	_, err := r.putManifest(ctx, name, tag, data, contentType)
	return err
}

// putManifest is PutManifest. It returns the headers of the answer.
func (r *Registry) putManifest(ctx context.Context, name, tag string, data []byte, contentType string) (http.Header, error) {
	t := r.target("put manifest", name, tag)
	if !validRepository(name) || !validTag(tag) && !digests.Valid(tag) {
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
