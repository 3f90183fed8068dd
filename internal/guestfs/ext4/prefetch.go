package ext4

import (
	"slices"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

const (
	// maxTables bounds the inode tables that are asked for at once.
	maxTables = 24 << 20
	// maxBatch bounds the inodes that are looked at together, in bytes.
	maxBatch = 4 << 20
	// maxTree bounds the directories that PrefetchTree visits.
	maxTree = 1 << 18
)

// remember takes the inodes of a directory's entries.
func (f *FS) remember(i *inode) error {
	return f.neighbours.Remember(func(add func(uint64) bool) error {
		err := f.entries(i, func(e dirent) error {
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
}

// prefetchNeighbours asks for the inodes that follow one in the directory that
// was read last, if that one's block is not in memory.
func (f *FS) prefetchNeighbours(number uint64, block uint64) {
	if !f.pages.Has(int64(block) * f.blockSize) {
		f.prefetchInodes(f.neighbours.Next(number))
	}
}

// prefetchInodes asks for the blocks that hold inodes.
func (f *FS) prefetchInodes(numbers []uint64) {
	sorted := slices.Clone(numbers)
	slices.Sort(sorted)
	var hints []vfs.Extent
	f.prefetchDescriptors(sorted)
	for _, n := range sorted {
		if block, _, err := f.locate(uint32(n)); err == nil {
			hints = f.appendBlock(hints, block)
		}
	}
	f.pages.Prefetch(hints)
}

// appendBlock adds the place of one block, which is often the last one again.
func (f *FS) appendBlock(hints []vfs.Extent, block uint64) []vfs.Extent {
	at, _ := f.journal.find(block)
	next := vfs.Extent{Offset: int64(at) * f.blockSize, Length: f.blockSize}
	if n := len(hints); n > 0 && hints[n-1] == next {
		return hints
	}
	return append(hints, next)
}

// prefetchDescriptors asks for the descriptors of the groups of sorted inodes.
func (f *FS) prefetchDescriptors(sorted []uint64) {
	var hints []vfs.Extent
	for _, n := range sorted {
		if n == 0 || n > uint64(f.inodes) {
			continue
		}
		block, _ := f.descriptor((n - 1) / uint64(f.inodesPerGroup))
		hints = f.appendBlock(hints, block)
	}
	f.pages.Prefetch(hints)
}

// PrefetchTree asks for the inodes and the directories' blocks below a
// directory: of the whole file system at once if it is the root and the
// tables are small enough, else level by level.
func (f *FS) PrefetchTree(dir uint64) error {
	if _, ok := f.img.(vfs.Prefetcher); !ok {
		return nil
	}
	if dir == rootInode {
		if dirs, ok := f.allDirectories(); ok {
			f.prefetchDirectories(dirs)
			return nil
		}
	}
	seen := map[uint64]bool{dir: true}
	for level := []uint64{dir}; len(level) > 0; {
		var below []uint64
		for batch := range slices.Chunk(level, max(1, min(4096, maxBatch/f.inodeSize))) {
			f.prefetchInodes(batch)
			dirs, err := f.directories(batch)
			if err != nil {
				return err
			}
			f.prefetchDirectories(dirs)
			for _, i := range dirs {
				err := f.entries(i, func(e dirent) error {
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

// directories returns those of the inodes that are directories.
func (f *FS) directories(numbers []uint64) (dirs []*inode, err error) {
	for _, n := range numbers {
		i, err := f.inode(n)
		if err != nil {
			return nil, err
		}
		if i.kind() == vfs.Directory {
			i.raw = slices.Clone(i.raw) // not to keep its whole page
			dirs = append(dirs, i)
		}
	}
	return dirs, nil
}

// allDirectories reads the used part of each inode table. It gives up if
// they are too large together.
func (f *FS) allDirectories() (dirs []*inode, ok bool) {
	groups := f.groups()
	if groups > maxTables/uint64(f.blockSize) || uint64(f.inodes)*uint64(f.descSize)/uint64(f.inodesPerGroup) > maxTables {
		return nil, false
	}
	var hints []vfs.Extent
	for g := uint64(0); g < groups; g++ {
		block, _ := f.descriptor(g)
		hints = f.appendBlock(hints, block)
	}
	f.pages.Prefetch(hints)
	hints = hints[:0]
	total := int64(0)
	for g := uint64(0); g < groups; g++ {
		table, used, err := f.table(g)
		if err != nil {
			return nil, false
		}
		if used == 0 {
			continue
		}
		length := int64(used) * int64(f.inodeSize)
		if total += length; total > maxTables {
			return nil, false
		}
		hints = f.physical(hints, table, (length+f.blockSize-1)/f.blockSize)
	}
	f.pages.Prefetch(hints)
	for g := uint64(0); g < groups; g++ {
		_, used, err := f.table(g)
		if err != nil {
			return nil, false
		}
		for k := range used {
			i, err := f.inode(g*uint64(f.inodesPerGroup) + uint64(k) + 1)
			if err != nil {
				break
			}
			if i.kind() == vfs.Directory && le.Uint16(i.raw[0x1a:]) > 0 && len(dirs) < maxTree {
				i.raw = slices.Clone(i.raw) // not to keep its whole page
				dirs = append(dirs, i)
			}
		}
	}
	return dirs, true
}

// prefetchDirectories asks for the blocks of directories, after the nodes of
// their extent trees.
func (f *FS) prefetchDirectories(dirs []*inode) {
	var nodes, hints []vfs.Extent
	total := int64(0)
	for _, i := range dirs {
		if i.flags&(flagExtents|flagInlineData) == flagExtents {
			nodes = f.appendNodes(nodes, i)
		}
	}
	f.pages.Prefetch(nodes)
	for _, i := range dirs {
		if i.flags&(flagInlineData|flagEncrypt) != 0 || i.size > maxTables {
			continue
		}
		// The reader of the directory gets the error again.
		_ = f.runs(i, 0, f.blocksIn(i), func(_ int64, r run) error {
			if total += r.count * f.blockSize; total > maxTables {
				return errFound
			}
			hints = f.physical(hints, r.physical, r.count)
			return nil
		})
	}
	f.pages.Prefetch(hints)
}

// appendNodes adds the nodes below the root of an extent tree.
func (f *FS) appendNodes(hints []vfs.Extent, i *inode) []vfs.Extent {
	root := i.raw[0x28 : 0x28+60]
	count := int(le.Uint16(root[2:]))
	if le.Uint16(root[6:]) == 0 || count > 4 {
		return hints
	}
	for k := range count {
		e := root[12+12*k:]
		hints = f.appendBlock(hints, uint64(le.Uint32(e[4:]))|uint64(le.Uint16(e[8:]))<<32)
	}
	return hints
}
