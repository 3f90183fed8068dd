package xfs

import (
	"fmt"
	"io/fs"
	"sort"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// maxDepth bounds the depth of a tree of extents (XFS_BTREE_MAXLEVELS is 9).
const maxDepth = 9

// maxBlock is the greatest number of a file's block: 54 bits.
const maxBlock = 1 << 54

// run is a stretch of a file's blocks that lie side by side on disk, or that
// read as zeros. count is at least 1.
type run struct {
	count    int64
	physical uint64
	hole     bool
}

// extent is an entry of a list of extents: 1 bit whether it was never
// written, 54 of the first block in the file, 52 of the first on disk, 21 of
// their number.
type extent struct {
	first, count int64
	block        uint64
	unwritten    bool
}

func parseExtent(b []byte) extent {
	high, low := be.Uint64(b), be.Uint64(b[8:])
	return extent{
		unwritten: high>>63 != 0, first: int64(high >> 9 & (maxBlock - 1)),
		block: high&0x1ff<<43 | low>>21, count: int64(low & (1<<21 - 1)),
	}
}

// mapped returns the run that begins at a block of a fork, cut at limit.
func (f *FS) mapped(i *inode, k *fork, block, limit int64) (run, error) {
	if i.flags&flagRealtime != 0 && k == &i.data {
		return run{}, fmt.Errorf("inode %d on a realtime device: %w", i.number, vfs.ErrUnsupported)
	}
	r, err := f.find(k, block)
	if err != nil {
		return run{}, fmt.Errorf("inode %d: %w", i.number, err)
	}
	r.count = min(r.count, limit-block)
	if !r.hole {
		if r.physical, err = f.linear(r.physical); err != nil {
			return run{}, fmt.Errorf("inode %d: %w", i.number, err)
		}
		if uint64(r.count) > f.blocks-r.physical {
			return run{}, damaged("inode %d maps %d blocks at %d of %d", i.number, r.count, r.physical, f.blocks)
		}
	}
	return r, nil
}

// find returns the run that begins at a block; physical is not yet linear.
// Each step down a tree narrows the range [low, high) of blocks, and lowers
// the level, so neither loops nor shared nodes can be entered.
func (f *FS) find(k *fork, block int64) (run, error) {
	if block < 0 || block >= maxBlock {
		return run{}, damaged("block %d of a file", block)
	}
	low, high := int64(0), int64(maxBlock)
	switch k.format {
	case formatExtents:
		if k.extents > uint64(len(k.bytes)/16) {
			return run{}, damaged("%d extents in an inode", k.extents)
		}
		return inList(k.bytes[:16*k.extents], block, low, high)
	case formatTree:
	default:
		return run{}, damaged("fork of format %d has no extents", k.format)
	}
	level, count := int(be.Uint16(k.bytes)), int(be.Uint16(k.bytes[2:]))
	keys, most := k.bytes[4:], (len(k.bytes)-4)/16
	if level < 1 || level > maxDepth {
		return run{}, damaged("tree of %d levels", level)
	}
	for {
		if count > most || count < 0 {
			return run{}, damaged("node with %d of %d entries", count, most)
		}
		key := func(n int) int64 { return int64(be.Uint64(keys[8*n:]) & (maxBlock - 1)) }
		n := sort.Search(count, func(n int) bool { return key(n) > block }) - 1
		if n+1 < count {
			high = min(high, key(n+1))
		}
		if n < 0 {
			return run{count: high - block, hole: true}, nil
		}
		if key(n) < low {
			return run{}, damaged("tree whose keys are not sorted")
		}
		low = key(n)
		node, err := f.node(be.Uint64(keys[8*most+8*n:]))
		if err != nil {
			return run{}, err
		}
		level--
		if int(be.Uint16(node[4:])) != level {
			return run{}, damaged("node of level %d where one of level %d should be", be.Uint16(node[4:]), level)
		}
		count = int(be.Uint16(node[6:]))
		keys = node[f.nodeHeader():]
		if level == 0 {
			if 16*count > len(keys) {
				return run{}, damaged("leaf with %d entries", count)
			}
			return inList(keys[:16*count], block, low, high)
		}
		most = len(keys) / 16
	}
}

func (f *FS) nodeHeader() int {
	if f.version == 5 {
		return 72
	}
	return 24
}

func (f *FS) node(number uint64) ([]byte, error) {
	block, err := f.linear(number)
	if err != nil {
		return nil, err
	}
	b, err := f.pages.Bytes(int64(block)*f.blockSize, int(f.blockSize))
	if err != nil {
		return nil, err
	}
	if magic := string(b[:4]); magic != "BMA3" && magic != "BMAP" {
		return nil, damaged("node has no magic number")
	}
	return b, nil
}

// inList finds a block in a list of extents, none of which may lie outside of
// [low, high).
func inList(list []byte, block, low, high int64) (run, error) {
	at := func(n int) extent { return parseExtent(list[16*n:]) }
	n := sort.Search(len(list)/16, func(n int) bool { return at(n).first > block }) - 1
	if n+1 < len(list)/16 {
		high = min(high, at(n+1).first)
	}
	if n < 0 {
		return run{count: high - block, hole: true}, nil
	}
	e := at(n)
	if e.first < low {
		return run{}, damaged("extents are not sorted")
	}
	end := min(high, e.first+e.count)
	switch {
	case block >= end:
		return run{count: high - block, hole: true}, nil
	case e.unwritten:
		return run{count: end - block, hole: true}, nil
	}
	return run{count: end - block, physical: e.block + uint64(block-e.first)}, nil
}

// runs visits the runs that hold data in the blocks [block, end), in order.
func (f *FS) runs(i *inode, k *fork, block, end int64, visit func(block int64, r run) error) error {
	for block < end {
		r, err := f.mapped(i, k, block, end)
		if err != nil {
			return err
		}
		if !r.hole {
			if err := visit(block, r); err != nil {
				return err
			}
		}
		block += r.count
	}
	return nil
}

// blocksIn is how many blocks a size takes.
func (f *FS) blocksIn(size int64) int64 { return (size + f.blockSize - 1) / f.blockSize }

// Extents visits the ranges of a file that have data.
func (f *FS) Extents(number uint64, visit func(vfs.Extent) error) error {
	i, err := f.existing(number, vfs.Regular)
	if err != nil {
		return err
	}
	var open vfs.Extent
	err = f.runs(i, &i.data, 0, f.blocksIn(i.size), func(block int64, r run) error {
		next := vfs.Extent{Offset: block * f.blockSize, Length: r.count * f.blockSize}
		next.Length = min(next.Length, i.size-next.Offset)
		if open.Length > 0 && open.Offset+open.Length == next.Offset {
			open.Length += next.Length
			return nil
		}
		done := open
		open = next
		if done.Length == 0 {
			return nil
		}
		return visit(done)
	})
	if err != nil || open.Length == 0 {
		return err
	}
	return visit(open)
}

// maxPieces bounds how many runs one read asks for in advance.
const maxPieces = 1024

// ReadAt reads a regular file.
func (f *FS) ReadAt(number uint64, p []byte, off int64) (int, error) {
	i, err := f.existing(number, vfs.Regular)
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	n, end := vfs.Clip(p, off, i.size)
	for done := 0; done < n; {
		got, err := f.readPieces(i, p[done:n], off+int64(done))
		if err != nil {
			return done, err
		}
		done += got
	}
	return n, end
}

// readPieces reads up to maxPieces runs, of which it asks for all before it
// reads the first.
func (f *FS) readPieces(i *inode, p []byte, off int64) (done int, err error) {
	type piece struct {
		p  []byte
		at int64
	}
	var pieces []piece
	var hints []vfs.Extent
	limit := f.blocksIn(off + int64(len(p)))
	for done < len(p) && len(pieces) < maxPieces {
		at := off + int64(done)
		in := at % f.blockSize
		r, err := f.mapped(i, &i.data, at/f.blockSize, limit)
		if err != nil {
			return 0, err
		}
		n := int(min(r.count*f.blockSize-in, int64(len(p)-done)))
		if r.hole {
			clear(p[done : done+n])
		} else {
			physical := int64(r.physical)*f.blockSize + in
			pieces = append(pieces, piece{p[done : done+n], physical})
			hints = append(hints, vfs.Extent{Offset: physical, Length: int64(n)})
		}
		done += n
	}
	if len(hints) > 1 {
		vfs.Prefetch(f.img, hints)
	}
	for _, c := range pieces {
		if err := vfs.ReadFull(f.img, c.p, c.at); err != nil {
			return 0, err
		}
	}
	return done, nil
}
