package registry

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"sync/atomic"
)

// missedBlobs is how many blobs were missing before it is found out
// whether a registry can be spared the question: for a few small files
// that would take more requests than it saves.
const missedBlobs = 4

// ownMounts is whether a registry that is asked to mount a blob from the
// very repository which the blob is for says truly whether it is there.
// The request that begins an upload asks that, so no HEAD has to. Some
// registries do not mount at all, and begin an upload whether or not.
type ownMounts struct {
	missed atomic.Int32 // blobs, and uploaded since
	state  atomic.Int32
}

const (
	ownUnknown int32 = iota
	ownAsking        // somebody finds out
	ownTrue
	ownFalse
)

// PutMissing uploads a blob that is in memory, unless the repository has
// it, or can take it over from the repository from of the same registry;
// an empty from names none. there tells that nothing was sent. It goes in
// one request whatever its size, again where that breaks off. That data
// has this digest is the caller's word. Nothing reads data any more when
// it has returned.
func (r *Registry) PutMissing(ctx context.Context, name, from, digest string, data []byte) (there bool, err error) {
	t := r.target("upload blob", name, digest)
	if !validRepository(name) || from != "" && !validRepository(from) || !digestForm.MatchString(digest) {
		return false, t.wrong("a repository and a sha256 digest are needed")
	}
	return r.putMissing(ctx, t, name, from, digest, data)
}

func (r *Registry) putMissing(ctx context.Context, t target, name, from, digest string, data []byte) (there bool, err error) {
	if from != "" {
		there, err = r.BlobExists(ctx, name, digest)
		if there || err != nil {
			return there, err
		}
		return r.putBytes(ctx, t, name, from, digest, data)
	}
	state := r.own.state.Load()
	if state == ownTrue {
		return r.putBytes(ctx, t, name, name, digest, data)
	}
	if there, err = r.BlobExists(ctx, name, digest); there || err != nil {
		return there, err
	}
	if state == ownFalse {
		return r.putBytes(ctx, t, name, "", digest, data)
	}
	// What was just found missing is no blob that could be mounted.
	there, err = r.putBytes(ctx, t, name, name, digest, data)
	if there {
		r.own.state.Store(ownFalse)
		return r.putBytes(ctx, t, name, "", digest, data)
	}
	if err == nil && r.own.missed.Add(1) >= missedBlobs && r.own.state.CompareAndSwap(ownUnknown, ownAsking) {
		r.tryOwnMount(ctx, name, digest)
	}
	return false, err
}

// tryOwnMount asks for a blob that is there.
func (r *Registry) tryOwnMount(ctx context.Context, name, digest string) {
	found := ownFalse
	if there, err := r.MountBlob(ctx, name, digest, name); err == nil && there {
		found = ownTrue
	}
	r.own.state.CompareAndSwap(ownAsking, found)
}

// putBytes uploads a blob that is in memory: two requests. Where from
// names a repository that the blob can be taken over from it is one, and
// mounted is true.
func (r *Registry) putBytes(ctx context.Context, t target, name, from, digest string, data []byte) (mounted bool, err error) {
	u := uploader{r: r, t: t, name: name, known: digest, size: int64(len(data))}
	sent := false
	err = retryErr(ctx, r, t, maxSessions, func() (err error) {
		if mounted, err = u.beginOrMount(ctx, from); err != nil || mounted {
			return err
		}
		sent = true
		return u.finish(ctx, digest, data)
	})
	if u.refused {
		return false, r.putPlain(ctx, t, name, digest, data)
	}
	return mounted && !sent, err
}

// beginOrMount opens a session, unless the blob was taken over.
func (u *uploader) beginOrMount(ctx context.Context, from string) (mounted bool, err error) {
	if from != "" {
		mounted, err = u.mount(ctx, u.known, from)
		trial := from == u.name && u.r.own.state.Load() != ownTrue
		if mounted || err != nil && !trial || u.where != nil {
			return mounted, err
		}
	}
	return false, u.begin(ctx)
}

// mount asks the registry to take a blob over from another of its
// repositories. One that does not may open a session, or do neither.
func (u *uploader) mount(ctx context.Context, digest, from string) (mounted bool, err error) {
	u.sent, u.where = 0, nil
	q := u.request(http.MethodPost, u.r.at(u.name+"/blobs/uploads/"))
	q.url.RawQuery = url.Values{"mount": {digest}, "from": {from}}.Encode()
	if from != u.name { // its token would be another one
		q.access.from = from
	}
	resp, err := u.r.do(ctx, q)
	var e *Error
	switch {
	case errors.Is(err, ErrDenied) && errors.As(err, &e) && !e.Temporary():
		return false, nil // the upload will tell, if it is not allowed either
	case err != nil:
		return false, err
	case resp.StatusCode == http.StatusAccepted:
		drain(resp)
		_ = u.moved(q.url, resp) // without a place there is no session
		return false, nil
	case resp.StatusCode == http.StatusCreated:
		return true, u.t.stored(resp, digest)
	}
	err = u.t.status(resp)
	if errors.As(err, &e) && e.Temporary() {
		return false, err
	}
	return false, nil
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
		mounted, err := u.mount(ctx, digest, from)
		if !mounted && u.where != nil {
			u.abandon()
			return false, nil
		}
		return mounted, err
	})
}
