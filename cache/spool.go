package cache

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// spoolMark begins the names of spools. They count in what the cache takes
// like its other files, for all processes; the lock of whoever writes one
// keeps it from being removed.
const spoolMark = "spool" + tmpMark

// Spool is a file in the cache's directory for what must be read again and
// has no other place. It goes when it is closed, or when its process dies.
//
// What a Spool does ends with its context, even if the disk does not answer.
type Spool struct {
	cache *Cache
	ctx   context.Context
	f     *os.File
	name  string

	mu  sync.Mutex
	has int64 // bytes that room was made for
}

// Spool makes an empty one, for as long as ctx lives.
func (c *Cache) Spool(ctx context.Context) (*Spool, error) {
	for {
		s := &Spool{cache: c, ctx: ctx, name: path.Join(dirFiles, spoolMark+rand.Text())}
		var err error
		if s.f, err = c.root.OpenFile(s.name, os.O_RDWR|os.O_CREATE|os.O_EXCL|openFlags, 0o600); err != nil {
			return nil, fmt.Errorf("cache %s: %w", c.root.Name(), err)
		}
		ok, err := tryLock(s.f, unix.F_WRLCK, lockInUse, 1)
		var gone bool
		if err == nil && ok {
			gone, err = unlinked(s.f)
		}
		if err == nil && ok && !gone {
			return s, nil
		}
		_ = s.Close()
		if err != nil {
			return nil, fmt.Errorf("cache %s: %w", c.root.Name(), err)
		} // else it was swept before it was locked
	}
}

// ReadAt is that of the file.
func (s *Spool) ReadAt(p []byte, off int64) (int, error) {
	return s.within(func() (int, error) { return s.f.ReadAt(p, off) })
}

// WriteAt has room made before the file grows. Where there is none, the
// error says unix.ENOSPC.
func (s *Spool) WriteAt(p []byte, off int64) (int, error) {
	return s.within(func() (int, error) {
		if err := s.grow(off + int64(len(p))); err != nil {
			return 0, err
		}
		s.cache.opts.before("spool")
		return s.f.WriteAt(p, off)
	})
}

// within returns what do returns, or earlier, when the context ends: then
// whatever do is given is not to be used again.
func (s *Spool) within(do func() (int, error)) (int, error) {
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := do()
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return r.n, r.err
	case <-s.ctx.Done():
		return 0, context.Cause(s.ctx)
	}
}

func (s *Spool) grow(to int64) error {
	s.mu.Lock() // over the look at the disk: there is one writer
	defer s.mu.Unlock()
	if to <= s.has {
		return nil
	}
	for {
		looked, err := s.cache.take(to - s.has)
		if looked != nil {
			select {
			case <-looked:
			case <-s.ctx.Done():
				return context.Cause(s.ctx)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("the copy has %d bytes, and the cache in %s has no room for more beside what is in use (see --cache-size): %w",
				s.has, s.cache.root.Name(), unix.ENOSPC)
		}
		s.has = to
		return nil
	}
}

// Close removes the file.
func (s *Spool) Close() error {
	err := s.cache.unlink(s.name)
	if closeErr := s.f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// sweepSpools removes those of dead processes.
func (c *Cache) sweepSpools() { c.eachSpool(c.sweepSpool) }

// spooled is what spools take on disk.
func (c *Cache) spooled() (n int64) {
	c.eachSpool(func(name string) {
		if info, err := c.root.Lstat(name); err == nil {
			n += blocks(info)
		}
	})
	return n
}

func (c *Cache) eachSpool(do func(name string)) {
	dir, err := c.root.Open(dirFiles)
	if err != nil {
		return
	}
	names, _ := dir.Readdirnames(-1) // as many as can be read
	_ = dir.Close()
	for _, name := range names {
		if strings.HasPrefix(name, spoolMark) {
			do(path.Join(dirFiles, name))
		}
	}
}

func (c *Cache) sweepSpool(name string) {
	f, err := c.root.OpenFile(name, os.O_RDWR|openFlags, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if ok, err := tryLock(f, unix.F_WRLCK, lockInUse, 1); ok && err == nil {
		_ = c.unlink(name) // the next one tries again
	}
}
