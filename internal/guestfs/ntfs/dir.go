package ntfs

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// indexNames is the name of the index of a directory's names.
const indexNames = "$I30"

// nameDOS is the namespace of a short name, which a file has besides its own.
const nameDOS = 2

// Bounds on directories: of all their nodes, and of the depth of their tree.
const (
	maxIndex = 1 << 30
	maxDepth = 32
)

// dirWindow is how much of a directory is asked for at once.
const dirWindow = 8 << 20

var errFound = errors.New("found")

// index is a directory: a root in its record, and nodes in clusters.
type index struct {
	f        *FS
	number   uint64
	root     []byte
	nodes    *stream // nil if the root has all
	nodeSize int64
}

// entry is a name in a directory.
type entry struct {
	vfs.DirEntry
	units   []uint16
	dos     bool
	last    bool
	subnode int64 // in clusters (or 512 bytes), -1 if there is none
}

func (f *FS) index(number uint64) (*index, error) {
	r, err := f.existing(number)
	if err != nil {
		return nil, err
	}
	if !r.directory {
		return nil, fmt.Errorf("inode %d: %w", number, fs.ErrInvalid)
	}
	x := &index{f: f, number: number}
	root, err := f.stream(r, typeIndexRoot, indexNames)
	if err != nil {
		return nil, err
	}
	if !root.resident || len(root.value) < 32 {
		return nil, damaged("directory %d has no root", number)
	}
	x.root, x.nodeSize = root.value[16:], int64(le.Uint32(root.value[8:]))
	if x.nodes, err = f.stream(r, typeIndexAllocation, indexNames); errors.Is(err, fs.ErrNotExist) {
		x.nodes = nil
		return x, nil
	}
	if err != nil {
		return nil, err
	}
	if x.nodeSize < 512 || x.nodeSize > 64<<10 || x.nodeSize&(x.nodeSize-1) != 0 || x.nodes.resident || x.nodes.size > maxIndex {
		return nil, damaged("directory %d: %d bytes of nodes of %d", number, x.nodes.size, x.nodeSize)
	}
	return x, nil
}

// entries visits the entries behind a node's header.
func (x *index) entries(b []byte, visit func(*entry) error) error {
	if len(b) < 16 {
		return damaged("directory %d: node of %d bytes", x.number, len(b))
	}
	at, end := int64(le.Uint32(b)), int64(le.Uint32(b[4:]))
	if end > int64(len(b)) {
		return damaged("directory %d: node of %d bytes", x.number, end)
	}
	for at+16 <= end {
		length, key, flags := int64(le.Uint16(b[at+8:])), int64(le.Uint16(b[at+10:])), le.Uint16(b[at+12:])
		if length < 16 || at+length > end || 16+key > length {
			return damaged("directory %d: entry of %d bytes", x.number, length)
		}
		e := &entry{last: flags&2 != 0, subnode: -1}
		if flags&1 != 0 && length >= 24 {
			e.subnode = int64(le.Uint64(b[at+length-8:]))
		}
		if !e.last {
			if err := x.name(e, b[at:at+length], b[at+16:at+16+key]); err != nil {
				return err
			}
		}
		if err := visit(e); err != nil {
			return err
		}
		if e.last {
			return nil
		}
		at += length
	}
	return nil
}

// name decodes the entry's key: a copy of an attribute with a file's name.
func (x *index) name(e *entry, b, key []byte) error {
	if len(key) < 66 || 66+2*int(key[64]) > len(key) {
		return damaged("directory %d: name of %d bytes", x.number, len(key))
	}
	e.Inode = le.Uint64(b) & (1<<48 - 1)
	e.dos = key[65] == nameDOS
	for k := range int(key[64]) {
		e.units = append(e.units, le.Uint16(key[66+2*k:]))
	}
	e.Name = string(utf16.Decode(e.units))
	const directory = 0x10000000
	switch flags := le.Uint32(key[56:]); {
	case flags&fileReparse != 0: // a link, perhaps
	case flags&directory != 0:
		e.Type = vfs.Directory
	case flags&fileSystem == 0:
		e.Type = vfs.Regular
	}
	return nil
}

// node reads a node that lies in clusters.
func (x *index) node(off int64) ([]byte, error) {
	if off < 0 || off > x.nodes.size-x.nodeSize {
		return nil, damaged("directory %d: node at %d of %d", x.number, off, x.nodes.size)
	}
	b := make([]byte, x.nodeSize)
	if place, n := x.f.place(x.nodes, off); n >= x.nodeSize {
		cached, err := x.f.pages.Bytes(place, len(b))
		if err != nil {
			return nil, err
		}
		copy(b, cached)
	} else if _, err := x.f.readStream(x.nodes, b, off, nil); err != nil {
		return nil, err
	}
	if string(b[:4]) != "INDX" {
		return nil, damaged("directory %d: node without a magic number", x.number)
	}
	if err := fixup(b); err != nil {
		return nil, err
	}
	return b[24:], nil
}

