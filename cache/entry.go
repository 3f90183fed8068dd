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

// entry is one cached file, open in this process. What it has of a kind stands
// in one field each, which has the methods for that.
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
	reading  readahead.Tracker // who reads how
	refuting sync.Mutex        // held while it is decided whether a part is wrong

	flights  flights  // pieces on their way
	proofs   proofs   // parts that are being compared for readers who wait
	verdicts verdicts // parts that were wrong
	peers    peers    // other files that this one copies from
	packs    packs    // of a packed file
}

// newEntry returns an entry without files on disk.
func newEntry(c *Cache, f *layout.File, g *disk.Grid, l *transport.Link) *entry {
	e := &entry{cache: c, file: f, grid: g, link: l}
	e.ctx, e.stop = context.WithCancel(c.ctx)
	if c.memory != nil {
		e.held = c.memory.Of()
	}
	e.flights.init(e)
	e.proofs.init(e)
	e.peers.init(e)
	return e
}

// open opens the entry's files on disk.
func (e *entry) open(key string, mode disk.Mode) (err error) {
	if e.disk, err = e.cache.dir.Open(key, e.file, e.grid, mode, e); err == nil {
		e.state = e.disk.State
	}
	return err
}

// Drop is disk.Beside.Drop.
func (e *entry) Drop(i int) bool { return e.held != nil && e.held.Drop(i) }

// Source is disk.Beside.Source.
func (e *entry) Source() string {
	if e.link == nil {
		return ""
	}
	return e.link.Origin()
}

// Unsealed is disk.Beside.Unsealed: the file may have to be sealed anew.
func (e *entry) Unsealed() {
	if e.link != nil && e.disk.Complete() {
		e.cache.askCheck(e)
	}
}

// unkept reports whether the file takes no data.
func (e *entry) unkept() bool { return !e.disk.Keeps() }

// pieces returns the pieces of payload [from, to), which is not empty.
func (e *entry) pieces(from, to int64) (first, end int) {
	return e.grid.At(from), e.grid.At(to-1) + 1
}

// partPieces returns the pieces of a part.
func (e *entry) partPieces(part int) (first, end int) {
	return e.grid.First[part], e.grid.First[part+1]
}

// hashedOnRead reports whether a part's stored bytes are its payload, with no
// digest for its pieces.
func (e *entry) hashedOnRead(part int) bool {
	return e.file.Parts[part].Encoding == layout.Raw && !e.grid.Checked(part)
}

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
