package cache

import (
	"slices"
	"time"
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

// Waiting tells what readers of the file wait for just now, in the file's
// order. Neighbouring pieces of one blob are one Wait.
func (f *File) Waiting() []Wait {
	e := f.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	var pieces []int
	for i, fl := range e.flights {
		if fl.waiters > 0 {
			pieces = append(pieces, i)
		}
	}
	slices.Sort(pieces)
	var all []Wait
	for n, i := range pieces {
		fl := e.flights[i]
		off, length := e.grid.extent(i)
		part := e.grid.part(i)
		if n > 0 && pieces[n-1] == i-1 && e.grid.part(i-1) == part {
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
	if err := e.link.trouble(); err != nil {
		for i := range all {
			if all[i].Err == nil {
				all[i].Err = err // of the source, if not of these bytes
			}
		}
	}
	return all
}

// Retries is how often a request of this process did not bring what it was
// made for, and was made again.
func (c *Cache) Retries() int64 { return c.retries.Load() }
