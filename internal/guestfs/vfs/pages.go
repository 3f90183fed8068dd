package vfs

import (
	"fmt"
	"sync"
)

// PageSize is the unit of Pages: metadata is small and lies in clusters, and
// a round trip costs more than 64 KiB.
const PageSize = 64 << 10

// MaxPages bounds the memory of one Pages: 16 MiB.
const MaxPages = 256

// Pages keeps the pages of an image that were read last. Readers of file
// systems read metadata through it; contents of files go past it.
type Pages struct {
	img   Image
	mu    sync.Mutex
	pages map[int64]*page
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
		data, err := c.page(number)
		if err != nil {
			return nil, err
		}
		return data[in : in+n : in+n], nil
	}
	if n > 1<<20 { // would only push out what is worth keeping
		p := make([]byte, n)
		return p, ReadFull(c.img, p, off)
	}
	Prefetch(c.img, []Extent{{off, int64(n)}})
	p := make([]byte, 0, n)
	for len(p) < n {
		data, err := c.page(number)
		if err != nil {
			return nil, err
		}
		p = append(p, data[in:min(len(data), in+n-len(p))]...)
		number, in = number+1, 0
	}
	return p, nil
}

// ReadAt reads through the cache.
func (c *Pages) ReadAt(p []byte, off int64) (int, error) {
	n, end := Clip(p, off, c.Size())
	for done := 0; done < n; {
		part := min(n-done, PageSize-int((off+int64(done))%PageSize))
		data, err := c.Bytes(off+int64(done), part)
		if err != nil {
			return done, err
		}
		done += copy(p[done:], data)
	}
	return n, end
}

// Has reports whether the byte at off is in memory.
func (c *Pages) Has(off int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pages[off/PageSize] != nil
}

// Prefetch asks the image for those ranges that are not in memory.
func (c *Pages) Prefetch(ranges []Extent) {
	var missing []Extent
	for _, r := range Join(ranges, 1, c.Size()) {
		for at := r.Offset - r.Offset%PageSize; at < r.Offset+r.Length; at += PageSize {
			if !c.Has(at) {
				missing = append(missing, Extent{at, PageSize})
			}
		}
	}
	Prefetch(c.img, missing)
}

func (c *Pages) page(number int64) ([]byte, error) {
	c.mu.Lock()
	if p := c.pages[number]; p != nil {
		c.unlink(p)
		c.push(p)
		c.mu.Unlock()
		return p.data, nil
	}
	c.mu.Unlock()
	data := make([]byte, min(PageSize, c.Size()-number*PageSize))
	if err := ReadFull(c.img, data, number*PageSize); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pages[number] == nil {
		p := &page{number: number, data: data}
		c.pages[number] = p
		c.push(p)
		if len(c.pages) > MaxPages {
			delete(c.pages, c.last.number)
			c.unlink(c.last)
		}
	}
	return data, nil
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
