package inside

import (
	"cmp"
	"container/list"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	// PageSize is the unit in which an image is read: most file systems'
	// block size. A larger one would span more of the units in which an
	// image is fetched.
	PageSize = 4 << 10

	cachedPages = 16384 // of an image: 64 MiB
	leastAhead  = 4     // pages read ahead after a second sequential read
	mostAhead   = 256   // the same after many
	mostAtOnce  = 1024  // pages in one read of the image: 4 MiB
	bridged     = 32    // present pages between missing ones that are read again to save a request
	prefetchers = 16    // concurrent reads for hints
)

// Stats count the reads of an image.
type Stats struct {
	Asked   int64 // reads that the child asked for
	Reads   int64 // reads of the image
	Bytes   int64 // bytes of those reads
	Hinted  int64 // of Reads, those after a hint
	Copied  int64 // bytes of files read without the child
	Skipped int64 // bytes not read because digests agree
}

// pages is a cache of an image's pages that joins reads of neighbours.
type pages struct {
	src   Reader
	size  int64
	limit int // pages to keep

	mu    sync.Mutex
	have  map[int64]*list.Element
	order *list.List // of *page, most recently used first
	next  int64      // page after the last one read from the image
	ahead int64      // pages to read beyond the next miss, if it is that page
	stats Stats
}

type page struct {
	number int64
	data   []byte
}

func newPages(src Reader) *pages {
	return &pages{src: src, size: src.Size(), limit: cachedPages, have: map[int64]*list.Element{}, order: list.New(), next: -1}
}

// ReadAt fills p, which must lie within the image.
func (g *pages) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off < 0 || off > g.size || int64(len(p)) > g.size-off {
		return fmt.Errorf("bytes %d to %d of an image of %d", off, off+int64(len(p)), g.size)
	}
	for len(p) > 0 {
		data, err := g.page(ctx, off/PageSize, (off+int64(len(p))+PageSize-1)/PageSize)
		if err != nil {
			return err
		}
		n := copy(p, data[off%PageSize:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// page returns page i. It reads the missing pages of [i, to) along with it.
func (g *pages) page(ctx context.Context, i, to int64) ([]byte, error) {
	g.mu.Lock()
	if e := g.have[i]; e != nil {
		g.order.MoveToFront(e)
		g.mu.Unlock()
		return e.Value.(*page).data, nil
	}
	if i == g.next {
		g.ahead = min(max(2*g.ahead, leastAhead), mostAhead)
	} else {
		g.ahead = 0
	}
	end := min(max(i+1, g.lastMissing(i, to))+g.ahead, i+mostAtOnce, g.count())
	g.next = end
	g.mu.Unlock()
	read := g.src.ReadAt
	if end-i > mostAhead/2 {
		read = g.src.ReadOn
	}
	if err := g.load(ctx, read, i, end, false); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.have[i].Value.(*page).data, nil
}

// lastMissing returns the end of the last missing page of [i, to) that is
// worth reading along, with few present pages in between. The caller holds
// the mutex.
func (g *pages) lastMissing(i, to int64) int64 {
	end, there := i, 0
	for ; i < to && there <= bridged; i++ {
		if g.have[i] == nil {
			end, there = i+1, 0
		} else {
			there++
		}
	}
	return end
}

// count returns the number of pages.
func (g *pages) count() int64 { return (g.size + PageSize - 1) / PageSize }

// load reads pages [i, end).
func (g *pages) load(ctx context.Context, read func(context.Context, []byte, int64) (int, error), i, end int64, hint bool) error {
	off := i * PageSize
	buf := make([]byte, min(end*PageSize, g.size)-off)
	if n, err := read(ctx, buf, off); n < len(buf) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stats.Reads++
	g.stats.Bytes += int64(len(buf))
	if hint {
		g.stats.Hinted++
	}
	for k := end - 1; k >= i; k-- { // the first one becomes the most recent
		from := k*PageSize - off
		g.keep(k, buf[from:min(from+PageSize, int64(len(buf)))])
	}
	return nil
}

// keep stores a page in place of the least recently used one. The caller
// holds the mutex.
func (g *pages) keep(number int64, data []byte) {
	if e := g.have[number]; e != nil {
		g.order.MoveToFront(e)
		return
	}
	if g.order.Len() >= g.limit {
		last := g.order.Back()
		delete(g.have, g.order.Remove(last).(*page).number)
	}
	// A subslice would keep all of a large read in memory.
	g.have[number] = g.order.PushFront(&page{number, slices.Clone(data)})
}

// span is a range of pages.
type span struct{ from, to int64 }

// Prefetch reads ranges that will be requested, several at a time. It fills
// at most half of the cache, and leaves errors to the reads that follow.
func (g *pages) Prefetch(ctx context.Context, ranges []span) {
	var group errgroup.Group
	group.SetLimit(prefetchers)
	for _, s := range g.wanted(ranges) {
		group.Go(func() error {
			_ = g.load(ctx, g.src.ReadAt, s.from, s.to, true)
			return nil
		})
	}
	_ = group.Wait() // no error is returned above
}

// wanted turns ranges of bytes into spans of missing pages, joined if they
// are near.
func (g *pages) wanted(ranges []span) (runs []span) {
	slices.SortFunc(ranges, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	g.mu.Lock()
	defer g.mu.Unlock()
	left := int64(g.limit / 2)
	for _, r := range ranges {
		from, to := r.from/PageSize, min((r.to+PageSize-1)/PageSize, g.count())
		for i := from; i < to && left > 0; i++ {
			if g.have[i] != nil {
				continue
			}
			last := len(runs) - 1
			switch {
			case last >= 0 && i < runs[last].to:
				continue
			case last >= 0 && i-runs[last].to <= bridged && i+1-runs[last].from <= mostAtOnce:
				left -= i + 1 - runs[last].to
				runs[last].to = i + 1
			default:
				runs = append(runs, span{i, i + 1})
				left--
			}
		}
	}
	return runs
}

// Stats returns the counters.
func (g *pages) Stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stats
}
