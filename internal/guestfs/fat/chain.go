package fat

import (
	"fmt"
	"sort"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// chain is where the clusters of a file lie.
type chain struct {
	first  uint32
	limit  int64
	length int64
	runs   []run
}

// run is a piece of a chain: so many bytes of the file begin at start, and lie
// side by side from at on. The length follows from the next one.
type run struct{ start, at int64 }

// chain follows a chain of clusters until it ends or has limit bytes. A ring
// cannot be longer than there are clusters.
func (f *FS) chain(first uint32, limit int64) (*chain, error) {
	f.mu.Lock()
	for k, c := range f.chains {
		if c.first == first && c.limit == limit {
			copy(f.chains[1:k+1], f.chains[:k])
			f.chains[0] = c
			f.mu.Unlock()
			return &c, nil
		}
	}
	f.mu.Unlock()
	c := chain{first: first, limit: limit}
	last := uint32(0)
	for n := first; n != 0 && c.length < limit; {
		if n < 2 || n > f.clusters+1 {
			return nil, fmt.Errorf("%w: FAT cluster %d of %d", vfs.ErrDamaged, n, f.clusters)
		}
		if c.length/f.clusterSize > int64(f.clusters) {
			return nil, fmt.Errorf("%w: FAT clusters from %d on form a ring", vfs.ErrDamaged, first)
		}
		if n != last+1 {
			if len(c.runs) == maxRuns {
				return nil, fmt.Errorf("file in more than %d pieces: %w", maxRuns, vfs.ErrUnsupported)
			}
			c.runs = append(c.runs, run{c.length, f.data + int64(n-2)*f.clusterSize})
		}
		c.length += f.clusterSize
		next, err := f.next(n)
		if err != nil {
			return nil, err
		}
		last, n = n, next
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.chains = append([]chain{c}, f.chains[:min(len(f.chains), maxChains-1)]...)
	return &c, nil
}

// next reads the table: the cluster that follows, or 0 at the end.
func (f *FS) next(n uint32) (uint32, error) {
	offset, width := int64(n)*4, 4
	switch f.bits {
	case 12:
		offset, width = int64(n)*3/2, 2
	case 16:
		offset, width = int64(n)*2, 2
	}
	b, err := f.pages.Bytes(f.table+offset, width)
	if err != nil {
		return 0, err
	}
	var next, end uint32
	switch f.bits {
	case 12:
		next, end = uint32(le.Uint16(b)), 0xff8
		if n%2 != 0 {
			next >>= 4
		}
		next &= 0xfff
	case 16:
		next, end = uint32(le.Uint16(b)), 0xfff8
	default:
		next, end = le.Uint32(b)&0x0fffffff, 0x0ffffff8
	}
	switch {
	case next >= end:
		return 0, nil
	case next == 0:
		return 0, fmt.Errorf("%w: FAT cluster %d is free, and a file's", vfs.ErrDamaged, n)
	}
	return next, nil
}

// read reads bytes that lie within a chain.
func (f *FS) read(c *chain, p []byte, off int64) error {
	first := sort.Search(len(c.runs), func(k int) bool { return c.runs[k].start > off }) - 1
	length := func(k int) int64 {
		if k+1 < len(c.runs) {
			return c.runs[k+1].start - c.runs[k].start
		}
		return c.length - c.runs[k].start
	}
	end := off + int64(len(p))
	if first+1 < len(c.runs) && c.runs[first+1].start < end {
		var hints []vfs.Extent
		for k := first; k < len(c.runs) && c.runs[k].start < end; k++ {
			skip := max(0, off-c.runs[k].start)
			hints = append(hints, vfs.Extent{Offset: c.runs[k].at + skip, Length: min(length(k), end-c.runs[k].start) - skip})
		}
		vfs.Prefetch(f.img, hints)
	}
	for k := first; len(p) > 0; k++ {
		in := off - c.runs[k].start
		n := min(int64(len(p)), length(k)-in)
		if err := vfs.ReadFull(f.img, p[:n], c.runs[k].at+in); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}
