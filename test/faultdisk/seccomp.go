package faultdisk

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watched are the calls that a process can reach a file by, and which of
// their arguments is the descriptor of the file or of its directory.
var watched = map[int32]struct {
	name string
	fd   int
}{
	unix.SYS_OPENAT:          {"openat", 0},
	unix.SYS_MKDIRAT:         {"mkdirat", 0},
	unix.SYS_UNLINKAT:        {"unlinkat", 0},
	unix.SYS_RENAMEAT:        {"renameat", 0},
	unix.SYS_RENAMEAT2:       {"renameat2", 0},
	unix.SYS_UTIMENSAT:       {"utimensat", 0},
	sysStatAt:                {"newfstatat", 0},
	unix.SYS_FSTAT:           {"fstat", 0},
	unix.SYS_GETDENTS64:      {"getdents64", 0},
	unix.SYS_READ:            {"read", 0},
	unix.SYS_PREAD64:         {"pread64", 0},
	unix.SYS_WRITE:           {"write", 0},
	unix.SYS_PWRITE64:        {"pwrite64", 0},
	unix.SYS_FTRUNCATE:       {"ftruncate", 0},
	unix.SYS_FALLOCATE:       {"fallocate", 0},
	unix.SYS_FSYNC:           {"fsync", 0},
	unix.SYS_FDATASYNC:       {"fdatasync", 0},
	unix.SYS_COPY_FILE_RANGE: {"copy_file_range", 2},
	unix.SYS_MSYNC:           {"msync", 0},
	unix.SYS_MMAP:            {"mmap", 4},
}

// notification is struct seccomp_notif.
type notification struct {
	ID    uint64
	PID   uint32 // a thread's
	Flags uint32
	Data  struct {
		Nr   int32
		Arch uint32
		IP   uint64
		Args [6]uint64
	}
}

// reply is struct seccomp_notif_resp.
type reply struct {
	ID    uint64
	Val   int64
	Error int32
	Flags uint32
}

func (q *notification) name() string { return watched[q.Data.Nr].name }
func (q *notification) fdArg() int   { return watched[q.Data.Nr].fd }

func (d *Disk) next() (*notification, error) {
	var q notification
	return &q, ioctl(d.listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&q))
}

// answer fails only for a process that is gone.
func (d *Disk) answer(r reply) {
	_ = ioctl(d.listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r))
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return os.NewSyscallError("ioctl", errno)
		}
		return nil
	}
}

const (
	offsetNr    = 0
	offsetFlags = 16 + 3*8 // low half of the fourth argument
)

// install has the calls of all threads, from now on, wait for an answer on
// the descriptor it returns.
func install() (listener int, err error) {
	prog := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offsetNr}}
	for nr := range watched {
		if nr != unix.SYS_MMAP {
			prog = append(prog,
				unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: uint32(nr)},
				unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
		}
	}
	prog = append(prog,
		// mmap is about a file unless it is anonymous.
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 3, K: unix.SYS_MMAP},
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offsetFlags},
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jt: 1, Jf: 0, K: unix.MAP_ANONYMOUS},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	runtime.LockOSThread() // both calls are about one thread
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, os.NewSyscallError("prctl", err)
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC |
		unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return 0, os.NewSyscallError("seccomp", errno)
	}
	return int(fd), nil
}
