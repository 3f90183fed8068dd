package cache

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
)

const (
	// takenLeast is the size of reads, in bytes, from which on pages of what
	// was read are dropped. A reader in no order has smaller ones: there is
	// little to gain, and much to do.
	takenLeast = 64 << 10
	// mostPassing bounds the pieces of a file that wait to be read. Pages of
	// more stay as long as the kernel likes.
	mostPassing = 64 << 10
	// defaultPassed is how long pages of what was taken stay at least. A file
	// that is complete by then keeps them, if its next open can use them.
	// Writing out and dropping a gigabyte takes 0.4 s of processor time, so a
	// short read is spared that.
	defaultPassed = 10 * time.Second
)

// passing are the pieces of a file that were fetched for readers and are in the
// page cache of the cached file. A reader of a mount gets pages of the mount, and
// then nobody needs those of the cached file.
type passing struct {
	entry *entry

	mu       sync.Mutex
	left     map[int]int64  // bytes of each piece that were not taken
	fresh    []disk.Stretch // taken of late, in that order, neighbours joined
	aged     []disk.Stretch // taken before that
	dropping bool           // drop is called at intervals
}

// add notes a piece of n bytes that was put on disk for a reader.
func (p *passing) add(i int, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left == nil {
		p.left = map[int]int64{}
	}
	if len(p.left) < mostPassing {
		p.left[i] = n
	}
}

// taken notes that payload [from, to) was taken.
func (p *passing) taken(from, to int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g := p.entry.grid
	for at := from; at < to && len(p.left) > 0; {
		i := g.At(at)
		start, size := g.Extent(i)
		end := min(start+size, to)
		left, ok := p.left[i]
		if left -= end - at; ok && left > 0 {
			p.left[i] = left
		} else if ok {
			delete(p.left, i)
			p.goneLocked(i)
		}
		at = end
	}
}

// goneLocked notes that all of piece i was taken.
func (p *passing) goneLocked(i int) {
	p.fresh = disk.Join(p.fresh, p.entry.grid.Stretch(i, i+1))
	if !p.dropping {
		p.dropping = p.entry.flights.every(p.entry.cache.opts.passed, p.drop)
	}
}

// drop drops the pages of what was taken long enough ago. It returns false when
// nothing is left.
func (p *passing) drop() (again bool) {
	e := p.entry
	old, more := p.age()
	for _, s := range old {
		if err := e.disk.Pages.Drop(s, e.ctx.Err); err != nil {
			if !errors.Is(err, context.Canceled) { // not closing
				e.unsafe(err)
			}
			return false // p.dropping stays: nothing more is to be done to this file
		}
	}
	return more
}

// age returns what was taken long enough ago. more is false if that is the end of
// the dropping.
func (p *passing) age() (old []disk.Stretch, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, p.aged, p.fresh = p.aged, p.fresh, nil
	p.dropping = len(old)+len(p.aged) > 0
	return old, p.dropping
}

// none notes that no mount has pages of the file.
func (p *passing) none() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left, p.fresh, p.aged = nil, nil, nil
}
