package whole

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Dir is a directory under construction, which gets its name on Commit. Its
// files must be on disk by then.
type Dir struct {
	place  place
	target string
	temp   string // its path until Commit
	lock   *os.File
}

// MakeDir begins a directory that will replace path. An empty directory may
// exist at path.
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
			continue // another process has swept it
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

// Create creates a file in the directory, writable by its owner. Errors name
// the file by its final path.
func (d *Dir) Create(name string) (*os.File, error) {
	path := filepath.Join(d.target, name)
	fd, err := unix.Openat(int(d.lock.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Commit sets the directory's mode and gives it its name.
func (d *Dir) Commit(mode os.FileMode) error {
	if err := d.lock.Chmod(mode); err != nil {
		return err
	}
	if err := d.lock.Sync(); err != nil {
		return err
	}
	// Unlike rename(2), os.Rename does not replace an empty directory.
	if err := unix.Rename(d.temp, d.target); err != nil {
		return &os.PathError{Op: "make", Path: d.target, Err: err}
	}
	d.temp = ""
	return errors.Join(syncDir(d.place.dir), d.lock.Close())
}

// Close removes the directory unless it was committed.
func (d *Dir) Close() error {
	var err error
	if d.temp != "" {
		err = os.RemoveAll(d.temp)
		d.temp = ""
	}
	if d.lock != nil {
		_ = d.lock.Close() // it was opened only for its lock
	}
	return err
}
