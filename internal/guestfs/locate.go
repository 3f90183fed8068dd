package guestfs

import "fmt"

// Locator is an FS that knows where in its image a regular file's bytes lie.
type Locator interface {
	// Locate visits the ranges of a file whose bytes lie in the image as they
	// are, in ascending order: no holes, and nothing that is compressed, in an
	// inode or in a log. The error wraps ErrUnsupported if that cannot be told.
	Locate(inode uint64, visit func(off, length, image int64) error) error
}

func locate(fsys FS, inode uint64, visit func(off, length, image int64) error) (err error) {
	l, ok := fsys.(Locator)
	if !ok {
		return fmt.Errorf("where files lie: %w", ErrUnsupported)
	}
	defer recovered(&err)
	return l.Locate(inode, visit)
}

func (g guarded) Locate(inode uint64, visit func(off, length, image int64) error) error {
	return locate(g.FS, inode, visit)
}

func (u *upper) Locate(inode uint64, visit func(off, length, image int64) error) error {
	if err := u.hasData(inode); err != nil {
		return err
	}
	return locate(u.FS, inode, visit)
}
