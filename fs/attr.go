package fs

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	// keep is how long the kernel may cache names and attributes.
	// Neither ever changes.
	keep = 24 * time.Hour
	// keepAbsent is how long the kernel may cache that a name does not
	// exist. It is shorter than keep so that lookups of many absent
	// names do not occupy kernel memory for a day.
	keepAbsent = time.Hour

	maxName   = 255  // bytes, the kernel's limit
	blockSize = 4096 // st_blksize; with a larger value stdio reads more than its caller asked for
)

// setAttributes computes, once, the results of stat and statfs.
func (t *tree) setAttributes(opts Options) {
	base := fuse.Attr{Nlink: 1, Blksize: blockSize, Owner: fuse.Owner{Uid: opts.UID, Gid: opts.GID}}
	if when := opts.Time; !when.IsZero() {
		base.SetTimes(&when, &when, &when)
	}
	t.root = base
	t.root.Ino = rootIno
	t.root.Nlink = 2
	t.root.Size = blockSize
	t.root.Mode = syscall.S_IFDIR | 0o500
	if opts.AllowOther {
		t.root.Mode = syscall.S_IFDIR | 0o555
	}
	t.statfs = fuse.StatfsOut{
		Bsize: blockSize, Frsize: blockSize, NameLen: maxName,
		Files: uint64(len(t.nodes)) + 1,
	}
	for _, n := range t.nodes {
		n.attr = base
		n.attr.Ino = n.ino
		n.attr.Mode = syscall.S_IFREG | n.Mode&0o555
		n.attr.Size = uint64(n.Map.Size())
		n.attr.Blocks = (uint64(n.Map.DataSize()) + 511) / 512
		t.statfs.Blocks += (uint64(n.Map.DataSize()) + blockSize - 1) / blockSize
	}
}

func (t *tree) attr(ino uint64) *fuse.Attr {
	if ino == rootIno {
		return &t.root
	}
	if n := t.node(ino); n != nil {
		return &n.attr
	}
	return nil
}

func (t *tree) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	a := t.attr(in.NodeId)
	if a == nil {
		return fuse.ENOENT
	}
	out.Attr = *a
	out.SetTimeout(keep)
	return fuse.OK
}

// Statx returns ENOSYS. It could only add the birth time, which is unknown:
// the kernel falls back to GetAttr and never calls Statx again.
func (t *tree) Statx(<-chan struct{}, *fuse.StatxIn, *fuse.StatxOut) fuse.Status {
	return fuse.ENOSYS
}

func (t *tree) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = t.statfs
	return fuse.OK
}
