package cache

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/quota"
)

// peers are the other cached files that one file copies from. Each is opened
// once for all jobs, and closed when nobody has copied from it for a while,
// when the file is complete, or when the cache needs its room: an open file is
// not evicted.
type peers struct {
	entry *entry

	mu   sync.Mutex // never held over I/O
	open map[string]*borrowed
}

func (ps *peers) init(e *entry) { ps.entry, ps.open = e, map[string]*borrowed{} }

// borrowed is a peer that one job opens for all of a file's jobs.
type borrowed struct {
	ready chan struct{} // closed when file is what it will be
	began time.Time
	file  *disk.File // nil: it cannot be had
	sums  bySum
	users int         // under peers.mu, as idle
	idle  *time.Timer // closes the file; nil before the first use has ended
}

// borrow returns a peer, or the file itself, and back, which must be called
// when the caller has copied. It returns nil if the peer cannot be had, or
// another job takes longer than most to open it.
func (ps *peers) borrow(key string, most time.Duration) (b *borrowed, back func()) {
	e := ps.entry
	if key == e.disk.Key {
		return &borrowed{file: e.disk}, func() {}
	}
	ps.mu.Lock()
	b = ps.open[key]
	opens := b == nil
	if opens {
		b = &borrowed{ready: make(chan struct{}), began: time.Now()}
		ps.open[key] = b
	}
	b.users++
	ps.mu.Unlock()
	back = func() { ps.giveBack(key, b) }
	if opens {
		ps.fill(key, b)
	}
	if !quota.Await(e.ctx, b.ready, most-time.Since(b.began)) || b.file == nil {
		back()
		return nil, nil
	}
	return b, back
}

// fill opens a peer. One that somebody has locked just now may be had the next
// time.
func (ps *peers) fill(key string, b *borrowed) {
	defer close(b.ready)
	c := ps.entry.cache
	c.opts.before("donor")
	l, g, err := c.dir.Layout(key)
	if err == nil {
		b.file, err = c.dir.Open(key, l, g, disk.Lend, nil)
	}
	if errors.Is(err, disk.ErrHeld) {
		ps.mu.Lock()
		delete(ps.open, key)
		ps.mu.Unlock()
	}
}

// giveBack ends one use of a peer. The last user's peer is closed when it was
// idle for a while, or at once if there is nothing left to copy.
func (ps *peers) giveBack(key string, b *borrowed) {
	e := ps.entry
	complete := e.disk.Complete()
	ps.mu.Lock()
	b.users--
	switch {
	case b.users > 0 || ps.open[key] != b:
	case b.idle == nil:
		b.idle = time.AfterFunc(e.cache.opts.peerIdle, func() { ps.close(key, b) })
	default:
		b.idle.Reset(e.cache.opts.peerIdle)
	}
	ps.mu.Unlock()
	if complete {
		ps.close(key, b)
	}
}

// close closes a peer that nobody uses. It reports whether it has.
func (ps *peers) close(key string, b *borrowed) bool {
	ps.mu.Lock()
	closes := b.users == 0 && ps.open[key] == b
	if closes {
		delete(ps.open, key)
	}
	ps.mu.Unlock()
	if !closes {
		return false
	}
	b.idle.Stop()
	if b.file != nil {
		b.file.Close()
	}
	return true
}

// giveAllBack closes the peers that nobody uses, and returns their keys.
func (ps *peers) giveAllBack() (keys []string) {
	ps.mu.Lock()
	open := maps.Clone(ps.open)
	ps.mu.Unlock()
	for key, b := range open {
		if ps.close(key, b) {
			keys = append(keys, key)
		}
	}
	return keys
}

// givenBack returns those of files that were peers, and now are open no more.
// Files were tried before: those that went are not among them.
func (c *Cache) givenBack(files []disk.Stored) (back []disk.Stored) {
	c.mu.Lock()
	open := slices.Collect(maps.Values(c.entries))
	c.mu.Unlock()
	var keys []string
	for _, e := range open {
		keys = append(keys, e.peers.giveAllBack()...)
	}
	for _, f := range files {
		if slices.Contains(keys, f.Key) {
			back = append(back, f)
		}
	}
	return back
}
