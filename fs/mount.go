package fs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const (
	// maxRequest is the size of the largest READ, in bytes, and the
	// kernel's default limit. Each READ in progress takes that much
	// memory.
	maxRequest = 1 << 20

	// maxBackground bounds the readahead requests in progress. Requests
	// that wait for a dead network must not keep the kernel from sending
	// others, whose bytes are cached.
	maxBackground = 128
)

// Mounted is a live mount.
type Mounted struct {
	dir      string // absolute, without symlinks
	dev      string // "major:minor"
	minor    uint32 // also the connection's number
	tree     *tree
	server   *fuse.Server
	kept     Kept
	keepable bool
	notify   *notifier
	room     headroom
	done     chan struct{} // closed once the kernel has released the connection
}

// Mount mounts files on the directory dir. It returns when the mount is
// ready for use. Files get inodes in the given order, from 2 on; a
// snapshot's first file is snapshot.json, if it has one. A dir for which
// Stale returns true must be cleaned first.
func Mount(dir string, files []File, opts Options) (*Mounted, error) {
	t, err := newTree(files, opts)
	if err != nil {
		return nil, err
	}
	t.record(opts.Record)
	m := &Mounted{tree: t, done: make(chan struct{})}
	if m.dir, err = mountPoint(dir); err != nil {
		return nil, err
	}
	if t.memory, err = newMemory(len(files), opts.Note); err != nil {
		return nil, err
	}
	m.kept.Memory = t.memory.file
	if t.handles, err = openHandles(t.memory.table, len(files)); err != nil {
		return nil, errors.Join(err, t.memory.file.Close())
	}
	fd, err := mountFUSE(m.dir, &opts)
	if err != nil {
		t.memory.close()
		return nil, fmt.Errorf("mount %s: %w", m.dir, err)
	}
	m.kept.Device = os.NewFile(uintptr(fd), fuseDevice)
	if err := m.begin(); err != nil {
		err = fmt.Errorf("mount %s: %w", m.dir, err)
		return nil, errors.Join(err, Unmount(m.dir, true), m.kept.close())
	}
	if err := m.settle(opts.ReadAhead); err != nil {
		return nil, errors.Join(err, Unmount(m.dir, true))
	}
	t.recorded.ready()
	return m, nil
}

// begin negotiates a new connection and starts to answer its requests.
func (m *Mounted) begin() error {
	device := int(m.kept.Device.Fd())
	request, err := readInit(device)
	if err != nil {
		return err
	}
	m.keepable = canResend(request)
	server, fd, reply, err := m.tree.negotiate(request, optional)
	if err != nil {
		return err
	}
	err = m.tree.memory.setInit(request, reply)
	if err == nil {
		_, err = unix.Write(device, reply)
		err = os.NewSyscallError("answer INIT", err)
	}
	if err == nil {
		err = m.tree.connect(server, fd, m.kept.Device)
	}
	if err != nil {
		discard(server, fd)
		return err
	}
	m.server = server
	m.serve()
	return nil
}

// serve answers requests until the connection ends.
func (m *Mounted) serve() {
	m.notify = newNotifier(int(m.kept.Device.Fd()), m.notNotified)
	m.tree.drop = m.notify.drop
	m.room.groups = ownGroups()
	go func() {
		defer close(m.done)
		m.server.Serve()
		m.notify.close()
		_ = m.kept.close() // the connection is dead, or other processes hold it
	}()
}

// Kept returns the files that another process needs to take over the mount.
// ok is false if the kernel cannot send requests again. The files stay open
// as long as this process serves the mount.
func (m *Mounted) Kept() (kept Kept, ok bool) { return m.kept, m.keepable }

// Connection returns the number of the FUSE connection, as in
// /sys/fs/fuse/connections.
func (m *Mounted) Connection() uint32 { return m.minor }

// settle determines the mount's device number and sets what depends on it.
func (m *Mounted) settle(readAhead int) error {
	at, err := mountsAt(m.dir)
	if err != nil {
		return err
	}
	if len(at) == 0 {
		return fmt.Errorf("mount %s: it was unmounted at once", m.dir)
	}
	top := at[len(at)-1]
	m.dev, m.minor = device(top), uint32(top.Minor)
	m.tree.memory.setDevice(top.Major, top.Minor)
	if readAhead == 0 {
		readAhead = DefaultReadAhead
	}
	// Only root may set it. Other users' mounts keep the kernel's 128
	// KiB.
	err = os.WriteFile("/sys/class/bdi/"+m.dev+"/read_ahead_kb", strconv.AppendInt(nil, int64(readAhead)>>10, 10), 0)
	if err != nil {
		m.tree.log.Debug("readahead stays as it is", "error", err)
	}
	return nil
}

