package cache

import "sync"

const (
	// takenLeast is the size of reads, in bytes, from which on pages of what
	// was read are dropped. A reader in no order has smaller ones: there is
	// little to gain, and much to do.
	takenLeast = 64 << 10
	// mostPassing bounds the pieces of a file that wait to be read. Pages of
	// more stay as long as the kernel likes.
	mostPassing = 64 << 10
)

// passing are pieces of a file that were fetched for readers and are in the page
// cache of the cached file. A reader of a mount gets pages of the mount, and
// then nobody needs those of the cached file.
type passing struct {
	mu   sync.Mutex
	left map[int]int64 // bytes of each that were not taken
	gone []uint64      // a bit for each piece of the file: all of it was taken
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

// take notes that n bytes of piece i were taken. It reports whether all of the
// piece has been, now.
func (p *passing) take(i int, n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	left, ok := p.left[i]
	switch {
	case !ok:
		return false
	case left > n:
		p.left[i] = left - n
		return false
	}
	delete(p.left, i)
	for len(p.gone) <= i/64 {
		p.gone = append(p.gone, 0)
	}
	p.gone[i/64] |= 1 << (i % 64)
	return true
}

// passed reports whether all of piece i was taken.
func (p *passing) passed(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return i/64 < len(p.gone) && p.gone[i/64]&(1<<(i%64)) != 0
}
