package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// generation never changes: no inode number is used twice.
const generation = 1

func (n *node) entry(out *fuse.EntryOut) {
	out.NodeId = n.ino
	out.Generation = generation
	out.Attr = n.attr
	out.SetEntryTimeout(keep)
	out.SetAttrTimeout(keep)
}

// rootEntry describes the root. The kernel wants its generation to be zero.
func (t *tree) rootEntry(out *fuse.EntryOut) {
	out.NodeId = rootIno
	out.Attr = t.root
	out.SetEntryTimeout(keep)
	out.SetAttrTimeout(keep)
}

// Lookup answers for a name that is not there with inode 0 and a time:
// only so does the kernel remember it.
//
// "." and ".." come from whoever opens a file by a handle (NFS), and only the
// inode is known then: "." of a file is the file. Inode numbers are fixed, so
// it need not have been looked up before.
func (t *tree) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	n := t.node(in.NodeId)
	switch {
	case n == nil && in.NodeId != rootIno:
		return fuse.ENOENT
	case name == "..", name == "." && n == nil:
		t.rootEntry(out)
		return fuse.OK
	case name == ".":
		n.entry(out)
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
	n.entry(out)
	return fuse.OK
}

// Forget has nothing to forget: inodes live as long as the mount.
func (t *tree) Forget(nodeid, nlookup uint64) {}

// OpenDir says that directories need no opening. The kernel then never
// asks again, keeps what ReadDir told it, and a later ls needs nobody to
// answer.
func (t *tree) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// dirEntry is what lies at position i of the directory. Its offset, from
// which a reader goes on, is that of the next position.
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
		if n != nil { // "." and ".." are left as inode 0: the kernel knows them
			n.entry(entry)
		}
	}
	return fuse.OK
}
