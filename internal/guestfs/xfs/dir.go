package xfs

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// maxDirSize bounds what one walk through a directory reads. Its size does not
// count the hashes of names, which begin at 32 GiB.
const maxDirSize = 4 << 30

// dirWindow is how much of a directory is asked for at once.
const dirWindow = 8 << 20

// fileTypes are the types that an entry may have.
var fileTypes = [...]vfs.Type{
	vfs.Unknown, vfs.Regular, vfs.Directory, vfs.CharDevice, vfs.BlockDevice, vfs.FIFO, vfs.Socket, vfs.Symlink,
}

var errFound = errors.New("found")

// ReadDir visits a directory's entries in the order of its blocks.
func (f *FS) ReadDir(number uint64, visit func(vfs.DirEntry) error) error {
	i, err := f.existing(number, vfs.Directory)
	if err != nil {
		return err
	}
	err = f.neighbours.Remember(func(add func(uint64) bool) error {
		err := f.entries(i, func(e vfs.DirEntry) error {
			if !add(e.Inode) {
				return errFound
			}
			return nil
		})
		if err == errFound {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	return f.entries(i, visit)
}

// Lookup finds a name among a directory's entries.
func (f *FS) Lookup(dir uint64, name string) (found uint64, err error) {
	i, err := f.existing(dir, vfs.Directory)
	if err != nil {
		return 0, err
	}
	err = f.entries(i, func(e vfs.DirEntry) error {
		if e.Name == name {
			found = e.Inode
			return errFound
		}
		return nil
	})
	switch {
	case err == errFound:
		return found, nil
	case err != nil:
		return 0, err
	}
	return 0, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
}

// entries visits the entries of a directory, but "." and "..".
func (f *FS) entries(i *inode, visit func(vfs.DirEntry) error) error {
	checked := func(e vfs.DirEntry) error {
		switch {
		case e.Name == "." || e.Name == "..":
			return nil
		case e.Name == "" || strings.ContainsAny(e.Name, "/\x00"):
			return damaged("directory %d: the name %q", i.number, e.Name)
		}
		return visit(e)
	}
	if i.data.format == formatLocal {
		return f.short(i, checked)
	}
	if i.size > maxDirSize || i.size > f.img.Size() {
		return damaged("directory %d has %d bytes", i.number, i.size)
	}
	for at := int64(0); at < i.size; at += dirWindow {
		if err := f.window(i, at, min(i.size, at+dirWindow), checked); err != nil {
			return err
		}
	}
	return nil
}

// window visits the entries in a part of a directory, all of which it asks
// for before it reads the first.
func (f *FS) window(i *inode, at, end int64, visit func(vfs.DirEntry) error) error {
	var hints []vfs.Extent
	// The blocks of the directory, each in as many blocks as it takes.
	per := f.dirBlock / f.blockSize
	places := map[int64][]int64{}
	var order []int64
	err := f.runs(i, &i.data, at/f.blockSize, f.blocksIn(end), func(block int64, r run) error {
		hints = append(hints, vfs.Extent{Offset: int64(r.physical) * f.blockSize, Length: r.count * f.blockSize})
		for n := range r.count {
			whole := (block + n) / per
			if places[whole] == nil {
				order = append(order, whole)
			}
			places[whole] = append(places[whole], (int64(r.physical)+n)*f.blockSize)
		}
		return nil
	})
	if err != nil {
		return err
	}
	f.pages.Prefetch(hints)
	for _, whole := range order {
		if int64(len(places[whole])) != per {
			return damaged("directory %d: block %d has a hole", i.number, whole)
		}
		var b []byte
		for _, place := range places[whole] {
			part, err := f.pages.Bytes(place, int(f.blockSize))
			if err != nil {
				return err
			}
			if per == 1 {
				b = part
			} else {
				b = append(b, part...)
			}
		}
		if err := f.data(i, b, visit); err != nil {
			return err
		}
	}
	return nil
}

// short visits the entries of a directory that fits into its inode.
func (f *FS) short(i *inode, visit func(vfs.DirEntry) error) error {
	b := i.data.bytes[:min(int64(len(i.data.bytes)), i.size)]
	if len(b) < 6 {
		return damaged("directory %d has %d bytes", i.number, len(b))
	}
	count, width := int(b[0]), 4
	if b[1] > 0 {
		width = 8
	}
	b = b[min(len(b), 2+width):]
	for range count {
		extra := 0
		if f.filetype {
			extra = 1
		}
		if len(b) < 3 || len(b) < 3+int(b[0])+extra+width {
			return damaged("directory %d ends early", i.number)
		}
		name := int(b[0])
		e := vfs.DirEntry{Name: string(b[3 : 3+name])}
		b = b[3+name:]
		if f.filetype {
			e.Type = fileType(b[0])
			b = b[1:]
		}
		if width == 8 {
			e.Inode = be.Uint64(b)
		} else {
			e.Inode = uint64(be.Uint32(b))
		}
		b = b[width:]
		if err := visit(e); err != nil {
			return err
		}
	}
	return nil
}

func fileType(n byte) vfs.Type {
	if int(n) < len(fileTypes) {
		return fileTypes[n]
	}
	return vfs.Unknown
}

// data visits the entries in a block of a directory: behind its header, and
// before the hashes if the directory has one block only.
func (f *FS) data(i *inode, b []byte, visit func(vfs.DirEntry) error) error {
	start, end := 16, len(b)
	switch string(b[:4]) {
	case "XDB3", "XDD3":
		start = 64
	case "XD2B", "XD2D":
	default:
		return damaged("directory %d: block without a magic number", i.number)
	}
	if b[3] == 'B' || b[2] == 'B' {
		count := int64(be.Uint32(b[end-8:]))
		if count > int64(end-8-start)/8 {
			return damaged("directory %d: %d hashes in a block", i.number, count)
		}
		end -= 8 + 8*int(count)
	}
	for at := start; at+8 <= end; {
		if be.Uint16(b[at:]) == 0xffff { // unused
			length := int(be.Uint16(b[at+2:]))
			if length < 8 || length%8 != 0 || at+length > end {
				return damaged("directory %d: %d unused bytes at %d", i.number, length, at)
			}
			at += length
			continue
		}
		extra := 2 // where the entry lies
		if f.filetype {
			extra++
		}
		if at+9 > end || at+9+int(b[at+8])+extra > end {
			return damaged("directory %d: an entry at %d", i.number, at)
		}
		name := int(b[at+8])
		e := vfs.DirEntry{Name: string(b[at+9 : at+9+name]), Inode: be.Uint64(b[at:])}
		if f.filetype {
			e.Type = fileType(b[at+9+name])
		}
		if err := visit(e); err != nil {
			return err
		}
		at += (9 + name + extra + 7) &^ 7
	}
	return nil
}

// prefetchInodes asks for the pages that hold inodes.
func (f *FS) prefetchInodes(numbers []uint64) {
	var hints []vfs.Extent
	for _, n := range numbers {
		if at, err := f.locate(n); err == nil {
			hints = append(hints, vfs.Extent{Offset: at, Length: int64(f.inodeSize)})
		}
	}
	if len(hints) > 1 {
		f.pages.Prefetch(hints)
	}
}

// maxTree bounds the inodes that PrefetchTree visits.
const maxTree = 1 << 18

// PrefetchTree asks for the inodes and the directories' blocks below a
// directory, level by level.
func (f *FS) PrefetchTree(dir uint64) error {
	if _, ok := f.img.(vfs.Prefetcher); !ok {
		return nil
	}
	seen := map[uint64]bool{dir: true}
	for level := []uint64{dir}; len(level) > 0; {
		var below []uint64
		for batch := range slices.Chunk(level, 4096) {
			dirs, err := f.prefetchDirs(batch)
			if err != nil {
				return err
			}
			for _, i := range dirs {
				err := f.entries(i, func(e vfs.DirEntry) error {
					if !seen[e.Inode] && len(seen) < maxTree {
						seen[e.Inode] = true
						below = append(below, e.Inode)
					}
					return nil
				})
				if err != nil {
					return err
				}
			}
		}
		level = below
	}
	return nil
}

// prefetchDirs asks for inodes, and for the blocks of those that are
// directories.
func (f *FS) prefetchDirs(numbers []uint64) (dirs []*inode, err error) {
	f.prefetchInodes(numbers)
	var hints []vfs.Extent
	for _, n := range numbers {
		i, err := f.inode(n)
		if err != nil {
			return nil, err
		}
		if i.kind() != vfs.Directory {
			continue
		}
		i.raw, i.data.bytes = nil, slices.Clone(i.data.bytes) // not to keep its whole page
		dirs = append(dirs, i)
		if i.data.format == formatLocal {
			continue
		}
		err = f.runs(i, &i.data, 0, f.blocksIn(min(i.size, dirWindow)), func(_ int64, r run) error {
			hints = append(hints, vfs.Extent{Offset: int64(r.physical) * f.blockSize, Length: r.count * f.blockSize})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	f.pages.Prefetch(hints)
	return dirs, nil
}
