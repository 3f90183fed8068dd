package main

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside"
)

// dirTarget makes a copy in a directory. os.Root keeps every step inside it,
// whatever links are made meanwhile.
type dirTarget struct {
	name   string
	root   *os.Root
	allow  copyRules
	closed []closedDir // directories get their modes and times when they are complete
}

type closedDir struct {
	name string
	mode os.FileMode
	time time.Time
}

func newDirTarget(dir string, allow copyRules) (*dirTarget, error) {
	if err := os.Mkdir(dir, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &dirTarget{name: dir, root: root, allow: allow}, nil
}

func (t *dirTarget) close() { _ = t.root.Close() } // nothing is written by it

// failed returns err as an error of a file in the directory.
func (t *dirTarget) failed(name string, err error) error {
	return cannotWrite(path.Join(t.name, name), err)
}

func (t *dirTarget) dir(name string, f *inside.File) error {
	if err := t.root.Mkdir(name, 0o700); err != nil {
		return t.failed(name, err)
	}
	t.closed = append(t.closed, closedDir{name, t.allow.permissions(f), f.Modified})
	return t.own(name, f)
}

func (t *dirTarget) file(name string, f *inside.File, data contents) error {
	out, err := t.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return t.failed(name, err)
	}
	var wrong error
	err = data(func(off int64, p []byte) error {
		wrong = writeData(out, p, off)
		return wrong
	})
	if wrong == nil && err == nil {
		wrong = out.Truncate(f.Size)
	}
	if wrong == nil && err == nil {
		wrong = t.own(name, f) // before the mode: it clears setuid
	}
	if wrong == nil && err == nil {
		wrong = out.Chmod(t.allow.permissions(f))
	}
	if closing := out.Close(); wrong == nil {
		wrong = closing
	}
	if wrong == nil && err == nil {
		wrong = t.root.Chtimes(name, f.Modified, f.Modified)
	}
	if wrong != nil {
		err = t.failed(name, wrong)
	}
	if err != nil {
		_ = t.root.Remove(name) // an incomplete file is removed
	}
	return err
}

func (t *dirTarget) symlink(name string, f *inside.File) error {
	if err := t.root.Symlink(f.Target, name); err != nil {
		return t.failed(name, err)
	}
	return t.own(name, f)
}

func (t *dirTarget) hardlink(name, to string) error {
	return t.failed(name, t.root.Link(to, name))
}

func (t *dirTarget) device(name string, f *inside.File) error {
	kind := map[vfs.Type]uint32{vfs.CharDevice: unix.S_IFCHR, vfs.BlockDevice: unix.S_IFBLK, vfs.FIFO: unix.S_IFIFO}[vfs.Type(f.Type)]
	parent, err := t.root.Open(path.Dir(name))
	if err != nil {
		return t.failed(name, err)
	}
	defer parent.Close()
	if err := unix.Mknodat(int(parent.Fd()), path.Base(name), kind|0o600, int(unix.Mkdev(f.Major, f.Minor))); err != nil {
		return t.failed(name, err)
	}
	if err := t.own(name, f); err != nil {
		return err
	}
	return t.failed(name, t.root.Chmod(name, t.allow.permissions(f)))
}

// own sets a file's owner to the guest's, if requested.
func (t *dirTarget) own(name string, f *inside.File) error {
	if !t.allow.owners {
		return nil
	}
	return t.failed(name, t.root.Lchown(name, int(f.UID), int(f.GID)))
}

func (t *dirTarget) finish() error {
	for i := len(t.closed) - 1; i >= 0; i-- {
		d := t.closed[i]
		if err := errors.Join(t.root.Chmod(d.name, d.mode), t.root.Chtimes(d.name, d.time, d.time)); err != nil {
			return t.failed(d.name, err)
		}
	}
	return nil
}

// tarTarget writes a copy as a tar.
type tarTarget struct {
	w     *tar.Writer
	allow copyRules
}

func newTarTarget(w io.Writer, allow copyRules) *tarTarget {
	return &tarTarget{tar.NewWriter(w), allow}
}

// header starts an entry.
func (t *tarTarget) header(kind byte, name string, f *inside.File, size int64) *tar.Header {
	h := &tar.Header{Typeflag: kind, Name: name, Mode: int64(f.Mode), Size: size, ModTime: f.Modified, Format: tar.FormatPAX}
	if t.allow.owners {
		h.Uid, h.Gid = int(f.UID), int(f.GID)
	}
	return h
}

func (t *tarTarget) dir(name string, f *inside.File) error {
	return t.w.WriteHeader(t.header(tar.TypeDir, name+"/", f, 0))
}

func (t *tarTarget) file(name string, f *inside.File, data contents) error {
	begun := false
	begin := func() error {
		if begun {
			return nil
		}
		begun = true
		return t.w.WriteHeader(t.header(tar.TypeReg, name, f, f.Size))
	}
	// The header is written with the first bytes, so that an unreadable file
	// is left out.
	err := fillGaps(writeAfter{t.w, begin}, 0, f.Size, data)
	if err == nil {
		err = begin()
	}
	if err == nil {
		return nil
	}
	if begun {
		return errBrokenTar{err} // no entry can follow
	}
	return err
}

// errBrokenTar is an error after which a tar cannot be continued.
type errBrokenTar struct{ error }

func (e errBrokenTar) Unwrap() error { return e.error }

type writeAfter struct {
	w     io.Writer
	first func() error
}

func (w writeAfter) Write(p []byte) (int, error) {
	if err := w.first(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}

func (t *tarTarget) symlink(name string, f *inside.File) error {
	h := t.header(tar.TypeSymlink, name, f, 0)
	h.Linkname = f.Target
	return t.w.WriteHeader(h)
}

func (t *tarTarget) hardlink(name, to string) error {
	return t.w.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to, Format: tar.FormatPAX})
}

func (t *tarTarget) device(name string, f *inside.File) error {
	kind := map[vfs.Type]byte{vfs.CharDevice: tar.TypeChar, vfs.BlockDevice: tar.TypeBlock, vfs.FIFO: tar.TypeFifo}[vfs.Type(f.Type)]
	h := t.header(kind, name, f, 0)
	h.Devmajor, h.Devminor = int64(f.Major), int64(f.Minor)
	return t.w.WriteHeader(h)
}

func (t *tarTarget) finish() error { return t.w.Close() }
