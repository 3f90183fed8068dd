package ext4

import (
	"fmt"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// Locate visits the ranges of a regular file whose bytes lie in the image as
// they are, in ascending order: no holes, no data in inodes, and nothing that
// the journal replaces.
func (f *FS) Locate(number uint64, visit func(off, length, image int64) error) error {
	i, err := f.existing(number, vfs.Regular)
	if err != nil {
		return err
	}
	if i.flags&flagInlineData != 0 {
		return fmt.Errorf("data in inode %d: %w", number, vfs.ErrUnsupported)
	}
	return f.runs(i, 0, f.blocksIn(i), func(block int64, r run) error {
		for r.count > 0 {
			plain := r.count
			if next, ok := f.journal.from(r.physical); ok {
				plain = min(plain, int64(next-r.physical))
			}
			if plain > 0 {
				off := block * f.blockSize
				length := min(plain*f.blockSize, i.size-off)
				if err := visit(off, length, int64(r.physical)*f.blockSize); err != nil {
					return err
				}
			}
			skip := min(plain+1, r.count) // and the block that the journal has
			block, r.physical, r.count = block+skip, r.physical+uint64(skip), r.count-skip
		}
		return nil
	})
}
