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
	place  place
	target string
	temp   string // where it is while it is made
	lock   *os.File
}

// MakeDir begins a directory that path will name. An empty directory may
// be there.
func MakeDir(path string) (*Dir, error) {
	d := &Dir{place: placeOf(path), target: filepath.Clean(path)}
	if err := d.make(); err != nil {
		return nil, &fs.PathError{Op: "make", Path: path, Err: err}
	}
	return d, nil
}

func (d *Dir) make() error {
	for range tries {
		d.temp = d.place.name()
		err := unix.Mkdir(d.temp, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		d.lock, err = os.Open(d.temp)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was swept
		}
		mine := false
		if err == nil {
			mine, err = own(d.lock, d.temp)
		}
		switch {
		case err != nil:
			return errors.Join(err, d.Close())
		case mine:
			return nil
		}
		_ = d.lock.Close()
	}
	return fs.ErrExist
}

// Create makes a file in it, for its owner to write. Errors name the file
// as it will be called.
func (d *Dir) Create(name string) (*os.File, error) {
	path := filepath.Join(d.target, name)
	fd, err := unix.Openat(int(d.lock.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
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
	if err := unix.Rename(d.temp, d.target); err != nil {
		return &os.PathError{Op: "make", Path: d.target, Err: err}
	}
	d.temp = ""
	return errors.Join(syncDir(d.place.dir), d.lock.Close())
}

// Close gives the directory up, unless it has its name.
func (d *Dir) Close() error {
	var err error
	if d.temp != "" {
		err = os.RemoveAll(d.temp)
		d.temp = ""
	}
	if d.lock != nil {
		_ = d.lock.Close() // it was only locked
	}
	return err
}
