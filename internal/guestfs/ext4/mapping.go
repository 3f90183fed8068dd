package ext4

import (
	"fmt"
	"io/fs"
	"sort"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// maxDepth is the greatest depth of an extent tree (EXT4_MAX_EXTENT_DEPTH).
const maxDepth = 5

const extentMagic = 0xF30A

// run is a stretch of a file's blocks that lie side by side on disk, or that
// do not lie there at all and read as zeros. count is at least 1.
type run struct {
	count    int64
	physical uint64
	hole     bool
	// unwritten is a hole that has blocks.
	unwritten bool
}

// mapped returns the run that begins at a block of a file. Its length is cut
// at limit.
func (f *FS) mapped(i *inode, block, limit int64) (run, error) {
	if i.flags&flagEncrypt != 0 {
		return run{}, fmt.Errorf("inode %d is encrypted: %w", i.number, vfs.ErrUnsupported)
	}
	r, err := run{}, error(nil)
	if i.flags&flagExtents != 0 {
		r, err = f.extent(i, block)
	} else {
		r, err = f.indirect(i, block)
	}
	if err != nil {
		return run{}, fmt.Errorf("inode %d: %w", i.number, err)
	}
	r.count = min(r.count, limit-block)
	if !r.hole && (r.physical == 0 || r.physical >= f.blocks || uint64(r.count) > f.blocks-r.physical) {
		return run{}, fmt.Errorf("%w: ext4 inode %d maps %d blocks at %d", vfs.ErrDamaged, i.number, r.count, r.physical)
	}
	return r, nil
}

// extent finds a block in the extent tree. Each step down narrows the range
// [low, high) of blocks that a node may speak of, and lowers the depth, so
// neither loops nor shared nodes can be entered.
func (f *FS) extent(i *inode, block int64) (run, error) {
	node := i.raw[0x28 : 0x28+60]
	low, high := int64(0), int64(1)<<32
	if block >= high {
		return run{}, fmt.Errorf("%w: extent tree: block %d", vfs.ErrDamaged, block)
	}
	for depth := -1; ; depth-- {
		if le.Uint16(node) != extentMagic {
			return run{}, fmt.Errorf("%w: extent tree: no magic number", vfs.ErrDamaged)
		}
		count, d := int(le.Uint16(node[2:])), int(le.Uint16(node[6:]))
		if 12+12*count > len(node) || d > maxDepth || depth >= 0 && d != depth {
			return run{}, fmt.Errorf("%w: extent tree: %d entries, depth %d", vfs.ErrDamaged, count, d)
		}
		depth = d
		entry := func(n int) []byte { return node[12+12*n : 24+12*n] }
		first := func(n int) int64 { return int64(le.Uint32(entry(n))) }
		n := sort.Search(count, func(n int) bool { return first(n) > block }) - 1
		if n+1 < count {
			if first(n+1) < low || first(n+1) >= high {
				return run{}, fmt.Errorf("%w: extent tree: entries are not sorted", vfs.ErrDamaged)
			}
			high = first(n + 1)
		}
		if n < 0 {
			return run{count: high - block, hole: true}, nil
		}
		if first(n) < low {
			return run{}, fmt.Errorf("%w: extent tree: entries are not sorted", vfs.ErrDamaged)
		}
		low = first(n)
		e := entry(n)
		if depth == 0 {
			return leaf(e, block, high), nil
		}
		var err error
		if node, err = f.block(uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32); err != nil {
			return run{}, err
		}
	}
}

// leaf returns what an extent, the last that begins at or before block, has
// for it; the next extent begins at high.
func leaf(e []byte, block, high int64) run {
	first, count := int64(le.Uint32(e)), int64(le.Uint16(e[4:]))
	unwritten := count > 32768
	if unwritten {
		count -= 32768
	}
	end := min(first+count, high)
	if block >= end {
		return run{count: high - block, hole: true}
	}
	if unwritten {
		return run{count: end - block, hole: true, unwritten: true}
	}
	physical := uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32
	return run{count: end - block, physical: physical + uint64(block-first)}
}

// indirect finds a block by the 12 direct pointers, or by those in one, two
// or three steps of blocks of pointers.
func (f *FS) indirect(i *inode, block int64) (run, error) {
	pointers := i.raw[0x28 : 0x28+60]
	per := f.blockSize / 4
	if block < 12 {
		return pointed(pointers[:48], block), nil
	}
	rest := block - 12
	for level, span := 1, per; level <= 3; level, span = level+1, span*per {
		if rest >= span {
			rest -= span
			continue
		}
		pointer := le.Uint32(pointers[4*(11+level):])
		for ; ; level-- {
			if pointer == 0 {
				return run{count: span - rest%span, hole: true}, nil
			}
			b, err := f.block(uint64(pointer))
			if err != nil {
				return run{}, err
			}
			if level == 1 {
				return pointed(b, rest%per), nil
			}
			span /= per
			pointer = le.Uint32(b[rest/span%per*4:])
		}
	}
	return run{}, fmt.Errorf("%w: block %d has no pointer", vfs.ErrDamaged, block)
}

// pointed joins the pointers from index n on that point to neighbours, or to
// nothing.
func pointed(pointers []byte, n int64) run {
	first := le.Uint32(pointers[4*n:])
	r := run{count: 1, physical: uint64(first), hole: first == 0}
	for ; 4*(n+r.count) < int64(len(pointers)); r.count++ {
		next := le.Uint32(pointers[4*(n+r.count):])
		if r.hole && next != 0 || !r.hole && uint64(next) != r.physical+uint64(r.count) {
			break
		}
	}
	return r
}

// runs visits the runs that hold data in the blocks [block, end) of a file,
// in order.
func (f *FS) runs(i *inode, block, end int64, visit func(block int64, r run) error) error {
	for block < end {
		r, err := f.mapped(i, block, end)
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

// blocksIn is how many blocks a file's size takes.
func (f *FS) blocksIn(i *inode) int64 { return (i.size + f.blockSize - 1) / f.blockSize }

// Extents visits the ranges of a file that have data.
func (f *FS) Extents(number uint64, visit func(vfs.Extent) error) error {
	i, err := f.existing(number, vfs.Regular)
	if err != nil {
		return err
	}
	if i.flags&flagInlineData != 0 {
		if i.size == 0 {
			return nil
		}
		return visit(vfs.Extent{Length: i.size})
	}
	var open vfs.Extent
	mapped := uint64(0)
	err = f.runs(i, 0, f.blocksIn(i), func(block int64, r run) error {
		// Blocks of pointers may be shared, and make a file as long as the
		// format allows out of a few.
		if mapped += uint64(r.count); mapped > f.blocks {
			return fmt.Errorf("%w: ext4 inode %d has more blocks than there are", vfs.ErrDamaged, number)
		}
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

// ReadAt reads a regular file.
func (f *FS) ReadAt(number uint64, p []byte, off int64) (int, error) {
	i, err := f.existing(number, vfs.Regular)
	if err != nil {
		return 0, err
	}
	return f.readInode(i, p, off)
}

// maxHinted bounds how many runs one read asks for in advance.
const maxHinted = 1024

func (f *FS) readInode(i *inode, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	n, end := vfs.Clip(p, off, i.size)
	if i.flags&flagInlineData != 0 {
		data, err := f.inline(i)
		if err != nil {
			return 0, err
		}
		clear(p[:n])
		copy(p[:n], data[min(off, int64(len(data))):])
		return n, end
	}
	limit := (off + int64(n) + f.blockSize - 1) / f.blockSize
	type piece struct {
		at, physical int64
		n            int
	}
	var pieces []piece
	var hints []vfs.Extent
	flush := func() error {
		if len(pieces) > 1 {
			vfs.Prefetch(f.img, hints)
		}
		for _, c := range pieces {
			if err := f.read(p[c.at:c.at+int64(c.n)], c.physical); err != nil {
				return err
			}
		}
		pieces, hints = pieces[:0], hints[:0]
		return nil
	}
	for done := int64(0); done < int64(n); {
		at := off + done
		in := at % f.blockSize
		r, err := f.mapped(i, at/f.blockSize, limit)
		if err != nil {
			return int(done), err
		}
		part := min(r.count*f.blockSize-in, int64(n)-done)
		if r.hole {
			clear(p[done : done+part])
		} else {
			pieces = append(pieces, piece{done, int64(r.physical)*f.blockSize + in, int(part)})
			if len(hints) < maxHinted {
				hints = f.physical(hints, r.physical, r.count)
			}
			if len(pieces) == maxHinted {
				if err := flush(); err != nil {
					return 0, err
				}
			}
		}
		done += part
	}
	if err := flush(); err != nil {
		return 0, err
	}
	return n, end
}

// maxLink is the longest target of a symbolic link (PATH_MAX).
const maxLink = 4096

// Readlink returns the target of a symbolic link: in the inode if it has at
// most 59 bytes.
func (f *FS) Readlink(number uint64) (string, error) {
	i, err := f.existing(number, vfs.Symlink)
	if err != nil {
		return "", err
	}
	switch {
	case i.flags&flagEncrypt != 0:
		return "", fmt.Errorf("inode %d is encrypted: %w", number, vfs.ErrUnsupported)
	case i.size > maxLink:
		return "", fmt.Errorf("%w: ext4 inode %d: a link's target of %d bytes", vfs.ErrDamaged, number, i.size)
	case i.size < 60 && i.flags&(flagInlineData|flagExtents) == 0:
		return string(i.raw[0x28 : 0x28+i.size]), nil
	}
	p := make([]byte, i.size)
	if n, err := f.readInode(i, p, 0); n < len(p) {
		return "", err
	}
	return string(p), nil
}
