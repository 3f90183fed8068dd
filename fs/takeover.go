package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/crashpoint"
)

// A process that takes over a live mount gets the connection's descriptor
// and the mount's memory. The kernel negotiates a connection only once, with
// the first process. So every process negotiates over a socket on which the
// kernel's INIT request is replayed. The first process's reply goes to the
// kernel. If a later process's reply differs from the first, the process
// would speak another protocol than the kernel expects, and it does not
// begin. Otherwise the connection replaces the socket, the kernel is asked
// to send all unanswered requests again, and only then are requests read.

// hasResend is the flag in the kernel's INIT request for support of
// resending requests: Linux 6.9 and newer.
const hasResend = 1 << 39

// notifyResend is the code of the notification that asks the kernel to
// resend.
const notifyResend = 7

// errOther is returned if this process would not serve as its predecessor
// did.
var errOther = errors.New("this binary negotiates otherwise with the kernel than the one that mounted")

// readInit reads the kernel's INIT, the first request of a connection.
func readInit(fd int) ([]byte, error) {
	buf := make([]byte, 64<<10) // the kernel refuses a smaller buffer
	for {
		n, err := unix.Read(fd, buf)
		if err == nil {
			return buf[:n], nil
		}
		if err != unix.EINTR {
			return nil, os.NewSyscallError("read INIT", err)
		}
	}
}

// canResend reports whether the kernel that sent the INIT request can resend
// others.
func canResend(request []byte) bool {
	var in fuse.InitIn
	if len(request) < int(unsafe.Sizeof(in)) {
		return false
	}
	return (*fuse.InitIn)(unsafe.Pointer(&request[0])).Flags64()&hasResend != 0
}

// negotiated returns the capabilities agreed on in a reply to INIT.
func negotiated(reply []byte) uint64 {
	var header fuse.OutHeader
	var out fuse.InitOut
	if len(reply) < int(unsafe.Sizeof(header)+unsafe.Sizeof(out)) {
		return 0
	}
	return (*fuse.InitOut)(unsafe.Pointer(&reply[unsafe.Sizeof(header)])).Flags64()
}

// negotiate makes go-fuse answer the INIT request over a socket, and request
// the extra capabilities beyond those of every mount. fd is the server's
// descriptor of the socket, which the connection replaces later.
func (t *tree) negotiate(request []byte, extra uint64) (server *fuse.Server, fd int, reply []byte, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, nil, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	if _, err = unix.Write(pair[0], request); err != nil {
		unix.Close(pair[1])
		return nil, -1, nil, err
	}
	server, err = fuse.NewServer(t, fmt.Sprintf("/dev/fd/%d", pair[1]), t.serverOptions(extra))
	if err != nil {
		return nil, -1, nil, err // the descriptor is closed
	}
	n := 0
	reply = make([]byte, mostInit)
	if err = t.present(server); err == nil {
		n, err = unix.Read(pair[0], reply)
	}
	if err != nil {
		discard(server, pair[1])
		return nil, -1, nil, err
	}
	return server, pair[1], reply[:n], nil
}

// discard closes the descriptor of a server that is not used. The server
// closes it when it stops, and it stops when it cannot read.
func discard(server *fuse.Server, fd int) {
	unreadable, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(unreadable)
	if unix.Dup3(unreadable, fd, unix.O_CLOEXEC) == nil {
		server.Serve()
	}
}

// connect replaces the server's socket by the connection.
func (t *tree) connect(server *fuse.Server, fd int, device *os.File) error {
	if err := unix.Dup3(int(device.Fd()), fd, unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("dup3", err)
	}
	t.kernel = &connection{Server: server, fd: fd}
	return nil
}

// resend asks the kernel to send all unanswered requests again.
func resend(device *os.File) error {
	out := fuse.OutHeader{Length: uint32(unsafe.Sizeof(fuse.OutHeader{})), Status: notifyResend}
	_, err := unix.Write(int(device.Fd()), unsafe.Slice((*byte)(unsafe.Pointer(&out)), out.Length))
	return os.NewSyscallError("ask for unanswered requests", err)
}

// PredecessorGone makes good what the process that served the mount before may
// have done while it ended. It may have taken a request: the kernel sends all
// unanswered requests again, and those in progress in this process arrive twice.
// It may have stored bytes that were found wrong since: what this process has
// dropped is dropped again.
func (m *Mounted) PredecessorGone() error {
	m.notify.dropAgain()
	return resend(m.kept.Device)
}

// Kept holds the files that a process needs to take over a mount.
type Kept struct {
	Device *os.File // the FUSE connection
	Memory *os.File // see memory.go
}

// Ended reports whether the mount is gone: unmounted, or aborted.
func (k Kept) Ended() bool { return ended(int(k.Device.Fd())) }

func (k Kept) close() error { return errors.Join(k.Device.Close(), k.Memory.Close()) }

// Resume takes over the live mount on dir, whose process has died or will:
// dir, files and opts must be those of Mount. Resume calls begin when all is
// prepared; begin must return nil once no other process serves the mount. If
// begin returns an error, the mount is left as it is.
func Resume(kept Kept, dir string, files []File, opts Options, begin func() error) (*Mounted, error) {
	m, err := resume(kept, dir, files, opts, begin)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take over a mount: %w", err), kept.close())
	}
	return m, nil
}

// newSuccessor returns the tree of a process that takes over. It declines
// nothing, since it does not know what its predecessor has declined: of a READ
// that is asked for again, the error may reach the reader.
func newSuccessor(files []File, opts Options) (*tree, error) {
	opts.Decline = nil
	return newTree(files, opts)
}

func resume(kept Kept, dir string, files []File, opts Options, begin func() error) (*Mounted, error) {
	t, err := newSuccessor(files, opts)
	if err != nil {
		return nil, err
	}
	if t.memory, err = openMemory(kept.Memory); err != nil {
		return nil, err
	}
	if err := checkTable(t.memory.table, len(files)); err != nil {
		return nil, err
	}
	server, fd, reply, err := t.negotiate(t.memory.request(), optional&negotiated(t.memory.reply()))
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(reply, t.memory.reply()) {
		err = errOther
	} else {
		err = begin()
	}
	if err == nil { // before begin the table belongs to the other process
		t.handles, err = openHandles(t.memory.table, len(files))
	}
	if err == nil {
		err = t.connect(server, fd, kept.Device)
	}
	if err != nil {
		discard(server, fd)
		return nil, err
	}
	m := &Mounted{dir: dir, tree: t, server: server, kept: kept, keepable: true, done: make(chan struct{})}
	for _, n := range t.nodes {
		n.known.Store(true) // maybe; a store will show
	}
	major, minor := t.memory.device()
	m.dev, m.minor = fmt.Sprintf("%d:%d", major, minor), uint32(minor)
	crashpoint.Reach("taken over")
	if err := resend(kept.Device); err != nil {
		return nil, err
	}
	crashpoint.Reach("asked again")
	m.serve()
	return m, nil
}
