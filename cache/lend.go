package cache

import (
	"errors"
	"slices"
	"sync"
	"time"
)

// donors are the files that one file copies from. Each is opened once for all
// jobs, and closed when nobody has copied from it for a while, when the file
// is complete, or when the cache needs its room: an open file is not evicted.
type donors struct {
	mu   sync.Mutex // never held over I/O
	open map[string]*lentFile
}

// lentFile is a donor that one job opens for all of a file's jobs.
type lentFile struct {
	ready chan struct{} // closed when donor is what it will be
	began time.Time
	donor *donor      // nil: it cannot be had
	users int         // under donors.mu, as idle
	idle  *time.Timer // closes the donor; nil before the first use has ended
}

// borrow returns an open donor, and back, which must be called when the
// caller has copied. It returns nil if the donor cannot be had, or another job
// takes long to open it.
func (e *entry) borrow(key string, most time.Duration) (d *entry, back func()) {
	if key == e.key {
		return e, func() {}
	}
	e.donors.mu.Lock()
	l := e.donors.open[key]
	opens := l == nil
	if opens {
		l = &lentFile{ready: make(chan struct{}), began: time.Now()}
		if e.donors.open == nil {
			e.donors.open = map[string]*lentFile{}
		}
		e.donors.open[key] = l
	}
	l.users++
	e.donors.mu.Unlock()
	back = func() { e.giveBack(key, l) }
	if opens {
		e.openLent(key, l)
	}
	if !await(e.ctx, l.ready, most-time.Since(l.began)) || l.donor == nil {
		back()
		return nil, nil
	}
	return &l.donor.entry, back
}

// openLent opens a donor. One that somebody has locked just now may be had
// the next time.
func (e *entry) openLent(key string, l *lentFile) {
	defer close(l.ready)
	var err error
	if l.donor, err = e.cache.openDonor(key); errors.Is(err, errHeld) {
		e.donors.mu.Lock()
		delete(e.donors.open, key)
		e.donors.mu.Unlock()
	}
}

// giveBack ends one use of a donor. The last user's donor is closed when it
// was idle for a while, or at once if there is nothing left to copy.
func (e *entry) giveBack(key string, l *lentFile) {
	complete := e.state.hasAll(0, e.grid.pieces())
	e.donors.mu.Lock()
	l.users--
	switch {
	case l.users > 0 || e.donors.open[key] != l:
	case l.idle == nil:
		l.idle = time.AfterFunc(e.cache.opts.donorIdle, func() { e.closeLent(key, l) })
	default:
		l.idle.Reset(e.cache.opts.donorIdle)
	}
	e.donors.mu.Unlock()
	if complete {
		e.closeLent(key, l)
	}
}

// closeLent closes a donor that nobody uses.
func (e *entry) closeLent(key string, l *lentFile) (closed bool) {
	e.donors.mu.Lock()
	if closed = l.users == 0 && e.donors.open[key] == l; closed {
		delete(e.donors.open, key)
	}
	e.donors.mu.Unlock()
	if !closed {
		return false
	}
	l.idle.Stop()
	if l.donor != nil {
		l.donor.closeFiles()
	}
	return true
}

// returnDonors closes the donors that nobody uses, and returns their keys.
func (e *entry) returnDonors() (keys []string) {
	e.donors.mu.Lock()
	open := make(map[string]*lentFile, len(e.donors.open))
	for key, l := range e.donors.open {
		open[key] = l
	}
	e.donors.mu.Unlock()
	for key, l := range open {
		if e.closeLent(key, l) {
			keys = append(keys, key)
		}
	}
	return keys
}

// returnedFrom returns those of files that were donors, and now are open no
// more. Files were tried before: those that went are not among them.
func (c *Cache) returnedFrom(files []stored) (returned []stored) {
	c.mu.Lock()
	var open []*entry
	for _, e := range c.entries {
		open = append(open, e)
	}
	c.mu.Unlock()
	var keys []string
	for _, e := range open {
		keys = append(keys, e.returnDonors()...)
	}
	for _, f := range files {
		if slices.Contains(keys, f.key) {
			returned = append(returned, f)
		}
	}
	return returned
}
