// Package guestfs reads the file systems in a guest's disks, without mounting
// them and without trusting them: every field comes from the guest.
//
// Nothing here opens a path, writes, or needs privileges. All bytes come from
// an Image. A disk is read as raw or as qcow2 by the caller's decision, never
// by its first bytes, since a guest can write any header into its raw disk.
package guestfs

import "github.com/cocoonstack/epochfs/internal/guestfs/vfs"

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
