package fs

import (
	"fmt"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/crashpoint"
)

// Open decides how a file is read. While any handle of an inode is open, the
// kernel fails an open in an incompatible mode (EIO for the user):
//
//	open so far    may be added
//	nothing        any mode
//	cached         cached, direct
//	direct         cached, direct
//	passthrough    passthrough, with the same backing id
//
// The kernel would also accept a passthrough open after a direct one, but
// not a direct open after a passthrough one, and it may process two answers
// in another order than they were given.
//
// The kernel leaves a mode before it sends the RELEASE, and enters a mode
// after the OPEN is answered, so the table's open handles always include the
// kernel's.
func (t *tree) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := t.node(in.NodeId)
	if n == nil {
		return fuse.EISDIR
	}
	if in.Flags&unix.O_ACCMODE != unix.O_RDONLY || in.Flags&unix.O_TRUNC != 0 {
		return fuse.EROFS
	}
	t.seen(n)
	n.open.Lock()
	defer n.open.Unlock()
	h, again := t.handles.find(in.Unique)
	if !again {
		var errno syscall.Errno
		if h, errno = t.openHandle(n, in); errno != 0 {
			return fuse.Status(errno)
		}
	}
	out.Fh = h.fh
	switch h.mode {
	case cached:
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	case direct:
		// Without KEEP_CACHE this open would drop the pages that cached
		// handles have read.
		out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	case passthrough:
		// The kernel refuses KEEP_CACHE in this mode.
		out.OpenFlags = fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_NOFLUSH
		out.BackingID = h.backing
	}
	return fuse.OK
}

// openHandle chooses the mode and writes the slot. The caller holds
// n.open.
func (t *tree) openHandle(n *node, in *fuse.OpenIn) (handle, syscall.Errno) {
	mode, id, errno := t.chooseMode(n, in.Flags&unix.O_DIRECT != 0)
	if errno != 0 {
		return handle{}, errno
	}
	crashpoint.Reach("mode chosen")
	h, ok := t.handles.open(in.Unique, n.ino, mode, id)
	crashpoint.Reach("slot written")
	if !ok {
		t.dropBacking(n)
		return handle{}, syscall.ENFILE
	}
	return h, 0
}

// chooseMode picks a mode by the table at Open, and the backing id for
// passthrough. The caller holds n.open.
func (t *tree) chooseMode(n *node, odirect bool) (openMode, int32, syscall.Errno) {
	own := cached
	if odirect {
		own = direct
	}
	use, id := t.handles.usage(n.ino)
	if use.Passthrough == 0 && use.Cached+use.Direct > 0 {
		return own, 0, 0
	}
	file, ok := n.Content.Backing()
	if use.Passthrough > 0 {
		if ok && odirect && !takesDirect(file) {
			return 0, 0, syscall.EINVAL // the error of the underlying file system
		}
		return passthrough, id, 0
	}
	if !ok || n.noBacking || !t.backing.Load() || odirect && !takesDirect(file) {
		return own, 0, 0
	}
	if id == 0 {
		id = t.register(n, file)
	}
	if id == 0 {
		return own, 0, 0
	}
	return passthrough, id, 0
}

// takesDirect reports whether the file can be opened with O_DIRECT. In
// passthrough mode the kernel opens it with the reader's flags, and a
// failure becomes EIO for the reader.
func takesDirect(file *os.File) bool {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// register registers file with the kernel as n's backing file. It returns 0
// if the kernel refuses; the worker then answers all reads of the file.
func (t *tree) register(n *node, file *os.File) int32 {
	if st, err := file.Stat(); err != nil || st.Size() != n.Map.Size() {
		n.noBacking = true
		t.log.Error("the file on disk is not the file: not used", "file", n.Name, "path", file.Name())
		return 0
	}
	id, errno := t.kernel.RegisterBackingFd(&fuse.BackingMap{Fd: int32(file.Fd())})
	switch {
	case errno == 0 && id > 0:
		crashpoint.Reach("backing file registered")
		t.handles.setBacking(n.ino, id)
		return id
	case errno == unix.EPERM || errno == unix.ENOTTY:
		// Either this user is not root or the kernel has no passthrough:
		// every file would be refused.
		t.backing.Store(false)
	default:
		// The kernel refuses this file's file system, such as an overlay.
		n.noBacking = true
	}
	t.log.Debug("no passthrough", "file", n.Name, "errno", errno)
	return 0
}

// dropBacking unregisters the backing file if no handle uses it. It clears
// the id in the table first: an id lost in between only pins a file, but an
// id used after its end fails an open. The caller holds n.open.
func (t *tree) dropBacking(n *node) {
	use, id := t.handles.usage(n.ino)
	if use.Passthrough > 0 || id == 0 {
		return
	}
	t.handles.setBacking(n.ino, 0)
	crashpoint.Reach("backing file forgotten")
	if errno := t.kernel.UnregisterBackingFd(id); errno != 0 && !t.kernel.dead() {
		t.log.Warn("backing file stays registered", "file", n.Name, "id", id, "errno", errno)
	}
}

// Release handles the RELEASE that the kernel sends after the last
// descriptor of an open file is closed, and the last mapping that reads
// through it is gone.
func (t *tree) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	n := t.node(in.NodeId)
	if n == nil {
		return
	}
	n.open.Lock()
	defer n.open.Unlock()
	if _, ok := t.handles.release(in.Fh); ok {
		crashpoint.Reach("slot cleared")
		t.dropBacking(n)
		t.dropUnused(n)
	}
}
