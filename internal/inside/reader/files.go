package reader

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/cocoonstack/epochfs/internal/guestfs"
	"github.com/cocoonstack/epochfs/internal/inside/wire"
)

// statBatch is the number of a directory's entries that are sorted by inode
// before the inodes are read: neighbours share a block.
const statBatch = 4096

// list sends a directory's entries, in no particular order.
func (s *server) list(fsys system, d *wire.Decoder) error {
	dir, stat := d.Num(), d.Bool()
	var batch []guestfs.DirEntry
	flush := func() error {
		slices.SortFunc(batch, func(a, b guestfs.DirEntry) int { return compare(a.Inode, b.Inode) })
		for _, entry := range batch {
			f := wire.File{Name: entry.Name, Inode: entry.Inode, Type: byte(entry.Type)}
			if stat || entry.Type == guestfs.Unknown {
				if err := s.describe(fsys, &f, stat); err != nil {
					return err
				}
			}
			if err := s.item(func(e *wire.Encoder) { e.File(&f) }); err != nil {
				return err
			}
		}
		batch = batch[:0]
		return nil
	}
	err := fsys.ReadDir(dir, func(entry guestfs.DirEntry) error {
		if batch = append(batch, entry); len(batch) < statBatch {
			return nil
		}
		return flush()
	})
	return errors.Join(flush(), err)
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// describe sets the metadata of a file. A broken file is no error, because
// the others can still be shown.
func (s *server) describe(fsys system, f *wire.File, all bool) error {
	err := s.stat(fsys, f, all)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errImage):
		return err
	}
	f.Broken = err.Error()
	return nil
}

func (s *server) stat(fsys system, f *wire.File, all bool) error {
	info, err := fsys.Stat(f.Inode)
	if err != nil {
		return err
	}
	if info.Type == guestfs.Unknown {
		return fmt.Errorf("inode %d: %w: no type of file", f.Inode, guestfs.ErrDamaged)
	}
	f.Type, f.Stated = byte(info.Type), true
	f.Mode, f.Links, f.UID, f.GID = info.Mode&0o7777, info.Links, info.UID, info.GID
	f.Size, f.Blocks, f.Major, f.Minor = info.Size, info.Blocks, info.Major, info.Minor
	f.Modified, f.Changed, f.Accessed = info.Modified, info.Changed, info.Accessed
	if info.Type == guestfs.Symlink && all {
		if f.Target, err = fsys.Readlink(f.Inode); err != nil {
			return err
		}
	}
	if !fsys.upper {
		return nil
	}
	f.Whiteout = guestfs.IsWhiteout(info)
	switch info.Type {
	case guestfs.Directory:
		f.Opaque, err = guestfs.IsOpaque(fsys.FS, f.Inode)
	case guestfs.Regular:
		f.Metacopy, err = guestfs.IsMetacopy(fsys.FS, f.Inode)
	}
	return err
}

// readAt sends a range of a file.
func (s *server) readAt(fsys system, d *wire.Decoder) error {
	inode, off, n := d.Num(), int64(d.Num()), int64(d.Num())
	if !d.Ok() || off < 0 || n < 0 {
		return fs.ErrInvalid
	}
	if meta, err := guestfs.IsMetacopy(fsys.FS, inode); err == nil && meta {
		return guestfs.ErrMetacopy
	}
	buf := make([]byte, min(n, wire.MaxRead))
	for n > 0 {
		p := buf[:min(n, int64(len(buf)))]
		got, err := fsys.ReadAt(inode, p, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if got == 0 {
			return nil
		}
		if err := s.data(off, p[:got]); err != nil {
			return err
		}
		off, n = off+int64(got), n-int64(got)
	}
	return nil
}

// data sends bytes of a file or a disk.
func (s *server) data(off int64, p []byte) error {
	e := wire.Encoder{B: s.conn.Buffer()}
	e.Num(uint64(off))
	return s.send(wire.Data, append(e.B, p...))
}

// raw sends a range of the disk, except zeros.
func (s *server) raw(d *wire.Decoder) error {
	off, n := int64(d.Num()), int64(d.Num())
	if !d.Ok() || s.disk == nil || off < 0 || n < 0 || off > s.disk.Size() || n > s.disk.Size()-off {
		return fs.ErrInvalid
	}
	buf := make([]byte, min(n, wire.MaxRead))
	for n > 0 {
		p := buf[:min(n, int64(len(buf)))]
		if _, err := s.disk.ReadAt(p, off); err != nil {
			return err
		}
		if err := s.nonzero(off, p); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// grain is the smallest run of zeros that is left out, in bytes.
const grain = 64 << 10

func (s *server) nonzero(off int64, p []byte) error {
	for from := 0; from < len(p); {
		to := from
		for to < len(p) && !zeros(p[to:min(len(p), to+grain)]) {
			to = min(len(p), to+grain)
		}
		if to > from {
			if err := s.data(off+int64(from), p[from:to]); err != nil {
				return err
			}
		}
		from = to + grain
	}
	return nil
}

func zeros(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeroBlock))
		if string(p[:n]) != zeroBlock[:n] {
			return false
		}
		p = p[n:]
	}
	return true
}

var zeroBlock = string(make([]byte, 4096))

func (s *server) extents(fsys system, d *wire.Decoder) error {
	return fsys.Extents(d.Num(), func(x guestfs.Extent) error {
		return s.item(func(e *wire.Encoder) {
			e.Num(uint64(x.Offset))
			e.Num(uint64(x.Length))
		})
	})
}

func (s *server) xattrs(fsys system, d *wire.Decoder) error {
	all, err := fsys.Xattrs(d.Num())
	if err != nil {
		return err
	}
	for name, value := range all {
		if err := s.item(func(e *wire.Encoder) {
			e.Text(name, wire.MaxName)
			e.Text(string(value), wire.MaxXattr)
		}); err != nil {
			return err
		}
	}
	return nil
}

// tree prepares for a walk, if the file system can.
func (s *server) tree(fsys system, d *wire.Decoder) error {
	if t, ok := fsys.FS.(guestfs.TreePrefetcher); ok {
		return t.PrefetchTree(d.Num())
	}
	return nil
}

// locate sends the places of a file's data on the disk, if they can be
// determined.
func (s *server) locate(fsys system, d *wire.Decoder) error {
	l, ok := fsys.FS.(guestfs.Locator)
	at := int64(-1)
	for _, v := range s.volumes {
		if v.Number == fsys.volume {
			at = v.Offset
		}
	}
	if !ok || at < 0 {
		return fmt.Errorf("where files lie: %w", guestfs.ErrUnsupported)
	}
	return l.Locate(d.Num(), func(off, length, image int64) error {
		return s.item(func(e *wire.Encoder) {
			e.Num(uint64(off))
			e.Num(uint64(length))
			e.Num(uint64(image + at))
		})
	})
}
