package guestfs

import (
	"errors"
	"fmt"
	"io/fs"
)

// Attributes of overlayfs: Documentation/filesystems/overlayfs.rst. Those of
// mounts with "userxattr" begin with "user." instead, and are not looked at:
// any process of the guest could set them.
const (
	xattrOpaque   = "trusted.overlay.opaque"
	xattrMetacopy = "trusted.overlay.metacopy"
	xattrWhiteout = "trusted.overlay.whiteout"
)

// Upper returns the upper layer of an overlay as the guest sees it: its paths
// begin below /upper. Whiteouts and opaque directories are shown as they are;
// see IsWhiteout and IsOpaque. ReadAt and Extents of a file whose data lies
// in a lower layer return ErrMetacopy. The error wraps fs.ErrNotExist if the
// file system has no /upper.
func Upper(fsys FS) (FS, error) {
	root, err := fsys.Lookup(fsys.Root(), "upper")
	if err != nil {
		return nil, err
	}
	info, err := fsys.Stat(root)
	if err != nil {
		return nil, err
	}
	if info.Type != Directory {
		return nil, fmt.Errorf("upper is not a directory: %w", fs.ErrNotExist)
	}
	return &upper{FS: fsys, root: root}, nil
}

// upper shows a file system from one of its directories on.
type upper struct {
	FS
	root uint64
}

func (u *upper) Root() uint64 { return u.root }

// Stat shows a whiteout of either form as a device: those of layers that were
// made inside of another overlay are empty files with an attribute.
func (u *upper) Stat(inode uint64) (Info, error) {
	info, err := u.FS.Stat(inode)
	if err != nil || info.Type != Regular || info.Size != 0 {
		return info, err
	}
	all, err := u.FS.Xattrs(inode)
	if _, ok := all[xattrWhiteout]; ok && err == nil {
		info.Type, info.Major, info.Minor = CharDevice, 0, 0
	}
	return info, nil
}

func (u *upper) ReadAt(inode uint64, p []byte, off int64) (int, error) {
	if err := u.hasData(inode); err != nil {
		return 0, err
	}
	return u.FS.ReadAt(inode, p, off)
}

func (u *upper) Extents(inode uint64, visit func(Extent) error) error {
	if err := u.hasData(inode); err != nil {
		return err
	}
	return u.FS.Extents(inode, visit)
}

func (u *upper) hasData(inode uint64) error {
	metacopy, err := IsMetacopy(u.FS, inode)
	if err != nil || !metacopy {
		return err
	}
	return ErrMetacopy
}

// PrefetchTree passes the hint on.
func (u *upper) PrefetchTree(dir uint64) error {
	if p, ok := u.FS.(TreePrefetcher); ok {
		return p.PrefetchTree(dir)
	}
	return nil
}

// IsWhiteout reports whether a file of an upper layer stands for a deletion.
func IsWhiteout(info Info) bool {
	return info.Type == CharDevice && info.Major == 0 && info.Minor == 0
}

// IsOpaque reports whether a directory of an upper layer hides the lower
// layers' directory of the same path.
func IsOpaque(fsys FS, dir uint64) (bool, error) {
	all, err := fsys.Xattrs(dir)
	return string(all[xattrOpaque]) == "y", without(err)
}

// IsMetacopy reports whether an upper layer holds only the metadata of a
// file. Its ReadAt outside of the Upper view returns zeros.
func IsMetacopy(fsys FS, inode uint64) (bool, error) {
	all, err := fsys.Xattrs(inode)
	_, ok := all[xattrMetacopy]
	return ok, without(err)
}

// without takes a format that has no attributes for a file that has none.
func without(err error) error {
	if errors.Is(err, ErrUnsupported) {
		return nil
	}
	return err
}
