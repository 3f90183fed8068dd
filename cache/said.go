package cache

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNotKept says that the cache could not keep something. The cache goes
// on without, and has said so in its log.
var ErrNotKept = errors.New("not kept in the cache")

// said is what has been logged and need not be again: a disk that refuses
// one piece refuses thousands.
type said struct {
	mu   sync.Mutex
	what map[string]bool
}

// first says that this was not said yet.
func (s *said) first(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.what[what] {
		return false
	}
	if s.what == nil {
		s.what = map[string]bool{}
	}
	s.what[what] = true
	return true
}

// notKept logs that what was fetched is not kept: once for each way in
// which a disk refuses, and once for a file that is held by others.
func (c *Cache) notKept(file string, cause error) {
	var errno unix.Errno
	switch {
	case errors.Is(cause, errFull):
		if c.said.first("full") {
			c.log.Warn("cache is full of files in use: what is fetched is not kept", "dir", c.root.Name())
		}
	case readOnly(cause):
		if c.said.first("read-only") {
			c.log.Warn("cache can only be read: what is fetched is not kept", "dir", c.root.Name(), "cause", cause)
		}
	case errors.As(cause, &errno):
		if c.said.first(errno.Error()) {
			c.log.Warn("cache cannot keep what was fetched", "dir", c.root.Name(), "file", file, "cause", cause)
		}
	default:
		if c.said.first("file " + file) {
			c.log.Warn("cache cannot keep a file", "file", file, "cause", cause)
		}
	}
}

// refused makes the error of something small that the disk does not take.
func (c *Cache) refused(name string, err error) error {
	if !diskRefuses(err) {
		return err
	}
	c.notKept(name, err)
	return fmt.Errorf("%s: %w: %w", name, ErrNotKept, err)
}
