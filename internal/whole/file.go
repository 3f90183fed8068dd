package whole

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// File is a file under construction, which gets its name on Commit. Only its
// owner may read and write it.
type File struct {
	*os.File
	place place
	path  string
	temp  string // its path until Commit; "" for an unnamed file
}

// Create begins a file that will replace path. If path is a symbolic link,
// Commit replaces the link's target, not the link.
func Create(path string) (*File, error) { return create(path, unix.O_TMPFILE) }

func create(path string, nameless int) (*File, error) {
	target, err := follow(path)
	if err != nil {
		var on *fs.PathError
		if errors.As(err, &on) { // a link or a directory on the path
			err = on.Err
		}
		return nil, &fs.PathError{Op: "create", Path: path, Err: err}
	}
	f := &File{place: placeOf(target), path: target}
	err = f.open(f.place.dir, nameless|unix.O_RDWR)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		err = f.createNamed()
	} else if err == nil {
		_ = tryLock(f.File) // cannot fail: no other process has the file
	}
	if err != nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: err}
	}
	return f, nil
}

// open opens name as a file with the final path as its name.
func (f *File) open(name string, flags int) error {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0o600)
	if err == nil {
		f.File = os.NewFile(uintptr(fd), f.path)
	}
	return err
}

// createNamed creates a named file, for file systems without unnamed files.
func (f *File) createNamed() error {
	for range tries {
		name := f.place.name()
		err := f.open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		mine, err := own(f.File, name)
		switch {
		case err != nil:
			return errors.Join(err, f.File.Close(), os.Remove(name))
		case mine:
			f.temp = name
			return nil
		}
		_ = f.File.Close()
	}
	return fs.ErrExist
}

// Commit writes the file to disk, gives it its name, and closes it.
func (f *File) Commit() error {
	if err := f.Sync(); err != nil {
		return err
	}
	if f.temp == "" {
		placed, err := f.link()
		if err != nil {
			return err
		}
		if placed {
			return errors.Join(syncDir(f.place.dir), f.File.Close())
		}
	}
	if err := os.Rename(f.temp, f.path); err != nil {
		return err
	}
	f.temp = ""
	return errors.Join(syncDir(f.place.dir), f.File.Close())
}

// link gives an unnamed file its final name. If that name is taken, it gives
// the file a temporary name instead.
func (f *File) link() (placed bool, err error) {
	fd := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	err = unix.Linkat(unix.AT_FDCWD, fd, unix.AT_FDCWD, f.path, unix.AT_SYMLINK_FOLLOW)
	if !errors.Is(err, unix.EEXIST) {
		return err == nil, os.NewSyscallError("linkat", err)
	}
	for range tries {
		name := f.place.name()
		err = unix.Linkat(unix.AT_FDCWD, fd, unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
		if err == nil {
			f.temp = name
			return false, nil
		}
		if !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	return false, os.NewSyscallError("linkat", err)
}

// Close discards the file unless it was committed.
func (f *File) Close() error {
	err := f.File.Close()
	if f.temp != "" {
		err = errors.Join(err, os.Remove(f.temp))
		f.temp = ""
	}
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
