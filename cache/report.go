package cache

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/quota"
)

// ErrNotKept is the error of something that the cache could not keep. The
// cache goes on without, and has logged why.
var ErrNotKept = errors.New("not kept in the cache")

// report logs what the disk does not take or give back, each of it once: a
// disk that refuses one piece refuses thousands.
type report struct {
	log *slog.Logger
	dir string

	mu   sync.Mutex
	said map[string]bool
}

// first reports whether this was not said yet.
func (r *report) first(what string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.said[what] {
		return false
	}
	if r.said == nil {
		r.said = map[string]bool{}
	}
	r.said[what] = true
	return true
}

// notKept logs that what was fetched is not kept: once for each way in
// which a disk refuses, and once for a file that is held by others.
func (r *report) notKept(file string, cause error) {
	var errno unix.Errno
	switch {
	case errors.Is(cause, quota.ErrFull):
		if r.first("full") {
			r.log.Warn("cache is full of files in use: what is fetched is not kept", "dir", r.dir)
		}
	case errors.Is(cause, errSlowDisk):
		if r.first("slow disk") {
			r.log.Warn("the cache's disk is slower than the link: some of what is fetched is not kept", "dir", r.dir)
		}
	case disk.IsReadOnly(cause):
		if r.first("read-only") {
			r.log.Warn("cache can only be read: what is fetched is not kept", "dir", r.dir, "cause", cause)
		}
	case errors.As(cause, &errno):
		if r.first(errno.Error()) {
			r.log.Warn("cache cannot keep what was fetched", "dir", r.dir, "file", file, "cause", cause)
		}
	default:
		if r.first("file " + file) {
			r.log.Warn("cache cannot keep a file", "file", file, "cause", cause)
		}
	}
}

// notGivenBack logs once for each file that the disk does not give back a
// piece.
func (r *report) notGivenBack(key, file string, cause error) {
	if r.first("not given back " + key) {
		r.log.Warn("the disk does not give back what was kept; it is fetched again", "file", file, "cause", cause)
	}
}

// small returns the error of something small that was to be written: if the
// disk does not take it, that is logged, and the error is ErrNotKept.
func (r *report) small(name string, err error) error {
	if !disk.Refuses(err) {
		return err
	}
	r.notKept(name, err)
	return fmt.Errorf("%s: %w: %w", name, ErrNotKept, err)
}
