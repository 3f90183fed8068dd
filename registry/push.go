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
// with its digest and sent in one request; a larger one goes in pieces,
// its digest last. A session that breaks off is begun anew where the blob
// is in memory or body can seek. Whether the registry has the blob is not
// asked here: that is BlobExists.
func (r *Registry) PutBlob(ctx context.Context, name, digest string, body io.Reader, size int64) error {
	t := r.target("upload blob", name, digest)
	if !validRepository(name) || !digestForm.MatchString(digest) || size < 0 {
		return t.wrong("a repository, a sha256 digest and a size are needed")
	}
	if size <= uploadChunk {
		data, err := readBlob(body, digest, size, t)
		if err != nil {
			return err
		}
		return r.putBytes(ctx, t, name, digest, data)
	}
	u := uploader{r: r, t: t, name: name, digest: digest, size: size}
	err := u.run(ctx, body, nil)
	if u.refused {
		src := &verified{src: body, left: size, hash: sha256.New(), digest: digest, t: t}
		return r.putPlain(ctx, t, name, digest, nil, src, size)
	}
	return err
}

// UploadBlob uploads all of body, whose digest and size nobody has to
// know before, and returns them. A blob of up to 16 MiB is looked for
// first. A session that breaks off is begun anew where body can seek.
func (r *Registry) UploadBlob(ctx context.Context, name string, body io.Reader) (digest string, size int64, err error) {
	t := r.target("upload blob", name, "")
	if !validRepository(name) {
		return "", 0, fmt.Errorf("%w: %s", ErrReference, t.what)
	}
	again := rewinder(body)
	buf := chunks.Get().(*[]byte)
	n, err := io.ReadFull(body, *buf)
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return r.uploadSmall(ctx, t, name, (*buf)[:n])
	case err != nil:
		return "", 0, fmt.Errorf("read blob to upload: %w", err)
	}
	u := uploader{r: r, t: t, name: name, size: -1, again: again}
	if err := u.run(ctx, body, *buf); err != nil {
		return "", 0, err
	}
	chunks.Put(buf)
	return u.digest, u.sent, nil
}

// uploadSmall uploads a blob that is in memory unless it is there.
func (r *Registry) uploadSmall(ctx context.Context, t target, name string, data []byte) (string, int64, error) {
	digest := digestOf(data)
	there, err := r.BlobExists(ctx, name, digest)
	if err == nil && !there {
		err = r.putBytes(ctx, t, name, digest, data)
	}
	if err != nil {
		return "", 0, err
	}
	return digest, int64(len(data)), nil
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
	case digestOf(data) != digest:
		return nil, t.wrong("the bytes given have digest %s", digestOf(data))
	}
	return data, nil
}

// putBytes uploads a blob that is in memory: two requests.
func (r *Registry) putBytes(ctx context.Context, t target, name, digest string, data []byte) error {
	u := uploader{r: r, t: t, name: name, digest: digest, size: int64(len(data))}
	_, err := retry(ctx, r, t, func() (struct{}, error) {
		err := u.begin(ctx)
		if err == nil {
			err = u.finish(ctx, data)
		}
		return struct{}{}, err
	})
	if u.refused {
		return r.putPlain(ctx, t, name, digest, data, nil, 0)
	}
	return err
}

// putPlain uploads a blob with epoch's own PUT to the blob's URL, for
// servers without upload sessions. Either data or stream is the blob.
func (r *Registry) putPlain(ctx context.Context, t target, name, digest string, data []byte, stream *verified, size int64) error {
	q := request{
		target: t,
		method: http.MethodPut,
		url:    r.at(name + "/blobs/" + digest),
		header: http.Header{"Content-Type": {"application/octet-stream"}},
		body:   data,
		access: access{name: name, push: true},
		wait:   r.limits.finish,
	}
	if stream != nil {
		q.stream, q.size = stream, size
	}
	resp, err := r.do(ctx, q)
	if stream != nil && stream.err != nil && err != nil {
		return stream.err
	}
	if err != nil {
		return err
	}
	return t.stored(resp, digest)
}

// stored takes the answer that ends an upload.
func (t target) stored(resp *http.Response, digest string) error {
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent {
		return t.status(resp)
	}
	drain(resp)
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != digest {
		return t.wrong("the registry stored it as %q, not as %s", clip(got), digest)
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

func (v *verified) sum() string { return "sha256:" + hex.EncodeToString(v.hash.Sum(nil)) }

// PutManifest stores a manifest under a tag or its digest. The registry
// must name the digest that the bytes have, if it names one.
func (r *Registry) PutManifest(ctx context.Context, name, tag string, data []byte, contentType string) error {
	t := r.target("put manifest", name, tag)
	if !validRepository(name) || !tagForm.MatchString(tag) && !digestForm.MatchString(tag) {
		return fmt.Errorf("%w: %s", ErrReference, t.what)
	}
	digest := digestOf(data)
	if digestForm.MatchString(tag) && tag != digest {
		return t.wrong("the manifest has digest %s", digest)
	}
	q := request{
		target: t,
		method: http.MethodPut,
		url:    r.at(name + "/manifests/" + tag),
		header: http.Header{"Content-Type": {contentType}},
		body:   data,
		access: access{name: name, push: true},
		wait:   r.limits.patch,
	}
	_, err := retry(ctx, r, t, func() (struct{}, error) {
		resp, err := r.do(ctx, q)
		if err == nil {
			err = t.stored(resp, digest)
		}
		return struct{}{}, err
	})
	return err
}
