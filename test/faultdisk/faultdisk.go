// Package faultdisk sits between a process and the file system: it sees each
// of the process's system calls on files below one directory before the call
// is made, and can let it through, fail it, cut it short, or kill the
// process. It is for tests, and uses seccomp's user notification, so that
// the process needs no changes.
package faultdisk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Call is a system call on a file below the directory.
type Call struct {
	N    int    // the first since Watch is 1
	Name string // "openat", "pwrite64", …
	Path string // path of the file, or of its directory, if known

	creates bool // an openat that may make a file
}

// Changes reports whether the call may change the disk.
func (c Call) Changes() bool {
	switch c.Name {
	case "openat":
		return c.creates
	case "read", "pread64", "fstat", "newfstatat", "getdents64", "mmap":
		return false
	}
	return true
}

// Action is what happens to a call.
type Action struct {
	Err   unix.Errno // not 0: it is not made, and fails with this
	Short bool       // a write of more than one byte writes only the first half
	Kill  bool       // the process is killed instead
}

// Disk watches one process.
type Disk struct {
	listener int
	done     chan struct{} // closed when no watched process is left

	mu     sync.Mutex
	dir    string
	n      int
	decide func(Call) Action
}

// Env is set for the watched process, which must call Enter.
const Env = "EPOCHFS_TEST_FAULTDISK"

// ErrUnsupported means that the kernel, or the confinement of this process,
// does not allow watching another process's calls.
var ErrUnsupported = errors.New("no seccomp user notification")

// Start starts a process that calls Enter, and returns once it is watched.
func Start(cmd *exec.Cmd) (*Disk, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "faultdisk"), os.NewFile(uintptr(pair[1]), "faultdisk")
	defer ours.Close()
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", Env, 3+len(cmd.ExtraFiles)))
	cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return nil, err
	}
	listener, err := receive(ours)
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, err
	}
	// Both sides take turns: on one processor they cost a fraction. Before
	// Linux 6.6 that cannot be asked for.
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SET_FLAGS, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	d := &Disk{listener: listener, done: make(chan struct{})}
	go d.serve(cmd.Process.Pid)
	return d, nil
}

// receive takes the descriptor that Enter sends.
func receive(ours *os.File) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	text := make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(int(ours.Fd()), text, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return 0, fmt.Errorf("%w: %s", ErrUnsupported, text[:n])
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	return fds[0], nil
}

// Watch has calls below dir decided on from now on, and counted from 1. dir
// must be absolute and without symbolic links.
func (d *Disk) Watch(dir string, decide func(Call) Action) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dir, d.n, d.decide = filepath.Clean(dir), 0, decide
}

// Calls is how many calls there were since Watch.
func (d *Disk) Calls() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n
}

// Wait returns when the process, and whatever it has started, has ended.
func (d *Disk) Wait() { <-d.done }

// serve answers until no watched process is left.
func (d *Disk) serve(pid int) {
	defer close(d.done)
	defer unix.Close(d.listener)
	for {
		fds := []unix.PollFd{{Fd: int32(d.listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			if fds[0].Revents != 0 {
				return
			}
			continue
		}
		q, err := d.next()
		if err != nil {
			continue // it was killed meanwhile
		}
		d.answer(d.judge(q, pid))
	}
}

// judge decides on one call.
func (d *Disk) judge(q *notification, pid int) reply {
	through := reply{ID: q.ID, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.decide == nil {
		return through
	}
	path := q.path()
	if path != d.dir && !strings.HasPrefix(path, d.dir+"/") && q.name() != "msync" {
		return through
	}
	d.n++
	a := d.decide(Call{N: d.n, Name: q.name(), Path: path, creates: q.Data.Args[2]&unix.O_CREAT != 0})
	switch {
	case a.Kill:
		_ = unix.Kill(pid, unix.SIGKILL)
		return reply{ID: q.ID, Error: -int32(unix.EINTR)} // it will not see it
	case a.Err != 0:
		return reply{ID: q.ID, Error: -int32(a.Err)}
	case a.Short:
		if n, ok := q.writeHalf(pid); ok {
			return reply{ID: q.ID, Val: int64(n)}
		}
	}
	return through
}

// path is that of the file that a call is about, or of the directory it is
// named in.
func (q *notification) path() string {
	fd := int32(q.Data.Args[q.fdArg()])
	if fd == unix.AT_FDCWD {
		raw := make([]byte, unix.PathMax)
		n, _ := q.memory(raw, q.Data.Args[1])
		name, _, _ := bytes.Cut(raw[:n], []byte{0})
		return string(name)
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", q.PID, fd))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(path, " (deleted)")
}

// memory reads the process's memory.
func (q *notification) memory(into []byte, at uint64) (int, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", q.PID))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.ReadAt(into, int64(at))
}

// writeHalf makes the first half of a write in the process's place.
func (q *notification) writeHalf(pid int) (int, bool) {
	half := q.Data.Args[2] / 2
	if q.name() != "pwrite64" && q.name() != "write" || half == 0 {
		return 0, false
	}
	buf := make([]byte, half)
	if _, err := q.memory(buf, q.Data.Args[1]); err != nil {
		return 0, false
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(process)
	fd, err := unix.PidfdGetfd(process, int(q.Data.Args[0]), 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	var n int
	if q.name() == "write" {
		n, err = unix.Write(fd, buf)
	} else {
		n, err = unix.Pwrite(fd, buf, int64(q.Data.Args[3]))
	}
	return n, err == nil
}

// Enter has the calling process watched, if Start has started it. It must
// be called first of all.
func Enter() error {
	text := os.Getenv(Env)
	if text == "" {
		return nil
	}
	var fd int
	if _, err := fmt.Sscan(text, &fd); err != nil {
		return err
	}
	defer unix.Close(fd)
	listener, err := install()
	if err != nil {
		_ = unix.Sendmsg(fd, []byte(err.Error()), nil, nil, 0)
		return err
	}
	defer unix.Close(listener)
	return unix.Sendmsg(fd, []byte("ok"), unix.UnixRights(listener), nil, 0)
}
