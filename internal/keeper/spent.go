package keeper

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A killed process may stay in the kernel, in a call that only the next
// worker can complete: one of its threads waits for a page of the mount that
// a READ has locked. The keeper does not wait for the call. A process does
// nothing more once none of its threads can return to user space, and what
// its threads still do in the kernel is harmless: a request that such a
// thread takes is asked for again after the thread is gone (askAgain).

// Bits in /proc/PID/stat.
const (
	exiting     = 0x4 // PF_EXITING
	killPending = 1 << (unix.SIGKILL - 1)
)

// thread is the parsed /proc/PID/task/TID/stat of one thread.
type thread struct {
	state   byte
	flags   uint64
	pending uint64 // signals sent to this thread: SIGKILL if the process is to end
	status  syscall.WaitStatus
}

// spent reports whether the thread cannot return to user space. A thread in
// uninterruptible sleep with SIGKILL pending is in the kernel, and handles
// the signal before it returns.
func (t thread) spent() bool {
	switch {
	case t.state == 'Z' || t.state == 'X' || t.flags&exiting != 0:
		return true
	case t.state == 'D':
		return t.pending&killPending != 0
	}
	return false
}

// parseThread parses the contents of stat. The command's name, in
// parentheses, may contain any character.
func parseThread(stat []byte) (t thread, ok bool) {
	const (
		flags, signal, code = 6, 28, 49 // fields 9, 31 and 52 of proc(5), from the state on
	)
	_, rest, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	if !ok || len(rest) == 0 || rest[0] == ' ' {
		return thread{}, false
	}
	t.state = rest[0]
	for at := 0; at <= code; at++ {
		var field []byte
		field, rest, _ = bytes.Cut(rest, []byte(" "))
		if at != flags && at != signal && at != code {
			continue
		}
		n, err := strconv.ParseUint(string(bytes.TrimSuffix(field, []byte("\n"))), 10, 64)
		if err != nil {
			return thread{}, false
		}
		switch at {
		case flags:
			t.flags = n
		case signal:
			t.pending = n
		case code:
			t.status = syscall.WaitStatus(n)
		}
	}
	return t, true
}

// spent reports whether no thread of a process can return to user space, and
// how the process ended. ok is false if that cannot be determined.
func spent(pid int) (status syscall.WaitStatus, ok bool) {
	return spentAt(fmt.Sprintf("/proc/%d", pid))
}

// spentAt does that for the process with a directory of /proc.
func spentAt(dir string) (status syscall.WaitStatus, ok bool) {
	first, ok := readThread(dir + "/stat")
	if !ok || !first.spent() {
		return 0, false
	}
	// A thread that is not spent may have created another during the
	// first pass.
	for range 2 {
		if !allSpent(dir + "/task") {
			return 0, false
		}
	}
	if first.status == 0 { // this user may not be allowed to see the status
		return syscall.WaitStatus(unix.SIGKILL), true
	}
	return first.status, true
}

func allSpent(dir string) bool {
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, task := range tasks {
		name := dir + "/" + task.Name() + "/stat"
		if t, ok := readThread(name); ok && t.spent() {
			continue
		}
		if _, err := os.Stat(name); err == nil {
			return false
		}
	}
	return true
}

// readThread reads a thread's stat, of which there are some 300 bytes. The keeper
// does so every second, so this leaves no garbage.
func readThread(name string) (thread, bool) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return thread{}, false
	}
	defer unix.Close(fd)
	var stat [2048]byte
	n, err := unix.Read(fd, stat[:])
	if err != nil || n == len(stat) {
		return thread{}, false
	}
	return parseThread(stat[:n])
}
