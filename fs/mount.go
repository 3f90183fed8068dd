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
	// maxRequest is the size of the largest READ, in bytes, and what the
	// kernel allows unless told otherwise. Each one in progress takes
	// that much memory.
	maxRequest = 1 << 20

	// maxBackground bounds the readahead requests in progress. Those that
	// wait for a dead network must not keep others, whose bytes are here,
	// from being asked for.
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
	done     chan struct{} // closed when the kernel has let go
}

// Mount mounts files on the directory dir. It returns when the mount is
// ready for use. The first file is snapshot.json, where there is one: it
// gets inode 2, the others follow. A dir that Stale is true of must be
// cleaned first.
func Mount(dir string, files []File, opts Options) (*Mounted, error) {
	t, err := newTree(files, opts)
	if err != nil {
		return nil, err
	}
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
	return m, nil
}

// begin negotiates a new connection and answers its requests.
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

// serve answers requests until the kernel lets go.
func (m *Mounted) serve() {
	m.notify = newNotifier(int(m.kept.Device.Fd()), m.notNotified)
	go func() {
		defer close(m.done)
		m.server.Serve()
		m.notify.close()
		_ = m.kept.close() // the connection is dead, or others keep it
	}()
}

// Kept is what another process needs to take the mount over; ok is false
// where the kernel cannot send requests again. The files are open as long
// as the mount is served here.
func (m *Mounted) Kept() (kept Kept, ok bool) { return m.kept, m.keepable }

// Connection is the number of the FUSE connection, as in
// /sys/fs/fuse/connections.
func (m *Mounted) Connection() uint32 { return m.minor }

// settle learns the mount's device and sets what hangs on that.
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
	// Root only. Others stay at the kernel's 128 KiB.
	err = os.WriteFile("/sys/class/bdi/"+m.dev+"/read_ahead_kb", strconv.AppendInt(nil, int64(readAhead)>>10, 10), 0)
	if err != nil {
		m.tree.log.Debug("readahead stays as it is", "error", err)
	}
	return nil
}

// optional are capabilities that a mount has if the process that made it asked
// for them. A process that takes over asks for those of the mount.
const optional = fuse.CAP_EXPORT_SUPPORT // handles (NFS) outlive the kernel's memory of an inode

func (t *tree) serverOptions(extra uint64) *fuse.MountOptions {
	return &fuse.MountOptions{
		Name:          "epochfs",
		MaxWrite:      maxRequest,
		MaxBackground: maxBackground,
		// A request of 1 MiB does not fit into a pipe.
		DisableSplice: true,
		// No getattr on every read to see whether the file has changed.
		ExplicitDataCacheControl: true,
		// Without it the requests of one aio submission go out one by one.
		ExtraCapabilities: fuse.CAP_ASYNC_DIO | extra,
		Logger:            slog.NewLogLogger(t.log.Handler(), slog.LevelDebug),
		PanicHandler:      t.panicked,
	}
}

// panicked ends the process where another can take over, but no two of
// them within a short time. Else the request fails.
func (t *tree) panicked(v any) fuse.Status {
	t.log.Error("panic", "value", v, "stack", string(debug.Stack()))
	if t.crash && t.memory.panicked() {
		os.Exit(exitPanic)
	}
	return fuse.EIO
}

// exitPanic is the exit status of a process that panicked, as the Go
// runtime's.
const exitPanic = 2

// connection is the kernel's side of the mount.
type connection struct {
	*fuse.Server
	fd int // open while requests are being answered
}

func (c *connection) dead() bool { return ended(c.fd) }

// ended says that a connection is dead.
func ended(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	_, err := unix.Poll(p, 0)
	return err == nil && p[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}

// Dir is the directory the mount lies on: absolute, without symlinks.
func (m *Mounted) Dir() string { return m.dir }

// Device is the mount's device number, as "major:minor".
func (m *Mounted) Device() string { return m.dev }

// Usage says how often the file of that name is open, and how. It is zero
// for a name that is not there.
func (m *Mounted) Usage(name string) Usage {
	n := m.tree.byName[name]
	if n == nil {
		return Usage{}
	}
	u, _ := m.tree.handles.usage(n.ino)
	return u
}

// Forget has the kernel drop the pages that it keeps of n bytes of a file from
// off on; n 0 is for all that follows. It returns at once, and the pages go
// when no READ of them waits for its answer any more.
func (m *Mounted) Forget(name string, off, n int64) {
	node := m.tree.byName[name]
	if node == nil {
		return
	}
	if r, ok := pagesOf(off, n, node.Map.Size()); ok {
		m.notify.drop(node.ino, r)
	}
}

// notNotified logs that the kernel was not reached.
func (m *Mounted) notNotified(ino uint64, err error) {
	if m.tree.kernel.dead() {
		return
	}
	m.tree.log.Warn("the kernel may keep pages of a file", "file", m.tree.node(ino).Name, "error", err)
}

// Breathe returns when the mount can still do what every request needs. If
// it cannot, it never does.
func (m *Mounted) Breathe() {
	for _, n := range m.tree.nodes {
		m.tree.handles.usage(n.ino)
		break
	}
}

// Wait returns when the mount has ended, whoever ended it, and no request
// is being answered any more.
func (m *Mounted) Wait() { <-m.done }

// Done is closed when Wait would return.
func (m *Mounted) Done() <-chan struct{} { return m.done }

// Unmount takes the mount off its directory. It fails with EBUSY while
// somebody uses it, and does nothing where that has been done before.
// Wait tells when the last request is answered.
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
