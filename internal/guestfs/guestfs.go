// Package guestfs reads the file systems in a guest's disks, without mounting
// them and without trusting them: every field comes from the guest.
//
// Nothing here opens a path, writes, or needs privileges. All bytes come from
// an Image. A disk is read as raw or as qcow2 by the caller's decision, never
// by its first bytes, since a guest can write any header into its raw disk.
package guestfs

import (
	"errors"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// The types of package vfs, under the names that callers use.
type (
	Image          = vfs.Image
	Prefetcher     = vfs.Prefetcher
	Type           = vfs.Type
	Info           = vfs.Info
	DirEntry       = vfs.DirEntry
	Extent         = vfs.Extent
	Description    = vfs.Description
	FS             = vfs.FS
	TreePrefetcher = vfs.TreePrefetcher
	Volume         = vfs.Volume
)

// Types of files; Unknown is that of a directory entry without one.
const (
	Unknown     = vfs.Unknown
	Regular     = vfs.Regular
	Directory   = vfs.Directory
	Symlink     = vfs.Symlink
	CharDevice  = vfs.CharDevice
	BlockDevice = vfs.BlockDevice
	FIFO        = vfs.FIFO
	Socket      = vfs.Socket
)

// Errors to test for with errors.Is.
var (
	ErrUnsupported = vfs.ErrUnsupported
	ErrDamaged     = vfs.ErrDamaged
	ErrNoBase      = vfs.ErrNoBase
	ErrMetacopy    = vfs.ErrMetacopy
)

// Volumes returns the file systems and partitions of a raw disk. A disk
// without a partition table is one volume.
func Volumes(disk Image) ([]Volume, error) { return nil, errors.ErrUnsupported }

// Open opens a volume's file system. The error wraps ErrUnsupported and names
// the format if it is known but cannot be read, and ErrDamaged if its
// structures contradict each other.
func Open(v Volume) (FS, error) { return nil, errors.ErrUnsupported }

// Upper returns the upper layer of an overlay as the guest sees it: its paths
// begin below /upper. Whiteouts and opaque directories are shown as they are;
// see IsWhiteout and IsOpaque. ReadAt and Extents of a file whose data lies
// in a lower layer return ErrMetacopy. The error wraps fs.ErrNotExist if the
// file system has no /upper.
func Upper(fsys FS) (FS, error) { return nil, errors.ErrUnsupported }

// IsWhiteout reports whether a file of an upper layer stands for a deletion.
func IsWhiteout(info Info) bool {
	return info.Type == CharDevice && info.Major == 0 && info.Minor == 0
}

// IsOpaque reports whether a directory of an upper layer hides the lower
// layers' directory of the same path.
func IsOpaque(fsys FS, dir uint64) (bool, error) { return false, errors.ErrUnsupported }

// IsMetacopy reports whether an upper layer holds only the metadata of a
// file. Its ReadAt outside of the Upper view returns zeros.
func IsMetacopy(fsys FS, inode uint64) (bool, error) { return false, errors.ErrUnsupported }

// OpenQcow2 returns the disk in a qcow2 file. base returns the backing file
// that the header names, as a raw disk; OpenQcow2 itself never opens a path.
// If base is nil or returns nil, reads of unallocated clusters fail with
// ErrNoBase. A qcow2 file with an external data file is refused.
func OpenQcow2(file Image, base func(name string) (Image, error)) (Image, error) {
	return nil, errors.ErrUnsupported
}
