package guesttest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// Skip lists what a comparison leaves out, because the format or the mount
// lacks it.
type Skip struct {
	Blocks, Links, Owner, Mode, Times, Inodes, Extents, Xattrs, DirSizes bool
	// Name reports whether a path is left out.
	Name func(path string) bool
}

// Compare compares every file below the root of fsys with the kernel's in
// dir, and returns how many there were.
func Compare(t testing.TB, fsys vfs.FS, dir string, skip Skip) int {
	t.Helper()
	c := &comparison{t: t, fsys: fsys, skip: skip}
	c.directory(dir, "", fsys.Root())
	if c.wrong > 0 {
		t.Errorf("%d of %d files differ", c.wrong, c.files)
	}
	return c.files
}

type comparison struct {
	t            testing.TB
	fsys         vfs.FS
	skip         Skip
	files, wrong int
	list, value  []byte
}

// differ counts a difference, and shows the first ones.
func (c *comparison) differ(path, format string, args ...any) {
	if c.wrong++; c.wrong <= 10 {
		c.t.Helper()
		c.t.Errorf("%s: %s", path, fmt.Sprintf(format, args...))
	}
}

func (c *comparison) directory(dir, path string, inode uint64) {
	c.t.Helper()
	got := map[string]vfs.DirEntry{}
	err := c.fsys.ReadDir(inode, func(e vfs.DirEntry) error {
		if _, twice := got[e.Name]; twice {
			c.differ(path, "has %q twice", e.Name)
		}
		got[e.Name] = e
		return nil
	})
	if err != nil {
		c.differ(path, "ReadDir: %v", err)
		return
	}
	want, err := os.ReadDir(filepath.Join(dir, path))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, w := range want {
		name := filepath.Join(path, w.Name())
		e, ok := got[w.Name()]
		delete(got, w.Name())
		if c.skip.Name != nil && c.skip.Name(name) {
			continue
		}
		if !ok {
			c.differ(name, "is missing")
			continue
		}
		found, err := c.fsys.Lookup(inode, w.Name())
		if err != nil || found != e.Inode {
			c.differ(name, "Lookup: inode %d, %v; ReadDir has %d", found, err, e.Inode)
		}
		c.files++
		c.file(filepath.Join(dir, name), name, e)
		if w.IsDir() {
			c.directory(dir, name, e.Inode)
		}
	}
	for name := range got {
		if c.skip.Name == nil || !c.skip.Name(filepath.Join(path, name)) {
			c.differ(path, "has %q, which should not be there", name)
		}
	}
	if _, err := c.fsys.Lookup(inode, "no such name"); !errors.Is(err, fs.ErrNotExist) {
		c.differ(path, "Lookup of a name that does not exist: %v", err)
	}
}

var types = map[uint32]vfs.Type{
	unix.S_IFREG: vfs.Regular, unix.S_IFDIR: vfs.Directory, unix.S_IFLNK: vfs.Symlink, unix.S_IFCHR: vfs.CharDevice,
	unix.S_IFBLK: vfs.BlockDevice, unix.S_IFIFO: vfs.FIFO, unix.S_IFSOCK: vfs.Socket,
}

func (c *comparison) file(real, path string, e vfs.DirEntry) {
	c.t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(real, &st); err != nil {
		c.t.Fatal(err)
	}
	info, err := c.fsys.Stat(e.Inode)
	if err != nil {
		c.differ(path, "Stat: %v", err)
		return
	}
	want := vfs.Info{
		Inode: e.Inode, Type: types[st.Mode&unix.S_IFMT], Mode: uint16(st.Mode & 0o7777), Links: uint32(st.Nlink),
		UID: st.Uid, GID: st.Gid, Size: st.Size, Blocks: st.Blocks,
		Modified: time.Unix(st.Mtim.Unix()), Changed: time.Unix(st.Ctim.Unix()), Accessed: time.Unix(st.Atim.Unix()),
		Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
	}
	if !c.skip.Inodes {
		want.Inode = st.Ino
	}
	c.ignore(&want, info)
	if info != want {
		c.differ(path, "Stat:\n got %+v\nwant %+v", info, want)
		return
	}
	if e.Type != vfs.Unknown && e.Type != info.Type {
		c.differ(path, "has type %v in its directory, and %v by itself", e.Type, info.Type)
	}
	if !c.skip.Xattrs {
		c.xattrs(real, path, e.Inode)
	}
	switch info.Type {
	case vfs.Regular:
		c.contents(real, path, e.Inode, info.Size)
	case vfs.Symlink:
		target, err := os.Readlink(real)
		if err != nil {
			c.t.Fatal(err)
		}
		if got, err := c.fsys.Readlink(e.Inode); got != target || err != nil {
			c.differ(path, "Readlink: %q, %v; want %q", got, err, target)
		}
	}
}

