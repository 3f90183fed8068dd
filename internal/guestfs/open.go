package guestfs

import (
	"fmt"

	"github.com/cocoonstack/epochfs/internal/guestfs/ext4"
	"github.com/cocoonstack/epochfs/internal/guestfs/fat"
	"github.com/cocoonstack/epochfs/internal/guestfs/ntfs"
	"github.com/cocoonstack/epochfs/internal/guestfs/qcow2"
	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/guestfs/volumes"
	"github.com/cocoonstack/epochfs/internal/guestfs/xfs"
)

// openers open the formats that can be read, by the names that
// volumes.Probe gives them.
var openers = map[string]func(Image) (FS, error){
	"ext2": as(ext4.Open), "ext3": as(ext4.Open), "ext4": as(ext4.Open),
	"vfat": as(fat.Open), "xfs": as(xfs.Open), "ntfs": as(ntfs.Open),
}

// as makes an opener of a package's Open.
func as[T FS](open func(Image) (T, error)) func(Image) (FS, error) {
	return func(img Image) (FS, error) {
		fsys, err := open(img)
		if err != nil {
			return nil, err
		}
		return fsys, nil
	}
}

// Volumes returns the partitions of a raw disk and after them its logical
// volumes. A disk without a partition table is one volume.
func Volumes(disk Image) (all []Volume, err error) {
	defer recovered(&err)
	return volumes.List(disk)
}

// Open opens a volume's file system. The error wraps ErrUnsupported and names
// the format if it is known but cannot be read, and ErrDamaged if its
// structures contradict each other.
func Open(v Volume) (opened FS, err error) {
	defer recovered(&err)
	kind := v.Type
	if kind == "" {
		head := make([]byte, min(volumes.ProbeSize, v.Image.Size()))
		if err := vfs.ReadFull(v.Image, head, 0); err != nil {
			return nil, err
		}
		kind, _ = volumes.Probe(head)
	}
	open := openers[kind]
	switch {
	case open != nil:
	case kind == volumes.LVMDamaged:
		return nil, fmt.Errorf("%w: LVM metadata", ErrDamaged)
	case kind == volumes.Unknown:
		return nil, fmt.Errorf("unknown file system: %w", ErrUnsupported)
	default:
		return nil, fmt.Errorf("%s: %w", kind, ErrUnsupported)
	}
	fsys, err := open(v.Image)
	if err != nil {
		return nil, err
	}
	return guarded{fsys}, nil
}

// OpenQcow2 returns the disk in a qcow2 file. base returns the backing file
// that the header names, as a raw disk; OpenQcow2 itself never opens a path.
// If base is nil or returns nil, reads of unallocated clusters fail with
// ErrNoBase. A qcow2 file with an external data file is refused.
func OpenQcow2(file Image, base func(name string) (Image, error)) (img Image, err error) {
	defer recovered(&err)
	q, err := qcow2.Open(file, base)
	if err != nil {
		return nil, err
	}
	return q, nil
}
