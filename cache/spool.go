package cache

import (
	"context"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

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

// Spool makes an empty Spool, for as long as ctx lives.
func (c *Cache) Spool(ctx context.Context) (*Spool, error) {
	f, name, err := c.dir.MakeSpool()
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", c.dir.Name(), err)
	}
	return &Spool{cache: c, ctx: ctx, f: f, name: name}, nil
}

// ReadAt is os.File.ReadAt.
func (s *Spool) ReadAt(p []byte, off int64) (int, error) {
	return s.within(func() (int, error) { return s.f.ReadAt(p, off) })
}

// WriteAt is os.File.WriteAt. It makes room before the file grows; if there is
// none, the error is unix.ENOSPC.
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
	s.mu.Lock() // while the disk is measured: there is one writer
	defer s.mu.Unlock()
	if to <= s.has {
		return nil
	}
	for {
		again, err := s.cache.quota.Take(s.cache.ctx, to-s.has)
		if again != nil {
			select {
			case <-again:
			case <-s.ctx.Done():
				return context.Cause(s.ctx)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("the copy has %d bytes, and the cache in %s has no room for more beside what is in use (see --cache-size): %w",
				s.has, s.cache.dir.Name(), unix.ENOSPC)
		}
		s.has = to
		return nil
	}
}

// Close removes the file.
func (s *Spool) Close() error {
	err := s.cache.dir.Unlink(s.name)
	if closeErr := s.f.Close(); err == nil {
		err = closeErr
	}
	return err
}
