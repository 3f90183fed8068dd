package ext4

import (
	"fmt"
	"io/fs"
	"sort"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// maxCollisions bounds how many blocks of a directory are read for one name:
// those after the first hold names of the same hash.
const maxCollisions = 1 << 12

// indexNode is a node of a directory's hash tree: pairs of a hash and a block
// of the directory, sorted, of which the first has no hash.
type indexNode struct {
	entries []byte
	at      int
}

func (n *indexNode) count() int { return len(n.entries) / 8 }

func (n *indexNode) hash(k int) uint32 {
	if k == 0 {
		return 0
	}
	return le.Uint32(n.entries[8*k:])
}

func (n *indexNode) block() int64 { return int64(le.Uint32(n.entries[8*n.at+4:]) & 0x0fffffff) }

// parseIndex reads the entries that begin at an offset in a block; the first
// one's hash is their limit and their count.
func parseIndex(b []byte, offset int) (*indexNode, error) {
	if offset+8 > len(b) {
		return nil, fmt.Errorf("%w: index begins at %d", vfs.ErrDamaged, offset)
	}
	count := int(le.Uint16(b[offset+2:]))
	if count == 0 || offset+8*count > len(b) {
		return nil, fmt.Errorf("%w: index has %d entries", vfs.ErrDamaged, count)
	}
	return &indexNode{entries: b[offset : offset+8*count]}, nil
}

// lookupIndex finds a name by the hash tree: directory.rst. It does not know
// the answer if the tree is of a kind that it cannot read; the caller then
// reads the whole directory, as the kernel does.
func (f *FS) lookupIndex(i *inode, name string) (found uint64, known bool, err error) {
	root, err := f.dirBlock(i, 0)
	if err != nil {
		return 0, false, err
	}
	version, length, levels := root[0x1c], int(root[0x1d]), int(root[0x1e])
	maxLevels := 2
	if f.incompat&incompatLargedir != 0 {
		maxLevels = 3
	}
	hash, ok := f.hash(name, version)
	if !ok || length != 8 || levels >= maxLevels {
		return 0, false, nil
	}
	path := make([]*indexNode, levels+1)
	b, offset := root, 0x18+length
	for k := range path {
		if path[k], err = parseIndex(b, offset); err != nil {
			return 0, false, nil
		}
		n := path[k]
		n.at = sort.Search(n.count(), func(k int) bool { return n.hash(k) > hash }) - 1
		if k < levels {
			if b, err = f.dirBlock(i, n.block()); err != nil {
				return 0, false, err
			}
			offset = 8
		}
	}
	for range maxCollisions {
		leaf, err := f.dirBlock(i, path[levels].block())
		if err != nil {
			return 0, false, err
		}
		if found, err := f.find(i, leaf, name); found != 0 || err != nil {
			return found, true, err
		}
		more, err := f.nextLeaf(i, path, hash)
		if err != nil {
			return 0, false, err
		}
		if !more {
			return 0, true, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
		}
	}
	return 0, false, nil
}

// nextLeaf moves path to the next leaf, and reports whether that one goes on
// with the names of the same hash.
func (f *FS) nextLeaf(i *inode, path []*indexNode, hash uint32) (bool, error) {
	k := len(path) - 1
	for ; ; k-- {
		if k < 0 {
			return false, nil
		}
		if path[k].at+1 < path[k].count() {
			break
		}
	}
	path[k].at++
	if path[k].hash(path[k].at)&^1 != hash {
		return false, nil
	}
	for ; k+1 < len(path); k++ {
		b, err := f.dirBlock(i, path[k].block())
		if err != nil {
			return false, err
		}
		if path[k+1], err = parseIndex(b, 8); err != nil {
			return false, err
		}
	}
	return true, nil
}

// dirBlock reads one block of a directory.
func (f *FS) dirBlock(i *inode, block int64) ([]byte, error) {
	if block >= f.blocksIn(i) {
		return nil, fmt.Errorf("%w: ext4 directory %d: block %d of %d", vfs.ErrDamaged, i.number, block, f.blocksIn(i))
	}
	r, err := f.mapped(i, block, block+1)
	if err != nil {
		return nil, err
	}
	if r.hole {
		return nil, fmt.Errorf("%w: ext4 directory %d: block %d is a hole", vfs.ErrDamaged, i.number, block)
	}
	return f.block(r.physical)
}
