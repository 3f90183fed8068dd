package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// generation is constant because no inode number is used twice.
const generation = 1

// entry describes n in an answer that makes it known to the kernel.
func (t *tree) entry(n *node, out *fuse.EntryOut) {
	t.seen(n)
	out.NodeId = n.ino
	out.Generation = generation
	out.Attr = n.attr
	out.SetEntryTimeout(keep)
	out.SetAttrTimeout(keep)
}

// rootEntry describes the root. The kernel requires generation zero for it.
func (t *tree) rootEntry(out *fuse.EntryOut) {
	out.NodeId = rootIno
	out.Attr = t.root
	out.SetEntryTimeout(keep)
	out.SetAttrTimeout(keep)
}

// seen notes that the kernel knows n, or will in a moment.
func (t *tree) seen(n *node) {
	if n.known.Load() || n.known.Swap(true) {
		return
	}
	if f := t.onKnown.Load(); f != nil {
		go (*f)(n.Name)
	}
}

// OnKnown has f called with the name of a file, on a goroutine of its own,
// when the kernel has asked about the file and so knows it soon. f is called
// again for a file that Store then did not find.
func (m *Mounted) OnKnown(f func(name string)) { m.tree.onKnown.Store(&f) }

// Lookup answers for an absent name with inode 0 and a timeout, because the
// kernel does not cache ENOENT.
//
// The names "." and ".." are looked up when a file is opened by a file
// handle (NFS). Only the inode is known then, and "." of a file is the file.
// Inode numbers are fixed, so the inode need not have been looked up before.
func (t *tree) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	n := t.node(in.NodeId)
	switch {
	case n == nil && in.NodeId != rootIno:
		return fuse.ENOENT
	case name == "..", name == "." && n == nil:
		t.rootEntry(out)
		return fuse.OK
	case name == ".":
		t.entry(n, out)
		return fuse.OK
	case n != nil:
		return fuse.ENOTDIR
	case len(name) > maxName:
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	if n = t.byName[name]; n == nil {
		out.SetEntryTimeout(keepAbsent)
		return fuse.OK
	}
	t.entry(n, out)
	return fuse.OK
}

// Forget does nothing: inodes live as long as the mount.
func (t *tree) Forget(nodeid, nlookup uint64) {}

// OpenDir returns ENOSYS, so the kernel never sends OPENDIR again and caches
// the results of ReadDir. A later ls is answered from the kernel's cache.
func (t *tree) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// dirEntry returns the entry at position i of the directory. Its offset,
// from which a reader continues, is the next position.
func (t *tree) dirEntry(i uint64) (fuse.DirEntry, *node) {
	e := fuse.DirEntry{Off: i + 1, Ino: rootIno, Mode: syscall.S_IFDIR}
	switch i {
	case 0:
		e.Name = "."
		return e, nil
	case 1:
		e.Name = ".."
		return e, nil
	}
	n := t.nodes[i-2]
	e.Name, e.Ino, e.Mode = n.Name, n.ino, n.attr.Mode
	return e, n
}

func (t *tree) dirLen() uint64 { return uint64(len(t.nodes)) + 2 }

func (t *tree) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if in.NodeId != rootIno {
		return fuse.ENOTDIR
	}
	for i := in.Offset; i < t.dirLen(); i++ {
		e, _ := t.dirEntry(i)
		if !out.AddDirEntry(e) {
			break
		}
	}
	return fuse.OK
}

func (t *tree) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if in.NodeId != rootIno {
		return fuse.ENOTDIR
	}
	for i := in.Offset; i < t.dirLen(); i++ {
		e, n := t.dirEntry(i)
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			break
		}
		if n != nil { // "." and ".." stay inode 0: the kernel knows both
			t.entry(n, entry)
		}
	}
	return fuse.OK
}
