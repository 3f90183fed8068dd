package keeper

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A process that was killed may stay in the kernel, in a call that only the
// next worker can bring to an end: one of its threads waits for a page of the
// mount that a READ has locked. The keeper does not wait for that. The process
// does nothing any more from the moment when none of its threads can return to
// user space, and what a thread still does in the kernel by then is harmless: a
// request that it takes is asked for again when it is gone (askAgain).

// Bits in /proc/PID/stat.
const (
	exiting     = 0x4 // PF_EXITING
	killPending = 1 << (unix.SIGKILL - 1)
)

// thread is one thread's line in /proc/PID/task/TID/stat.
type thread struct {
	state   byte
	flags   uint64
	pending uint64 // signals sent to this thread: SIGKILL, when the process is to end
	status  syscall.WaitStatus
}

// spent reports whether the thread cannot return to user space. One that
// sleeps uninterruptibly with SIGKILL pending is in the kernel, and meets the
// signal on its way back.
func (t thread) spent() bool {
	switch {
	case t.state == 'Z' || t.state == 'X' || t.flags&exiting != 0:
		return true
	case t.state == 'D':
		return t.pending&killPending != 0
	}
	return false
}

// parseThread reads a line of stat. The command's name, in parentheses, may
// hold anything.
func parseThread(stat string) (thread, bool) {
	at := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[at+1:])
	const (
		state, flags, signal, code = 0, 6, 28, 49 // fields 3, 9, 31 and 52 of proc(5)
	)
	if at < 0 || len(fields) <= code {
		return thread{}, false
	}
	var t thread
	var err [3]error
	t.state = fields[state][0]
	t.flags, err[0] = strconv.ParseUint(fields[flags], 10, 64)
	t.pending, err[1] = strconv.ParseUint(fields[signal], 10, 64)
	status, statusErr := strconv.ParseUint(fields[code], 10, 32)
	t.status, err[2] = syscall.WaitStatus(status), statusErr
	return t, err == [3]error{}
}

// spent reports whether no thread of a process can return to user space, and
// how the process ended. It is false where that cannot be seen.
func spent(pid int) (status syscall.WaitStatus, ok bool) {
	first, ok := readThread(fmt.Sprintf("/proc/%d/stat", pid))
	if !ok || !first.spent() {
		return 0, false
	}
	// A thread that is not spent may have made another behind the first look.
	for range 2 {
		if !allSpent(pid) {
			return 0, false
		}
	}
	if first.status == 0 { // it may not be for us to see
		return syscall.WaitStatus(unix.SIGKILL), true
	}
	return first.status, true
}

func allSpent(pid int) bool {
	dir := fmt.Sprintf("/proc/%d/task", pid)
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

func readThread(name string) (thread, bool) {
	text, err := os.ReadFile(name)
	if err != nil {
		return thread{}, false
	}
	return parseThread(string(text))
}
