package vfs

import (
	"fmt"
	"slices"
	"sort"
	"sync"
)

const (
	// PageSize is the unit of Pages: that of most file systems' blocks. A larger
	// one would lie across more of the units in which an image is fetched.
	PageSize = 4 << 10

	// Reach bounds what is read at once of pages that are known to be wanted. Two
	// ranges that are nearer to each other than that are worth one read.
	Reach = 64 << 10

	// MaxPages bounds the memory of one Pages: 16 MiB.
	MaxPages = 4096
)

// Pages keeps the pages of an image that were read last. Readers of file
// systems read metadata through it; contents of files go past it.
type Pages struct {
	img   Image
	mu    sync.Mutex
	pages map[int64]*page
	hints []Extent // of the last Prefetch, sorted
	// The pages in the order of their use: first is the newest.
	first, last *page
}

type page struct {
	number     int64
	data       []byte
	prev, next *page
}

// NewPages returns an empty cache of img's pages.
func NewPages(img Image) *Pages { return &Pages{img: img, pages: map[int64]*page{}} }

// Size returns the image's size.
func (c *Pages) Size() int64 { return c.img.Size() }

// Bytes returns n bytes at off, which the caller must not change.
func (c *Pages) Bytes(off int64, n int) ([]byte, error) {
	if n < 0 || off < 0 || off > c.Size()-int64(n) {
		return nil, fmt.Errorf("%w: %d bytes at %d lie beyond the end at %d", ErrDamaged, n, off, c.Size())
	}
	if n == 0 {
		return nil, nil
	}
	number, in := off/PageSize, int(off%PageSize)
	if in+n <= PageSize {
		data, err := c.page(number, number+1)
		if err != nil {
			return nil, err
		}
		return data[in : in+n : in+n], nil
	}
	p := make([]byte, n)
	if n > 1<<20 { // would only evict more useful pages
		return p, ReadFull(c.img, p, off)
	}
	if n > Reach {
		Prefetch(c.img, []Extent{{off, int64(n)}})
	}
	return p, c.copyTo(p, off)
}

// copyTo fills p, which lies within the image.
func (c *Pages) copyTo(p []byte, off int64) error {
	end := (off + int64(len(p)) + PageSize - 1) / PageSize
	for len(p) > 0 {
		data, err := c.page(off/PageSize, end)
		if err != nil {
			return err
		}
		n := copy(p, data[off%PageSize:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// ReadAt reads through the cache.
func (c *Pages) ReadAt(p []byte, off int64) (int, error) {
	n, end := Clip(p, off, c.Size())
	if err := c.copyTo(p[:n], off); err != nil {
		return 0, err
	}
	return n, end
}

// Has reports whether the byte at off is in memory.
func (c *Pages) Has(off int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pages[off/PageSize] != nil
}

// Prefetch asks the image for those ranges that are not in memory. They are
// read in few steps later on.
func (c *Pages) Prefetch(ranges []Extent) {
	var missing []Extent
	for _, r := range Join(ranges, 1, c.Size()) {
		for at := r.Offset - r.Offset%PageSize; at < r.Offset+r.Length; at += PageSize {
			if !c.Has(at) {
				missing = append(missing, Extent{at, PageSize})
			}
		}
	}
	if len(missing) == 0 {
		return
	}
	missing = Join(missing, 1, c.Size())
	Prefetch(c.img, missing)
	c.mu.Lock()
	c.hints = missing
	c.mu.Unlock()
}

// page returns a page. What is missing of [number, to), or of the hint that the
// page lies in, is read along with it.
func (c *Pages) page(number, to int64) ([]byte, error) {
	c.mu.Lock()
	if p := c.pages[number]; p != nil {
		c.unlink(p)
		c.push(p)
		c.mu.Unlock()
		return p.data, nil
	}
	end := c.missing(number, max(to, c.hinted(number)))
	c.mu.Unlock()
	off := number * PageSize
	data := make([]byte, min(end*PageSize, c.Size())-off)
	if err := ReadFull(c.img, data, off); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := end - 1; k >= number; k-- { // the first one is the newest then
		at := (k - number) * PageSize
		c.keep(k, data[at:min(at+PageSize, int64(len(data)))])
	}
	return data[:min(PageSize, len(data)):min(PageSize, len(data))], nil
}

// hinted returns the end of the pages that the last hints name from a page on.
// The caller holds the mutex.
func (c *Pages) hinted(number int64) int64 {
	off := number * PageSize
	i := sort.Search(len(c.hints), func(i int) bool { return c.hints[i].Offset+c.hints[i].Length > off })
	if i == len(c.hints) || c.hints[i].Offset > off {
		return number
	}
	return (c.hints[i].Offset + c.hints[i].Length + PageSize - 1) / PageSize
}

// missing returns the end of the run of missing pages that begins with number,
// before to and within reach. The caller holds the mutex.
func (c *Pages) missing(number, to int64) int64 {
	end := number + 1
	for end < min(to, number+Reach/PageSize) && c.pages[end] == nil {
		end++
	}
	return end
}

// keep stores a page, and forgets the oldest one if there are too many. The
// caller holds the mutex.
func (c *Pages) keep(number int64, data []byte) {
	if c.pages[number] != nil {
		return
	}
	// A subslice would keep all of a long read in memory.
	p := &page{number: number, data: slices.Clone(data)}
	c.pages[number] = p
	c.push(p)
	if len(c.pages) > MaxPages {
		delete(c.pages, c.last.number)
		c.unlink(c.last)
	}
}

func (c *Pages) unlink(p *page) {
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		c.first = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		c.last = p.prev
	}
	p.prev, p.next = nil, nil
}

func (c *Pages) push(p *page) {
	p.next = c.first
	if c.first != nil {
		c.first.prev = p
	}
	c.first = p
	if c.last == nil {
		c.last = p
	}
}