// optional is the set of capabilities that a mount has only if the process
// that made it requested them. A process that takes over requests those of
// the mount.
const optional = fuse.CAP_EXPORT_SUPPORT // file handles (NFS) stay valid after the kernel evicts an inode

func (t *tree) serverOptions(extra uint64) *fuse.MountOptions {
	return &fuse.MountOptions{
		Name:          "epochfs",
		MaxWrite:      maxRequest,
		MaxBackground: maxBackground,
		// A request of 1 MiB does not fit into a pipe.
		DisableSplice: true,
		// Do not send GETATTR on every read to see whether the file has
		// changed.
		ExplicitDataCacheControl: true,
		// Without CAP_ASYNC_DIO the requests of one aio submission are
		// sent one by one.
		ExtraCapabilities: fuse.CAP_ASYNC_DIO | extra,
		Logger:            slog.NewLogLogger(t.log.Handler(), slog.LevelDebug),
		PanicHandler:      t.panicked,
	}
}

// panicked ends the process if another can take over, but at most once
// within panicPause. Otherwise it fails the request.
func (t *tree) panicked(v any) fuse.Status {
	t.log.Error("panic", "value", v, "stack", string(debug.Stack()))
	if t.crash && t.memory.panicked() {
		os.Exit(exitPanic)
	}
	return fuse.EIO
}

// exitPanic is the exit status of a process that panicked, the same as the
// Go runtime's.
const exitPanic = 2

// connection is the kernel's side of the mount.
type connection struct {
	*fuse.Server
	fd int // open while requests are being answered
}

func (c *connection) dead() bool { return ended(c.fd) }

// ended reports whether a connection is dead.
func ended(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	_, err := unix.Poll(p, 0)
	return err == nil && p[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}

// Dir returns the directory of the mount: absolute, without symlinks.
func (m *Mounted) Dir() string { return m.dir }

// Device returns the mount's device number, as "major:minor".
func (m *Mounted) Device() string { return m.dev }

// Usage returns how often the named file is open, by mode. It is zero if the
// mount has no file of that name.
func (m *Mounted) Usage(name string) Usage {
	n := m.tree.byName[name]
	if n == nil {
		return Usage{}
	}
	u, _ := m.tree.handles.usage(n.ino)
	return u
}

// Forget asks the kernel to drop its cached pages of n bytes of a file, from
// off on; n = 0 means all bytes from off on. It returns at once. A page is
// dropped only after the READs that wait for it are answered.
func (m *Mounted) Forget(name string, off, n int64) {
	node := m.tree.byName[name]
	if node == nil {
		return
	}
	if r, ok := pagesOf(off, n, node.Map.Size()); ok {
		m.notify.forget(node.ino, r)
	}
}

// notNotified logs a notification that did not reach the kernel.
func (m *Mounted) notNotified(ino uint64, err error) {
	if m.tree.kernel.dead() {
		return
	}
	m.tree.log.Warn("the kernel may keep pages of a file", "file", m.tree.node(ino).Name, "error", err)
}

// Breathe returns if the mount can still do what every request needs.
// Otherwise it blocks for ever.
func (m *Mounted) Breathe() {
	for _, n := range m.tree.nodes {
		m.tree.handles.usage(n.ino)
		break
	}
}

// Wait blocks until the mount has ended, for whatever reason, and no request
// is being answered any more.
func (m *Mounted) Wait() { <-m.done }

// Done returns a channel that is closed when Wait would return.
func (m *Mounted) Done() <-chan struct{} { return m.done }

// Unmount unmounts the mount from its directory. It fails with EBUSY while
// the mount is in use, and does nothing if the mount is already unmounted.
// Wait blocks until the last request is answered.
func (m *Mounted) Unmount() error {
	at, err := mountsAt(m.dir)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(at, func(i *mountinfo.Info) bool { return device(i) == m.dev }) {
		return nil
	}
	if device(at[len(at)-1]) != m.dev {
		return fmt.Errorf("unmount %s: something else is mounted on top", m.dir)
	}
	return Unmount(m.dir, false)
}
