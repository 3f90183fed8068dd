package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"

	"github.com/cocoonstack/epochfs/internal/digests"
)

// missesInARow is how many blobs must have been missing, one after
// another, before the next is taken to be missing as well.
const missesInARow = 4

// selfMounts is whether a registry that is asked to mount a blob from the
// very repository which the blob is for tells whether it is there. Where it
// is not, an upload has begun, and no HEAD was needed. Some registries do
// not mount, and begin an upload whether or not; and one that said what is
// not true, or failed, is not asked that way again.
type selfMounts struct {
	mu     sync.Mutex
	misses int // in a row
	state  selfState
}

type selfState int

const (
	selfUnknown selfState = iota
	selfAsking            // somebody finds out
	selfTrue
	selfFalse
)

// expectMiss says that a mount is worth more than a HEAD now.
func (s *selfMounts) expectMiss() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == selfTrue && s.misses >= missesInARow
}

// found notes a blob that was there.
func (s *selfMounts) found() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.misses = 0
}

// missed notes a blob that was not there, and is now. It tells whether the
// caller is to find out about mounts, by this blob.
func (s *selfMounts) missed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.misses++
	if s.state != selfUnknown || s.misses < missesInARow {
		return false
	}
	s.state = selfAsking
	return true
}

func (s *selfMounts) set(state selfState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = state
}

// PutMissing uploads a blob that is in memory, unless the repository has
// it, or can take it over from the repository from of the same registry;
// an empty from names none. there tells that nothing was sent. The blob
// goes in one request whatever its size, again where that breaks off. That
// data has this digest is the caller's word. Nothing reads data any more
// when it has returned.
func (r *Registry) PutMissing(ctx context.Context, name, from, digest string, data []byte) (there bool, err error) {
	t := r.target("upload blob", name, digest)
	if !validRepository(name) || from != "" && !validRepository(from) || !digests.Valid(digest) {
		return false, t.wrong("a repository and a sha256 digest are needed")
	}
	u := &uploader{r: r, t: t, name: name, known: digest, size: int64(len(data))}
	if from == "" || from == name {
		return r.putMissing(ctx, u, data)
	}
	if there, err := r.BlobExists(ctx, name, digest); there || err != nil {
		return there, err
	}
	mounted, where, err := r.mount(ctx, name, digest, from)
	if err != nil {
		return false, fmt.Errorf("from %s: %w", from, err)
	}
	if mounted {
		return true, nil
	}
	u.where = where
	return false, u.putBytes(ctx, data)
}

// putMissing is PutMissing for a blob that only its own repository may
// have.
func (r *Registry) putMissing(ctx context.Context, u *uploader, data []byte) (there bool, err error) {
	var mounted, sent bool
	u.way = byWhole
	if r.self.expectMiss() && r.ways.takes(byWhole, u.size) {
		mounted, err = u.tryMount(ctx, u.name)
		if u.where != nil {
			sent = true
			err = u.finish(ctx, u.known, data)
		}
		if sent && err == nil {
			return false, nil
		}
		if ctx.Err() != nil { // also where an answer came that is none
			return false, u.t.broken(ctx.Err())
		}
		if !mounted {
			r.self.set(selfFalse)
		}
		u.where = nil
	}
	// A mount is not believed without this: it keeps some registries from
	// collecting the blob as garbage.
	there, err = r.BlobExists(ctx, u.name, u.known)
	switch {
	case err != nil && (!sent || ctx.Err() != nil):
		return false, err // else an upload is tried as often as without all this
	case there:
		r.self.found()
		return !sent, nil
	case mounted:
		r.self.set(selfFalse)
	}
	if err := u.putBytes(ctx, data); err != nil {
		return false, err
	}
	if r.self.missed() {
		r.askSelfMount(ctx, u.name, u.known)
	}
	return false, nil
}

// askSelfMount finds out about mounts by a blob that is there.
func (r *Registry) askSelfMount(ctx context.Context, name, digest string) {
	u := uploader{r: r, t: r.target("mount blob", name, digest), name: name, known: digest}
	mounted, err := u.tryMount(ctx, name)
	switch {
	case ctx.Err() != nil:
		r.self.set(selfUnknown)
		u.abandon()
	case mounted && err == nil:
		r.self.set(selfTrue)
	default:
		r.self.set(selfFalse)
		u.abandon()
	}
}

// putBytes uploads a blob that is in memory: two requests where the registry
// takes it whole, or one where a mount that did not happen has opened a
// session. A session of that kind
// is not trusted to be as good as another, and never again once it was not.
func (u *uploader) putBytes(ctx context.Context, data []byte) error {
	opened := u.where != nil
	if opened && (u.r.badSessions.Load() || !u.r.ways.takes(byWhole, u.size)) {
		u.abandon()
		opened = false
	}
	if opened {
		u.way = byWhole
		err := u.finish(ctx, u.known, data)
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	err := u.send(ctx, memoryFeed(data), waysOfMemory)
	if u.refused {
		return u.r.putPlain(ctx, u.t, u.name, u.known, data)
	}
	if opened && err == nil {
		u.r.badSessions.Store(true)
	}
	return err
}

// tryMount asks the registry, once, to take a blob over from another of
// its repositories, or from the blob's own. One that does not may have
// opened a session, which is u.where then.
func (u *uploader) tryMount(ctx context.Context, from string) (mounted bool, err error) {
	u.sent, u.where = 0, nil
	q := u.request(http.MethodPost, u.r.at(u.name+"/blobs/uploads/"))
	q.url.RawQuery = url.Values{"mount": {u.known}, "from": {from}}.Encode()
	if from == u.name {
		q.wait = 0 // there is another way
	} else {
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
		if err := u.moved(resp); err != nil || u.where.Query().Has("mount") {
			u.where = nil // zot of 2022 puts the whole query before the session's name
		}
		return false, nil
	case resp.StatusCode == http.StatusCreated:
		err := u.t.stored(resp, u.known)
		return err == nil, err
	}
	err = u.t.status(resp)
	if errors.As(err, &e) && e.Temporary() {
		return false, err
	}
	return false, nil
}

// mount is tryMount as often as it takes.
func (r *Registry) mount(ctx context.Context, name, digest, from string) (mounted bool, where *url.URL, err error) {
	u := uploader{r: r, t: r.target("mount blob", name, digest), name: name, known: digest}
	mounted, err = retry(ctx, r, u.t, func() (bool, error) { return u.tryMount(ctx, from) })
	return mounted, u.where, err
}

// MountBlob asks the registry to take a blob over from another of its
// repositories. False means that it did not, and that the blob has to be
// uploaded.
func (r *Registry) MountBlob(ctx context.Context, name, digest, from string) (bool, error) {
	t := r.target("mount blob", name, digest)
	if !validRepository(name) || !validRepository(from) || !digests.Valid(digest) {
		return false, t.wrong("two repositories and a sha256 digest are needed")
	}
	mounted, where, err := r.mount(ctx, name, digest, from)
	if where != nil {
		(&uploader{r: r, t: t, name: name, where: where}).abandon()
	}
	return mounted, err
}
