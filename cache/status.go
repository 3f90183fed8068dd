package cache

import (
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/internal/transport"
)

// Wait is a stretch of a file that readers wait for.
type Wait struct {
	Offset  int64     // in the file, of its first byte
	Length  int64     // bytes of data
	Digest  string    // of the blob that holds it
	Since   time.Time // when the first of them came
	Readers int       // the most that wait for one piece of it
	Err     error     // why it did not come when it was last tried; nil at the first try
}

// Waiting returns what readers of the file wait for just now, in the file's
// order. Neighbouring pieces of one blob are one Wait.
func (f *File) Waiting() []Wait {
	e := f.entry
	var all []Wait
	waits := e.flights.waiting()
	for n, fl := range waits {
		i := fl.piece
		off, length := e.grid.Extent(i)
		part := e.grid.Part(i)
		if n > 0 && waits[n-1].piece == i-1 && e.grid.Part(i-1) == part {
			w := &all[len(all)-1]
			w.Length += length
			w.Readers = max(w.Readers, fl.waiters)
			if fl.since.Before(w.Since) {
				w.Since = fl.since
			}
			if w.Err == nil {
				w.Err = fl.cause
			}
			continue
		}
		w := Wait{Length: length, Digest: e.file.Parts[part].Digest, Since: fl.since, Readers: fl.waiters, Err: fl.cause}
		for run := range e.file.Map.Payload(off, 1) {
			w.Offset = run.Offset
		}
		all = append(all, w)
	}
	if err := e.link.Trouble(); err != nil {
		for i := range all {
			if all[i].Err == nil {
				all[i].Err = err // of the source, if not of these bytes
			}
		}
	}
	return all
}

// Cell is what a stretch of a file holds: several of these at once, or none of
// them if it is a hole.
type Cell uint8

// The values of Cell.
const (
	CellMissing  Cell = 1 << iota // data that is not here
	CellPresent                   // data that is here, and that no digest has vouched for yet
	CellVerified                  // data that is here and verified
)

// Cells cuts the file into stretches of size bytes, of which the last may
// be shorter, and returns what each holds.
func (f *File) Cells(size int64) []Cell {
	e := f.entry
	cells := make([]Cell, (e.file.Size()+size-1)/size)
	piece, end, kind := -1, int64(0), Cell(0) // end of the piece in the payload
	at := int64(0)                            // in the payload
	for run := range e.file.Map.Payload(0, e.file.PayloadSize()) {
		for off, left := run.Offset, run.Length; left > 0; {
			for at >= end {
				piece++
				first, n := e.grid.Extent(piece)
				end, kind = first+n, f.cell(piece)
			}
			n := min(left, end-at)
			for c := off / size; c <= (off+n-1)/size; c++ {
				cells[c] |= kind
			}
			at, off, left = at+n, off+n, left-n
		}
	}
	return cells
}

func (f *File) cell(piece int) Cell {
	e := f.entry
	switch {
	case !e.state.Has(piece):
		return CellMissing
	case e.state.Verified(piece):
		return CellVerified
	}
	return CellPresent
}

// Fetching reports whether bytes of the file are on their way.
func (f *File) Fetching() bool { return f.entry.flights.running() }

// Link returns what was learned about src.
func (c *Cache) Link(src Source) Link {
	c.mu.Lock()
	l := c.links[src]
	c.mu.Unlock()
	if l == nil {
		return Link{Latency: transport.NewLatency()}
	}
	return l.Stats()
}

// Counts returns the counts.
func (c *Cache) Counts() Counts {
	n := &c.counts
	all := Counts{
		Reads: n.reads.Load(), Bytes: n.bytes.Load(), Misses: n.misses.Load(), Failed: n.failed.Load(), Waiting: n.waiting.Load(), Copied: n.copied.Load(), NotKept: n.notKept.Load(),
		Retries: map[string]int64{}, Wrong: map[string]int64{},
	}
	n.mu.Lock()
	for why, times := range n.retries {
		all.Retries[why] = times
	}
	for _, by := range disk.Finders {
		all.Wrong[by] = n.wrong[by]
	}
	n.mu.Unlock()
	for _, l := range c.allLinks() {
		if slow := l.Stats().Slow; slow > 0 {
			all.Retries["slow"] += slow
		}
	}
	return all
}

// Dir returns the name of the cache's directory.
func (c *Cache) Dir() string { return c.dir.Name() }

// Space is what the cache takes on disk, in bytes.
type Space struct {
	Used  int64
	Limit int64 // as given, or as the free space of the file system allows now
	Full  bool  // nothing more could be kept when it was last tried
}

// Space returns what the cache takes. It measures each of its files, but spends
// little of its time on that: what takes long is not done often.
func (c *Cache) Space() Space {
	used := c.measured.get(func() int64 {
		_, used := c.dir.Usage()
		return used
	})
	return Space{Used: used, Limit: c.quota.Limit(used), Full: c.quota.Full()}
}

// measured is a number, and for how long it is good enough.
type measured struct {
	mu    sync.Mutex
	n     int64
	until time.Time
}

// measureShare is how many times longer a measurement is used than it took.
const measureShare = 50

func (m *measured) get(measure func() int64) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if began := time.Now(); began.After(m.until) {
		m.n = measure()
		m.until = time.Now().Add(measureShare * time.Since(began))
	}
	return m.n
}
