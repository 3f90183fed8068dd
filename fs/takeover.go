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
// and the mount's memory. The kernel negotiates a connection once, with
// the first process. So every process negotiates with a socket in the
// kernel's place, which says again what the kernel said; the first reply
// goes to the kernel, and a process whose reply differs from it would
// speak another protocol than the kernel expects and does not begin. Then
// the connection takes the socket's place, the kernel is asked to send
// again what was never answered, and requests are read. None is read
// before.

// hasResend is the flag of the kernel's INIT that says it can send
// requests again: Linux 6.9 and newer.
const hasResend = 1 << 39

// notifyResend is the code of the notification that asks for that.
const notifyResend = 7

// errOther says that this process would not serve as the one before did.
var errOther = errors.New("this binary negotiates otherwise with the kernel than the one that mounted")

// readInit reads the kernel's INIT, the first request of a connection.
func readInit(fd int) ([]byte, error) {
	buf := make([]byte, 64<<10) // less than the kernel's least is an error
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

// canResend says whether the kernel that sent request can send others
// again.
func canResend(request []byte) bool {
	var in fuse.InitIn
	if len(request) < int(unsafe.Sizeof(in)) {
		return false
	}
	return (*fuse.InitIn)(unsafe.Pointer(&request[0])).Flags64()&hasResend != 0
}

// negotiated reads the capabilities that a reply to INIT has agreed on.
func negotiated(reply []byte) uint64 {
	var header fuse.OutHeader
	var out fuse.InitOut
	if len(reply) < int(unsafe.Sizeof(header)+unsafe.Sizeof(out)) {
		return 0
	}
	return (*fuse.InitOut)(unsafe.Pointer(&reply[unsafe.Sizeof(header)])).Flags64()
}

// negotiate has go-fuse answer the INIT request on a socket, and ask for
// capabilities beyond those that every mount has. fd is that socket's
// descriptor, the server's, for the connection to take the place of.
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

// discard closes the descriptor of a server that was not to be. The server
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

// connect puts the connection in the place of the server's socket.
func (t *tree) connect(server *fuse.Server, fd int, device *os.File) error {
	if err := unix.Dup3(int(device.Fd()), fd, unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("dup3", err)
	}
	t.kernel = &connection{Server: server, fd: fd}
	return nil
}

// resend asks the kernel for all requests that nobody has answered.
func resend(device *os.File) error {
	out := fuse.OutHeader{Length: uint32(unsafe.Sizeof(fuse.OutHeader{})), Status: notifyResend}
	_, err := unix.Write(int(device.Fd()), unsafe.Slice((*byte)(unsafe.Pointer(&out)), out.Length))
	return os.NewSyscallError("ask for unanswered requests", err)
}

// Resend asks the kernel to send again all requests that nobody has answered.
// Those that this process is working on come twice.
func (m *Mounted) Resend() error { return resend(m.kept.Device) }

// Kept is what the process that takes over a mount needs of it.
type Kept struct {
	Device *os.File // the FUSE connection
	Memory *os.File // see memory.go
}

// Ended says that the mount is gone: unmounted, or aborted.
func (k Kept) Ended() bool { return ended(int(k.Device.Fd())) }

func (k Kept) close() error { return errors.Join(k.Device.Close(), k.Memory.Close()) }

// Resume takes over the live mount on dir, whose process has died or will:
// dir, files and opts must be those of Mount. When all is prepared begin is called;
// it returns when nobody else serves the mount, or with an error, and then
// the mount is left as it is.
func Resume(kept Kept, dir string, files []File, opts Options, begin func() error) (*Mounted, error) {
	m, err := resume(kept, dir, files, opts, begin)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take over a mount: %w", err), kept.close())
	}
	return m, nil
}

func resume(kept Kept, dir string, files []File, opts Options, begin func() error) (*Mounted, error) {
	t, err := newTree(files, opts)
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
	if err == nil { // only now is the table nobody else's
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
