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

// missesInARow is the number of consecutive blobs that the repository must
// lack before the next is expected to be missing too.
const missesInARow = 4

// selfMounts records whether a registry answers a mount of a blob from the
// repository itself truthfully. If it does, a blob that exists is found, and
// for one that does not an upload session is opened, without a HEAD. Some
// registries do not mount and always open a session. A registry that
// answered wrongly or failed is not asked that way again.
type selfMounts struct {
	mu     sync.Mutex
	misses int // in a row
	state  selfState
}

type selfState int

const (
	selfUnknown selfState = iota
	selfAsking            // an upload finds out
	selfTrue
	selfFalse
)

// expectMiss reports whether a mount is now better than a HEAD.
func (s *selfMounts) expectMiss() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == selfTrue && s.misses >= missesInARow
}

// found records a blob that existed.
func (s *selfMounts) found() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.misses = 0
}

// missed records a blob that did not exist and was uploaded. It reports
// whether the caller should find out about mounts with this blob.
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

// PutMissing uploads a blob from memory, unless the repository has it or the
// registry can mount it from its repository from, if from is not empty.
// there reports that nothing was sent. The blob is sent in one request
// whatever its size, and again if that breaks off. The caller guarantees
// that data has the digest. Nothing reads data after PutMissing has
// returned.
func (r *Registry) PutMissing(ctx context.Context, name, from, digest string, data []byte) (there bool, err error) {
	t := r.target("upload blob", name, digest)
	if !validRepository(name) || from != "" && !validRepository(from) || !digests.Valid(digest) {
		return false, t.wrong("invalid repository or sha256 digest")
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

// putMissing is PutMissing without another repository to mount from.
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
		if ctx.Err() != nil { // also if an invalid answer came
			return false, u.t.broken(ctx.Err())
		}
		if !mounted {
			r.self.set(selfFalse)
		}
		u.where = nil
	}
	// A mount is confirmed by a HEAD, which also keeps some registries from
	// collecting the blob as garbage.
	there, err = r.BlobExists(ctx, u.name, u.known)
	switch {
	case err != nil && (!sent || ctx.Err() != nil):
		return false, err // else the upload would get more tries than usual
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

// askSelfMount finds out about mounts with a blob that exists.
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

// putBytes uploads a blob from memory: with two requests if the registry
// takes it whole, or with one if a declined mount has opened a session. Such
// a session may be unusable; after one was, they are never used again.
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

// tryMount asks the registry once to mount a blob from the repository from,
// which may be the blob's own. If the registry declines and opens a session
// instead, tryMount sets u.where.
func (u *uploader) tryMount(ctx context.Context, from string) (mounted bool, err error) {
	u.sent, u.where = 0, nil
	q := u.request(http.MethodPost, u.r.at(u.name+"/blobs/uploads/"))
	q.url.RawQuery = url.Values{"mount": {u.known}, "from": {from}}.Encode()
	if from == u.name {
		q.wait = 0 // the upload is an alternative
	} else {
		q.access.from = from
	}
	resp, err := u.r.do(ctx, q)
	var e *Error
	switch {
	case errors.Is(err, ErrDenied) && errors.As(err, &e) && !e.Temporary():
		return false, nil // the upload will show whether that is denied too
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

// mount is tryMount with retries.
func (r *Registry) mount(ctx context.Context, name, digest, from string) (mounted bool, where *url.URL, err error) {
	u := uploader{r: r, t: r.target("mount blob", name, digest), name: name, known: digest}
	mounted, err = retry(ctx, r, u.t, func() (bool, error) { return u.tryMount(ctx, from) })
	return mounted, u.where, err
}

// MountBlob asks the registry to mount a blob from another of its
// repositories. It returns false if the registry did not, so that the blob
// has to be uploaded.
func (r *Registry) MountBlob(ctx context.Context, name, digest, from string) (bool, error) {
	t := r.target("mount blob", name, digest)
	if !validRepository(name) || !validRepository(from) || !digests.Valid(digest) {
		return false, t.wrong("invalid repository or sha256 digest")
	}
	mounted, where, err := r.mount(ctx, name, digest, from)
	if where != nil {
		(&uploader{r: r, t: t, name: name, where: where}).abandon()
	}
	return mounted, err
}