// ignore copies what is not to be compared.
func (c *comparison) ignore(want *vfs.Info, got vfs.Info) {
	if c.skip.Blocks {
		want.Blocks = got.Blocks
	}
	if c.skip.Links {
		want.Links = got.Links
	}
	if c.skip.Owner {
		want.UID, want.GID = got.UID, got.GID
	}
	if c.skip.Mode {
		want.Mode = got.Mode
	}
	if c.skip.Times {
		want.Modified, want.Changed, want.Accessed = got.Modified, got.Changed, got.Accessed
	}
	if c.skip.DirSizes && got.Type == vfs.Directory {
		want.Size, want.Blocks = got.Size, got.Blocks
	}
	// Equal times compare as equal structs.
	for _, t := range []*struct{ w, g *time.Time }{{&want.Modified, &got.Modified}, {&want.Changed, &got.Changed}, {&want.Accessed, &got.Accessed}} {
		if t.w.Equal(*t.g) {
			*t.w = *t.g
		}
	}
}

// contents compares a file's bytes, read in pieces that do not fit to its
// blocks, and where it has data.
func (c *comparison) contents(real, path string, inode uint64, size int64) {
	c.t.Helper()
	f, err := os.Open(real)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	// The kernel reports a cached page of an unwritten extent as data.
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		c.t.Fatal(err)
	}
	var want, got []vfs.Extent
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			c.t.Fatal(err)
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			c.t.Fatal(err)
		}
		want = append(want, vfs.Extent{Offset: data, Length: hole - data})
		at = hole
	}
	err = c.fsys.Extents(inode, func(e vfs.Extent) error { got = append(got, e); return nil })
	if err != nil || !c.skip.Extents && !slices.Equal(got, want) {
		c.differ(path, "Extents: %v, %v; want %v", got, err, want)
	}
	for _, e := range want {
		// A little of the hole before and after it, too.
		from, to := max(0, e.Offset-3000), min(size, e.Offset+e.Length+3000)
		if !c.equal(f, path, inode, from, to) {
			return
		}
	}
	if n, err := c.fsys.ReadAt(inode, make([]byte, 10), size); n != 0 || err != io.EOF {
		c.differ(path, "ReadAt at the end: %d, %v", n, err)
	}
}

func (c *comparison) equal(f *os.File, path string, inode uint64, from, to int64) bool {
	c.t.Helper()
	const piece = 777 * 1001
	a, b := make([]byte, min(piece, to-from)), make([]byte, min(piece, to-from))
	for at := from; at < to; at += piece {
		n := int(min(piece, to-at))
		if _, err := f.ReadAt(a[:n], at); err != nil {
			c.t.Fatal(err)
		}
		if m, err := c.fsys.ReadAt(inode, b[:n], at); m != n || err != nil && err != io.EOF {
			c.differ(path, "ReadAt %d of %d: %d, %v", n, at, m, err)
			return false
		}
		if !bytes.Equal(a[:n], b[:n]) {
			k := 0
			for a[k] == b[k] {
				k++
			}
			c.differ(path, "contents differ from byte %d on", at+int64(k))
			return false
		}
	}
	return true
}

func (c *comparison) xattrs(real, path string, inode uint64) {
	c.t.Helper()
	want := map[string][]byte{}
	if c.value == nil {
		c.list, c.value = make([]byte, 64<<10), make([]byte, 64<<10)
	}
	n, err := unix.Llistxattr(real, c.list)
	if err != nil {
		c.t.Fatal(err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(c.list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		m, err := unix.Lgetxattr(real, name, c.value)
		if err != nil {
			c.t.Fatal(path, name, err)
		}
		want[name] = bytes.Clone(c.value[:m])
	}
	got, err := c.fsys.Xattrs(inode)
	if err != nil || !maps.EqualFunc(got, want, bytes.Equal) {
		c.differ(path, "Xattrs: %q, %v; want %q", got, err, want)
	}
}
