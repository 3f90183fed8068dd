//go:build amd64 || arm64

package sandbox

import (
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// allowedCalls are the system calls that the Go runtime needs to run,
// collect garbage, start threads and die, and reads and writes of open
// descriptors. Every other call ends the process.
var allowedCalls = append([]uint32{
	unix.SYS_READ, unix.SYS_WRITE,
	unix.SYS_MUNMAP, unix.SYS_BRK,
	unix.SYS_FUTEX, unix.SYS_SCHED_YIELD, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME,
	unix.SYS_EPOLL_PWAIT, unix.SYS_RESTART_SYSCALL,
	unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGACTION, unix.SYS_SIGALTSTACK,
	unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETRANDOM,
	unix.SYS_SCHED_GETAFFINITY, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ,
	unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
}, moreCalls...)

// Offsets in struct seccomp_data. Arguments are 64 bits, the low half first.
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
)

func instruction(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func load(offset uint32) unix.SockFilter {
	return instruction(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset)
}

func returns(action uint32) unix.SockFilter {
	return instruction(unix.BPF_RET|unix.BPF_K, action)
}

// equal skips the next instruction unless the loaded word is k.
func equal(k uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: k}
}

// onCall runs body, which must end in a return, for one system call.
func onCall(nr uint32, body ...unix.SockFilter) []unix.SockFilter {
	jump := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: uint8(len(body)), K: nr}
	return append([]unix.SockFilter{jump}, body...)
}

// ifBits returns yes if all or no bits of mask are set in the low half of an
// argument, as set says, else no.
func ifBits(arg uint32, mask uint32, set bool, yes, no uint32) []unix.SockFilter {
	test := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: mask}
	if !set {
		test.Jt, test.Jf = 1, 0
	}
	return []unix.SockFilter{load(dataArgs + 8*arg), test, returns(yes), returns(no)}
}

// unlessBits returns no if a bit of mask is set in the low half of an
// argument, else goes on.
func unlessBits(arg uint32, mask uint32, no uint32) []unix.SockFilter {
	test := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: mask}
	return []unix.SockFilter{load(dataArgs + 8*arg), test, returns(no)}
}

// program returns the filter.
func program() []unix.SockFilter {
	const (
		kill  = unix.SECCOMP_RET_KILL_PROCESS
		allow = unix.SECCOMP_RET_ALLOW
		errno = unix.SECCOMP_RET_ERRNO
	)
	p := []unix.SockFilter{load(dataArch), equal(auditArch), instruction(unix.BPF_JMP|unix.BPF_JA, 1), returns(kill), load(dataNr)}
	for _, nr := range allowedCalls {
		p = append(p, onCall(nr, returns(allow))...)
	}
	// Memory is private, anonymous and never executable: the limit counts
	// nothing else. (The C library marks the stacks of its threads, which
	// the kernel ignores.) Values of madvise from 100 on concern the
	// machine's memory.
	const memory = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_FIXED | unix.MAP_NORESERVE | unix.MAP_STACK
	p = append(p, onCall(unix.SYS_MPROTECT, ifBits(2, unix.PROT_EXEC, false, allow, kill)...)...)
	p = append(p, onCall(unix.SYS_MMAP, slices.Concat(
		unlessBits(2, unix.PROT_EXEC, kill), unlessBits(3, ^uint32(memory), kill),
		ifBits(3, unix.MAP_ANONYMOUS, true, allow, kill))...)...)
	p = append(p, onCall(unix.SYS_MADVISE, ifBits(2, ^uint32(31), false, allow, kill)...)...)
	// The runtime interrupts only its own threads.
	p = append(p, onCall(unix.SYS_TGKILL, load(dataArgs), equal(uint32(os.Getpid())), returns(allow), returns(kill))...)
	// Threads, but no processes. A caller of clone3, whose flags a filter
	// cannot see, falls back to clone.
	p = append(p, onCall(unix.SYS_CLONE, ifBits(0, unix.CLONE_THREAD, true, allow, kill)...)...)
	p = append(p, onCall(unix.SYS_CLONE3, returns(errno|uint32(unix.ENOSYS)))...)
	// The runtime names its memory, and ignores failure.
	p = append(p, onCall(unix.SYS_PRCTL, returns(errno|uint32(unix.EINVAL)))...)
	return append(p, returns(kill))
}

// installFilter applies the filter to all threads.
func installFilter() error {
	p := program()
	fprog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	if e != 0 {
		return os.NewSyscallError("seccomp", e)
	}
	return nil
}
