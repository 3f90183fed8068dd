// Package vfs declares what the readers of guests' file systems share: the
// image that they read from, and the file system that they show.
package vfs

import (
	"errors"
	"io"
	"time"
)

var (
	// ErrUnsupported is wrapped with the name of what cannot be read.
	ErrUnsupported = errors.New("not supported")
	// ErrDamaged is wrapped with the structure that contradicts itself.
	ErrDamaged = errors.New("damaged")
	// ErrNoBase is wrapped with the name of the missing backing file.
	ErrNoBase = errors.New("the backing file is missing")
	// ErrMetacopy is returned for the data of a file of which the upper layer
	// holds only the metadata.
	ErrMetacopy = errors.New("only its metadata changed; its contents are in the image")
)

// Image is a disk or a volume. ReadAt fills p or fails, so a short read
// cannot look like success. Size is in bytes. It is safe for concurrent use.
type Image interface {
	io.ReaderAt
	Size() int64
}

// Prefetcher is an Image that can load several ranges at once. Prefetch is a
// hint: it reports nothing, and a later ReadAt returns the error. Ranges may
// overlap, lie beyond the end, and come in any order.
type Prefetcher interface {
	Prefetch(ranges []Extent)
}

// Type is the type of a file.
type Type uint8

// Types of files; Unknown is that of a directory entry without one.
const (
	Unknown Type = iota
	Regular
	Directory
	Symlink
	CharDevice
	BlockDevice
	FIFO
	Socket
)

// Info is the metadata of a file.
type Info struct {
	Inode        uint64
	Type         Type
	Mode         uint16 // permissions, setuid, setgid and sticky: 07777
	Links        uint32
	UID, GID     uint32
	Size, Blocks int64 // Blocks in units of 512 bytes
	Modified     time.Time
	Changed      time.Time
	Accessed     time.Time
	Major, Minor uint32 // of devices
}

// DirEntry is a name in a directory.
type DirEntry struct {
	Name  string
	Inode uint64
	Type  Type
}

// Extent is a range of bytes: of a file's data, or of an image.
type Extent struct{ Offset, Length int64 }

// Description describes a whole file system.
type Description struct {
	Type, Label, UUID string
	Size              int64
	// State is "clean", "recovered in memory (N transactions)", or begins
	// with "journal not replayed".
	State string
}

// FS reads one file system. It is safe for concurrent use. Errors wrap
// fs.ErrNotExist, fs.ErrInvalid (wrong type of file), ErrDamaged,
// ErrUnsupported, or the Image's error.
type FS interface {
	Describe() Description
	Root() uint64
	Stat(inode uint64) (Info, error)
	Lookup(dir uint64, name string) (uint64, error)
	// ReadDir calls visit for each entry but "." and "..", in the order of
	// the disk, and ends early with visit's error. No name is empty or
	// contains a slash or a zero byte.
	ReadDir(dir uint64, visit func(DirEntry) error) error
	// ReadAt follows io.ReaderAt: io.EOF at the end of the file.
	ReadAt(inode uint64, p []byte, off int64) (int, error)
	// Extents visits the data of a regular file in ascending order, joined
	// and cut at the file's size; between them are holes, which read as
	// zeros.
	Extents(inode uint64, visit func(Extent) error) error
	Readlink(inode uint64) (string, error)
	Xattrs(inode uint64) (map[string][]byte, error)
}

// TreePrefetcher is an FS that can ask its Image for the metadata of a whole
// tree, the directories and inodes below dir, in a few large reads. It is a
// hint for callers that are about to walk the tree; an error is one that the
// walk will meet again.
type TreePrefetcher interface {
	PrefetchTree(dir uint64) error
}

// Volume is a file system or a partition of a disk.
type Volume struct {
	Number       int    // counts from 1 in the order of Volumes
	Name         string // "" of a disk without a table, else p1, vg0/root
	Type         string // ext4, ntfs, swap, lvm, luks, btrfs, unknown ...
	Label        string
	Offset, Size int64 // Offset in the disk; -1 if the volume is not in one piece
	Image        Image
}
