package inside

import (
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside/wire"
)

func (f *FS) args(more ...uint64) []byte {
	e := wire.Encoder{}
	e.Num(f.number)
	for _, n := range more {
		e.Num(n)
	}
	return e.B
}

// Resolve returns the file at path; its name is the path without symbolic
// links. A link at the end is followed if follow is set.
func (f *FS) Resolve(path string, follow bool) (*File, error) {
	if len(path) > wire.MaxPath {
		return nil, fmt.Errorf("a path of %d bytes: %w", len(path), fs.ErrNotExist)
	}
	e := wire.Encoder{B: f.args()}
	e.Text(path, wire.MaxPath)
	e.Bool(follow)
	var found *File
	err := f.s.call(wire.Resolve, e.B, one(func(d *wire.Decoder) bool {
		file := d.File()
		found = &file
		return file.Stated && validFile(&file)
	}))
	if err == nil && found == nil {
		err = f.s.child.Misbehaved("a path led nowhere")
	}
	return found, err
}

// validFile reports whether a file's fields are consistent.
func validFile(f *File) bool {
	return f.Type <= byte(vfs.Socket) && f.Size >= 0 && f.Blocks >= 0 && !strings.ContainsRune(f.Target, 0) && !strings.ContainsRune(f.Name, 0)
}

// validName reports whether a directory may have an entry of that name.
func validName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= wire.MaxName && !strings.ContainsAny(name, "/\x00")
}

// List visits a directory's entries in no particular order. With stat, it
// returns all metadata of each.
func (f *FS) List(dir uint64, stat bool, visit func(File) error) error {
	e := wire.Encoder{B: f.args(dir)}
	e.Bool(stat)
	return f.s.call(wire.List, e.B, answers{item: func(d *wire.Decoder) error {
		file := d.File()
		if !d.Ok() || !validName(file.Name) || !validFile(&file) || stat && !file.Stated && file.Broken == "" {
			return errGarbage
		}
		return visit(file)
	}})
}

// PrepareTree lets the file system read in advance what a walk below dir
// will need, if it can.
func (f *FS) PrepareTree(dir uint64) error { return f.s.call(wire.Tree, f.args(dir), answers{}) }

// Range is a range of bytes.
type Range struct{ Offset, Length int64 }

// ReadRange writes n bytes of a regular file from offset off. It fails if
// there are fewer.
func (f *FS) ReadRange(inode uint64, w io.Writer, off, n int64) error {
	want := off
	err := f.s.call(wire.ReadAt, f.args(inode, uint64(off), uint64(n)), answers{data: func(at int64, p []byte) error {
		if at != want || int64(len(p)) > off+n-at {
			return errGarbage
		}
		want += int64(len(p))
		_, err := w.Write(p)
		return err
	}})
	if err == nil && want != off+n {
		return &guestError{fmt.Sprintf("a file ends after %d bytes of %d", want, off+n), wire.Damaged}
	}
	return err
}

// maxExtents bounds the extents of one file.
const maxExtents = 4 << 20

// Extents returns the ranges of a file of the given size that hold data;
// between them are holes.
func (f *FS) Extents(inode uint64, size int64) (all []Range, err error) {
	end := int64(0)
	err = f.s.call(wire.Extents, f.args(inode), answers{item: func(d *wire.Decoder) error {
		r := Range{int64(d.Num()), int64(d.Num())}
		if !d.Ok() || r.Offset < end || r.Length <= 0 || r.Offset > size || r.Length > size-r.Offset || len(all) >= maxExtents {
			return errGarbage
		}
		end = r.Offset + r.Length
		all = append(all, r)
		return nil
	}})
	return all, err
}

// DiskRange is a range of a file's bytes and its offset on the disk.
type DiskRange struct {
	Range
	Disk int64
}

// Locate returns where a file's bytes are on the disk, as far as they
// are stored there unencoded. It returns vfs.ErrUnsupported if that cannot
// be determined.
func (f *FS) Locate(inode uint64, size int64) (all []DiskRange, err error) {
	end := int64(0)
	err = f.s.call(wire.Locate, f.args(inode), answers{item: func(d *wire.Decoder) error {
		p := DiskRange{Range{int64(d.Num()), int64(d.Num())}, int64(d.Num())}
		if !d.Ok() || p.Offset < end || p.Length <= 0 || p.Offset > size || p.Length > size-p.Offset ||
			p.Disk < 0 || p.Disk > f.s.size || p.Length > f.s.size-p.Disk || len(all) >= maxExtents {
			return errGarbage
		}
		end = p.Offset + p.Length
		all = append(all, p)
		return nil
	}})
	return all, err
}

// Xattrs returns a file's extended attributes.
func (f *FS) Xattrs(inode uint64) (map[string]string, error) {
	const most = 4096
	all := map[string]string{}
	err := f.s.call(wire.Xattrs, f.args(inode), answers{item: func(d *wire.Decoder) error {
		name := d.Text(wire.MaxName)
		all[name] = d.Text(wire.MaxXattr)
		if !d.Ok() || len(all) > most {
			return errGarbage
		}
		return nil
	}})
	return all, err
}

// RawRange visits the parts of a range of the disk that are not zeros, in
// ascending order.
func (s *Session) RawRange(off, n int64, visit func(off int64, p []byte) error) error {
	e := wire.Encoder{}
	e.Num(uint64(off))
	e.Num(uint64(n))
	next := off
	return s.call(wire.Raw, e.B, answers{data: func(at int64, p []byte) error {
		if at < next || at > off+n || int64(len(p)) > off+n-at {
			return errGarbage
		}
		next = at + int64(len(p))
		return visit(at, p)
	}})
}