// all visits all entries: those of the root, and of each node that the bitmap
// has in use. So no tree has to be followed.
func (x *index) all(visit func(*entry) error) error {
	if err := x.entries(x.root, visit); err != nil || x.nodes == nil {
		return err
	}
	r, err := x.f.existing(x.number)
	if err != nil {
		return err
	}
	used, err := x.f.stream(r, typeBitmap, indexNames)
	if err != nil {
		return err
	}
	bitmap := make([]byte, min(used.size, x.nodes.size/x.nodeSize/8+1))
	if _, err := x.f.readStream(used, bitmap, 0, nil); err != nil {
		return err
	}
	for n := int64(0); n < x.nodes.size/x.nodeSize && n/8 < int64(len(bitmap)); n++ {
		off := n * x.nodeSize
		if off%dirWindow == 0 {
			x.prefetch(off, min(x.nodes.size, off+dirWindow))
		}
		if bitmap[n/8]>>(n%8)&1 == 0 {
			continue
		}
		b, err := x.node(off)
		if err != nil {
			return err
		}
		if err := x.entries(b, visit); err != nil {
			return err
		}
	}
	return nil
}

func (x *index) prefetch(off, end int64) {
	var hints []vfs.Extent
	for off < end && len(hints) < maxPieces {
		place, n := x.f.place(x.nodes, off)
		if n == 0 {
			return
		}
		n = min(n, end-off)
		hints = append(hints, vfs.Extent{Offset: place, Length: n})
		off += n
	}
	x.f.pages.Prefetch(hints)
}

// shown reports whether an entry is a file's own name, and not one of the
// file system's files.
func (e *entry) shown() bool { return !e.last && !e.dos && e.Inode >= firstUser }

// ReadDir visits a directory's entries, one for each file.
func (f *FS) ReadDir(number uint64, visit func(vfs.DirEntry) error) error {
	x, err := f.index(number)
	if err != nil {
		return err
	}
	err = f.neighbours.Remember(func(add func(uint64) bool) error {
		err := x.all(func(e *entry) error {
			if e.shown() && !add(e.Inode) {
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
	return x.all(func(e *entry) error {
		switch {
		case !e.shown():
			return nil
		case e.Name == "" || e.Name == "." || e.Name == ".." || strings.ContainsAny(e.Name, "/\x00"):
			return damaged("directory %d: the name %q", number, e.Name)
		}
		return visit(e.DirEntry)
	})
}

// Lookup finds a name in the tree, or else in any case among all of the
// directory's names, the short ones too.
func (f *FS) Lookup(dir uint64, name string) (uint64, error) {
	x, err := f.index(dir)
	if err != nil {
		return 0, err
	}
	if name == "" || name == "." || name == ".." {
		return 0, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	found, err := x.search(utf16.Encode([]rune(name)))
	if err != nil || found >= firstUser {
		return found, err
	}
	err = x.all(func(e *entry) error {
		switch {
		case e.last || e.Inode < firstUser:
		case e.Name == name:
			found = e.Inode
			return errFound
		case found == 0 && strings.EqualFold(e.Name, name):
			found = e.Inode
		}
		return nil
	})
	switch {
	case err != nil && err != errFound:
		return 0, err
	case found != 0:
		return found, nil
	}
	return 0, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
}

// search walks down the tree. Names are sorted without regard to case, by a
// table of the file system's; Go's may differ from it in rare characters, so
// a name that is not found may still exist.
func (x *index) search(name []uint16) (found uint64, err error) {
	b := x.root
	for range maxDepth {
		next := int64(-1)
		err := x.entries(b, func(e *entry) error {
			if order := collate(name, e.units); !e.last && order > 0 {
				return nil
			} else if !e.last && order == 0 {
				found = e.Inode
			}
			next = e.subnode
			return errFound
		})
		if err != nil && err != errFound || found != 0 || next < 0 || x.nodes == nil {
			return found, without(err)
		}
		unit := x.f.clusterSize
		if x.nodeSize < unit {
			unit = 512
		}
		if next > x.nodes.size/unit {
			return 0, damaged("directory %d: node %d", x.number, next)
		}
		if b, err = x.node(next * unit); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

func without(err error) error {
	if err == errFound {
		return nil
	}
	return err
}

func upper(u uint16) uint16 {
	if r := unicode.ToUpper(rune(u)); r < 0x10000 {
		return uint16(r)
	}
	return u
}

// collate compares names without regard to case, and equal ones by it.
func collate(a, b []uint16) int {
	for k := range min(len(a), len(b)) {
		if x, y := upper(a[k]), upper(b[k]); x != y {
			return int(x) - int(y)
		}
	}
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return slices.Compare(a, b)
}
