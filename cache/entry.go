package cache

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/overlay"
	"github.com/cocoonstack/epochfs/cache/internal/readahead"
	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// entry is one cached file, open in this process. Each of its concerns is a
// field, whose type has the methods for it.
type entry struct {
	cache *Cache
	link  *transport.Link // nil: nothing is fetched
	file  *layout.File
	grid  *disk.Grid
	disk  *disk.File
	state *disk.State   // of disk
	held  *overlay.File // what of the file is in memory and not on disk
	users int           // under Cache.mu

	ctx  context.Context // ends when the entry is closed, or the cache
	stop context.CancelFunc

	refused  error             // why the file takes no data; nil if it does
	asked    atomic.Bool       // waits in Cache.checks
	reading  readahead.Tracker // recognises readers, for readahead
	refuting sync.Mutex        // held while it is decided whether a part is wrong

	flights  flights  // pieces on their way
	proofs   proofs   // parts that are being compared for waiting readers
	verdicts verdicts // parts that were wrong
	peers    peers    // other files that this one copies from
	packs    packs    // of a packed file
	backlog  backlog  // what a slow disk did not take
	passing  passing  // pieces of which readers will have pages of their own
	onSealed calls    // when the file has been sealed
}

// open opens the entry's files on disk.
func (e *entry) open(key string, mode disk.Mode) (err error) {
	if e.disk, err = e.cache.dir.Open(key, e.file, e.grid, mode, e); err == nil {
		e.state = e.disk.State
	}
	return err
}

// Drop is disk.Beside.Drop.
func (e *entry) Drop(i int) bool { return e.held.Drop(i) }

// Source is disk.Beside.Source.
func (e *entry) Source() string {
	if e.link == nil {
		return ""
	}
	return e.link.Origin()
}

// unkept reports whether the file takes no data.
func (e *entry) unkept() bool { return !e.disk.Keeps() }

// recheck ends the suspicion against those of pieces [from, to) that were
// written before the last boot.
func (e *entry) recheck(from, to int) {
	for i := from; i < to; i++ {
		if e.state.Suspect(i) {
			if _, err := e.disk.Recheck(i); err != nil {
				e.cache.report.notGivenBack(e.disk.Key, e.file.Name, err)
			}
		}
	}
}

// calls are functions to be called when something has happened.
type calls struct {
	mu  sync.Mutex
	all []func()
}

func (c *calls) add(call func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, call)
}

// run calls them, and holds no lock over that.
func (c *calls) run() {
	c.mu.Lock()
	all := c.all // only added to
	c.mu.Unlock()
	for _, call := range all {
		call()
	}
}
