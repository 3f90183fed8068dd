package cache

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// newEntry returns an entry without files on disk.
func newEntry(c *Cache, f *layout.File, g *disk.Grid, l *transport.Link) *entry {
	e := &entry{cache: c, link: l, file: f, grid: g, held: c.memory.Of()}
	e.ctx, e.stop = context.WithCancel(c.ctx)
	e.flights.init(e)
	e.proofs.init(e)
	e.peers.init(e)
	e.passing.entry, e.backlog.entry = e, e
	return e
}

// openEntry opens or makes the files of an entry. Damaged files are removed and
// made again, once.
func (c *Cache) openEntry(key string, f *layout.File, g *disk.Grid, l *transport.Link) (*entry, error) {
	e := newEntry(c, f, g, l)
	err := e.openSafe(key, disk.Keep)
	if errors.Is(err, disk.ErrDamaged) || errors.Is(err, disk.ErrUnsafe) {
		c.log.Warn("cached file is made anew", "file", f.Name, "cause", err)
		gone := c.dir.Remove(key)
		if gone == nil || errors.Is(gone, disk.ErrInUse) && errors.Is(err, disk.ErrUnsafe) {
			err = e.open(key, disk.Keep)
		} else {
			err = gone
		}
	}
	if err != nil && mayDoWithout(err) {
		e.refused = err
		if !disk.IsReadOnly(err) { // else it is logged when something is fetched
			c.report.notKept(f.Name, err)
		}
		if !disk.IsReadOnly(err) || e.open(key, disk.Read) != nil {
			err = e.open(key, disk.InMemory)
		} else {
			err = nil
		}
	}
	if err != nil {
		e.stop()
		return nil, err
	}
	if e.disk.OnDisk() {
		r := disk.RecordOf(f, g)
		c.index.add(key, &r, time.Now())
	}
	e.checkComplete()
	return e, nil
}

// openSafe is open for a file that is believed. The error of one that the disk
// has failed to take is disk.ErrUnsafe.
func (e *entry) openSafe(key string, mode disk.Mode) error {
	err := e.open(key, mode)
	if err == nil && e.state.Unsafe() {
		e.disk.Close()
		err = disk.ErrUnsafe
	}
	return err
}

// mayDoWithout reports whether a file is served although it cannot be kept,
// because of err. A directory that is missing could not be made.
func mayDoWithout(err error) bool {
	return disk.Refuses(err) || errors.Is(err, disk.ErrInUse) || errors.Is(err, disk.ErrHeld) || errors.Is(err, disk.ErrDamaged) || errors.Is(err, fs.ErrNotExist)
}

// shut ends the entry's fetches. From now on only present pieces can be read.
func (e *entry) shut() {
	e.flights.shut()
	e.disk.Quiet()
	e.stop()
}

// close waits for the entry's users and closes its files.
func (e *entry) close() {
	e.shut()
	e.flights.users.Wait()
	e.backlog.giveUp()
	e.held.Close()
	if e.disk.OnDisk() && (e.disk.Keeps() || e.link == nil) {
		e.disk.Touch() // reading counts as use, for the order of eviction
	}
	e.peers.giveAllBack()
	e.disk.Close()
}

// shown returns the open file that readers use, for the directory.
func (c *Cache) shown(key string) (f *disk.File, done func()) {
	c.mu.Lock()
	e := c.entries[key]
	c.mu.Unlock()
	if e == nil || !e.flights.use() {
		return nil, nil
	}
	return e.disk, e.flights.unuse
}
