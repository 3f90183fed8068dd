package whole

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Dir is a directory that gets its name when it is whole. What is in it
// must be on disk by then.
type Dir struct {
	Path string // where it is while it is made

	place  place
	target string
	lock   *os.File
}

// MakeDir begins a directory that path will name. An empty directory may
// be there.
func MakeDir(path string) (*Dir, error) {
	d := &Dir{place: placeOf(path), target: filepath.Clean(path)}
	for range tries {
		d.Path = d.place.name()
		err := os.Mkdir(d.Path, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		d.lock, err = os.Open(d.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was swept
		}
		mine := false
		if err == nil {
			mine, err = own(d.lock, d.Path)
		}
		switch {
		case err != nil:
			return nil, errors.Join(err, d.Close())
		case mine:
			return d, nil
		}
		_ = d.lock.Close()
	}
	return nil, &fs.PathError{Op: "mkdir", Path: path, Err: fs.ErrExist}
}

// Commit gives the directory its mode and its name.
func (d *Dir) Commit(mode os.FileMode) error {
	if err := d.lock.Chmod(mode); err != nil {
		return err
	}
	if err := d.lock.Sync(); err != nil {
		return err
	}
	// os.Rename does not replace an empty directory.
	if err := unix.Rename(d.Path, d.target); err != nil {
		return &os.PathError{Op: "make", Path: d.target, Err: err}
	}
	d.Path = ""
	return errors.Join(syncDir(d.place.dir), d.lock.Close())
}

// Close gives the directory up, unless it has its name.
func (d *Dir) Close() error {
	var err error
	if d.Path != "" {
		err = os.RemoveAll(d.Path)
		d.Path = ""
	}
	if d.lock != nil {
		_ = d.lock.Close() // it was only locked
	}
	return err
}
