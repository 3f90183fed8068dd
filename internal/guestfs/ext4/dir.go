package ext4

import (
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf8"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// maxDirSize bounds what one walk through a directory reads.
const maxDirSize = 4 << 30

// dirWindow is how much of a directory is asked for at once.
const dirWindow = 8 << 20

// ReadDir visits a directory's entries in the order of its blocks.
func (f *FS) ReadDir(number uint64, visit func(vfs.DirEntry) error) error {
	i, err := f.existing(number, vfs.Directory)
	if err != nil {
		return err
	}
	if err := f.remember(i); err != nil {
		return err
	}
	return f.entries(i, func(e dirent) error { return visit(e.DirEntry) })
}

// dirent is an entry of a directory.
type dirent struct{ vfs.DirEntry }

// fileTypes are the types that an entry may have: directory.rst.
var fileTypes = [...]vfs.Type{
	vfs.Unknown, vfs.Regular, vfs.Directory, vfs.CharDevice, vfs.BlockDevice, vfs.FIFO, vfs.Socket, vfs.Symlink,
}

// entries visits the entries of a directory, but "." and "..".
func (f *FS) entries(i *inode, visit func(dirent) error) error {
	if i.flags&flagEncrypt != 0 {
		return fmt.Errorf("inode %d is encrypted: %w", i.number, vfs.ErrUnsupported)
	}
	if i.flags&flagInlineData != 0 {
		data, err := f.inline(i)
		if err != nil || len(data) < 4 { // the first 4 bytes are the parent's inode
			return err
		}
		head := min(60, len(data))
		if err := f.parseEntries(i, data[4:head], visit); err != nil {
			return err
		}
		return f.parseEntries(i, data[head:], visit)
	}
	return f.dirBlocks(i, func(b []byte) error { return f.parseEntries(i, b, visit) })
}

// dirBlocks visits the blocks of a directory, asking for many at once.
func (f *FS) dirBlocks(i *inode, visit func(b []byte) error) error {
	if i.size > maxDirSize || i.size > f.img.Size() {
		return fmt.Errorf("%w: ext4 directory %d has %d bytes", vfs.ErrDamaged, i.number, i.size)
	}
	window := dirWindow / f.blockSize
	end := f.blocksIn(i)
	for at := int64(0); at < end; at += window {
		stop := min(end, at+window)
		if err := f.dirPart(i, at, stop, visit); err != nil {
			return err
		}
	}
	return nil
}

func (f *FS) dirPart(i *inode, at, stop int64, visit func(b []byte) error) error {
	var hints []vfs.Extent
	var runs []run
	err := f.runs(i, at, stop, func(_ int64, r run) error {
		runs = append(runs, r)
		hints = f.physical(hints, r.physical, r.count)
		return nil
	})
	if err != nil {
		return err
	}
	f.pages.Prefetch(hints)
	for _, r := range runs {
		for n := range uint64(r.count) {
			b, err := f.block(r.physical + n)
			if err != nil {
				return err
			}
			if err := visit(b); err != nil {
				return err
			}
		}
	}
	return nil
}

// parseEntries visits the entries in a block. Blocks of an index and the
// checksums at the ends of blocks are entries without an inode.
func (f *FS) parseEntries(i *inode, b []byte, visit func(dirent) error) error {
	for len(b) >= 8 {
		length := f.entryLength(le.Uint16(b[4:]))
		name := int(b[6])
		if length < 8 || length > len(b) || length%4 != 0 || 8+name > length {
			return fmt.Errorf("%w: ext4 directory %d: an entry of %d bytes with a name of %d", vfs.ErrDamaged, i.number, length, name)
		}
		e := dirent{vfs.DirEntry{Name: string(b[8 : 8+name]), Inode: uint64(le.Uint32(b))}}
		if f.incompat&incompatFiletype != 0 {
			if t := int(b[7]); t < len(fileTypes) {
				e.Type = fileTypes[t]
			}
		}
		b = b[length:]
		if e.Inode == 0 || e.Name == "." || e.Name == ".." {
			continue
		}
		if e.Name == "" || strings.ContainsAny(e.Name, "/\x00") {
			return fmt.Errorf("%w: ext4 directory %d: the name %q", vfs.ErrDamaged, i.number, e.Name)
		}
		if err := visit(e); err != nil {
			return err
		}
	}
	return nil
}

// entryLength decodes the length of an entry, whose 16 bits do not suffice
// for blocks of 64 KiB.
func (f *FS) entryLength(n uint16) int {
	switch {
	case f.blockSize < 65536:
		return int(n)
	case n == 0 || n == 65535:
		return 65536
	}
	return int(n&^3) | int(n&3)<<16
}

// errFound ends a walk through entries.
var errFound = fmt.Errorf("found")

// Lookup finds a name by the directory's index if it has one.
func (f *FS) Lookup(dir uint64, name string) (uint64, error) {
	i, err := f.existing(dir, vfs.Directory)
	if err != nil {
		return 0, err
	}
	if name == "" || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return 0, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	if i.flags&(flagIndex|flagInlineData|flagCasefold|flagEncrypt) == flagIndex {
		if found, known, err := f.lookupIndex(i, name); known || err != nil {
			return found, err
		}
	}
	var exact, folded uint64
	err = f.entries(i, func(e dirent) error {
		if e.Name == name {
			exact = e.Inode
			return errFound
		}
		if folded == 0 && i.flags&flagCasefold != 0 && utf8.ValidString(name) && strings.EqualFold(e.Name, name) {
			folded = e.Inode
		}
		return nil
	})
	switch {
	case err == errFound:
		return exact, nil
	case err != nil:
		return 0, err
	case folded != 0:
		return folded, nil
	}
	return 0, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
}

// find looks for a name in one block of a directory.
func (f *FS) find(i *inode, b []byte, name string) (found uint64, err error) {
	err = f.parseEntries(i, b, func(e dirent) error {
		if e.Name == name {
			found = e.Inode
			return errFound
		}
		return nil
	})
	if err == errFound {
		err = nil
	}
	return found, err
}
