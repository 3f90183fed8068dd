// Package ext4 reads ext2, ext3 and ext4 from an image, with the journal
// replayed in memory: the blocks that a mount would write home are read from
// where they lie in the log.
//
// The layout is that of Documentation/filesystems/ext4 in the kernel. The
// package never writes, and trusts no field: what lies outside of the image,
// contradicts itself or would not end is vfs.ErrDamaged. Checksums of metadata
// are not compared, since the guest makes them too; those of the journal are,
// since they show where it ends.
//
// Memory: 16 MiB of pages, 16 bytes for each replayed block of the journal (at
// most MaxReplayed; while it is read, 40 MiB at the worst), and one directory's
// numbers of inodes (at most 65,536).
package ext4

import (
	"fmt"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// rootInode is the inode of the root directory.
const rootInode = 2

// FS is an open file system.
type FS struct {
	*super
	img     vfs.Image
	pages   *vfs.Pages
	journal replayed
	state   string

	neighbours vfs.Neighbours
}

var (
	_ vfs.FS             = (*FS)(nil)
	_ vfs.TreePrefetcher = (*FS)(nil)
)

// Open reads the superblock and, if the file system was mounted when it was
// copied, the journal.
func Open(img vfs.Image) (*FS, error) {
	f := &FS{img: img, pages: vfs.NewPages(img)}
	if err := f.readSuper(); err != nil {
		return nil, err
	}
	switch {
	case f.incompat&incompatRecover != 0:
		state, err := f.replay()
		if err != nil {
			return nil, err
		}
		f.state = state
		// The journal has copies of the superblock, too.
		if err := f.readSuper(); err != nil {
			return nil, err
		}
	case f.compat&compatHasJournal == 0 && !f.valid:
		f.state = "not unmounted, and without a journal: may contradict itself"
	default:
		f.state = "clean"
	}
	return f, nil
}

func (f *FS) readSuper() error {
	var b []byte
	var err error
	if f.super == nil {
		b, err = f.pages.Bytes(superOffset, superSize)
	} else {
		at := int64(superOffset) % f.blockSize
		b, err = f.block(superOffset / uint64(f.blockSize))
		if err == nil {
			b = b[at : at+superSize]
		}
	}
	if err != nil {
		return fmt.Errorf("ext4 superblock: %w", err)
	}
	s, err := parseSuper(b)
	if err != nil {
		return err
	}
	if f.super != nil && f.blockSize != s.blockSize {
		return fmt.Errorf("%w: ext4 journal changes the block size", vfs.ErrDamaged)
	}
	f.super = s
	return nil
}

// Describe returns the superblock's answers and the state of the journal.
func (f *FS) Describe() vfs.Description {
	return vfs.Description{Type: f.kind(), Label: f.label, UUID: f.uuid, Size: int64(f.blocks) * f.blockSize, State: f.state}
}

// Root returns the inode of the root directory.
func (f *FS) Root() uint64 { return rootInode }

// block returns a block of metadata, as the journal leaves it. The caller
// must not change it.
func (f *FS) block(number uint64) ([]byte, error) {
	if number >= f.blocks {
		return nil, fmt.Errorf("%w: ext4 block %d of %d", vfs.ErrDamaged, number, f.blocks)
	}
	at, escaped := f.journal.find(number)
	b, err := f.pages.Bytes(int64(at)*f.blockSize, int(f.blockSize))
	if err != nil || !escaped {
		return b, err
	}
	return unescape(b), nil
}

// read reads contents from off on, which may begin in the middle of a block,
// past the pages in memory, and as the journal leaves them.
func (f *FS) read(p []byte, off int64) error {
	for len(p) > 0 {
		number := uint64(off / f.blockSize)
		at, escaped := f.journal.find(number)
		if at != number {
			in := off % f.blockSize
			b, err := f.pages.Bytes(int64(at)*f.blockSize, int(f.blockSize))
			if err != nil {
				return err
			}
			if escaped {
				b = unescape(b)
			}
			n := copy(p, b[in:])
			p, off = p[n:], off+int64(n)
			continue
		}
		n := int64(len(p))
		if next, ok := f.journal.next(number); ok && next < uint64(off+n+f.blockSize-1)/uint64(f.blockSize) {
			n = min(n, int64(next)*f.blockSize-off)
		}
		if err := vfs.ReadFull(f.img, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// physical returns the ranges of the image that hold count blocks from first
// on, for a Prefetch.
func (f *FS) physical(ranges []vfs.Extent, first uint64, count int64) []vfs.Extent {
	ranges = append(ranges, vfs.Extent{Offset: int64(first) * f.blockSize, Length: count * f.blockSize})
	for number := first; ; number++ {
		next, ok := f.journal.from(number)
		if !ok || next >= first+uint64(count) {
			return ranges
		}
		at, _ := f.journal.find(next)
		ranges = append(ranges, vfs.Extent{Offset: int64(at) * f.blockSize, Length: f.blockSize})
		number = next
	}
}
